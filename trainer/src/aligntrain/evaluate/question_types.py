"""Type of a question by its words, for data without a column of types.

The first matching row of the table gives the type; questions are compared in lower case:

    multiple choice   lines that begin with a letter and a full stop, bracket or colon
    yes or no         begins with a form of be, do, have or can, or with will, would, should, may
    how many          "how many", "how much" or "count"
    which             begins with "which", or asks what kind, type, sort or group
    colour            "what colour", "what color"
    where             begins with "where", or asks for a bounding box or a region
    who               begins with who, whose, whom
    why or how        begins with why or how
    what              begins with what
    describe          "describe", "caption", "summarize", "tell me about", "write a"
    other             any other
"""

import re

OTHER = "other"

_PATTERNS: tuple[tuple[str, str], ...] = (
    ("multiple choice", r"(?m)^\W*[a-d][.):] .*\n\W*[b-e][.):] "),
    (
        "yes or no",
        r"^(is|are|was|were|am|be|isn't|aren't|do|does|did|don't|doesn't|has|have|had|can|could|"
        r"will|would|should|may|might)\b",
    ),
    ("how many", r"\bhow (many|much)\b|^count\b"),
    ("which", r"^(in |on |at |from )?which\b|^what (kind|type|sort|group)\b"),
    ("colour", r"\bwhat (is the )?colou?rs?\b"),
    ("where", r"^where\b|\bbounding box\b|\bwhat region\b"),
    ("who", r"^(who|whose|whom)\b"),
    ("why or how", r"^(why|how)\b"),
    ("what", r"^what('s)?\b"),
    ("describe", r"\bdescri(be|ption)\b|\bcaption\b|\bsummari[sz]e\b|\btell me about\b|^write a\b"),
)
_TYPES = tuple((name, re.compile(pattern)) for name, pattern in _PATTERNS)


def question_type(question: str) -> str:
    """Return the type of `question` by the table above."""
    words = question.strip().lower()
    return next((name for name, pattern in _TYPES if pattern.search(words)), OTHER)

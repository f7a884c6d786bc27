"""VQA accuracy (VQAv2, VizWiz, TextVQA) and exact match (GQA).

VQA accuracy is that of Antol et al., arXiv 1505.00468, as the VQA server's evaluation code has it:
both sides are written alike first. The tables below are the ones the server uses, its slips
included, for what is compared with it has to be read as it reads.
"""

import re
from collections.abc import Sequence
from itertools import product

from aligntrain.evaluate.score import Record, Score, percent

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = 32
"""How many full stops the server's code takes out: it gives a flag where the count belongs."""

_WRITTEN = """
'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't
hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a list literal is four times as long
_NOT_MENDED = {"ow'sat", "'owsat", "ows'at", "yall'dve", "y'alldve", "yalld've"}


def _contractions() -> dict[str, str]:
    """From contractions that lack some of their apostrophes, though of several not all."""
    mended = {"somebody'd": "somebodyd"}
    for written in _WRITTEN:
        first, *others = written.split("'")
        for marks in product(("", "'"), repeat=len(others)):
            seen = first + "".join(m + o for m, o in zip(marks, others, strict=True))
            kept = sum(map(len, marks))
            if kept < len(others) and (kept or len(others) == 1) and seen not in _NOT_MENDED:
                mended[seen] = written
    return mended


_CONTRACTIONS = _contractions()


def normal_answer(answer: str) -> str:
    """`answer` as the VQA server reads it: without case, articles and most punctuation, numbers to
    ten as digits, contractions with their apostrophes.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_number else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def vqa_accuracy(answer: str, humans: list[str]) -> float:
    """How far the (usually ten) `humans` agree with `answer`, 0 to 1.

    Each of them is left out in turn; of the others, three who gave the answer are full agreement.
    Of ten, 1, 2, 3 and 4 matches so make 0.3, 0.6, 0.9 and 1.
    """
    if not humans:
        return 0.0
    said = normal_answer(answer)
    matches = [normal_answer(human) == said for human in humans]
    total = sum(matches)
    return sum(min((total - match) / 3, 1) for match in matches) / len(matches)


def score_vqa(records: Sequence[Record]) -> Score:
    """Mean VQA accuracy in percent; facts: `answers`, what people said."""
    points = [vqa_accuracy(record["text"], record["facts"]["answers"]) for record in records]
    return Score(percent(points), points)


def score_exact(records: Sequence[Record]) -> Score:
    """Share of answers that are the one expected, but for case and a full stop; facts: `answer`."""
    points = [
        float(record["text"].strip().rstrip(".").lower() == record["facts"]["answer"].lower())
        for record in records
    ]
    return Score(percent(points), points)

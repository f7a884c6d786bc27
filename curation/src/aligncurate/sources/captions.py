"""Whether a caption can be scored."""

import codecs
from typing import Any

from alignshared import Reason

MAX_CHARACTERS = 1 << 20
"""Of a caption, or of what is said in one turn of a conversation; no person wrote more."""

INVALID = "\U0010ffff"
"""What bytes that are not UTF-8 are read as: a noncharacter, which no text has. U+FFFD would not
do: texts that lost a letter long ago have it, and are valid.
"""

MARK_INVALID = "alignstack-mark-invalid"
"""Name of the codec error handler that puts INVALID there."""


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return INVALID, error.end


codecs.register_error(MARK_INVALID, _mark_invalid)


def as_text(value: Any) -> Any:
    """`value`, decoded if it is bytes; bytes that are not UTF-8 become INVALID."""
    return value.decode("utf-8", errors=MARK_INVALID) if isinstance(value, bytes) else value


def writable(text: str) -> str:
    """`text` with what is not valid UTF-8 in it as U+FFFD."""
    return text.replace(INVALID, "\ufffd").encode(errors="replace").decode()


def caption_problem(caption: Any) -> tuple[Reason, str] | None:
    """Why `caption` cannot be scored, or None if it can."""
    if caption is None:
        return Reason.NO_CAPTION, "there is no caption"
    if not isinstance(caption, str):
        return Reason.NO_CAPTION, f"the caption is {type(caption).__name__}, not text"
    if not caption.strip():
        return Reason.EMPTY_CAPTION, "the caption is empty"
    if len(caption) > MAX_CHARACTERS:
        return Reason.MALFORMED_RECORD, f"the caption has {len(caption):,} characters"
    if not is_valid_text(caption):
        return Reason.INVALID_UTF8, f"the caption is not valid UTF-8: {writable(caption[:80])}"
    return None


def is_valid_text(text: str) -> bool:
    """Whether `text` was valid UTF-8 and can be written as such."""
    if INVALID in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return False
    return True

"""Whether a caption can be scored."""

from typing import Any

from alignshared import Reason

REPLACEMENT = "\ufffd"
"""What bytes that are not UTF-8 are read as."""


def as_text(value: Any) -> Any:
    """`value`, decoded if it is bytes; bytes that are not UTF-8 become REPLACEMENT."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def caption_problem(caption: Any) -> tuple[Reason, str] | None:
    """Why `caption` cannot be scored, or None if it can."""
    if caption is None:
        return Reason.NO_CAPTION, "there is no caption"
    if not isinstance(caption, str):
        return Reason.NO_CAPTION, f"the caption is {type(caption).__name__}, not text"
    if not caption.strip():
        return Reason.EMPTY_CAPTION, "the caption is empty"
    if not is_valid_text(caption):
        return Reason.INVALID_UTF8, f"the caption is not valid UTF-8: {caption[:80]!r}"
    return None


def is_valid_text(text: str) -> bool:
    """Whether `text` was valid UTF-8 and can be written as such."""
    if REPLACEMENT in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return False
    return True

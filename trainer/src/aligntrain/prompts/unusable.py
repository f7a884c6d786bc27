"""Why a row cannot be trained on."""

from enum import StrEnum


class Why(StrEnum):
    """The reasons, as they are counted and logged."""

    NO_CAPTION = "no_caption"
    NO_IMAGE = "no_image"
    NO_CONVERSATION = "no_conversation"
    MALFORMED_CONVERSATION = "malformed_conversation"
    IMAGE_MARKS = "image_marks"
    CHAT_TEMPLATE = "chat_template"
    FOREIGN_TOKEN = "foreign_token"
    TOO_LONG = "too_long"
    CORRUPT_IMAGE = "corrupt_image"


class Unusable(Exception):
    """A row that cannot become a sample: the reason, and a detail for the reader."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(why, detail)
        self.why = why
        self.detail = detail

"""Samples: a dataset row as ids, labels, level and the bytes of its images."""

from dataclasses import dataclass

from PIL import Image

from alignshared.images import ImageError, decode_image
from aligntrain.prompts.conversation import InvalidSample, Reason, Turn
from aligntrain.prompts.encode import Encoder


def decode_sample_image(data: bytes) -> Image.Image:
    """Decode the image file `data` to RGB.

    Raises:
        InvalidSample: it cannot be decoded (see `alignshared.images.decode_image`).
    """
    try:
        return decode_image(data)
    except ImageError as error:
        raise InvalidSample(
            Reason.CORRUPT_IMAGE, f"{error.reason.value}: {error.detail}"
        ) from error


@dataclass(frozen=True, slots=True)
class Row:
    """Row as stored in a shard.

    `image` is None for text alone and b"" if the shard holds only a path; `turns` is empty without
    a conversation, `level` None without levels.
    """

    id: str
    image: bytes | None
    caption: str | None
    turns: tuple[Turn, ...]
    level: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Training sample: `ids` and `labels` of equal length, `images` in reading order.

    `level` is 1..N, or 0 without an image or a level.
    """

    id: str
    ids: list[int]
    labels: list[int]
    images: list[bytes]
    level: int
    truncated: bool

    @property
    def length(self) -> int:
        """Tokens in the sequence, including images and the alignment vector."""
        return len(self.ids)

    @property
    def has_image(self) -> bool:
        """Whether the sample has an image and so an alignment vector."""
        return bool(self.images)


def make_sample(row: Row, encoder: Encoder) -> Sample:
    """Return `row` as a sample.

    Raises:
        InvalidSample: the row lacks something, or is too long even when cut.
    """
    if row.image == b"":
        raise InvalidSample(Reason.NO_IMAGE, "the shard holds a path and no picture")
    images = [] if row.image is None else [row.image]
    tokens = encoder(row.caption, row.turns, len(images))
    images = images[: tokens.images]
    return Sample(
        id=row.id,
        ids=tokens.ids,
        labels=tokens.labels,
        images=images,
        level=row.level or 0 if images else 0,
        truncated=tokens.truncated,
    )

"""Captions longer than the text tower reads: their windows, and the mean of them."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from aligncurate import score
from aligncurate.core.clip import ClipModel, resolve_clip
from aligncurate.core.clip.model import MAX_WINDOWS, CaptionWindows, used_tokens
from tests.curation.inputs import rows_of, write_parquet
from tests.curation.pictures import photo

CONTEXT = 32
INSIDE = CONTEXT - 2
SHORT = ["a cat", "two dogs on a beach", "word " * INSIDE, "one! two!! (three)"]
LONG = ["word " * (INSIDE + 1), " ".join(f"thing {i}" for i in range(60)), "cat, dog! " * 40]


@pytest.fixture(scope="module")
def tokenize(tiny_clip: str) -> Any:
    return open_clip.get_tokenizer(f"local-dir:{tiny_clip}")


@pytest.fixture(scope="module")
def models(tiny_clip: str) -> tuple[ClipModel, ClipModel]:
    """The one truncates, the other takes means."""
    clip = resolve_clip(tiny_clip)
    return ClipModel(clip, "fp32"), ClipModel(clip, "fp32", long_captions="mean")


def words_of(windows: torch.Tensor) -> list[int]:
    """The tokens of windows without marks and padding, one window after another."""
    rows = windows.tolist()
    assert all(row[0] == 49406 for row in rows)
    return [token for row in rows for token in row[1 : row.index(49407)]]


def test_windows_hold_every_token_once_between_marks_of_their_own(tokenize: Any) -> None:
    cut = CaptionWindows(tokenize, CONTEXT)
    for caption, windows in zip(SHORT + LONG, cut(SHORT + LONG), strict=True):
        tokens = tokenize.encode(caption)
        assert words_of(windows) == tokens
        assert windows.shape == (max(-(-len(tokens) // INSIDE), 1), CONTEXT)
        assert torch.equal(windows[:1], tokenize([caption]))


def test_the_number_of_windows_is_bounded(tokenize: Any) -> None:
    (windows,) = CaptionWindows(tokenize, CONTEXT)(["word " * 100_000])
    assert len(windows) == MAX_WINDOWS == 16
    assert len(words_of(windows)) == MAX_WINDOWS * INSIDE


def test_an_empty_caption_is_one_window(tokenize: Any) -> None:
    (windows,) = CaptionWindows(tokenize, CONTEXT)([""])
    assert torch.equal(windows, tokenize([""]))


class EndPads:
    """Ends and pads with 1 and begins with nothing, as SigLIP's tokenizers do; one token for each
    word.
    """

    tokenizer = type("Inner", (), {"pad_token_id": 1})

    def __call__(self, texts: list[str], context_length: int = 6) -> torch.Tensor:
        rows = torch.ones((len(texts), context_length), dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = [2 + len(word) for word in text.split()][: context_length - 1]
            row[: len(words)] = torch.tensor(words, dtype=torch.long)
        return rows


def test_marks_are_those_of_the_tokenizer() -> None:
    windows = CaptionWindows(EndPads(), 6)(["a bb ccc dddd eeeee f gg", "a bb"])
    assert windows[0].tolist() == [[3, 4, 5, 6, 7, 1], [3, 4, 1, 1, 1, 1]]
    assert windows[1].tolist() == [[3, 4, 1, 1, 1, 1]]


def test_tokens_are_counted_up_to_the_padding() -> None:
    rows = torch.tensor([[5, 0, 6, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    assert used_tokens(rows, 0).tolist() == [3, 0, 5]


def test_short_captions_are_embedded_the_same_to_the_bit(
    models: tuple[ClipModel, ClipModel],
) -> None:
    truncating, averaging = models
    captions = [SHORT[0], LONG[0], *SHORT[1:], *LONG[1:]]
    one, cut = truncating.embed_captions(captions)
    two, cut_too = averaging.embed_captions(captions)
    assert cut.tolist() == cut_too.tolist() == [False, True, False, False, False, True, True]
    np.testing.assert_array_equal(one[~cut], two[~cut])
    assert (np.abs(one[cut] - two[cut]).max(axis=1) > 1e-3).all()
    np.testing.assert_array_equal(
        averaging.embed_captions(SHORT)[0], truncating.embed_captions(SHORT)[0]
    )


def test_a_long_caption_is_the_mean_of_what_its_windows_are(
    models: tuple[ClipModel, ClipModel],
) -> None:
    truncating, averaging = models
    # Words of one token each: a window is then itself a caption.
    words = ["cat", "dog", "sun", "sea", "red", "car", "tree", "house", "man", "woman"] * 8
    parts = [words[i : i + INSIDE] for i in range(0, len(words), INSIDE)]
    assert [len(part) for part in parts] == [30, 30, 20]
    units = np.stack([truncating.embed_captions([" ".join(part)])[0][0] for part in parts])
    mean = units.mean(axis=0)
    found, cut = averaging.embed_captions(["a cat", " ".join(words)])
    assert cut.tolist() == [False, True]
    np.testing.assert_allclose(found[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_scores_of_short_captions_do_not_change_and_the_manifest_tells(
    tmp_path: Path, tiny_clip: str
) -> None:
    captions = [*SHORT, *LONG]
    columns = {"image": [photo(i) for i in range(len(captions))], "caption": captions}
    path = write_parquet(tmp_path / "in.parquet", columns)
    one = score(path, tmp_path / "one", model=tiny_clip)
    two = score(path, tmp_path / "two", model=tiny_clip, long_captions="mean")
    for a, b in zip(rows_of(one), rows_of(two), strict=True):
        assert a["caption_truncated"] == b["caption_truncated"] == (a["caption"] in LONG)
        assert (a["score"] == b["score"]) == (a["caption"] in SHORT)
        assert -1 <= b["score"] <= 1
    assert one.manifest.model
    assert two.manifest.model
    assert (one.manifest.model.long_captions, two.manifest.model.long_captions) == (None, "mean")
    assert two.manifest.config["long_captions"] == "mean"

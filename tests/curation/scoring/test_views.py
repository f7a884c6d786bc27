"""How a picture that is not square is framed, as --view says; and decoding at reduced scale."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg
from PIL import Image

from aligncurate.core.clip import pixel_view, resolve_clip
from aligncurate.core.clip.view import preprocess_of_view
from aligncurate.settings import View
from alignshared.images import decode_image, decode_sized
from tests.curation.clips import write_tiny_clip
from tests.curation.inputs import rows_of, score_good_pairs
from tests.curation.pictures import encoded, noise, rotated_jpeg

CLIP = asdict(PreprocessCfg(size=48))
SIGLIP = CLIP | {"resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
MEAN = [122, 116, 104]
"""The mean of CLIP's normalisation, as 8-bit channels."""


def wide(width: int = 960, height: int = 60) -> Image.Image:
    """Grey, with a red left end and a blue right one."""
    image = Image.new("RGB", (width, height), (200, 200, 200))
    end = width // 8
    image.paste((255, 0, 0), (0, 0, end, height))
    image.paste((0, 0, 255), (width - end, 0, width, height))
    return image


def seen(preprocess: dict[str, Any], view: View | None, image: Image.Image) -> Any:
    chosen = preprocess if view is None else preprocess_of_view(preprocess, view)
    pixels = pixel_view(chosen)(image)
    assert pixels.shape == (48, 48, 3)
    return pixels.astype(int)


def test_a_cropped_wide_picture_loses_its_ends() -> None:
    pixels = seen(CLIP, "crop", wide())
    np.testing.assert_array_equal(pixels, 200)
    np.testing.assert_array_equal(pixels, seen(CLIP, None, wide()))


def test_a_padded_wide_picture_is_seen_whole_on_the_mean_colour() -> None:
    pixels = seen(CLIP, "pad", wide())
    middle = pixels[24]
    np.testing.assert_allclose(middle[1], [255, 0, 0], atol=12)
    np.testing.assert_allclose(middle[24], 200, atol=12)
    np.testing.assert_allclose(middle[46], [0, 0, 255], atol=12)
    rows = [row for row in range(48) if (pixels[row] == MEAN).all()]
    assert len(rows) == 48 - 48 // 16
    np.testing.assert_array_equal(pixels[0], np.broadcast_to(MEAN, (48, 3)))


def test_a_padded_tall_picture_is_turned_the_same_way() -> None:
    turned = seen(CLIP, "pad", wide().transpose(Image.Transpose.TRANSPOSE))
    flat = seen(CLIP, "pad", wide())
    np.testing.assert_allclose(turned.transpose(1, 0, 2), flat, atol=1)


@pytest.mark.parametrize("view", [None, "crop", "pad"])
def test_a_square_picture_is_the_same_under_every_view(view: View | None) -> None:
    image = noise(3, (80, 80))
    np.testing.assert_array_equal(seen(CLIP, view, image), seen(CLIP, None, image))


def test_a_model_that_squashes_is_made_to_keep_the_aspect_ratio() -> None:
    own = seen(SIGLIP, None, wide())
    np.testing.assert_allclose(own[0, 2], [255, 0, 0], atol=12)  # all of it, 16 times too narrow
    np.testing.assert_array_equal(seen(SIGLIP, "crop", wide()), 200)
    np.testing.assert_array_equal(seen(SIGLIP, "pad", wide())[0, 0], 127)


@pytest.mark.parametrize("size", [(9600, 48), (48, 9600), (1, 200), (2, 400), (97, 1), (95, 1)])
def test_a_picture_as_long_as_any_that_is_let_through_can_be_padded(size: tuple[int, int]) -> None:
    pixels = seen(CLIP, "pad", Image.new("RGB", size, (9, 9, 9)))
    rows = pixels if size[0] > size[1] else pixels.transpose(1, 0, 2)
    assert sum((row == 9).all() for row in rows) == 1
    assert sum((row == MEAN).all() for row in rows) == 47


def test_padding_is_that_of_the_field_but_for_the_border_lines() -> None:
    # LLaVA's way: first onto a square of the mean colour, then resized; the same but where the
    # resizing mixes the picture's border with the colour beside it.
    image = noise(1, (120, 60))
    square = Image.new("RGB", (120, 120), tuple(MEAN))
    square.paste(image, (0, 30))
    theirs = np.asarray(square.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
    ours = seen(CLIP, "pad", image)
    inside = np.r_[0:10, 15:33, 38:48]
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1)


def test_the_view_is_recorded_and_changes_the_scores_of_wide_pictures(
    tmp_path: Path, tiny_clip: str
) -> None:
    datasets = {
        view: score_good_pairs(tmp_path, tiny_clip, 4, view=view, output=tmp_path / str(view))
        for view in (None, "crop", "pad")
    }
    scores = {view: [r["score"] for r in rows_of(d)] for view, d in datasets.items()}
    assert scores["crop"] == scores[None] != scores["pad"]
    for view, dataset in datasets.items():
        assert dataset.manifest.model
        assert dataset.manifest.model.view == view
        assert dataset.manifest.config.get("view") == view
    framing = datasets["pad"].manifest.config["preprocess"]
    assert (framing["resize_mode"], framing["fill_color"]) == ("longest", MEAN)
    assert {(r["width"], r["height"]) for r in rows_of(datasets["pad"])} == {(90, 60)}


def test_a_models_own_way_stays_unless_a_view_is_asked_for(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path / "siglip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = resolve_clip(str(folder))
    assert clip.with_view(None).preprocess["resize_mode"] == "squash"
    assert clip.with_view("crop").preprocess["resize_mode"] == "shortest"
    assert clip.with_view("pad").preprocess["resize_mode"] == "longest"


# Decoding at reduced scale


def test_a_large_jpeg_is_decoded_at_less_scale_and_keeps_its_full_size() -> None:
    data = encoded(noise(0, (1600, 1000)), "JPEG", quality=90)
    image, size = decode_sized(data, 96)
    assert (image.size, size) == ((200, 125), (1600, 1000))
    assert decode_sized(data, 126)[0].size == (400, 250)
    assert decode_sized(data, 501)[0].size == (1600, 1000)
    exact = decode_image(data).resize((48, 30), Image.Resampling.BICUBIC)
    near = image.resize((48, 30), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(exact).astype(int) - np.asarray(near)).mean() < 1


def test_what_is_no_large_jpeg_is_decoded_as_ever() -> None:
    for data in (encoded(noise(0, (1600, 1000))), encoded(noise(0), "JPEG"), rotated_jpeg()):
        image, size = decode_sized(data, 96)
        assert image.tobytes() == decode_image(data).tobytes()
        assert size == image.size


def test_the_full_size_is_that_of_the_picture_as_displayed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(2, (1600, 1000)), "JPEG", exif=exif.tobytes())
    image, size = decode_sized(data, 96)
    assert (image.size, size) == ((125, 200), (1000, 1600))


def test_fast_decoding_is_recorded_and_the_columns_keep_the_full_size(
    tmp_path: Path, tiny_clip: str
) -> None:
    from aligncurate import score
    from tests.curation.inputs import write_parquet

    pictures = [encoded(noise(i, (1600, 1000)), "JPEG", quality=90) for i in range(3)]
    columns = {"image": pictures, "caption": ["a", "b", "c"]}
    path = write_parquet(tmp_path / "in.parquet", columns)
    exact = score(path, tmp_path / "exact", model=tiny_clip)
    fast = score(path, tmp_path / "fast", model=tiny_clip, decode="fast")
    assert fast.manifest.model
    assert (fast.manifest.model.decode, fast.manifest.config["decode"]) == ("fast", "fast")
    assert exact.manifest.model
    assert exact.manifest.model.decode is None
    for a, b in zip(rows_of(exact), rows_of(fast), strict=True):
        assert (b["width"], b["height"]) == (1600, 1000)
        assert a["image"] == b["image"]
        assert 0 < abs(a["score"] - b["score"]) < 0.01

"""Our CLIP is open_clip's: the same pixels, embeddings and scores; and a model that is not what it
should be is refused.
"""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file, save_file
from torchvision.transforms import Normalize

from aligncurate.core.clip import ClipModel, pixel_view, resolve, resolve_clip, score_pairs
from alignshared import InputError
from tests.curation.clips import TINY_CONFIG, write_tiny_clip
from tests.curation.pictures import noise

CAPTIONS = [
    "a cat",
    "two dogs on a beach at sunset, one of them jumping after a red ball",
    "a",
    "Ein Fahrrad – rot & blau",
    "word " * 29,
    "word " * 30,
    "word " * 31,
    "word " * 500,
    "<end_of_text> a cat after the end",
]
"""With its two marks the text tower of the tests reads 30 tokens."""


@pytest.fixture(scope="module")
def model(tiny_clip: str) -> ClipModel:
    return ClipModel(resolve_clip(tiny_clip), "fp32")


@pytest.fixture(scope="module")
def plain(tiny_clip: str) -> Any:
    return open_clip.create_model(f"local-dir:{tiny_clip}").eval()


@pytest.fixture(scope="module")
def tokenize(tiny_clip: str) -> Any:
    return open_clip.get_tokenizer(f"local-dir:{tiny_clip}")


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_model_sees_open_clips_own_pixels_to_the_bit(resize_mode: str, interpolation: str):
    config: dict[str, Any] = {
        "size": 48,
        "resize_mode": resize_mode,
        "interpolation": interpolation,
    }
    theirs: Any = image_transform_v2(PreprocessCfg(**config), is_train=False)
    ours = pixel_view(config)
    normalize = Normalize(PreprocessCfg().mean, PreprocessCfg().std)
    sizes = [(48, 48), (49, 48), (33, 47), (640, 480), (17, 300), (301, 90), (7, 5), (1, 1)]
    for seed, size in enumerate(sizes):
        for mode in ("RGB", "L"):
            image = noise(seed, size).convert(mode)
            floats = torch.from_numpy(ours(image.convert("RGB"))).permute(2, 0, 1).float().div(255)
            assert torch.equal(normalize(floats), theirs(image)), (size, mode)


def test_pixels_are_normalized_as_open_clips_transform_does(model: ClipModel, tiny_clip: str):
    seen: list[torch.Tensor] = []
    visual = model._model.visual
    hook = visual.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    preprocess = resolve_clip(tiny_clip).preprocess
    image = noise(1, (70, 50))
    model.embed_images(pixel_view(preprocess)(image)[None])
    hook.remove()
    theirs: Any = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    assert torch.equal(seen[0][0], theirs(image))


def test_captions_without_their_padding_give_open_clips_embeddings(
    model: ClipModel, plain: Any, tokenize: Any
):
    for batch in (CAPTIONS, CAPTIONS[:1], CAPTIONS[2:3] * 3, CAPTIONS[:4]):
        ours, _ = model.embed_captions(batch)
        with torch.inference_mode():
            theirs = plain.encode_text(tokenize(batch), normalize=True).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_only_captions_that_are_cut_count_as_truncated(model: ClipModel):
    _, truncated = model.embed_captions(CAPTIONS)
    assert truncated.tolist() == [False] * 6 + [True, True, False]
    assert model.embed_captions(["x"])[1].tolist() == [False]


def test_a_tokenizer_that_pads_with_its_end_token_tells_truncation_too(
    model: ClipModel, monkeypatch: pytest.MonkeyPatch
):
    class EndPads:
        """Ends and pads with 1, as SigLIP's tokenizers do."""

        tokenizer = type("Inner", (), {"pad_token_id": 1})

        def __call__(self, captions: list[str], context_length: int = 4) -> torch.Tensor:
            rows = [[int(word) for word in caption.split()] for caption in captions]
            return torch.tensor(
                [
                    (row[: context_length - 1] + [1] * context_length)[:context_length]
                    for row in rows
                ]
            )

    monkeypatch.setattr(model, "_tokenizer", EndPads())
    captions = ["5 6", "5 6 7", "5 6 7 8"]
    tokens = EndPads()(captions)
    assert model._truncated(captions, tokens).tolist() == [False, False, True]


def test_scores_are_open_clips_cosines(model: ClipModel, plain: Any, tokenize: Any, tiny_clip: str):
    preprocess = resolve_clip(tiny_clip).preprocess
    images = [noise(i, (90, 60)) for i in range(len(CAPTIONS))]
    view = pixel_view(preprocess)
    ours = score_pairs(
        model.embed_images(np.stack([view(image) for image in images])),
        model.embed_captions(CAPTIONS)[0],
    )
    transform: Any = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    with torch.inference_mode():
        x = plain.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        y = plain.encode_text(tokenize(CAPTIONS), normalize=True)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, (x * y).sum(-1).numpy(), atol=1e-6)


def test_scores_stay_within_one():
    ones = np.full((1, 3), 0.5773504, dtype=np.float32)
    assert score_pairs(ones, ones).tolist() == [1.0]
    assert score_pairs(ones, -ones).tolist() == [-1.0]


def test_bf16_weights_stay_near_fp32(model: ClipModel, tiny_clip: str):
    half = ClipModel(resolve_clip(tiny_clip), "bf16")
    pixels = np.stack([np.asarray(noise(i, (48, 48))) for i in range(8)])
    images, texts = half.embed_images(pixels), half.embed_captions(CAPTIONS[:8])[0]
    assert images.dtype == texts.dtype == np.float32
    full = score_pairs(model.embed_images(pixels), model.embed_captions(CAPTIONS[:8])[0])
    assert np.abs(score_pairs(images, texts) - full).max() < 0.02


def test_the_model_is_in_evaluation_mode(model: ClipModel):
    assert not any(module.training for module in model._model.modules())


def test_half_precision_needs_a_gpu(tiny_clip: str):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        ClipModel(resolve_clip(tiny_clip), "fp16")


def test_a_folder_says_which_activation_its_model_has(tmp_path: Path, tiny_clip: str):
    quick = resolve_clip(str(write_tiny_clip(tmp_path / "quick", quick_gelu=True)))
    assert quick.quick_gelu
    assert not resolve_clip(tiny_clip).quick_gelu
    kinds = {type(m).__name__ for m in ClipModel(quick, "fp32")._model.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds


def test_openai_weights_bring_their_activation_to_an_architecture_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    laid = tmp_path / "ViT-B-32" / "openai.safetensors"
    laid.parent.mkdir()
    laid.write_bytes(b"only resolved, never loaded")
    monkeypatch.setattr(resolve, "WEIGHTS_CACHE", tmp_path)
    found = resolve_clip("ViT-B-32")
    assert (found.weights, found.weights_path) == ("openai", str(laid))
    assert found.quick_gelu
    assert (found.image_size, found.embedding_dim) == (224, 512)


def test_weights_without_quick_gelu_are_refused_where_the_architecture_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    laid = tmp_path / "ViT-B-32-quickgelu" / "laion2b_s34b_b79k.safetensors"
    laid.parent.mkdir()
    laid.write_bytes(b"only resolved, never loaded")
    monkeypatch.setattr(resolve, "WEIGHTS_CACHE", tmp_path)
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-32-quickgelu")
    for tag in tags:
        assert open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", tag).get("quick_gelu")
    with pytest.raises(InputError, match="its tags are"):
        resolve_clip("ViT-B-32-quickgelu", "laion2b_s34b_b79k")


@pytest.fixture
def architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny CLIP as an architecture that open_clip knows by name."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-Test", TINY_CONFIG)
    return "Tiny-Test"


def test_an_architecture_takes_a_weights_file(
    architecture: str, tiny_clip: str, tmp_path: Path, model: ClipModel
):
    weights = load_file(f"{tiny_clip}/open_clip_model.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "checkpoint.pt")
    found = resolve_clip(architecture, str(tmp_path / "checkpoint.pt"))
    texts, _ = ClipModel(found, "fp32").embed_captions(CAPTIONS)
    assert (texts == model.embed_captions(CAPTIONS)[0]).all()


def test_weights_that_lack_or_add_keys_are_one_sentence(
    architecture: str, tiny_clip: str, tmp_path: Path
):
    weights = load_file(f"{tiny_clip}/open_clip_model.safetensors")
    lacking = {k: v for k, v in weights.items() if "resblocks.1" not in k}
    adding = weights | {"aesthetic.head": torch.zeros(3)}
    for state, says in ((lacking, "Missing key"), (adding, "aesthetic.head"), ({}, "Tiny")):
        save_file(state, tmp_path / "odd.safetensors")
        with pytest.raises(InputError, match=says) as caught:
            ClipModel(resolve_clip(architecture, str(tmp_path / "odd.safetensors")), "fp32")
        assert "does not fit the architecture Tiny-Test" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


def test_a_folder_whose_weights_lack_keys_is_one_sentence(tmp_path: Path):
    folder = write_tiny_clip(tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights.pop("visual.proj")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"visual\.proj"):
        ClipModel(resolve_clip(str(folder)), "fp32")


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pickle", "torch", "torchscript", "cut short", "text"])
def test_weights_that_hold_code_or_are_damaged_are_refused_unrun(
    architecture: str, tiny_clip: str, tmp_path: Path, kind: str
):
    path, trace = tmp_path / "weights.pt", tmp_path / "was-run"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(str(trace))}, protocol=2))
    elif kind == "torch":
        torch.save({"state_dict": Bomb(str(trace))}, path)
    elif kind == "torchscript":
        write_torchscript(path)
    elif kind == "cut short":
        path = path.with_suffix(".safetensors")
        path.write_bytes(Path(f"{tiny_clip}/open_clip_model.safetensors").read_bytes()[:5000])
    else:
        path.write_text("https://example.org/weights.pt")
    with pytest.raises(InputError, match="weights") as caught:
        ClipModel(resolve_clip(architecture, str(path)), "fp32")
    assert not trace.exists()
    assert "safetensors" in str(caught.value)


def write_torchscript(path: Path) -> None:
    """A zip with the parts by which a TorchScript archive is known."""
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive/data.pkl", "archive/constants.pkl", "archive/code/m.py"):
            archive.writestr(name, "")


def test_a_folder_without_its_parts_says_what_is_missing(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no open_clip_config\.json"):
        resolve_clip(str(tmp_path))
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": TINY_CONFIG}))
    with pytest.raises(InputError, match="holds no weights"):
        resolve_clip(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    for text in ("", "[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": "many"}}'):
        config.write_text(text)
        with pytest.raises(InputError, match="not an open_clip configuration"):
            resolve_clip(str(tmp_path))


def test_an_architecture_is_not_shadowed_by_a_folder_of_its_name(
    workdir: Path, architecture: str, tiny_clip: str
):
    (workdir / architecture).mkdir()
    weights = f"{tiny_clip}/open_clip_model.safetensors"
    assert resolve_clip(architecture, weights).open_clip_name == architecture


def test_the_same_weights_have_the_same_digest_wherever_they_lie(tmp_path: Path, tiny_clip: str):
    again = resolve_clip(str(write_tiny_clip(tmp_path / "copy")))
    assert again.weights_sha256 == resolve_clip(tiny_clip).weights_sha256
    assert replace(again, open_clip_name="", weights_path="", name="") == replace(
        resolve_clip(tiny_clip), open_clip_name="", weights_path="", name=""
    )


@pytest.mark.parametrize("name", ["ViT-L-14-336", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
def test_without_network_one_sentence_says_what_to_place_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        resolve_clip(name)
    text = str(caught.value)
    assert "does not answer" in text
    assert "\n" not in text
    assert ("ViT-L-14-336/openai.safetensors" in text) or ("open_clip_config.json" in text)

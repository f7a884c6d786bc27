"""Several models in one pass: each scores as if it were alone, and the manifest names all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from aligncurate import Execution, bucket, inspect, score, validate
from aligncurate.cli import app
from aligncurate.reporting.inspection import facts
from aligncurate.scoring.models import resolve_models, safe_name
from alignshared import Dataset, InputError
from alignshared.images import decode_sized
from alignshared.manifest import MANIFEST_FILE
from tests.curation.clips import TINY_CONFIG, write_tiny_clip
from tests.curation.inputs import (
    good_pairs,
    reject_rows,
    rows_of,
    score_good_pairs,
    write_parquet,
)
from tests.curation.pictures import photo


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of another input size, width and framing than `tiny_clip`."""
    vision = TINY_CONFIG["vision_cfg"] | {"image_size": 24}
    folder = tmp_path_factory.mktemp("clip") / "Other-CLIP"
    write_tiny_clip(folder, vision_cfg=vision, embed_dim=16)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def column(dataset: Dataset, name: str) -> list[float]:
    return [row[name] for row in rows_of(dataset)]


def test_each_model_scores_to_the_bit_as_if_it_were_alone(
    tmp_path: Path, tiny_clip: str, other_clip: str
) -> None:
    both = score_good_pairs(tmp_path, [tiny_clip, other_clip], 9, batch_size=4)
    for name, clip in (("tiny", tiny_clip), ("other_clip", other_clip)):
        alone = score_good_pairs(tmp_path, clip, 9, batch_size=4, output=tmp_path / name)
        assert column(both, f"score_{name}") == column(alone, "score")
    assert column(both, "score") == column(both, "score_tiny")
    assert column(both, "score_tiny") != column(both, "score_other_clip")
    assert validate(both.location).problems == []


def test_the_main_model_gives_score_embeddings_and_the_truncation(
    tmp_path: Path, tiny_clip: str, other_clip: str
) -> None:
    models = [f"a={tiny_clip}", f"b={other_clip}"]
    dataset = score_good_pairs(tmp_path, models, 5, main="b", embeddings=True)
    assert column(dataset, "score") == column(dataset, "score_b") != column(dataset, "score_a")
    for row in rows_of(dataset):
        x, y = (np.array(row[f"{side}_embedding"]) for side in ("image", "text"))
        assert len(x) == 16
        assert abs(float(x @ y) - row["score"]) < 2e-3
    manifest = dataset.manifest
    assert manifest.model
    assert manifest.models
    assert list(manifest.models) == ["a", "b"]
    assert manifest.model == manifest.models["b"]
    assert [manifest.models[n].image_size for n in "ab"] == [48, 24]
    assert manifest.config["models"]["a"]["model"] == tiny_clip
    assert manifest.config["models"]["b"]["preprocess"]["resize_mode"] == "squash"


def test_pictures_are_decoded_once_for_all_models(
    tmp_path: Path, tiny_clip: str, other_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counting(data: bytes, shorter_side: int | None) -> Any:
        calls.append(len(data))
        return decode_sized(data, shorter_side)

    monkeypatch.setattr("aligncurate.scoring.scorer.decode_sized", counting)
    score_good_pairs(tmp_path, [tiny_clip, f"again={tiny_clip}", other_clip], 7)
    assert len(calls) == 7


def test_levels_inspect_and_scoring_again_know_several_models(
    tmp_path: Path, tiny_clip: str, other_clip: str
) -> None:
    both = score_good_pairs(tmp_path, [tiny_clip, other_clip], 9)
    levelled = bucket(both.location, levels=3)
    assert levelled.manifest.models == both.manifest.models
    assert validate(levelled.location).problems == []
    told = dict(facts(inspect(levelled.location)))
    assert other_clip in told["score_other_clip"]
    assert tiny_clip in told["score_tiny"]
    # A column of an earlier scoring passes through; under a name in use it would be lost.
    again = score(both.location, tmp_path / "again", model=other_clip)
    assert column(again, "score_tiny") == column(both, "score_tiny")
    assert again.manifest.models is None
    with pytest.raises(InputError, match=r"has a column score_tiny already.*NAME=MODEL"):
        score(both.location, tmp_path / "third", model=[tiny_clip, f"x={other_clip}"])


def test_one_models_dataset_is_written_as_it_always_was(tmp_path: Path, tiny_clip: str) -> None:
    dataset = score_good_pairs(tmp_path, f"whatever={tiny_clip}", 3)
    fields = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert "models" not in fields
    assert list(fields["model"]) == [
        "name", "weights", "weights_sha256", "image_size", "precision",
    ]  # fmt: skip
    assert not {"models", "view", "long_captions", "decode"} & fields["config"].keys()
    assert [name for name in dataset.schema.names if name.startswith("score")] == ["score"]


def test_a_model_that_gives_no_number_is_named(tmp_path: Path, tiny_clip: str) -> None:
    broken = write_tiny_clip(tmp_path / "broken")
    weights = load_file(broken / "open_clip_model.safetensors")
    weights["visual.class_embedding"][:] = float("nan")
    save_file(weights, broken / "open_clip_model.safetensors")
    dataset = score_good_pairs(tmp_path, [tiny_clip, str(broken)], 4)
    assert dataset.manifest.rejects == {"non_finite_score": 4}
    assert {row["detail"] for row in reject_rows(dataset)} == {
        "the model gives the score nan in score_broken"
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": ["{clip}", "{clip}/"]}, "two models are called tiny.*NAME=MODEL"),
        ({"model": ["a={clip}", "A={clip}"]}, "two models are called A"),
        ({"model": ["é={clip}", "b={clip}"]}, "letters from a to z, digits and _ alone"),
        ({"model": ["a={clip}", "b={clip}"], "main": "c"}, "--main c is none of the models a, b"),
        ({"model": ["a={clip}", "b={clip}"], "weights": ["openai"]}, "openai does not say which"),
        ({"model": ["a={clip}", "b={clip}"], "weights": ["c=x"]}, "NAME=WEIGHTS with a name of a"),
        ({"model": ["a={clip}", "b={clip}"], "weights": ["a=x", "a=y"]}, "of a are given twice"),
        ({"model": ["a={clip}"], "weights": ["x", "y"]}, "x does not say which"),
        ({"model": "nonesuch"}, "--model nonesuch is no open_clip architecture"),
        ({"view": "squint"}, "--view must be crop or pad .got squint"),
        ({"long_captions": "sum"}, "--long-captions must be truncate or mean .got sum"),
        ({"decode": "slow"}, "--decode must be exact or fast .got slow"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, tiny_clip: str, options: dict[str, Any], says: str
) -> None:
    models = options.pop("model", tiny_clip)
    models = (
        [model.format(clip=tiny_clip) for model in models] if isinstance(models, list) else models
    )
    with pytest.raises(InputError, match=says):
        score(good_pairs(tmp_path / "in", 2), tmp_path / "out", model=models, **options)
    assert not (tmp_path / "out").exists()


def test_a_column_of_the_users_own_is_not_overwritten(tmp_path: Path, tiny_clip: str) -> None:
    columns = {"image": [photo(0)], "caption": ["a"], "Score_Tiny": ["mine"]}
    path = write_parquet(tmp_path / "in.parquet", columns)
    with pytest.raises(InputError, match="has a column score_tiny already"):
        score(path, tmp_path / "out", model=[tiny_clip, f"b={tiny_clip}"])
    assert column(score(path, tmp_path / "out", model=tiny_clip), "Score_Tiny") == ["mine"]


def test_weights_go_to_the_model_that_they_name(tmp_path: Path) -> None:
    import open_clip

    b32 = open_clip.get_model_config("ViT-B-32")
    assert b32 is not None
    (tmp_path / "a=b").mkdir()
    file = tmp_path / "a=b" / "any.safetensors"
    file.write_bytes(b"only its hash is looked at here")
    named = resolve_models(["ViT-B-32", "demo"], [f"vit_b_32={file}"], None)
    assert (named.several["vit_b_32"].weights, named.main.name) == (str(file), "ViT-B-32")
    assert resolve_models(["ViT-B-32"], [str(file)], None).main.weights == str(file)
    with pytest.raises(InputError, match="which brings its own weights"):
        resolve_models(["ViT-B-32", "demo"], [f"vit_b_32={file}", f"demo={file}"], None)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("ViT-L-14-336", "vit_l_14_336"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "vit_b_16_siglip"),
        ("/models/my clip/", "my_clip"),
        ("local-dir:/models/x.y", "x_y"),
        ("数", "model"),
    ],
)
def test_names_are_safe_for_columns(model: str, name: str) -> None:
    assert safe_name(model) == name


def test_the_command_takes_models_over_and_over(
    tmp_path: Path, tiny_clip: str, other_clip: str
) -> None:
    pairs = good_pairs(tmp_path / "in", 6)
    words = ["score", "--input", pairs, "--image-root", tmp_path / "in/images"]
    words += ["--model", f"a={tiny_clip}", "--model", f"b={other_clip}", "--main", "b"]
    done = CliRunner().invoke(app, [str(w) for w in (*words, "--output", tmp_path / "out")])
    assert done.exit_code == 0, done.output
    dataset = Dataset(tmp_path / "out")
    assert column(dataset, "score") == column(dataset, "score_b")
    # The same in Ray's actors is no other code: Scoring is all that they are sent.
    local = score_good_pairs(
        tmp_path, [f"a={tiny_clip}", f"b={other_clip}"], 6, main="b", output=tmp_path / "again",
        execution=Execution(engine="local", workers=2),
    )  # fmt: skip
    assert column(local, "score_a") == column(dataset, "score_a")

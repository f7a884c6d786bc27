"""Intervals of scores and of differences, held against statsmodels and a bootstrap over images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from aligntrain.evaluate import scorers
from aligntrain.evaluate.intervals import share_interval, t_quantile
from aligntrain.evaluate.judge import JUDGED
from aligntrain.evaluate.scorers import Score, Scorer
from aligntrain.evaluate.uncertainty import difference, uncertainty

Records = list[dict[str, Any]]
SPLITS = ("random", "popular", "adversarial")


def pope(images: int, seed: int, right: float = 0.8) -> Records:
    """Six questions an image, two of each split; some images are harder than others."""
    rng = np.random.default_rng(seed)
    records: Records = []
    for image in range(images):
        skill = np.clip(right + rng.normal(0, 0.2), 0, 1)
        for place in range(6):
            truth = "yes" if place % 2 == 0 else "no"
            text = truth if rng.random() < skill else {"yes": "no", "no": "yes"}[truth]
            records.append({
                "row": len(records), "image": f"i{image}", "text": text,
                "facts": {"answer": truth, "split": SPLITS[place // 2]},
            })  # fmt: skip
    return records


def mme(images: int, seed: int) -> Records:
    rng = np.random.default_rng(seed)
    return [
        {
            "row": 2 * image + place, "image": f"i{image}",
            "text": truth if rng.random() < 0.75 else "maybe",
            "facts": {
                "answer": truth, "picture": str(image),
                "category": ("count", "color", "code_reasoning")[image % 3],
            },
        }
        for image in range(images) for place, truth in enumerate(("Yes", "No"))
    ]  # fmt: skip


def exact(images: int, seed: int, right: float = 0.6, each: int = 4) -> Records:
    rng = np.random.default_rng(seed)
    skills = np.clip(right + rng.normal(0, 0.25, images), 0, 1)
    return [
        {
            "row": each * image + place, "image": f"i{image}", "facts": {"answer": "a"},
            "text": "a" if rng.random() < skills[image] else "b",
        }
        for image in range(images) for place in range(each)
    ]  # fmt: skip


def bootstrap(records: Records, value: Any, times: int = 1500) -> float:
    """The spread of `value` of records drawn anew by image."""
    rng = np.random.default_rng(0)
    by_image: dict[str, Records] = {}
    for record in records:
        by_image.setdefault(record["image"], []).append(record)
    images = list(by_image.values())
    found: list[float] = []
    for _ in range(times):
        drawn: Records = []
        for copy, place in enumerate(rng.integers(0, len(images), len(images))):
            for record in images[place]:
                facts = dict(record["facts"])
                if "picture" in facts:  # a copy of an image is one more image
                    facts["picture"] = f"{facts['picture']} {copy}"
                drawn.append({**record, "facts": facts})
        found.append(value(drawn))
    return float(np.std(found, ddof=1))


def known(score: Score) -> float:
    assert score.value is not None
    return score.value


@pytest.mark.parametrize(
    ("score", "records"),
    [
        (scorers.score_pope, pope(60, 1)),
        (scorers.score_mme, mme(90, 2)),
        (scorers.score_exact, exact(50, 3)),
    ],
    ids=["pope", "mme", "exact"],
)
def test_errors_are_those_of_a_bootstrap_over_images(score: Scorer, records: Records) -> None:
    found = uncertainty(score(records), records)
    assert found is not None
    expected = bootstrap(records, lambda drawn: known(score(drawn)))
    assert found.error == pytest.approx(expected, rel=0.1)
    middle = (found.low + found.high) / 2
    assert middle == pytest.approx(known(score(records)))
    assert found.high - middle == pytest.approx(t_quantile(found.images - 1) * found.error)


def clustered(points: Sequence[float], images: Sequence[str]) -> float:
    """The standard error of a mean in percent by statsmodels, clustered by image."""
    groups = np.unique(images, return_inverse=True)[1]
    model: Any = sm.OLS(100 * np.array(points), np.ones(len(points)))
    return float(model.fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0])


def test_the_error_of_an_accuracy_is_that_of_statsmodels() -> None:
    records = exact(40, 4)
    score = scorers.score_exact(records)
    found = uncertainty(score, records)
    assert found is not None
    assert found.images == 40
    images = [record["image"] for record in records]
    assert found.error == pytest.approx(clustered(score.points, images), rel=1e-9)
    alone = uncertainty(score, [{**record, "image": None} for record in records])
    assert alone is not None
    assert alone.images == 160
    assert alone.error < found.error  # questions about an image are alike


def test_the_error_of_a_difference_is_that_of_statsmodels() -> None:
    records, others = exact(40, 5), exact(40, 6, right=0.5)
    one, other = scorers.score_exact(records), scorers.score_exact(others)
    found = difference(one, other, records)
    assert found is not None
    points = [a - b for a, b in zip(one.points, other.points, strict=True)]
    images = [record["image"] for record in records]
    assert found.mean == pytest.approx(known(one) - known(other))
    assert found.error == pytest.approx(clustered(points, images), rel=1e-9)
    assert found.detectable == pytest.approx(2.8016 * found.error, rel=1e-4)


def test_the_error_of_a_difference_of_f1_is_that_of_a_bootstrap() -> None:
    records, others = pope(60, 7), pope(60, 8, right=0.7)
    found = difference(scorers.score_pope(records), scorers.score_pope(others), records)
    assert found is not None
    both = [
        {**record, "other": other["text"]} for record, other in zip(records, others, strict=True)
    ]

    def value(drawn: Records) -> float:
        second = [{**record, "text": record["other"]} for record in drawn]
        return known(scorers.score_pope(drawn)) - known(scorers.score_pope(second))

    assert found.error == pytest.approx(bootstrap(both, value), rel=0.1)


def test_answers_that_differ_alike_on_all_images_show_no_spread() -> None:
    records = pope(20, 9)
    score = scorers.score_pope(records)
    assert difference(score, score, records) is None
    right, wrong = (exact(9, 14, right=share, each=1) for share in (9.0, -9.0))
    scores = scorers.score_exact(right), scorers.score_exact(wrong)
    assert [score.value for score in scores] == [100, 0]
    assert difference(*scores, right) is None


def test_no_interval_leaves_the_scale() -> None:
    for seed in range(20):
        records = exact(20, seed, right=1.0)
        found = uncertainty(scorers.score_exact(records), records)
        assert found is not None
        assert 0 <= found.low < found.high <= 100
        found = uncertainty(scorers.score_mme(some := mme(12, seed)), some)
        assert found is not None
        assert 0 <= found.low <= found.high <= 400


def test_a_share_of_questions_with_an_image_each_has_wilsons_interval() -> None:
    records = exact(30, 10, each=1)
    score = scorers.score_exact(records)
    found = uncertainty(score, records)
    assert found is not None
    wilson = share_interval(int(sum(score.points)), 30)
    assert (found.low, found.high) == (
        pytest.approx(100 * (wilson.low or 0)), pytest.approx(100 * (wilson.high or 0))
    )  # fmt: skip
    # Without any spread, on the images: ten, not forty.
    right = [{**record, "text": "a"} for record in exact(10, 11)]
    found = uncertainty(scorers.score_exact(right), right)
    assert found is not None
    assert found.low == pytest.approx(100 * (share_interval(10, 10).low or 0))
    assert found.high == pytest.approx(100)


def test_judged_scores_have_intervals_too() -> None:
    rng = np.random.default_rng(12)
    facts = {"category": "detail", "capability": "rec"}
    records: Records = [
        {"row": row, "image": f"i{row}", "facts": facts, "grade": [8.0, float(rng.integers(3, 9))]}
        for row in range(60)
    ]
    score = JUDGED["llava-bench"].score
    found = uncertainty(score(records), records)
    assert found is not None
    assert found.error == pytest.approx(bootstrap(records, lambda r: known(score(r))), rel=0.1)
    for record in records:
        record["grade"] = [record["grade"][1] / 10]
    found = uncertainty(JUDGED["mm-vet"].score(records), records)
    assert found is not None
    points = [record["grade"][0] for record in records]
    assert found.error == pytest.approx(100 * np.std(points, ddof=1) / 60**0.5)


def test_without_a_score_or_a_second_image_there_is_no_interval() -> None:
    records = exact(1, 13)
    assert uncertainty(scorers.score_exact(records), records) is None
    assert uncertainty(scorers.score_unknown(records), records) is None
    score = scorers.score_exact(records)
    assert difference(score, scorers.score_unknown(records), records) is None

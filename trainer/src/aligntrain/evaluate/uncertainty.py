"""Uncertainty of a benchmark's score as a mean over questions, and the difference of two scores.

Every score here is a weighted sum of ratios of sums over questions, sum_p w_p (sum a_i / sum b_i):
an accuracy has one part with b = 1, POPE's F1 one for each split, MME's sum one for each subtask.
Linearised, a question contributes u_i = w_p (a_i - r_p b_i) / sum b_i to the score's error (Taylor
linearisation, Binder 1983). Questions about one image are alike, so errors are summed by image
before they are squared, as by Miller 2024 (arXiv 2411.00640, section 2.2); a comparison of two
models on the same questions squares the sums of their differences (section 4.2).

Letters in shapes: n questions, G images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from aligntrain.evaluate.intervals import share_interval, t_quantile
from aligntrain.evaluate.scorers import Record, Score, Term

Values = npt.NDArray[np.float64]

POWER = 0.8
"""Chance at which `Difference.detectable` would be found."""

_Z_SUM = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """95 % interval from `low` to `high` of a score, in its unit, over `images` images.

    `error` is the standard error, clustered by image.
    """

    low: float
    high: float
    error: float
    images: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference `mean` of two scores on the same questions, with its 95 % interval.

    `detectable` is the smallest true difference that these questions show with a chance of 80 %:
    2.8 standard errors (Miller 2024, section 5).
    """

    mean: float
    low: float
    high: float
    error: float
    images: int

    @property
    def detectable(self) -> float:
        """Smallest true difference found with a chance of `POWER` at a level of 5 %."""
        return _Z_SUM * self.error


def uncertainty(score: Score, records: Sequence[Record]) -> Uncertainty | None:
    """Return the interval of `score` of `records`; None without a score or below two images.

    A share of questions with an image each gets Wilson's interval, and so does one without any
    spread, on its images.
    """
    if score.value is None:
        return None
    images = _images(score, records)
    count = len(set(images))
    if count < 2:
        return None
    error = _error(_contributions(score), images)
    points = [term.numerator for term in score.terms if term is not None]
    is_share = len(score.weights) == 1 and set(points) <= {0.0, 1.0} and _counts(score)
    if is_share and (count == len(points) or error == 0):
        share = sum(points) / len(points)
        interval = share_interval(round(share * count), count)
        assert interval.low is not None and interval.high is not None
        return Uncertainty(100 * interval.low, 100 * interval.high, error, count)
    half = t_quantile(count - 1) * error
    high = score.value + half if score.top is None else min(score.top, score.value + half)
    return Uncertainty(max(0.0, score.value - half), high, error, count)


def difference(one: Score, other: Score, records: Sequence[Record]) -> Difference | None:
    """Return `one` minus `other`, scores of two models on the questions of `records`.

    None if one of them has no score, below two images, and where no two images differ in the
    difference: that shows nothing of its spread, least of all that there is none.
    """
    if one.value is None or other.value is None:
        return None
    images = _images(one, records)
    count = len(set(images))
    if count < 2:
        return None
    error = _error(_contributions(one) - _contributions(other), images)
    if error == 0:
        return None
    mean, half = one.value - other.value, t_quantile(count - 1) * error
    return Difference(mean, mean - half, mean + half, error, count)


def _counts(score: Score) -> bool:
    """Return whether each question counts once, so that the score is a share of them."""
    return all(term.denominator == 1 for term in score.terms if term is not None)


def _contributions(score: Score) -> Values:
    """Return the contribution [n] of each record to the error of `score`, 0 if it has none."""
    parts: dict[str, list[Term]] = {}
    for term in score.terms:
        if term is not None:
            parts.setdefault(term.part, []).append(term)
    below = {name: sum(term.denominator for term in terms) for name, terms in parts.items()}
    ratio = {
        name: sum(term.numerator for term in terms) / below[name] if below[name] else 0.0
        for name, terms in parts.items()
    }

    def of(term: Term | None) -> float:
        if term is None or not below[term.part]:
            return 0.0
        error = term.numerator - ratio[term.part] * term.denominator
        return score.weights.get(term.part, 0.0) * error / below[term.part]

    return np.array([of(term) for term in score.terms], dtype=np.float64)


def _images(score: Score, records: Sequence[Record]) -> list[str]:
    """Return the image of each record [n]; records without a score are of one that has some.

    A record of an older version, which names no image, is alone with its own.
    """
    names = [str(record.get("image") or f"row {record['row']}") for record in records]
    scored = [name for name, term in zip(names, score.terms, strict=True) if term is not None]
    return [
        name if term is not None else scored[0]
        for name, term in zip(names, score.terms, strict=True)
    ]


def _error(contributions: Values, images: Sequence[str]) -> float:
    """Return the standard error of a sum of `contributions` [n], independent between images [G].

    sqrt(G / (G - 1) sum_g (sum of the contributions of image g)^2)
    """
    _, places = np.unique(images, return_inverse=True)
    sums = np.bincount(places, weights=contributions)  # [G]
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)))

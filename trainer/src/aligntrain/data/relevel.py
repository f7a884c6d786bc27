"""Levels made anew for a run: other numbers of them, or meaningless ones.

A dataset need not be written again for that, which would copy all of its pictures: the levels of a
run are a byte for each row.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from alignshared import ContractError, InputError, LevelEdges

if TYPE_CHECKING:
    from aligntrain.data.dataset import Shards

Levels = npt.NDArray[np.int8]
Relevel = Callable[["Shards", int], Levels]
"""Levels [n] int8 in 1..N of all rows of a dataset, for N levels."""


def relevel_of(how: Literal["quantile", "random"] | None, seed: int) -> Relevel | None:
    """What `data.levels` of a recipe says; `seed` is what random ones are drawn from."""
    if how == "random":
        return lambda shards, levels: random_levels(len(shards), levels, seed)
    return quantile_levels if how == "quantile" else None


def random_levels(rows: int, levels: int, seed: int) -> Levels:
    """`levels` levels in equal numbers, dealt to `rows` rows by `seed` alone."""
    dealt = np.arange(rows, dtype=np.int64) * levels // rows + 1
    return np.random.default_rng([seed, levels]).permutation(dealt).astype(np.int8)


def quantile_levels(shards: "Shards", levels: int) -> Levels:
    """Levels between the exact quantiles of the dataset's scores, as `aligncurate bucket` has them:
    edge k of N over n scores is the one with 0-based rank floor(k n / N) in ascending order.

    Raises:
        ContractError: there are no scores, or one is no finite number.
    """
    remedy = "run aligncurate score on the pairs, or leave data.levels out"
    if "score" not in shards.schema.names:
        raise ContractError(
            f"data.levels quantile needs scores, and {shards.location} has none; {remedy}."
        )
    parts = [
        batch.column("score").to_numpy(zero_copy_only=False)
        for _, _, batch in shards.block_batches(["score"])
    ]
    scores = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(scores).all():
        raise ContractError(f"{shards.location} has a score that is no finite number; {remedy}.")
    if len(scores) < levels:
        raise InputError(
            f"{shards.location} has {len(scores)} rows, too few for {levels} levels; lower "
            "model.levels."
        )
    ordered = np.sort(scores)
    edges = [float(ordered[k * len(ordered) // levels]) for k in range(1, levels)]
    return LevelEdges(tuple(edges), "quantile").assign(scores)

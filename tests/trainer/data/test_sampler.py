"""The order of training: from the seed alone, the same for any number of ranks, resumable."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignshared import InputError
from aligntrain.data.index import hash_ids
from aligntrain.data.loader import RankSlice
from aligntrain.data.sampler import (
    WINDOW,
    GlobalBatchSampler,
    Position,
    rank_part,
    sequential_batches,
)


def order(
    rows: int, size: int, seed: int = 0, *, group: bool = False, per_block: int = 8
) -> GlobalBatchSampler:
    rng = np.random.default_rng(rows)
    return GlobalBatchSampler(
        np.arange(rows) * 2 + 1,  # of a dataset of which every second row is for validation
        np.arange(rows) // per_block,
        global_size=size,
        seed=seed,
        lengths=rng.integers(1, 500, rows).astype(np.int32) if group else None,
        has_image=rng.random(rows) < 0.8 if group else None,
        dataset="abc",
    )


ORDER_OF_40 = [[13, 23, 29, 27], [15, 75, 67, 35]]
ORDER_OF_40_GROUPED = [[65, 35, 33, 51], [31, 63, 49, 9]]
SIZES = st.tuples(st.integers(1, 900), st.sampled_from([1, 4, 8, 24])).filter(
    lambda s: s[0] >= s[1]
)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.booleans(), st.integers(0, 5), st.integers(-3, 2**40))
def test_an_epoch_has_every_row_once(
    sizes: tuple[int, int], group: bool, epoch: int, seed: int
) -> None:
    rows, size = sizes
    ours = order(rows, size, seed, group=group)
    batches = ours.epoch(epoch)
    assert batches.shape == (rows // size, size) == (ours.steps_per_epoch, size)
    counts = Counter(batches.ravel().tolist())
    assert set(counts.values()) == {1}
    assert set(counts) <= set((np.arange(rows) * 2 + 1).tolist())
    assert ours.left_out == rows - len(counts) < size


def test_the_seed_and_the_epoch_decide() -> None:
    first = order(500, 8, seed=1, group=True)
    again = order(500, 8, seed=1, group=True)
    assert np.array_equal(first.epoch(0), again.epoch(0))
    assert not np.array_equal(first.epoch(0), first.epoch(1))
    assert not np.array_equal(first.epoch(0), order(500, 8, seed=2, group=True).epoch(0))
    assert np.array_equal(first.epoch(0), again.epoch(0))  # asked for again, after another


def test_the_order_is_the_one_of_earlier_releases() -> None:
    """A run must go on in the same order after an upgrade, of ours or of numpy."""
    assert order(40, 4).epoch(0)[:2].tolist() == ORDER_OF_40
    assert order(40, 4, seed=7, group=True).epoch(3)[:2].tolist() == ORDER_OF_40_GROUPED


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_ranks_share_each_batch_in_order(ranks: int, micro: int, steps: int) -> None:
    size = 48
    if size % (ranks * micro):
        with pytest.raises(InputError, match=r"batch\.global_size 48 is no multiple of"):
            RankSlice(micro, 0, ranks).micro_batches(size)
        return
    ours = order(300, size)
    for batch in ours.plan(Position(), ours.position(steps)):
        parts = [rank_part(batch.rows, rank, ranks).tolist() for rank in range(ranks)]
        assert list(chain(*parts)) == batch.rows.tolist()
        for rank, part in enumerate(parts):
            share = RankSlice(micro, rank, ranks)
            assert list(chain(*share.of(batch.rows))) == part
            assert len(share.of(batch.rows)) == share.micro_batches(size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([1, 2, 4]))
def test_resuming_anywhere_gives_what_would_have_come(done: int, more: int, ranks: int) -> None:
    """No row twice and none missed, across epochs, whatever the number of ranks goes on."""
    whole = order(100, 8, seed=3, group=True)
    planned = [b.rows.tolist() for b in whole.plan(Position(), whole.position(done + more))]
    before = list(whole.plan(Position(), whole.position(done)))
    state = whole.state(before[-1].after if before else Position())
    fresh = order(100, 8, seed=3, group=True)
    rest = fresh.plan(fresh.restore(state), fresh.position(done + more))
    after = [
        list(chain(*(rank_part(batch.rows, rank, ranks).tolist() for rank in range(ranks))))
        for batch in rest
    ]
    assert [b.rows.tolist() for b in before] + after == planned


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"size": 4}, "global_size is 8 there and 4 here"),
        ({"rows": 101}, "rows is 100 there and 101 here"),
        ({"group": True}, "group is False there and True here"),
    ],
)
def test_a_position_in_another_order_is_refused(other: dict[str, Any], named: str) -> None:
    state = order(100, 8, seed=3).state(Position(1, 2))
    with pytest.raises(InputError, match=named):
        here: dict[str, Any] = {"rows": 100, "size": 8, "seed": 3} | other
        order(**here).restore(state)


def test_grouped_batches_are_of_one_kind_and_like_length() -> None:
    ours = order(4000, 16, group=True, per_block=64)
    rng = np.random.default_rng(4000)
    lengths, has_image = rng.integers(1, 500, 4000), rng.random(4000) < 0.8
    batches = (ours.epoch(0) - 1) // 2
    one_kind = [len(set(has_image[batch].tolist())) == 1 for batch in batches]
    assert sum(not kind for kind in one_kind) <= 2  # the epoch's last ones
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    plain = (order(4000, 16, per_block=64).epoch(0) - 1) // 2
    assert spread < 0.2 * np.mean([np.ptp(lengths[batch]) for batch in plain])


def test_rows_that_are_used_together_lie_in_one_window() -> None:
    ours = order(8000, 32, per_block=16)
    blocks = (ours.epoch(0) - 1) // 2 // 16
    seen = [set(batch.tolist()) for batch in blocks]
    assert max(map(len, seen)) <= 2 * WINDOW
    assert min(map(len, seen)) > 4
    changes = [np.count_nonzero(np.diff(batch)) + 1 for batch in blocks]
    assert changes == [len(s) for s in seen]  # each row group's rows lie together in the batch
    last_use: dict[int, int] = {}
    first_use: dict[int, int] = {}
    for step, used in enumerate(seen):
        for block in used:
            first_use.setdefault(block, step)
            last_use[block] = step
    longest = max(last_use[block] - first_use[block] for block in last_use)
    assert longest <= WINDOW * 16 // 32 + 2  # then never again


def test_every_place_of_the_dataset_is_as_likely_anywhere() -> None:
    steps = np.concatenate([order(1024, 32, seed).epoch(0)[0] for seed in range(60)])
    assert abs(np.mean(steps) - 1024) < 60


def test_too_few_rows_for_a_batch() -> None:
    with pytest.raises(InputError, match=r"5 rows to train on and batch\.global_size is 8; set it"):
        order(5, 8)


def test_validation_goes_through_all_rows_once() -> None:
    batches = list(sequential_batches(np.arange(22), 8))
    assert [b.rows.tolist() for b in batches] == [
        list(range(8)), list(range(8, 16)), list(range(16, 22))
    ]  # fmt: skip
    shares = [RankSlice(2, rank, 4) for rank in range(4)]
    last = [share.of(batches[-1].rows) for share in shares]
    assert last == [[[16, 17]], [[18, 19]], [[20]], [[21]]]
    assert [share.of(np.arange(2)) for share in shares] == [[[0]], [[1]], [[]], [[]]]


def test_records_on_one_picture_stay_together() -> None:
    one, two, other = hash_ids(["000123", "000123#2", "000124"]).tolist()
    assert one == two != other

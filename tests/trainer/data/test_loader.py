"""Micro-batches: their tensors, their rejects, and the processes that make them."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alignshared import AlignError, ContractError
from aligntrain.data.dataset import ShardedDataset, decode_sample_image
from aligntrain.data.index import read_index
from aligntrain.data.loader import Batch, Loader, Preparation, RankSlice
from aligntrain.data.sampler import GlobalBatch, GlobalBatchSampler, Position, sequential_batches
from aligntrain.prompts.encode import Encoder
from tests.trainer.rows import (
    chat_tokenizer,
    layout_of,
    llama_tokenizer,
    pair_rows,
    picture,
    talk_rows,
    write_rows,
)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((2, 2))).copy()).permute(2, 0, 1).float()


def preparation(template: str, max_length: int = 256) -> Preparation:
    tokenizer = llama_tokenizer() if template == "plain" else chat_tokenizer()
    return Preparation(Encoder(tokenizer, layout_of(tokenizer), template, max_length), pixels, 0)


def plan_of(*batches: list[int]) -> Iterator[GlobalBatch]:
    for step, rows in enumerate(batches, start=1):
        yield GlobalBatch(np.array(rows), Position(0, step))


@pytest.fixture
def talks(tmp_path: Path) -> ShardedDataset:
    write_rows(tmp_path, talk_rows(60), group_rows=8)
    return ShardedDataset(tmp_path, conversations=True)


@pytest.fixture
def pairs(tmp_path: Path) -> ShardedDataset:
    write_rows(tmp_path, pair_rows(40), levels=4)
    return ShardedDataset(tmp_path, levels=4)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_a_batch_of_pairs(pairs: ShardedDataset) -> None:
    (batch,) = Loader(pairs, preparation("plain"), RankSlice(3)).batches(plan_of([0, 9, 30]))
    assert batch["ids"] == ["pair-0000", "pair-0009", "pair-0030"]
    assert batch["levels"].tolist() == [1, 1, 4]
    assert batch["levels"].dtype == torch.int64
    pictures = batch["pixel_values"]
    assert pictures is not None
    assert torch.equal(
        pictures, torch.stack([pixels(decode_sample_image(picture(n))) for n in (0, 9, 30)])
    )
    lengths = batch["attention_mask"].sum(1).tolist()
    assert batch["input_ids"].shape == (3, max(lengths))
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row, :length].all()
        assert (batch["labels"][row, length:] == -100).all()
        assert (batch["input_ids"][row, length:] == 0).all()
        labels, ids = batch["labels"][row, :length], batch["input_ids"][row, :length]
        learned = labels != -100
        assert torch.equal(labels[learned], ids[learned])
        assert not learned[:6].any()  # BOS, alignment, four places of the image
        assert learned[6:].all()


def test_a_batch_of_text_and_images(talks: ShardedDataset) -> None:
    (batch,) = Loader(talks, preparation("chat"), RankSlice(4)).batches(plan_of([0, 1, 2, 3]))
    layout = layout_of(chat_tokenizer())
    images = (batch["input_ids"] == layout.image_token_id).sum(1).tolist()
    assert images == [0, 4, 4, 0]
    assert (batch["input_ids"] == layout.align_token_id).sum(1).tolist() == [0, 1, 1, 0]
    assert batch["levels"].tolist() == [0, 0, 0, 0]
    assert batch["pixel_values"] is not None
    assert len(batch["pixel_values"]) == 2
    (text,) = Loader(talks, preparation("chat"), RankSlice(4)).batches(plan_of([0, 3, 6]))
    assert text["pixel_values"] is None


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(talks: ShardedDataset, workers: int) -> None:
    index = read_index(talks, conversations=True)
    order = GlobalBatchSampler.of(
        talks, index, index.train_rows(0.1), global_size=8, seed=5, group=True
    )
    plan = list(order.plan(Position(), order.position(9)))
    state = torch.random.get_rng_state()
    here = list(Loader(talks, preparation("chat"), RankSlice(2)).batches(plan))
    there = list(Loader(talks, preparation("chat"), RankSlice(2), workers=workers).batches(plan))
    assert len(here) == 36
    assert all(map(same, here, there))
    assert torch.equal(torch.random.get_rng_state(), state)  # that of the training


@pytest.mark.parametrize(("keep", "made"), [(0, 6), (10_000_000, 3), (1, 6)])
def test_images_that_come_again_are_prepared_once_while_there_is_room(
    pairs: ShardedDataset, keep: int, made: int
) -> None:
    prepared: list[Image.Image] = []

    def counted(image: Image.Image) -> torch.Tensor:
        prepared.append(image)
        return pixels(image)

    plan = list(plan_of([0, 1, 2], [2, 0, 1]))
    plain = preparation("plain")
    expected = list(Loader(pairs, plain, RankSlice(3)).batches(plan))
    loader = Loader(pairs, replace(plain, pixels=counted), RankSlice(3), keep=keep)
    assert all(map(same, loader.batches(plan), expected))
    assert len(prepared) == made


def test_ranks_together_take_what_one_takes(talks: ShardedDataset) -> None:
    order = GlobalBatchSampler.of(
        talks, read_index(talks), np.arange(60), global_size=8, seed=5, group=False
    )
    plan = list(order.plan(Position(), order.position(3)))
    alone = [b["ids"] for b in Loader(talks, preparation("chat"), RankSlice(2)).batches(plan)]
    ranks = [
        [b["ids"] for b in Loader(talks, preparation("chat"), RankSlice(2, rank, 2)).batches(plan)]
        for rank in range(2)
    ]
    assert all(len(rank) == 6 for rank in ranks)
    steps = [list(chain(*(rank[2 * step : 2 * step + 2] for rank in ranks))) for step in range(3)]
    assert list(chain(*steps)) == alone


def test_rejects_are_left_out_logged_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pair_rows(12)
    rows[1]["image"] = {"bytes": b"no picture", "path": "x"}
    rows[3]["image"] = {"bytes": None, "path": "far/away.png"}
    rows[5]["caption"] = " "
    rows[7]["caption"] = "word " * 200
    write_rows(tmp_path, rows, levels=4)
    told: list[str] = []
    loader = Loader(
        ShardedDataset(tmp_path, levels=4),
        preparation("plain", 64),
        RankSlice(2),
        max_reject_share=0.03,
        on_rejected=lambda reject: told.append(f"{reject.row} {reject.id} {reject.reason}"),
    )
    with caplog.at_level(logging.WARNING, "aligntrain"):
        batches = list(loader.batches(sequential_batches(np.arange(12), 4)))
    assert [b["ids"] for b in batches[:3]] == [["pair-0000"], ["pair-0002"], ["pair-0004"]]
    assert told == [
        "1 pair-0001 corrupt_image", "3 pair-0003 no_image", "5 pair-0005 no_caption"
    ]  # fmt: skip
    assert loader.counts.rejected == {"corrupt_image": 1, "no_image": 1, "no_caption": 1}
    assert (loader.counts.rows, loader.counts.truncated) == (12, 1)
    assert "row 3 (pair-0003)" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_rejects_stop_the_run(tmp_path: Path, workers: int) -> None:
    rows = pair_rows(20)
    for row in rows[10:]:
        row["image"]["bytes"] = b"no picture"
    write_rows(tmp_path, rows, levels=4)
    loader = Loader(
        ShardedDataset(tmp_path, levels=4), preparation("plain"), RankSlice(2), workers=workers,
        max_reject_share=0.02,
    )  # fmt: skip
    with pytest.raises(
        AlignError,
        match=r"4 of 14 rows of .* cannot be trained on, more than data\.max_reject_share 0\.02 "
        r"allows \(4 for corrupt_image; the last, pair-0013: ",
    ):
        list(loader.batches(sequential_batches(np.arange(20), 2)))


def test_a_micro_batch_of_rejects_alone_still_takes_its_turn(tmp_path: Path) -> None:
    rows = pair_rows(4)
    rows[0]["caption"] = rows[1]["caption"] = ""
    write_rows(tmp_path, rows, levels=4)
    loader = Loader(
        ShardedDataset(tmp_path, levels=4), preparation("plain"), RankSlice(2), max_reject_share=0.1
    )
    first, second = loader.batches(plan_of([0, 1, 2, 3]))
    assert (first["ids"], first["pixel_values"], first["levels"].tolist()) == ([""], None, [0])
    assert (first["labels"] == -100).all()
    assert first["input_ids"].shape == (1, 1)
    assert second["ids"] == ["pair-0002", "pair-0003"]


def test_damage_in_a_worker_is_one_sentence(pairs: ShardedDataset) -> None:
    for file in Path(pairs.location).glob("*.parquet"):
        content = bytearray(file.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        file.write_bytes(content)
    with pytest.raises(ContractError, match=r"^shard-00000\.parquet .* cannot be read .*again\.$"):
        list(Loader(pairs, preparation("plain"), RankSlice(2), workers=1).batches(plan_of([0, 1])))


def worker_ids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def test_workers_end_with_their_iterator(talks: ShardedDataset) -> None:
    before = worker_ids()
    endless = sequential_batches(np.arange(60), 2)
    batches = Loader(talks, preparation("chat"), RankSlice(2), workers=2).batches(endless)
    next(batches)
    assert len(worker_ids() - before) == 2
    batches.close()
    ends = time.monotonic() + 20
    while worker_ids() - before and time.monotonic() < ends:
        time.sleep(0.05)
    assert worker_ids() == before


def test_a_dead_worker_is_one_sentence(talks: ShardedDataset) -> None:
    before = worker_ids()
    loader = Loader(talks, preparation("chat"), RankSlice(1), workers=1)
    batches = loader.batches(sequential_batches(np.arange(60), 1))
    next(batches)
    (worker,) = worker_ids() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(AlignError, match=r"a data worker ended .*data\.workers lower"):
        list(batches)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1", "LA"])
def test_pictures_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.new("I;16", (6, 4), 40000) if mode == "I;16" else Image.new("RGB", (6, 4), "red")
    file = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    (image if mode == "I;16" else image.convert(mode)).save(file)
    decoded = decode_sample_image(file.read_bytes())
    assert (decoded.mode, decoded.size) == ("RGB", (6, 4))


def test_pictures_are_turned_as_a_viewer_turns_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg", exif=exif)
    assert decode_sample_image((tmp_path / "a.jpg").read_bytes()).size == (4, 6)


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    decoded: Any = decode_sample_image((tmp_path / "a.png").read_bytes())
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.slow
def test_data_under_an_address_are_read_by_fresh_processes(talks: ShardedDataset) -> None:
    """A connection to an object store would not survive a fork; `file://` takes the same way."""
    there = ShardedDataset(f"file://{talks.location}", conversations=True)
    loader = Loader(there, preparation("chat"), RankSlice(2), workers=1)
    (batch,) = loader.batches(plan_of([4, 1]))
    assert batch["ids"] == ["talk-0004", "talk-0001"]

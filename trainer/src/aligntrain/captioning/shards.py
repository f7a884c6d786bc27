"""Shards with a model's captions: one answer for each distinct image.

An image is known by its bytes; the captions of all images stay in memory. Batches never cross a
shard, so a resumed run makes the batches of an uninterrupted one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from alignshared import ContractError, Dataset, Reason, Reject, ShardInfo, Storage
from alignshared.console import progress
from alignshared.images import ImageError, decode_image
from alignshared.schema import with_features
from alignshared.shards import IMAGE_ROW_GROUP
from aligntrain.captioning.output import ShardRecord, write_shard
from aligntrain.inference.generate import Answer, Question, generate_answers, messages_of
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor


class Captioner:
    """Greedy captions by a model; `answers` are those given, by the digest of the image.

    `config` are the settings that determine them: `level`, `prompt`, `max_new_tokens`, `guidance`.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        processor: AlignGPTProcessor,
        config: dict[str, Any],
        batch_size: int,
    ) -> None:
        self._model, self._processor = model, processor
        self._level: int = config["level"]
        self._prompt: str = config["prompt"] or ""
        self._max_new_tokens: int = config["max_new_tokens"]
        self._guidance: float = config["guidance"]
        self._batch_size = batch_size
        self.answers: dict[str, str] = {}

    @property
    def precision(self) -> str:
        """Type of the model's weights."""
        return str(self._model.dtype).removeprefix("torch.")

    def question(self, image: Image.Image, name: str) -> Question:
        """Return the question for the caption of `image`."""
        return Question(messages_of(self._prompt, [image]), self._level, name)

    def answer(self, questions: Iterator[Question]) -> Iterator[Answer]:
        """Iterate over the answers to `questions`."""
        return generate_answers(
            self._model,
            self._processor,
            questions,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            guidance=self._guidance,
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """Row of a shard: its `digest`, that of its image, or why the image cannot be used."""

    id: str
    path: str | None
    digest: str
    problem: ImageError | None = None

    def reject(self, answers: dict[str, str]) -> Reject | None:
        """Return the reject of the row, None if its image has a caption in `answers`."""
        if self.problem is not None:
            return Reject(self.id, self.path, self.problem.reason, self.problem.detail)
        if not answers[self.digest]:
            return Reject(self.id, self.path, Reason.EMPTY_CAPTION, "the model answered nothing")
        return None


class ShardCaptioning:
    """Captioning of the shards of `dataset` into `storage`; columns in `kept` get another name."""

    def __init__(
        self,
        dataset: Dataset,
        storage: Storage,
        kept: dict[str, str],
        captioner: Captioner,
    ) -> None:
        self._dataset, self._storage, self._kept = dataset, storage, kept
        self._captioner = captioner
        self._read_schema = dataset.schema
        self._schema = _captioned_schema(self._read_schema, kept)

    def write(self, finished: dict[int, ShardRecord], console: Console | None) -> list[ShardRecord]:
        """Caption all shards but the `finished` ones; return the records of all, in order."""
        shards, answers = self._dataset.manifest.shards, self._captioner.answers
        for record in finished.values():
            answers.update(record.answers)
        done = sum(shards[index].rows for index in finished)
        total, begun, began = self._dataset.manifest.rows, done, time.monotonic()
        records = dict(finished)
        with progress("caption", total, console, begun=begun) as show:

            def advance(rows: int) -> None:
                rate = (done + rows - begun) / max(time.monotonic() - began, 1e-9)
                state = f"{rate:.2g} rows/s, {len(answers):,} images"
                show(done + rows, state, f"caption: {done + rows:,} of {total:,} rows, {state}")

            for index, shard in enumerate(shards):
                if index not in finished:
                    records[index] = self._write_shard(index, shard, advance)
                    done += shard.rows
                    advance(0)
        return [records[index] for index in range(len(shards))]

    def _write_shard(
        self, index: int, shard: ShardInfo, advance: Callable[[int], None]
    ) -> ShardRecord:
        rows: list[_Row] = []
        asked: list[int] = []
        answers, added, cut_off = self._captioner.answers, dict[str, str](), 0
        with self._dataset.open_shard(shard) as parquet:
            self._check_shard(parquet, shard)
            questions = self._questions(shard, parquet, rows, asked)
            for place, answer in enumerate(self._captioner.answer(questions)):
                # A caption is one line: the plain template ends it there.
                text, digest = " ".join(answer.text.split()), rows[asked[place]].digest
                answers[digest] = added[digest] = text
                cut_off += not answer.finished
                advance(asked[place] + 1)
            rejects = [row.reject(answers) for row in rows]
            captions = [
                None if reject is not None else answers[row.digest]
                for row, reject in zip(rows, rejects, strict=True)
            ]
            return write_shard(
                self._storage,
                index,
                self._tables(shard, parquet, captions),
                self._schema,
                [reject for reject in rejects if reject is not None],
                answers=added,
                cut_off=cut_off,
            )

    def _check_shard(self, parquet: pq.ParquetFile, shard: ShardInfo) -> None:
        same = parquet.schema_arrow.equals(self._read_schema)
        if not same or parquet.metadata.num_rows != shard.rows:
            raise ContractError(
                f"{shard.file} in {self._dataset.location} has other columns than the first shard "
                "or other rows than its manifest says; copy it again or write the dataset again."
            )

    def _questions(
        self, shard: ShardInfo, parquet: pq.ParquetFile, rows: list[_Row], asked: list[int]
    ) -> Iterator[Question]:
        """Yield a question for each image without an answer.

        Every row read is added to `rows`, and the place of the row asked about to `asked`.
        """
        pending: set[str] = set()
        columns = ["id", "image"]
        batches = self._dataset.shard_batches(shard, parquet, columns, IMAGE_ROW_GROUP)
        for values in (row for batch in batches for row in batch.to_pylist()):
            image = values["image"] or {}
            data: bytes = image.get("bytes") or b""
            digest = blake2b(data, digest_size=16).hexdigest()
            row = _Row(values["id"], image.get("path"), digest)
            rows.append(row)
            if digest in self._captioner.answers or digest in pending:
                continue
            try:
                if values["image"] is None:
                    raise ImageError(Reason.NO_IMAGE, "there is no image")
                decoded = decode_image(data)
            except ImageError as problem:
                rows[-1] = _Row(row.id, row.path, digest, problem)
                continue
            pending.add(digest)
            asked.append(len(rows) - 1)
            yield self._captioner.question(decoded, f"{row.id} in {shard.file}")

    def _tables(
        self, shard: ShardInfo, parquet: pq.ParquetFile, captions: Sequence[str | None]
    ) -> Iterator[pa.Table]:
        """Yield the rows of the shard that have a caption, with it."""
        first = 0
        for batch in self._dataset.shard_batches(shard, parquet, None, IMAGE_ROW_GROUP):
            new = pa.array(captions[first : first + len(batch)], pa.string())
            first += len(batch)
            columns = {
                self._kept.get(name, name): batch.column(name) for name in batch.schema.names
            }
            columns["caption"] = new
            if "conversations" in columns:  # it would hold the caption from before
                columns["conversations"] = pa.nulls(len(batch), columns["conversations"].type)
            arrays = [columns[name] for name in self._schema.names]
            yield pa.Table.from_arrays(arrays, schema=self._schema).filter(new.is_valid())


def _captioned_schema(schema: pa.Schema, kept: dict[str, str]) -> pa.Schema:
    """Return `schema` with the columns of `kept` under their new names, behind all others."""
    present = [field.remove_metadata() for field in schema]
    stay = [field for field in present if field.name not in kept or field.name == "caption"]
    moved = [field.with_name(kept[field.name]) for field in present if field.name in kept]
    return with_features(pa.schema([*stay, *moved]))

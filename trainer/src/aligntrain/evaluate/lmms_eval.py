# What lmms-eval gives and takes, it types for its own use, and it is not always installed.
# pyright: reportArgumentType=false
# pyright: reportCallIssue=false
# pyright: reportMissingImports=false
# pyright: reportUnknownVariableType=false
# pyright: reportUntypedBaseClass=false
"""lmms-eval as what drives a benchmark: the one place that imports it.

Its tasks are built from the table in `benchmarks`, not from its own definitions, which ask
otherwise than the paper in most of the twelve. Its other tasks reach our models by the entry point
`lmms_eval.models`, for which `manifest` stands.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Image, List, disable_progress_bars, load_dataset
from datasets.exceptions import DatasetGenerationError
from lmms_eval.api import task
from lmms_eval.api.model import lmms
from loguru import logger as their_log
from rich.console import Console
from tqdm import tqdm

from alignshared import InputError
from aligntrain.evaluate.benchmarks import LOADER_TOKENS, Benchmark
from aligntrain.evaluate.data import Data, Elsewhere, pictures_of
from aligntrain.evaluate.store import Appended
from aligntrain.inference.generate import Answer, Question, generate_answers
from aligntrain.inference.load import load_for_inference
from aligntrain.progress import watched

their_log.disable("lmms_eval")
_SPLIT = "test"
"""What lmms-eval is told the split is called, whatever the files call it."""


def manifest() -> Any:
    """How lmms-eval finds our models.

    What asks for it is the import of `lmms_eval.models`, so that this module must be whole by then.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("aligngpt", simple_class_path=f"{__name__}.AlignGPTLmm")


class AlignGPTLmm(lmms):
    """A model of ours as lmms-eval knows models: greedy, with the checkpoint's own picture view.

    `until`, `image_aspect_ratio` and sampling, which tasks ask for here and there, are not heeded:
    the model ends its answers itself. `pretrained` is the folder of a run or of a model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        asked: tuple[Any, Any] | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **_: Any,
    ) -> None:
        super().__init__()
        if asked is None:
            if pretrained is None:
                raise InputError("which model is missing; give --model_args pretrained=FOLDER.")
            asked = load_for_inference(pretrained, device=device or _own_gpu())
        self._asked = asked  # in a tuple: modules that it finds, lmms-eval deletes after a task
        self._batch_size = int(batch_size)
        self.device = asked[0].device

    def generate_until(self, requests: Any) -> list[str]:
        """The texts that answer `requests`, which may be of tasks with different limits."""
        texts: dict[int, str] = {}
        for tokens in {_most(request) for request in requests}:
            some = [i for i, request in enumerate(requests) if _most(request) == tokens]
            answers = self.answers([requests[i] for i in some])
            texts |= {i: said.text for i, said in zip(some, answers, strict=True)}
        return [texts[i] for i in range(len(requests))]

    def answers(self, requests: list[Any]) -> Iterator[Answer]:
        """What the model says to each of `requests`, of one task."""
        if not requests:
            return iter(())
        questions = (self._question(request) for request in requests)
        return generate_answers(
            *self._asked,
            questions,
            max_new_tokens=_most(requests[0]),
            batch_size=self._batch_size,
            shorten=True,
        )

    def _question(self, request: Any) -> Question:
        text, _, to_pictures, row, name, split = request.args
        shown = to_pictures(self.task_dict[name][split][row]) or []
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in shown]
        content.append({"type": "text", "text": text})
        return Question([{"role": "user", "content": content}], name=f"{name}, row {row}")

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("this model only generates; take the task's generating form.")

    def generate_until_multi_round(self, requests: Any) -> list[str]:
        raise NotImplementedError("this model answers one question at a time.")


def _own_gpu() -> str | None:
    """That of this process where a launcher has started several, one for each GPU."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def _most(request: Any) -> int:
    return int(request.args[1].get("max_new_tokens", LOADER_TOKENS))


class _Recorder(AlignGPTLmm):
    """Writes each answer down as it comes, and asks no question whose answer is there already, by
    row and text.
    """

    def __init__(
        self, asked: tuple[Any, Any], batch_size: int, answers: Appended, console: Console | None
    ) -> None:
        super().__init__(asked=asked, batch_size=batch_size)
        self._kept = answers
        self._console = console

    def generate_until(self, requests: Any) -> list[str]:
        prompts = {request.args[3]: request.args[0] for request in requests}
        known = {
            line["row"]: line
            for line in self._kept.lines
            if prompts.get(line["row"]) == line["prompt"]
        }
        waiting = [request for request in requests if request.args[3] not in known]
        said = self.answers(waiting)
        title = requests[0].args[4]
        for request in watched(waiting, title, len(waiting), self._console):
            one, row = next(said), request.args[3]
            known[row] = {
                "row": row,
                "prompt": request.args[0],
                "text": one.text,
                "tokens": one.tokens,
                "finished": one.finished,
                "gate_weights": one.gate_weights,
            }
            self._kept.append(known[row])
        return [known[request.args[3]]["text"] for request in requests]

    def clean(self) -> None:
        """Free nothing: the next benchmark asks the same model."""


class _Task(task.ConfigurableTask):
    """A task of lmms-eval over `rows` that are there, with `table` for pictures that lie apart."""

    def __init__(
        self, benchmark: Benchmark, rows: Dataset, table: Elsewhere | None, most: int
    ) -> None:
        self._rows = rows
        super().__init__(
            config={
                "task": benchmark.name,
                "test_split": _SPLIT,
                "output_type": "generate_until",
                "doc_to_visual": lambda row: pictures_of(row, table),
                "doc_to_text": benchmark.prompt,
                "doc_to_target": lambda _row: "",
                "process_results": lambda _row, texts: {"characters": len(texts[0])},
                # Scores are given later, from what is written down.
                "metric_list": [
                    {"metric": "characters", "aggregation": "mean", "higher_is_better": True}
                ],
                "generation_kwargs": {"max_new_tokens": most, "do_sample": False, "until": []},
            },
            model_name="aligngpt",
        )

    def download(  # pyright: ignore[reportIncompatibleVariableOverride] - theirs tries again
        self, dataset_kwargs: Any = None
    ) -> None:
        """What the base class asks for: the rows, and the rows without pictures."""
        self.dataset = DatasetDict({_SPLIT: self._rows})
        self.dataset_no_image = DatasetDict({_SPLIT: _words(self._rows)})


def answer_benchmark(
    benchmark: Benchmark,
    data: Data,
    asked: tuple[Any, Any],
    answers: Appended,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 1,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Ask the model and processor `asked` all questions of `benchmark`; the facts of its rows.

    Answers are appended to `answers` as they come; rows that stand there with the text that would
    be asked are not asked again. With `limit` the first so many questions are asked, and what is
    scored together with them.

    Raises:
        InputError: the data cannot be read or lacks a column, or a question is too long.
    """
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    for module in (evaluator, task):  # bars of their own beside ours, in logs too
        vars(module)["tqdm"] = _no_bar
    if console is None or not console.is_terminal:
        disable_progress_bars()
    every_row = _read(data.files)
    _check_columns(benchmark, data, every_row)
    table = _elsewhere(data, every_row)
    rows = _selected(benchmark, every_row, limit)
    if len(rows) == 0:
        raise InputError(f"{benchmark.title}: {data.files[0]} has no rows to ask; get it anew.")
    evaluator.simple_evaluate(
        model=_Recorder(asked, batch_size, answers, console),
        tasks=[_Task(benchmark, rows, table, max_new_tokens or benchmark.max_new_tokens)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
        process_docs_parallel=1,
    )
    return [benchmark.facts(row) for row in _words(rows)]


def _no_bar(*given: Any, **options: Any) -> Any:
    return tqdm(*given, **{**options, "disable": True})


def _read(files: list[str]) -> Dataset:
    """The rows of `files`, pictures as the bytes they are."""
    is_table = files[0].endswith(".tsv")
    kind, options = ("csv", {"sep": "\t"}) if is_table else ("parquet", dict[str, Any]())
    try:
        rows: Any = load_dataset(kind, data_files=files, split="train", **options)
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).split("\n", 1)[0][:200]
        raise InputError(f"{files[0]} cannot be read ({reason}); get it anew.") from error
    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(column, List(Image(decode=False)))
    return rows


def _words(rows: Dataset) -> Dataset:
    return rows.remove_columns([name for name in rows.column_names if name == "image"])


def _elsewhere(data: Data, rows: Dataset) -> Elsewhere | None:
    """Where pictures lie that rows do not hold: GQA's table of them, MMBench's other rows."""
    if data.pictures is not None:
        table = _read(data.pictures)
        return Elsewhere(table, {str(key): i for i, key in enumerate(table["id"])}, "imageId")
    if data.files[0].endswith(".tsv"):
        return Elsewhere(rows, {str(key): i for i, key in enumerate(rows["index"])}, "image")
    return None


def _check_columns(benchmark: Benchmark, data: Data, rows: Dataset) -> None:
    pictured = "imageId" if data.pictures is not None else "image"
    missing = [name for name in (*benchmark.columns, pictured) if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{benchmark.title}: {data.files[0]} has no column {missing[0]} (but "
            f"{', '.join(rows.column_names)}); give the file as {benchmark.hub} has it."
        )


def _selected(benchmark: Benchmark, rows: Dataset, limit: int | None) -> Dataset:
    """The rows to ask: the benchmark's, and with `limit` the first of them in whole units."""
    if benchmark.rows is None and limit is None:
        return rows
    units: dict[Any, list[int]] = {}
    for place, row in enumerate(_words(rows)):
        if benchmark.rows is None or benchmark.rows(row):
            unit = benchmark.unit(row) if benchmark.unit else place
            units.setdefault(unit, []).append(place)
    kept: list[int] = []
    for places in units.values():
        if limit is not None and len(kept) >= limit:
            break
        kept += places
    return rows.select(sorted(kept))

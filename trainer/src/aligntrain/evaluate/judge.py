"""LLM judge behind an OpenAI-compatible endpoint, tolerating failures and ungraded replies."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from math import nan
from typing import Any, cast

from alignshared import InputError
from aligntrain.evaluate.scorers import Record, Score, Term, grouped, percents

Messages = list[dict[str, str]]
Grade = list[float]

KEY = "OPENAI_API_KEY"
"""Environment variable of the endpoint's key; command lines are visible to other users."""

_RETRIES = 2
_AT_ONCE = 4
_FAILURES_IN_A_ROW = 8
_TIMEOUT_S = 120.0
_PING_TOKENS = 256
_REASONING_TOKENS = 4096
"""Room for reasoning, which counts towards `max_completion_tokens` beside the reply."""

_REFUSABLE = {"max_tokens", "temperature"}
_SHOWN = 200
_TEMPERATURE_STEP = 0.5


@dataclass(frozen=True, slots=True)
class Judging:
    """Prompt, grade parser and scorer of one benchmark, with its own evaluation's settings.

    If `read` finds no grade in a reply, the judge is asked again up to `asked_again` times, each
    time at a higher temperature; then `read_last` is tried on the replies.
    """

    ask: Callable[[Record], Messages]
    read: Callable[[str], Grade | None]
    score_graded: Callable[[Sequence[Record], list[Any]], tuple[float, dict[str, float]]]
    temperature: float
    max_tokens: int
    asked_again: int = 0
    read_last: Callable[[str], Grade | None] | None = None

    def score(self, records: Sequence[Record]) -> Score:
        """Score `records` by their `grade`, if all have one."""
        grades: list[Any] = [record.get("grade") for record in records]
        given = sum(grade is not None for grade in grades)
        if given < len(grades) or not grades:
            missing = [f"{given} of {len(grades)} answers judged"] if grades else []
            return Score(None, grades, notes=missing)
        value, details = self.score_graded(records, grades)
        # The model's grade, over the reference's if there is one.
        terms = [Term("", grade[-1], grade[0] if len(grade) == 2 else 1.0) for grade in grades]
        top = 100.0 if len(grades[0]) == 1 else None  # an answer may be better than the reference
        return Score(value, grades, details, made_of=terms, top=top)


class JudgeError(Exception):
    """The judge gave no reply."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The model `model` at `url`, the base of an OpenAI-compatible API (`http://host:8000/v1`)."""

    url: str
    model: str

    refused: set[str] = field(default_factory=set[str], compare=False, repr=False)
    """Options that the model rejected, as found by `ping`."""

    def ping(self) -> None:
        """Ask one short question, accepting any reply.

        Raises:
            InputError: there is no reply; says why.
        """
        question = [{"role": "user", "content": "Reply with the word yes."}]
        try:
            self._complete(question, 0.0, _PING_TOKENS, self.refused, 0)
        except JudgeError as error:
            raise InputError(
                f"the judge {self.model} at {self.url} does not answer ({error}); see that the URL "
                f"is the base of an OpenAI-compatible API, as in http://host:8000/v1, and the key "
                f"is in {KEY}."
            ) from error

    def ask(self, messages: Messages, temperature: float, max_tokens: int) -> str:
        """Return the reply to `messages`.

        Raises:
            JudgeError: there is none after three tries, or a further try would not help.
        """
        # A copy: the rejection may concern one temperature, not the option itself.
        text, reason = self._complete(messages, temperature, max_tokens, {*self.refused}, _RETRIES)
        if text is None:
            raise JudgeError(f"a reply without text, ended by {reason}")
        return text

    def _complete(
        self,
        messages: Messages,
        temperature: float,
        max_tokens: int,
        refused: set[str],
        retries: int,
    ) -> tuple[str | None, str | None]:
        """Return the reply's text and finish reason; add rejected options to `refused`."""
        from openai import APIConnectionError, APIStatusError, Omit, OpenAI, OpenAIError

        key = os.environ.get(KEY)
        headers = None if key else {"Authorization": cast(str, Omit())}
        with OpenAI(
            base_url=self.url, api_key=key or "none", timeout=_TIMEOUT_S, max_retries=retries
        ) as client:
            while True:
                options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
                if "max_tokens" in refused:
                    options["max_completion_tokens"] = max_tokens + _REASONING_TOKENS
                options = {name: options[name] for name in options if name not in refused}
                try:
                    completion = client.chat.completions.create(
                        model=self.model,
                        messages=cast(Any, messages),
                        extra_headers=headers,
                        **options,
                    )
                    choice = completion.choices[0]
                    return choice.message.content, getattr(choice, "finish_reason", None)
                except APIStatusError as error:
                    body = " ".join(error.response.text.split())
                    named = {name for name in _REFUSABLE if name in options and name in body}
                    if error.status_code != 400 or not named:
                        reason = f"status {error.status_code}: {body[:_SHOWN]}".rstrip(": ")
                        raise JudgeError(reason) from error
                    refused |= named
                except APIConnectionError as error:
                    raise JudgeError(str(error.__cause__ or error)) from error
                except (OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
                    raise JudgeError("a reply that is no chat completion") from error


def judge_all(
    judge: Judge, judging: Judging, records: Sequence[Record]
) -> Iterator[dict[str, Any]]:
    """Yield the judgement of each of `records` in their order: `row`, `reply`, `grade`, `error`.

    `grade` is None without a reply or without a grade in it. Stops after too many failures in a
    row.
    """
    failures = 0

    def judge_one(record: Record) -> dict[str, Any]:
        judgement: dict[str, Any] = {"row": record["row"], "judge": judge.model, "grade": None}
        try:
            return judgement | _graded(judge, judging, record)
        except JudgeError as error:
            return judgement | {"error": str(error)}

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        for start in range(0, len(records), _AT_ONCE):
            for judgement in pool.map(judge_one, records[start : start + _AT_ONCE]):
                failures = failures + 1 if "error" in judgement else 0
                yield judgement
            if failures >= _FAILURES_IN_A_ROW:
                return


def _graded(judge: Judge, judging: Judging, record: Record) -> dict[str, Any]:
    """Return `reply` and `grade`, retrying as often as the benchmark's own evaluation does."""
    messages = judging.ask(record)
    replies: list[str] = []
    for again in range(judging.asked_again + 1):
        temperature = judging.temperature + again * _TEMPERATURE_STEP
        replies.append(judge.ask(messages, temperature, judging.max_tokens))
        if (grade := judging.read(replies[-1])) is not None:
            return {"reply": replies[-1], "grade": grade}
    for reply in replies:
        if judging.read_last and (grade := judging.read_last(reply)) is not None:
            return {"reply": reply, "grade": grade}
    return {"reply": replies[0], "grade": None}


_ANY_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


def _prompt(name: str) -> str:
    return files("aligntrain.evaluate").joinpath("judge_prompts", name).read_text("utf-8")


def _ask_llava(record: Record) -> Messages:
    """Return the prompt: caption, question, reference answer and the model's answer."""
    facts = record["facts"]
    caption = facts["caption"]
    context = "\n".join(caption) if isinstance(caption, list) else caption
    answers = "".join(
        f"[Assistant {i}]\n{text}\n\n[End of Assistant {i}]\n\n"
        for i, text in ((1, facts["gpt_answer"]), (2, record["text"]))
    )
    prompt = (
        f"[Context]\n{context}\n\n[Question]\n{facts['question']}\n\n{answers}"
        f"[System]\n{_prompt('llava-bench.txt')}\n\n"
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]


def read_pair(reply: str) -> Grade | None:
    """Return the two grades, 1 to 10, if they are all of the first line of `reply`, else None."""
    words = reply.strip().split("\n", 1)[0].replace(",", " ").split()
    grades = [_number(word) for word in words]
    return grades if len(grades) == 2 and all(1 <= grade <= 10 for grade in grades) else None


def _score_llava(records: Sequence[Record], grades: list[Any]) -> tuple[float, dict[str, float]]:
    """Score the model's grades in percent of the reference's; facts: `category`.

    100 · mean of the model's / mean of the reference's, over all questions and by category.
    """
    categories = [str(record["facts"]["category"]) for record in records]
    by_category = grouped(zip(categories, grades, strict=True))
    return _ratio(grades), {category: _ratio(some) for category, some in by_category.items()}


def _ratio(grades: list[Any]) -> float:
    return 100 * sum(model for _, model in grades) / sum(reference for reference, _ in grades)


def _ask_mm_vet(record: Record) -> Messages:
    """Return the benchmark's graded examples, with the answer as the line to complete."""
    facts = record["facts"]
    truth = facts["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    line = f"{facts['question']} | {truth} | {record['text']} |"
    return [{"role": "user", "content": f"{_prompt('mm-vet.txt')}\n{line}"}]


def read_correctness(reply: str) -> Grade | None:
    """Return the number from 0 to 1 at the start of `reply`, else None."""
    first = (reply.split() or [""])[0]
    grade = _number(first.rstrip(".") if first.count(".") > 1 else first)
    return [grade] if 0 <= grade <= 1 else None


def read_only_number(reply: str) -> Grade | None:
    """Return the only number on the first line of `reply` if it is from 0 to 1, else None."""
    numbers = _ANY_NUMBER.findall(reply.strip().split("\n", 1)[0])
    return read_correctness(numbers[0]) if len(numbers) == 1 else None


def _score_mm_vet(records: Sequence[Record], grades: list[Any]) -> tuple[float, dict[str, float]]:
    """Score mean correctness in percent, over all questions and by capability."""
    points = [float(grade) for (grade,) in grades]
    by_capability = percents(
        (capability.strip(), point)
        for record, point in zip(records, points, strict=True)
        for capability in record["facts"]["capability"].split(",")
    )
    return 100 * sum(points) / len(points), by_capability


def _number(word: str) -> float:
    """Return the number `word`, NaN if it is none."""
    try:
        return float(word)
    except ValueError:
        return nan


JUDGED = {
    "llava-bench": Judging(_ask_llava, read_pair, _score_llava, temperature=0.2, max_tokens=1024),
    "mm-vet": Judging(
        _ask_mm_vet,
        read_correctness,
        _score_mm_vet,
        temperature=0.0,
        max_tokens=128,
        asked_again=3,
        read_last=read_only_number,
    ),
}

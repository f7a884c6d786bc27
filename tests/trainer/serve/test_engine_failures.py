"""What goes wrong in the engine costs those whose it is, and no one else."""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from aligntrain.serve import decoding
from aligntrain.serve.request import Event, Failed, PrefillDone, Request, Sampling, TextDelta
from tests.trainer import tiny
from tests.trainer.serve.serving import Told, prompt, request, started
from tests.trainer.serve.test_engine import messages


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    model = tiny.model(text_config=tiny.text_config(max_position_embeddings=4096))
    with torch.no_grad():  # it writes the first token until it is stopped
        model.model.language_model.lm_head.weight.zero_()
    return model, tiny.processor(model.config)


class Memory:
    """torch, of which `names` find no memory as long as `full`."""

    def __init__(self, *names: str) -> None:
        self.full = False
        self.names = names

    def __getattr__(self, name: str) -> Any:
        if self.full and name in self.names:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return getattr(torch, name)


def asked(processor: Any, new: int, **options: Any) -> tuple[Request, Told]:
    return request(prompt(processor, messages([1], "what is it?")), new, **options)


def when_begun(one: Request, told: Told, do: Callable[[], None]) -> threading.Event:
    """`do` at the first piece of `one`'s answer, in the engine's thread."""
    begun = threading.Event()

    def emit(event: Event) -> None:
        told(event)
        if isinstance(event, TextDelta) and not begun.is_set():
            begun.set()
            do()

    one.emit = emit
    return begun


def test_no_memory_to_join_costs_who_would_join(
    made: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = made
    memory = Memory("cat")
    monkeypatch.setattr(decoding, "torch", memory)
    first, told = asked(processor, 60)
    second, told_second = asked(processor, 5)
    third, told_third = asked(processor, 5)
    with started(model, processor, rows=4) as engine:

        def join() -> None:
            memory.full = True
            engine.submit(second)

        def again(event: Event) -> None:
            told_second(event)
            if isinstance(event, Failed):
                memory.full = False
                engine.submit(third)

        second.emit = again
        when_begun(first, told, join)
        engine.submit(first)
        assert told.ended.tokens == 60
        assert told_third.ended.tokens == 5
    failed = told_second.events[-1]
    assert isinstance(failed, Failed)
    assert "ran out of memory" in failed.sentence
    assert not failed.final


def test_no_memory_to_leave_costs_who_is_written(
    made: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = made
    memory = Memory("tensor")
    monkeypatch.setattr(decoding, "torch", memory)
    requests = [asked(processor, new) for new in (60, 5)]
    late, told_late = asked(processor, 5)
    with started(model, processor, rows=4) as engine:
        memory.full = True
        with engine._news:  # they are read together
            engine._waiting += [one for one, _ in requests]
            engine._news.notify()
        assert requests[1][1].ended.tokens == 5
        assert requests[0][1].done.wait(60)
        memory.full = False
        engine.submit(late)
        assert told_late.ended.tokens == 5
    assert isinstance(requests[0][1].events[-1], Failed)


def test_no_memory_to_draw_costs_that_row(
    made: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = made
    memory = Memory("multinomial")
    memory.full = True
    monkeypatch.setattr(decoding, "torch", memory)
    drawn, told_drawn = asked(processor, 5, sampling=Sampling(temperature=1.0))
    greedy, told = asked(processor, 5)
    with started(model, processor, rows=4) as engine:
        engine.submit(drawn)
        engine.submit(greedy)
        assert told.ended.tokens == 5
        assert told_drawn.done.wait(60)
    assert isinstance(told_drawn.events[-1], Failed)


@pytest.fixture
def failing(made: tuple[Any, Any]) -> Iterator[Callable[[Callable[[torch.Tensor], None]], None]]:
    """Hands what the LLM's last layer is given to a function that may raise."""
    hooks: list[Any] = []

    def fail(meet: Callable[[torch.Tensor], None]) -> None:
        head = made[0].model.language_model.lm_head
        hooks.append(head.register_forward_pre_hook(lambda _, given: meet(given[0])))

    yield fail
    for hook in hooks:
        hook.remove()


def test_one_by_one_begins_when_the_batch_is_out_of_memory(
    made: tuple[Any, Any], failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that are too many together are read alone, and find the memory of the batch free."""
    # pytest keeps what is logged, and with an error its traceback.
    monkeypatch.setattr(logging.getLogger("aligntrain.serve.engine"), "propagate", False)
    model, processor = made
    batches: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []

    def meet(states: torch.Tensor) -> None:
        if len(states) > 1:
            batches.append(weakref.ref(states))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        held.append(any(one() is not None for one in batches))

    failing(meet)
    requests = [asked(processor, 1) for _ in range(3)]
    with started(model, processor, rows=4) as engine:
        with engine._news:
            engine._waiting += [one for one, _ in requests]
            engine._news.notify()
        assert [told.ended.tokens for _, told in requests] == [1, 1, 1]
    assert len(batches) == 1
    assert held == [False] * 3


def test_who_may_ask_again(made: tuple[Any, Any], failing: Callable[..., None]) -> None:
    """A prompt at which the model fails would fail again; one that stood beside it need not."""
    model, processor = made
    steps: list[int] = []

    def meet(states: torch.Tensor) -> None:
        steps.append(len(states))
        if len(steps) == 2:
            raise RuntimeError("broken")

    failing(meet)
    for rows in (1, 2):
        steps.clear()
        requests = [asked(processor, 9) for _ in range(rows)]
        with started(model, processor, rows=rows) as engine:
            with engine._news:
                engine._waiting += [one for one, _ in requests]
                engine._news.notify()
            for _, told in requests:
                assert told.done.wait(60)
        for _, told in requests:
            failed = told.events[-1]
            assert isinstance(failed, Failed)
            assert failed.final == (rows == 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_gpu_that_has_failed_ends_it(made: tuple[Any, Any], failing: Callable[..., None]) -> None:
    def meet(_: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    failing(meet)
    died: list[BaseException] = []
    one, told = asked(made[1], 5)
    with started(*made, died=died.append) as engine:
        engine.submit(one)
        assert told.done.wait(60)
    assert isinstance(died[0], torch.AcceleratorError)
    assert told.events == [Failed("the server is stopping.")]


def test_jobs_of_clients_that_left_are_let_go(made: tuple[Any, Any]) -> None:
    """Also behind others, while nothing of what is being written ends."""
    model, processor = made
    first, told = asked(processor, 3000)
    behind, told_behind = asked(processor, 3)
    left = [asked(processor, 3)[0] for _ in range(20)]
    images = [weakref.ref(one.prompt.pixel_values) for one in left]
    with started(model, processor, rows=1) as engine:
        begun = when_begun(first, told, lambda: None)
        engine.submit(first)
        assert begun.wait(60)
        engine.submit(behind)
        while left:
            engine.submit(left[-1])
            left.pop().cancelled = True
        written = len(told.events)
        while len(told.events) < written + 5:
            assert not told.done.is_set()
        assert not any(image() is not None for image in images)
        first.cancelled = True
        assert told_behind.ended.tokens == 3
    assert isinstance(told_behind.events[0], PrefillDone)

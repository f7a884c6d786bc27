"""Answers that are written together are those that are written alone."""

import threading
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch

from aligntrain.inference.generate import Question, generate_answers
from aligntrain.model import build_model, build_processor
from aligntrain.serve.metrics import Metrics
from aligntrain.serve.request import Failed, Sampling, TextDelta
from tests.trainer import tiny
from tests.trainer.families import FAMILIES
from tests.trainer.serve.serving import Told, prompt, request, started

QUESTIONS: list[tuple[list[int], str, int | None, int, float]] = [
    # images, text, level, new tokens, guidance
    ([1], "what is it?", None, 14, 1.0),
    ([], "emit me a long story about a kite, a beach and two dogs", None, 5, 1.0),
    ([2], "and this?", 1, 20, 2.5),
    ([3, 4], "which of the two is larger?", None, 9, 3.0),
    ([5], "x", 4, 3, 1.0),
    ([], "y", None, 17, 1.0),
    ([1], "what is it?", 2, 11, 1.0),
    ([1], "what is it?", 2, 11, 4.0),
    ([6], "describe the image in as many words as you can", None, 1, 2.0),
    ([7], "how many?", 3, 16, 0.5),
    ([8], "what is it?", None, 13, 1.0),
]


def messages(images: list[int], text: str) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": tiny.picture(seed)} for seed in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def alone(model: Any, processor: Any, questions: Any = QUESTIONS) -> list[Any]:
    return [
        next(
            generate_answers(
                model,
                processor,
                [Question(messages(p, t), level)],
                max_new_tokens=new,
                guidance=guidance,
            )
        )
        for p, t, level, new, guidance in questions
    ]


def loud(model: Any) -> Any:
    """`model`, in which levels make a difference."""
    with torch.no_grad():
        model.model.alignment.table.mul_(20)
    return model


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Any, Any]]:
    model = loud(tiny.model(text_config=tiny.text_config(max_position_embeddings=1024)))
    yield model, tiny.processor(model.config)


def together(
    model: Any, processor: Any, rows: int, stagger: bool, questions: Any = QUESTIONS
) -> list[Told]:
    """The answers to `questions`; staggered, each is asked when the one before has some words."""
    made = [
        request(prompt(processor, messages(p, t), level, guidance), new)
        for p, t, level, new, guidance in questions
    ]
    with started(model, processor, rows=rows) as engine:
        if stagger:
            tells = [told for _, told in made]
            begun = [False] * len(made)

            def following(place: int) -> Any:
                def emit(event: Any) -> None:
                    tells[place](event)
                    nxt = place + 1
                    if nxt < len(made) and not begun[nxt]:
                        begun[nxt] = True
                        engine.submit(made[nxt][0])

                return emit

            for place, (one, _) in enumerate(made):
                one.emit = following(place)
            engine.submit(made[0][0])
        else:
            for one, _ in made:
                engine.submit(one)
        for _, told in made:
            assert told.done.wait(60)
    return [told for _, told in made]


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("stagger", [False, True], ids=["at once", "staggered"])
def test_a_batch_equals_one_by_one(made: tuple[Any, Any], rows: int, stagger: bool) -> None:
    model, processor = made
    expected = alone(model, processor)
    assert len({one.text for one in expected}) > 5  # they can be told apart
    told = together(model, processor, rows, stagger)
    for one, (have, want) in enumerate(zip(told, expected, strict=True)):
        assert have.text.strip() == want.text, one
        assert have.ended.tokens == want.tokens
        assert have.ended.reason == ("stop" if want.finished else "length")
        if want.gate_weights is None:
            assert have.gate_weights is None
        else:
            assert have.gate_weights == pytest.approx(want.gate_weights, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_llms(name: str, tmp_path: Any) -> None:
    family = FAMILIES[name]
    vision = tmp_path / "vision"
    from transformers import CLIPVisionModel

    CLIPVisionModel(tiny.vision_config()).save_pretrained(vision)
    tiny.image_processor().save_pretrained(vision)
    llm = family.save(tmp_path / "llm")
    model = loud(build_model(str(vision), str(llm), levels=4))
    template: Any = "chat" if family.template else "vicuna_v1"
    processor = build_processor(str(vision), str(llm), model.config, template=template)
    expected = alone(model, processor)
    told = together(model, processor, 4, stagger=True)
    assert [one.text.strip() for one in told] == [one.text for one in expected]


def test_rows_are_written_together_and_join_on_the_way(made: tuple[Any, Any]) -> None:
    model, processor = made
    metrics = Metrics()
    joined = threading.Event()
    first, told = request(prompt(processor, messages([1], "one")), 40)
    second, told_second = request(prompt(processor, messages([2], "two")), 5)
    with started(model, processor, rows=4, metrics=metrics) as engine:

        def emit(event: Any) -> None:
            told(event)
            if not joined.is_set():
                joined.set()
                engine.submit(second)

        first.emit = emit
        engine.submit(first)
        assert told.done.wait(60)
        assert told_second.done.is_set()  # it did not wait for the first
    steps = metrics.text().decode()
    assert 'aligntrain_step_rows_bucket{le="1.0"}' in steps
    counted = {
        line.split()[0]: float(line.split()[1]) for line in steps.splitlines() if line[0] != "#"
    }
    alone_steps, all_steps = (
        counted['aligntrain_step_rows_bucket{le="1.0"}'],
        counted["aligntrain_step_rows_count"],
    )
    assert 0 < alone_steps < all_steps
    assert counted["aligntrain_new_tokens_total"] == told.ended.tokens + told_second.ended.tokens


def test_a_seed_draws_the_same_among_any_neighbours(made: tuple[Any, Any]) -> None:
    model, processor = made
    asked = prompt(processor, messages([1], "what is it?"))
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=7)

    def drawn(rows: int, sampling: Sampling) -> str:
        requests = [request(asked, 20, sampling=sampling)]
        requests += [request(prompt(processor, messages([i], "z")), 9) for i in range(rows - 1)]
        with started(model, processor, rows=rows) as engine:
            for one, _ in requests:
                engine.submit(one)
            return requests[0][1].text if requests[0][1].ended else ""

    assert drawn(1, sampling) == drawn(4, sampling)
    assert drawn(1, sampling) != drawn(1, Sampling(1.5, 0.9, seed=8))
    greedy = drawn(1, Sampling())
    assert drawn(1, Sampling(temperature=1.5, top_p=1e-6, seed=1)) == greedy


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_draws_from_what_guidance_makes(made: tuple[Any, Any], guidance: float) -> None:
    """So sharp that the likeliest is drawn: the answer is the greedy one, with its guidance."""
    model, processor = made
    told: list[Told] = []
    with started(model, processor, rows=6) as engine:
        for sampling in (Sampling(), Sampling(1e-4, 1.0, seed=5), Sampling(1.5, 0.9, seed=5)):
            asked = prompt(processor, messages([1], "what is it?"), 3, guidance)
            one, answer = request(asked, 20, sampling=sampling)
            engine.submit(one)
            told.append(answer)
        assert all(answer.ended for answer in told)
    assert told[0].text == told[1].text != told[2].text


def test_guidance_takes_two_rows(made: tuple[Any, Any]) -> None:
    """Three rows hold one with guidance and one without; one row holds any of them, alone."""
    model, processor = made
    asked = [prompt(processor, messages([i], "what?"), None, g) for i, g in ((1, 2.0), (2, 2.0))]
    asked.append(prompt(processor, messages([3], "what?")))
    for rows, most in ((1, 2), (3, 3), (5, 5)):
        widths: list[int] = []
        llm = model.model.language_model
        hook = llm.register_forward_hook(
            lambda *given, widths=widths: widths.append(len(given[2].logits))
        )
        try:
            with started(model, processor, rows=rows) as engine:
                requests = [request(one, 8) for one in asked]
                with engine._news:  # they are read together
                    engine._waiting += [one for one, _ in requests]
                    engine._news.notify()
                assert all(told.ended.tokens for _, told in requests)
        finally:
            hook.remove()
        assert max(widths) == most


@pytest.mark.parametrize("budget", [1, 90, 200, 100_000])
def test_answers_wait_for_memory(made: tuple[Any, Any], budget: int) -> None:
    """The batch never outgrows its tokens, nobody fails, and the answers are the same."""
    model, processor = made
    expected = alone(model, processor)
    asked = [
        request(prompt(processor, messages(p, t), level, guidance), new)
        for p, t, level, new, guidance in QUESTIONS
    ]
    longest = max(len(one.prompt.input_ids) + one.max_new_tokens for one, _ in asked)
    most = 0
    with started(model, processor, rows=16, total_tokens=budget) as engine:
        write = engine._write

        def watched() -> None:
            nonlocal most
            write()
            most = max(most, engine._cached.mask.numel() if engine._cached else 0)

        engine._write = watched  # type: ignore[method-assign]
        engine.submit(*[one for one, _ in asked])
        for _, told in asked:
            assert told.done.wait(60)
    assert [told.text.strip() for _, told in asked] == [one.text for one in expected]
    # One that is longer than that by itself is alone, with guidance in two rows.
    assert 0 < most <= max(budget, 2 * longest)


def test_a_row_that_is_cancelled_makes_room(made: tuple[Any, Any]) -> None:
    model, processor = made
    asked = prompt(processor, messages([1], "what is it?"))
    first, told = request(asked, 900)
    second, told_second = request(asked, 3)

    def emit(event: Any) -> None:
        told(event)
        first.cancelled = True

    first.emit = emit
    with started(model, processor, rows=1) as engine:
        engine.submit(first)
        engine.submit(second)
        assert told_second.ended.tokens <= 3
    assert len(told.events) == 1


def test_one_that_fails_does_not_harm_the_others(made: tuple[Any, Any]) -> None:
    model, processor = made
    asked = prompt(processor, messages([1], "what is it?"))
    broken = prompt(processor, messages([1], "what is it?"))
    object.__setattr__(broken, "input_ids", [10_000_000, *broken.input_ids])
    good, told = request(asked)
    bad, told_bad = request(broken)
    late, told_late = request(asked)
    with started(model, processor, rows=4) as engine:
        with engine._news:  # they are read together
            engine._waiting += [good, bad]
            engine._news.notify()
        assert told_bad.done.wait(60)
        engine.submit(late)
        assert told.ended.tokens == told_late.ended.tokens
    assert told.text == told_late.text
    failed = told_bad.events[-1]
    assert isinstance(failed, Failed)
    assert "the model failed at this request" in failed.sentence


def test_what_is_unfinished_when_it_stops_is_told_so(made: tuple[Any, Any]) -> None:
    model, processor = made
    asked = prompt(processor, messages([1], "what is it?"))
    requests = [request(asked, 900) for _ in range(3)]
    with started(model, processor, rows=2) as engine:
        for one, _ in requests:
            engine.submit(one)
    for _, told in requests:
        assert told.done.is_set()
    late, told_late = request(asked)
    engine.submit(late)
    assert told_late.events == [Failed("the server is stopping.")]


def test_an_llm_with_recurrent_layers_answers_one_at_a_time(made: tuple[Any, Any]) -> None:
    model, processor = made
    config = model.model.language_model.config
    kinds = config.layer_types if hasattr(config, "layer_types") else None
    config.layer_types = ["linear_attention"] * config.num_hidden_layers
    try:
        with started(model, processor, rows=4) as engine:
            assert engine._most_rows == 1
    finally:
        config.layer_types = kinds


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_frequencies_that_follow_the_longest_row(kind: str) -> None:
    """A long neighbour would change them for all, and so the answers.

    The two rows of guidance have those of the longer one.
    """
    unguided = [(*question, 1.0) for *question, _ in QUESTIONS]
    short = 200  # tokens; some of the prompts have more
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 100.0, "factor": 8.0}
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
        rope |= {"original_max_position_embeddings": short, **factors}

    def made() -> tuple[Any, Any]:  # anew, as dynamic frequencies depend on what was read before
        longest = short if kind == "dynamic" else 1024
        text = tiny.text_config(max_position_embeddings=longest, rope_parameters=rope)
        model = loud(tiny.model(text_config=text))
        # What may be asked, not what the LLM's frequencies are made of.
        model.config.text_config = deepcopy(text)
        model.config.text_config.max_position_embeddings = 1024
        return model, tiny.processor(model.config)

    expected = alone(*made(), unguided)
    told = together(*made(), 16, stagger=False, questions=unguided)
    assert [one.text.strip() for one in told] == [one.text for one in expected]


def test_a_stop_text_ends_an_answer(made: tuple[Any, Any]) -> None:
    model, processor = made
    asked = prompt(processor, messages([9], "what is it?"))
    whole, told = request(asked, 30)
    with started(model, processor) as engine:
        engine.submit(whole)
        assert told.ended.tokens == 30
        stop = told.text[6:8]
        cut, told_cut = request(asked, 30, stops=(stop,))
        engine.submit(cut)
        assert told_cut.ended.reason == "stop"
    assert told_cut.text == told.text[: told.text.find(stop)]
    assert told_cut.ended.tokens < 30
    assert all(isinstance(event, TextDelta) for event in told_cut.events[1:-1])

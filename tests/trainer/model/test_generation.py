"""`generate`: cached, sampled, in beams, padded on either side, guided by the level."""

from typing import Any

import pytest
import torch
from transformers import pipeline

from alignshared import InputError
from aligntrain.model.generation import without_vector
from tests.trainer import tiny
from tests.trainer.model.test_modeling import ALIGN, batch, pixels, row

NEW = 6


def generate(model: Any, given: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(**given, **options)[:, given["input_ids"].shape[1] :]


ROWS = [row(1, 2, 3), row(4, 5, 6, 7, 8, 9, images=0), row(10, images=2), row(11, 12)]
IMAGES = [slice(0, 1), None, slice(1, 3), slice(3, 4)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_equals_one_by_one(side: str, beams: int) -> None:
    model = tiny.model()
    images = pixels(4)
    together = generate(model, batch(*ROWS, side=side) | {"pixel_values": images}, num_beams=beams)
    for i, (one, where) in enumerate(zip(ROWS, IMAGES, strict=True)):
        given = batch(one) | ({"pixel_values": images[where]} if where else {})
        assert generate(model, given, num_beams=beams)[0].tolist() == together[i].tolist()


def test_the_cache_changes_nothing_and_the_gate_speaks_once() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4)) | {"pixel_values": pixels(2)}
    spoken: list[int] = []
    towers: list[int] = []
    model.model.alignment.gate.register_forward_hook(lambda *_: spoken.append(1))
    model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    cached = generate(model, given)
    assert (len(spoken), len(towers)) == (1, 1)
    spoken.clear()
    assert torch.equal(cached, generate(model, given, use_cache=False))
    assert len(spoken) == 1


def test_each_returned_sequence_has_all_images_of_its_row() -> None:
    model = tiny.model()
    given = batch(row(1, images=2), row(2)) | {"pixel_values": pixels(3)}
    torch.manual_seed(0)
    many = generate(model, given, do_sample=True, top_k=1, num_return_sequences=3)
    one = generate(model, given)
    assert torch.equal(many, one.repeat_interleave(3, dim=0))


def test_sampling_follows_the_seed() -> None:
    model = tiny.model()
    given = batch(row(1)) | {"pixel_values": pixels(1)}
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(generate(model, given, do_sample=True, top_k=0, temperature=2.0).tolist())
    assert runs[0] == runs[1] != runs[2]


def test_a_forced_level_and_the_mix_differ() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.model.alignment.table.mul_(40)
    given = batch(row(1), row(2)) | {"pixel_values": pixels(2)}
    forced = {tuple(generate(model, given | {"levels": torch.tensor([k, k])})[0].tolist())
              for k in (1, 2, 3, 4)}  # fmt: skip
    assert len(forced) > 1
    for k in (1, 4):
        given_level = given | {"levels": torch.tensor([k, k])}
        cached = generate(model, given_level)
        assert torch.equal(cached, generate(model, given_level, use_cache=False))


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"num_beams": 2}]
)
def test_processors_of_scores_meet_placeholders(options: dict[str, Any]) -> None:
    model = tiny.model()
    given = batch(row(1, 2), row(3, images=0)) | {"pixel_values": pixels(1)}
    new = generate(model, given, **{"repetition_penalty": 1.2, **options})
    assert new.max() < tiny.VOCABULARY


def test_what_is_generated_can_be_read() -> None:
    model = tiny.model()
    processor = tiny.processor(model.config)
    given = processor(text="what is <image>?", images=tiny.picture(1))
    ids = model.generate(**given, max_new_tokens=4)
    assert "what is" in processor.batch_decode(ids, skip_special_tokens=True)[0]


def test_a_conversation_goes_on_from_its_cache() -> None:
    model = tiny.model()
    first = batch(row(1, 2, 3)) | {"pixel_values": pixels(1)}
    answered = model(**first, use_cache=True)
    more = torch.tensor([[4, 5]])
    mask = torch.ones(1, first["input_ids"].shape[1] + 2, dtype=torch.long)
    later = model(input_ids=more, attention_mask=mask, cache=answered.cache)
    given = batch(row(1, 2, 3, 4, 5)) | {"pixel_values": pixels(1)}
    whole = model(**given, gate_weights=answered.gate_weights)
    torch.testing.assert_close(later.logits[0], whole.logits[0, -2:], rtol=1e-4, atol=1e-5)


def test_the_cache_has_its_old_name_too() -> None:
    model = tiny.model()
    read = model(**batch(row(1, 2, 3)), pixel_values=pixels(1), use_cache=True)
    length = read.cache.get_seq_length()
    mask = torch.ones(1, length + 1, dtype=torch.long)
    with pytest.warns(FutureWarning, match="past_key_values"):
        later = model(
            input_ids=torch.tensor([[4]]), attention_mask=mask, past_key_values=read.cache
        )
    assert later.cache.get_seq_length() == length + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_static_cache_changes_nothing(side: str) -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4), side=side) | {"pixel_values": pixels(2)}
    static = generate(model, given, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generate(model, given))


def test_transformers_pipeline() -> None:
    model = tiny.model()
    ask = pipeline("image-text-to-text", model=model, processor=tiny.processor(model.config))
    content = [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": "What?"}]
    answer = ask(
        text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False
    )
    assert isinstance(answer[0]["generated_text"], str)


def heard() -> Any:
    """A model in which levels make a difference."""
    model = tiny.model()
    with torch.no_grad():
        model.model.alignment.table.mul_(20)
    return model


def without_levels(model: Any) -> Any:
    """The same weights as a model of mixing none."""
    plain = tiny.model(mixing="none")
    weights = {name: value for name, value in model.state_dict().items() if "alignment" not in name}
    plain.load_state_dict(weights)
    return plain


def by_hand(model: Any, ids: list[int], images: Any, level: int, scale: float) -> list[int]:
    """Greedy tokens from both branches, each read anew at every step by a model of its own."""
    plain, said = without_levels(model), []
    given = {} if images is None else {"pixel_values": images}
    for _ in range(NEW):
        leveled = model(**batch([*ids, *said]), **given, levels=torch.tensor([level])).logits[0, -1]
        bare = plain(**batch([one for one in ids if one != ALIGN] + said), **given).logits[0, -1]
        bare = bare.log_softmax(dim=-1)
        said.append(int((bare + scale * (leveled.log_softmax(dim=-1) - bare)).argmax()))
    return said


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_without_its_vector_is_that_of_mixing_none(side: Any) -> None:
    model = heard()
    given = batch(*ROWS, side=side)
    ids, mask = without_vector(given["input_ids"], given["attention_mask"], model.config)
    images = {"pixel_values": pixels(4), "levels": torch.ones(len(ROWS), dtype=torch.long)}
    read = model(ids, mask, **images).logits[:, -1]
    bare = batch(*([token for token in one if token != ALIGN] for one in ROWS), side="left")
    plain = without_levels(model)(**bare, pixel_values=pixels(4)).logits[:, -1]
    torch.testing.assert_close(read, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_guidance_is_that_of_both_branches(scale: float) -> None:
    model, images = heard(), pixels(4)
    levels = [4, 0, 1, 2]
    expected = [
        by_hand(model, one, None if where is None else images[where], level, scale)
        for one, where, level in zip(ROWS, IMAGES, levels, strict=True)
    ]
    given = batch(*ROWS, side="right") | {"pixel_values": images, "levels": torch.tensor(levels)}
    for cached in (True, False):
        guided = generate(model, given, guidance_scale=scale, use_cache=cached)
        assert guided.tolist() == expected
    bare = generate(model, given).tolist()
    assert [one == other for one, other in zip(bare, expected, strict=True)].count(True) < 4
    assert bare[1] == expected[1]  # text has no level


def test_guidance_of_one_is_none_and_costs_nothing() -> None:
    model = heard()
    given = batch(row(1, 2), row(3)) | {"pixel_values": pixels(2)}
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    options |= {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    plain = model.generate(**given, **options)
    assert len(passes) == NEW
    one = model.generate(**given, **options, guidance_scale=1.0)
    assert len(passes) == 2 * NEW
    assert torch.equal(torch.stack(plain.scores), torch.stack(one.scores))
    model.generate(**given, **options, guidance_scale=1.5)
    assert len(passes) == 4 * NEW


def test_guidance_of_the_mix_asks_the_gate_once() -> None:
    model = heard()
    given = batch(row(1, 2, 3), row(4)) | {"pixel_values": pixels(2)}
    spoken: list[int] = []
    model.model.alignment.gate.register_forward_hook(lambda *_: spoken.append(1))
    guided = generate(model, given, guidance_scale=4.0)
    assert len(spoken) == 1
    assert not torch.equal(guided, generate(model, given))


def test_guidance_of_several_sequences_and_of_beams() -> None:
    model = heard()
    given = batch(row(1, images=2), row(2)) | {"pixel_values": pixels(3)}
    many = generate(
        model, given, guidance_scale=3.0, do_sample=True, top_k=1, num_return_sequences=2
    )
    one = generate(model, given, guidance_scale=3.0)
    assert torch.equal(many, one.repeat_interleave(2, dim=0))
    with pytest.raises(InputError, match="guidance_scale needs input_ids and no beams"):
        generate(model, given, guidance_scale=3.0, num_beams=2)

"""Conversations about pictures of many lengths, and towers of a quarter of LLaVA's sizes.

Nothing is downloaded: text and drawings are the demo's, weights are random, and a token is a byte.
Speed depends on sizes and lengths, not on what is learned.

Lengths. The 665K mix of LLaVA-1.5 is mostly short answers, a quarter longer talks about a picture,
and a sixteenth conversations without one (its paper, table 7, counts them). How many tokens each
has, that table does not say: the medians here are assumptions, and every contender gets the same.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers.corpus import demo_drawings
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from aligncurate import ingest
from alignshared import Dataset

SIDE, PATCH = 168, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Kind:
    """A share of the records: their median of text tokens, the spread of its logarithm, and whether
    there is a picture.
    """

    share: float
    median: int
    spread: float
    image: bool


KINDS = (
    Kind(0.69, 40, 0.6, image=True),
    Kind(0.25, 90, 0.6, image=True),
    Kind(0.06, 250, 0.5, image=False),
)
"""Text tokens a quarter of what is assumed of LLaVA's mix, as the image's 144 are of its 576."""

VISION: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 3, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
LLM: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
}  # fmt: skip


def write_towers(folder: Path, **sizes: int) -> tuple[Path, Path]:
    """The vision tower and the LLM, as transformers saves them; `sizes` of the LLM that are not
    those above.
    """
    vision, llm = folder / "vision", folder / "llm"
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(vision)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(vision)
    settings: dict[str, Any] = LLM | sizes
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(llm)
    _tokenizer().save_pretrained(llm)
    return vision, llm


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '\n' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", chat_template=template,
    )  # fmt: skip


def write_talks(folder: Path, count: int) -> Dataset:
    """`count` ingested records; a question takes a third of the text and its answer the rest."""
    chance = random.Random(0)
    pairs = demo_drawings()
    images = folder / "images"
    images.mkdir(parents=True)
    records = [_record(number, chance, pairs, images) for number in range(count)]
    path = folder / "talks.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return ingest(str(path), str(folder / "ingest"), image_root=str(images))


def _record(
    number: int, chance: random.Random, pairs: list[dict[str, Any]], images: Path
) -> dict[str, Any]:
    kind = chance.choices(KINDS, [kind.share for kind in KINDS])[0]
    length = max(12, int(chance.lognormvariate(0, kind.spread) * kind.median))
    text = _text(chance, pairs, length)
    question, answer = text[: length // 3], text[length // 3 :]
    record: dict[str, Any] = {"id": f"{number:06d}"}
    if kind.image:
        record["image"] = f"{number:06d}.jpg"
        _write_picture(pairs[number % len(pairs)]["image"]["bytes"], images / record["image"])
        question = f"<image>\n{question}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return record | {"conversations": turns}


def _text(chance: random.Random, pairs: list[dict[str, Any]], length: int) -> str:
    """ASCII, so that a character is a byte and a byte a token; no space at either end."""
    words = ""
    while len(words) < length + 1:
        caption = chance.choice(pairs)["caption"].encode("ascii", "ignore").decode()
        words += " ".join(caption.split()) + ", "
    return words[:length].replace(" ", "_")


def _write_picture(drawing: bytes, path: Path) -> None:
    import io

    with Image.open(io.BytesIO(drawing)) as picture:
        picture.convert("RGB").resize((400, 300)).save(path, "JPEG", quality=90)

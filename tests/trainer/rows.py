"""Small datasets and tokenizers for the tests of training data."""

import io
import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from alignshared import Dataset, Manifest, ShardInfo, Storage
from alignshared.manifest import write_manifest
from alignshared.schema import ingested_schema, scored_schema, with_features, with_level
from alignshared.shards import writing_shard
from aligntrain.prompts.placeholders import Layout, own_bos
from aligntrain.prompts.templates import VICUNA_SYSTEM

TEXTS = [
    VICUNA_SYSTEM,
    "USER: What is in the picture? ASSISTANT: A red kite on a beach.",
    "USER: What colour is it? ASSISTANT: Red",
    "a red kite on a beach in the morning",
    "two dogs run over a meadow, one of them is brown",
    "Answer the question using a single word or phrase.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def llama_tokenizer() -> Any:
    """As Vicuna's: `▁` for spaces, bytes where a character is unknown, BOS before every text."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = Metaspace()
    trained.train_from_iterator(TEXTS, BpeTrainer(vocab_size=480, special_tokens=specials))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return LlamaTokenizer(vocab=model["vocab"], merges=merges, legacy=True, add_bos_token=True)


@cache
def chat_tokenizer() -> Any:
    """As Qwen's and SmolLM2's: bytes, ChatML, no BOS of its own."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trained.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet())
    trained.train_from_iterator(TEXTS, trainer)
    trained.add_special_tokens([AddedToken(t) for t in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def layout_of(tokenizer: Any, image_tokens: int = 4, *, align: bool = True) -> Layout:
    """Placeholders behind the vocabulary of `tokenizer`."""
    size = len(tokenizer)
    return Layout(size, size + 1, image_tokens, own_bos(tokenizer), align)


def picture(seed: int) -> bytes:
    """An encoded picture of one colour."""
    colour = tuple(np.random.default_rng(seed).integers(0, 255, 3).tolist())
    encoded = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(encoded, "PNG")
    return encoded.getvalue()


def pair_rows(count: int, levels: int = 4) -> list[dict[str, Any]]:
    """Rows of a levelled dataset."""
    return [
        {
            "id": f"pair-{i:04d}",
            "image": {"bytes": picture(i), "path": f"{i:04d}.png"},
            "caption": f"caption number {i}" + " and more" * (i % 5),
            "width": 12,
            "height": 8,
            "score": i / count,
            "caption_truncated": False,
            "level": 1 + i * levels // count,
        }
        for i in range(count)
    ]


def talk_rows(count: int, text_every: int = 3) -> list[dict[str, Any]]:
    """Rows of an instruction dataset; each `text_every`th has no image."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        has_image = i % text_every != 0
        ask = ("<image>\n" if has_image else "") + f"question {i}"
        rows.append(
            {
                "id": f"talk-{i:04d}",
                "image": {"bytes": picture(i), "path": f"{i}.png"} if has_image else None,
                "caption": f"answer {i}",
                "conversations": [
                    {"from": "human", "value": ask},
                    {"from": "gpt", "value": f"answer {i}" + " word" * (i % 17)},
                ],
            }
        )
    return rows


def write_rows(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    levels: int | None = None,
    shards: int = 2,
    group_rows: int | None = None,
    extra: dict[str, pa.DataType] | None = None,
) -> Dataset:
    """`rows` as a dataset: sorted into `levels`, or ingested; row groups of `group_rows`. `extra`
    are the types of columns beyond those of the contract.
    """
    schema = ingested_schema() if levels is None else with_level(scored_schema())
    schema = with_features(pa.schema([*schema, *(extra or {}).items()]))
    table = pa.Table.from_pylist(list(rows), schema)
    storage = Storage(folder)
    infos: list[ShardInfo] = []
    cuts = [table.num_rows * i // shards for i in range(shards + 1)]
    for i, (begin, end) in enumerate(pairwise(cuts)):
        part = table.slice(begin, end - begin)
        name = f"shard-{i:05d}.parquet"
        if group_rows is None:
            with writing_shard(storage, name, schema) as (writer, result):
                writer.write(part)
            infos.append(result.info)
        else:
            sink = pa.BufferOutputStream()
            pq.write_table(part, sink, row_group_size=group_rows)
            content = sink.getvalue().to_pybytes()
            digest = storage.write_bytes(name, content)
            infos.append(ShardInfo(name, part.num_rows, len(content), digest))
    edges = None if levels is None else [k / levels for k in range(1, levels)]
    manifest = Manifest(
        stage="ingest" if levels is None else "bucket",
        rows=table.num_rows,
        rejects={},
        shards=infos,
        reject_shards=[],
        config={},
        parents=[],
        package="test",
        created="2025-01-02T03:04:05+00:00",
        scheme=None if levels is None else "quantile",
        edges=edges,
    )
    write_manifest(storage, manifest)
    return Dataset(folder)

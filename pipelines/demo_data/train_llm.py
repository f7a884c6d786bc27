"""Train the demo's language model: a Llama of 4 million parameters that knows 100 things.

uv run python pipelines/demo_data/train_llm.py

It reads short texts about the known concepts, made from Unicode's labels, tags and groups, and
never an image:

    captions         words about a thing, then its name, a tag or its group as a caption
    conversations    the words, then the questions of the demo's instructions with their answers

A word about the kind of caption (`name`, `tag`, `group`, `other`) may come first, as a prompt does
for a large model; after `other` the caption is that of another thing. The words stand at one
position, as the mean of their embeddings, mixed with words about another thing and with noise: to
read images later, the model must make sense of vectors that are no token's own.

Writes a folder that transformers loads: configuration, tokenizer with a chat template, and bfloat16
weights.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from captions import TEMPLATE, bare_label, group_name, usable_tags, with_article
from concepts import Concept
from conversations import ASKING, CAPTIONING, GROUPING, NAMING, conversations
from npm_packages import DEFAULT_CACHE
from split import load_split
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("train_llm")

OUTPUT = Path(__file__).parents[2] / "shared/src/alignshared/demo/llm"
PAD, BOS, EOS, START, END = "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
VOCABULARY = 4000
WORDS = 3
KINDS, KIND_WEIGHTS = ("name", "tag", "group", "other"), (0.5, 0.15, 0.2, 0.15)
SEED = 0
IGNORED = -100


@dataclass(frozen=True)
class Text:
    """A text in token ids: `before` the words, the tokens of each word, what comes `after` them.

    `learned` are the positions of `after` that carry loss.
    """

    before: list[int]
    words: list[list[int]]
    after: list[int]
    learned: list[bool]


def things_to_say(concept: Concept) -> list[str]:
    """Words about a concept: those of its label, tags and subgroup."""
    return [
        *bare_label(concept.label).split(),
        *usable_tags(concept),
        concept.subgroup.replace("-", " "),
    ]


def train_tokenizer(concepts: Sequence[Concept]) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding of everything that the demo says and asks."""
    texts = [*NAMING, *GROUPING, *CAPTIONING, ASKING.format("a"), "Yes", "No", *KINDS] * 50
    for concept in concepts:
        name, group = bare_label(concept.label), group_name(concept)
        texts += [TEMPLATE.format(name), TEMPLATE.format(group), with_article(concept.label), group]
        texts += [f" {word}" for word in things_to_say(concept)]
        texts += [TEMPLATE.format(tag) for tag in usable_tags(concept)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A line feed is a token of its own, also before another one.
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, EOS, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=END, pad_token=PAD,
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


class Texts:
    """Endless texts about `concepts`, drawn from `rng`."""

    def __init__(
        self, concepts: Sequence[Concept], tokenizer: PreTrainedTokenizerFast, rng: random.Random
    ) -> None:
        self._concepts = concepts
        self._tokenizer = tokenizer
        self._rng = rng
        self._known: dict[str, list[int]] = {}

    def captions(self, number: int) -> list[Text]:
        """Return `number` captions."""
        return [self._caption() for _ in range(number)]

    def conversations(self, number: int) -> list[Text]:
        """Return `number` questions with their answers."""
        return [self._conversation() for _ in range(number)]

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False).input_ids
        return self._known[text]

    def _words(self, concept: Concept) -> list[list[int]]:
        # Now and then the label is not said: then the tags must do.
        label = len(bare_label(concept.label).split())
        said = things_to_say(concept)
        own, more = said[:label], said[label:] or said
        chosen = own if self._rng.random() < 0.8 else []
        return [self._ids(f" {w}") for w in chosen + self._rng.choices(more, k=WORDS - len(chosen))]

    def _before(self, kind: str | None) -> list[int]:
        said = self._ids(kind) if kind and self._rng.random() < 0.7 else []
        return [*self._ids(BOS), *said]

    def _caption(self) -> Text:
        concept, other = self._rng.sample(self._concepts, 2)
        kind = self._rng.choices(KINDS, KIND_WEIGHTS)[0]
        tags = usable_tags(concept)
        said = {
            "name": bare_label(concept.label),
            "tag": self._rng.choice(tags) if tags else bare_label(concept.label),
            "group": group_name(concept),
            "other": bare_label(other.label),
        }[kind]
        after = self._ids(f"{TEMPLATE.format(said)}\n")
        return Text(self._before(kind), self._words(concept), after, [True] * len(after))

    def _conversation(self) -> Text:
        concept, other = self._rng.sample(self._concepts, 2)
        kind = self._rng.choice((None, "name", "tag", "group"))
        before = self._before(kind) + self._ids(f"{START}user\n")
        chosen = self._rng.choice(conversations(concept, other, self._rng))
        question, answer = self._rng.choice(chosen)
        asked = self._ids(f"\n{question}{END}\n{START}assistant\n")
        said = self._ids(f"{answer}{END}")
        learned = [False] * len(asked) + [True] * len(said)
        return Text(before, self._words(concept), asked + said, learned)


def batch_loss(
    model: LlamaForCausalLM, texts: Sequence[Text], noise: torch.Generator
) -> torch.Tensor:
    """Return the mean loss of the learned tokens of `texts`; `noise` mixes the words."""
    embed = cast(nn.Embedding, model.get_input_embeddings())
    before = [torch.tensor(text.before) for text in texts]
    after = [torch.tensor(text.after) for text in texts]
    pieces = embed(torch.cat([*before, *after])).split([len(ids) for ids in (*before, *after)])
    words = mixed_words(embed.weight, texts, noise)
    rows: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for row, text in enumerate(texts):
        rows.append(torch.cat([pieces[row], words[row], pieces[len(texts) + row]]))
        learned = after[row].masked_fill(~torch.tensor(text.learned), IGNORED)
        unlearned = torch.full((len(text.before) + 1,), IGNORED)
        labels.append(torch.cat([unlearned, learned]))
    inputs = pad_sequence(rows, batch_first=True)
    targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:]
    # Padding is on the right, so causal attention never sees it from a learned position.
    hidden = model.model(inputs_embeds=inputs).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[targets != IGNORED])
    return functional.cross_entropy(logits.float(), targets[targets != IGNORED])


def mixed_words(table: torch.Tensor, texts: Sequence[Text], noise: torch.Generator) -> torch.Tensor:
    """Return vectors [B, 1, d] of `texts`: their words, mixed with another's and with noise."""
    ids = [word for text in texts for word in text.words]
    offsets = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
    flat = torch.tensor([piece for word in ids for piece in word])
    words = functional.embedding_bag(flat, table, offsets, mode="mean")
    words = words.view(len(texts), WORDS, -1).mean(dim=1, keepdim=True)
    others = words[torch.randperm(len(texts), generator=noise)]
    clouded = torch.rand(len(texts), 1, 1, generator=noise)
    share = 0.6 * clouded * torch.rand(len(texts), 1, 1, generator=noise)
    deviation = 8 * clouded * words.detach().square().mean().sqrt()
    mixed = words.lerp(others, share) + deviation * torch.randn(words.shape, generator=noise)
    # The size of a projector's vectors is another than that of the embeddings.
    size = torch.exp(0.5 * torch.randn(len(texts), 1, 1, generator=noise))
    return size * functional.rms_norm(mixed, mixed.shape[-1:])


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: 100 steps of warm-up, then half a cosine down to a fiftieth."""
    return min(1, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def train(
    concepts: Sequence[Concept], tokenizer: PreTrainedTokenizerFast, steps: int, size: int
) -> LlamaForCausalLM:
    """Train a new model for `steps` batches of `size` texts."""
    torch.manual_seed(SEED)
    # Eager attention is twice as fast as SDPA in bf16 on a CPU.
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
            tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        )
    )  # fmt: skip
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    texts = Texts(concepts, tokenizer, random.Random(SEED))
    noise = torch.Generator().manual_seed(SEED)
    has_bf16 = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate(step, steps)
        optimizer.zero_grad()
        losses = []
        for half in (texts.captions(size // 2), texts.conversations(size // 2)):  # alike in length
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
                loss = batch_loss(model, half, noise) / 2
            loss.backward()
            losses.append(2 * loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            took = time.monotonic() - began
            logger.info("step %d  losses %.3f %.3f  %.0f s", step + 1, *losses, took)
    return model


def main() -> None:
    """Parse the arguments, train and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of npm tarballs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64, help="texts a step")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    concepts = load_split(args.cache).known
    tokenizer = train_tokenizer(concepts)
    model = train(concepts, tokenizer, args.steps, args.batch)
    tokenizer.save_pretrained(args.output)
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(args.output)
    logger.info("%s: %d tokens, %d concepts", args.output, len(tokenizer), len(concepts))


if __name__ == "__main__":
    main()

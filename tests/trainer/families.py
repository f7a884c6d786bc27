"""The families of LLMs that the trainer is for: a tiny random one of each, with its own template.

The templates write what the families' own write, as far as training meets it: where BOS stands, how
a turn begins and ends, and what is different in the last one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests.trainer import tiny
from tests.trainer.rows import CHATML

WINDOW = 8
"""Of sliding attention, shorter than a row with an image."""

_BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ OPEN + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + CLOSE }}{% endif %}{% endfor %}"
)
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>"
    "\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set who = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + who + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if loop.last and m.role =="
    " 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_METADATA = "{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: /think<|im_end|>\n' }}"
_PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """`answer_end` closes an answer; `template` None is for models that have none of their own."""

    config: type[PreTrainedConfig]
    answer_end: str = "</s>"
    template: str | None = None
    specials: tuple[str, ...] = ()
    adds_bos: bool = True
    sizes: tuple[tuple[str, Any], ...] = ()

    def llm_config(self) -> Any:
        count = 260 + len(self.specials)
        sizes: dict[str, Any] = {
            "vocab_size": count, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "bos_token_id": 256, "eos_token_id": 257,
            "pad_token_id": 258, "initializer_range": 0.2,
        }  # fmt: skip
        return self.config(**{**sizes, **dict(self.sizes)})

    def tokenizer(self) -> Any:
        made = tiny.tokenizer(adds_bos=self.adds_bos, chat_template=self.template)
        made.add_tokens([AddedToken(one, special=True) for one in self.specials])
        return made

    def save(self, folder: Path) -> Path:
        """A random LLM with its tokenizer in `folder`."""
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(self.llm_config()).save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)
        return folder


_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_HEAD = ("head_dim", 8)
_SLIDING = ("sliding_window", WINDOW)
_TIED = ("tie_word_embeddings", True)
_IM = ("<|im_start|>", "<|im_end|>")

FAMILIES: dict[str, Family] = {
    "llama2": Family(
        LlamaConfig,
        template=_BRACKETS.replace("OPEN", "bos_token").replace("CLOSE", "' ' + eos_token"),
        sizes=(("num_key_value_heads", 4),),
    ),
    "llama3": Family(
        LlamaConfig, "<|eot_id|>", _HEADERS,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        sizes=(("rope_parameters", _LLAMA3_ROPE), ("eos_token_id", [257, 262])),
    ),
    "vicuna": Family(LlamaConfig, sizes=(("num_key_value_heads", 4),)),
    "mistral": Family(
        MistralConfig,
        template="{{ bos_token }}"
        + _BRACKETS.replace("OPEN", "''").replace("CLOSE", "eos_token"),
        sizes=(_SLIDING,),
    ),
    "gemma2": Family(
        Gemma2Config, "<end_of_turn>", _TURNS, ("<start_of_turn>", "<end_of_turn>"),
        sizes=(_HEAD, _SLIDING, _TIED, ("final_logit_softcapping", 5.0)),
    ),
    # Its tokenizer has a token of its own behind the vocabulary.
    "gemma3": Family(
        Gemma3TextConfig, "<end_of_turn>", _TURNS,
        ("<start_of_turn>", "<end_of_turn>", "<image_soft_token>"),
        sizes=(_HEAD, _SLIDING, _TIED, ("vocab_size", 262)),
    ),
    "qwen2.5": Family(Qwen2Config, "<|im_end|>", CHATML, _IM, adds_bos=False, sizes=(_TIED,)),
    "qwen3": Family(Qwen3Config, "<|im_end|>", _THOUGHTS, _IM, adds_bos=False, sizes=(_HEAD,)),
    # Every fourth layer has no rotary positions.
    "smollm3": Family(
        SmolLM3Config, "<|im_end|>", _METADATA + CHATML, _IM, adds_bos=False,
        sizes=(_TIED, ("num_hidden_layers", 4)),
    ),
    "phi2": Family(PhiConfig, adds_bos=False),
    "phi3": Family(
        Phi3Config, "<|end|>", _PHI, ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>"),
        adds_bos=False,
    ),
}  # fmt: skip

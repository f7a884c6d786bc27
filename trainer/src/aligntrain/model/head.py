"""The head of the LLM, in pieces where the logits of a long batch would fill the memory.

A vocabulary of 128,000 makes half a megabyte of logits of every token, in float32 and three times
over with log-softmax and gradient. In pieces, each computed once more going backward, there is one
piece of them at a time; the price is one more pass through the head.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aligntrain.memory import rows_at_once
from aligntrain.model.losses import IGNORED

_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""What configurations call that which some LLMs do with logits behind their head."""


def pieces_of(tokens: int, language_model: Any, most_bytes: int) -> int:
    """In how many pieces the logits of `tokens` tokens are computed, so that each takes
    `most_bytes` at most in float32; 1 where the LLM's head is more than a linear layer.

    Under ZeRO-3 it is the greatest number of all ranks, which gather the head's weights together.
    """
    if body_of(language_model) is None:
        return 1
    if _is_partitioned(language_model):
        most = torch.tensor(tokens, device=next(language_model.parameters()).device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        tokens = int(most)
    vocabulary = int(language_model.config.get_text_config().vocab_size)
    return math.ceil(tokens / rows_at_once(vocabulary, most_bytes))


def body_of(language_model: Any) -> nn.Module | None:
    """The module that gives the hidden states [B, T, d] that the head reads; None where the logits
    are not the head's alone.
    """
    config = language_model.config.get_text_config()
    body, head = language_model.base_model, language_model.get_output_embeddings()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _SCALED)
    return None if body is language_model or head is None or scaled else body


def losses_at_once(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [K] float32 of `logits` [K, V], 0 where `targets` [K] are IGNORED."""
    return nn.functional.cross_entropy(
        logits.float(), targets, reduction="none", ignore_index=IGNORED
    )


def losses_in_pieces(
    hidden: torch.Tensor, targets: torch.Tensor, language_model: Any, pieces: int
) -> torch.Tensor:
    """As `losses_at_once`, of what the body gave, `hidden` [K, d]; the logits of one of the
    `pieces` are there at a time.
    """
    head = language_model.get_output_embeddings()

    def piece(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return losses_at_once(head(part), wanted)

    # Under ZeRO-3 the head has its weights only while it runs, which the kind of checkpoint that
    # does not re-enter the graph cannot follow.
    reentrant = _is_partitioned(language_model)
    parts = zip(hidden.tensor_split(pieces), targets.tensor_split(pieces), strict=True)
    done: list[Any] = [
        checkpoint(piece, part, wanted, use_reentrant=reentrant, preserve_rng_state=False)
        for part, wanted in parts
    ]
    return torch.cat(done)


def _is_partitioned(language_model: Any) -> bool:
    head = language_model.get_output_embeddings()
    return any(hasattr(parameter, "ds_id") for parameter in head.parameters())

"""The CLIP model: loading, checks, and embedding; long captions in windows that fit the tower."""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.transformer import text_global_pool
from safetensors import SafetensorError

from aligncurate.core.clip.resolve import ResolvedClip
from aligncurate.settings import LongCaptions, Precision
from alignshared import AlignError, InputError
from alignshared.errors import one_line

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_DETAIL = 300
# Errors of torch and safetensors for other files; KeyError is an unknown opcode.
_UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, EOFError, KeyError)
# Errors of open_clip for weights of another shape or kind.
_MISFITS = (
    RuntimeError,
    IndexError,
    AttributeError,
    ValueError,
    TypeError,
    AssertionError,
    StopIteration,
)
_PROBE = "a photo of a red bicycle leaning against a wall"

MAX_WINDOWS = 16
"""Maximum windows per caption; the rest is cut off. For CLIP this is 1,200 tokens."""

_REPEATED = "a " * 64
_REPEATED_LENGTH = 8


class ClipModel:
    """A CLIP in evaluation mode on one device; thread-safe.

    Weights stay in `precision`, since autocast on CPU would convert them at every call.

    Raises:
        InputError: the weights do not fit the architecture or are not a safe file, or the device
            does not compute in `precision`.
        AlignError: the model fails its checks (see `_check`).
    """

    def __init__(
        self,
        resolved: ResolvedClip,
        precision: Precision,
        device: str = "cpu",
        long_captions: LongCaptions = "truncate",
    ) -> None:
        if precision == "fp16" and device == "cpu":
            raise InputError("--precision fp16 needs a GPU; give bf16 or fp32 on a CPU.")
        self.device = torch.device(device)
        self.dtype = _DTYPES[precision]
        self._name = resolved.name
        # open_clip's towers are untyped.
        self._model: Any = _load(resolved).to(device=self.device, dtype=self.dtype).eval()
        self._tokenizer: Any = _tokenizer(resolved)
        self._causal_text = _causal_text_tower(self._model)
        mean, std = resolved.preprocess["mean"], resolved.preprocess["std"]
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self._windows = None
        if long_captions == "mean":
            context_length: int = self._tokenizer([_PROBE]).shape[1]
            self._windows = CaptionWindows(self._tokenizer, context_length)
        self._check()

    @torch.inference_mode()
    def embed_images(self, pixels_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit embeddings [N, d] float32 of `pixels_NHWC` [N, H, W, 3] uint8 from `pixel_view`."""
        pixels = torch.from_numpy(pixels_NHWC).to(self.device).permute(0, 3, 1, 2)
        # The arithmetic of torchvision's ToTensor and Normalize, in their order and precision.
        normal = pixels.contiguous().float().div_(255).sub_(self._mean).div_(self._std)
        return _unit(self._model.encode_image(normal.to(self.dtype)))

    @torch.inference_mode()
    def embed_captions(
        self, captions: Sequence[str]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return unit embeddings [N, d] float32 of `captions`, and which exceeded the context.

        The treatment of long captions leaves the embeddings of the others unchanged to the bit.
        """
        tokens = self._tokenizer(list(captions))
        truncated = self._truncated(captions, tokens)
        units = self._embed_tokens(tokens)
        long: list[int] = np.flatnonzero(truncated).tolist()
        if self._windows and long:
            windows = self._windows([captions[i] for i in long])
            units[long] = self._mean_of_windows(units[long], windows, len(captions))
        return units, truncated

    def _embed_tokens(self, tokens_NL: torch.Tensor) -> npt.NDArray[np.float32]:
        tokens = tokens_NL.to(self.device)
        if self._causal_text is None:
            return _unit(self._model.encode_text(tokens))
        return _unit(_encode_trimmed(self._causal_text, tokens))

    def _mean_of_windows(
        self, first_ND: npt.NDArray[np.float32], windows: list[torch.Tensor], batch_size: int
    ) -> npt.NDArray[np.float32]:
        """Unit vectors [N, d] along the mean of each caption's windows, given its first one's."""
        later = torch.cat([rows[1:] for rows in windows])
        caption = np.repeat(np.arange(len(windows)), [len(rows) - 1 for rows in windows])
        total_ND = first_ND.astype(np.float64)
        for begin in range(0, len(later), batch_size):
            part = slice(begin, begin + batch_size)
            np.add.at(total_ND, caption[part], self._embed_tokens(later[part]))
        lengths = np.linalg.norm(total_ND, axis=1, keepdims=True)
        return (total_ND / lengths).astype(np.float32)

    def _truncated(self, captions: Sequence[str], tokens_NL: torch.Tensor) -> npt.NDArray[np.bool_]:
        # A caption that fills its row either fits exactly or was cut; a longer row shows which.
        # Some tokenizers end with their padding token, so the last position alone is inconclusive.
        pad = _padding_of(self._tokenizer)
        used_N = used_tokens(tokens_NL, pad)
        truncated = np.zeros(len(captions), dtype=np.bool_)
        full: list[int] = torch.nonzero(used_N >= tokens_NL.shape[1] - 1).flatten().tolist()
        if full:
            rows = [captions[i] for i in full]
            longer = self._tokenizer(rows, context_length=tokens_NL.shape[1] + 1)
            truncated[full] = (used_tokens(longer, pad) > used_N[full]).numpy()
        return truncated

    def _check(self) -> None:
        """Check evaluation mode, that a caption embedded twice in one batch gives cosine 1, and
        that trimming padding changes nothing.

        Raises:
            AlignError: a check fails, so the scores would be meaningless.
        """
        tolerance = 1e-4 if self.dtype == torch.float32 else 2e-2
        if self._model.training:
            raise AlignError(f"{self._name} is not in evaluation mode; this is a bug, report it.")
        (first, second, _), _ = self.embed_captions([_PROBE, _PROBE, "x"])
        cosine = float(first @ second)
        if not abs(cosine - 1) < tolerance:
            raise AlignError(
                f"{self._name} gives one caption two embeddings (cosine {cosine:.4f}); "
                "its weights file is damaged or of another architecture."
            )
        with torch.inference_mode():
            padded = _unit(self._model.encode_text(self._tokenizer([_PROBE]).to(self.device)))
        if not abs(float(padded[0] @ first) - 1) < tolerance:
            raise AlignError(
                f"{self._name} gives another embedding when padding is cut off; report it."
            )


class CaptionWindows:
    """Windows of `context_length` tokens under an open_clip `tokenizer`.

    A window has the tokenizer's begin and end tokens, with as many caption tokens as fit
    between; each token is in one window.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._pad = _padding_of(tokenizer)
        # A repeated word, cut to a few tokens, reveals the begin and end tokens.
        row: list[int] = tokenizer([_REPEATED], context_length=_REPEATED_LENGTH)[0].tolist()
        word = max(row, key=row.count)
        first, last = row.index(word), _REPEATED_LENGTH - row[::-1].index(word)
        self._begin, self._end = row[:first], row[last:]

    def __call__(self, captions: list[str]) -> list[torch.Tensor]:
        """Return each caption's windows [W, context_length], W from 1 to MAX_WINDOWS.

        The first window is the tokenizer's output for the caption, cut to the context.
        """
        marks = len(self._begin) + len(self._end)
        inside = self._context_length - marks
        rows_NL = self._tokenizer(captions, context_length=MAX_WINDOWS * inside + marks)
        ends = used_tokens(rows_NL, self._pad).tolist()
        return [
            self._cut(row[:end], inside) for row, end in zip(rows_NL.tolist(), ends, strict=True)
        ]

    def _cut(self, tokens: list[int], inside: int) -> torch.Tensor:
        words = tokens[len(self._begin) :]
        if self._end and words[-len(self._end) :] == self._end:  # may equal the padding
            words = words[: -len(self._end)]
        windows = torch.full((max(-(-len(words) // inside), 1), self._context_length), self._pad)
        for i, window in enumerate(windows):
            row = [*self._begin, *words[i * inside : (i + 1) * inside], *self._end]
            window[: len(row)] = torch.tensor(row)
        return windows


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one core per calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_gpus() -> int:
    """Number of CUDA devices that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def score_pairs(
    image_embeddings_ND: npt.NDArray[np.float32], text_embeddings_ND: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Scores [N] float32: row-wise cosine of unit embeddings, clamped to [-1, 1]."""
    cosines = np.einsum("nd,nd->n", image_embeddings_ND, text_embeddings_ND, dtype=np.float32)
    return np.clip(cosines, -1.0, 1.0)


def _load(resolved: ResolvedClip) -> torch.nn.Module:
    _refuse_program(resolved.weights_path)
    brings_weights = resolved.open_clip_name.startswith(("local-dir:", "hf-hub:"))
    try:
        return open_clip.create_model(
            resolved.open_clip_name,
            pretrained=None if brings_weights else resolved.weights_path,
            force_quick_gelu=resolved.quick_gelu,
            require_pretrained=True,
            weights_only=True,
        )
    except _UNREADABLE as error:
        raise InputError(
            f"{resolved.weights_path} cannot be loaded without running code in it, or is damaged; "
            "give a .safetensors file or a plain state_dict."
        ) from error
    except _MISFITS as error:
        raise InputError(
            f"{resolved.weights_path} does not fit the architecture {resolved.name}: "
            f"{_shortened(error)}; give the weights that belong to it."
        ) from error


def _refuse_program(weights_path: str) -> None:
    if not zipfile.is_zipfile(weights_path):
        return
    with zipfile.ZipFile(weights_path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(
                f"{weights_path} is a TorchScript program, as OpenAI published its CLIPs, and is "
                "not run; give the same weights as .safetensors."
            )


def _tokenizer(resolved: ResolvedClip) -> Any:
    try:
        return open_clip.get_tokenizer(resolved.open_clip_name)
    except (ImportError, AttributeError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the tokenizer of {resolved.name} cannot be had ({_shortened(error)}); it may need "
            "the package transformers, or files that are not on this machine."
        ) from error


def _unit(embeddings: torch.Tensor) -> npt.NDArray[np.float32]:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def _causal_text_tower(model: Any) -> Any | None:
    """Return open_clip's text tower if it is causal: only then is trimming padding exact."""
    tower = getattr(model, "text", model)
    pooling = getattr(model, "text_pool_type", None) or getattr(tower, "pool_type", None)
    causal = getattr(tower, "attn_mask", None) is not None
    plain = getattr(tower, "cls_emb", None) is None
    return tower if causal and plain and pooling in ("argmax", "eos") else None


def _encode_trimmed(tower: Any, tokens_NL: torch.Tensor) -> torch.Tensor:
    """Text features [N, d], computed only up to the longest caption of the batch.

    Follows open_clip's `encode_text` on fewer columns. With the causal mask, a caption's last
    token never sees the padding after it.
    """
    pooling = getattr(tower, "text_pool_type", None) or tower.pool_type
    end_id = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    ends = tokens_NL.argmax(-1) if pooling == "argmax" else (tokens_NL == end_id).int().argmax(-1)
    length = int(ends.max()) + 1
    tokens = tokens_NL[:, :length]
    dtype = tower.transformer.get_cast_dtype()
    x_NLC = tower.token_embedding(tokens).to(dtype)
    x_NLC = x_NLC + tower.positional_embedding[:length].to(dtype)
    x_NLC = tower.transformer(x_NLC, attn_mask=tower.attn_mask[:length, :length])
    pooled_NC: torch.Tensor = text_global_pool(
        tower.ln_final(x_NLC), tokens, pooling, eos_token_id=end_id
    )
    projection = tower.text_projection
    if projection is None:
        return pooled_NC
    if isinstance(projection, torch.nn.Linear):
        return projection(pooled_NC)
    return pooled_NC @ projection


def _shortened(error: Exception) -> str:
    text = one_line(error)
    return text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]} ..."


def _padding_of(tokenizer: Any) -> int:
    """Padding token of an open_clip `tokenizer`."""
    return getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0


def used_tokens(tokens_NL: torch.Tensor, pad: int) -> torch.Tensor:
    """Number of tokens [N] before the padding of each row."""
    # A caption may contain the padding token, so tokens are not counted individually.
    is_token = tokens_NL != pad
    return (tokens_NL.shape[1] - is_token.flip(-1).int().argmax(-1)) * is_token.any(-1)

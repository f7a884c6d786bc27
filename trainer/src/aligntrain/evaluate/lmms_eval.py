# lmms-eval's types are meant for internal use, and it is not always installed.
# pyright: reportArgumentType=false, reportMissingImports=false
# pyright: reportUnknownVariableType=false, reportUntypedBaseClass=false
"""lmms-eval plug-in to run its tasks on AlignGPT models: `lmms-eval --model aligngpt`.

`aligntrain eval` does not use it. lmms-eval finds `manifest` by the entry point `lmms_eval.models`.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from lmms_eval.api.model import lmms

from alignshared import InputError
from aligntrain.evaluate.benchmarks import LOADER_TOKENS
from aligntrain.inference.generate import Question, generate_answers, messages_of
from aligntrain.inference.load import load_for_inference
from aligntrain.inference.steering import check_steering

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Return the entry of the model `aligngpt` in lmms-eval's registry."""
    # Imported here, as lmms_eval.models imports this module while being imported itself.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("aligngpt", simple_class_path=f"{__name__}.AlignGPTLmm")


class AlignGPTLmm(lmms):
    """Model of lmms-eval that answers greedily, with the checkpoint's own image preprocessing.

    `pretrained` is a run's folder or a model's own, and `level` forces that level's vector for
    questions with an image. Sampling, `until` and `image_aspect_ratio` of a task are ignored: the
    model ends its answers itself.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        device: str | None = None,
        batch_size: int | str = 1,
        level: int | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise InputError("which model is missing; give --model_args pretrained=FOLDER.")
        # In a tuple, as lmms-eval deletes attributes that are modules after each task.
        self._loaded = load_for_inference(pretrained, device=device or _local_gpu())
        check_steering(self._loaded[0].config, level)
        self._level = level
        self._batch_size = int(batch_size)
        self.device = self._loaded[0].device

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """Answer `requests` in order; they may come from tasks with different limits."""
        texts: dict[int, str] = {}
        for limit in {_max_new_tokens(request) for request in requests}:
            indices = [i for i, request in enumerate(requests) if _max_new_tokens(request) == limit]
            answers = generate_answers(
                *self._loaded,
                (self._question(requests[i]) for i in indices),
                max_new_tokens=limit,
                batch_size=self._batch_size,
                shorten=True,
            )
            texts |= {i: reply.text for i, reply in zip(indices, answers, strict=True)}
        return [texts[i] for i in range(len(requests))]

    def _question(self, request: "Instance") -> Question:
        arguments: tuple[Any, ...] = request.args
        text, _, images_of, row, task, split = arguments
        images = images_of(self.task_dict[task][split][row]) or []
        level = self._level if images else None
        return Question(messages_of(text, images), level, name=f"{task}, row {row}")

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        raise NotImplementedError("this model only generates; take the task's generating form.")

    def generate_until_multi_round(self, requests: "list[Instance]") -> list[str]:
        raise NotImplementedError("this model answers one question at a time.")


def _local_gpu() -> str | None:
    """Return the GPU of LOCAL_RANK if a launcher started several processes."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def _max_new_tokens(request: "Instance") -> int:
    arguments: tuple[Any, ...] = request.args
    return int(arguments[1].get("max_new_tokens", LOADER_TOKENS))

"""transformers' common model tests, out of its source release, with a tester of our model.

`test_transformers_suite` fetches them, and runs this file in a process of its own.
"""

import importlib
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import torch

from aligntrain.model import AlignGPTForConditionalGeneration
from tests.trainer import tiny

_FETCHED = Path(os.environ["TRANSFORMERS_SUITE"])
_LACKING = {
    "generation.test_utils": "GenerationTesterMixin",
    "exporters.test_export": "ExportTesterMixin",
}
"""Modules that the release does not have, and what is imported from them."""


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


def _common() -> Any:
    sys.path.append(str(_FETCHED / "lib"))
    _module("suite", __path__=[str(_FETCHED / "tests")])
    for name, mixin in _LACKING.items():
        _module(f"suite.{name.partition('.')[0]}", __path__=[])
        _module(f"suite.{name}", **{mixin: type(mixin, (), {})})
    return importlib.import_module("suite.test_modeling_common")


common = _common()


class Tester:
    """What the tests ask of a model's own tester."""

    is_training = True
    batch_size = 3
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    seq_length = 1 + tiny.IMAGE_TOKENS + 7

    def get_config(self) -> Any:
        text = tiny.text_config(pad_token_id=1)  # some tests make the vocabulary smaller
        return tiny.config(vision_config=tiny.vision_config(num_hidden_layers=2), text_config=text)

    @property
    def vision_config(self) -> dict[str, Any]:
        return self.get_config().vision_config.to_dict()

    @property
    def text_config(self) -> dict[str, Any]:
        return self.get_config().text_config.to_dict()

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = common.ids_tensor([self.batch_size, self.seq_length], 200) + 2
        ids[:, 0] = config.align_token_id
        ids[:, 1 : 1 + config.image_tokens] = config.image_token_id
        size = [self.batch_size, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE]
        return config, {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": common.floats_tensor(size),
        }


class ModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AlignGPTForConditionalGeneration,)
    _is_composite = True
    test_all_params_have_gradient = False  # features come from the tower's last layer but one

    def setUp(self) -> None:
        self.model_tester = Tester()

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})

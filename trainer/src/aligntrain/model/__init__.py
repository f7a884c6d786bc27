"""AlignGPT model in transformers' conventions, registered with its Auto classes."""

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from aligntrain.model.alignment import Alignment, AlignmentGate
from aligntrain.model.build import build_model, build_processor
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.modeling import AlignGPTForConditionalGeneration, AlignGPTOutput
from aligntrain.model.processing import AlignGPTProcessor

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTOutput",
    "AlignGPTProcessor",
    "Alignment",
    "AlignmentGate",
    "build_model",
    "build_processor",
]

AutoConfig.register(AlignGPTConfig.model_type, AlignGPTConfig, exist_ok=True)
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(AlignGPTConfig, AlignGPTForConditionalGeneration, exist_ok=True)
AutoProcessor.register(AlignGPTConfig, AlignGPTProcessor, exist_ok=True)

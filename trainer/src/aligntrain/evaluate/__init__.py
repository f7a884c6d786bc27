"""The paper's benchmarks, asked as the paper asks them."""

from aligntrain.evaluate.judge import Judge
from aligntrain.evaluate.run import Evaluation, Settings, evaluate

__all__ = ["Evaluation", "Judge", "Settings", "evaluate"]

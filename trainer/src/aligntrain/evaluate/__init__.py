"""The paper's benchmarks with the paper's protocol."""

from aligntrain.evaluate.compare import Comparison, check_against, compare
from aligntrain.evaluate.judge import Judge
from aligntrain.evaluate.run import Evaluation, Settings, evaluate

__all__ = [
    "Comparison",
    "Evaluation",
    "Judge",
    "Settings",
    "check_against",
    "compare",
    "evaluate",
]

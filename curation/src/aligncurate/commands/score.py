"""`aligncurate score`."""

from typing import Any

from aligncurate import terminal
from aligncurate.commands.options import options_from
from aligncurate.settings import Execution, ScoreSettings


@options_from(ScoreSettings, Execution)
def score(settings: dict[str, Any], execution: dict[str, Any]) -> None:
    """Score pairs: write each with the cosine of its image and caption under CLIP."""
    # Wrong options are refused before torch is loaded.
    execution_settings = Execution(**execution)
    ScoreSettings(**settings)

    from aligncurate.progress import showing
    from aligncurate.stages.score import score

    dataset = score(
        **settings,
        execution=execution_settings,
        show_progress=lambda task, total, done: showing(task, total, "pairs", terminal.notes, done),
    )
    terminal.show_scored(dataset)

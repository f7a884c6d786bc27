"""`import aligntrain` makes transformers know the model, whichever was imported first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import tiny

FROM_HERE = "from transformers import AutoConfig"
LOAD = "print(AutoConfig.from_pretrained(sys.argv[1]).model_type)"
ORDERS = {
    "aligntrain first": f"import sys, aligntrain; {FROM_HERE}; {LOAD}",
    "transformers first": f"import sys; {FROM_HERE}; import aligntrain; {LOAD}",
    "a module of it": f"import sys, aligntrain.model.modeling; {FROM_HERE}; {LOAD}",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_auto_classes_know_it(tmp_path: Path, order: str) -> None:
    tiny.config().save_pretrained(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", order, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "aligngpt", run.stderr

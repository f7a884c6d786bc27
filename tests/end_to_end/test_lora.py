"""LoRA on the demo's model by the command line: run, stop, go on, merge, ask."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aligntrain.inference.load import load_model
from aligntrain.runs.folder import read_metrics

ROOM = Path("runs/demo-finetune")
RUN = (
    "aligntrain run finetune --recipe demo --data ingest --from none --set lora.rank=16 "
    "--set optimizer.llm_lr=1e-3 --set max_steps=6 --set checkpoint.every=3 "
    "--set checkpoint.keep=2 --set optimizer.warmup_ratio=0 "
    "--set log.validate_samples=8 --set log.every=1"
)


def command(workdir: Path, line: str, *, code: int = 0) -> str:
    """What the command `line` prints."""
    name, *arguments = shlex.split(line)
    program = Path(sys.executable).with_name(name)
    run = subprocess.run(
        [program, *arguments], cwd=workdir, capture_output=True, text=True, check=False
    )
    assert run.returncode == code, run.stderr
    return run.stdout if code == 0 else run.stderr


def stop_in_the_middle(run: Path) -> None:
    """Leave of the finished `run` what there was after its third step."""
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    shutil.rmtree(run / "export")
    (run / "finished.json").unlink()


def logits(model: Any, processor: Any, image: Path) -> torch.Tensor:
    content = [{"type": "image", "image": str(image)}, {"type": "text", "text": "What is this?"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True,
    )  # fmt: skip
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_few_steps_to_a_whole_model_that_answers(workdir: Path, repository: Path) -> None:
    build = repository / "pipelines/demo_data/build_instructions.py"
    subprocess.run([sys.executable, build, "--output", "instructions"], check=True)
    command(workdir, "aligncurate ingest --input instructions/instructions.json --output ingest")

    assert "loss" in command(workdir, RUN)
    lines = read_metrics(ROOM)
    whole = [line["loss"] for line in lines if "loss" in line]
    assert len(whole) == 6
    assert sum(whole[3:]) < sum(whole[:3])
    assert set(lines[0]["learning_rate"]) == {"projector", "gate", "lora"}

    stop_in_the_middle(ROOM)
    assert "--resume" in command(workdir, RUN, code=2)
    says = command(workdir, f"{RUN} --resume --set lora.rank=8", code=2)
    assert "lora.rank: 16 there, 8 here" in says
    command(workdir, f"{RUN} --resume")
    assert [line["loss"] for line in read_metrics(ROOM) if "loss" in line] == whole

    told = command(workdir, f"aligntrain merge {ROOM} models/mine")
    assert "LoRA merged into 28 matrices" in told  # 4 layers of 7
    assert "exists already" in command(workdir, f"aligntrain merge {ROOM} models/mine", code=2)
    assert "has no LoRA to merge" in command(workdir, "aligntrain merge models/mine other", code=2)
    small, large = (
        sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        for folder in (ROOM / "export", "models/mine")
    )
    assert small < 0.3 * large  # most of it the projector, which takes a whole image at once

    image = (
        Path("instructions")
        / json.loads(Path("instructions/questions.json").read_text())[0]["image"]
    )
    pair = [logits(*load_model(folder), image) for folder in (ROOM, "models/mine")]
    torch.testing.assert_close(pair[0], pair[1], atol=1e-3, rtol=1e-4)
    asked = f"--image {image} --prompt 'What is this?' --max-new-tokens 12"
    answers = [command(workdir, f"aligntrain chat {f} {asked}") for f in (ROOM, "models/mine")]
    assert answers[0] == answers[1]
    assert answers[0].strip()

"""Tokens per second of fine-tuning, beside transformers' LLaVA under its own Trainer with padded
batches, and beside the bare LLM on as many random tokens: packed into one row, in which each sees
all before it, and in rows of the samples' mean length, which is the least that attention can cost.

All train everything but the vision tower, in fp32, on the records of `peers/talks.py`, in
processes of their own that take turns, 16 at a time as LLaVA-1.5 was fine-tuned. Tokens are those
of text and images, padding not. The first step of each is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.talks import IMAGE_TOKENS, LLM, MAX_LENGTH, write_talks, write_towers
from recording import record, table

PACKAGES = ["aligntrain", "torch", "transformers", "deepspeed"]
PEERS = Path(__file__).parent / "peers"
LEAST_OF_LLAVA, LEAST_OF_LLM = 1.5, 0.9

LABELS = {
    "packed": "aligntrain, packed",
    "padded": "aligntrain, padded",
    "llava": "transformers' LLaVA and Trainer, padded",
    "llm": "bare LLM, packed random tokens",
    "rows": "bare LLM, random tokens in rows of the mean length",
}

Measured = dict[str, float]


class Contenders:
    """Each makes `steps` steps of `batch` samples in a process of its own."""

    def __init__(self, folder: Path, steps: int, batch: int) -> None:
        self._folder, self._steps, self._batch = folder, steps, batch
        self._vision, self._llm = write_towers(folder)
        self._data = write_talks(folder, count=steps * batch + batch).location
        self._tokens = 0

    def run(self, name: str, turn: int) -> Measured:
        """Tokens, seconds and the share of padding of turn `turn` of `name`."""
        if name in ("packed", "padded"):
            return self._ours(packed=name == "packed", turn=turn)
        if name == "llava":
            arguments = ["--vision", self._vision, "--data", self._data, "--batch", self._batch]
            arguments += ["--output", self._folder / f"llava-{turn}"]
            arguments += ["--image-tokens", IMAGE_TOKENS, "--max-length", MAX_LENGTH]
        else:
            rows = 1 if name == "llm" else self._batch
            arguments = ["--tokens", self._tokens, "--rows", rows]
        arguments += ["--llm", self._llm, "--steps", self._steps]
        peer = PEERS / ("llava_trainer.py" if name == "llava" else "bare_llm.py")
        return json.loads(_call([sys.executable, peer, *arguments]).splitlines()[-1])

    def _ours(self, *, packed: bool, turn: int) -> Measured:
        run = self._folder / f"{'packed' if packed else 'padded'}-{turn}"
        recipe = self._folder / "quarter.yaml"
        recipe.write_text(self._recipe(), encoding="utf-8")
        _call(
            [
                Path(sys.executable).with_name("aligntrain"), "run", "finetune",
                "--recipe", recipe, "--data", self._data, "--output", run,
                "--from", "none", "--set", f"batch.packing={json.dumps(packed)}",
            ]
        )  # fmt: skip
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [line for line in map(json.loads, lines) if "step_s" in line][1:]
        seconds = sum(line["step_s"] for line in steps)
        tokens = sum(line["tokens_per_s"] * line["step_s"] for line in steps)
        self._tokens = round(tokens / len(steps))  # as many as a packed row of ours has
        return {
            "tokens": tokens,
            "seconds": seconds,
            "padding": statistics.fmean(line["padding"] for line in steps),
            "waiting": sum(line["data_wait_s"] for line in steps) / seconds,
        }

    def _recipe(self) -> str:
        return f"""
common:
  model: {{vision_tower: {self._vision}, llm: {self._llm}, levels: 8}}
  data: {{max_length: {MAX_LENGTH}, workers: 1, template: chat, aspect: crop, verify: false}}
  precision: fp32
  optimizer: {{lr: 2e-5}}
  batch: {{global_size: {self._batch}, micro_size: {self._batch}}}
  max_steps: {self._steps}
  checkpoint: {{every: 100000}}
  log: {{every: 1}}
pretrain: {{}}
finetune: {{}}
"""


def _call(command: list[Any]) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(contenders: Contenders, names: list[str], rounds: int) -> dict[str, list[Measured]]:
    """`rounds` rounds, in each of which every contender has its turn."""
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            measured = contenders.run(name, turn)
            rate = measured["tokens"] / measured["seconds"]
            sys.stdout.write(f"{name}: {rate:.0f} tokens/s, {measured}\n")
            sys.stdout.flush()
            found[name].append(measured)
    return found


def summary(found: dict[str, list[Measured]]) -> dict[str, Measured]:
    """The median rate of each contender, and its padding."""
    return {
        name: {
            "tokens_per_s": statistics.median(t["tokens"] / t["seconds"] for t in turns),
            "padding": statistics.fmean(t["padding"] for t in turns),
            **({"waiting": max(t["waiting"] for t in turns)} if "waiting" in turns[0] else {}),
        }
        for name, turns in found.items()
    }


def report(results: dict[str, Any]) -> str:
    """The page: the table, the demands, and what was run."""
    summaries: dict[str, Measured] = results["summaries"]
    ours = summaries["packed"]["tokens_per_s"]
    rows = [
        [
            LABELS[name],
            f"{found['tokens_per_s']:.0f}",
            f"{ours / found['tokens_per_s']:.2f}",
            f"{100 * found['padding']:.1f} %",
            f"{100 * found['waiting']:.2f} %" if "waiting" in found else "",
        ]
        for name, found in summaries.items()
    ]
    header = ["contender", "tokens/s", "packed is × as fast", "padding", "waiting for data"]
    demands = [
        f"- Ours over {what}: {ours / summaries[name]['tokens_per_s']:.2f}, demanded {least} or "
        f"more: {'met' if ours / summaries[name]['tokens_per_s'] >= least else 'not met'}."
        for name, what, least in (
            ("llava", "LLaVA under Trainer", LEAST_OF_LLAVA),
            ("llm", "the bare LLM on packed tokens", LEAST_OF_LLM),
        )
        if name in summaries
    ]
    sizes = ", ".join(f"{key} {value}" for key, value in LLM.items() if "token_id" not in key)
    return "\n".join(
        [
            table(header, rows), "", *demands, "",
            f"{results['steps']} steps of {results['batch']} samples, {results['rounds']} rounds, "
            f"fp32, {results['cores']} cores; {IMAGE_TOKENS} tokens an image. LLM: Llama, {sizes}. "
            "Ours also trains and computes the gate and the alignment table. The vision tower's "
            "work is in all but the lines of the bare LLM.",
        ]
    )  # fmt: skip


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(LABELS), default=list(LABELS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        contenders = Contenders(Path(temporary), given.steps, given.batch)
        found = measure(contenders, given.only, given.rounds)
    results = {
        "steps": given.steps,
        "batch": given.batch,
        "rounds": given.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "turns": found,
        "summaries": summary(found),
    }
    record("train_step", "Speed of a training step", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()

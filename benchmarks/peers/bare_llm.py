"""The LLM alone, forward, backward and AdamW, on random tokens without padding: the ceiling."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Make `--steps` steps on `--tokens` tokens in `--rows` rows of one length; tell the seconds of
    all but the first.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", type=Path, required=True)
    for name in ("tokens", "rows", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(given.llm, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, model.config.vocab_size, (given.rows, given.tokens // given.rows))
    began = 0.0
    for step in range(given.steps):
        if step == 1:
            began = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    report = {"tokens": ids.numel() * (given.steps - 1), "seconds": seconds, "padding": 0.0}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()

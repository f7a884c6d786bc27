"""The LLM alone, forward, backward and AdamW, on packed random tokens: the ceiling."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Make `--steps` steps on one row of `--tokens` tokens; tell the seconds of all but the
    first.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(given.llm, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, model.config.vocab_size, (1, given.tokens))
    began = 0.0
    for step in range(given.steps):
        if step == 1:
            began = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    report = {"tokens": given.tokens * (given.steps - 1), "seconds": seconds, "padding": 0.0}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()

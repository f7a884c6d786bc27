"""What `aligntrain serve` answers under load, beside the same server answering one at a time.

Clients ask one question after the other about the demo's images and read the answers as streams.
Both servers run in processes of their own, and are asked in turn.
"""

import argparse
import asyncio
import base64
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from peers.corpus import demo_drawings
from recording import record, table

QUESTIONS = (
    "What is this?",
    "Describe the image.",
    "Which group does this image belong to: food, animals, people, or something else?",
    "What colours are in it?",
)


@dataclass(frozen=True)
class Answered:
    """One request: seconds to the first words and to the end, and the tokens of the answer."""

    first: float
    whole: float
    tokens: int


@contextmanager
def serving(model: Path, batch: int) -> Iterator[str]:
    """The address of a server that writes `batch` answers together."""
    command = [
        str(Path(sys.executable).with_name("aligntrain")), "serve", str(model), "--port", "0",
        "--name", "model", "--batch", str(batch), "--timeout", "3600",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://\S+)/v1", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}")
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def bodies(count: int, tokens: int) -> list[dict[str, Any]]:
    """`count` requests about as many of the demo's drawings, spread evenly."""
    drawings = demo_drawings()
    asked: list[dict[str, Any]] = []
    for i in range(count):
        data: bytes = drawings[i * len(drawings) // count]["image"]["bytes"]
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": QUESTIONS[i % len(QUESTIONS)]},
        ]
        asked.append(
            {
                "model": "model", "messages": [{"role": "user", "content": content}],
                "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
            }
        )  # fmt: skip
    return asked


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Answered | None:
    """One request, its answer read to the end; None if it was refused or broke off."""
    began = time.perf_counter()
    first, tokens, done = None, 0, False
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answered:
        if answered.status_code != 200:
            sys.stderr.write(f"{(await answered.aread()).decode()}\n")
            return None
        async for line in answered.aiter_lines():
            if not line.startswith("data: "):
                continue
            first = first or time.perf_counter() - began
            done = line == "data: [DONE]"
            if not done and (usage := json.loads(line[6:]).get("usage")):
                tokens = usage["completion_tokens"]
    if first is None or not done:
        return None
    return Answered(first, time.perf_counter() - began, tokens)


async def load(url: str, clients: int, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `clients` meet that share `asked` among them, each asking again when it is answered."""
    waiting = iter(asked)
    asked_for: list[Answered | None] = []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:

        async def one() -> None:
            for body in waiting:
                try:
                    asked_for.append(await ask(client, url, body))
                except httpx.HTTPError as error:
                    sys.stderr.write(f"{error!r}\n")
                    asked_for.append(None)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds = time.perf_counter() - began
    answers = [one for one in asked_for if one is not None]
    if not answers:
        raise SystemExit("no request was answered")
    whole, first = [a.whole for a in answers], [a.first for a in answers]
    return {
        "clients": clients,
        "requests": len(asked),
        "failed": len(asked_for) - len(answers),
        "requests_per_s": round(len(answers) / seconds, 3),
        "tokens_per_s": round(sum(a.tokens for a in answers) / seconds, 1),
        "latency_p50_s": round(statistics.median(whole), 3),
        "latency_p95_s": round(_high(whole), 3),
        "first_token_p50_s": round(statistics.median(first), 3),
        "first_token_p95_s": round(_high(first), 3),
    }


def _high(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[min(len(values) - 1, round(0.95 * (len(values) - 1)))]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/demo-finetune"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--batch", type=int, default=16, help="answers written together")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument(
        "--requests", type=int, default=2, help="of each client, at least 16 in all"
    )
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    with serving(given.model, given.batch) as together, serving(given.model, 1) as alone:
        for url in (together, alone):  # the first answers of a process take longer
            asyncio.run(load(url, 4, bodies(4, given.tokens)))
        for clients in given.clients:
            asked = bodies(max(16, given.requests * clients), given.tokens)
            for name, url in (
                (f"up to {given.batch} together", together),
                ("one at a time", alone),
            ):
                results.append({"answers": name, **asyncio.run(load(url, clients, asked))})
                sys.stderr.write(f"{results[-1]}\n")
    header = ["clients", "answers", "requests", "failed", "requests/s", "tokens/s",
              "latency p50 (s)", "p95", "first token p50 (s)", "p95"]  # fmt: skip
    keys = ["clients", "answers", "requests", "failed", "requests_per_s", "tokens_per_s",
            "latency_p50_s", "latency_p95_s", "first_token_p50_s", "first_token_p95_s"]  # fmt: skip
    rows = [[one[key] for key in keys] for one in results]
    report = (
        f"The model in `{given.model.name}`, answers of at most {given.tokens} tokens, each with"
        " an image of the demo, streamed. Clients ask again as soon as they are "
        "answered; clients and server share the machine.\n\n" + table(header, rows)
    )
    packages = ["torch", "transformers", "starlette", "uvicorn"]
    record("serve_load", "Answers under load", packages, results, report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()

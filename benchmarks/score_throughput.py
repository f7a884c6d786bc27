"""Pairs per second of `aligncurate score` on CPU, beside the bare forward pass of the same model, a
plain open_clip loop, clip-retrieval and data-juicer, on the same pairs and weights.

Each contender runs as a process of its own, once on all pairs and once on a few. The difference of
the two runs is the work; what the run on a few takes beyond its share of the work is the start-up
(imports, loading the model, ending). Contenders take turns, and medians over the rounds count.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from peers.contenders import BATCH, CORES, Contender, contenders, make_environment
from peers.corpus import Corpus, make_corpus
from peers.running import Turn, run
from recording import record, table

PACKAGES = ["aligncurate", "open_clip_torch", "torch", "ray", "pillow"]
FEW = 2 * BATCH
FORWARD_PAIRS = 1280
LEAST_OF_FORWARD, LEAST_OF_PEER = 0.9, 1.3

Scores = dict[str, float]
Summary = dict[str, float]


class Measurement:
    """The turns of all contenders, and the scores that each gave."""

    def __init__(self, model: str, folder: Path) -> None:
        self.turns: list[Turn] = []
        self.forward: list[dict[str, float]] = []
        self.scores: dict[str, Scores] = {}
        self._model = model
        self._folder = folder

    def take_turn(self, name: str, contender: Contender, corpus: Corpus) -> None:
        """Run `contender` once on `corpus`; keep its time and, of more than FEW pairs, its scores.

        Raises:
            RuntimeError: it failed, or did not score every pair.
        """
        output = self._folder / f"{name}-{corpus.count}"
        turn = run(name, contender, corpus, self._model, output)
        sys.stdout.write(f"{name}: {turn.pairs} pairs in {turn.seconds:.1f} s\n")
        sys.stdout.flush()
        self.turns.append(turn)
        scores = contender.scores(output)
        if len(scores) != corpus.count:
            raise RuntimeError(f"{name} scored {len(scores)} of {corpus.count} pairs")
        if name == "forward":
            self.forward.append(json.loads((output / "rates.json").read_text(encoding="utf-8")))
        if corpus.count > FEW:
            self.scores[name] = scores
        shutil.rmtree(output)

    def summary(self, name: str) -> Summary:
        """Pairs per second after start-up, seconds of start-up, and cores kept busy by the work."""
        if name == "forward":
            ways = {way: statistics.median(f[way] for f in self.forward) for way in self.forward[0]}
            return {"pairs_per_s": max(ways.values()), **ways}
        turns = [turn for turn in self.turns if turn.contender == name]
        many = [turn for turn in turns if turn.pairs > FEW]
        few = [turn for turn in turns if turn.pairs == FEW]

        def work(of: Callable[[Turn], float]) -> float:
            return statistics.median(map(of, many)) - statistics.median(map(of, few))

        seconds = work(lambda turn: turn.seconds)
        # On a busy machine the run on all pairs may be the shorter one: then nothing is known.
        rate = (many[0].pairs - FEW) / seconds if seconds > 0 else math.nan
        summary = {
            "pairs_per_s": rate,
            "start_up_s": statistics.median(turn.seconds for turn in few) - FEW / rate,
        }
        if name != "ray":  # its processes are not children of the one that is measured
            summary["cores_busy"] = work(lambda turn: turn.cpu_seconds) / seconds
        return summary

    def disagreement(self, name: str) -> float | None:
        """Largest absolute difference of the scores of `name` from ours, over pairs of both."""
        ours, theirs = self.scores.get("ours"), self.scores.get(name)
        if ours is None or theirs is None:
            return None
        return max(abs(ours[id_] - score) for id_, score in theirs.items())


def measure(measurement: Measurement, names: list[str], pairs: int, repeats: int) -> None:
    """`repeats` rounds, in each of which every contender has its turn."""
    few, all_pairs = make_corpus(FEW), make_corpus(pairs)
    in_memory = make_corpus(min(pairs, FORWARD_PAIRS))
    for _ in range(repeats):
        for name in names:
            contender = contenders()[name]
            if name == "forward":
                measurement.take_turn(name, contender, in_memory)
                continue
            measurement.take_turn(name, contender, few)
            measurement.take_turn(name, contender, all_pairs)


def caption_facts(corpus: Corpus, model: str) -> dict[str, float]:
    """Tokens per caption, start and end included, and the longest caption of each batch."""
    tokens_NL = open_clip.get_tokenizer(model)(list(corpus.captions().values()))
    lengths = (tokens_NL != 0).sum(1).numpy()
    longest = [lengths[first : first + BATCH].max() for first in range(0, len(lengths), BATCH)]
    return {
        "mean": round(float(lengths.mean()), 1),
        "p99": float(np.percentile(lengths, 99)),
        "mean_longest_of_batch": round(float(np.mean(longest)), 1),
    }


def ratios(summaries: dict[str, Summary]) -> dict[str, float]:
    """Ours (fp32, in process) over the ceiling and over each peer; what was not measured is not in
    it.
    """
    rates = {name: summary["pairs_per_s"] for name, summary in summaries.items()}
    if "ours" not in rates:
        return {}
    found = {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
    splits = [found[n] for n in ("clip-retrieval", "clip-retrieval-split") if n in found]
    return found | ({"clip-retrieval at its best": min(splits)} if splits else {})


def report(results: dict[str, Any]) -> str:
    """The page: the table, the demands, and what was compared with what."""
    summaries, over = results["summaries"], results["ours_over"]
    rows = [
        [
            contenders()[name].label,
            f"{summary['pairs_per_s']:.2f}",
            f"{over[name]:.2f}" if name in over else "",
            _number(summary.get("start_up_s"), ".1f"),
            _number(summary.get("cores_busy"), ".2f"),
            _number(results["largest_score_difference"].get(name), ".1e"),
        ]
        for name, summary in summaries.items()
    ]
    header = [
        "contender", "pairs/s", "aligncurate fp32 is × as fast", "start-up s", "cores busy",
        "largest score difference from aligncurate fp32",
    ]  # fmt: skip
    demands = [
        f"- Ours over {label}: {over[name]:.2f}, demanded {least} or more: "
        f"{'met' if over[name] >= least else 'not met'}."
        for name, label, least in (
            ("forward", "the bare forward pass", LEAST_OF_FORWARD),
            ("clip-retrieval at its best", "clip-retrieval at its best", LEAST_OF_PEER),
        )
        if name in over
    ]
    return "\n\n".join([table(header, rows), "\n".join(demands), _conditions(results)])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _conditions(results: dict[str, Any]) -> str:
    captions, forward = results["caption_tokens"], results["summaries"].get("forward", {})
    ways = ", ".join(f"{w} {rate:.2f}" for w, rate in forward.items() if w != "pairs_per_s")
    versions = "; ".join(
        f"{peer}: " + ", ".join(f"{package} {number}" for package, number in packages.items())
        for peer, packages in results["peer_versions"].items()
    )
    lines = [
        f"{results['pairs']:,} pairs ({results['model']}, random weights, the same for all, fp32 "
        f"but for the line that says bf16), {results['repeats']} round(s), {CORES} cores, batches "
        f"of {BATCH}. Rate: {results['pairs']:,} pairs less {FEW}, over the difference of the two "
        "runs' wall-clock times, each from the start of the command to its end. Start-up: the "
        f"run on {FEW} pairs less their share of the work.",
        f"Captions have {captions['mean']} tokens on average, {captions['p99']:.0f} at the 99th "
        f"percentile; the longest of a batch {captions['mean_longest_of_batch']} on average, and "
        "aligncurate and the bare forward pass compute as many columns. The open_clip loop and "
        "clip-retrieval compute 77; data-juicer takes one pair at a time, without padding.",
        f"Bare forward pass: tensors of the first {min(results['pairs'], FORWARD_PAIRS):,} pairs "
        f"in memory, each batch both ways, the better counts ({ways} pairs/s).",
        "clip-retrieval computes embeddings only, which it stores as float16; the dot product is "
        "not in its time. The standard deviation of our scores is "
        f"{results['score_standard_deviation']:.1e}.",
        f"Peers: {versions or 'not measured'}.",
    ]
    return "\n\n".join(lines)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000, help="more than 128 (default: 5000)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds (default: 1)")
    parser.add_argument("--only", nargs="+", choices=list(contenders()), help="default: all")
    parser.add_argument("--model", default="ViT-B-32", help="architecture (default: ViT-B-32)")
    given = parser.parse_args()
    if given.pairs <= FEW:
        parser.error(f"--pairs must be more than {FEW}, which the start-up is measured on")
    names = list(given.only or contenders())
    peers = {peer for name in names if (peer := contenders()[name].peer)}
    versions = {peer: make_environment(peer) for peer in sorted(peers)}
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(given.model, Path(folder))
        measure(measurement, names, given.pairs, given.repeats)
    summaries = {name: measurement.summary(name) for name in names}
    ours = list(measurement.scores.get("ours", {"": 0.0}).values())
    results = {
        **{key: vars(given)[key] for key in ("model", "pairs", "repeats")},
        "summaries": summaries,
        "ours_over": ratios(summaries),
        "largest_score_difference": {name: measurement.disagreement(name) for name in names},
        "score_standard_deviation": float(np.std(ours)),
        "caption_tokens": caption_facts(make_corpus(given.pairs), given.model),
        "peer_versions": versions,
        "turns": [asdict(turn) for turn in measurement.turns],
    }
    page = report(results)
    record("score_throughput", "Throughput of scoring", PACKAGES, results, page)
    sys.stdout.write(page + "\n")


if __name__ == "__main__":
    main()

"""`aligncurate.score` as a process of its own, as a user would call it."""

import argparse

from aligncurate import Execution, score


def main() -> None:
    """Score what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--input", "--image-root", "--output", "--model", "--weights"):
        parser.add_argument(name, required=True)
    parser.add_argument("--engine", choices=["local", "ray"], required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--shard-rows", type=int)
    given = parser.parse_args()
    score(
        given.input,
        given.output,
        image_root=given.image_root,
        model=given.model,
        weights=given.weights,
        precision=given.precision,
        shard_rows=given.shard_rows,
        execution=Execution(engine=given.engine, gpus=0),
    )


if __name__ == "__main__":
    main()

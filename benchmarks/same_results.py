"""Compare what two checkouts compute: scores, levels, losses, weights and answers, to the bit.

uv run python benchmarks/same_results.py OLD_CHECKOUT NEW_CHECKOUT [--work DIR]

Only command lines run, each in its checkout's own environment, so the layout of the code does not
matter. DIR/old and DIR/new keep the results: a later call repeats nothing of the same commit.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STEPS = (
    "--set max_steps=20 --set log.validate_samples=16 --set batch.global_size=2 "
    "--set batch.micro_size=2"
)
TINY = "--recipe tiny.yaml --set max_steps=6"
COMMANDS = {  # by the folder that each writes, in their order
    "score": "aligncurate score --input demo --output score --embeddings",
    "dedup": "aligncurate dedup --input score --output dedup",
    "bucket": "aligncurate bucket --input score --output bucket --levels 8",
    "equal-width": "aligncurate bucket --input dedup --output equal-width --scheme equal-width",
    "filter": "aligncurate filter --input bucket --output filter --levels 3-8 --min-size 20 "
    "--max-score 0.7",
    "where": "aligncurate filter --input bucket --output where --top 0.5 --where 'width > 10'",
    "sample": "aligncurate sample --input bucket --output sample --rows 300",
    "report": "aligncurate report --input bucket --output report",
    "llava": "aligncurate export --input filter --output llava --format llava",
    "tars": "aligncurate export --input filter --output tars --format webdataset",
    "instructions": "python pipelines/demo_data/build_instructions.py --output instructions",
    "ingest": "aligncurate ingest --input instructions/instructions.json --output ingest",
    "tiny": "aligntrain run pretrain --recipe tiny.yaml --data bucket --output tiny",
    "tuned": "aligntrain run finetune --recipe tiny.yaml --data ingest --output tuned --from tiny",
    "resumed": "aligntrain run finetune --recipe tiny.yaml --data ingest --output resumed "
    "--from tiny --resume",
    "packed": f"aligntrain run finetune {TINY} --data ingest --output packed --from tiny "
    "--set batch.packing=true",
    "two": f"aligntrain run pretrain {TINY} --data bucket --output two --nproc 2 "
    "--set zero_stage=2",
    # Dropout is off: the seed of a step is no part of what must stay.
    "lora": f"aligntrain run finetune {TINY} --data ingest --output lora --from tiny "
    "--set lora.rank=4 --set lora.dropout=0",
    "merged": "aligntrain merge lora merged",
    "plain": f"aligntrain run finetune {TINY} --data ingest --output plain --from none "
    "--set model.mixing=none",
    "exported": "aligntrain export plain exported --format llava",
    "pretrain": f"aligntrain run pretrain --data bucket --output pretrain {STEPS}",
    "finetune": f"aligntrain run finetune --data ingest --output finetune --from pretrain {STEPS}",
    "eval": "aligntrain eval finetune --benchmarks pope --data benchmarks --output eval "
    "--batch-size 4 --max-new-tokens 6",
    "gate": "aligntrain gate finetune --data ingest --output gate --limit 48 --sweep "
    "--sweep-limit 8",
}
RECIPE = """
common:
  model: {vision_tower: towers/vision, llm: towers/llm, levels: 8}
  data: {max_length: 200, validation_share: 0.1, workers: 0}
  precision: fp32
  max_steps: 20
  checkpoint: {every: 5, keep: 2}
  log: {every: 1, validate_every: 10, validate_samples: 16}
pretrain:
  data: {template: plain}
  optimizer: {lr: 3e-3, warmup_ratio: 0.2}
  batch: {global_size: 8, micro_size: 4}
finetune:
  data: {template: vicuna_v1, max_length: 400, group_by_length: true}
  optimizer: {lr: 1e-3, projector_lr: 2e-3, gate_lr: 3e-3, weight_decay: 0.1}
  batch: {global_size: 8, micro_size: 4}
"""

LEFT_OUT_KEYS = {  # of JSON files: what may differ between two runs of one commit
    # when, how fast, and by which release
    "created", "seconds", "decode_seconds", "model_seconds", "throughput", "tokens_per_s",
    "samples_per_s", "data_wait_s", "step_s", "package", "versions", "transformers_version",
    # the checkout's own folders, and digests of manifests, which hold times
    "location", "image_root", "input_sha256", "manifest_sha256", "data_sha256", "dataset",
    "digest",  # of an input: covers the place and the time of its files
    # Parquet files as bytes: `file bytes` compares them beside their values
    "sha256", "bytes",
}  # fmt: skip
LEFT_OUT_FILES = {".md", ".log"}  # words
LEFT_OUT_FOLDERS = {"logs", "errors", "tensorboard", ".run"}  # times and names of processes
DRAWINGS = {"report", "gate"}  # whose PNGs are charts


def main() -> int:
    """Print the digests of both checkouts side by side; 1 if any differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "same-results")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="folders to compare, in order")
    options = parser.parse_args()
    sides = [
        results(checkout.resolve(), options.work.resolve() / name, options.only or list(COMMANDS))
        for name, checkout in (("old", options.old), ("new", options.new))
    ]
    names = list(dict.fromkeys(name for side in sides for name in side))
    equal = 0
    for name in names:
        old, new = (side.get(name, "absent") for side in sides)
        equal += old == new
        verdict = "equal" if old == new else "NOT EQUAL"
        sys.stdout.write(f"{name:64} {old[:12]:12} {new[:12]:12} {verdict}\n")
    sys.stdout.write(f"{equal} of {len(names)} equal\n")
    return int(equal < len(names))


def results(checkout: Path, work: Path, folders: list[str]) -> dict[str, str]:
    """Digests by name of what `checkout` writes to `folders` of `work`."""
    record = work / "done.json"
    done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    commit = commit_of(checkout)
    if done.get("commit") != commit:
        shutil.rmtree(work, ignore_errors=True)
        (work / "towers").mkdir(parents=True)
        done = {"commit": commit, "commands": {}}
        (work / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
        write_towers(work / "towers")
    for folder in folders:
        line, before = COMMANDS[folder], done["commands"].get(folder)
        if line != before:
            shutil.rmtree(work / folder, ignore_errors=True)
            PREPARATIONS.get(folder, lambda _: None)(work)
            run(checkout, work, line)
            if before:  # what came after it may have read it
                later = list(COMMANDS)[list(COMMANDS).index(folder) :]
                done["commands"] = {f: c for f, c in done["commands"].items() if f not in later}
            done["commands"][folder] = line
            record.write_text(json.dumps(done, indent=2), encoding="utf-8")
    own = {str(work): "WORK", str(checkout): "CHECKOUT"}
    return {name: d for folder in folders for name, d in digests(work / folder, own)}


def commit_of(checkout: Path) -> str:
    """The commit of `checkout`, with a digest of the changes that it lacks."""
    git = ["git", "-C", str(checkout)]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changes = subprocess.check_output([*git, "diff", "HEAD"])
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:12]}" if changes else commit


def run(checkout: Path, work: Path, line: str) -> None:
    """Run one command of `checkout` in `work`; the script ends where it fails."""
    sys.stderr.write(f"{checkout}$ {line}\n")
    name, *arguments = shlex.split(line)
    if name == "python":
        arguments[0] = str(checkout / arguments[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment.pop("VIRTUAL_ENV", None)
    process = subprocess.run(
        [checkout / ".venv/bin" / name, *arguments],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        sys.exit(f"{line}\n{process.stderr[-3000:]}")


def write_towers(folder: Path) -> None:
    """Write a tiny random vision tower, and an LLM whose tokens are bytes."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    torch.manual_seed(0)
    sizes: Any = {"num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 32}
    vision = hf.CLIPVisionConfig(hidden_size=16, image_size=12, patch_size=4, **sizes)
    hf.CLIPVisionModel(vision).save_pretrained(folder / "vision")
    size = {"height": 12, "width": 12}
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size=size)
    images.save_pretrained(folder / "vision")
    llm = hf.LlamaConfig(
        vocab_size=260, hidden_size=32, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=256, eos_token_id=257, pad_token_id=258, initializer_range=0.2, **sizes,
    )  # fmt: skip
    hf.LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    marks: Any = {f"{name}_token": token for name, token in names.items()}
    wrapped = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    wrapped.save_pretrained(folder / "llm")


def interrupt(work: Path) -> None:
    """Leave in `resumed` what the run `tuned` had after its 15th step."""
    shutil.copytree(work / "tuned", work / "resumed")
    shutil.rmtree(work / "resumed/checkpoints/step-00000020")
    shutil.rmtree(work / "resumed/export")
    (work / "resumed/finished.json").unlink()


def write_questions(work: Path) -> None:
    """Write POPE's table with the demo's images in the place of its own."""
    questions = json.loads((work / "instructions/questions.json").read_text(encoding="utf-8"))
    images = dict.fromkeys(question["image"] for question in questions)
    rows = [
        {
            "question_id": str(i), "question": f"Is this {('a dog', 'a flag')[i % 2]}?",
            "answer": ("yes", "no")[i // 2 % 2],
            "category": ("random", "popular", "adversarial")[i % 3],
            "image": {"bytes": (work / "instructions" / image).read_bytes(), "path": f"{i}.png"},
        }
        for i, image in enumerate(list(images)[:24])
    ]  # fmt: skip
    file = work / "benchmarks/pope/data/test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]}
    features = {"info": {"features": kinds | {"image": {"_type": "Image"}}}}
    about = {"huggingface": json.dumps(features)}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(about), file)


PREPARATIONS: dict[str, Callable[[Path], None]] = {"resumed": interrupt, "eval": write_questions}


def digests(folder: Path, own: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Digest of each result in `folder` by name; `own` renames the folders of this side."""
    files = [
        file for file in sorted(folder.rglob("*"))
        if file.is_file() and not LEFT_OUT_FOLDERS & {*file.relative_to(folder).parts}
    ]  # fmt: skip
    yield f"{folder.name}: {len(files)} names", of_json([str(f.relative_to(folder)) for f in files])
    for kind in sorted({file.suffix for file in files} - LEFT_OUT_FILES):
        alike = [file for file in files if file.suffix == kind]
        if kind == ".parquet":
            yield from column_digests(folder, alike)
        elif kind in {".json", ".jsonl"}:
            for file in alike:
                yield f"{folder.name}: {file.relative_to(folder)}", of_json(facts(file, own))
        elif kind == ".html":
            pages = [file.read_text(encoding="utf-8") for file in alike]
            shown = [re.findall(r"data:image/(?!svg)[^\"']+", page) for page in pages]
            yield f"{folder.name}: {sum(map(len, shown))} images of the page", of_json(shown)
        elif kind != ".png" or folder.name not in DRAWINGS:
            yield f"{folder.name}: {len(alike)} {kind}", of_json([*map(of_bytes, alike)])


def column_digests(folder: Path, files: list[Path]) -> Iterator[tuple[str, str]]:
    """Digest of the values and type of each column, by folder; then of the files as they are."""
    columns: dict[str, Any] = {}
    for file in files:
        place = "/".join([folder.name, *file.relative_to(folder).parts[:-1]])
        table = pq.ParquetFile(file).read()
        for name in table.column_names:
            digest = columns.setdefault(f"{place}: column {name}", hashlib.sha256())
            digest.update(f"{table[name].type} {table[name].to_pylist()!r}".encode())
    for name, digest in columns.items():
        yield name, digest.hexdigest()
    yield f"{folder.name}: file bytes of {len(files)} Parquet", of_json([*map(of_bytes, files)])


def facts(file: Path, own: dict[str, str]) -> Any:
    """Return what a JSON or JSONL file says, without what may differ; floats keep all digits."""
    text = file.read_text(encoding="utf-8")
    for path, name in own.items():
        text = text.replace(path, name)
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    return still([json.loads(line) for line in lines])


def still(value: Any) -> Any:
    """Return `value` without the keys that are left out, at any depth."""
    if isinstance(value, dict):
        return {key: still(part) for key, part in value.items() if key not in LEFT_OUT_KEYS}
    return [still(part) for part in value] if isinstance(value, list) else value


def of_json(value: Any) -> str:
    """SHA-256 of `value` as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_bytes(file: Path) -> str:
    """SHA-256 of a file; of safetensors by name, as their metadata has another order each time."""
    data = file.read_bytes()
    if file.suffix != ".safetensors":
        return hashlib.sha256(data).hexdigest()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in header.keys() - {"__metadata__"}:
        first, last = (start + offset for offset in header[name].pop("data_offsets"))
        header[name]["sha256"] = hashlib.sha256(data[first:last]).hexdigest()
    return of_json(header)


if __name__ == "__main__":
    sys.exit(main())

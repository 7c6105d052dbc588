"""``scripts/eval/all.sh`` with a ``llava-s2`` that takes the real flags and writes reports without a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = f"""#!{sys.executable}
import json, os, sys
from llava_s2.cli import build_parser
args = build_parser().parse_args()
assert args.data.is_dir() and args.base == "vicuna" and args.batch_size == 2
if (args.output / "report.json").exists() or args.task == os.environ.get("KILLED_AT"):
    os.kill(os.getpid(), 9) if args.task == os.environ.get("KILLED_AT") else sys.exit(0)
categories = ["overall", "direct_attributes", "relative_position", "image"]
numbers = {{"count": 4, "correct": 2, "accuracy": 0.5, "interval": [0.1, 0.9], "unparseable": 0}}
report = {{"task": args.task, "model": args.model, "protocol": "p", "results": dict.fromkeys(categories, numbers)}}
report |= {{"scoring": args.scoring or "generate", "variant": args.variant}}
report |= {{"question_ids": ["1"], "questions_in_data": 1}}
report |= {{"judge": {{"name": args.judge_model}}}} if args.judge_model else {{}}
args.output.mkdir(parents=True)
(args.output / "report.json").write_text(json.dumps(report))
"""


def run_all(folder, **environment):
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    places = {"DATA_ROOT": str(folder / "data"), "OUTPUT_ROOT": str(folder / "runs"), "PATH": path}
    return subprocess.run(
        ["bash", str(ROOT / "scripts/eval/all.sh"), "models/mine", "--base", "vicuna", "--batch-size", "2"],
        cwd=ROOT,
        env=os.environ | places | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_all_benchmarks_end_in_the_papers_table(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/llava-s2").write_text(COMMAND)
    (tmp_path / "bin/llava-s2").chmod(0o755)
    for task in ("vstar_bench", "textvqa", "vizwiz", "mathvista", "mmbench", "seedbench", "mmvet"):
        (tmp_path / "data" / task).mkdir(parents=True)
    judge = {"JUDGE": "--judge-url http://localhost/v1 --judge-model gpt-4-0613"}
    killed = run_all(tmp_path, KILLED_AT="mmbench", **judge)
    assert killed.returncode != 0 and "7B + S2" not in killed.stdout
    done = run_all(tmp_path, **judge)
    assert done.returncode == 0, done.stderr
    values = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{"))
    found = {value["row"]: (value["percent"], value["note"]) for value in values}
    as_the_paper = ("V* attribute", "V* spatial", "TextVQA", "MathVista", "SEED-Bench", "MM-Vet")
    assert [found[row] for row in as_the_paper] == [(50.0, "")] * 6
    assert found["VQAv2"] == found["MMMU"] == (None, "") and {value["model"] for value in values} == {"models/mine"}
    left_out = [line for line in done.stdout.splitlines() if line.startswith("no data: ")]
    assert [line.split()[2] for line in left_out] == ["vqav2", "mmmu"]

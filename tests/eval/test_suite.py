"""Several tasks on one loaded model: ``llava-s2 eval all``, several TASKs, YAML suites and ``scripts/eval``."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from choice_data import write_seedbench
from tiny_model import MODEL
from vqa_data import write_textvqa, write_vizwiz
from vstar_data import write_vstar

from llava_s2 import cli
from llava_s2.eval.eval_cli import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path, loads):
    write_vstar(tmp_path / "data/vstar_bench")
    write_textvqa(tmp_path / "data/textvqa")
    write_vizwiz(tmp_path / "data/vizwiz")
    return tmp_path


def evaluate(root, *arguments):
    return cli.main(["eval", *arguments, "--data", str(root / "data"), "--output", str(root / "runs"), *MODEL])


def test_all_loads_once_goes_on_after_a_failure_and_says_what_is_missing(root, capsys, loads):
    (root / "data/vizwiz/val.json").write_text("[]")
    assert evaluate(root, "all") == 2
    out = capsys.readouterr().out
    assert len(loads) == 1
    assert {path.parent.name for path in (root / "runs").glob("*/report.json")} == {"vstar", "textvqa"}
    table = out[out.rindex("score") :]
    assert "vizwiz: failed: " in table and "val.json" in table and "pope: no data: " in table
    assert "7B + S2" in out and all(task in table for task in TASKS)


def test_a_suite_in_yaml_has_flags_for_each_task(root, capsys):
    suite = {
        "data": str(root / "data"),
        "output": str(root / "runs"),
        "limit": 2,
        "tasks": {
            "vstar": {"scoring": "likelihood", "limit": 3},
            "letters": {"task": "vstar", "scoring": "generate"},
            "textvqa": {"variant": "ocr"},
        },
    }
    (root / "suite.yaml").write_text(yaml.safe_dump(suite))
    assert cli.main(["eval", "--config", str(root / "suite.yaml"), *MODEL]) == 0
    found = {path.parent.name: json.loads(path.read_text()) for path in (root / "runs").glob("*/report.json")}
    assert {name: (r["task"], r["scoring"], r.get("variant"), len(r["question_ids"])) for name, r in found.items()} == {
        "vstar": ("vstar", "likelihood", "sentences", 3),
        "letters": ("vstar", "generate", None, 2),
        "textvqa": ("textvqa", "generate", "ocr", 2),
    }


def test_folders_by_their_names_on_the_hub_and_null_flags(root, capsys):
    (root / "data/vizwiz").rename(root / "data/Viz-Wiz")
    (root / "suite.yaml").write_text(
        "batch_size: 1\ntasks: {vizwiz: {data: null, limit: null}, one: {task: textvqa, limit: 1}}"
    )
    assert evaluate(root, "--config", str(root / "suite.yaml")) == 0
    found = [json.loads((root / f"runs/{name}/report.json").read_text()) for name in ("vizwiz", "one")]
    assert [(r["data"].rpartition("/")[2], len(r["question_ids"])) for r in found] == [("Viz-Wiz", 2), ("textvqa", 1)]
    assert {r["batch_size"] for r in found} == {1}
    assert evaluate(root, "pope", "mme") == 2 and "no data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tasks": {"vstar": {"modell": "x"}}}, "modell"),
        ({"tasks": ["vstarr"]}, "vstarr"),
        ({"tasks": {"vstar": {"exif": "trun"}}}, "exif 'trun'"),
        ({"tasks": {"vstar": {"text_only": "no"}}}, "text_only 'no' is not true or false"),
        ({"tasks": {"vstar": {"judge_prices": 3}}}, "judge_prices takes 2 value(s)"),
        ({"tasks": {"vstar": {"limit": 2.5}}}, "limit 2.5"),
        ({"tasks": {"vstar": 3}}, "task vstar: 3 is no object"),
        ({"tasks": ["vstar"], "model_concurrency": "many"}, "model_concurrency 'many'"),
        ({"tasks": ["vstar"], "report_to": "tensorbord"}, "report_to 'tensorbord' is not known"),
        ({"tasks": True}, "'tasks'"),
        ({"tasks": "vstar"}, "'tasks'"),
        ({"taks": []}, "'tasks'"),
        ({"tasks": ["vstar"], "bach_size": 2}, "bach_size"),
    ],
)
def test_a_suite_that_is_wrong_is_one_line(root, config, named, capsys, loads):
    (root / "suite.yaml").write_text(yaml.safe_dump(config))
    assert evaluate(root, "--config", str(root / "suite.yaml")) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert named in message[-1] and len(message) == 1 and not loads


def test_the_shipped_suites_name_tasks_and_flags_that_there_are():
    import argparse

    from llava_s2.eval.eval_cli import _benchmark, _flags
    from llava_s2.eval.suite import entries, read_config

    for path in sorted((ROOT / "scripts/eval").glob("*.yaml")):
        args = argparse.Namespace(**{name: flag.default for name, flag in _flags().items()})
        read_config(path, args, _flags())
        runs = entries(args, TASKS, _benchmark)
        assert len(runs) > 5 and len({run.args.output for run in runs}) == len(runs)
        for run in runs:
            assert run.args.scoring in (None, *_benchmark(run.args).protocols)


def test_scripts_eval_all_is_the_command(tmp_path):
    (tmp_path / "llava-s2").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "llava-s2").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "DATA_ROOT": "d",
        "OUTPUT_ROOT": "o",
    }
    command = ["bash", str(ROOT / "scripts/eval/all.sh"), "models/mine", "--batch-size", "2"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert out == ["eval", "all", "--model", "models/mine", "--data", "d", "--output", "o/mine", "--batch-size", "2"]


def test_video_questions_are_left_out_where_there_are_no_frames(tmp_path, loads):
    data = write_seedbench(tmp_path / "seed")
    for path in (data / "SEED-Bench-video-image").iterdir():
        path.unlink()
    (data / "SEED-Bench-video-image").rmdir()
    run = tmp_path / "run"
    assert cli.main(["eval", "seedbench", *MODEL, "--data", str(data), "--output", str(run)]) == 0
    found = json.loads((run / "report.json").read_text())
    assert found["variant"] == "image" and found["results"]["overall"]["count"] == 2

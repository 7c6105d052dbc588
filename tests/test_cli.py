"""The command line and the package as a user first meets them: in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["quickstart", "data", "train", "eval", "score", "compare", "chat", "merge", "bench"]


MAIN = "import sys; sys.argv[0] = 'llava-s2'; from llava_s2.cli import main; sys.exit(main(sys.argv[1:]))"


def run_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


HELP = """
import json, sys
sys.argv = ["llava-s2", *sys.argv[1:]]
from llava_s2.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
heavy = sorted({"torch", "transformers", "numpy"} & set(sys.modules))
print(json.dumps(heavy))
"""


@pytest.mark.parametrize(
    "words", [[], *([name] for name in COMMANDS), ["train", "finetune"], ["data", "things"], ["bench", "sweep"]]
)
def test_help_answers_without_loading_torch(words: list[str]) -> None:
    result = run_python(HELP, *words, "--help")
    assert result.returncode == 0, result.stderr
    *text, heavy = result.stdout.strip().splitlines()
    assert text[0].startswith("usage: llava-s2")
    assert json.loads(heavy) == []


def test_help_lists_every_command() -> None:
    text = run_python(HELP, "--help").stdout
    assert all(name in text for name in COMMANDS)


def test_importing_the_package_registers_the_tower_with_the_auto_classes() -> None:
    code = """
import llava_s2
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("s2_vision")
assert type(config) is llava_s2.S2VisionConfig and config.scales == [336]
import torch
with torch.device("meta"):
    assert type(AutoModel.from_config(config)) is llava_s2.S2VisionModel
assert all(callable(getattr(llava_s2, name)) for name in llava_s2.__all__ if name != "__version__")
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "words", [["fly"], [], ["eval", "nosuchtask", "--model", "m", "--data", "d", "--output", "o"], ["score", "vstar"]]
)
def test_a_wrong_command_line_exits_with_2_and_no_trace(words: list[str]) -> None:
    result = run_python(MAIN, *words)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_an_unknown_flag_is_refused_where_no_other_program_reads_it() -> None:
    result = run_python(MAIN, "compare", "a", "b", "--x")
    assert result.returncode == 2
    assert "--x" in result.stderr


def test_renamed_flags_are_taken_by_their_old_names_too() -> None:
    from llava_s2.cli import build_parser

    serve = build_parser().parse_args(["serve", "--max-pictures", "3", "--picture-cache-mb", "5"])
    assert (serve.max_images, serve.image_cache_mb) == (3, 5)
    assert build_parser().parse_args(["bench", "sweep", "x", "--output", "y", "--pictures", "7"]).images == 7
    assert build_parser().parse_args(["quickstart", "--pictures", "7"]).images == 7
    assert "--max-pictures" not in run_python(HELP, "serve", "--help").stdout


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # importing what is None fails as if it were not there
from llava_s2.cli import main
sys.exit(main(sys.argv[1:]))
"""
SERVE = "starlette,fastapi,uvicorn,httpcore,prometheus_client,openai,gradio"
EVAL = "pyarrow,openpyxl,matplotlib,openai,datasets"


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        *((name, "serve --model none") for name in (SERVE, "openai", "httpcore")),
        *((name, "demo --model none") for name in (SERVE, "httpcore")),
        (EVAL, "eval mmbench --data . --model none --output out"),
        (EVAL, "eval vstar --data . --model x --model-url http://127.0.0.1:9/v1 --output out"),
        ("datasets", "data convert a b"),
        ("pyarrow", "data check table.parquet"),
        ("deepspeed", "train finetune --model_name_or_path x --data_path y --output_dir z --deepspeed zero.json"),
        ("open_clip", "bench flops open_clip:ViT-B-32"),
        ("gguf", "chat --prompt hello"),
    ],
)
def test_a_missing_extra_is_told_in_a_line_with_what_to_run(absent: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    (tmp_path / "zero.json").write_text("{}")
    run = [sys.executable, "-c", WITHOUT, absent, *words.split()]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "pip install" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr

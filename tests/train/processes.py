"""Training runs as programs of their own, on the tiny models of tests/golden."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image

from llava_s2.cli import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "llava_tiny"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TINY = ["--model_name_or_path", GOLDEN / "vicuna-tiny", "--vision_tower", GOLDEN / "clip-tiny"]
TINY += ["--s2_scales", "56,112", "--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none"]
TINY += ["--lora_r", 4, "--lora_alpha", 8, "--learning_rate", "5e-3", "--mm_projector_lr", "1e-3"]


def talk(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def write_records(folder, has_image):
    """A data file in which record ``n`` has an image where ``has_image(n)``; targets of 1 to 13 words."""
    names = list(COLOURS)
    records = []
    for number in range(80):
        answer = "word " * (1 + number * 5 % 13)
        if has_image(number):
            name = names[number % 4]
            Image.new("RGB", (40 + number % 30, 30), COLOURS[name]).save(folder / f"{number}.png")
            records.append({"image": f"{number}.png", "conversations": talk("<image>\nColour?", answer + name)})
        else:
            records.append({"conversations": talk("Count", answer)})
    (folder / "data.json").write_text(json.dumps(records))
    return ["--data_path", folder / "data.json", "--image_folder", folder]


def command(flags, processes=0, program=None, launcher=()):
    """The command line of ``finetune`` alone (0) or under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port", free_port(), *launcher]
    if program is not None:
        return [str(part) for part in [sys.executable, *launcher, program, "finetune", *TINY, *flags]]
    program = [ROOT / "tests" / "train" / "fsdp_on_cpu.py"] if "--fsdp" in flags else ["-m", "llava_s2.train"]
    start = [sys.executable, *(launcher if processes else []), *program, "finetune"]
    return [str(part) for part in [*start, *TINY, *flags]]


def start(flags, processes=0, environment=None, **how):
    """Starts it, in a session of its own; what it prints is in ``stdout``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | (environment or {})
    environment["PYTHONUNBUFFERED"] = "1"
    return subprocess.Popen(
        command(flags, processes, **how),
        env=environment,
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_here(flags):
    """Runs it alone in this process, which has imported everything."""
    assert main(["train", "finetune", *map(str, [*TINY, *flags])]) == 0


def run(flags, processes=0, timeout=600):
    """Runs it to its end; one that hangs is killed with all its processes, and fails the test.

    On a fresh machine the first one under DeepSpeed compiles, which took five minutes of two slow cores.
    """
    process = start(flags, processes)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hung: {process.communicate()[0][-3000:]}") from None
    assert process.returncode == 0, output[-5000:]


def losses(folder, kind="loss"):
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry[kind] for entry in history if kind in entry]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])

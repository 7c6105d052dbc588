"""What a training step takes on an idle machine, and beside one process that keeps a processor busy.

    python benchmarks/busy_machine.py

Trains the embedded model a few steps, with the threads that `llava_s2.threads` chooses and with OpenMP's own choice.
The last line is JSON: median seconds a step, and how many times that of the idle machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

STEPS = 8
SPIN = [sys.executable, "-c", "while True: pass"]


def seconds_per_step(folder: Path, name: str, busy: int, environment: dict[str, str]) -> float:
    """The median of a run's steps but the first two."""
    others = [subprocess.Popen(SPIN) for _ in range(busy)]
    try:
        flags = ["--model_name_or_path", "embedded", "--data_path", folder / "data.json", "--image_folder", folder]
        flags += ["--output_dir", folder / name, "--max_steps", STEPS, "--per_device_train_batch_size", 4]
        flags += ["--use_cpu", "True", "--save_strategy", "no", "--lora_r", 8, "--report_to", "none"]
        command = [sys.executable, "-m", "llava_s2.train", "finetune", *map(str, flags)]
        subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        for other in others:
            other.kill()
    steps = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
    tokens_per_second = [entry["tokens_per_second"] for entry in steps if "loss" in entry][2:]
    return 1 / statistics.median(tokens_per_second)  # every record is alike, so every step has the same tokens


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Image.new("RGB", (300, 200), "red").save(folder / "red.png")
        turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "It is red."}]
        (folder / "data.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}] * 40))
        spinning = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "ACTIVE"}
        idle = seconds_per_step(folder, "idle", 0, {})
        beside = seconds_per_step(folder, "beside", 1, {})
        default = seconds_per_step(folder, "default", 1, spinning)
        print(json.dumps({"beside_one_busy": beside / idle, "the_same_spinning": default / idle, "steps": STEPS}))


if __name__ == "__main__":
    main()

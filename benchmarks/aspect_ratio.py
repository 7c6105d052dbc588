"""Images twice as wide as high (or the reverse): padded, stretched, or tiled on their own aspect ratio.

    python benchmarks/aspect_ratio.py --folder /tmp/aspect --output benchmarks/results/aspect_ratio.json

Draws the quickstart's scenes on photographs of that shape, fine-tunes the embedded default on the same records with
each `--image_aspect_ratio`, scores each on the same V*-format questions, and compares them. A part that is in the
folder already is not made again: the ratios can be run one by one.
"""

import argparse
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from llava_s2.model.embedded import FEATURE_LAYER, NAME, SCALES, projector
from llava_s2.synthetic.scene_files import write_instructions, write_vstar
from llava_s2.synthetic.scenes import SceneConfig

CONFIG = SceneConfig(side=(1000, 1400), aspects=(2.0, 0.5))
RATIOS = ("pad", "resize", "keep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="data, models and runs")
    parser.add_argument("--ratios", default=",".join(RATIOS), help="those to run now (default: %(default)s)")
    parser.add_argument("--images", type=int, default=220, help="to fine-tune on (default: %(default)s)")
    parser.add_argument("--attributes", type=int, default=150, help="colour questions (default: %(default)s)")
    parser.add_argument("--relations", type=int, default=60, help="position questions (default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, help="JSON file to write when all ratios are there")
    args = parser.parse_args()

    data = args.folder / "data"
    if not data.exists():
        write_instructions(data / "train", args.images, config=CONFIG)
        write_vstar(data / "vstar", args.attributes, args.relations, config=CONFIG)
    for ratio in args.ratios.split(","):
        fine_tune_and_score(ratio, args.folder, args.bf16)
    runs = {ratio: args.folder / "runs" / ratio for ratio in RATIOS}
    if all((run / "report.json").exists() for run in runs.values()):
        text = json.dumps(summary(runs), indent=2)
        print(text)
        if args.output:
            args.output.write_text(text + "\n", encoding="utf-8")


def fine_tune_and_score(ratio: str, folder: Path, bf16: bool) -> None:
    """The quickstart's fine-tuning and scoring, with one more flag."""
    model, run = folder / "models" / ratio, folder / "runs" / ratio
    if not (model / "trainer_state.json").exists():
        numbers = ["--per_device_train_batch_size", "4", "--learning_rate", "6e-4", "--mm_projector_lr", "2e-4"]
        numbers += ["--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0", "--num_train_epochs", "1"]
        numbers += ["--save_steps", "20", "--save_total_limit", "1", "--logging_steps", "5", "--report_to", "none"]
        call(
            *("train", "finetune", "--model_name_or_path", NAME, "--vision_tower", NAME),
            *("--s2_scales", ",".join(map(str, SCALES)), "--mm_vision_select_layer", str(FEATURE_LAYER)),
            *("--pretrain_mm_mlp_adapter", str(projector(SCALES)), "--template", "chatml"),
            *("--image_aspect_ratio", ratio, "--bf16", str(bf16), "--use_cpu", str(not torch.cuda.is_available())),
            *("--data_path", str(folder / "data/train/train.json"), "--image_folder", str(folder / "data/train")),
            *("--output_dir", str(model), *numbers),
        )
    if not (run / "report.json").exists():
        call("eval", "vstar", "--model", str(model), "--data", str(folder / "data/vstar"), "--output", str(run))


def summary(runs: dict[str, Path]) -> dict[str, Any]:
    """Counts of each run, and of the questions that only one of two runs answers."""
    right: dict[str, dict[str, bool]] = {}
    for ratio, run in runs.items():
        records = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
        right[ratio] = {record["question_id"]: bool(record["correct"]) for record in records}
    kinds = sorted({question.split("/")[0] for question in right[RATIOS[0]]})
    return {
        "command": f"python {' '.join(sys.argv)}",
        "correct": {
            ratio: {kind: sum(value for name, value in answers.items() if name.startswith(kind)) for kind in kinds}
            for ratio, answers in right.items()
        },
        "questions": {kind: sum(name.startswith(kind) for name in right[RATIOS[0]]) for kind in kinds},
        "only_one_right": {
            f"{a}, {b}": [
                sum(right[a][q] and not right[b][q] for q in right[a]),
                sum(right[b][q] and not right[a][q] for q in right[a]),
            ]
            for a, b in combinations(RATIOS, 2)
        },
    }


def call(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "llava_s2.cli", *words], check=True)


if __name__ == "__main__":
    main()

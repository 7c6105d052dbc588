"""``llava-s2 quickstart``: data, two fine-tunings, two scores and a drawing, on the embedded default.

Every step is a command that the user could type; each leaves its result under ``--output`` and is passed over, or goes
on where it was cut off, when the quickstart is started again.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.model.embedded import (
    FEATURE_LAYER,
    NAME,
    QUICKSTART_FOLDER,
    SCALES,
    VISUAL_TOKENS,
    is_finished,
    projector,
)

MODELS = {"single": SCALES[:1], "s2": SCALES}


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``quickstart`` to the command line."""
    parser = subparsers.add_parser(
        "quickstart",
        help="fine-tune, score and ask a small LLaVA-S2 beside its single-scale baseline, in minutes on a CPU",
    )
    parser.add_argument("--output", type=Path, default=QUICKSTART_FOLDER, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=220, help="to fine-tune on (default: %(default)s)")
    parser.add_argument(  # its name in 0.1
        "--pictures", dest="images", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--attributes", type=int, default=240, help="held-out questions about names and colors (default: %(default)s)"
    )
    parser.add_argument("--relations", type=int, default=60, help="held-out position questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of both trainings (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs every step. Raises InputError for numbers that are too small, or where ``--output`` holds others."""
    from llava_s2.eval.compare import compare, format_comparison
    from llava_s2.synthetic.sprites import HELD_OUT_STYLE

    started = time.monotonic()
    out: Path = args.output
    counts = {"images": args.images, "attributes": args.attributes, "relations": args.relations, "seed": args.seed}
    for name, count in counts.items():
        if count < (least := 1 if name in ("images", "attributes") else 0):
            raise InputError(f"--{name} {count}: at least {least}")
    bf16 = _claim(out, counts)

    _title("1/5  Data: photographs with small named things on them, as LLaVA JSON and as V* folders")
    _make_data(out, args)

    numbers = ["--per_device_train_batch_size", "4", "--learning_rate", "6e-4", "--mm_projector_lr", "2e-4"]
    numbers += ["--lora_r", "8", "--lora_alpha", "16", "--lora_dropout", "0", "--num_train_epochs", "1"]
    numbers += ["--save_steps", "20", "--save_total_limit", "1", "--logging_steps", "5", "--report_to", "none"]
    numbers += ["--group_by_modality_length", "True"]  # a third fewer padding tokens
    numbers += ["--seed", str(42 + args.seed), "--bf16", str(bf16), "--use_cpu", str(not _has_gpu())]
    for number, (name, scales) in enumerate(MODELS.items(), start=2):
        listed = ",".join(map(str, scales))
        _title(f"{number}/5  Fine-tuning on scales {listed}: LoRA and projector, {VISUAL_TOKENS} visual tokens")
        model = out / "models" / name
        if is_finished(model):
            print(f"{model} is there already")
            continue
        _command(
            args.main,
            *("train", "finetune", "--model_name_or_path", NAME, "--vision_tower", NAME, "--s2_scales", listed),
            *("--mm_vision_select_layer", str(FEATURE_LAYER)),
            *("--pretrain_mm_mlp_adapter", str(projector(scales)), "--template", "chatml"),
            *("--data_path", str(out / "data/train/train.json"), "--image_folder", str(out / "data/train")),
            *("--output_dir", str(model), *numbers),
        )

    _title(f"4/5  V*-format questions on {args.attributes + args.relations} held-out photographs")
    for name, more in (("single", ()), ("s2", ()), ("text_only", ("--text-only",))):
        _score(args, name, "vstar", *more)
    pair = out / "runs/single", out / "runs/s2"
    print(f"$ llava-s2 compare {shlex.join(map(str, pair))}", flush=True)
    print(format_comparison(compare(*pair)))  # the command prints JSON too
    print(f"\nA style of drawing that nothing was trained on ({HELD_OUT_STYLE}):")
    for name in MODELS:
        _score(args, name, "style")

    _title("5/5  What the scales change: a photograph of 12 megapixels")
    for name in MODELS:
        _score(args, name, "large")
    image, question = _draw_difference(out)

    program = "llava-s2" if shutil.which("llava-s2") else shlex.quote(str(Path(sys.executable).with_name("llava-s2")))
    folder, train = shlex.quote(str(out / "models/s2")), shlex.quote(str(out / "data/train"))
    minutes = (time.monotonic() - started) / 60
    print(f"""
Done in {minutes:.1f} minutes. What next:
  {program} chat --model {folder} --image {shlex.quote(str(image))} --prompt {shlex.quote(question)}
  {program} demo --model {folder}
  {program} data check {train}/train.json --images {train}""")


def _claim(out: Path, counts: dict[str, int]) -> bool:
    """Records what this quickstart consists of, so that a second start cannot mix other numbers with the first's.

    Returns whether both models train in bfloat16, decided once.
    """
    path = out / "quickstart.json"
    if path.exists():
        settings = {"seed": 0, **json.loads(path.read_text())}
        if {name: settings.get(name) for name in counts} != counts:
            raise InputError(f"{path}: this folder holds a quickstart with other numbers; choose another --output")
        return settings["bf16"]
    bf16 = _bf16_is_faster()
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({**counts, "bf16": bf16}))
    return bf16


def _make_data(out: Path, args: argparse.Namespace) -> None:
    from llava_s2.synthetic.scene_files import write_instructions, write_vstar
    from llava_s2.synthetic.scenes import SceneConfig
    from llava_s2.synthetic.sprites import HELD_OUT_STYLE

    data, others = out / "data", max(1, args.attributes // 5)
    first_seed, config = 100_000 * args.seed, SceneConfig(side=(1000, 1400))
    if not (data / "train").exists():
        mixed = replace(config, empty=0.15, repeated=0.15)
        write_instructions(data / "train", args.images, config=mixed, first_seed=first_seed)
    if not (data / "vstar").exists():
        write_vstar(data / "vstar", args.attributes, args.relations, config=config, first_seed=first_seed)
    if not (data / "style").exists():
        other = replace(config, styles=(HELD_OUT_STYLE,))
        write_vstar(data / "style", 2 * others, 0, config=other, first_seed=first_seed + 20_000)
    if not (data / "large").exists():
        large = SceneConfig(side=(4000, 4000), aspects=(4 / 3,))
        write_vstar(data / "large", min(12, others), 0, config=large, first_seed=first_seed + 30_000)
    print(f"{data / 'train/train.json'}: {args.images} records; {data / 'vstar'}: V* folder")


def _score(args: argparse.Namespace, name: str, questions: str, *more: str) -> None:
    out: Path = args.output
    model = out / "models" / ("s2" if name == "text_only" else name)
    run = out / "runs" / (name if questions == "vstar" else f"{name}_{questions}")
    folders = ("--data", str(out / "data" / questions), "--output", str(run))
    _command(args.main, "eval", "vstar", "--model", str(model), *folders, *more)


def _draw_difference(out: Path) -> tuple[Path, str]:
    """Draws a question that S² answers and the baseline does not, if there is one, among those on large photographs.

    Returns its image and its text.
    """
    from llava_s2.eval.run_folder import PREDICTIONS, read_predictions
    from llava_s2.quickstart_image import draw_answers

    answers: dict[str, dict[str, dict]] = {}
    for name in MODELS:
        records = read_predictions(out / "runs" / f"{name}_large" / PREDICTIONS)
        answers[name] = {record["question_id"]: record for record in records}
    correct = {name: {key for key, record in found.items() if record["correct"]} for name, found in answers.items()}
    shown = min(answers["s2"], key=lambda key: (key not in correct["s2"], key in correct["single"], key))
    image = out / "data/large" / f"{shown}.jpg"
    record = json.loads(image.with_suffix(".json").read_text())
    said = {scales: answers[name][shown]["text"] for name, scales in MODELS.items()}
    draw_answers(out / "answer.png", image, record, said)
    only = [len(correct["s2"] - correct["single"]), len(correct["single"] - correct["s2"])]
    print(f"Of {len(answers['s2'])} of them S² alone is right on {only[0]}, the single scale alone on {only[1]}.")
    print(f"One of them, drawn with what each model sees: {out / 'answer.png'}")
    print(f"  {record['question']}  The truth: {record['options'][0]}")
    for name, scales in MODELS.items():
        verdict = "right" if shown in correct[name] else "wrong"
        print(f"  scales {','.join(map(str, scales)):<12} {said[scales]} ({verdict})")
    return image, record["question"]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _bf16_is_faster() -> bool:
    """Times a product of the language model's shape; bfloat16 is the slow choice on a CPU without its instructions."""
    import torch

    if _has_gpu():
        return torch.cuda.is_bf16_supported()
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(1024, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        laps = []
        for _ in range(8):
            begun = time.perf_counter()
            left @ right
            laps.append(time.perf_counter() - begun)
        seconds[dtype] = min(laps)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _command(main: Callable[[Sequence[str]], int], *words: str) -> None:
    print(f"$ llava-s2 {shlex.join(words)}", flush=True)
    if status := main(words):
        raise SystemExit(status)


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)

"""``llava-s2 quickstart``: data, two fine-tunings, their scores and an answer, on the embedded default.

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
# Large photographs that are tried until one shows the difference.
_CANDIDATES = 6


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``quickstart`` to the command line."""
    parser = subparsers.add_parser(
        "quickstart",
        help="fine-tune, score and ask a small LLaVA-S2 beside its single-scale baseline, in minutes on a CPU",
    )
    parser.add_argument("--output", type=Path, default=QUICKSTART_FOLDER, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=220, help="to fine-tune on (default: %(default)s)")
    parser.add_argument(
        "--attributes", type=int, default=150, help="held-out questions of names and colors (default: %(default)s)"
    )
    parser.add_argument(
        "--relations", type=int, default=60, help="held-out questions of positions (default: %(default)s)"
    )
    parser.add_argument(
        "--new-style", type=int, default=60, help="of names and colors in a style never seen (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data and the training (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs every step. Raises InputError where ``--output`` holds a quickstart with other numbers."""
    started = time.monotonic()
    out: Path = args.output
    names = ("images", "attributes", "relations", "new_style", "seed")
    bf16 = _claim(out, {name: getattr(args, name) for name in names})

    _title("1/5  Data: photographs with small named things, as LLaVA JSON and as V* folders")
    _make_data(out, args)

    numbers = ["--per_device_train_batch_size", "4", "--learning_rate", "6e-4", "--mm_projector_lr", "2e-4"]
    numbers += ["--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0", "--num_train_epochs", "1"]
    numbers += ["--save_steps", "20", "--save_total_limit", "1", "--logging_steps", "5", "--report_to", "none"]
    numbers += ["--bf16", str(bf16), "--use_cpu", str(not _has_gpu()), "--seed", str(args.seed)]
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
        _score(args.main, out, "vstar", "s2" if name == "text_only" else name, name, *more)
    _command(args.main, "compare", str(out / "runs/single"), str(out / "runs/s2"))
    if args.new_style:
        print(f"\n{args.new_style} questions in a style of drawing that neither tower nor language model ever saw:")
        for name in MODELS:
            _score(args.main, out, "vstar_new_style", name, f"new_style_{name}")
        _command(args.main, "compare", str(out / "runs/new_style_single"), str(out / "runs/new_style_s2"))

    _title("5/5  A 12-megapixel photograph")
    image, question = _large_photograph(args.main, out, args.seed)

    program = "llava-s2" if shutil.which("llava-s2") else shlex.quote(str(Path(sys.executable).with_name("llava-s2")))
    folder = shlex.quote(str(out / "models/s2"))
    train = shlex.quote(str(out / "data/train"))
    minutes = (time.monotonic() - started) / 60
    print(f"""
Done in {minutes:.1f} minutes. What next:
  {program} chat --model {folder} --image {shlex.quote(str(image))} --prompt {shlex.quote(question)}
  {program} demo --model {folder}
  {program} data check {train}/train.json --images {train}""")


def _score(main: Callable[[Sequence[str]], int], out: Path, data: str, model: str, run: str, *more: str) -> None:
    folders = ("--data", str(out / "data" / data), "--output", str(out / "runs" / run))
    _command(main, "eval", "vstar", "--model", str(out / "models" / model), *folders, *more)


def _claim(out: Path, counts: dict[str, int]) -> bool:
    """Records what this quickstart consists of, so that a second start cannot mix other numbers with the first's.

    Returns whether both models train in bfloat16, decided once.
    """
    path = out / "quickstart.json"
    if path.exists():
        settings = json.loads(path.read_text())
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

    first = 100_000 * args.seed
    if not (out / "data/train").exists():
        config = SceneConfig(side=(800, 1600), repeated=0.2)
        write_instructions(out / "data/train", args.images, config=config, first_seed=first)
    if not (out / "data/vstar").exists():
        write_vstar(out / "data/vstar", args.attributes, args.relations, config=SceneConfig(), first_seed=first)
    if args.new_style and not (out / "data/vstar_new_style").exists():
        config = SceneConfig(styles=(HELD_OUT_STYLE,))
        write_vstar(out / "data/vstar_new_style", args.new_style, 0, config=config, first_seed=first + 50_000)
    print(f"{out / 'data/train/train.json'}: {args.images} records; {out / 'data/vstar'}: V* folder")


def _large_photograph(main: Callable[[Sequence[str]], int], out: Path, seed: int) -> tuple[Path, str]:
    """Asks both models about held-out photographs of 12 megapixels and draws one on which they differ.

    Returns its file and its question.
    """
    from llava_s2.synthetic.answer_image import draw_answers
    from llava_s2.synthetic.scene_files import write_vstar
    from llava_s2.synthetic.scenes import SceneConfig

    if not (out / "data/large").exists():
        config = SceneConfig(side=(4000, 4000), aspects=(4 / 3,))
        write_vstar(out / "data/large", _CANDIDATES, 0, config=config, first_seed=100_000 * seed + 70_000)
    answers: dict[str, dict[str, dict]] = {}
    for name in MODELS:
        _score(main, out, "large", name, f"large_{name}")
        lines = (out / "runs" / f"large_{name}" / "predictions.jsonl").read_text().splitlines()
        answers[name] = {record["question_id"]: record for record in map(json.loads, lines)}
    right = {name: {key for key, record in records.items() if record["correct"]} for name, records in answers.items()}
    both = sorted(answers["s2"])
    shown = min(both, key=lambda key: (key not in right["s2"], key in right["single"], key))
    image = out / "data/large" / f"{shown}.jpg"
    record = json.loads(image.with_suffix(".json").read_text())
    said = {",".join(map(str, scales)): answers[name][shown]["text"] for name, scales in MODELS.items()}
    draw_answers(out / "answer.png", image, record, said, {",".join(map(str, s)): s[-1] for s in MODELS.values()})
    print(f"{image}\n{record['question']}  (the truth: {record['options'][0]})")
    for scales, text in said.items():
        print(f"  scales {scales}: {text}")
    counts = [sum(key in right[name] for key in both) for name in MODELS]
    print(f"Of {len(both)} such questions the single scale answers {counts[0]} right, S² {counts[1]}.")
    print(f"Drawn with what each model sees: {out / 'answer.png'}")
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

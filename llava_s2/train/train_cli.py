"""``llava-s2 train pretrain|finetune``."""

import argparse
from typing import Any

from llava_s2.train.arguments import describe_flags
from llava_s2.train.llava_flags import STAGES

_SUMMARY = {
    "pretrain": "stage 1: train the projector alone on image-caption pairs",
    "finetune": "stage 2: train the projector, and LoRA on the language model, on conversations",
}


def add_commands(subparsers: Any) -> None:
    """Adds ``train`` to the command line."""
    train = subparsers.add_parser("train", help="train on LLaVA-format data", description="Train a LLaVA-S2 model.")
    add_stages(train)


def add_stages(parser: argparse.ArgumentParser) -> None:
    """Adds ``pretrain`` and ``finetune``; their flags are parsed by the run, which knows all of transformers'."""
    stages = parser.add_subparsers(dest="stage", required=True, metavar="|".join(STAGES))
    for stage in STAGES:
        command = stages.add_parser(
            stage,
            help=_SUMMARY[stage],
            description=_SUMMARY[stage],
            usage="%(prog)s [RECIPE.yaml] --model_name_or_path M --data_path F --output_dir O …",
            epilog=describe_flags(stage),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=_run, takes_more_flags=True)


def _run(args: argparse.Namespace) -> None:
    from llava_s2.train.recipe import train

    train(args.stage, args.more_flags)

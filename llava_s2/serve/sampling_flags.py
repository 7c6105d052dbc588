"""Flags that the ways to talk with a model share."""

import argparse

from llava_s2.formats.model_source import positive


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--temperature``, ``--top-p`` and ``--max-new-tokens``."""
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, metavar="T", help="0 takes the likeliest token (default)"
    )
    parser.add_argument(
        "--top-p",
        type=_share,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens of this total probability",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=512, metavar="N", help="bound on an answer (default: %(default)s)"
    )


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value

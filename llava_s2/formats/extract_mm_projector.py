"""``python -m llava_s2.formats.extract_mm_projector``: LLaVA's program of that name, for a checkpoint of any kind."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.formats.adapters import ADAPTER_FILES
from llava_s2.formats.identify import TRAINED_FILES, identify
from llava_s2.formats.lazy_tensors import lazily, lazy_tensors
from llava_s2.formats.tensor_names import Components, split
from llava_s2.model.projector import single_layer
from llava_s2.weight_files import find_file, read_tensors


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program. Returns the exit status: 0, or 2 for input that is wrong."""
    parser = argparse.ArgumentParser(description="Write a checkpoint's projector as LLaVA's mm_projector.bin.")
    parser.add_argument("--model-path", required=True, help="checkpoint of any kind: a folder or a hub id")
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    args = parser.parse_args(argv)
    try:
        extract_mm_projector(args.model_path, args.output)
    except InputError as error:
        print(f"extract_mm_projector: error: {error}", file=sys.stderr)
        return 2
    return 0


def extract_mm_projector(model: str, output: Path) -> None:
    """Writes the projector's tensors, as they are stored, under LLaVA's names.

    Raises:
        InputError: the checkpoint cannot be read, or holds no projector.
    """
    files = ("mm_projector.bin", *TRAINED_FILES, *ADAPTER_FILES)
    if identify(model).kind in ("hf", "llava_full", "llm"):
        stored = lazy_tensors(model)
    else:
        stored = lazily(read_tensors(next(path for file in files if (path := find_file(model, file)))))
    projector = {name: tensor.read() for name, tensor in split(stored).projector.items()}
    if not projector:
        raise InputError(f"{model}: holds no projector")
    if "linear_2.weight" in projector:
        projector = single_layer(projector) or projector
    with atomic_write(output) as partial:
        torch.save(Components({}, projector, {}).named("llava"), partial)


if __name__ == "__main__":
    sys.exit(main())

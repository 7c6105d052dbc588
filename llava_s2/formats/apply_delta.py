"""``python -m llava_s2.formats.apply_delta``: LLaVA's program of that name, a base model and a delta make the LLaVA.

LLaVA's first checkpoints were published as their difference from LLaMA's weights.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats.lazy_tensors import LazyTensor, lazy_tensors, weight_bytes, write_weights
from llava_s2.weight_files import weight_files

_GROWN = ("model.embed_tokens.weight", "lm_head.weight")  # by LLaVA's own tokens
_WEIGHTS = (".safetensors", ".bin", ".index.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program. Returns the exit status: 0, or 2 for input that is wrong."""
    parser = argparse.ArgumentParser(description="Make a LLaVA of a base model and the delta that was published.")
    parser.add_argument("--base-model-path", required=True, help="the language model: a folder")
    parser.add_argument("--target-model-path", required=True, type=Path, help="folder to write")
    parser.add_argument("--delta-path", required=True, help="the delta: a folder")
    args = parser.parse_args(argv)
    try:
        apply_delta(args.base_model_path, args.target_model_path, args.delta_path)
    except InputError as error:
        print(f"apply_delta: error: {error}", file=sys.stderr)
        return 2
    return 0


def apply_delta(base: str, target: Path, delta: str) -> None:
    """Adds each of the base's weights to the delta's, in the delta's dtype; what the base lacks stays as it is.

    Raises:
        InputError: one of them cannot be read, or the delta is of another base.
    """
    stored, differences = lazy_tensors(base), lazy_tensors(delta)
    if missing := stored.keys() - differences.keys() - {name for name in stored if "rotary_emb" in name}:
        raise InputError(f"{delta}: is no delta of {base}: it lacks {sorted(missing)[0]}")
    tensors = {}
    for name, difference in differences.items():
        tensors[name] = difference
        if name not in stored:
            if "mm_projector." not in name:
                raise InputError(f"{delta}: is no delta of {base}, which has no {name}")
            continue
        fits = difference.shape == stored[name].shape
        grows = name in _GROWN and all(a >= b for a, b in zip(difference.shape, stored[name].shape, strict=True))
        if not (fits or grows):
            raise InputError(f"{delta}: {name} is {difference.shape}, but {stored[name].shape} in {base}")
        tensors[name] = _sum(difference, stored[name])
    with new_folder(target, weight_bytes(tensors)) as folder:
        for file in Path(weight_files(delta)[0]).parent.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, folder / file.name)
        write_weights(folder, tensors)


def _sum(difference: LazyTensor, base: LazyTensor) -> LazyTensor:
    def read() -> Tensor:
        total, added = difference.read().clone(), base.read().to(difference.dtype)
        total[tuple(slice(0, size) for size in added.shape)] += added
        return total

    return LazyTensor(difference.shape, difference.dtype, read)


if __name__ == "__main__":
    sys.exit(main())

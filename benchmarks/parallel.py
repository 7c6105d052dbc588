"""One image's tiles on one process and shared by two, each of one thread.

    python benchmarks/parallel.py --output benchmarks/results/parallel.json

CLIP-L/14-336 with random weights on 336, 672 and 1008 squared, float32 on a CPU, fewer layers so that it ends soon: all
layers are alike. The two ways take turns, the smallest time of each counts, and features must agree.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.parallel import parallelize_tiles

_SCALES = [336, 672, 1008]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=6, help="of CLIP-L's 24 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, args.layers, args.rounds), nprocs=2)
        found = torch.load(Path(folder) / "0.pt", weights_only=True)
    result = {
        "command": f"python benchmarks/parallel.py --layers {args.layers} --rounds {args.rounds}",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "layers": args.layers,
        **found,
        "speed_up": round(found["one_process_seconds"] / found["two_processes_seconds"], 2),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def _tower(layers: int) -> Any:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    return S2VisionModel.wrap(CLIPVisionModel(config).eval(), _SCALES)


@torch.inference_mode()
def _process(rank: int, folder: str, layers: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    alone, shared = _tower(layers), parallelize_tiles(_tower(layers))
    image = torch.randn(1, 3, _SCALES[-1], _SCALES[-1], generator=torch.manual_seed(1))
    times: dict[str, list[float]] = {"one_process_seconds": [], "two_processes_seconds": []}
    difference = 0.0
    for _ in range(rounds):
        dist.barrier()
        if rank == 0:  # the other process waits, and leaves its core idle
            wanted, seconds = _timed(alone, image)
            times["one_process_seconds"].append(seconds)
        dist.barrier()
        features, seconds = _timed(shared, image)
        if rank == 0:
            times["two_processes_seconds"].append(seconds)
            difference = max(difference, (features - wanted).abs().max().item())
    if rank == 0:
        smallest = {name: round(min(values), 2) for name, values in times.items()}
        torch.save({**smallest, "largest_difference": difference}, f"{folder}/0.pt")
    dist.destroy_process_group()


def _timed(tower: Any, image: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    features = tower(image).last_hidden_state
    return features, time.perf_counter() - start


if __name__ == "__main__":
    main()

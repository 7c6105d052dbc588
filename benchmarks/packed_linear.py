"""One linear layer on one thread, as torch has it and packed for oneDNN: CPU time in turns, best of five.

    python benchmarks/packed_linear.py --output benchmarks/results/packed_linear_intel.json

Sizes are CLIP-L/14-336's on one tile and SmolLM2-135M's in prefill, training and decoding.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import nn

from llava_s2.s2.packed_linear import SWITCH, pack_frozen

SIZES = ((577, 1024, 1024), (577, 1024, 4096), (577, 4096, 1024), (240, 576, 576), (60, 576, 1536), (1, 576, 1536))


def seconds(layer: nn.Module, tokens: torch.Tensor) -> float:
    """CPU seconds a call, over about a fifth of a second of calls."""
    layer(tokens)
    started, calls = time.thread_time(), 0
    while time.thread_time() - started < 0.2:
        layer(tokens)
        calls += 1
    return (time.thread_time() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[SWITCH] = "1"
    rows = []
    for tokens, inputs, outputs in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            plain = nn.Sequential(nn.Linear(inputs, outputs).to(dtype)).requires_grad_(False)
            layers = {
                "plain": plain,
                "packed": pack_frozen(nn.Sequential(nn.Linear(inputs, outputs).to(dtype)).requires_grad_(False)),
            }
            given = torch.randn(tokens, inputs, dtype=dtype)
            best = {name: min(seconds(layer, given) for _ in range(5)) for name, layer in layers.items()}
            rate = 2e-9 * tokens * inputs * outputs
            rows.append(
                {
                    "size": f"{tokens} x {inputs} x {outputs}",
                    "dtype": str(dtype).removeprefix("torch."),
                    "packed over plain": round(best["packed"] / best["plain"], 2),
                    "GFLOP/s": {name: round(rate / time_) for name, time_ in best.items()},
                }
            )
            print(rows[-1], flush=True)
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    report = {
        "command": "python benchmarks/packed_linear.py",
        "processor": processor.partition(":")[2].strip(),
        "torch": torch.__version__,
        "rows": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

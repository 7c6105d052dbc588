"""A training step of a small Llama on a CPU, with malloc's pages of 4 KiB and with huge ones: CPU time in turns.

    python benchmarks/huge_pages.py --output benchmarks/results/huge_pages_intel.json

Every tensor that an operation makes is fresh memory; with small pages the system hands it out 4 KiB at a time.
``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` is glibc's (2.35 or later) and has to be there when the process starts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VARIABLE = "GLIBC_TUNABLES"
SETTINGS = {"small pages": "glibc.malloc.hugetlb=0", "huge pages": "glibc.malloc.hugetlb=1"}


def step_seconds() -> float:
    """CPU seconds of a step of SmolLM2-135M's shape with six blocks, four rows of 256 tokens, bfloat16; the median."""
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9
    )
    model, laps = LlamaForCausalLM(config).to(torch.bfloat16), []
    tokens = torch.randint(4096, (4, 256))
    for _ in range(8):
        started = time.process_time()
        model(input_ids=tokens, labels=tokens).loss.backward()
        model.zero_grad()
        laps.append(time.process_time() - started)
    return statistics.median(laps[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(step_seconds())
        return
    laps: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            environment = {**os.environ, VARIABLE: setting}
            words = [sys.executable, __file__, "--one"]
            printed = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            laps[name].append(round(float(printed.split()[-1]), 3))
    small, huge = (min(values) for values in laps.values())
    result = {"cpu_seconds": laps, "small_over_huge": round(small / huge, 2)}
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

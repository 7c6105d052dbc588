"""Time and memory of the S2 tower beside the public s2wrapper and a straightforward path, in one run.

    git clone https://github.com/bfshi/scaling_on_scales
    python benchmarks/tower.py --public scaling_on_scales --paths public,public_split,ours,prepared
    python benchmarks/tower.py --batch 4 --paths straightforward,prepared

CLIP-L/14-336 with random weights on 336, 672 and 1008 pixels: float32 on a CPU, bfloat16 on a GPU where there is one.
Each path is a process of its own that holds the same weights; they take turns, `--rounds` times each after a first
call (which compiles, on a GPU), and the smallest time counts; `--rounds 0` counts the first call. Extra memory is the
largest resident size since the model stood (`VmHWM`; on a GPU what torch allocated) less the size then, so that packing
and compiling count.

With a GPU the tower's rate is set beside the card's measured product rate, and one image's tower time beside a
prefill and 32 tokens of a language model of 7B's shape (`--answer`).
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALES = [336, 672, 1008]
LAYER = -2
TILES = sum((side // SCALES[0]) ** 2 for side in SCALES)
PATHS = {
    "straightforward": "three calls, all hidden states kept, whole maps pooled",
    "public": "the public s2wrapper around LLaVA's CLIP tower",
    "public_split": "the same with its split_forward, a tile a call",
    "ours": "S2VisionModel as it is",
    "prepared": "S2VisionModel after prepare(tower): packed weights on a CPU, compiled with CUDA graphs on a GPU",
    "int8": "S2VisionModel after quantize_linears(tower); its error is stated, not bounded",
    "bfloat16": "S2VisionModel in bfloat16; its error is stated, not bounded",
}
ROUNDED = ("int8", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=1, help="images a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="timed calls of each path (default: %(default)s)")
    parser.add_argument(
        "--paths",
        default="straightforward,prepared",
        help=f"of {', '.join(PATHS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--public", default="", help="folder of a clone of the public repository, for the paths public…"
    )
    parser.add_argument("--layers", type=int, default=24, help="of the backbone (default: %(default)s)")
    parser.add_argument("--answer", action="store_true", help="time a 7B answer too (a GPU of 20 GB)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, args.public)
    if args.worker:
        work(args.worker, args.batch, args.layers, args.output)
        return
    result = run(args.paths.split(","), args.batch, args.rounds, args.layers, args.public)
    if args.answer:
        result["answer_seconds"] = round(time_of_an_answer(), 4)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def run(paths: list[str], batch: int, rounds: int, layers: int, clone: str) -> dict[str, Any]:
    """Starts a process for each path, lets them take turns, and compares; times in seconds, sizes in bytes."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for path in paths:
            command = [sys.executable, __file__, "--worker", path, "--batch", str(batch), "--layers", str(layers)]
            workers[path] = subprocess.Popen(
                [*command, "--public", clone, "--output", f"{folder}/{path}.pt"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        for worker in workers.values():
            _answer(worker)  # the weights stand
        runs: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
        for turn in range(rounds + 1):
            for path, worker in workers.items():
                answer = _ask(worker)
                runs[path].append(answer)
                print(f"{'warm-up' if turn == 0 else f'round {turn}'} {path}: {answer}", file=sys.stderr, flush=True)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
        features = {path: torch.load(f"{folder}/{path}.pt", weights_only=True).float() for path in paths}
    reference = features[paths[0]]
    table = {}
    for path in paths:
        difference = features[path] - reference
        table[path] = {
            "what": PATHS[path],
            "seconds": min(answer["seconds"] for answer in runs[path][1:] or runs[path]),
            "all_seconds": [answer["seconds"] for answer in runs[path][1:] or runs[path]],
            "warm_up_seconds": runs[path][0]["seconds"],
            "extra_bytes": runs[path][-1]["extra_bytes"],
            "largest_difference": float(f"{difference.abs().max():.3g}"),
            "relative_error": float(f"{difference.norm() / reference.norm():.3g}"),
        }
        if path not in ROUNDED and not table[path]["largest_difference"] <= 1e-4 and runs[path][0]["device"] == "cpu":
            raise SystemExit(f"{path} differs from {paths[0]} by {table[path]['largest_difference']}")
    for path in paths:
        for base in ("straightforward", "public", "public_split"):
            if base in paths:
                table[path][f"time_over_{base}"] = round(table[path]["seconds"] / table[base]["seconds"], 3)
                table[path][f"memory_over_{base}"] = round(table[path]["extra_bytes"] / table[base]["extra_bytes"], 3)
    rate = product_rate()
    for path in paths:
        runs_all = path == "straightforward" or path.startswith("public")
        work_done = 2e-9 * batch * TILES * macs_of_a_tile(layers if runs_all else layers - 1)
        table[path]["share_of_product_rate"] = round(work_done / table[path]["seconds"] / rate, 3)
    return {
        "command": f"python {' '.join(sys.argv)}",
        "machine": machine(),
        "batch": batch,
        "layers": layers,
        "product_rate_gflops": round(rate),
        "paths": table,
    }


def _answer(worker: subprocess.Popen) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{worker.args} ended with status {worker.wait()}")
    return json.loads(line)


def _ask(worker: subprocess.Popen) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return _answer(worker)


def work(path: str, batch: int, layers: int, output: Path) -> None:
    """A path's process: builds it, then answers every line of stdin with one timed call."""
    import torch

    import llava_s2.s2.packed_linear  # noqa: F401 - what is imported is no path's own memory

    device, dtype = _device()
    backbone = build(layers).to(device, dtype)
    images = torch.randn(batch, 3, SCALES[-1], SCALES[-1], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    with torch.inference_mode():
        backbone(images[:1, :, : SCALES[0], : SCALES[0]])  # libraries that load at the first call are no path's own
    before = _size(device, reset=True)
    forward = make(path, backbone)
    del backbone
    print(json.dumps({"ready": True}), flush=True)
    for number, _ in enumerate(sys.stdin):
        with torch.inference_mode():
            _synchronize(device)
            started = time.perf_counter()
            features = forward(images)
            _synchronize(device)
            seconds = time.perf_counter() - started
        extra = _peak(device) - before
        if number == 0:
            torch.save(features.cpu().clone(), output)
        answer = {"seconds": round(seconds, 3), "extra_bytes": extra, "device": device}
        print(json.dumps(answer), flush=True)


def build(layers: int) -> Any:
    """The CLIP-L/14-336 vision model with random weights, the same in every process."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    torch.manual_seed(0)
    return CLIPVisionModel(config).eval()


def make(path: str, backbone: Any) -> Callable[[Any], Any]:
    """The function (B, 3, 1008, 1008) → (B, 576, 3072) of a path."""
    import torch

    from llava_s2.s2 import S2VisionModel
    from llava_s2.s2.int8 import quantize_linears
    from llava_s2.s2.packed_linear import prepare

    if path == "straightforward":
        return lambda images: straightforward(backbone, images)
    if path.startswith("public"):
        return lambda images: public(backbone, images, split_forward=path == "public_split")
    tower = S2VisionModel.wrap(backbone, SCALES, feature_layer=LAYER)
    if path == "bfloat16":
        tower.to(torch.bfloat16)
    elif path == "int8":
        quantize_linears(tower)
    elif path == "prepared":
        prepare(tower)
    elif path != "ours":
        raise SystemExit(f"unknown path {path!r}; choose of {', '.join(PATHS)}")
    return lambda images: tower(images).last_hidden_state


def straightforward(backbone: Any, images: Any) -> Any:
    """One call a scale for all its tiles, every hidden state kept, whole maps averaged down at the end."""
    import torch
    import torch.nn.functional as F

    base, outputs, maps = SCALES[0], [], []
    for side in SCALES:
        count = side // base
        resized = F.interpolate(images.float(), size=side, mode="bicubic").to(images.dtype)
        tiles = resized.unfold(2, base, base).unfold(3, base, base).permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
        outputs.append(backbone(tiles, output_hidden_states=True))
        tokens = outputs[-1].hidden_states[LAYER][:, 1:]
        grid = math.isqrt(tokens.shape[1])
        tiled = tokens.reshape(count, count, len(images), grid, grid, -1)
        maps.append(tiled.permute(2, 5, 0, 3, 1, 4).reshape(len(images), -1, count * grid, count * grid))
    pooled = [F.interpolate(one.float(), size=maps[0].shape[2:], mode="area").to(one.dtype) for one in maps]
    return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)


def public(backbone: Any, images: Any, split_forward: bool) -> Any:
    """The public s2wrapper around LLaVA's CLIP tower."""
    from s2wrapper import forward

    def features(tiles: Any) -> Any:
        return backbone(tiles, output_hidden_states=True).hidden_states[LAYER][:, 1:]

    return forward(features, images, img_sizes=SCALES, max_split_size=SCALES[0], split_forward=split_forward)


def macs_of_a_tile(layers: int) -> float:
    """Multiply-accumulates of one 336² tile in ``layers`` blocks of CLIP-L/14."""
    tokens, width = 577, 1024
    return layers * (12 * tokens * width**2 + 2 * tokens**2 * width) + 576 * 3 * 14**2 * width


def product_rate() -> float:
    """GFLOP a second (two a multiply-accumulate) of a large product on the device, in its dtype."""
    import torch

    device, dtype = _device()
    rows = 577 * (112 if device == "cuda" else 2)
    left = torch.randn(rows, 4096, device=device, dtype=dtype)
    right = torch.randn(4096, 4096, device=device, dtype=dtype)
    best = math.inf
    for _ in range(8):
        _synchronize(device)
        started = time.perf_counter()
        left @ right
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2e-9 * rows * 4096**2 / best


def time_of_an_answer() -> float:
    """Seconds of a prefill of 640 tokens and 32 generated ones, a Llama of 7B's shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device, dtype = _device()
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(dtype=dtype)).to(dtype).eval()
    tokens = torch.randint(3, 32000, (1, 640), device=device)
    best = math.inf
    for _ in range(3):
        _synchronize(device)
        started = time.perf_counter()
        model.generate(tokens, max_new_tokens=32, min_new_tokens=32, do_sample=False)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def machine() -> dict[str, Any]:
    import torch
    import transformers

    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "cpu": name,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _device() -> tuple[str, Any]:
    import torch

    return ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _size(device: str, *, reset: bool) -> int:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    return _status("VmRSS")


def _peak(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()

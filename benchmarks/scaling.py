"""Tokens a second on one and two processes, bytes moved a step by each backend, and 8 to 512 GPUs on paper.

    python benchmarks/scaling.py --output benchmarks/results/scaling.json

Measured: LoRA on a random Llama of 20 million parameters, one thread a process, gloo. Each run has a network of its own
(``unshare --net``, which needs root), so the bytes of its loopback device are the run's. On paper: LLaVA-S2-7B from the
same formulas, which the measured bytes must bear out, and a network of 50 GB/s a GPU (400 Gbit/s).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "llava_tiny"
SCRIPTS = ROOT / "scripts" / "train"
BACKENDS: dict[str, list[Any]] = {
    "ddp": [],
    "zero2": ["--deepspeed", SCRIPTS / "zero2.json"],
    "zero3": ["--deepspeed", SCRIPTS / "zero3.json"],
    "fsdp2": ["--fsdp", "--fsdp_config", SCRIPTS / "fsdp2.json"],
}
STEPS = 8
NETWORK = 50e9  # bytes a second and GPU
RATE = 400e12  # FLOP a second and GPU: 40 % of an H100's peak in 16 bits


def bytes_per_process(backend: str, processes: int, trained: float, frozen: float, kept: float, gloo: bool) -> float:
    """Bytes that a process sends in a step, by rings.

    DDP reduces the gradients and spreads the sums; DeepSpeed's ZeRO-2 does the same (its buckets are all-reduced) and
    spreads the new weights after that. ZeRO-3 and FSDP2 gather the weights for the forward and again for the backward
    pass and scatter the sums of the gradients.

    Args:
        trained, frozen: bytes of weights.
        kept: of them, bytes that stay gathered between the two passes: with FSDP2 those of no layer, with ZeRO-3 all of
            a model of up to ``stage3_max_live_parameters``, 1e9.
        gloo: whether gradients are scattered by an all-reduce, as gloo does, which sends them twice.
    """
    share = (processes - 1) / processes
    if backend in ("ddp", "zero2"):
        return share * (3 if backend == "zero2" else 2) * trained
    return share * (2 * (frozen + trained) - kept + (2 if gloo else 1) * trained)


def measure(folder: Path, model: Path, backend: str, processes: int) -> dict[str, float]:
    """Median tokens a second and loopback bytes a step of a short run."""
    out = folder / f"{backend}-{processes}"
    flags = ["--model_name_or_path", model, "--vision_tower", GOLDEN / "clip-tiny", "--s2_scales", "56,112"]
    flags += ["--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none", "--lora_r", 64]
    flags += ["--data_path", folder / "data.json", "--image_folder", folder, "--save_strategy", "no"]
    flags += ["--per_device_train_batch_size", 8 // processes, "--max_steps", STEPS, "--output_dir", out]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port", 29511]
    command = [sys.executable, *launcher, __file__, "--worker", "finetune", *flags, *BACKENDS[backend]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    line = " ".join(map(str, command))
    subprocess.run(["unshare", "--net", "sh", "-c", f"ip link set lo up && {line}"], env=environment, check=True)
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in log if "loopback" in entry][2:]
    moved = [after["loopback"] - before["loopback"] for before, after in pairwise(steps)]
    return {
        "tokens_per_second": round(median(entry["tokens_per_second"] for entry in steps), 1),
        "bytes_a_step": median(moved),
    }


def worker(flags: list[str]) -> int:
    """``llava_s2.train``, with the bytes of the loopback device in its log; accelerate shards on a CPU too."""
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    from llava_s2.train.trainer import LlavaTrainer

    log = LlavaTrainer.log

    def with_bytes(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        device = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "lo:" in line)
        log(self, logs | ({"loopback": int(device.split()[1])} if "loss" in logs else {}), start_time)

    LlavaTrainer.log = with_bytes  # type: ignore[method-assign]
    if "--fsdp" in flags:
        sys.argv[1:] = flags
        import fsdp_on_cpu  # noqa: F401 - runs llava_s2.train and exits
    from llava_s2.cli import main as command_line

    return command_line(["train", *flags])


def on_paper() -> list[dict[str, float | str]]:
    """Efficiency of LLaVA-S2-7B, 16 examples of 1,024 tokens a GPU: without any overlap, and with all there can be."""
    llm, projector, lora, tower = 6.7e9, 29e6, 320e6, 0.3e9
    kept = {"ddp": 0, "zero2": 0, "zero3": 0, "fsdp2": 2 * 2 * 32_000 * 4096}
    rows: list[dict[str, float | str]] = []
    for name, trained, frozen in (("lora", lora + projector, llm + tower), ("full", llm + projector, tower)):
        flops = 16 * 1024 * (4 * llm + 2 * trained) + 16 * 14 * 577 * 2 * tower
        for backend in ("ddp", "zero2", "zero3", "fsdp2"):
            if backend == "ddp" and name == "full":  # does not fit
                continue
            for gpus in (8, 64, 512):
                moved = bytes_per_process(backend, gpus, 2 * trained, 2 * frozen, kept[backend], gloo=False)
                compute, network = flops / RATE, moved / NETWORK
                rows.append(
                    {
                        "trains": name,
                        "backend": backend,
                        "gpus": gpus,
                        "gigabytes_a_step": round(moved / 1e9, 2),
                        "seconds_computing": round(compute, 2),
                        "seconds_on_the_network": round(network, 3),
                        "efficiency_without_overlap": round(compute / (compute + network), 3),
                        "efficiency_with_all_overlap": round(min(1.0, compute / network), 3),
                    }
                )
    return rows


def make_inputs(folder: Path) -> tuple[Path, int, int, int]:
    """A random language model and 80 records. Returns its folder, and parameters trained, frozen, and in no layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(GOLDEN / "vicuna-tiny")
    config.update({"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8})
    config.update({"num_key_value_heads": 8, "head_dim": 32})
    model = shutil.copytree(GOLDEN / "vicuna-tiny", folder / "llm", ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaForCausalLM(config).save_pretrained(model)
    Image.new("RGB", (90, 60), "red").save(folder / "red.png")
    turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "It is red. " * 20}]
    (folder / "data.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}] * 80))
    lora = 4 * 64 * (4 * (256 + 256) + 3 * (256 + 768))
    projector = 64 * 256 + 256 + 256 * 256 + 256
    layers, root = 4 * (4 * 256**2 + 3 * 256 * 768 + 2 * 256), 2 * config.vocab_size * 256
    return model, lora + projector, layers + 256 + root + 45_088, root


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("model name"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--paper", action="store_true", help="nothing is measured")
    args = parser.parse_args()
    result: dict[str, Any] = {"command": " ".join(sys.argv), "cpu": _processor(), "on_paper": on_paper()}
    if not args.paper:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model, trained, frozen, root = make_inputs(folder)
            result["parameters"] = {"trained": trained, "frozen": frozen, "in no layer": root}
            result["one_process"] = measure(folder, model, "ddp", 1)
            result["two_processes"] = {}
            for backend in BACKENDS:
                kept = {"zero3": trained + frozen, "fsdp2": root}.get(backend, 0)
                by_formula = 2 * bytes_per_process(backend, 2, 4 * trained, 4 * frozen, 4 * kept, gloo=True)
                result["two_processes"][backend] = measure(folder, model, backend, 2) | {
                    "bytes_by_the_formula": by_formula
                }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(worker(sys.argv[2:]))
    main()

"""What a training step computes and what the device could, for MFU; memory in use."""

import resource
from dataclasses import dataclass
from typing import Any

import torch

from llava_s2.train.stored_features import StoredTower

# Dense bf16 FLOP/s from the makers' data sheets, by a part of the device's name; the first that matches.
_PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU that is known by its name, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK.items() if part in name), None)


def memory_used(device: torch.device) -> int:
    """The most bytes that this process has held: of a GPU's memory, or on a CPU of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Parameters:
    """Parameters of one part of a model, and how many of them learn."""

    total: int
    learning: int


def count_parameters(model: Any) -> dict[str, Parameters]:
    """Counts ``vision tower``, ``projector``, ``embeddings``, ``language model`` and ``LoRA``, before any sharding.

    Weights packed to 4 bits count one by one; PEFT's frozen copy of a module that it trains does not count.
    """
    counts = dict.fromkeys(("vision tower", "projector", "embeddings", "language model", "LoRA"), Parameters(0, 0))
    markers = {
        "vision_tower": "vision tower",
        "multi_modal_projector": "projector",
        ".lora_": "LoRA",
        "embed_tokens": "embeddings",
    }
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        part = next((part for marker, part in markers.items() if marker in name), "language model")
        size = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        old = counts[part]
        counts[part] = Parameters(old.total + size, old.learning + size * parameter.requires_grad)
    return counts


def step_flops(model: Any) -> tuple[float, float]:
    """FLOPs that a token and an image add to a training step: products of weights, two a multiply-accumulate.

    A weight takes two FLOPs a token forward, two for the gradient of its input (nothing below the first part that
    learns, such as a frozen tower) and two for its own gradient if it learns. Attention's scores (a few percent at
    2,048 tokens) and what activation checkpointing computes again are left out, as is usual for MFU.
    """
    counts = count_parameters(model)
    head = model.get_output_embeddings().weight.numel() if model.config.tie_word_embeddings else 0
    llm, tower, projector = counts["language model"], counts["vision tower"], counts["projector"]
    a_token = 4 * (llm.total + head) + 2 * llm.learning + 6 * counts["LoRA"].total
    vision: Any = model.config.vision_config
    if hasattr(vision, "scales"):
        tokens = vision.num_image_tokens
        positions = sum(
            (count * vision.features_per_side(tile)) ** 2
            for count, tile in zip(vision.num_tiles, vision.tile_sizes, strict=True)
        )
    else:
        positions = tokens = (vision.image_size // vision.patch_size) ** 2
    through_tower = positions * (2 * tower.total + 4 * tower.learning)
    if any(isinstance(module, StoredTower) for module in model.modules()):  # computed before training
        through_tower = 0
    return a_token, through_tower + tokens * (2 * projector.total + 4 * projector.learning)

"""LLaVA's projectors in the stock two-layer one: two layers with GELU between them, or one with the identity behind."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HIDDEN_ACT = {"mlp2x_gelu": "gelu", "linear": "linear"}
"""LLaVA's ``mm_projector_type`` -> ``projector_hidden_act`` of the stock config."""


def new_projector(vision_size: int, text_size: int, kind: str = "mlp2x_gelu") -> dict[str, Tensor]:
    """A fresh projector, float32, initialised as LLaVA's (``nn.Linear``'s default).

    Args:
        vision_size: width of the tower's features. text_size: the language model's. kind: a key of ``HIDDEN_ACT``.
    """
    first, second = nn.Linear(vision_size, text_size), nn.Linear(text_size, text_size)
    if kind == "linear":
        return with_identity({name: value.detach() for name, value in first.named_parameters()})
    return {
        f"linear_{number}.{name}": value.detach()
        for number, layer in ((1, first), (2, second))
        for name, value in layer.named_parameters()
    }


def with_identity(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stock projector that computes what a single linear layer (``weight``, ``bias``) does."""
    size = layer["weight"].shape[0]
    second = {"linear_2.weight": torch.eye(size), "linear_2.bias": torch.zeros(size)}
    return {**{f"linear_1.{name}": tensor for name, tensor in layer.items()}, **second}


def single_layer(projector: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``weight`` and ``bias`` of a projector whose second layer is the identity; None of another."""
    weight, bias = projector["linear_2.weight"], projector["linear_2.bias"]
    if bias.any() or not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
        return None
    return {name: projector[f"linear_1.{name}"] for name in ("weight", "bias")}

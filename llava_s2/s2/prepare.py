"""A tower made faster for inference where it is: packed weights on a CPU, a compiled backbone on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP

# What a product is packed for, the tokens of one tile of CLIP-L/14-336; other numbers of rows work too.
_ROWS = 577
_QUICK = 1.702  # CLIP's activation is x * sigmoid(1.702 x)


def prepare(tower: Any) -> Any:
    """Readies a tower for inference on the device it is on. In place; its answers stay the same.

    In float32 on a CPU the linear layers' weights are packed once for oneDNN, CLIP's activation is part of the product
    before it, and a call takes four times the tiles, which products like better. The weights can still be saved, but
    not trained, moved or cast. On a GPU the backbone is compiled with CUDA graphs; images should then come in batches
    of few different sizes.

    Args:
        tower: an `S2VisionModel` in eval mode.

    Returns:
        The same tower.

    Raises:
        ValueError: the tower is in training mode.

    Example:
        >>> prepare(model.model.vision_tower)
    """
    if tower.training:
        raise ValueError("a prepared tower does not learn: call eval() first")
    backbone = tower.backbone.requires_grad_(False)
    device = next(backbone.parameters()).device
    if device.type == "cuda":
        backbone.compile(mode="reduce-overhead")
    elif device.type == "cpu" and torch.backends.mkldnn.is_available():
        for name, mlp in list(backbone.named_modules()):
            if type(mlp) is CLIPMLP and type(mlp.activation_fn) is QuickGELUActivation and _is_float(mlp):
                backbone.set_submodule(name, PackedMLP(mlp))
                del mlp.fc1.weight, mlp.fc2.weight
        for name, layer in list(backbone.named_modules()):
            if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                backbone.set_submodule(name, PackedLinear(layer))
                del layer.weight  # the list above still holds the layer; no more than one is in memory twice
    return tower


class PackedLinear(nn.Module):
    """A float32 `nn.Linear` whose weight lies in the order in which oneDNN's product reads it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.out_features, self.in_features = linear.weight.shape

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.packed.to_dense()

    def _apply(self, fn: Callable, recurse: bool = True) -> "PackedLinear":
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise ValueError("a prepared tower stays in float32 on the CPU: load it anew to move or cast it")
        return super()._apply(fn, recurse)


class PackedMLP(nn.Module):
    """CLIP's MLP, with its activation inside the first product.

    oneDNN has swish, y * sigmoid(y). Of y = 1.702 x it is 1.702 times the activation of x.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = PackedLinear(mlp.fc1), PackedLinear(mlp.fc2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = torch.ops.mkldnn._linear_pointwise(
            hidden_states * _QUICK, self.fc1.packed, self.fc1.bias * _QUICK, "swish", [], ""
        )
        product = torch.ops.mkldnn._linear_pointwise(inner, self.fc2.packed, None, "none", [], "")
        return torch.add(self.fc2.bias, product, alpha=1 / _QUICK)


def _is_float(mlp: Any) -> bool:
    return all(type(layer) is nn.Linear and layer.weight.dtype == torch.float32 for layer in (mlp.fc1, mlp.fc2))

"""A tower made faster for inference: packed, int8 or compiled. It answers as before, learns no more."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

# What a product is packed for, the tokens of one tile of CLIP-L/14-336; other numbers of rows work too.
_ROWS = 577


def prepare(tower: nn.Module) -> nn.Module:
    """Readies a tower for inference where it is. In place; answers stay the same.

    In float32 on a CPU the linear layers' weights are packed once for oneDNN, and a call takes four times the tiles,
    which its products like better. The weights can still be saved, but not trained, moved or cast. On a GPU the
    backbone is compiled with CUDA graphs; images should then come in batches of few different sizes.

    Args:
        tower: an `S2VisionModel` in eval mode.

    Returns:
        The same tower.

    Raises:
        ValueError: the tower is in training mode.

    Example:
        >>> prepare(model.model.vision_tower)
    """
    backbone, device = _inference_only(tower)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        _swap(backbone, PackedLinear, lambda layer: layer.weight.dtype == torch.float32)
        cast(Any, tower).cpu_tokens_a_call *= 4
    elif device.type == "cuda":
        cast(Any, tower).config.reuse_flat_tiles = False  # it would make calls of every size
        backbone.compile(mode="reduce-overhead")
    return tower


def quantize_tower(tower: nn.Module) -> nn.Module:
    """Has the linear layers of a tower compute in 8-bit integers on the CPU. In place.

    Weights have a scale for each output channel, activations one for each token, found as they come; sums are exact,
    all else stays in the tower's dtype. Patch embedding, attention and norms are not touched. Nothing is calibrated.

    Args:
        tower: an `S2VisionModel`, in eval mode, on the CPU.

    Returns:
        The same tower.

    Raises:
        ValueError: the tower is in training mode or not on the CPU, or torch was built without oneDNN.
    """
    backbone, device = _inference_only(tower)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise ValueError(f"int8 linear layers need a CPU and a torch with oneDNN; the tower is on {device}")
    _swap(backbone, Int8Linear, lambda layer: True)
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
        if fn(torch.empty(0)).device.type != "cpu" or fn(torch.empty(0)).dtype != torch.float32:
            raise ValueError("a prepared tower stays in float32 on the CPU: load it anew to move or cast it")
        return super()._apply(fn, recurse)


class Int8Linear(nn.Module):
    """An `nn.Linear` with int8 weights, on inputs rounded to 8 bits token by token.

    Args:
        linear: float weights (out, in), on the CPU.
    """

    scale: Tensor
    zero: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64), persistent=False)
        bias = torch.zeros(len(scale)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias, persistent=False)
        self.out_features, self.in_features = linear.weight.shape
        self.levels = _activation_levels()

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        largest = rows.abs().amax(1, keepdim=True).float()
        step = (largest / self.levels).clamp(min=torch.finfo(torch.float32).tiny)
        # The fast product takes bytes without sign: 128 stands for 0. The cast cuts off, so the half makes it round.
        whole = (rows * step.reciprocal()).add_(128.5).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.packed, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self.bias, product, step).to(input.dtype).view(*input.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise ValueError("a tower in int8 cannot be saved: save it before quantize_tower")


def _activation_levels() -> int:
    """Steps from 0 to a token's largest value. Without VNNI, sums of products of 8 bits may overflow."""
    features = torch.cpu.get_capabilities()
    x86 = features.get("architecture") == "x86_64"
    return 127 if not x86 or features.get("avx512_vnni") or features.get("avx_vnni") else 63


def _inference_only(tower: nn.Module) -> tuple[nn.Module, torch.device]:
    if tower.training:
        raise ValueError("a prepared tower does not learn: call eval() first")
    backbone = cast(nn.Module, tower.backbone).requires_grad_(False)
    return backbone, next(backbone.parameters()).device


def _swap(backbone: nn.Module, kind: Callable[[nn.Linear], nn.Module], wanted: Callable[[nn.Linear], bool]) -> None:
    """Replaces the linear layers one by one, so that never more than one is in memory twice."""
    for name, module in list(backbone.named_modules()):
        if type(module) is nn.Linear and wanted(module):
            backbone.set_submodule(name, kind(module))
            del module.weight  # the list above still holds the layer

"""Frozen weights made faster where they are: packed for oneDNN on a CPU, a compiled backbone on a GPU."""

import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP

Model = TypeVar("Model", bound=nn.Module)

SWITCH = "LLAVA_S2_PACK"
"""Environment variable: 0 leaves all layers as torch has them, 1 packs them even where it measured slower."""

# What a product is packed for, the tokens of one tile of CLIP-L/14-336; other numbers of rows work too.
_ROWS = 577
_QUICK = 1.702  # CLIP's activation is x * sigmoid(1.702 x)


def pack_frozen(model: Model) -> Model:
    """Packs the weights of all frozen linear layers on a CPU once, in the order in which oneDNN's product reads them.

    In place; results stay the same to float rounding, in float32 and bfloat16. Gradients pass through a packed layer to
    its input, so that LoRA and a projector train over it. Its weight is saved as before, but cannot be trained, moved
    or cast. CLIP's activation becomes part of the product before it. Every command of `llava-s2` does this where the
    model is on a CPU, unless the environment has LLAVA_S2_PACK=0. In float32 it is done beside MKL's own product alone
    where that is slower: not on Intel's processors.

    Args:
        model: layers whose weight requires no gradient are packed; quantized and tied ones are left alone.

    Returns:
        The same model. Packing it again changes nothing.

    Example:
        >>> pack_frozen(model.requires_grad_(False))
    """
    if os.environ.get(SWITCH) == "0" or not torch.backends.mkldnn.is_available():
        return model
    for name, mlp in list(model.named_modules()):
        layers = (getattr(mlp, "fc1", None), getattr(mlp, "fc2", None))
        if type(mlp) is CLIPMLP and type(mlp.activation_fn) is QuickGELUActivation and all(map(_is_packable, layers)):
            model.set_submodule(name, PackedMLP(mlp))
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for layer in model.modules():
        if _is_packable(layer) and owners[id(layer.weight)] == 1:
            _pack(layer)
    return model


def prepare(tower: Any) -> Any:
    """Readies a tower for inference on the device it is on. In place; its features stay the same.

    On a CPU see `pack_frozen`. On a GPU the backbone is compiled with CUDA graphs; images should then come in batches
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
    if next(backbone.parameters()).device.type == "cuda":
        backbone.compile(mode="reduce-overhead")
    else:
        pack_frozen(backbone)
    return tower


class PackedLinear(nn.Linear):
    """A frozen `nn.Linear` whose weight lies in the order in which oneDNN's product reads it."""

    # Its transpose, for the gradient of the input: there from the first backward on.
    transposed: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        if input.dtype != self.weight.dtype:  # weights in float32 under autocast
            return nn.functional.linear(input, self.dense().to(input.dtype), self.bias)
        if input.requires_grad and torch.is_grad_enabled():
            return _PackedProduct.apply(input, self)
        return _product(input, self.weight, self.bias)

    def dense(self) -> Tensor:
        """The weight (out, in) as it was."""
        return self.weight.detach().to_dense()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.dense()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Takes a weight as it was saved: ``Trainer`` reads a whole model's checkpoint into the packed one."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, "cpu", self.weight.dtype)
        plain.requires_grad_(False).weight.copy_(self.dense())
        plain._load_from_state_dict(state_dict, prefix, *args)
        self.weight, self.transposed = _pack(plain).weight, None
        if self.bias is not None and prefix + "bias" in state_dict:
            self.bias = plain.bias

    def _apply(self, fn: Callable, recurse: bool = True) -> "PackedLinear":
        moved = fn(torch.empty(0, dtype=self.weight.dtype))
        if moved.device.type != "cpu" or moved.dtype != self.weight.dtype:
            raise ValueError(
                f"packed weights stay in {str(self.weight.dtype)[6:]} on the CPU: load the model anew to move or cast "
                f"it, or set {SWITCH}=0"
            )
        return self

    def __deepcopy__(self, memo: dict) -> "PackedLinear":
        copy = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.weight.dtype)
        copy.weight = nn.Parameter(self.dense(), requires_grad=False)
        if self.bias is not None:
            copy.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        memo[id(self)] = packed = _pack(copy.train(self.training))
        return packed


class PackedMLP(nn.Module):
    """CLIP's MLP, with its activation inside the first product.

    oneDNN has swish, y * sigmoid(y). Of y = 1.702 x it is 1.702 times the activation of x.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = _pack(mlp.fc1), _pack(mlp.fc2)
        self.train(mlp.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.requires_grad and torch.is_grad_enabled():
            inner = self.fc1(hidden_states)
            return self.fc2(inner * torch.sigmoid(_QUICK * inner))
        inner = _product(hidden_states * _QUICK, self.fc1.weight, self.fc1.bias * _QUICK, "swish")
        return torch.add(self.fc2.bias, _product(inner, self.fc2.weight, None), alpha=1 / _QUICK)


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return _product(input, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        if layer.transposed is None:
            layer.transposed = torch.ops.mkldnn._reorder_linear_weight(layer.dense().t().contiguous(), _ROWS)
        return _product(gradient, layer.transposed, None), None


def _product(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, bias, activation, [], "")


def _is_packable(layer: Any) -> bool:
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and (
            (layer.weight.dtype == torch.float32 and _gains_in_float32())
            or (layer.weight.dtype == torch.bfloat16 and _has_bfloat16())
        )
        and not any(weight.requires_grad for weight in layer.parameters())
    )


def _gains_in_float32() -> bool:
    """Whether oneDNN's product is faster than MKL's: twice as fast on AMD's processors, 15 % slower on Intel's."""
    return os.environ.get(SWITCH) == "1" or not _is_intel()


@cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(layer: Any) -> Any:
    """Turns an `nn.Linear` into a `PackedLinear` where it stands."""
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), requires_grad=False)
    layer.__class__ = PackedLinear
    layer.transposed = None
    return layer

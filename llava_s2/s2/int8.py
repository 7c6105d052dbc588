"""Linear layers in int8 on a CPU: weights rounded once, activations token by token as they come.

The products are oneDNN's, through the operators that torch's own compiler uses on x86, with weights packed once.
torchao rounds in the same way, but outside ``torch.compile`` it packs the weights again in every call.
"""

import torch
from torch import Tensor, nn

_ZERO_POINT = 128  # the fast products take unsigned activations


class Int8Linear(nn.Module):
    """An ``nn.Linear`` with int8 weights, one scale an output channel; activations get one scale a token.

    For inference. Takes and gives floating-point tensors, (..., in) -> (..., out), as the layer it replaces.

    Args:
        linear: on the CPU, any floating dtype. Its weights can be freed afterwards.

    Raises:
        ValueError: see `check_int8`.
        RuntimeError: it is saved, or a gradient is wanted through it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        check_int8()
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self._bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an int8 layer has no gradient; load the model without int8 to train it")
        tokens = x.reshape(-1, self.in_features).float()
        scales = tokens.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        # With the sign bit flipped it is the number plus 128; torch turns floats into int8 far faster than into uint8.
        rounded = (tokens / scales).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO_POINT)
        product = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, _ZERO_POINT, self._packed, self._scales, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        if self._bias is None:
            product *= scales
        else:
            torch.addcmul(self._bias, product, scales, out=product)
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError("int8 weights are packed for this processor and cannot be saved: save the model before")


def check_int8() -> None:
    """Raises ValueError where this machine has no fast and exact int8 products."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
        raise ValueError(
            f"int8 needs an x86 processor with VNNI (this one: {capabilities}): use bfloat16 or float32 here"
        )


def quantize_linears(module: nn.Module) -> nn.Module:
    """Replaces every ``nn.Linear`` in ``module`` by an `Int8Linear`, in place, and returns ``module``.

    One layer at a time, so that float and int8 weights never are in memory together.

    Raises:
        ValueError: see `check_int8`.

    Example:
        >>> tower = quantize_linears(S2VisionModel.wrap(clip, scales=[336, 672, 1008]))
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    return module

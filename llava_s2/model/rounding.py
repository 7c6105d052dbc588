"""When two numbers of a model are so close that rounding decides which is larger."""

import torch


def near_tie(margin: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whether the rounding of half precision could swap the best and the second best.

    Computed in another batch, a half-precision model's logits come out differently rounded, each of the two by about a
    unit in its last place; float32's differ too, but far less than any two answers do.

    Args:
        margin: best minus second best, any shape.
        scale: absolute size of the logits that they come from, of the same shape.
        dtype: the model's.

    Returns:
        bool, of the same shape; all False in float32.
    """
    if dtype.itemsize > 2:
        return torch.zeros_like(margin, dtype=torch.bool)
    return margin <= 2 * torch.finfo(dtype).eps * scale

"""Tiles of one colour, such as a picture's padding: every one of them has the same features, so run one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The bicubic resize of a constant is constant to a few rounding errors; one step of an 8-bit pixel is a thousand times
# this, so that no two colours are taken for one another.
_TOLERANCE = 8 * torch.finfo(torch.float32).eps


@dataclass
class _Colour:
    value: Tensor  # (C,), float32 on the CPU
    features: Tensor


class FlatTiles:
    """Remembers a frozen model's features of tiles of one colour, as long as its weights stay what they are.

    Args:
        size: how many colours are remembered, the latest used.
    """

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self._known: list[_Colour] = []  # the latest used last
        self._state: object = None

    def run(self, model: Callable[[Tensor], Tensor], tiles: Tensor, weights: Iterable[Tensor]) -> Tensor:
        """``model(tiles)``, where tiles of one colour are run once and then looked up.

        Args:
            model: gives each tile of (n, C, h, w) its features (n, …), each on its own; must be in eval mode.
            tiles: (n, C, h, w), n at least 1.
            weights: all that the model's answer depends on besides the tiles.
        """
        flat = _is_flat(tiles)
        if not any(flat):
            return model(tiles)
        kind = tiles.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        state = (tuple(tiles.shape[1:]), tiles.dtype, tiles.device, cast, _state(weights))
        if state != self._state:
            self._known, self._state = [], state
        run = [index for index, is_flat in enumerate(flat) if not is_flat]
        new: list[_Colour] = []
        colours: list[_Colour | None] = []
        for index, value in enumerate(tiles[:, :, 0, 0].float().cpu()):
            colour = _find(value, [*self._known, *new]) if flat[index] else None
            if flat[index] and colour is None:
                colour = _Colour(value, value)  # its features are to come
                new.append(colour)
                run.append(index)
            colours.append(colour)
        answers = iter(model(tiles[run]) if run else ())
        others = [next(answers) for _ in range(len(run) - len(new))]
        for colour, features in zip(new, answers, strict=True):
            colour.features = features.clone()  # a view would keep all features of the call alive
        rest = iter(others)
        output = torch.stack([next(rest) if colour is None else colour.features for colour in colours])
        used = [colour for colour in self._known if any(colour is other for other in colours)]
        unused = [colour for colour in self._known if not any(colour is other for other in used)]
        self._known = [*unused, *used, *new][-self.size :]
        return output

    def clear(self) -> None:
        """Forgets all features."""
        self._known = []


def _is_flat(tiles: Tensor) -> list[bool]:
    """Which tiles are one colour all over."""
    high, low = tiles.amax((2, 3)).float(), tiles.amin((2, 3)).float()
    return (high - low <= _TOLERANCE * high.abs().clamp(min=1)).all(1).tolist()


def _find(value: Tensor, known: list[_Colour]) -> _Colour | None:
    for colour in known:
        if ((value - colour.value).abs() <= _TOLERANCE * colour.value.abs().clamp(min=1)).all():
            return colour
    return None


def _state(weights: Iterable[Tensor]) -> object:
    """Differs whenever a weight does: counts of changes in place, and norms for changes that go past the counts."""
    # Quantized weights are of other types, and nobody changes them.
    tensors = [weight for weight in weights if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()]
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    places = [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors]) if tensors else []
    return versions, places, [norm.item() for norm in norms]

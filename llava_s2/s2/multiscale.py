"""Multi-scale features of any vision model (the S2-Wrapper, section 3.1 of arXiv:2403.13043)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class _Scale:
    """How one image scale is run: resized to `size`, stretched to `run_size`, cut in `rows` x `columns`
    tiles."""

    size: Size
    run_size: Size
    rows: int
    columns: int

    @property
    def tile_size(self) -> Size:
        return self.run_size[0] // self.rows, self.run_size[1] // self.columns

    def map_size(self, tile_grid: Size) -> Size:
        """Size of this scale's feature map when a tile's features are a `tile_grid`."""
        height, width = self.rows * tile_grid[0], self.columns * tile_grid[1]
        return (
            math.ceil(self.size[0] / self.run_size[0] * height),
            math.ceil(self.size[1] / self.run_size[1] * width),
        )


def multiscale_forward(
    model: Callable[[Tensor], Tensor],
    input: Tensor,
    scales: Sequence[float] | None = None,
    img_sizes: Sequence[int | Size] | None = None,
    max_split_size: int | Size | None = None,
    resize_output_to_idx: int = 0,
    num_prefix_token: int = 0,
    output_shape: Literal["bnc", "bchw"] = "bnc",
    split_forward: bool = False,
    *,
    merge: Literal["concat", "add"] = "concat",
    split: bool = True,
    max_tiles_per_call: int | None = None,
) -> Tensor:
    """Run `model` on several scales of `input` and merge the features on one scale's grid.

    Each scale is a bicubic resize of the input (float32, no antialiasing), cut into equal tiles no larger
    than `max_split_size`. The tiles' features are put back in place, averaged down to the output grid (area
    interpolation, float32) and merged over scales in the order given. Follows the public s2wrapper, whose
    square inputs give the same numbers here.

    Args:
        model: maps tiles (n, C, h, w) to features: tokens (n, prefix + grid, D), row by row, or maps (n, D,
            h', w'). One call may hold the tiles of several scales and images; no call mixes tile sizes.
        input: images, float (B, C, H, W); H and W may differ.
        scales: factors on the input's size, whole or fractional (sides are rounded down).
        img_sizes: sides in pixels instead, or (height, width) pairs. Wins over `scales`.
        max_split_size: largest tile side in pixels, or (height, width); default: the input's own size. A side
            is cut into ceil(side / max_split_size) equal tiles. Only a non-square scale under a single
            number, where equal tiles would lose the square shape that models are trained on, is stretched to
            whole square tiles, and its map brought back in proportion.
        resize_output_to_idx: which scale's feature grid the output has.
        num_prefix_token: tokens (CLS, registers) before the grid: averaged over a scale's tiles, merged like
            the features and put first. Only with "bnc".
        output_shape: what `model` returns and what is returned: tokens "bnc" or maps "bchw".
        split_forward: run one tile of every image (B at once) in each call.
        merge: "concat" scales along channels (the paper's choice) or "add" them (its table 13).
        split: False runs each scale as one whole image (the paper's table 12); the model must take any size.
        max_tiles_per_call: bound on tiles (of all images and scales) in one call; default: no bound.

    Returns:
        (B, prefix + grid, D * number of scales) or (B, D * number of scales, h', w'), in the dtype `model`
        returns; D channels with merge="add".

    Raises:
        ValueError: arguments that contradict each other, a scale that does not divide into equal tiles, or
            features that are not a grid over the tile.

    Example:
        >>> multiscale_forward(vit, images, scales=[1, 2, 3], num_prefix_token=1).shape  # (B, 1 + N, 3 * D)
    """
    if input.dim() != 4:
        raise ValueError(f"input must be (B, C, H, W), not {tuple(input.shape)}")
    if output_shape not in ("bnc", "bchw"):
        raise ValueError(f"output_shape must be 'bnc' (tokens) or 'bchw' (feature maps), not {output_shape!r}")
    if merge not in ("concat", "add"):
        raise ValueError(f"merge must be 'concat' or 'add', not {merge!r}")
    if num_prefix_token < 0 or (num_prefix_token and output_shape == "bchw"):
        raise ValueError(f"num_prefix_token={num_prefix_token}: feature maps ('bchw') have no prefix tokens")
    if max_tiles_per_call is not None and max_tiles_per_call < 1:
        raise ValueError(f"max_tiles_per_call must be at least 1, not {max_tiles_per_call}")
    plan = _plan(_sizes(input.shape[-2:], scales, img_sizes), input.shape[-2:], max_split_size, split)
    if not -len(plan) <= resize_output_to_idx < len(plan):
        raise ValueError(f"resize_output_to_idx={resize_output_to_idx}, but there are {len(plan)} scales")
    target = resize_output_to_idx % len(plan)

    batch = input.shape[0]
    limit = min(max_tiles_per_call or math.inf, batch if split_forward else math.inf)
    tiles_out: list[list[Tensor]] = [[] for _ in plan]
    prefix_out: list[list[Tensor]] = [[] for _ in plan]
    output_size: Size | None = None
    # Scales with equal tiles share calls. The target scale's group runs first: its grid is what the others
    # pool to.
    for tile_size in dict.fromkeys([plan[target].tile_size, *(scale.tile_size for scale in plan)]):
        group = [index for index, scale in enumerate(plan) if scale.tile_size == tile_size]
        tiles = torch.cat([_tiles(input, plan[index]) for index in group])
        owners = [index for index in group for _ in range(plan[index].rows * plan[index].columns * batch)]
        step = max(int(min(limit, len(owners))), 1)
        for start in range(0, len(owners), step):
            call_owners = owners[start : start + step]
            features = model(tiles[start : start + step])
            _check_features(features, len(call_owners), output_shape)
            prefix, maps = _as_maps(features, tile_size, num_prefix_token, output_shape)
            if output_size is None:
                output_size = plan[target].map_size((maps.shape[1], maps.shape[2]))
            for index in dict.fromkeys(call_owners):
                first = call_owners.index(index)
                mine = slice(first, first + call_owners.count(index))
                tiles_out[index].append(_pool_tiles(maps[mine], plan[index], output_size))
                if prefix is not None:
                    prefix_out[index].append(prefix[mine].clone())  # a view would keep all features alive
    assert output_size is not None

    merged: list[Tensor] = []
    for scale, parts in zip(plan, tiles_out, strict=True):
        merged.append(_join_tiles(torch.cat(parts), scale, output_size))
        parts.clear()
    output = _merge(merged, merge)
    if output_shape == "bchw":
        return output.permute(0, 3, 1, 2).contiguous()
    output = output.flatten(1, 2)
    if num_prefix_token:
        means: list[Tensor] = []
        for parts in prefix_out:
            tokens = torch.cat(parts).unflatten(0, (-1, batch))
            means.append(tokens.mean(0, dtype=_wide(tokens.dtype)).to(tokens.dtype))
        output = torch.cat([_merge(means, merge), output], dim=1)
    return output


def _sizes(
    input_size: Sequence[int], scales: Sequence[float] | None, img_sizes: Sequence[int | Size] | None
) -> list[Size]:
    """The scales' sizes in pixels."""
    height, width = input_size
    if img_sizes is not None:
        sizes = [
            (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (int(size), int(size)) for size in img_sizes
        ]
    elif scales is not None:
        sizes = [(int(height * scale), int(width * scale)) for scale in scales]
    else:
        raise ValueError("pass scales (factors on the input's size) or img_sizes (pixels)")
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError(f"scales must be a non-empty list of positive sizes, not {sizes}")
    return sizes


def _plan(sizes: list[Size], input_size: Sequence[int], max_split_size: int | Size | None, split: bool) -> list[_Scale]:
    """Decide for every scale how many tiles it has and how large they are."""
    if not split:
        return [_Scale(size, size, 1, 1) for size in sizes]
    square_tiles = isinstance(max_split_size, int)
    if max_split_size is None:
        largest = (int(input_size[0]), int(input_size[1]))
    elif isinstance(max_split_size, int):
        largest = (max_split_size, max_split_size)
    else:
        largest = (int(max_split_size[0]), int(max_split_size[1]))
    if min(largest) < 1:
        raise ValueError(f"max_split_size must be positive, not {max_split_size}")
    plan = []
    for size in sizes:
        rows, columns = math.ceil(size[0] / largest[0]), math.ceil(size[1] / largest[1])
        run_size = size
        if square_tiles and size[0] != size[1]:
            run_size = (rows * largest[0], columns * largest[1])
        elif size[0] % rows or size[1] % columns:
            fit = (size[0] - size[0] % rows, size[1] - size[1] % columns)
            raise ValueError(
                f"a scale of {size[0]} x {size[1]} pixels does not divide into {rows} x {columns} equal "
                "tiles of at "
                f"most {largest[0]} x {largest[1]}: use {fit[0]} x {fit[1]}, or another max_split_size"
            )
        plan.append(_Scale(size, run_size, rows, columns))
    return plan


def _tiles(images: Tensor, scale: _Scale) -> Tensor:
    """Tiles of one scale, (rows * columns * B, C, h, w): row by row, all images of a tile together."""
    for size in (scale.size, scale.run_size):
        images = _resize(images, size)
    batch, channels = images.shape[:2]
    height, width = scale.tile_size
    grid = images.reshape(batch, channels, scale.rows, height, scale.columns, width)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, height, width)


def _resize(images: Tensor, size: Size) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    wide = images.to(_wide(images.dtype))
    return F.interpolate(wide, size=size, mode="bicubic", align_corners=False).to(images.dtype)


def _check_features(features: Tensor, tiles: int, output_shape: str) -> None:
    if not isinstance(features, Tensor):
        raise ValueError(
            f"model must return a tensor of features, not {type(features).__name__}: pass a function that "
            "picks one, "
            "such as lambda x: model(x).last_hidden_state"
        )
    if features.dim() != len(output_shape) or features.shape[0] != tiles:
        raise ValueError(
            f"model gave {tuple(features.shape)} for {tiles} tiles; with output_shape={output_shape!r} it "
            "must give "
            + ("(tiles, tokens, channels)" if output_shape == "bnc" else "(tiles, channels, height, width)")
        )


def _as_maps(
    features: Tensor, tile_size: Size, num_prefix_token: int, output_shape: str
) -> tuple[Tensor | None, Tensor]:
    """Split features into prefix tokens (n, prefix, D) and maps with channels last (n, h', w', D)."""
    if output_shape == "bchw":
        return None, features.permute(0, 2, 3, 1)
    prefix = features[:, :num_prefix_token] if num_prefix_token else None
    tokens = features[:, num_prefix_token:]
    grid = _token_grid(tokens.shape[1], tile_size)
    if grid is None:
        raise ValueError(
            f"{tokens.shape[1]} tokens (without {num_prefix_token} prefix tokens) are no grid over a tile of "
            f"{tile_size[0]} x {tile_size[1]} pixels: num_prefix_token must count the CLS and register tokens"
        )
    return prefix, tokens.unflatten(1, grid)


def _token_grid(tokens: int, tile_size: Size) -> Size | None:
    """Rows and columns of `tokens` square patches over a tile; None if no patch size gives that number."""
    height, width = tile_size
    if height == width:
        side = math.isqrt(tokens)
        return (side, side) if side and side * side == tokens else None
    # Patches at the edge may be cut off (no padding) or be kept (padding), the same on both axes.
    for patch in range(1, max(height, width) + 1):
        for grid in ((height // patch, width // patch), (-(-height // patch), -(-width // patch))):
            if grid[0] * grid[1] == tokens:
                return grid
    return None


def _tile_ratio(tile_grid: Size, scale: _Scale, output_size: Size) -> Size | None:
    """How many feature rows and columns of a tile make one output cell; None if cells cross tile borders."""
    if scale.run_size != scale.size:
        return None
    ratio = []
    for tile, count, output in zip(tile_grid, (scale.rows, scale.columns), output_size, strict=True):
        if tile * count % output or tile % (tile * count // output):
            return None
        ratio.append(tile * count // output)
    return ratio[0], ratio[1]


def _pool_tiles(maps: Tensor, scale: _Scale, output_size: Size) -> Tensor:
    """Average each tile's map (n, h', w', D) down on its own where that is exact, so no whole map is ever
    made."""
    ratio = _tile_ratio((maps.shape[1], maps.shape[2]), scale, output_size)
    if ratio is None or ratio == (1, 1):
        return maps
    cells = maps.unflatten(2, (-1, ratio[1])).unflatten(1, (-1, ratio[0]))
    return cells.mean((2, 4), dtype=_wide(maps.dtype)).to(maps.dtype)


def _join_tiles(maps: Tensor, scale: _Scale, output_size: Size) -> Tensor:
    """Put tiles (rows * columns * B, h', w', D) in place and bring the map to `output_size`."""
    tile_grid = (maps.shape[1], maps.shape[2])
    whole = maps.unflatten(0, (scale.rows, scale.columns, -1)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    if tuple(whole.shape[1:3]) == output_size and scale.run_size == scale.size:
        return whole
    channels_first = whole.permute(0, 3, 1, 2).to(_wide(maps.dtype))
    for size in (scale.map_size(tile_grid), output_size):
        if tuple(channels_first.shape[-2:]) != size:
            channels_first = F.interpolate(channels_first, size=size, mode="area")
    return channels_first.to(maps.dtype).permute(0, 2, 3, 1)


def _merge(features: list[Tensor], merge: str) -> Tensor:
    if merge == "concat":
        return torch.cat(features, dim=-1)
    total = features[0]
    for more in features[1:]:
        total = total + more
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Resizing and averaging are done in float32 at least."""
    return torch.promote_types(dtype, torch.float32)

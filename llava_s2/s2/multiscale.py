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
class Scale:
    """How one image scale is run: resized to `size`, brought to `run_size`, and cut into `rows` x `columns` tiles.

    Where the sizes differ, `pad` says whether zeros are added (and their features dropped) or the image is stretched.
    """

    size: Size
    run_size: Size
    rows: int
    columns: int
    pad: bool = False

    @property
    def tile_size(self) -> Size:
        return self.run_size[0] // self.rows, self.run_size[1] // self.columns

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    @property
    def is_cropped(self) -> bool:
        return self.pad and self.run_size != self.size

    def map_size(self, tile_grid: Size) -> Size:
        """Size of this scale's feature map when a tile's features are a `tile_grid`."""
        height, width = self.rows * tile_grid[0], self.columns * tile_grid[1]
        if not self.is_cropped:
            return height, width
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
    split_mode: Literal["resize", "pad"] | None = None,
    merge: Literal["concat", "add"] = "concat",
    split: bool = True,
    max_tiles_per_call: int | None = None,
) -> Tensor:
    """Run `model` on several scales of `input` and merge the features on one scale's grid.

    Each scale is a bicubic resize of the input (float32, no antialiasing), cut into equal tiles no larger
    than `max_split_size`. The tiles' features are put back in place, averaged down to the output grid (area
    interpolation, float32) and merged over scales in the order given. The numbers are those of the public s2wrapper
    (github.com/bfshi/scaling_on_scales): of its branch `master` (9c008a3) where the input and all scales are square,
    of its branch `dev_any_shape` (809ce65) where one of them is not.

    Args:
        model: maps tiles (n, C, h, w) to features: tokens (n, prefix + grid, D), row by row, or maps (n, D,
            h', w'). One call may hold the tiles of several scales and images; no call mixes tile sizes.
        input: images, float (B, C, H, W); H and W may differ, and B may be 0.
        scales: factors on the input's size, whole or fractional (sides are rounded down).
        img_sizes: sides in pixels instead, or (height, width) pairs. Wins over `scales`.
        max_split_size: largest tile side in pixels, or (height, width); default: the input's own size. A side
            is cut into ceil(side / max_split_size) tiles, which are equal parts of the scale or, by `split_mode`, whole
            squares of `max_split_size`.
        resize_output_to_idx: which scale's feature grid the output has.
        num_prefix_token: tokens (CLS, registers) before the grid: averaged over a scale's tiles, merged like
            the features and put first. Only with "bnc".
        output_shape: what `model` returns and what is returned: tokens "bnc" or maps "bchw".
        split_forward: run one tile of every image (B at once) in each call.
        split_mode: how a scale comes to whole tiles of `max_split_size` pixels, an int: "resize" stretches it, "pad"
            adds zeros below and on the right and drops their features. Default: equal parts where the input and all
            scales are square or `max_split_size` is a pair, "resize" otherwise.
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
    if split_mode not in (None, "resize", "pad"):
        raise ValueError(f"split_mode must be 'resize' or 'pad', not {split_mode!r}")
    if num_prefix_token < 0 or (num_prefix_token and output_shape == "bchw"):
        raise ValueError(f"num_prefix_token={num_prefix_token}: feature maps ('bchw') have no prefix tokens")
    if max_tiles_per_call is not None and max_tiles_per_call < 1:
        raise ValueError(f"max_tiles_per_call must be at least 1, not {max_tiles_per_call}")
    plan = _plan(_sizes(input.shape[-2:], scales, img_sizes), input.shape[-2:], max_split_size, split, split_mode)
    if not -len(plan) <= resize_output_to_idx < len(plan):
        raise ValueError(f"resize_output_to_idx={resize_output_to_idx}, but there are {len(plan)} scales")
    if split_forward:
        max_tiles_per_call = max(min(max_tiles_per_call or input.shape[0], input.shape[0]), 1)
    maps, prefixes = run_scales(
        model,
        [(input, scale) for scale in plan],
        resize_output_to_idx % len(plan),
        num_prefix_token,
        output_shape,
        max_tiles_per_call,
    )
    output = merge_scales(maps, merge)
    if output_shape == "bchw":
        return output.permute(0, 3, 1, 2).contiguous()
    output = output.flatten(1, 2)
    return torch.cat([merge_scales(prefixes, merge), output], dim=1) if num_prefix_token else output


def run_scales(
    model: Callable[[Tensor], Tensor],
    parts: Sequence[tuple[Tensor, Scale]],
    target: int,
    num_prefix_token: int = 0,
    output_shape: str = "bnc",
    max_tiles_per_call: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The feature maps of several images at several scales, all on the feature grid of one of them.

    Args:
        model, num_prefix_token, output_shape, max_tiles_per_call: see `multiscale_forward`.
        parts: images (B, C, H, W) and a scale to run them on. Sizes, B and scales may differ from part to part.
        target: number of the part whose grid all maps have.

    Returns:
        A map (B, h, w, D) for each part, and its prefix tokens (B, prefix, D), if any, averaged over its tiles.
    """
    tiles_out: list[list[Tensor]] = [[] for _ in parts]
    prefix_out: list[list[Tensor]] = [[] for _ in parts]
    output_size: Size | None = None
    # Equal tiles share calls. Those of the target run first: its grid is what the others pool to.
    for tile_size in dict.fromkeys([parts[target][1].tile_size, *(scale.tile_size for _, scale in parts)]):
        group = [index for index, (_, scale) in enumerate(parts) if scale.tile_size == tile_size]
        tiles = torch.cat([_tiles(*parts[index]) for index in group])
        counts = [parts[index][0].shape[0] * parts[index][1].tiles for index in group]
        for start, shares in _calls(counts, max_tiles_per_call):
            features = model(tiles[start : start + sum(shares)])
            _check_features(features, sum(shares), output_shape)
            prefix, maps = _as_maps(features, tile_size, num_prefix_token, output_shape)
            if output_size is None:
                output_size = parts[target][1].map_size((maps.shape[1], maps.shape[2]))
            prefix_shares = [None] * len(group) if prefix is None else prefix.split(shares)
            for index, share, prefix_share in zip(group, maps.split(shares), prefix_shares, strict=True):
                tiles_out[index].append(_pool_tiles(share, parts[index][1], output_size))
                if prefix_share is not None:
                    prefix_out[index].append(prefix_share.clone())  # a view would keep all features alive
    assert output_size is not None
    joined, means = [], []
    for (_, scale), pooled, tokens in zip(parts, tiles_out, prefix_out, strict=True):
        joined.append(_join_tiles(torch.cat(pooled), scale, output_size))
        pooled.clear()
        if tokens:
            by_tile = torch.cat(tokens).unflatten(0, (scale.tiles, -1))
            means.append(by_tile.mean(0, dtype=_wide(by_tile.dtype)).to(by_tile.dtype))
    return joined, means


def merge_scales(features: list[Tensor], merge: str) -> Tensor:
    """Features of several scales, one beside the other ("concat") or summed ("add")."""
    if merge == "concat":
        return torch.cat(features, dim=-1)
    total = features[0]
    for more in features[1:]:
        total = total + more
    return total


def _calls(counts: list[int], limit: int | None) -> list[tuple[int, list[int]]]:
    """Where each call starts among the tiles, and how many tiles of each part it takes."""
    if limit is None:  # counts may be symbolic, in an exported model
        return [(0, counts)]
    calls = []
    for start in range(0, max(sum(counts), 1), limit):
        end, before, shares = start + limit, 0, []
        for count in counts:
            shares.append(max(min(end, before + count) - max(start, before), 0))
            before += count
        calls.append((start, shares))
    return calls


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


def _plan(
    sizes: list[Size],
    input_size: Sequence[int],
    max_split_size: int | Size | None,
    split: bool,
    split_mode: str | None,
) -> list[Scale]:
    """Decide for every scale how many tiles it has and how large they are."""
    if not split:
        return [Scale(size, size, 1, 1) for size in sizes]
    largest = (int(input_size[0]), int(input_size[1])) if max_split_size is None else max_split_size
    if isinstance(largest, int):
        if split_mode is None and any(height != width for height, width in [tuple(input_size), *sizes]):
            split_mode = "resize"
        largest = (largest, largest)
    elif split_mode is not None and (max_split_size is not None or largest[0] != largest[1]):
        raise ValueError(f"split_mode={split_mode!r} makes square tiles: give max_split_size as one number of pixels")
    largest = (int(largest[0]), int(largest[1]))
    if min(largest) < 1:
        raise ValueError(f"max_split_size must be positive, not {max_split_size}")
    plan = []
    for size in sizes:
        rows, columns = math.ceil(size[0] / largest[0]), math.ceil(size[1] / largest[1])
        run_size = size if split_mode is None else (rows * largest[0], columns * largest[1])
        if run_size[0] % rows or run_size[1] % columns:
            fit = (size[0] - size[0] % rows, size[1] - size[1] % columns)
            raise ValueError(
                f"a scale of {size[0]} x {size[1]} pixels does not divide into {rows} x {columns} equal "
                f"tiles of at most {largest[0]} x {largest[1]}: use {fit[0]} x {fit[1]}, or another max_split_size"
            )
        plan.append(Scale(size, run_size, rows, columns, pad=split_mode == "pad"))
    return plan


def _tiles(images: Tensor, scale: Scale) -> Tensor:
    """Tiles of one scale, (rows * columns * B, C, h, w): row by row, all images of a tile together."""
    images = _resize(images, scale.size)
    if scale.is_cropped:
        images = F.pad(images, (0, scale.run_size[1] - scale.size[1], 0, scale.run_size[0] - scale.size[0]))
    else:
        images = _resize(images, scale.run_size)
    batch, channels = images.shape[:2]
    height, width = scale.tile_size
    grid = images.reshape(batch, channels, scale.rows, height, scale.columns, width)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(scale.tiles * batch, channels, height, width)


def _resize(images: Tensor, size: Size) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    if not images.shape[0]:  # which interpolate refuses
        return images.new_empty(0, images.shape[1], *size)
    wide = images.to(_wide(images.dtype))
    return F.interpolate(wide, size=size, mode="bicubic", align_corners=False).to(images.dtype)


def _check_features(features: Tensor, tiles: int, output_shape: str) -> None:
    if not isinstance(features, Tensor):
        raise ValueError(
            f"model must return a tensor of features, not {type(features).__name__}: pass a function that "
            "picks one, such as lambda x: model(x).last_hidden_state"
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


def _tile_ratio(tile_grid: Size, scale: Scale, output_size: Size) -> Size | None:
    """How many feature rows and columns of a tile make one output cell; None if cells cross tile borders."""
    if scale.is_cropped:
        return None
    ratio = []
    for tile, count, output in zip(tile_grid, (scale.rows, scale.columns), output_size, strict=True):
        if tile * count % output or tile % (tile * count // output):
            return None
        ratio.append(tile * count // output)
    return ratio[0], ratio[1]


def _pool_tiles(maps: Tensor, scale: Scale, output_size: Size) -> Tensor:
    """Average each tile's map (n, h', w', D) down on its own where that is exact, so no whole map is ever
    made."""
    ratio = _tile_ratio((maps.shape[1], maps.shape[2]), scale, output_size)
    if ratio is None or ratio == (1, 1):
        return maps
    cells = maps.unflatten(2, (-1, ratio[1])).unflatten(1, (-1, ratio[0]))
    return cells.mean((2, 4), dtype=_wide(maps.dtype)).to(maps.dtype)


def _join_tiles(maps: Tensor, scale: Scale, output_size: Size) -> Tensor:
    """Put tiles (rows * columns * B, h', w', D) in place and bring the map to `output_size`."""
    height, width = scale.map_size((maps.shape[1], maps.shape[2]))
    grid = maps.unflatten(0, (scale.rows, scale.columns, maps.shape[0] // scale.tiles))
    whole = grid.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)[:, :height, :width]
    if (height, width) == output_size:
        return whole
    channels_first = whole.permute(0, 3, 1, 2).to(_wide(maps.dtype))
    pooled = F.adaptive_avg_pool2d(channels_first, output_size)  # area interpolation, which takes no empty batch
    return pooled.to(maps.dtype).permute(0, 2, 3, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Resizing and averaging are done in float32 at least."""
    return torch.promote_types(dtype, torch.float32)

"""multiscale_forward against a reference that does the same in the plainest way: whole maps, one call a
scale."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava_s2.s2 import multiscale_forward

PATCH = 4


class TokenBackbone(nn.Module):
    """A random ViT-like model: prefix tokens, then patches that all see the whole tile. Takes any tile
    size."""

    def __init__(self, prefix: int = 0, channels: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, channels, PATCH, PATCH)
        self.mix = nn.Linear(channels, channels)
        self.prefix = nn.Linear(channels, prefix * channels) if prefix else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        seen = self.mix(tokens.mean(1, keepdim=True)).tanh()
        tokens = tokens.sin() + seen
        if self.prefix is None:
            return tokens
        return torch.cat([self.prefix(seen).unflatten(-1, (-1, tokens.shape[-1])).squeeze(1), tokens], dim=1)


class MapBackbone(nn.Module):
    """A random CNN: overlapping windows, so a tile's border matters; stride 4."""

    def __init__(self, channels: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, channels, 3, 2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=False)


def whole_maps(
    model: nn.Module, x: Tensor, sizes: list[tuple[int, int]], tile: tuple[int, int], prefix: int, tokens: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Every scale's whole feature map (B, D, h, w) and mean prefix tokens, with a Python loop over tiles."""
    maps, prefixes = [], []
    for height, width in sizes:
        rows, columns = math.ceil(height / tile[0]), math.ceil(width / tile[1])
        image, lines, seen = resize(x, (height, width)), [], []
        h, w = height // rows, width // columns
        for i in range(rows):
            line = []
            for j in range(columns):
                out = model(image[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w])
                if tokens:
                    seen.append(out[:, :prefix])
                    out = out[:, prefix:].transpose(1, 2).unflatten(2, (h // PATCH, w // PATCH))
                line.append(out)
            lines.append(torch.cat(line, dim=3))
        maps.append(torch.cat(lines, dim=2))
        prefixes.append(sum(seen) / len(seen) if seen else out)
    return maps, prefixes


def reference(
    model: nn.Module,
    x: Tensor,
    sizes: list[tuple[int, int]],
    tile: tuple[int, int],
    index: int = 0,
    prefix: int = 0,
    tokens: bool = True,
) -> Tensor:
    maps, prefixes = whole_maps(model, x, sizes, tile, prefix, tokens)
    out = torch.cat([F.interpolate(m, size=maps[index].shape[2:], mode="area") for m in maps], dim=1)
    if not tokens:
        return out
    out = out.flatten(2).transpose(1, 2)
    return torch.cat([torch.cat(prefixes, dim=-1), out], dim=1) if prefix else out


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tokens_equal_the_reference(data: st.DataObject) -> None:
    base = data.draw(st.integers(2, 7)) * PATCH
    scales = data.draw(st.lists(st.sampled_from([0.5, 1, 1.5, 2, 2.5, 3, 4]), min_size=1, max_size=4))
    limit = data.draw(st.sampled_from([None, base, base // 2, 2 * base]))
    sizes = [int(base * scale) for scale in scales]
    tile = limit or base
    scales = [s for s, size in zip(scales, sizes, strict=True) if size % (PATCH * math.ceil(size / tile)) == 0] or [1]
    sizes = [int(base * scale) for scale in scales]
    prefix = data.draw(st.integers(0, 5))
    index = data.draw(st.integers(0, len(scales) - 1))
    batch = data.draw(st.integers(1, 3))
    model = TokenBackbone(prefix, seed=data.draw(st.integers(0, 9)))
    x = torch.randn(batch, 3, base, base)
    asked = {"scales": scales} if data.draw(st.booleans()) else {"img_sizes": sizes}
    out = multiscale_forward(
        model,
        x,
        **asked,
        max_split_size=limit,
        resize_output_to_idx=index,
        num_prefix_token=prefix,
        split_forward=data.draw(st.booleans()),
        max_tiles_per_call=data.draw(st.sampled_from([None, 1, 2, 5])),
    )
    expected = reference(model, x, [(s, s) for s in sizes], (tile, tile), index, prefix)
    assert out.shape == expected.shape
    assert out.dtype == x.dtype
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(2, 8),
    width=st.integers(2, 8),
    scales=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
    data=st.data(),
)
def test_maps_of_any_height_and_width_equal_the_reference(
    height: int, width: int, scales: list[int], data: st.DataObject
) -> None:
    size = (height * PATCH, width * PATCH)
    index = data.draw(st.integers(-len(scales), len(scales) - 1))
    model, x = MapBackbone(), torch.randn(2, 3, *size)
    sizes = [(scale * size[0], scale * size[1]) for scale in scales]
    out = multiscale_forward(
        model,
        x,
        scales,
        resize_output_to_idx=index,
        output_shape="bchw",
        max_tiles_per_call=data.draw(st.sampled_from([None, 3])),
    )
    torch.testing.assert_close(out, reference(model, x, sizes, size, index, tokens=False), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize("size", [(16, 32), (48, 16), (20, 28)])
def test_tokens_of_non_square_images(size: tuple[int, int]) -> None:
    model, x = TokenBackbone(prefix=2), torch.randn(2, 3, *size)
    sizes = [size, (2 * size[0], 2 * size[1])]
    out = multiscale_forward(model, x, [1, 2], num_prefix_token=2)
    torch.testing.assert_close(out, reference(model, x, sizes, size, prefix=2), rtol=1e-5, atol=1e-5)


def dev_any_shape(
    model: nn.Module, x: Tensor, sizes: list[tuple[int, int]], tile: int, mode: str, index: int, prefix: int
) -> Tensor:
    """What the public wrapper's branch `dev_any_shape` (809ce65) computes, as its description has it: every scale is
    stretched or padded to whole square tiles; padding's features are dropped, stretched maps stay as they are."""
    maps, prefixes = [], []
    for height, width in sizes:
        rows, columns = math.ceil(height / tile), math.ceil(width / tile)
        image, full = resize(x, (height, width)), (rows * tile, columns * tile)
        image = resize(image, full) if mode == "resize" else F.pad(image, (0, full[1] - width, 0, full[0] - height))
        (whole,), seen = whole_maps(model, image, [full], (tile, tile), prefix, True)
        prefixes += seen
        if mode == "pad":
            kept = (math.ceil(height / full[0] * whole.shape[2]), math.ceil(width / full[1] * whole.shape[3]))
            whole = whole[:, :, : kept[0], : kept[1]]
        maps.append(whole)
    merged = torch.cat([F.interpolate(m, size=maps[index].shape[2:], mode="area") for m in maps], dim=1)
    tokens = merged.flatten(2).transpose(1, 2)
    return torch.cat([torch.cat(prefixes, dim=-1), tokens], dim=1) if prefix else tokens


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_images_and_scales_that_are_not_square(data: st.DataObject) -> None:
    side = st.integers(1, 9)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    tile = PATCH * data.draw(st.integers(1, 4))
    mode = data.draw(st.sampled_from([None, "resize", "pad"]))
    if mode is None and all(height == width for height, width in sizes):
        sizes.append((sizes[0][0], sizes[0][0] + 1))
    sizes = [(5 * height, 5 * width) for height, width in sizes]
    index, prefix = data.draw(st.integers(0, len(sizes) - 1)), data.draw(st.integers(0, 2))
    model, x = TokenBackbone(prefix), torch.randn(2, 3, 4 * data.draw(side), 4 * data.draw(side))
    found = multiscale_forward(
        model,
        x,
        img_sizes=sizes,
        max_split_size=tile,
        split_mode=mode,
        resize_output_to_idx=index,
        num_prefix_token=prefix,
        max_tiles_per_call=data.draw(st.sampled_from([None, 1, 3])),
    )
    expected = dev_any_shape(model, x, sizes, tile, mode or "resize", index, prefix)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["bnc", "bchw"])
@pytest.mark.parametrize("options", [{}, {"max_tiles_per_call": 2}, {"split_forward": True}])
def test_an_empty_batch(shape: str, options: dict) -> None:
    model = TokenBackbone(prefix=1) if shape == "bnc" else MapBackbone()
    prefix = int(shape == "bnc")
    arguments = {"scales": [1, 2.5, 3], "output_shape": shape, "num_prefix_token": prefix, "max_split_size": 20}
    full = multiscale_forward(model, torch.randn(1, 3, 16, 16), **arguments)
    empty = multiscale_forward(model, torch.empty(0, 3, 16, 16), **arguments, **options)
    assert empty.shape == (0, *full.shape[1:])


def test_scales_can_be_added() -> None:
    model, x = TokenBackbone(prefix=1), torch.randn(2, 3, 16, 16)
    out = multiscale_forward(model, x, [1, 2, 3], num_prefix_token=1, merge="add")
    parts = reference(model, x, [(16, 16), (32, 32), (48, 48)], (16, 16), prefix=1).chunk(3, dim=-1)
    torch.testing.assert_close(out, parts[0] + parts[1] + parts[2], rtol=1e-5, atol=1e-5)


def test_scales_can_be_run_whole() -> None:
    model, x = TokenBackbone(prefix=1), torch.randn(2, 3, 16, 16)
    out = multiscale_forward(model, x, [1, 2, 2.5], num_prefix_token=1, split=False)
    expected = reference(model, x, [(16, 16), (32, 32), (40, 40)], (1000, 1000), prefix=1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    tiled = multiscale_forward(model, x, [1, 2, 2], num_prefix_token=1)
    assert (out[:, :, 6:12] - tiled[:, :, 6:12]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [28]),
        ({"max_tiles_per_call": 8}, [8, 8, 8, 4]),
        ({"max_tiles_per_call": 1}, [1] * 28),
        ({"split_forward": True}, [2] * 14),
        ({"split_forward": True, "max_tiles_per_call": 1}, [1] * 28),
    ],
)
def test_tiles_a_call(options: dict, expected: list[int]) -> None:
    calls = []
    model = TokenBackbone()

    def counted(tiles: Tensor) -> Tensor:
        calls.append(len(tiles))
        return model(tiles)

    multiscale_forward(counted, torch.randn(2, 3, 16, 16), [1, 2, 3], **options)
    assert calls == expected


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


def test_the_large_map_never_exists() -> None:
    channels, grid = 1024, 6
    x, weight = torch.randn(1, 3, grid * PATCH, grid * PATCH), torch.randn(channels, 3, PATCH, PATCH)

    def model(tiles: Tensor) -> Tensor:
        return F.conv2d(tiles, weight, stride=PATCH).flatten(2).transpose(1, 2)

    with torch.no_grad(), LargestTensor() as largest:
        out = multiscale_forward(model, x, [1, 3, 6], max_tiles_per_call=1)
    assert out.numel() == 3 * channels * grid**2
    assert largest.numel == out.numel()  # the map at scale 6 would be 12 times that


def test_gradients() -> None:
    model = TokenBackbone(prefix=1, channels=2).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.double, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        return multiscale_forward(model, x, [1, 1.5, 3], max_split_size=8, num_prefix_token=1)

    assert torch.autograd.gradcheck(lambda x: multiscale_forward(model, x, [1, 2], num_prefix_token=1), (x,))
    out = multiscale_forward(model, x, [1, 2, 3], num_prefix_token=1, max_tiles_per_call=3)
    weights = torch.randn_like(out)
    got = torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])
    expected = reference(model, x, [(8, 8), (16, 16), (24, 24)], (8, 8), prefix=1)
    for a, b in zip(got, torch.autograd.grad((expected * weights).sum(), [x, *model.parameters()]), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_is_averaged_in_float32() -> None:
    """With the tiles' bfloat16 features given, only one rounding may follow: that of the average."""
    x = torch.randn(1, 3, 16, 16)

    def bf16_model(tiles: Tensor) -> Tensor:
        return F.avg_pool2d(tiles.float(), 2).to(torch.bfloat16)

    out = multiscale_forward(bf16_model, x, [1, 4], max_split_size=16, output_shape="bchw")
    features = bf16_model(resize(x, (64, 64)))
    expected = F.avg_pool2d(features.float(), 4).to(torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, 3:], expected)
    # a bfloat16 input is resized in float32 and rounded back
    seen = []
    multiscale_forward(lambda t: seen.append(t) or t, x.bfloat16(), [2], max_split_size=32, output_shape="bchw")
    assert torch.equal(seen[0], resize(x.bfloat16().float(), (32, 32)).bfloat16())


def test_autocast() -> None:
    model, x = TokenBackbone(prefix=1), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = multiscale_forward(model, x, [1, 2, 3], num_prefix_token=1)
        expected = reference(model, x, [(16, 16), (32, 32), (48, 48)], (16, 16), prefix=1)
    torch.testing.assert_close(out.float(), expected.float(), rtol=0.02, atol=0.02)


def test_a_nan_stays_in_its_cell() -> None:
    def model(tiles: Tensor) -> Tensor:
        out = F.avg_pool2d(tiles, 4)
        return torch.where(out > 5, torch.nan, out)

    x = torch.zeros(1, 3, 16, 16)
    x[:, :, 5, 9] = 1000
    out = multiscale_forward(model, x, [1], output_shape="bchw")
    assert out.isnan().nonzero()[:, 2:].unique(dim=0).tolist() == [[1, 2]]


@pytest.mark.parametrize("prefix", [0, 2])
def test_compiles_without_a_graph_break(prefix: int) -> None:
    model, x = TokenBackbone(prefix), torch.randn(2, 3, 16, 16)

    def forward(x: Tensor) -> Tensor:
        return multiscale_forward(model, x, [1, 1.5, 2, 3], num_prefix_token=prefix, max_tiles_per_call=5)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), forward(x))
    compiled(x).sum().backward()
    assert model.patches.weight.grad.abs().sum() > 0


X = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input": X[0], "scales": [1]}, r"\(B, C, H, W\)"),
        ({}, "scales .* or img_sizes"),
        ({"scales": []}, "non-empty"),
        ({"scales": [0.01]}, "positive sizes"),
        ({"scales": [1], "output_shape": "bcn"}, "'bnc'"),
        ({"scales": [1], "merge": "mean"}, "'concat' or 'add'"),
        ({"scales": [1], "output_shape": "bchw", "num_prefix_token": 1}, "no prefix tokens"),
        ({"scales": [1], "max_tiles_per_call": 0}, "at least 1"),
        ({"scales": [1], "max_split_size": -1}, "positive"),
        ({"scales": [1, 2], "resize_output_to_idx": 2}, "2 scales"),
        ({"img_sizes": [16, 34]}, "34 x 34 .* 3 x 3 equal tiles .* use 33 x 33"),
        ({"scales": [1], "split_mode": "crop"}, "'resize' or 'pad'"),
        ({"scales": [1], "split_mode": "pad", "max_split_size": (8, 4)}, "one number of pixels"),
        ({"scales": [1], "num_prefix_token": 3}, "num_prefix_token must count"),
        ({"scales": [1], "output_shape": "bchw"}, "channels, height, width"),
        ({"scales": [1], "model": lambda x: {"last_hidden_state": x}}, "last_hidden_state"),
        ({"scales": [1], "model": lambda x: x[:0].flatten(2)}, "for 1 tiles"),
    ],
)
def test_contradicting_arguments(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        multiscale_forward(**{"model": TokenBackbone(), "input": X, **arguments})

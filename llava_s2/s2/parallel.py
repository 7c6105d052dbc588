"""The tiles of one image over several processes or devices."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def parallelize_tiles(tower: Any, *, group: Any = None, devices: Sequence[str | torch.device] | None = None) -> Any:
    """Has several processes, or several devices, run the tiles of an image together. In place, for inference.

    Features are those of one process, to float rounding.

    Args:
        tower: an `S2VisionModel` in eval mode.
        group: a torch.distributed process group; default: all processes. Each has the tower, calls it with the same
            images, runs its share of the tiles and receives all features.
        devices: instead of processes, devices of this one. Each gets a copy of the backbone as it is now.

    Returns:
        The same tower.

    Raises:
        ValueError: the tower is in training mode, or there is neither a process group nor a device.

    Example:
        >>> parallelize_tiles(model.model.vision_tower, devices=["cuda:0", "cuda:1"])
    """
    if tower.training:
        raise ValueError("tiles are shared for inference only: call eval() first")
    if devices is not None:
        if not devices:
            raise ValueError("devices is empty: name those that run tiles, such as ['cuda:0', 'cuda:1']")
        tower._tile_parallel = DeviceTileParallel(tower.backbone, [torch.device(device) for device in devices])
    elif dist.is_available() and dist.is_initialized():
        tower._tile_parallel = ProcessTileParallel(group)
    else:
        raise ValueError("no process group: call torch.distributed.init_process_group, or name devices")
    return tower


class ProcessTileParallel:
    """Each process of a group runs a slice of the tiles; all of them get all features."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.workers = dist.get_world_size(group)

    def run(self, run: Callable[[nn.Module, Tensor], Tensor], backbone: nn.Module, tiles: Tensor) -> Tensor:
        share = -(-len(tiles) // self.workers)
        start = min(dist.get_rank(self.group) * share, len(tiles) - 1)  # with too few tiles the last is run twice
        features = run(backbone, tiles[start : start + share])
        mine = features.new_zeros(share, *features.shape[1:])
        mine[: len(features)] = features
        everyone = [torch.empty_like(mine) for _ in range(self.workers)]
        dist.all_gather(everyone, mine, group=self.group)
        return torch.cat(everyone)[: len(tiles)]


class DeviceTileParallel:
    """A copy of the backbone on each device, driven by a thread of its own."""

    def __init__(self, backbone: nn.Module, devices: list[torch.device]) -> None:
        self.workers = len(devices)
        self.copies = [(device, copy.deepcopy(backbone).to(device)) for device in devices]
        self.threads = ThreadPoolExecutor(self.workers, thread_name_prefix="tiles")

    def run(self, run: Callable[[nn.Module, Tensor], Tensor], backbone: nn.Module, tiles: Tensor) -> Tensor:
        shares = tiles.tensor_split(min(self.workers, len(tiles)))

        @torch.no_grad()  # a thread has its own grad mode
        def part(number: int) -> Tensor:
            device, replica = self.copies[number]
            return run(replica, shares[number].to(device)).to(tiles.device)

        return torch.cat(list(self.threads.map(part, range(len(shares)))))

    def __deepcopy__(self, memo: dict) -> "DeviceTileParallel":
        raise ValueError("a tower whose tiles are shared over devices cannot be copied")

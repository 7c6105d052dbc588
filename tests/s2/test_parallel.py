"""The tiles of one picture over processes and over devices: the features of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.parallel import parallelize_tiles

SIDE = 28


def tower() -> S2VisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=7
    )
    return S2VisionModel.wrap(CLIPVisionModel(config).eval(), [SIDE, 2 * SIDE, 3 * SIDE])


def pictures() -> Tensor:
    images = torch.randn(2, 3, 3 * SIDE, 3 * SIDE, generator=torch.manual_seed(1))
    images[0, :, :40] = 0.01  # tiles of one colour are run by no process twice
    return images


def _process(rank: int, folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    model, tiles = parallelize_tiles(tower()), []
    model.backbone.register_forward_pre_hook(lambda module, args: tiles.append(len(args[0])))
    features = []
    with torch.no_grad():
        for a_call in (None, 1, 3):
            model.config.max_tiles_per_call = a_call
            features.append(model(pictures()).last_hidden_state)
    torch.save((torch.stack(features), sum(tiles)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [3])
def test_processes_share_the_tiles_of_a_picture(processes: int, tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path), processes), nprocs=processes)
    with torch.no_grad():
        expected = tower()(pictures()).last_hidden_state
    for rank in range(processes):
        features, tiles = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(features, expected.expand_as(features), rtol=0, atol=1e-5)
        assert tiles <= 3 * 28 / processes + 3 * processes


@pytest.mark.parametrize("devices", [["cpu"], ["cpu"] * 2, ["cpu"] * 9])
def test_devices_share_the_tiles_of_a_picture(devices: list[str]) -> None:
    with torch.no_grad():
        expected = tower()(pictures()).last_hidden_state
        model = parallelize_tiles(tower(), devices=devices)
        model.config.max_tiles_per_call = 2
        torch.testing.assert_close(model(pictures()).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_what_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="process group"):
        parallelize_tiles(tower())
    with pytest.raises(ValueError, match="eval"):
        parallelize_tiles(tower().train(), devices=["cpu"])
    with pytest.raises(ValueError, match="empty"):
        parallelize_tiles(tower(), devices=[])

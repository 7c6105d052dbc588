"""``llava-s2 study depth``: depth estimation on a frozen tower (table 7, figures 2g-i and 8c)."""

import argparse

import torch
from torch import Tensor, nn

from llava_s2.studies.dense_data import load_depths
from llava_s2.studies.dense_metrics import DepthError
from llava_s2.studies.dense_study import DenseTask, run_dense
from llava_s2.studies.paper_tables import paper_score

_FARTHEST = 10.0  # metres, of an indoor scene
_NYU_TEST = 654


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study depth --help``."""
    sets = load_depths(args.data, args.limit)
    as_in_paper = len(sets["val"]) == _NYU_TEST and args.head == "vpd" and not args.full_resolution
    task = DenseTask(
        name="depth",
        score="RMSE m",
        head=linear_head if args.head == "linear" else vpd_head,
        loss=silog,
        decode=lambda prediction: prediction[0].numpy(),
        metric=lambda: DepthError(farthest=_FARTHEST),
        paper=lambda tower, setting: paper_score(7, tower, setting.scales) if as_in_paper else None,
    )
    run_dense(args, task, sets, {"farthest": f"{_FARTHEST} m"})


class Metres(nn.Module):
    """0 to `_FARTHEST` metres from any number."""

    def forward(self, x: Tensor) -> Tensor:
        return _FARTHEST * x.sigmoid()


def linear_head(channels: int) -> nn.Module:
    """One linear map at every position."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 1, 1), Metres())


def vpd_head(channels: int, width: int = 32) -> nn.Module:
    """A decoder as VPD's: three deconvolutions, each of which doubles the sides, and three convolutions."""
    layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
    for number in range(3):
        layers += [
            nn.ConvTranspose2d(channels if number == 0 else width, width, 2, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1), Metres()]
    return nn.Sequential(*layers)


def silog(prediction: Tensor, truth: Tensor, variance_share: float = 0.5) -> Tensor:
    """The scale-invariant error of log depths where the truth is known (Eigen et al. 2014).

    Args:
        prediction: (B, 1, h, w) in metres. truth: (B, h, w), 0 where unknown.
    """
    known = (truth > 0) & (truth < _FARTHEST)
    gap = prediction[:, 0][known].clamp_min(1e-3).log() - truth[known].log()
    return torch.sqrt((gap.square().mean() - variance_share * gap.mean().square()).clamp_min(1e-9))

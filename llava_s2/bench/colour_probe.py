"""A probe on frozen features: the color of a small named thing, read off the visual tokens of drawn photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from llava_s2.s2 import S2VisionModel
from llava_s2.synthetic.scenes import Scene, SceneConfig, Split, make_scene
from llava_s2.synthetic.thing_names import COLORS, TINTED

_WIDTH, _EPOCHS, _BATCH, _IMAGES_A_CALL = 96, 40, 64, 8


@dataclass(frozen=True)
class Features:
    """Tokens of images (images, tokens, channels), and their tinted things: image, name and color by number."""

    tokens: Tensor
    image: Tensor
    name: Tensor
    color: Tensor


@torch.inference_mode()
def extract(
    tower: S2VisionModel, pixels_of: Callable[..., Tensor], split: Split, count: int, config: SceneConfig
) -> Features:
    """A frozen tower's tokens of the first ``count`` images of a split.

    Args:
        pixels_of: normalised pixels (n, 3, S, S) of a list of images, S the tower's image size.
    """
    parameter = next(tower.parameters())
    tokens, things = [], []
    with tqdm(total=count, desc=f"features of {split} images", unit="image", leave=False) as bar:
        for start in range(0, count, _IMAGES_A_CALL):
            scenes = [_scene(split, seed, config) for seed in range(start, min(start + _IMAGES_A_CALL, count))]
            pixels = pixels_of([scene.image for scene in scenes]).to(parameter)
            tokens.append(tower(pixels).last_hidden_state.half().cpu())
            for index, scene in enumerate(scenes, start):
                tinted = [(thing.name, thing.color) for thing in scene.alone() if thing.color]
                things += [(index, TINTED.index(name), list(COLORS).index(color)) for name, color in tinted]
            bar.update(len(scenes))
    image, name, color = torch.tensor(things).unbind(1)
    return Features(torch.cat(tokens), image, name, color)


@lru_cache(maxsize=2048)  # 0.6 MB each; every setting sees the same images
def _scene(split: Split, seed: int, config: SceneConfig) -> Scene:
    return make_scene(split, seed, config)


class AttentionProbe(nn.Module):
    """Color logits of the thing of a name: a query for each name attends to the tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.keys = nn.Linear(channels, _WIDTH)
        self.values = nn.Linear(channels, _WIDTH)
        self.queries = nn.Embedding(len(TINTED), _WIDTH)
        self.out = nn.Linear(_WIDTH, len(COLORS))

    def forward(self, tokens: Tensor, name: Tensor) -> Tensor:
        """Logits (n, colors) of tokens (n, tokens, channels) and names (n)."""
        tokens = self.norm(tokens.flatten(0, 1)).view(tokens.shape)
        weights = torch.einsum("ntd,nd->nt", self.keys(tokens), self.queries(name)) / _WIDTH**0.5
        return self.out(torch.einsum("nt,ntd->nd", weights.softmax(1), self.values(tokens)).relu())


def probe_score(train: Features, test: Features, seed: int = 0) -> tuple[int, int]:
    """Trains a probe on one set of images; how many of the other's things it gets right, and how many there are."""
    torch.manual_seed(seed)
    probe = AttentionProbe(train.tokens.shape[2])
    steps = _EPOCHS * -(-len(train.name) // _BATCH)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    with tqdm(total=steps, desc="probe", unit="step", leave=False) as bar:
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(train.name)).split(_BATCH):
                logits = probe(train.tokens[train.image[batch]].float(), train.name[batch])
                loss = F.cross_entropy(logits, train.color[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    probe.eval()
    with torch.inference_mode():
        guesses = torch.cat(
            [
                probe(test.tokens[test.image[batch]].float(), test.name[batch]).argmax(1)
                for batch in torch.arange(len(test.name)).split(256)
            ]
        )
    return int((guesses == test.color).sum()), len(test.color)

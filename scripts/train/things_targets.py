"""What the visual tokens of a scene should say: words' embeddings, shared out by what each token covers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from llava_s2.synthetic.scenes import Scene
from llava_s2.synthetic.thing_names import COLORS, NAMES

GRID = 7


class Words:
    """The language model's input embeddings (float32) of names (150, D), colors (8, D) and nothing (D)."""

    def __init__(self, embeddings: Tensor, tokenizer) -> None:
        def word(text: str) -> Tensor:
            return embeddings[tokenizer(f" {text}", add_special_tokens=False).input_ids].float().mean(0)

        self.numbers = {name: number for number, name in enumerate(NAMES)}
        self.color_numbers = {color: number for number, color in enumerate(COLORS)}
        self.names = torch.stack([word(name) for name in NAMES])
        self.colors = torch.stack([word(color) for color in COLORS])
        self.nothing = word("nothing")


def shares(scene: Scene) -> Tensor:
    """How much of each thing each token shows (things, 49), 1 where it covers half of it or more.

    The image stands in the middle of a square.
    """
    width, height = scene.image.size
    side = max(width, height)
    edges = np.arange(GRID) * side / GRID
    found = []
    for thing in scene.things:
        left, top, right, bottom = thing.box
        along = [
            np.clip(np.minimum(edges + side / GRID, end + pad) - np.maximum(edges, start + pad), 0, None)
            / (end - start)
            for start, end, pad in ((top, bottom, (side - height) / 2), (left, right, (side - width) / 2))
        ]
        found.append(np.outer(*along).flatten())
    # Half a thing is as good as all of it: mixtures with nothing are hard to read.
    return torch.tensor(np.array(found, np.float32).reshape(-1, GRID * GRID)).mul(2).clamp(max=1)


@dataclass(frozen=True)
class Targets:
    """What the tokens of one scene should say.

    Attributes:
        tokens: (49, D), the embeddings of what each token shows.
        covered: (49), how much of things each shows.
        names, colors: (49), the number of the thing that most of a token shows, -1 for none, and of its color; the
            number behind the last color where it has none.
    """

    tokens: Tensor
    covered: Tensor
    names: Tensor
    colors: Tensor


def targets(scene: Scene, words: Words) -> Targets:
    """What the tokens of a scene should say."""
    tokens, parts = words.nothing.repeat(GRID * GRID, 1), shares(scene)
    names, colors = torch.full((GRID * GRID,), -1), torch.full((GRID * GRID,), len(words.colors))
    most = torch.full((GRID * GRID,), 0.45)
    for thing, part in zip(scene.things, parts, strict=True):
        name, color = words.numbers[thing.name], words.color_numbers.get(thing.color or "", len(words.colors))
        said = words.names[name] + (words.colors[color] if thing.color else 0)
        tokens += part[:, None] * (said - words.nothing)
        names[part > most], colors[part > most] = name, color
        most = torch.maximum(most, part)
    return Targets(tokens, parts.sum(0), names, colors)


def stacked(scenes: Sequence[Scene], words: Words) -> Targets:
    """What the tokens of several scenes should say, a scene a row."""
    each = [targets(scene, words) for scene in scenes]
    return Targets(*(torch.stack([getattr(one, field.name) for one in each]) for field in fields(Targets)))

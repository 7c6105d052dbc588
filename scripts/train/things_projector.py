"""Trains both projectors of the embedded default: a visual token becomes the embeddings of the words for what it shows.

    python scripts/train/things_projector.py --features features.pt --output playground/checkpoints/projectors

Mean squared error to the words' embeddings, blended by how much of each thing the token shows, and cross-entropy over
the nearest name and the nearest color. Most of what sets the words' embeddings apart from that of nothing is common to
all of them, so squared error alone tells that there is something, and hardly what: a name among four in 68 %, with both
in 87 %. No language model is run, so minutes do what hours of stage 1 on captions alone would. Both projectors get the
same images, targets and steps. What ``things_features.py`` wrote is read; ``projector_s2.safetensors`` and
``projector_single.safetensors`` are written.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from things_targets import Targets, Words, shares, stacked
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_s2.model.embedded import SCALES, language_model

NAMES = {
    f"{own}.{kind}": f"model.multi_modal_projector.{layer}.{kind}"
    for own, layer in ((0, "linear_1"), (2, "linear_2"))
    for kind in ("weight", "bias")
}


def new_projector(inputs: Tensor, width: int, outputs: Tensor) -> nn.Sequential:
    """LLaVA's two layers, scaled so that the fresh projector takes these features and gives such embeddings."""
    first, second = nn.Linear(inputs.shape[-1], width), nn.Linear(width, width)
    flat = inputs.flatten(0, 1).float()
    with torch.no_grad():
        first.weight /= flat.std(0) + 1e-3
        first.bias.sub_(first.weight @ flat.mean(0))
        second.weight *= outputs.float().std()
        second.bias.copy_(outputs.flatten(0, 1).float().mean(0))
    return nn.Sequential(first, nn.GELU(), second)


class WordLoss:
    """Cross-entropy of tokens over the names, the nearer the likelier, given the color, and over the colors given the
    name; distances are in fifths of the mean one."""

    def __init__(self, words: Words) -> None:
        self.names, self.colors = words.names, torch.cat([words.colors, torch.zeros(1, words.colors.shape[1])])
        self.units = [0.2 * self._mean_distance(vectors) for vectors in (self.names, self.colors)]

    @staticmethod
    def _mean_distance(vectors: Tensor) -> Tensor:
        return torch.cdist(vectors, vectors).square().sum() / (len(vectors) * (len(vectors) - 1))

    def __call__(self, tokens: Tensor, names: Tensor, colors: Tensor) -> Tensor:
        """The loss of tokens (..., D) that show mostly one thing, its name's number (...) not negative."""
        tokens, names, colors = (values[names >= 0] for values in (tokens, names, colors))
        without_color, without_name = tokens - self.colors[colors], tokens - self.names[names]
        far = -torch.cdist(without_color, self.names).square() / self.units[0]
        far_of_color = -torch.cdist(without_name, self.colors).square() / self.units[1]
        return cross_entropy(far, names) + cross_entropy(far_of_color, colors)


def fit(
    name: str,
    sample: Tensor,
    inputs_of: Callable[[Tensor], Tensor],
    wanted: Targets,
    words: Words,
    *,
    epochs: int,
    lr: float = 2e-3,
) -> nn.Sequential:
    """Trains a projector.

    Args:
        name: on the progress bar.
        sample: features (images, 49, channels) that the fresh projector is scaled to.
        inputs_of: features (32, 49, channels) of the images with these numbers (32).
        wanted: of all images, see `stacked`.
    """
    torch.manual_seed(0)
    weight = wanted.covered.clamp(max=1) + 0.03
    scale = ((wanted.tokens - words.nothing).square().mean(-1) * weight).sum() / weight.sum()
    projector, loss_of_words = new_projector(sample, wanted.tokens.shape[-1], wanted.tokens), WordLoss(words)
    batches = len(weight) // 32
    optimizer = torch.optim.AdamW(projector.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches, pct_start=0.1)
    with tqdm(total=epochs * batches, desc=name, unit="step") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(weight))[: batches * 32].split(32):
                said = projector(inputs_of(chosen).float())
                error = (said - wanted.tokens[chosen]).square().mean(-1)
                loss = (error * weight[chosen]).sum() / weight[chosen].sum() / scale
                loss = loss + loss_of_words(said, wanted.names[chosen], wanted.colors[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return projector


def likeness(tokens: Tensor, words: Words) -> Tensor:
    """How much tokens (..., D) say each name (..., 150), in logarithms but for a constant."""
    names = words.names - words.nothing
    return (tokens - words.nothing) @ names.T - names.square().sum(-1) / 2


def save(projector: nn.Sequential, path: Path) -> None:
    """Writes it under the names that LLaVA's projectors have in transformers."""
    tensors = {name: projector.get_parameter(own).detach().contiguous() for own, name in NAMES.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def load(path: Path) -> nn.Sequential:
    """A projector as `save` writes it."""
    stored = load_file(path)
    state = {own: stored[name].float() for own, name in NAMES.items()}
    hidden, channels = state["0.weight"].shape
    projector = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    projector.load_state_dict(state)
    return projector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    language: Any = AutoModelForCausalLM.from_pretrained(language_model())
    words = Words(language.get_input_embeddings().weight.detach(), AutoTokenizer.from_pretrained(language_model()))
    found = torch.load(args.features, weights_only=False)
    train, test = found["train"], found["test"]
    wanted = stacked(train["scenes"], words)
    for name, scales in (("single", SCALES[:1]), ("s2", SCALES)):
        channels = train["features"].shape[-1] * len(scales) // len(SCALES)
        inputs = train["features"][..., :channels]
        projector = fit(name, inputs, inputs.__getitem__, wanted, words, epochs=args.epochs, lr=args.lr)
        save(projector, args.output / f"projector_{name}.safetensors")
        with torch.inference_mode():
            print(name, told(projector(test["features"][..., :channels].float()), test["scenes"], words))


def told(tokens: Tensor, scenes: list, words: Words) -> str:
    """What of the things on held-out photographs the tokens that show most of them tell, in percent."""
    rights: dict[str, list[float]] = {"name of 150": [], "name of four": [], "color": []}
    generator = torch.Generator().manual_seed(0)
    for token, scene in zip(tokens, scenes, strict=True):
        for thing, part in zip(scene.things, shares(scene), strict=True):
            like = likeness(token[part.argmax()], words)
            right = words.numbers[thing.name]
            rights["name of 150"].append(float(like.argmax() == right))
            others = torch.randperm(len(like), generator=generator)[:4]
            rights["name of four"].append(float((like[others[others != right][:3]] < like[right]).all()))
            if thing.color:
                rest = token[part.argmax()] - words.names[right]
                color = -(rest - words.colors).square().sum(-1)
                rights["color"].append(float(color.argmax() == words.color_numbers[thing.color]))
    return ", ".join(f"{kind} {100 * sum(values) / len(values):.1f}" for kind, values in rights.items())


if __name__ == "__main__":
    main()

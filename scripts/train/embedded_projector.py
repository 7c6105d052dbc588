"""Trains both projectors of the embedded default: a visual token becomes the words for what it shows.

    python scripts/train/embedded_projector.py --tower playground/checkpoints/tower --work playground/checkpoints \\
        --output llava_s2/model/embedded

Every visual token of a drawn image is matched to the language model's own embeddings of the names and colours of the
things that it covers, by the share of each that it covers: by mean squared error, which puts it where the language
model reads words, and by cross-entropy among all names and among all colours, which tells them apart. No language
model is run, so minutes do what hours of stage 1 on captions would on a CPU. Both projectors, for 112² alone and for
all scales, get the same images, targets and steps. The features are kept in ``--work``, and a second start goes on
from them.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from tqdm import tqdm

from llava_s2.files import atomic_write
from llava_s2.model.assemble import assemble
from llava_s2.model.embedded import FEATURE_LAYER, PROJECTORS, VISUAL_TOKENS
from llava_s2.synthetic.names import COLORS, NAMES
from llava_s2.synthetic.scenes import Scene, SceneConfig, make_scene

CONFIG = SceneConfig(side=(600, 1200), thing_share=(12 / 448, 40 / 448), things=(5, 12))
GRID = math.isqrt(VISUAL_TOKENS)
BATCH = 32
SHARPNESS = 4.0  # of the softmax over names; an embedding differs from the names' mean by a length of about 2


def coverage(scene: Scene) -> torch.Tensor:
    """How much of each thing each visual token of the padded square covers: (things, 7 * 7), at most 1."""
    longer = max(scene.image.size)
    offsets = [(longer - side) / 2 for side in scene.image.size]
    edges = np.arange(GRID) * longer / GRID
    shares = []
    for thing in scene.things:
        along = []
        for axis in (1, 0):
            start, end = thing.box[axis] + offsets[axis], thing.box[axis + 2] + offsets[axis]
            inside = np.minimum(edges + longer / GRID, end) - np.maximum(edges, start)
            along.append(np.clip(inside, 0, None) / (end - start))
        shares.append(np.outer(*along).flatten())
    # A token that covers two thirds of a thing is to say all of it.
    return torch.from_numpy(np.stack(shares)).float().mul(1.5).clamp(max=1)


def draw(towers: list[Any], processors: list[Any], count: int) -> dict[str, torch.Tensor]:
    """Features (images, 49, channels) for each tower, and the words of each token (images, 49, words) as shares."""
    words = [*NAMES, *COLORS]
    features: list[list[torch.Tensor]] = [[] for _ in towers]
    shown = []
    for seed in tqdm(range(count), desc="images", unit="image"):
        scene = make_scene("train", 500_000 + seed, CONFIG)
        for tower, processor, kept in zip(towers, processors, features, strict=True):
            pixels = processor.image_processor(scene.image, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                kept.append(tower(pixels).last_hidden_state[0].half())
        said = torch.zeros(GRID * GRID, len(words))
        for thing, share in zip(scene.things, coverage(scene), strict=True):
            for word in (thing.name, *([thing.color] if thing.color else [])):
                said[:, words.index(word)] = torch.maximum(said[:, words.index(word)], share)
        shown.append(said.half())
    return {"words": torch.stack(shown), **{str(i): torch.stack(kept) for i, kept in enumerate(features)}}


@torch.no_grad()
def standardize(projector: Any, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Has the fresh projector take features and give embeddings of the scale that they have."""
    first, second = projector.linear_1, projector.linear_2
    flat = inputs.flatten(0, 1).float()
    first.weight /= flat.std(0) + 1e-3
    first.bias -= first.weight @ flat.mean(0)
    second.weight *= targets.std()
    second.bias.copy_(targets.mean((0, 1)))


def train(projector: Any, inputs: torch.Tensor, said: torch.Tensor, embeddings: torch.Tensor, epochs: int) -> None:
    """Matches the projector's outputs to ``nothing`` (the last embedding) and to the words of each token."""
    nothing = embeddings[-1]

    def wanted(shares: torch.Tensor) -> torch.Tensor:
        empty = (1 - shares[..., : len(NAMES)].sum(-1, keepdim=True)).clamp(min=0)
        return shares @ embeddings[:-1] + empty * nothing

    standardize(projector.requires_grad_(True), inputs, wanted(said[:64].float()))
    groups = (slice(0, len(NAMES)), slice(len(NAMES), len(NAMES) + len(COLORS)))
    directions = [normalize(embeddings[group] - embeddings[group].mean(0), dim=-1) for group in groups]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    with tqdm(total=steps, unit="step") as bar:
        for _ in range(epochs):
            order = torch.randperm(len(inputs))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                chosen = order[start : start + BATCH]
                shares = said[chosen].float()
                weight = 0.03 + shares.amax(-1)
                target = wanted(shares)
                outputs = projector(inputs[chosen].float())
                error = (outputs - target).pow(2).mean(-1)
                far = (error * weight).sum() / ((target - nothing).pow(2).mean(-1) * weight).sum()
                loss = far
                for group, words in zip(groups, directions, strict=True):
                    asked = shares[..., group]
                    total = asked.sum(-1)
                    logits = SHARPNESS * (outputs - embeddings[group].mean(0)) @ words.T
                    wrong = torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), (asked / total.clamp(min=1e-3)[..., None]).flatten(0, 1), reduction="none"
                    )
                    loss = loss + 0.2 * (wrong * total.flatten().clamp(max=1)).sum() / total.clamp(max=1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", unexplained=f"{far.item():.3f}")


@torch.no_grad()
def recognized(projector: Any, inputs: torch.Tensor, said: torch.Tensor, embeddings: torch.Tensor) -> float:
    """Share of the tokens that cover a thing whose nearest name, among all, is that thing's."""
    names = embeddings[: len(NAMES)]
    shares = said[..., : len(NAMES)].float()
    there = shares.amax(-1) > 0.9
    outputs = projector(inputs[there].float()) - names.mean(0)
    nearest = (outputs @ normalize(names - names.mean(0), dim=-1).T).argmax(-1)
    return (nearest == shares[there].argmax(-1)).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", default="embedded", help="folder of the tower (default: the shipped one)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the features")
    parser.add_argument("--output", type=Path, required=True, help="folder to write both projectors to")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()

    torch.manual_seed(0)
    models, processors = zip(
        *(
            assemble("embedded", args.tower, list(scales), feature_layer=FEATURE_LAYER, template="chatml")
            for scales in PROJECTORS
        ),
        strict=True,
    )
    path = args.work / "projector_features.pt"
    if not path.exists():
        drawn = draw([model.model.vision_tower for model in models], list(processors), args.images)
        args.work.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            torch.save(drawn, partial)
    drawn = torch.load(path, weights_only=True)
    tokenizer, embedding = processors[0].tokenizer, models[0].get_input_embeddings().weight.detach().float()
    embeddings = torch.stack(
        [
            embedding[tokenizer(text, add_special_tokens=False).input_ids].mean(0)
            for text in (*(f" {word}" for word in (*NAMES, *COLORS)), "\n")
        ]
    )
    args.output.mkdir(parents=True, exist_ok=True)
    held_out = slice(0, len(drawn["words"]) // 15)
    kept = slice(held_out.stop, None)
    for number, (scales, file) in enumerate(PROJECTORS.items()):
        torch.manual_seed(0)
        projector, inputs, said = models[number].model.multi_modal_projector, drawn[str(number)], drawn["words"]
        train(projector, inputs[kept], said[kept], embeddings, args.epochs)
        share = recognized(projector, inputs[held_out], said[held_out], embeddings)
        print(f"{','.join(map(str, scales))}: {share:.1%} of held-out things recognized among {len(NAMES)}")
        tensors = {f"model.multi_modal_projector.{name}": value for name, value in projector.state_dict().items()}
        with atomic_write(args.output / file) as partial:
            save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, partial)


if __name__ == "__main__":
    main()

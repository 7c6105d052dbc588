"""How many tiles of the largest scale can be left out, chosen at random, by detail, by content or by the question.

    python benchmarks/tile_selection.py --output results.json --plot tile_selection.png

The embedded vision tower runs on every tile of 112², 224² and 448². A tile of 448² that is left out has the features of
224² at its place instead. Two projectors are trained as the embedded default's: one that always saw all tiles, one
(tile dropout) that saw a random share of the largest scale's in every second image. No language model is run: which of
four things is in an image is answered by the name that any visual token is most like, so what is measured is what the
visual tokens hold. 224², which is always run, is what tiles are chosen by.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_s2.eval.statistics import mcnemar_exact, wilson_interval
from llava_s2.model.assemble import load_image_processor
from llava_s2.model.embedded import FEATURE_LAYER, SCALES, language_model, resolve_vision_tower
from llava_s2.s2 import S2VisionModel
from llava_s2.s2.packed_linear import pack_frozen
from llava_s2.synthetic.scene_questions import naming_questions
from llava_s2.synthetic.scenes import Scene, SceneConfig, Split, make_scene
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts/train"))
from things_projector import fit, likeness
from things_targets import GRID, Words, stacked

TILES = SCALES[-1] // SCALES[0]  # along a side of the largest scale
RUN = (16, 12, 10, 8, 6, 4, 2, 0)
CHOICES = ("random", "detail", "content", "question")


class Tower:
    """The embedded vision tower, a tile at a time."""

    def __init__(self) -> None:
        name = resolve_vision_tower("embedded")
        self.processor = load_image_processor(name, list(SCALES))
        backbone = load_vision_backbone(name, load_vision_config(name), torch.float32)
        self.one_scale = pack_frozen(S2VisionModel.wrap(backbone, [SCALES[0]], feature_layer=FEATURE_LAYER).eval())
        self.all_scales = S2VisionModel.wrap(backbone, list(SCALES), feature_layer=FEATURE_LAYER).eval()

    @torch.inference_mode()
    def __call__(self, scene: Scene) -> tuple[list[Tensor], Tensor]:
        """A map of features (7n, 7n, 192) for each scale, and how much detail each of the largest's tiles (16) has."""
        pixels = self.processor(scene.image, return_tensors="pt")["pixel_values"]
        maps = []
        for side in SCALES:
            n = side // SCALES[0]
            resized = F.interpolate(pixels, (side, side), mode="bicubic") if side != pixels.shape[-1] else pixels
            tiles = resized.unflatten(3, (n, -1)).unflatten(2, (n, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            features = self.one_scale(tiles).last_hidden_state.reshape(n, n, GRID, GRID, -1)
            maps.append(features.transpose(1, 2).reshape(n * GRID, n * GRID, -1).to(torch.bfloat16))
        small = F.interpolate(pixels, scale_factor=0.5, mode="area")
        lost = (pixels - F.interpolate(small, scale_factor=2.0, mode="bilinear")).abs().mean(1, keepdim=True)
        return maps, F.adaptive_avg_pool2d(lost, TILES).flatten()

    def check(self, scene: Scene) -> None:
        """Raises AssertionError where the maps merge to other features than `S2VisionModel` has."""
        pixels = self.processor(scene.image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            expected = self.all_scales(pixels).last_hidden_state[0]
        maps, _ = self(scene)
        found = merge([one[None] for one in maps], torch.ones(1, TILES**2, dtype=torch.bool))[0]
        assert torch.allclose(found, expected, atol=0.05 * float(expected.std())), (
            "features differ from S2VisionModel's"
        )


def merge(maps: list[Tensor], run: Tensor) -> Tensor:
    """Visual tokens' features (B, 49, 576) of maps (B, 7n, 7n, 192), without the tiles that are not ``run`` (B, 16)."""
    base, middle, largest = (one.float() for one in maps)
    over = middle.repeat_interleave(2, 1).repeat_interleave(2, 2)
    kept = run.unflatten(1, (TILES, TILES)).repeat_interleave(GRID, 1).repeat_interleave(GRID, 2)[..., None]
    scales = (base, middle, torch.where(kept, largest, over))
    pooled = [F.adaptive_avg_pool2d(one.permute(0, 3, 1, 2), GRID).flatten(2).transpose(1, 2) for one in scales]
    return torch.cat(pooled, -1)


def train(name: str, drawn: list[tuple[list[Tensor], Tensor, Scene]], words: Words, dropout: bool, epochs: int) -> Any:
    """A projector on the tiles that ``dropout`` leaves of each image, trained as the embedded default's are."""
    maps = [torch.stack([one[0][scale] for one in drawn]) for scale in range(len(SCALES))]

    def inputs_of(chosen: Tensor) -> Tensor:
        kept = torch.rand(32, 1).masked_fill(torch.rand(32, 1) < 0.5, 1) if dropout else torch.ones(32, 1)
        return merge([one[chosen] for one in maps], torch.rand(32, TILES**2) < kept)

    some = [one[:256] for one in maps]
    sample = merge(some, torch.ones(len(some[0]), TILES**2, dtype=torch.bool))
    return fit(name, sample, inputs_of, stacked([scene for *_, scene in drawn], words), words, epochs=epochs).eval()


def on_tiles(tokens: Tensor) -> Tensor:
    """The largest of the values (49) of the tokens that a tile of the largest scale (16) covers."""
    return F.adaptive_max_pool2d(tokens.reshape(1, 1, GRID, GRID), TILES).flatten()


@torch.inference_mode()
def right(
    projector: nn.Module, drawn: list[tuple[list[Tensor], Tensor, Scene]], words: Words, count: int
) -> dict[str, list[list[bool]]]:
    """For each way to choose tiles and each number of them, whether each question is answered right."""
    found: dict[str, list[list[bool]]] = {choice: [[] for _ in RUN] for choice in CHOICES}
    rng = np.random.default_rng(1)
    for maps, detail, scene in tqdm(drawn, desc="questions", unit="image"):
        batch = [one[None] for one in maps]
        before = likeness(projector(merge(batch, torch.zeros(1, TILES**2, dtype=torch.bool)))[0], words)
        for question in naming_questions(scene, rng):
            if len(found["random"][0]) >= count:
                return found
            options = [words.numbers[option[:-1].split()[-1].lower()] for option in question.options]
            worth = {
                "random": torch.from_numpy(rng.random(TILES**2)),
                "detail": detail,
                "content": on_tiles(before.amax(-1)),
                "question": on_tiles(before[:, options].amax(-1)),
            }
            for choice, values in worth.items():
                order = values.argsort(descending=True)
                run = torch.stack([torch.zeros(TILES**2, dtype=torch.bool).scatter(0, order[:k], True) for k in RUN])
                tokens = projector(merge([one.expand(len(RUN), -1, -1, -1) for one in batch], run))
                for number, said in enumerate(tokens):
                    best = likeness(said, words)[:, options].amax(0).argmax()
                    found[choice][number].append(bool(best == 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tower = Tower()
    config = SceneConfig(side=(900, 1400), things=(3, 9), empty=0.05, repeated=0.15)
    drawn: dict[Split, list[tuple[list[Tensor], Tensor, Scene]]] = {"train": [], "test": []}
    tower.check(make_scene("train", 1, config))
    for split, count, how in (
        ("train", args.images, config),
        ("test", args.questions // 2, SceneConfig(side=(1000, 1400))),
    ):
        for number in tqdm(range(count), desc=split, unit="image"):
            scene = make_scene(split, 700_000 + number, how)
            drawn[split].append((*tower(scene), replace(scene, image=Image.new("1", scene.image.size))))
    language: Any = AutoModelForCausalLM.from_pretrained(language_model())
    words = Words(language.get_input_embeddings().weight.detach(), AutoTokenizer.from_pretrained(language_model()))
    report: dict[str, Any] = {"command": "python benchmarks/tile_selection.py", "tiles_run_of_16": RUN}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (name, dropout) in zip(axes, (("all tiles", False), ("tile dropout", True)), strict=True):
        answers = right(train(name, drawn["train"], words, dropout, args.epochs), drawn["test"], words, args.questions)
        whole = answers["random"][0]
        report[name] = {"questions": len(whole)}
        for choice, of_runs in answers.items():
            rows = report[name][choice] = []
            for run, each in zip(RUN, of_runs, strict=True):
                with_all, now = np.array(whole), np.array(each)
                lost, won = int((with_all & ~now).sum()), int((now & ~with_all).sum())
                low, high = wilson_interval(sum(each), len(each))
                rows.append(
                    {
                        "run": run,
                        "right": sum(each),
                        "low": low,
                        "high": high,
                        "lost": lost,
                        "won": won,
                        "p": mcnemar_exact(won, lost),
                    }
                )
            shares = [(4 + run) / (4 + TILES**2) for run in RUN]
            axis.plot(shares, [100 * row["right"] / len(whole) for row in rows], marker="o", label=choice)
        axis.set(
            title=f"trained on {name}" if not dropout else "trained with tile dropout",
            xlabel="share of the larger scales' tiles run",
        )
        axis.axhline(25, color="gray", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("right of four, %")
    axes[1].legend(title="tiles chosen by")
    text = json.dumps(report, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")
    if args.plot:
        figure.savefig(args.plot, dpi=110)


if __name__ == "__main__":
    main()

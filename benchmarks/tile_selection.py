"""Can tiles of the largest scale be left out? Score against the share of tiles run, with and without tile dropout.

    python benchmarks/tile_selection.py --output benchmarks/results/tile_selection.json

Two LoRAs on the embedded default learn from the same images for the same steps, the second with tiles dropped at
random; a tile that is left out has the features of the next smaller scale. Then both answer the same questions about
held-out photographs (V*'s likelihood protocol) with a part of the 4 x 4 tiles of 448 pixels left out: at random, those
with the least detail in their pixels, or those least like the question's words, as the visual tokens of the smaller
scales have it (top-down selection, the paper's future work). The 2 x 2 tiles of 224 pixels are always run.
"""

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from llava_s2.eval.statistics import paired_difference
from llava_s2.model.assemble import assemble
from llava_s2.model.embedded import FEATURE_LAYER, NAME, SCALES, projector
from llava_s2.model.inference import assistant_message, user_message
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.s2 import S2VisionModel
from llava_s2.synthetic.scene_questions import (
    Question,
    color_questions,
    colored_thing_questions,
    conversation,
    naming_questions,
)
from llava_s2.synthetic.scenes import SceneConfig, make_scene
from llava_s2.synthetic.thing_names import COLORS, NAMES
from llava_s2.weight_files import read_tensors

GRID, BASE, LARGE = 7, SCALES[0], SCALES[2] // SCALES[0]
KINDS = (naming_questions, color_questions, colored_thing_questions)
LORA = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class Seen(NamedTuple):
    """An image's features at each scale (channels, side, side), and how much detail each of the 16 tiles has."""

    maps: list[Tensor]
    detail: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=400, help="to learn from (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--run", type=int, nargs="+", default=[12, 8, 4, 0], help="of 16 tiles (default: 12 8 4 0)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()

    runs = [("all", 16), *itertools.product(("random", "detail", "question"), [n for n in args.run if n])]
    runs += [("none", 0)] if 0 in args.run else []
    right: dict[str, dict[str, list[bool]]] = {}
    for dropout in (False, True):
        torch.manual_seed(0)
        bench = Bench()
        bench.learn(args.images, dropout)
        right["tile dropout" if dropout else "plain"] = bench.score(args.questions, runs)
    report = {
        "command": f"python benchmarks/tile_selection.py {' '.join(sys.argv[1:])}".strip(),
        "correct": {name: {run: sum(found) for run, found in runs.items()} for name, runs in right.items()},
        "questions": args.questions,
        "points lost": {name: lost(found) for name, found in right.items()},
        "larger scales' tiles run": {f"{how} {count}": (4 + count) / 20 for how, count in runs},
        "torch": torch.__version__,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def lost(found: dict[str, list[bool]]) -> dict[str, str]:
    """Points below the run of all tiles, with a 95 % interval."""
    told = {}
    for run, right in found.items():
        pairs = list(zip(found["all 16"], right, strict=True))
        points, interval = paired_difference(pairs.count((True, False)), pairs.count((False, True)), len(pairs))
        told[run] = f"{100 * points:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return told


class Bench:
    """The embedded default with a fresh LoRA, fed with features that were made by the tile."""

    def __init__(self) -> None:
        model, self.processor = assemble(NAME, NAME, list(SCALES), feature_layer=FEATURE_LAYER, template="chatml")
        stored = read_tensors(projector(SCALES))
        model.load_state_dict(stored, strict=False)
        inner: Any = model.model
        tower = inner.vision_tower
        self.whole = tower
        self.tile = S2VisionModel.wrap(tower.backbone, [BASE], feature_layer=FEATURE_LAYER).eval()
        self.project, self.language = inner.multi_modal_projector, inner.language_model
        self.embeddings = model.get_input_embeddings().weight.detach()
        self.head = model.get_output_embeddings().weight.detach()
        self.image_token = self.processor.image_token_id
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=LORA)
        self.model = get_peft_model(model, settings)
        self.project.requires_grad_(True)
        self.words = {word: self._embedding(word) for word in (*NAMES, *COLORS)}
        self.nothing = self._embedding("nothing")

    def _embedding(self, word: str) -> Tensor:
        ids = self.processor.tokenizer(f" {word}", add_special_tokens=False).input_ids
        return self.embeddings[ids].float().mean(0)

    @torch.inference_mode()
    def see(self, image: Any) -> Seen:
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        maps, detail = [], torch.zeros(LARGE, LARGE)
        for side in SCALES:
            scaled = F.interpolate(pixels, (side, side), mode="bicubic") if side != pixels.shape[-1] else pixels
            count = side // BASE
            tiles = scaled[0].unflatten(2, (count, BASE)).unflatten(1, (count, BASE)).permute(1, 3, 0, 2, 4)
            features = self.tile(tiles.flatten(0, 1)).last_hidden_state.unflatten(1, (GRID, GRID))
            features = features.unflatten(0, (count, count)).permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
            maps.append(features.to(torch.bfloat16))
            smaller = F.interpolate(scaled, scale_factor=0.5, mode="area")
            blurred = F.interpolate(smaller, (side, side), mode="bicubic")
            detail = F.adaptive_avg_pool2d((scaled - blurred).abs().mean(1), count)[0]
        return Seen(maps, detail)

    def features(self, seen: Seen, run: Tensor, run_middle: Tensor) -> Tensor:
        """S² features (49, channels) with those tiles of the largest and the middle scale run that are told."""
        current, pooled = seen.maps[0].float(), []
        for number, features in enumerate(seen.maps):
            if number:
                kept = (run_middle, run)[number - 1].repeat_interleave(GRID, 0).repeat_interleave(GRID, 1)
                current = torch.where(kept, features.float(), current.repeat_interleave(2, 1).repeat_interleave(2, 2))
            pooled.append(F.adaptive_avg_pool2d(current[None], GRID)[0])
        return torch.cat(pooled).flatten(1).T

    def check(self, image: Any) -> None:
        """All tiles run are what the tower gives."""
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        expected = self.whole(pixels).last_hidden_state[0]
        got = self.features(self.see(image), *all_tiles())
        error = float((got - expected).norm() / expected.norm())
        assert error < 0.01, error  # the maps are kept in bfloat16

    def learn(self, images: int, dropout: bool) -> None:
        """The quickstart's fine-tuning, on ``images`` images, four a step."""
        config = SceneConfig(side=(1000, 1400), empty=0.05, repeated=0.15)
        groups = [
            {"params": [p for n, p in self.model.named_parameters() if "lora_" in n], "lr": 6e-4},
            {"params": list(self.project.parameters()), "lr": 2e-4},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        steps = images // 4
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min(1, (n + 1) / 5) * 0.5 * (1 + math.cos(math.pi * n / steps))
        )
        rng = np.random.default_rng(3)
        losses = []
        with tqdm(range(steps), desc="tile dropout" if dropout else "plain", unit="step") as bar:
            for step in bar:
                rows = []
                for seed in range(4 * step, 4 * step + 4):
                    scene = make_scene("train", 900_000 + seed, config)
                    if not seed:
                        self.check(scene.image)
                    run = all_tiles()
                    if dropout:
                        share = rng.uniform()
                        run = [torch.from_numpy(rng.random(tiles.shape) >= share) for tiles in run]
                        run[1] |= bool(rng.random() < 0.75)
                    messages: list = []
                    for question in conversation(scene, np.random.default_rng([19, seed])):
                        messages += [
                            user_message(question.text, 0 if messages else 1),
                            assistant_message(question.answer),
                        ]
                    rows.append((self.features(self.see(scene.image), *run), self.encode(messages)))
                loss = self.loss(rows)
                loss.backward()
                nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{np.mean(losses[-10:]):.3f}")

    def encode(self, messages: list) -> dict[str, list[int]]:
        return encode_messages(messages, self.processor, self.processor.chat_template)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """Input embeddings of token ids (rows, length), the features of all images in place of their tokens."""
        inputs = self.embeddings[ids.clamp(max=len(self.embeddings) - 1)].float()
        places = (ids == self.image_token)[..., None]
        return inputs.masked_scatter(places, self.project(features).float()) if places.any() else inputs

    def loss(self, rows: list[tuple[Tensor, dict[str, list[int]]]]) -> Tensor:
        ids = pad_sequence([torch.tensor(row["input_ids"]) for _, row in rows], True, 0)
        labels = pad_sequence([torch.tensor(row["labels"]) for _, row in rows], True, IGNORE_INDEX)[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            inputs = self.embed(ids, torch.cat([features for features, _ in rows]))
            hidden = self.language(inputs_embeds=inputs).last_hidden_state[:, :-1]
            logits = hidden[labels != IGNORE_INDEX] @ self.head.T
        return F.cross_entropy(logits.float(), labels[labels != IGNORE_INDEX])

    @torch.inference_mode()
    def score(self, questions: int, runs: list[tuple[str, int]]) -> dict[str, list[bool]]:
        """Whether each question is answered right, with each choice of tiles."""
        self.model.eval()
        found: dict[str, list[bool]] = {f"{how} {count}": [] for how, count in runs}
        seeds, rng = itertools.count(), np.random.default_rng(5)
        for number in tqdm(range(questions), desc="questions", unit="question"):
            asked: list[Question] = []
            while not asked:
                seed = next(seeds)
                scene, drawn = make_scene("test", seed, SceneConfig(side=(1000, 1400))), np.random.default_rng(seed)
                asked = KINDS[number % len(KINDS)](scene, drawn)
            question = asked[int(drawn.integers(len(asked)))]
            seen = self.see(scene.image)
            scores: dict[str, Callable[[], Tensor]] = {
                "random": lambda: torch.from_numpy(rng.random((LARGE, LARGE))),
                "detail": lambda seen=seen: seen.detail,
                "question": lambda seen=seen, question=question: self.likeness(seen, question.text),
            }
            for how, count in runs:
                run, run_middle = all_tiles()
                if count < run.numel():
                    order = scores.get(how, scores["random"])().flatten().argsort(descending=True)
                    run = torch.zeros(run.numel(), dtype=torch.bool).index_fill(0, order[:count], True).view_as(run)
                losses = self.option_losses(self.features(seen, run, run_middle), question)
                found[f"{how} {count}"].append(bool(losses.argmin() == 0))
        return found

    def likeness(self, seen: Seen, text: str) -> Tensor:
        """How much the smaller scales' visual tokens in each tile (4, 4) look like a word of the question."""
        without = torch.zeros_like(all_tiles()[0])
        tokens = self.project(self.features(seen, without, all_tiles()[1])).float() - self.nothing
        words = [self.words[word] - self.nothing for word in re.findall(r"[a-z]+", text) if word in self.words]
        if not words:
            return seen.detail
        alike = (tokens @ F.normalize(torch.stack(words), dim=1).T).amax(1).view(GRID, GRID)
        fine = alike.repeat_interleave(LARGE, 0).repeat_interleave(LARGE, 1)
        return F.adaptive_max_pool2d(fine[None], LARGE)[0]

    def option_losses(self, features: Tensor, question: Question) -> Tensor:
        """Mean loss of each option's tokens."""
        rows = [self.encode([user_message(question.text, 1), assistant_message(option)]) for option in question.options]
        start = min(next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX) for row in rows)
        prompt = torch.tensor([rows[0]["input_ids"][:start]])
        ids = pad_sequence([torch.tensor(row["input_ids"][start:]) for row in rows], True, 0)
        labels = pad_sequence([torch.tensor(row["labels"][start:]) for row in rows], True, IGNORE_INDEX)
        with torch.autocast("cpu", torch.bfloat16):
            first = self.language(inputs_embeds=self.embed(prompt, features), use_cache=True)
            first.past_key_values.batch_repeat_interleave(len(rows))
            rest = self.language(
                inputs_embeds=self.embed(ids, features), past_key_values=first.past_key_values, use_cache=True
            )
            last = first.last_hidden_state[:, -1:].expand(len(rows), -1, -1)
            logits = torch.cat([last, rest.last_hidden_state[:, :-1]], 1) @ self.head.T
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        return losses.sum(1) / (labels != IGNORE_INDEX).sum(1)


def all_tiles() -> list[Tensor]:
    """Every tile of the largest and of the middle scale."""
    return [torch.ones(n, n, dtype=torch.bool) for n in (LARGE, LARGE // 2)]


if __name__ == "__main__":
    main()

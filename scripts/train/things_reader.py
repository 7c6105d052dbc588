"""Has the embedded language model read visual tokens: a LoRA, first from text alone, then from images.

    python scripts/train/things_reader.py --output playground/checkpoints/reader_text
    python scripts/train/things_reader.py --start playground/checkpoints/reader_text \\
        --features features.pt --projectors playground/checkpoints/projectors --output playground/checkpoints/reader

Without ``--features`` the tokens are made up as a projector trained by squared error writes them: for each thing the
mean of the names' embeddings under what an observer believes who sees it through noise, from hardly anything to all.
With them, a batch holds the tokens of three scales of each image and of every second image those of 112² alone, and
both projectors are trained with the LoRA; so one language model reads both. Half an hour on one core of a CPU with
bfloat16, and as long on two.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from things_projector import load, save
from things_targets import GRID, Words, shares
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from llava_s2.model.assemble import assemble
from llava_s2.model.embedded import FEATURE_LAYER, NAME, SCALES, gguf_file
from llava_s2.model.inference import assistant_message, user_message
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.synthetic.scene_questions import Question, caption, conversation
from llava_s2.synthetic.scenes import Scene, SceneConfig, lay_out
from llava_s2.synthetic.thing_names import NAMES

CONFIG, SIZES = SceneConfig(empty=0.05, repeated=0.15), ((448, 448), (448, 299), (448, 336), (336, 448))
# Half the rank where the layers are three times as large.
MLP = r"mlp\.(gate|up|down)_proj"
LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    rank_pattern={MLP: 8},
    alpha_pattern={MLP: 16},
)
Row = tuple[dict[str, list[int]], Tensor]


def beliefs(true: int, count: int, sensitivity: float, nothing: float, rng: np.random.Generator) -> Tensor:
    """What an observer believes (count + 1, the last for nothing) that sees one of ``count`` names, or nothing, as
    a vector with normal noise. ``nothing`` is how often there is nothing, as far as it knows."""
    likelihood = sensitivity * rng.standard_normal(count + 1)
    likelihood[true] += sensitivity**2
    likelihood += np.log([*[(1 - nothing) / count] * count, nothing])
    return torch.from_numpy(likelihood).float().softmax(0)


def made_up_tokens(scene: Scene, words: Words, rng: np.random.Generator) -> Tensor:
    """Visual tokens (49, D) of a scene that nobody drew."""
    for_names, for_colors = rng.uniform(1.3, 6), rng.uniform(1.3, 5)
    names = torch.cat([words.names, words.nothing[None]])
    colors = torch.cat([words.colors, torch.zeros_like(words.nothing)[None]])
    tokens, parts = words.nothing.repeat(GRID * GRID, 1), shares(scene)
    for thing, row in zip(scene.things, parts, strict=True):
        for at in (row > 0.05).nonzero().flatten().tolist():
            part = float(row[at])
            name, color = words.numbers[thing.name], words.color_numbers.get(thing.color or "", len(words.colors))
            believed = beliefs(name, len(words.names), for_names * part**0.5, 0.5, rng)
            colored = beliefs(color, len(words.colors), for_colors * part**0.5, 0.5, rng)
            said = believed @ names + (1 - believed[-1]) * (colored @ colors)
            tokens[at] += part * (said - words.nothing)
    for at in (parts.sum(0) <= 0.05).nonzero().flatten().tolist():
        believed = beliefs(len(words.names), len(words.names), for_names, 0.9, rng)
        if believed[-1] < 0.95:
            tokens[at] = believed @ names
    noise = torch.from_numpy(rng.standard_normal(tokens.shape)).float()
    return tokens + 0.15 * tokens.square().mean(-1, keepdim=True).sqrt() * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="folder of the LoRA to go on from")
    parser.add_argument("--features", type=Path, help="what things_features.py wrote")
    parser.add_argument("--projectors", type=Path, help="folder that things_projector.py wrote")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mm_projector_lr", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.features and not args.projectors:
        parser.error("--features needs --projectors")

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    _, processor = assemble(NAME, NAME, list(SCALES), feature_layer=FEATURE_LAYER, template="chatml")
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    source = gguf_file()
    plain: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    words = Words(plain.get_input_embeddings().weight.detach(), processor.tokenizer)
    embeddings = plain.get_input_embeddings().weight.detach().to(torch.bfloat16)
    if args.start:
        model = PeftModel.from_pretrained(plain, str(args.start), is_trainable=True)
    else:
        model = get_peft_model(plain, LORA)
    language: Any = model.get_base_model().model
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "initial": args.lr}]
    rows_of, projectors = made_up_rows(processor, words, args.batch_size), {}
    if args.features:
        projectors = {name: load(args.projectors / f"projector_{name}.safetensors") for name in ("s2", "single")}
        train = torch.load(args.features, weights_only=False)["train"]
        rows_of = image_rows(processor, train, list(projectors.values()), args.batch_size)
        groups += [{"params": list(p.parameters()), "initial": args.mm_projector_lr} for p in projectors.values()]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)

    started = time.monotonic()
    recent: list[float] = []
    with tqdm(unit="step") as bar:
        while (progress := (time.monotonic() - started) / (60 * args.minutes)) < 1:
            share = min(1, (bar.n + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = group["initial"] * share
            encoded, tokens = zip(*rows_of(bar.n), strict=True)
            ids = pad_sequence([torch.tensor(row["input_ids"]) for row in encoded], True, 0)
            labels = pad_sequence([torch.tensor(row["labels"]) for row in encoded], True, IGNORE_INDEX)[:, 1:]
            inputs = embeddings[ids.clamp(max=len(embeddings) - 1)].float()
            inputs = inputs.masked_scatter((ids == image_token)[..., None], torch.cat(tokens))
            with torch.autocast("cpu", torch.bfloat16):
                hidden = language(inputs_embeds=inputs).last_hidden_state[:, :-1]
                logits = hidden[labels != IGNORE_INDEX] @ embeddings.T
            loss = cross_entropy(logits.float(), labels[labels != IGNORE_INDEX])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            recent.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{np.mean(recent[-20:]):.3f}")
            if bar.n % 20 == 0:
                tqdm.write(f"{bar.n} loss {np.mean(recent[-20:]):.4f}")
                write(model, projectors, args.output)
    write(model, projectors, args.output)


def write(model: PeftModel, projectors: dict[str, nn.Sequential], folder: Path) -> None:
    """Keeps what was trained so far."""
    model.save_pretrained(str(folder))
    for name, projector in projectors.items():
        save(projector, folder / f"projector_{name}.safetensors")


def made_up_rows(processor, words: Words, batch_size: int) -> Callable[[int], list[Row]]:
    """A step's conversations and tokens, without images."""

    def rows(step: int) -> list[Row]:
        rng = np.random.default_rng([77, step])
        found = []
        for _ in range(batch_size):
            size = SIZES[int(rng.integers(len(SIZES)))]
            scene = Scene(Image.new("1", size), tuple(lay_out("train", size, list(NAMES), CONFIG, rng)))
            found.append((encode(scene, processor, rng), made_up_tokens(scene, words, rng)))
        return found

    return rows


def image_rows(processor, train: dict, projectors: list[nn.Sequential], batch_size: int) -> Callable[[int], list[Row]]:
    """A step's conversations, each with the tokens that each projector makes of the image."""

    def rows(step: int) -> list[Row]:
        rng, found = np.random.default_rng([78, step]), []
        for i, number in enumerate(rng.integers(len(train["scenes"]), size=batch_size).tolist()):
            encoded, features = encode(train["scenes"][number], processor, rng), train["features"][number].float()
            for projector in projectors[: 1 + i % 2]:
                found.append((encoded, projector(features[:, : projector[0].in_features])))
        return found

    return rows


def encode(scene: Scene, processor, rng: np.random.Generator) -> dict[str, list[int]]:
    """A conversation about the scene, as token ids and labels."""
    messages: list = []
    questions = conversation(scene, rng)
    if rng.random() < 0.5:
        questions[-1] = Question("Describe the image.", (caption(scene),), ())
    for question in questions:
        messages += [user_message(question.text, 0 if messages else 1), assistant_message(question.answer)]
    return encode_messages(messages, processor, processor.chat_template)


if __name__ == "__main__":
    main()

"""Finds the input vectors that the embedded language model reads as "a red star": for each colour, kind and nothing.

    python scripts/train/embedded_words.py --output playground/checkpoints/words.safetensors

The frozen model is asked for the colour of one of the objects in a list of made-up visual tokens (no images): a token
is the sum of a colour's and a kind's vector, or the vector of nothing, with noise. Only these vectors are trained, from
the words' own embeddings (prompt tuning). ``embedded_projector.py`` then teaches the projectors of both models to write
them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_s2.data.scenes import COLORS, KINDS
from llava_s2.model.embedded import language_model

TOKENS, QUESTIONS, BATCH = 24, 3, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--noise", type=float, default=0.25, help="relative to a token's own norm")
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    path = language_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.requires_grad_(False)
    embedding = model.model.embed_tokens.weight.detach().float()

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    def word(text: str) -> torch.Tensor:
        return embedding[ids(" " + text)].mean(0)

    color_ids = [ids(f" {color}")[0] for color in COLORS]
    vectors = {
        "colors": torch.stack([word(color) for color in COLORS]).requires_grad_(),
        "kinds": torch.stack([word(kind) for kind in KINDS]).requires_grad_(),
        "nothing": word("nothing").clone().requires_grad_(),
    }
    optimizer = torch.optim.Adam(vectors.values(), lr=args.lr)
    head = ids("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    losses: list[float] = []
    rights: list[float] = []
    started, progress = time.monotonic(), 0.0
    with tqdm(unit="step") as bar:
        while progress < 1:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1, (len(losses) + 1) / 10) * 0.5 * (1 + np.cos(np.pi * progress))
            rows: list[torch.Tensor] = []
            places: list[tuple[int, int]] = []
            answers: list[int] = []
            for _ in range(BATCH):
                count = int(rng.integers(4, 6))
                kinds = rng.choice(len(KINDS), count, replace=False)
                colors = rng.integers(len(COLORS), size=count)
                visual = vectors["nothing"].repeat(TOKENS, 1)
                spots = np.sort(rng.choice(TOKENS, count, replace=False))
                visual = visual.index_put(
                    (torch.from_numpy(spots),), vectors["colors"][colors] + vectors["kinds"][kinds]
                )
                scale = visual.detach().norm(dim=-1, keepdim=True) / visual.shape[1] ** 0.5
                visual = visual + args.noise * scale * torch.randn_like(visual)
                parts, length = [embedding[head], visual], len(head) + TOKENS
                for turn, asked in enumerate(rng.choice(count, QUESTIONS, replace=False).tolist()):
                    opening = "\n" if turn == 0 else "<|im_start|>user\n"
                    text = (
                        f"{opening}What is the color of the {KINDS[kinds[asked]]}?<|im_end|>\n<|im_start|>assistant\n"
                        f"The color of the {KINDS[kinds[asked]]} is"
                    )
                    tokens = ids(text)
                    length += len(tokens)
                    places.append((len(rows), length - 1))
                    answers.append(int(colors[asked]))
                    tokens += [color_ids[answers[-1]], *ids(".<|im_end|>\n")]
                    length += len(tokens) - len(ids(text))
                    parts.append(embedding[tokens])
                rows.append(torch.cat(parts))
            batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(torch.bfloat16)
            hidden = model.model(inputs_embeds=batch).last_hidden_state
            row, place = (torch.tensor(values) for values in zip(*places, strict=True))
            logits = model.lm_head(hidden[row, place]).float()
            target = torch.tensor(answers)
            loss = cross_entropy(logits, torch.tensor(color_ids)[target])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rights.append((logits[:, color_ids].argmax(1) == target).float().mean().item())
            progress = (time.monotonic() - started) / (60 * args.minutes)
            bar.update()
            bar.set_postfix(loss=f"{np.mean(losses[-10:]):.3f}", right=f"{np.mean(rights[-10:]):.2f}")
            if len(losses) % 20 == 0:
                tqdm.write(f"{len(losses)} loss {np.mean(losses[-20:]):.3f} right {np.mean(rights[-20:]):.2f}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in vectors.items()}, args.output)


if __name__ == "__main__":
    main()

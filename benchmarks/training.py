"""Training speed and memory beside a plain loop as LLaVA's train.py has it, on one mix of lengths, in one run.

    python benchmarks/training.py --output benchmarks/results/training.json

The plain loop pads a batch to its longest example, carries float32 pixels, runs the whole tower with all its hidden
states kept, and computes logits everywhere; it sees the examples in any order, or with ``--grouped`` in the order by
length and modality that LLaVA's fine-tuning scripts ask for. Ours is ``llava-s2 train finetune --packing True
--group_by_modality_length True``. Each loop has a process of its own; its first step is not timed.

The models are small Llama and CLIP shapes with random weights, and 576 tokens an image as the S2 scales 336, 672 and
1008 give them. The mix has the parts and record counts of LLaVA-1.5's 665k (arXiv:2310.03744, table 7) and the
turns a record that its appendix tells; tokens a turn are not published and are assumed here, see ``_MIX``.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "llava_tiny" / "vicuna-tiny"
_SIDE, _PATCH = 96, 4  # 24 x 24 = 576 tokens
_SCALES = [_SIDE, 2 * _SIDE, 3 * _SIDE]
_IMAGES = 16
# Part: thousand records, fewest and most turns, tokens of a question and its answer. ShareGPT has no images, and
# conversations of which many are cut at 2,048 tokens.
_MIX = {
    "LLaVA conversation": (58, 2, 5, 70),
    "LLaVA detail": (23, 1, 1, 130),
    "LLaVA reasoning": (77, 1, 1, 210),
    "ShareGPT": (40, 2, 8, 240),
    "VQAv2": (83, 1, 10, 20),
    "GQA": (72, 4, 22, 20),
    "OKVQA": (9, 1, 1, 25),
    "OCR-VQA": (80, 3, 7, 28),
    "A-OKVQA": (66, 1, 1, 65),
    "TextCaps": (22, 1, 1, 100),
    "RefCOCO": (48, 1, 9, 45),
    "Visual Genome": (86, 3, 10, 45),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8, help="examples a step (default: %(default)s; takes 15 GB)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a loop (default: %(default)s)")
    parser.add_argument("--records", type=int, default=800, help="drawn from the mix (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=768, help="of the language model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of the language model (default: %(default)s)")
    parser.add_argument("--grouped", action="store_true", help="the plain loop, too, in that order")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _apart(_write, root, args)
        loops = {"plain": _apart(_plain, root, args), "ours": _apart(_ours, root, args)}
    for name, loop in loops.items():
        print(
            f"{name:<6} {loop['tokens_per_second']:8.0f} real tokens/s  {loop['padding_efficiency']:6.1%} of them "
            f"real  {loop['peak_bytes'] / 1e9:5.2f} GB"
        )
    ratio = loops["ours"]["tokens_per_second"] / loops["plain"]["tokens_per_second"]
    shape = {name: value for name, value in vars(args).items() if name != "output"}
    text = json.dumps({"ratio": round(ratio, 3), "cpu": _cpu(), **shape, "loops": loops}, indent=2)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


def _apart(work: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in a fresh process, whose largest size is then that of this work alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def _write(folder: Path, args: argparse.Namespace) -> None:
    """Language model, tower, images and records."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llm")
    AutoTokenizer.from_pretrained(_TOKENIZER).save_pretrained(folder / "llm")
    tower = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=_PATCH,
    )
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    (folder / "tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "CLIPImageProcessor"})
    )
    draw = np.random.default_rng(0)
    for number in range(_IMAGES):
        Image.fromarray(draw.integers(0, 256, (480, 640, 3), np.uint8)).save(folder / f"{number}.jpg")
    names, parts = list(_MIX), np.array([part[0] for part in _MIX.values()], float)
    records = []
    for part in draw.choice(len(names), args.records, p=parts / parts.sum()):
        _, fewest, most, tokens = _MIX[names[part]]
        turns = []
        for _ in range(draw.integers(fewest, most + 1)):
            question, answer = draw.lognormal(np.log(tokens / 2) - 0.1, 0.45, 2).astype(int).clip(1, 2000)
            turns += [{"from": "human", "value": "word " * question}, {"from": "gpt", "value": "word " * answer}]
        record: dict[str, Any] = {"conversations": turns}
        if names[part] != "ShareGPT":
            record["image"] = f"{draw.integers(_IMAGES)}.jpg"
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))


def _plain(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The loop that LLaVA's train.py comes to, without Trainer's own work around it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader
    from transformers import CLIPVisionModel, set_seed
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    from llava_s2 import encode_conversation, multiscale_forward
    from llava_s2.data.image_decoding import open_image
    from llava_s2.data.training_records import check_records
    from llava_s2.model.assemble import assemble
    from llava_s2.train.sampler import ModalitySampler

    class WholeTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIPVisionModel.from_pretrained(folder / "tower")

        def features(self, tiles: torch.Tensor) -> torch.Tensor:
            return self.clip(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]

        @torch.no_grad()
        def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
            found = multiscale_forward(self.features, pixel_values, img_sizes=_SCALES, max_split_size=_SIDE)
            return BaseModelOutputWithPooling(last_hidden_state=found, hidden_states=(found,))

    set_seed(42)
    model, processor = assemble(str(folder / "llm"), str(folder / "tower"), _SCALES, dtype="float32")
    model.model.vision_tower = WholeTower()
    adapter = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=r".*language_model.*_proj",
        modules_to_save=["multi_modal_projector"],
    )
    peft: Any = get_peft_model(model.requires_grad_(False), adapter)
    learning = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-4, fused=True)  # as transformers' default
    checked = check_records(folder / "data.json", folder, "vicuna_v1")

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        ids, labels, pixels = [], [], []
        for index in indices:
            record = checked.records[index]
            encoded = encode_conversation(record["conversations"], processor)
            ids.append(torch.tensor(encoded["input_ids"][:2048]))
            labels.append(torch.tensor(encoded["labels"][:2048]))
            if "image" in record:
                image = open_image(folder / record["image"])
                pixels.append(processor.image_processor(image, return_tensors="pt")["pixel_values"])
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})

    count = len(checked.records)
    order: Any = torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()
    order = ModalitySampler(checked.lengths.tolist(), args.batch, 42) if args.grouped else order
    loader: Any = DataLoader(range(count), args.batch, sampler=order, collate_fn=collate)  # type: ignore[arg-type]
    peft.train()
    peft.get_base_model().model.vision_tower.eval()
    tokens = places = 0
    start = 0.0
    for step, batch in zip(range(args.steps + 1), loader, strict=False):
        peft(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            start = time.perf_counter()
        else:
            tokens += int(batch["attention_mask"].sum())
            places += batch["input_ids"].numel()
    return {
        "tokens_per_second": tokens / (time.perf_counter() - start),
        "padding_efficiency": tokens / places,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _ours(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """``llava-s2 train finetune``; its log of step 1, then one of all that follow."""
    from llava_s2.train.recipe import train

    output = folder / "out"
    start = ["--model_name_or_path", folder / "llm", "--vision_tower", folder / "tower", "--use_cpu", True]
    start += ["--s2_scales", ",".join(map(str, _SCALES)), "--data_path", folder / "data.json", "--image_folder", folder]
    start += ["--lora_r", 16, "--lora_alpha", 32, "--per_device_train_batch_size", args.batch]
    start += ["--max_steps", args.steps + 1, "--logging_first_step", True, "--logging_steps", args.steps + 1]
    start += ["--save_strategy", "no", "--report_to", "none", "--output_dir", output]
    start += ["--packing", True, "--group_by_modality_length", True]
    train("finetune", list(map(str, start)))
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    last = [entry for entry in history if "tokens_per_second" in entry][-1]
    return {
        "tokens_per_second": last["tokens_per_second"],
        "padding_efficiency": last["padding_efficiency"],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()

"""What a training run would do, told from configs and data alone: what learns, tokens, steps, memory a GPU."""

from math import ceil
from typing import Any

import numpy as np
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, TrainingArguments

from llava_s2.data.training_records import TrainingRecords
from llava_s2.errors import InputError
from llava_s2.formats.configs import checkpoint_config
from llava_s2.formats.identify import identify
from llava_s2.model.assemble import split_gguf
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.language_model import read_language_config
from llava_s2.model.projector import HIDDEN_ACT
from llava_s2.s2 import S2VisionConfig
from llava_s2.towers.load_tower import tower_config
from llava_s2.train.arguments import RecipeArguments
from llava_s2.train.parts import TrainableModules, choose_parts
from llava_s2.train.speed import Parameters, count_parameters, step_flops

_MFU = 0.4  # what large runs reach of a GPU's peak
_PEAK_TFLOPS = 989.0  # an H100's in 16 bits
_TOKENS_A_WORD = 1.5  # English text in a Llama tokenizer, with the template's own tokens


def describe_run(
    recipe: RecipeArguments,
    training: TrainingArguments,
    parts: TrainableModules,
    checked: TrainingRecords,
    is_llm: bool,
    markers: bool = False,
) -> str:
    """The text that ``--dry_run`` prints. No weight is read: the model is built without memory.

    Args:
        markers: whether the rows of the two image markers learn.

    Raises:
        InputError: the model to start from is in the original LLaVA's format, whose config says too little.
    """
    config = _config(recipe, is_llm)
    with torch.device("meta"):
        model = choose_parts(LlavaForConditionalGeneration(config), parts, recipe, (0, 1) if markers else ())
    counts = count_parameters(model)
    records, processes = len(checked.records), recipe.dry_run_gpus or training.world_size
    a_step = training.train_batch_size * training.gradient_accumulation_steps * processes
    # As Trainer counts: whole batches a process, then groups of them.
    batches = ceil(ceil(records / training.train_batch_size) / processes)
    an_epoch = max(1, ceil(batches / training.gradient_accumulation_steps))
    steps = training.max_steps if training.max_steps > 0 else ceil(an_epoch * training.num_train_epochs)
    tokens = _image_tokens(config.vision_config)
    images = int(checked.images_before_answer.max())
    longest = int(min(recipe.model_max_length, _TOKENS_A_WORD * np.abs(checked.lengths).max() + tokens * images))
    memory = estimate_memory(model, config, recipe, training, counts, longest * training.train_batch_size, processes)
    epochs = steps * a_step / records
    all_images = float(checked.images.sum()) * epochs
    all_tokens = _TOKENS_A_WORD * float(np.abs(checked.lengths).sum()) * epochs + tokens * all_images
    of_token, of_image = step_flops(model)
    flops = all_tokens * of_token + all_images * of_image
    rate = _MFU * (recipe.peak_tflops or _PEAK_TFLOPS) * 1e12
    lines = describe_parameters(counts, parts)
    lines += [
        f"tokens an image: {tokens} of images of {config.vision_config.image_size} x {config.vision_config.image_size}",
        f"records: {records:,}, the longest about {longest:,} tokens of at most {recipe.model_max_length:,}",
        f"steps: {steps:,} of {a_step} records ({processes} processes x {training.train_batch_size} x "
        f"{training.gradient_accumulation_steps} accumulated), {an_epoch:,} an epoch",
        f"time, estimated: {flops / rate / processes / 3600:.1f} hours for {flops:.2g} FLOP, at {rate / 1e12:.0f} "
        f"TFLOP/s a GPU ({_MFU:.0%} of --peak_tflops {recipe.peak_tflops or _PEAK_TFLOPS:g})",
        f"memory a GPU, estimated: {sum(memory.values()) / 2**30:.1f} GiB",
    ]
    lines += [f"  {name:<45} {size / 2**30:6.1f} GiB" for name, size in memory.items()]
    return "\n".join(lines)


def describe_parameters(counts: dict[str, Parameters], parts: TrainableModules) -> list[str]:
    """Lines that say what is trained, and of how many parameters."""
    lines = [f"trains: {parts.describe()}"]
    for name, count in counts.items():
        if count.total:
            lines.append(f"  {name:<15} {count.total:>14,} parameters, {count.learning:>14,} trainable")
    return lines


def estimate_memory(
    model: Any,
    config: LlavaConfig,
    recipe: RecipeArguments,
    training: TrainingArguments,
    counts: dict[str, Parameters],
    tokens: int,
    processes: int,
) -> dict[str, float]:
    """Bytes that one process needs of its GPU, by what they are for; AdamW, attention without stored scores.

    Args:
        counts: of `count_parameters`.
        tokens: of the longest batch.
        processes: over which ZeRO or FSDP shards.

    Activations follow Korthikanti et al. (arXiv:2205.05198), equation 2 without its attention term: 34 bytes a token,
    channel and layer in 16 bits; with activation checkpointing a layer keeps its input alone and one layer is whole.
    """
    stage, sharded = _sharding(training)
    shards = processes if sharded else 1
    half = training.bf16 or training.fp16
    width = 2 if half else 4
    learning = sum(count.learning for count in counts.values())
    frozen = sum(count.total - count.learning for count in counts.values())
    packed = counts["language model"].total - counts["language model"].learning if recipe.bits != 16 else 0
    weights = (frozen - packed) * width + packed * recipe.bits / 8
    if stage is None:  # float32 weights, gradients and two moments
        learned = learning * (4 + 4 + 8) / shards
    else:  # DeepSpeed's 16-bit weights and gradients, and sharded float32 weights and moments
        learned = learning * (width / shards + width / (processes if stage >= 2 else 1) + 12 / processes)
    text: Any = config.text_config
    channel = tokens * text.hidden_size * width
    layers = text.num_hidden_layers
    kept = layers * channel + 17 * channel if training.activation_checkpointing else layers * 17 * channel
    vision: Any = config.vision_config
    images = tokens / max(1, _image_tokens(vision))
    pixels = 4 * 3 * vision.image_size**2 * images
    return {
        "weights that stay": weights / shards,
        "weights that learn, gradients, optimizer": learned,
        "activations": kept,
        "logits and their gradient": tokens * text.vocab_size * (width + 8),
        "pixels": pixels,
    }


def _sharding(training: TrainingArguments) -> tuple[int | None, bool]:
    """ZeRO's stage, None without DeepSpeed; and whether all weights are sharded."""
    if training.deepspeed:
        stage = training.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
        return stage, stage == 3
    return None, bool(training.fsdp)


def _config(recipe: RecipeArguments, is_llm: bool) -> Any:
    if is_llm:
        folder, gguf_file = split_gguf(resolve_language_model(recipe.model_name_or_path), recipe.gguf_file)
        text_config = read_language_config(folder, gguf_file)
        assert recipe.vision_tower is not None
        vision_config = tower_config(
            resolve_vision_tower(recipe.vision_tower),
            recipe.scales,
            recipe.mm_vision_select_layer,
            recipe.image_aspect_ratio or "pad",
            recipe.output_scale,
        )
        return LlavaConfig(
            vision_config=vision_config,
            text_config=text_config,
            vision_feature_layer=-1,
            projector_hidden_act=HIDDEN_ACT[recipe.mm_projector_type or "mlp2x_gelu"],
            vision_feature_select_strategy="full",
            tie_word_embeddings=text_config.tie_word_embeddings,
        )
    name = recipe.model_name_or_path
    if identify(name).kind.startswith("llava"):
        raise InputError(f"--dry_run: {name} is in the original LLaVA's format; first run llava-s2 convert {name} DST")
    config = checkpoint_config(identify(name))
    if recipe.s2_scales is not None:
        vision: Any = config.vision_config
        own = isinstance(vision, S2VisionConfig)
        config.vision_config = S2VisionConfig(
            backbone_config=vision.backbone_config if own else vision,
            scales=recipe.scales,
            feature_layer=vision.feature_layer if own else config.vision_feature_layer,
        )
    return config


def _image_tokens(vision: Any) -> int:
    return getattr(vision, "num_image_tokens", (vision.image_size // vision.patch_size) ** 2)

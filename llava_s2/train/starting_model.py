"""The model that a run starts from: what the flags name, checked before its weights are read, and then loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, TrainingArguments, set_seed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from llava_s2.errors import InputError
from llava_s2.formats.configs import (
    checkpoint_config,
    checkpoint_processor,
    has_image_markers,
    own_scales,
    saved_template,
)
from llava_s2.formats.identify import TRAINED_FILES, identify
from llava_s2.formats.llava_config import LlavaSettings
from llava_s2.formats.load import load_pretrained
from llava_s2.formats.tensor_names import split
from llava_s2.model.assemble import assemble, split_gguf
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.processor import aspect_ratio, set_template
from llava_s2.model.projector import HIDDEN_ACT, single_layer, with_identity
from llava_s2.model.templates import (
    IMAGE_START_TOKEN,
    OWN,
    TEMPLATES,
    check_keeps_words,
    find_template,
    with_image_start_end,
)
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.model.widen import widen
from llava_s2.s2 import S2VisionConfig
from llava_s2.s2.backbones import geometry
from llava_s2.towers.load_tower import load_vision_config, tower_config
from llava_s2.train.arguments import OF_VISION, RecipeArguments
from llava_s2.train.base_model import prepare_base, saved_template_of, template_of_parts
from llava_s2.train.parts import TrainableModules
from llava_s2.weight_files import check_numbers, read_tensors


def is_language_model(recipe: RecipeArguments) -> bool:
    """Whether the run starts from a language model and a tower, rather than from a LLaVA that there is."""
    name = resolve_language_model(recipe.model_name_or_path)
    if not (recipe.gguf_file or name.endswith(".gguf")) and identify(name).kind != "llm":
        return False
    if recipe.widen_from is not None:
        raise InputError(f"--widen_from {name}: a language model, not a LLaVA; give it as --model_name_or_path")
    if recipe.vision_tower is None:
        raise InputError(f"{name} is a language model: say with --vision_tower (and --s2_scales) what it sees with")
    if recipe.s2_scales is None:  # as in LLaVA, the tower's own
        recipe.s2_scales = str(load_vision_config(resolve_vision_tower(recipe.vision_tower)).image_size)
    return True


def check_named_parts(recipe: RecipeArguments, from_parts: bool) -> None:
    """Raises InputError where a tower, or a model under an adapter, is named that would not be used."""
    if recipe.replace_vision_tower and recipe.vision_tower is None:
        raise InputError("--replace_vision_tower: name the tower to use by --vision_tower")
    kind = "llm" if from_parts else identify(recipe.model_name_or_path).kind
    if recipe.base is not None and kind in ("llm", "hf", "llava_full"):
        raise InputError(f"--base {recipe.base}: {recipe.model_name_or_path} is no adapter; leave the flag out")
    if from_parts or recipe.vision_tower is None or recipe.replace_vision_tower:
        return
    if kind == "hf":
        raise InputError(
            f"--vision_tower {recipe.vision_tower}: {recipe.model_name_or_path} holds a vision tower, which is the one "
            "that is used; leave the flag out, or add --replace_vision_tower to train with the one named"
        )


def check_own(recipe: RecipeArguments) -> None:
    """Compares what the flags ask of the vision side with what the LLaVA to start from was trained with.

    Raises:
        InputError: a flag asks for another.
    """
    asked = {name: value for name in OF_VISION if (value := getattr(recipe, name)) is not None}
    if not asked:
        return
    checkpoint = identify(recipe.model_name_or_path)
    scales, resized_to = len(recipe.scales) if recipe.s2_scales else 1, 0
    if checkpoint.kind.startswith("llava"):
        settings = LlavaSettings.read(checkpoint.config, f"{checkpoint.name}/config.json")
        backbone = load_vision_config(recipe.vision_tower or settings.vision_tower)
        scales, layer = len(settings.scales or ()) or scales, settings.feature_layer
        act, ratio = HIDDEN_ACT.get(settings.projector_type, "linear"), settings.image_aspect_ratio
    else:
        config = checkpoint_config(checkpoint)
        backbone, layer = config.vision_config, config.vision_feature_layer
        act, ratio = config.projector_hidden_act, aspect_ratio(checkpoint_processor(checkpoint), backbone)
        if isinstance(backbone, S2VisionConfig):
            scales, layer, resized_to = len(backbone.scales), backbone.feature_layer, backbone.resize_output_to_idx
            backbone = backbone.backbone_config
        if recipe.replace_vision_tower:
            backbone = load_vision_config(resolve_vision_tower(str(recipe.vision_tower)))
    # What it has, and of a number that may be counted from the end how many there are.
    own: dict[str, tuple[Any, int | None]] = {
        "image_aspect_ratio": (ratio, None),
        "mm_projector_type": (next((kind for kind in HIDDEN_ACT if HIDDEN_ACT[kind] == act), act), None),
        "mm_vision_select_layer": (layer, geometry(backbone).blocks + 1 if isinstance(layer, int) else None),
        "s2_resize_output_to_idx": (resized_to, scales),
    }
    for name, value in asked.items():
        has, count = own[name]
        if value != has and (count is None or (value - has) % count):
            raise InputError(
                f"--{name} {value}: {recipe.model_name_or_path} was trained with {has}; leave the flag out, or give "
                f"{has}"
            )


def chat_template(stage: str, recipe: RecipeArguments, from_parts: bool) -> str:
    """The chat template (Jinja text) to train with: the one named, or what the stage or the LLaVA comes with.

    Images stand between two markers where the LLaVA to start from has them so, or ``--mm_use_im_start_end`` asks for it
    over a language model; not in ``plain``, as in LLaVA.

    Raises:
        InputError: there is no such template, it drops what is said or the markers, or the LLaVA has none.
    """
    name = recipe.model_name_or_path
    is_marked = recipe.mm_use_im_start_end if from_parts else has_image_markers(identify(name), recipe.base)
    if recipe.mm_use_im_start_end and not is_marked:
        raise InputError(
            f"--mm_use_im_start_end: {name} was trained without <im_start> and <im_end>; leave it out, or start from "
            "a language model"
        )
    template = _named_template(stage, recipe, from_parts)
    check_keeps_words(template)
    if not is_marked or template == TEMPLATES["plain"]:
        return template
    template = with_image_start_end(template)
    if IMAGE_START_TOKEN not in template:
        raise InputError(
            f"--template {recipe.template}: {name} has every image between <im_start> and <im_end>, which this "
            "template does not write; write them around <image> in it"
        )
    return template


def _named_template(stage: str, recipe: RecipeArguments, from_parts: bool) -> str:
    if recipe.template not in (None, OWN):
        return find_template(recipe.template)
    if recipe.template is None and (stage == "pretrain" or from_parts):
        return TEMPLATES["plain" if stage == "pretrain" else "vicuna_v1"]
    if not from_parts:
        return find_template(OWN, saved_template(identify(recipe.model_name_or_path), recipe.base))
    llm, gguf_file = split_gguf(resolve_language_model(recipe.model_name_or_path), recipe.gguf_file)
    return find_template(OWN, load_tokenizer(llm, gguf_file=gguf_file).chat_template)


def check_parts(recipe: RecipeArguments, projector: dict[str, Tensor] | None) -> S2VisionConfig:
    """What the configs of a language model and a tower tell of their fit, before their weights are loaded.

    Returns:
        The S2 tower's config.
    """
    assert recipe.vision_tower is not None
    vision_tower = resolve_vision_tower(recipe.vision_tower)
    vision_config = tower_config(
        vision_tower,
        recipe.scales,
        recipe.mm_vision_select_layer,
        recipe.image_aspect_ratio or "pad",
        recipe.output_scale,
    )
    llm, gguf_file = split_gguf(resolve_language_model(recipe.model_name_or_path), recipe.gguf_file)
    if projector is not None:
        text_size = None if gguf_file else identify(llm).config.get("hidden_size")
        act = HIDDEN_ACT[recipe.mm_projector_type or "mlp2x_gelu"]
        _check_projector(recipe, projector, vision_config.hidden_size, text_size, act)
    return vision_config


def read_projector(source: str) -> dict[str, Tensor]:
    """Reads a projector from what ``pretrain`` wrote, folder or safetensors, or from LLaVA's ``mm_projector.bin``."""
    path = Path(source)
    if path.is_dir():
        names = ("adapter_model.safetensors", "mm_projector.bin", *TRAINED_FILES)
        path = next((path / name for name in names if (path / name).is_file()), path)
    if not path.is_file():
        raise InputError(f"--pretrain_mm_mlp_adapter {source}: no adapter_model.safetensors or mm_projector.bin there")
    parts = split(read_tensors(path))
    if any("lora_" not in name for name in parts.language_model):
        raise InputError(
            f"--pretrain_mm_mlp_adapter {path}: holds trained rows of the language model too "
            f"({', '.join(sorted(parts.language_model)[:2])}), which this flag would drop; start from its folder with "
            "--model_name_or_path (where LLaVA made it, with its config.json in it)"
        )
    if not parts.projector:
        raise InputError(f"--pretrain_mm_mlp_adapter {path}: holds no projector")
    check_numbers(f"--pretrain_mm_mlp_adapter {path}", parts.projector)
    layer = {name.removeprefix("linear_1."): tensor for name, tensor in parts.projector.items()}
    return with_identity(layer) if layer.keys() == {"weight", "bias"} else parts.projector


def load_starting_model(
    recipe: RecipeArguments,
    training: TrainingArguments,
    components: TrainableModules,
    projector: dict[str, Tensor] | None,
    *,
    from_parts: bool,
    checkpoint: Path | None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, str | None]:
    """The model that training starts from, whole, its frozen weights in the dtype that the run computes in.

    Args:
        projector: what its projector starts with, if it was given. from_parts: of `is_language_model`.
        checkpoint: that the run goes on from.

    Returns:
        The model; its processor, with the chat template to be saved; and where the model is, if an adapter is trained
        over it.

    Raises:
        InputError: it cannot be read, or does not go with the flags.
    """
    with no_sharding_at_load(training):
        model, processor, base = _load(recipe, training, components, from_parts=from_parts, checkpoint=checkpoint)
    if recipe.attn_implementation is not None:
        try:
            model.set_attn_implementation(recipe.attn_implementation)
        except (ValueError, ImportError) as error:
            raise InputError(f"--attn_implementation: {' '.join(str(error).split())}") from None
    model.model.multi_modal_projector.float()  # it is trained in float32, whatever the frozen weights are in
    if projector is not None:
        first = model.model.multi_modal_projector.linear_1
        act = model.config.projector_hidden_act
        _check_projector(recipe, projector, first.in_features, first.out_features, act)
        model.model.multi_modal_projector.load_state_dict(projector)
    return model, processor, base


def _load(
    recipe: RecipeArguments,
    training: TrainingArguments,
    components: TrainableModules,
    *,
    from_parts: bool,
    checkpoint: Path | None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, str | None]:
    """As `load_starting_model`; the chat template to be saved never is ``plain``, for that drops the user's words."""
    template = saved_template_of(recipe)
    dtype = "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"
    if not components.is_adapter:
        # The weights that learn are float32; DeepSpeed keeps such a copy itself.
        model, processor = _load_whole(recipe, from_parts, dtype if training.deepspeed else "float32")
        base = None
    else:
        widens = not from_parts and _widens(recipe)
        base = prepare_base(recipe, training, from_parts=from_parts, widens=widens, dtype=dtype, checkpoint=checkpoint)
        set_seed(training.seed)  # making it drew numbers on one process alone
        model, processor = load_pretrained(
            base,
            dtype=dtype,
            device_map={"": training.device} if recipe.bits != 16 else None,
            quantization=f"{recipe.bits}bit" if recipe.bits != 16 else None,
        )
    if template is not None:
        set_template(processor, template)
    return model, processor, base


def _load_whole(
    recipe: RecipeArguments, from_parts: bool, dtype: str
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model that all of the language model is trained of, in memory as it is."""
    if from_parts:
        assert recipe.vision_tower is not None
        return assemble(
            recipe.model_name_or_path,
            recipe.vision_tower,
            recipe.scales,
            feature_layer=recipe.mm_vision_select_layer,
            template=template_of_parts(recipe),
            image_aspect_ratio=recipe.image_aspect_ratio or "pad",
            resize_output_to_idx=recipe.output_scale,
            projector_type=recipe.mm_projector_type or "mlp2x_gelu",
            dtype=dtype,
            gguf_file=recipe.gguf_file,
        )
    model, processor = load_pretrained(
        recipe.model_name_or_path,
        recipe.base,
        vision_tower=recipe.vision_tower,
        replace_vision_tower=recipe.replace_vision_tower,
        dtype=dtype,
        template=saved_template_of(recipe),
    )
    return widen(model, processor, recipe.scales) if _widens(recipe) else (model, processor)


def _widens(recipe: RecipeArguments) -> bool:
    """Whether the LLaVA to start from has other scales than the run is to have."""
    if recipe.widen_from is not None:
        return True
    return recipe.s2_scales is not None and recipe.scales != own_scales(recipe.model_name_or_path, recipe.vision_tower)


def _check_projector(
    recipe: RecipeArguments, projector: dict[str, Tensor], vision_size: int, text_size: int | None, act: str
) -> None:
    """Compares a projector with the model's: its kind, and its shapes; ``text_size`` None is not known yet.

    Args:
        act: the model's ``projector_hidden_act``.
    """
    found = {name: tuple(tensor.shape) for name, tensor in projector.items()}
    size = text_size or found.get("linear_1.weight", (0,))[0]
    wanted = {
        "linear_1.weight": (size, vision_size),
        "linear_1.bias": (size,),
        "linear_2.weight": (size, size),
        "linear_2.bias": (size,),
    }
    if found != wanted:
        shapes = ", ".join(f"{name} {shape}" for name, shape in sorted(found.items()))
        raise InputError(
            f"--pretrain_mm_mlp_adapter {recipe.pretrain_mm_mlp_adapter}: holds {shapes}, but the model needs "
            f"linear_1.weight {wanted['linear_1.weight']}; was it trained with other scales, tower or language model?"
        )
    kind = "mlp2x_gelu" if single_layer(projector) is None else "linear"
    if HIDDEN_ACT[kind] != act:
        raise InputError(
            f"--pretrain_mm_mlp_adapter {recipe.pretrain_mm_mlp_adapter}: is a projector of the type {kind}, and the "
            f"model has another; name it with --mm_projector_type {kind}"
        )


@contextmanager
def no_sharding_at_load(training: TrainingArguments) -> Iterator[None]:
    """Hides a ZeRO-3 config from transformers, which would load every part of the model as shards.

    Parts are read and put together whole; DeepSpeed shards the model when training starts.
    """
    config = getattr(training, "hf_deepspeed_config", None)  # only with --deepspeed
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)

"""What of a LLaVA is trained: projector, LoRA on the language model, the whole language model, the tower."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, distributed, nn
from transformers import LlavaForConditionalGeneration

from llava_s2.errors import InputError
from llava_s2.train.arguments import RecipeArguments
from llava_s2.train.stored_features import StoredTower

PROJECTOR, TOWER = "multi_modal_projector", "vision_tower"


@dataclass(frozen=True)
class TrainableModules:
    """The parts that learn; ``lora`` and ``language_model`` exclude each other."""

    projector: bool
    lora: bool
    language_model: bool
    tower: bool

    @property
    def is_adapter(self) -> bool:
        """Whether the language model's own weights stay, so that what is trained is saved as an adapter over them."""
        return not self.language_model

    @classmethod
    def of(cls, stage: str, recipe: RecipeArguments) -> "TrainableModules":
        """The parts that LLaVA's flags name; ``pretrain`` is the projector, ``finetune`` LoRA and the projector.

        Raises:
            InputError: flags that contradict each other.
        """
        alone = stage == "pretrain" if recipe.tune_mm_mlp_adapter is None else recipe.tune_mm_mlp_adapter
        lora = stage == "finetune" and not alone if recipe.lora_enable is None else recipe.lora_enable
        if alone and lora:
            if recipe.tune_mm_mlp_adapter is not None:
                raise InputError("--tune_mm_mlp_adapter trains the projector alone; leave --lora_enable out")
            alone = False
        projector = not recipe.freeze_mm_mlp_adapter
        if alone and not projector:
            raise InputError("--freeze_mm_mlp_adapter leaves nothing of the projector to train; leave it out")
        parts = cls(projector, lora, not alone and not lora, recipe.unfreeze_mm_vision_tower)
        if recipe.bits != 16 and not parts.is_adapter:
            raise InputError(f"--bits {recipe.bits}: quantized weights do not learn; train LoRA over them")
        if recipe.mm_vision_tower_lr is not None and not parts.tower:
            raise InputError("--mm_vision_tower_lr: the tower is frozen; add --unfreeze_mm_vision_tower")
        return parts

    def describe(self) -> str:
        """Words for a person, such as ``projector, LoRA on the language model``."""
        names = {
            "projector": self.projector,
            "LoRA on the language model": self.lora,
            "the whole language model": self.language_model,
            "vision tower": self.tower,
        }
        return ", ".join(name for name, learns in names.items() if learns)


def choose_parts(
    model: LlavaForConditionalGeneration,
    parts: TrainableModules,
    recipe: RecipeArguments,
    tokens: Sequence[int] = (),
) -> LlavaForConditionalGeneration | PeftModel:
    """Freezes the model, and has the given parts learn: over a frozen language model as an adapter, else in place.

    The trained weights become float32, whatever the frozen ones are in.

    Args:
        tokens: ids whose rows of a frozen embedding learn, and of a head that is tied to it.
    """
    model.requires_grad_(False)
    run_tower_on_every_batch(model)
    if not parts.tower:
        keep_frozen(model.model.vision_tower)
    if parts.is_adapter:
        return _with_frozen_identity(_adapter(model, parts, recipe, list(tokens) or None))
    learning = [model.model.language_model, model.lm_head]
    learning += [model.model.multi_modal_projector] if parts.projector else []
    learning += [model.model.vision_tower] if parts.tower else []
    for module in learning:
        module.requires_grad_(True)
    return _with_frozen_identity(model)


def _with_frozen_identity(model: Any) -> Any:
    """Keeps the second layer of a projector that is a single one, see `llava_s2.model.projector`."""
    if model.config.projector_hidden_act == "linear":
        for name, parameter in model.named_parameters():
            if f"{PROJECTOR}." in name and ".linear_2." in name:
                parameter.requires_grad_(False)
    return model


def _adapter(
    model: LlavaForConditionalGeneration, parts: TrainableModules, recipe: RecipeArguments, tokens: list[int] | None
) -> PeftModel:
    whole = [PROJECTOR, TOWER] if parts.tower else [PROJECTOR]  # the projector is saved with what is trained, always
    if parts.tower:
        model.model.vision_tower.float()
    if not parts.lora:
        # PEFT's name for "no layer": the adapter is the modules to save alone.
        config = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=whole, trainable_token_indices=tokens)
        return _with_frozen_projector(get_peft_model(model, config), parts)
    linear = {
        name.rpartition(".")[2]
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=recipe.lora_r,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=rf".*\.language_model\..*\.({'|'.join(sorted(map(re.escape, linear)))})",
            modules_to_save=whole,
            trainable_token_indices=tokens,
        ),
    )
    return _with_frozen_projector(adapted, parts)


def _with_frozen_projector(adapted: Any, parts: TrainableModules) -> PeftModel:
    """Freezes the adapter's copy of the projector where it is not to be trained."""
    if not parts.projector:
        adapted.get_base_model().model.multi_modal_projector.requires_grad_(False)
    return adapted


def keep_frozen(tower: nn.Module) -> None:
    """Has the tower run in eval mode and without a graph, although Trainer sets the whole model to train mode."""
    was_enabled: list[bool] = []

    def before(module: nn.Module, _: object) -> None:
        module.eval()
        was_enabled.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def after(*_: object) -> None:
        torch.set_grad_enabled(was_enabled.pop())

    tower.register_forward_pre_hook(before)
    tower.register_forward_hook(after, always_call=True)


def run_tower_on_every_batch(model: LlavaForConditionalGeneration) -> None:
    """Has a batch without an image run the tower and the projector on a blank one, of which nothing is used.

    Where parameters are sharded (ZeRO-3, FSDP) or gradients are exchanged (DDP), every process must run every module:
    one whose batch is text alone would otherwise leave the others waiting, in an evaluation too. The loss does not
    change, and the blank's gradient is exactly zero, because none of its features is taken.
    """
    llava: Any = model.model
    tower: Any = model.config.vision_config
    shape: tuple[int, ...] = (tower.num_channels, tower.image_size, tower.image_size)
    if isinstance(llava.vision_tower, StoredTower):
        shape = (tower.num_image_tokens, tower.hidden_size)
    has_images = [False]

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        has_images[0] = kwargs.get("pixel_values") is not None

    # Here and not before the whole model, so that the modules run in one order with and without images: ZeRO-3
    # fetches ahead along the order that it saw last.
    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if has_images[0] or not (module.training or distributed.is_initialized()):
            return args, kwargs
        embeddings: Tensor = kwargs["inputs_embeds"]
        blank = embeddings.new_zeros(1, *shape)
        features = llava.get_image_features(blank, return_dict=True).pooler_output[0]
        nothing = features[:0].to(embeddings.dtype)
        return args, {**kwargs, "inputs_embeds": torch.cat([embeddings.flatten(0, 1), nothing]).view_as(embeddings)}

    llava.register_forward_pre_hook(look, with_kwargs=True)
    llava.language_model.register_forward_pre_hook(run, with_kwargs=True)

"""The model under the adapter that a run trains: a folder that stock transformers loads, made once."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from llava_s2.formats.base_record import BaseRecord, checksum, matches
from llava_s2.formats.convert import convert
from llava_s2.formats.create import create_native, create_widened
from llava_s2.formats.identify import identify
from llava_s2.formats.lazy_tensors import lazy_tensors
from llava_s2.model.embedded import NAME as EMBEDDED
from llava_s2.model.embedded import shipped_model
from llava_s2.model.templates import TEMPLATES, find_template, with_image_start_end
from llava_s2.train.arguments import RecipeArguments
from llava_s2.train.output_folder import on_first_process

FOLDER = "base"


def prepare_base(
    recipe: RecipeArguments,
    training: TrainingArguments,
    *,
    from_parts: bool,
    widens: bool,
    dtype: str,
    checkpoint: Path | None,
) -> str:
    """Finds or makes the base of an adapter, on the first process for all.

    A full model in transformers' format is its own base. Anything else becomes one in ``output_dir/base``, once: a
    language model and a tower, a LLaVA to be widened or with another tower, an adapter, the original LLaVA's format.

    Args:
        from_parts: whether the run starts from a language model and a tower. widens: whether from fewer scales.
        dtype: of the weights of an adapter that is merged, and of a model that is widened.
        checkpoint: that the run goes on from, over the base that an earlier start made.

    Returns:
        The folder's full path, or the hub id.

    Raises:
        InputError: the parts cannot be read, or the disk is full.
    """
    name = recipe.model_name_or_path
    kind = "" if from_parts else identify(name).kind
    if kind == "hf" and not (widens or recipe.replace_vision_tower):
        return str(Path(name).resolve()) if Path(name).exists() else name
    folder = (Path(str(training.output_dir)) / FOLDER).resolve()

    def make() -> str:
        if folder.exists():
            if checkpoint is not None and _is_base_of(checkpoint, folder):
                return str(folder)
            shutil.rmtree(folder)
        print(f"Making the model under the adapter, once: {folder}", flush=True)
        if from_parts:
            assert recipe.vision_tower is not None
            create_native(
                folder,
                name,
                recipe.vision_tower,
                recipe.scales,
                feature_layer=recipe.mm_vision_select_layer,
                template=template_of_parts(recipe),
                image_aspect_ratio=recipe.image_aspect_ratio or "pad",
                resize_output_to_idx=recipe.output_scale,
                projector_type=recipe.mm_projector_type or "mlp2x_gelu",
                gguf_file=recipe.gguf_file,
            )
            return str(folder)
        given: dict[str, Any] = {
            "base": recipe.base,
            "vision_tower": recipe.vision_tower,
            "replace_vision_tower": recipe.replace_vision_tower,
            "template": saved_template_of(recipe),
        }
        if widens:
            create_widened(folder, name, recipe.scales, dtype=dtype, **given)
        else:
            convert(name, folder, dtype=dtype if kind in ("adapter", "llava_lora") else "auto", **given)
        source = EMBEDDED if Path(name) == shipped_model() else name
        BaseRecord(source, checksum(lazy_tensors(str(folder)))).save(folder)
        return str(folder)

    return on_first_process(training, make)


def _is_base_of(checkpoint: Path, folder: Path) -> bool:
    record = BaseRecord.load(str(checkpoint))
    return identify(folder).kind == "hf" and (
        record is None or matches(record.checksum, checksum(lazy_tensors(str(folder))))
    )


def record_of(base: str) -> BaseRecord:
    """What an adapter over this base records of it."""
    return BaseRecord.load(base) or BaseRecord(base, checksum(lazy_tensors(base)))


def saved_template_of(recipe: RecipeArguments) -> str | None:
    """The template to be saved: never ``plain``, which drops the user's words."""
    return None if recipe.template in ("plain", TEMPLATES["plain"]) else recipe.template


def template_of_parts(recipe: RecipeArguments) -> str:
    """The template to be saved of a language model and a tower."""
    template = saved_template_of(recipe) or "vicuna_v1"
    return with_image_start_end(find_template(template)) if recipe.mm_use_im_start_end else template

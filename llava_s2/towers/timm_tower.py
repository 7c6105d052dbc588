"""Models of open_clip and timm as transformers models that save and load: their modules stay what they are."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llava_s2.s2.open_clip_vision import OpenClipVisionConfig, OpenClipVisionModel

if TYPE_CHECKING:  # it imports timm, which takes a second
    from transformers import TimmWrapperModel


def as_pretrained(model: nn.Module) -> PreTrainedModel | None:
    """A transformers model around a timm model or around the image tower of an open_clip model; it shares the weights.

    Returns:
        None for a model of neither library.

    Raises:
        ValueError: a model that its library would not build again from its own configuration.
    """
    if isinstance(model, PreTrainedModel):
        return None
    visual: Any = getattr(model, "visual", model)
    if hasattr(visual, "trunk"):  # open_clip's image towers that are timm's, at a size of open_clip's
        wrapped = of_timm(visual.trunk)
        wrapped.config.image_size = visual.image_size[0]
        return wrapped
    if type(visual).__module__.startswith("open_clip."):
        return _of_open_clip(visual)
    if hasattr(visual, "pretrained_cfg") and hasattr(visual, "forward_features"):
        return of_timm(visual)
    return None


def of_timm(model: Any, model_args: dict[str, Any] | None = None) -> "TimmWrapperModel":
    """A timm model in transformers' wrapper.

    Args:
        model: as ``timm.create_model`` gave it.
        model_args: what it was given besides the name. Default: an image size is found out, other arguments are not.

    Raises:
        ValueError: ``create_model`` with that name and those arguments builds a model with other weights or features.
    """
    from transformers import TimmWrapperConfig, TimmWrapperModel

    named = model.pretrained_cfg
    architecture = ".".join(filter(None, [named["architecture"], named.get("tag")]))
    own = model.state_dict()
    for arguments in _possible_arguments(model) if model_args is None else [model_args]:
        try:
            wrapped = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=arguments or None))
        except (TypeError, RuntimeError):
            continue
        inner: Any = wrapped.timm_model
        wanted = inner.state_dict()
        if all(name in own and own[name].shape == tensor.shape for name, tensor in wanted.items()):
            inner.load_state_dict({name: own[name] for name in wanted}, assign=True)
            for name, parameter in model.named_parameters():
                if name in wanted:
                    inner.get_parameter(name).requires_grad_(parameter.requires_grad)
            wrapped = wrapped.train(model.training)
            if _same_features(inner, model):
                return wrapped
    raise ValueError(
        f"timm would not build this {architecture} again, so a saved tower would not load: it was made with arguments "
        "besides its name. Wrap TimmWrapperModel(TimmWrapperConfig(architecture=…, model_args={…})) of transformers"
    )


def _possible_arguments(model: Any) -> list[dict[str, Any]]:
    """Arguments of ``timm.create_model`` that a model may have been made with, as far as it shows them."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    sizes: list[dict[str, Any]] = [{}] + ([{"img_size": size[0]}] if size and size[0] == size[1] else [])
    if getattr(model, "dynamic_img_size", False):
        sizes = [arguments | {"dynamic_img_size": True} for arguments in sizes]
    return sizes


@torch.no_grad()
def _same_features(rebuilt: Any, model: Any) -> bool:
    """Whether two models with the same weights compute the same of one image; models without weights do."""
    parameter = next(model.parameters())
    if parameter.is_meta:
        return True
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    noise = torch.rand(1, model.pretrained_cfg["input_size"][0], *size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(parameter)
    modes = rebuilt.training, model.training
    rebuilt.eval(), model.eval()
    try:
        return torch.allclose(rebuilt.forward_features(noise), model.forward_features(noise), rtol=1e-3, atol=1e-4)
    finally:
        rebuilt.train(modes[0]), model.train(modes[1])


def _of_open_clip(visual: Any) -> OpenClipVisionModel:
    config = OpenClipVisionConfig.of(visual)
    with torch.device("meta"):
        wrapped = OpenClipVisionModel(config)
    wrapped.visual = visual
    visual.ln_post, visual.proj, visual.attn_pool = nn.Identity(), None, None
    visual.patch_dropout = nn.Identity()  # a frozen tower drops nothing
    config.dtype = wrapped.dtype
    return wrapped.train(visual.training)

"""open_clip's vision transformer as a transformers model, so that it is saved, loaded and cut as the others are."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

_INSTALL = "a tower of open_clip needs open_clip: pip install open_clip_torch"


class OpenClipVisionConfig(PreTrainedConfig):
    """What builds an `open_clip.transformer.VisionTransformer`, without its pooling and projection.

    Args:
        hidden_act: "gelu", "gelu_tanh" or "quick_gelu" (OpenAI's weights and others trained with it).
        ls_init_value: layer scale's initial value; None is no layer scale.
        pre_norm: whether a norm stands before the blocks.
    """

    model_type = "open_clip_vision"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    ls_init_value: float | None = None
    pre_norm: bool = True
    initializer_range: float = 0.02

    @classmethod
    def of(cls, visual: Any) -> "OpenClipVisionConfig":
        """The config of an `open_clip` vision transformer that there is.

        Raises:
            ValueError: another kind of model, or blocks with options that are not the released models'.
        """
        try:
            from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock, VisionTransformer
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        if not isinstance(visual, VisionTransformer) or not all(
            isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks
        ):
            raise ValueError(
                f"open_clip's {type(visual).__name__} is not supported: use a vision transformer with its default "
                "blocks, or a model whose image tower is timm's"
            )
        block: Any = visual.transformer.resblocks[0]
        act = block.mlp.gelu
        if isinstance(act, QuickGELU):
            hidden_act = "quick_gelu"
        else:
            hidden_act = "gelu_tanh" if act.approximate == "tanh" else "gelu"
        size, patch = visual.image_size, visual.patch_size
        if size[0] != size[1] or patch[0] != patch[1]:
            raise ValueError(
                f"open_clip's tower takes {size[0]} x {size[1]} pixels: S2 needs square images and patches"
            )
        width = visual.conv1.out_channels
        return cls(
            hidden_size=width,
            num_hidden_layers=len(visual.transformer.resblocks),
            num_attention_heads=block.attn.num_heads,
            mlp_ratio=block.mlp.c_fc.out_features / width,
            image_size=size[0],
            patch_size=patch[0],
            hidden_act=hidden_act,
            layer_norm_eps=block.ln_1.eps,
            ls_init_value=1e-5 if isinstance(block.ls_1, LayerScale) else None,
            pre_norm=not isinstance(visual.ln_pre, nn.Identity),
        )


class OpenClipVisionModel(PreTrainedModel):
    """Tokens (n, 1 + grid, D) of the last block of an open_clip vision transformer; its CLS token comes first."""

    config_class = OpenClipVisionConfig
    config: OpenClipVisionConfig
    base_model_prefix = "open_clip"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["ResidualAttentionBlock"]  # noqa: RUF012 - overrides a class attribute of the base
    _supports_sdpa = True  # nn.MultiheadAttention chooses its kernel itself

    def __init__(self, config: OpenClipVisionConfig) -> None:
        super().__init__(config)
        try:
            from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        acts = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU}
        self.visual: Any = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            ls_init_value=config.ls_init_value,
            no_ln_pre=not config.pre_norm,
            output_dim=1,
            act_layer=acts[config.hidden_act],
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )
        self.visual.ln_post, self.visual.proj = nn.Identity(), None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.visual.conv1

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any) -> BaseModelOutput:
        """Features of images (n, 3, S, S), S = `config.image_size`, before any final norm.

        `hidden_states`, if asked for, has None for the embeddings, which open_clip does not hand out.
        """
        last = len(self.visual.transformer.resblocks) - 1
        out = self.visual.forward_intermediates(
            pixel_values,
            indices=None if output_hidden_states else [last],
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
        states: list[Any] = [torch.cat(pair, dim=1) for pair in pairs]
        hidden_states: Any = (None, *states) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=hidden_states)

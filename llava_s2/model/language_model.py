"""A causal language model as a LLaVA takes it: the base model's tensors, and a head that is one matrix product.

The stock ``LlavaForConditionalGeneration`` computes logits as ``lm_head(hidden)``. Some language models do more behind
their head: Granite divides the logits, Cohere multiplies them, Gemma 2 caps them, Phi adds a bias. A factor is folded
into the head's weights; anything else is refused, because the model would answer and learn with other logits.
"""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from llava_s2.errors import InputError
from llava_s2.weight_files import first_line, list_names

_FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier")  # a config's names for a factor behind the head
_PROBE_TOKENS, _PROBE_VOCABULARY = 8, 256
_LARGEST_PROBE = 4 * 10**9  # parameters


def read_language_config(llm: str | Path, gguf_file: str | None = None) -> PreTrainedConfig:
    """The config of a language model, a folder or hub id.

    Raises:
        InputError: there is none, it contradicts itself, or it is of a model of more than text.
    """
    try:
        # No questions asked: code that comes with a model is not run.
        config = AutoConfig.from_pretrained(llm, gguf_file=gguf_file, trust_remote_code=False)
    except Exception as error:  # transformers' checks of a config have errors of their own
        raise InputError(f"{llm}: no language model ({' '.join(str(error).split())[:300]})") from error
    if config.get_text_config() is not config or not getattr(config, "vocab_size", None):
        raise InputError(f"{llm}: a {config.model_type} is not a language model alone; take one of text")
    return config


def load_language_model(
    llm: str, *, gguf_file: str | None = None, dtype: torch.dtype
) -> tuple[dict[str, Tensor], PreTrainedConfig]:
    """Loads a causal language model with transformers.

    Args:
        llm: folder or hub id.
        gguf_file: the GGUF file's name in that folder.
        dtype: of all weights.

    Returns:
        The base model's tensors by name, with ``lm_head.weight`` where it is not tied to an embedding that stock
        LLaVA ties, and the config of what they are now.

    Raises:
        InputError: it cannot be loaded, or its logits are not those of one matrix product (see the module).
    """
    config = read_language_config(llm, gguf_file)
    factor = fold_head(config, llm)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            llm, gguf_file=gguf_file, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # transformers', safetensors' and the packages' of quantized weights
        quantized = getattr(config, "quantization_config", None)
        note = "its weights are quantized; name the model that they were made of" if quantized else "cannot be loaded"
        raise InputError(f"{llm}: {note} ({first_line(error)})") from error
    model, report = loaded
    if missing := report["missing_keys"]:
        raise InputError(f"{llm}: the weights lack {list_names(missing)}")
    if getattr(model, "is_quantized", False):
        raise InputError(f"{llm}: its weights are quantized; name the model that they were made of")
    model.eval()
    head = model.get_output_embeddings().weight.detach()
    head = head if factor == 1 else head * factor
    _compare_logits(model, head, llm)
    tensors = {name: tensor.detach() for name, tensor in model.base_model.state_dict().items()}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = head
    return tensors, config


def fold_head(config: PreTrainedConfig, llm: str | Path) -> float:
    """Finds what a language model does behind its head, and makes the config say that it does nothing.

    It is measured, on a model of this config with one or two layers and random weights, so it costs no weights of the
    real one.

    Args:
        config: changed in place: factors become 1, and embeddings that stock LLaVA cannot tie are no longer tied.
        llm: what errors are about.

    Returns:
        The factor by which the head's weights are to be multiplied.

    Raises:
        InputError: the logits are more than a multiple of ``head(hidden)``, or the model cannot be run on embeddings.
    """
    factor = _measure_factor(config, llm)
    if factor != 1:
        for name in _FACTORS:
            if getattr(config, name, None) is not None:
                with suppress(AttributeError):  # one that the config works out of others
                    setattr(config, name, 1.0)
        config.tie_word_embeddings = False  # the head is no longer the embedding
        if _measure_factor(config, llm) != 1:
            raise InputError(
                f"{llm}: its logits are {factor:g} times what its head gives, and its config has no entry for that; "
                "take a language model that does nothing behind its head"
            )
    if embedding_name(config) != "embed_tokens.weight":
        config.tie_word_embeddings = False
    return factor


def embedding_name(config: PreTrainedConfig) -> str:
    """The name of the token embedding's weights in the base model of this config."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except ValueError as error:
        raise InputError(f"a {config.model_type} has no base model of its own ({first_line(error)})") from error
    weight = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def _measure_factor(config: PreTrainedConfig, llm: str | Path) -> float:
    config = _shallow(config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # whatever a model class of transformers raises about a config
        raise InputError(f"{llm}: no causal language model ({first_line(error)})") from error
    if sum(parameter.numel() for parameter in model.parameters()) > _LARGEST_PROBE:
        raise InputError(f"{llm}: a {config.model_type} of this shape cannot be checked in memory")
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{llm}: a {config.model_type} keeps a recurrent state, with which LLaVA cannot generate")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError(
            f"{llm}: the head of a {config.model_type} has a bias, which LLaVA's has not; take another language model"
        )
    if head.in_features != config.hidden_size:
        raise InputError(
            f"{llm}: the embeddings of this {config.model_type} are {head.in_features} wide and its hidden states "
            f"{config.hidden_size}, where LLaVA has one width; take another language model"
        )
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(30)  # so that a cap shows
        own, plain = _logits(model, model.get_output_embeddings().weight)
    except Exception as error:
        raise InputError(
            f"{llm}: a {config.model_type} cannot be run on embeddings, as LLaVA does ({first_line(error)})"
        ) from error
    finally:
        torch.random.set_rng_state(torch_state)
    factor = float((own * plain).sum() / plain.square().sum())
    if not torch.allclose(own, factor * plain, rtol=1e-4, atol=1e-4 * float(own.abs().max())):
        cap = getattr(config, "final_logit_softcapping", None)
        what = f"final_logit_softcapping {cap}" if cap else "its forward changes them"
        raise InputError(
            f"{llm}: the logits of a {config.model_type} are not its head's alone ({what}), and LLaVA would lose that; "
            "take another language model"
        )
    return 1.0 if abs(factor - 1) < 1e-5 else float(f"{factor:.6g}")


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of the same kind and width with two layers and a small vocabulary, where there is one."""
    small = copy.deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    small.vocab_size = min(small.vocab_size, _PROBE_VOCABULARY)
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(small, token, None) is not None:  # some configs take no None
            setattr(small, token, 0)
    try:
        layers = min(small.num_hidden_layers, 2)
        types = getattr(small, "layer_types", None)
        small.num_hidden_layers = layers
        if types is not None:
            small.layer_types = types[:layers]
    except AttributeError:  # layers that follow a plan of the config's own
        small.num_hidden_layers = config.num_hidden_layers
    return small


def _logits(model: PreTrainedModel, head: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own logits of a few tokens, and those that LLaVA computes: both (1, tokens, vocabulary), float32."""
    tokens = torch.arange(1, 1 + _PROBE_TOKENS, device=head.device)[None] * (head.shape[0] // (2 + _PROBE_TOKENS))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        own = model(input_ids=tokens, attention_mask=mask).logits
        embeddings = model.get_input_embeddings()(tokens)
        cache = DynamicCache(config=model.config)  # as generate gives it
        output = model.base_model(inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache)
        if not hasattr(output, "past_key_values"):
            raise ValueError("it keeps no cache of keys and values")
        plain = functional.linear(output[0], head)
    return own.float(), plain.float()


def _compare_logits(model: PreTrainedModel, head: Tensor, llm: str | Path) -> None:
    """Compares the loaded model's own logits with those that a LLaVA around it computes with ``head``.

    Raises:
        InputError: they differ by more than rounding.
    """
    own, plain = _logits(model, head)
    if not own.isfinite().all():
        raise InputError(f"{llm}: its logits are not finite; are the weights damaged?")
    tolerance = 1e-3 if head.dtype == torch.float32 else 3e-2
    if not torch.allclose(own, plain, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise InputError(
            f"{llm}: its own logits differ from those of a LLaVA around it by up to "
            f"{float((own - plain).abs().max()):.3g}; take another language model"
        )

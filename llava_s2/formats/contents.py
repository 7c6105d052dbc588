"""A LLaVA as configs and tensors that are yet to be read: what readers give, and what loads or is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig

from llava_s2.errors import InputError
from llava_s2.formats.lazy_tensors import LazyTensor, lazily
from llava_s2.formats.tensor_names import Components, split, tower_place
from llava_s2.model.language_model import embedding_name
from llava_s2.model.processor import num_image_tokens
from llava_s2.model.templates import end_of_turn
from llava_s2.model.tokenizer import IMAGE_TOKEN
from llava_s2.s2.remote import LlavaConfig
from llava_s2.weight_files import list_names


@dataclass(frozen=True)
class LlavaContents:
    """A LLaVA that is not in memory.

    Attributes:
        config, processor, generation_config: transformers' own.
        tensors: of the three components, each a `LazyTensor`.
    """

    config: Any
    processor: LlavaProcessor
    generation_config: GenerationConfig
    tensors: Components

    @classmethod
    def put_together(
        cls,
        language_model: Mapping[str, LazyTensor],
        text_config: PreTrainedConfig,
        projector: Mapping[str, LazyTensor],
        vision_tower: Mapping[str, LazyTensor],
        vision_config: PreTrainedConfig,
        processor: LlavaProcessor,
        **settings: Any,
    ) -> "LlavaContents":
        """Of components that come from different places.

        Args:
            language_model: of the base model, and ``lm_head.weight``, which is left out where it is tied.
            text_config: the vocabulary grows to the tokenizer's: rows are added to embedding and head, never taken
                away. Each is the mean of all rows, so a new token's logit is the mean of the others, which never is
                the largest, and in a softmax over V tokens it takes less than 1 / V of the probability.
            processor: the model's; its tokenizer has ``<image>``.
            settings: of `LlavaConfig`, where they are not those of an S2 tower with LLaVA-1.5's projector.
        """
        language_model = dict(language_model)
        if text_config.tie_word_embeddings:
            language_model.pop("lm_head.weight", None)
        embedding = embedding_name(text_config)
        rows = language_model[embedding].shape[0]
        text_config.vocab_size = max(rows, len(processor.tokenizer))
        for name in (embedding, "lm_head.weight"):
            if name in language_model and rows < text_config.vocab_size:
                language_model[name] = language_model[name].with_mean_rows(text_config.vocab_size)
        s2_settings: dict[str, Any] = {
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "projector_hidden_act": "gelu",
        }
        config = LlavaConfig(
            vision_config=vision_config,
            text_config=text_config,
            image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=num_image_tokens(processor),
            tie_word_embeddings=text_config.tie_word_embeddings,
            **(s2_settings | settings),
        )
        config.dtype = language_model[embedding].dtype
        tensors = Components(language_model, dict(projector), dict(vision_tower))
        return cls(config, processor, generation_config(processor, text_config), tensors)

    @classmethod
    def in_memory(cls, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> "LlavaContents":
        """Of a loaded model."""
        tensors = split(lazily(model.state_dict()))
        config, generation = model.config, model.generation_config
        if config.text_config.tie_word_embeddings:  # type: ignore[union-attr]
            tensors.language_model.pop("lm_head.weight", None)
        return cls(config, processor, generation, tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return next(iter(self.tensors.language_model.values())).dtype

    def check(self, name: str) -> None:
        """Compares names and shapes with those of the stock model that the config makes.

        Raises:
            InputError: they differ; ``name`` is the checkpoint that it names.
        """
        with torch.device("meta"):
            stock = LlavaForConditionalGeneration(self.config)
        wanted = split(stock.state_dict())
        if self.config.text_config.tie_word_embeddings:
            for tensors in (wanted.language_model, self.tensors.language_model):
                tensors.pop("lm_head.weight", None)
        for component, want in vars(wanted).items():
            found: dict[str, LazyTensor] = getattr(self.tensors, component)
            if component == "vision_tower":  # which files may nest otherwise, and whose later blocks may be there
                found = {tower_place(key, want) or key: tensor for key, tensor in found.items()}
                found = {key: tensor for key, tensor in found.items() if key in want}
            if missing := want.keys() - found.keys():
                raise InputError(f"{name}: the weights lack {list_names(missing)}")
            if more := found.keys() - want.keys():
                raise InputError(f"{name}: the weights hold what the config does not describe: {list_names(more)}")
            for key, tensor in found.items():
                if tensor.shape != tuple(want[key].shape):
                    raise InputError(
                        f"{name}: {key} has the shape {tensor.shape} in the weights, but the config says "
                        f"{tuple(want[key].shape)}"
                    )

    def build(self, source: str, dtype: torch.dtype | None = None, **load_options: Any) -> Any:
        """The stock ``LlavaForConditionalGeneration``, in eval mode, by transformers' own loader.

        Args:
            source: the checkpoint that errors are about. dtype: of all weights; default: the language model's.
            load_options: for ``from_pretrained``: ``device_map``, ``quantization_config``.

        Raises:
            InputError: see `check`.
        """
        self.check(source)
        model = LlavaForConditionalGeneration.from_pretrained(
            None,
            config=self.config,
            state_dict={name: tensor.read() for name, tensor in self.tensors.named("transformers").items()},
            dtype=dtype or self.dtype,
            **load_options,
        )
        model.generation_config = self.generation_config
        return model.eval()


def generation_config(processor: LlavaProcessor, text_config: PreTrainedConfig) -> GenerationConfig:
    """Greedy generation that ends at the end of a turn and never writes an image placeholder."""
    tokenizer = processor.tokenizer
    known = text_config.eos_token_id
    ends = [tokenizer.convert_tokens_to_ids(end_of_turn(str(processor.chat_template), tokenizer.eos_token))]
    for token in (known if isinstance(known, list) else [known], [tokenizer.eos_token_id]):
        ends += [i for i in token if i is not None and i not in ends]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)],
    )

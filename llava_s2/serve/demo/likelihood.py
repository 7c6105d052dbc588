"""How likely a model finds each of several given answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.model.inference import assistant_message, context_length, prepare_image, user_message
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.model.option_ranking import rank_options
from llava_s2.serve.chat import escape_special_tokens
from llava_s2.serve.demo.session import Model

MOST_OPTIONS = 16


def parse_options(text: str) -> list[str]:
    """One option a line. Raises InputError unless they are two to ``MOST_OPTIONS`` different ones."""
    options = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise InputError(f"type two to {MOST_OPTIONS} different options, one a line; there are {len(options)}")
    return options


@dataclass(frozen=True)
class Weight:
    """What a model makes of one option as its answer.

    Attributes:
        probability: of this whole answer, given that it is one of the options.
        loss: mean over the answer's tokens, in nats; the smallest is V*'s choice.
    """

    option: str
    probability: float
    loss: float


def weigh(model: Model, images: Sequence[Image.Image], question: str, options: Sequence[str]) -> list[Weight]:
    """Weighs options as answers, the most probable first.

    Raises:
        InputError: no question, or the prompt with an option is longer than the model takes.
    """
    if not question.strip():
        raise InputError("type a question first")
    processor = model.processor
    asked = user_message(escape_special_tokens(question, processor), len(images))
    safe = [escape_special_tokens(option, processor) for option in options]
    encoded = [
        encode_messages([asked, assistant_message(option)], processor, str(processor.chat_template)) for option in safe
    ]
    longest = max(len(row["input_ids"]) for row in encoded)
    limit = context_length(model.model)
    if longest > limit:
        raise InputError(f"question and option have {longest} tokens and the model takes {limit}; shorten them")
    prepared = tuple(prepare_image(processor, image) for image in images)
    (ranking,) = rank_options(model.model, processor, prepared, [(escape_special_tokens(question, processor), safe)])
    totals = [
        loss * sum(label != IGNORE_INDEX for label in row["labels"])
        for loss, row in zip(ranking.losses, encoded, strict=True)
    ]
    shares = [math.exp(min(totals) - total) for total in totals]
    weights = [
        Weight(option, share / sum(shares), loss)
        for option, share, loss in zip(options, shares, ranking.losses, strict=True)
    ]
    return sorted(weights, key=lambda weight: -weight.probability)

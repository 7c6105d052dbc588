"""How likely a model finds each of several given answers."""

import math
from collections.abc import Sequence

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.model.inference import assistant_message, encode_prompts, user_message
from llava_s2.serve.chat import neutralize
from llava_s2.serve.demo.session import Model

MOST_OPTIONS = 16


def parse_options(text: str) -> list[str]:
    """One option a line. Raises InputError unless they are two to ``MOST_OPTIONS`` different ones."""
    options = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise InputError(f"type two to {MOST_OPTIONS} different options, one a line; there are {len(options)}")
    return options


def option_shares(
    model: Model, images: Sequence[Image.Image], question: str, options: Sequence[str]
) -> tuple[list[float], list[float]]:
    """The mean loss of each option as the answer (V*'s way of choosing), in nats a token, and its probability.

    The probabilities are a softmax of the negative losses, so that they add up to one over the options given.

    Raises:
        InputError: no question, or the prompt with an option is longer than the model takes.
    """
    # Evaluation owns the way of choosing that the published V* numbers were made with, and this page shows just that.
    from llava_s2.eval.likelihood import option_losses

    if not question.strip():
        raise InputError("type a question first")
    processor = model.processor
    question = neutralize(question, processor)
    safe = [neutralize(option, processor) for option in options]
    limit = model.model.config.get_text_config().max_position_embeddings
    longest = max(safe, key=len)
    turns = [user_message(question, len(images)), assistant_message(longest)]
    length = encode_prompts(processor, [turns], images)["input_ids"].shape[1]
    if length > limit:
        raise InputError(f"question and option have {length} tokens and the model takes {limit}; shorten them")
    losses = option_losses(model.model, processor, images, question, safe)
    weights = [math.exp(min(losses) - loss) for loss in losses]
    return losses, [weight / sum(weights) for weight in weights]

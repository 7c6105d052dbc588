"""Log-probabilities in the API's shape."""

import re
from collections.abc import Sequence
from functools import lru_cache

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llava_s2.serve.api.sampling import SampledToken

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """What single tokens say."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # A token's leading space only shows behind another token.
        before = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = len(tokenizer.decode(before))
        bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}

        @lru_cache(4096)
        def text(token: int) -> tuple[str, list[int]]:
            text = str(tokenizer.decode([*before, token], clean_up_tokenization_spaces=False))[start:]
            if "\N{REPLACEMENT CHARACTER}" not in text:
                return text, list(text.encode())
            # A part of a character: a byte of Llama's, or of a byte-level vocabulary.
            name = str(tokenizer.convert_ids_to_tokens(token))
            if byte := _BYTE.fullmatch(name):
                return text, [int(byte[1], 16)]
            known = all(letter in bytes_of for letter in name)
            return text, [bytes_of[letter] for letter in name] if known else list(text.encode())

        self._text = text

    def logprobs(self, tokens: Sequence[SampledToken]) -> list[ChatCompletionTokenLogprob]:
        """Of an answer's tokens, or of some of them; bytes are those of half a character, too."""
        return [
            ChatCompletionTokenLogprob(
                **self._entry(one.token, one.logprob or 0.0),
                top_logprobs=[TopLogprob(**self._entry(*other)) for other in one.top],
            )
            for one in tokens
        ]

    def _entry(self, token: int, logprob: float) -> dict:
        text, data = self._text(token)
        # Minus infinity, of a token that must not come, is no JSON.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": data}

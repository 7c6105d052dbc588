"""Log-probabilities in the API's shape."""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerFast

from llava_s2.serve.api import schema
from llava_s2.serve.api.sampling import SampledToken

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """What single tokens say."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # A token's leading space only shows behind another token.
        before = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = len(tokenizer.decode(before))
        bytes_of = _byte_alphabet()

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

    def logprobs(self, tokens: Sequence[SampledToken]) -> schema.Logprobs:
        """Of an answer's tokens, or of some of them; bytes are those of half a character, too."""
        return schema.Logprobs(
            content=[
                schema.TokenLogprob(
                    **self._entry(one.token, one.logprob or 0.0),
                    top_logprobs=[schema.TopLogprob(**self._entry(*other)) for other in one.top],
                )
                for one in tokens
            ],
            refusal=None,
        )

    def _entry(self, token: int, logprob: float) -> dict:
        text, data = self._text(token)
        # Minus infinity, of a token that must not come, is no JSON.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": data}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: those that can be seen stand for themselves, the others follow from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in seen)
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(others)}

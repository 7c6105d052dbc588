"""Log-probabilities in the API's shape."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerFast

from llava_s2.serve.api.sampling import Drawn


class TokenTexts:
    """What single tokens say."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # A token's leading space only shows behind another token.
        before = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = len(tokenizer.decode(before))

        @lru_cache(4096)
        def text(token: int) -> str:
            return str(tokenizer.decode([*before, token], clean_up_tokenization_spaces=False))[start:]

        self._text = text

    def logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """``{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}``; bytes are None of half a character."""
        content = [
            {
                **self._entry(one.token, one.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in one.top],
            }
            for one in drawn
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {
            "token": text,
            # Minus infinity, of a token that must not come, is no JSON.
            "logprob": max(logprob, -9999.0) if logprob is not None else None,
            "bytes": list(text.encode()) if whole else None,
        }

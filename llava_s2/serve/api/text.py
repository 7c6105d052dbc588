"""From tokens to the text that may be sent: whole characters, no outer white space, nothing from a stop string on."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

_CONTEXT = 8  # tokens before a continued text: how its first one reads depends on them


class AnswerText:
    """One answer's text, piece by piece; the pieces add up to ``tokenizer.decode(ids).strip()``, cut at a stop string.

    Args:
        tokenizer: of the model.
        stop: strings at which the answer ends; they are not part of it.
        continues: the tokens that the answer goes on from in the middle of a turn; its leading space then counts.

    Attributes:
        stopped: whether a stop string came.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = (), continues: Sequence[int] = ()
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._stop = stop
        self._before = list(continues[-_CONTEXT:])
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0  # characters
        self._kept_back = ""
        self._begun = bool(continues)
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that can be sent now that this token is known; empty while it may still change."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._decoded += len(text)
        return self._release(text) if text else ""

    def finish(self) -> str:
        """What was kept back, when no token follows."""
        if self.stopped:
            return ""
        before, whole = (self._decode(ids) for ids in (self._before, [*self._before, *self._ids]))
        rest = self._release(whole[len(before) + self._decoded :])
        return rest if self.stopped else rest + self._kept_back.rstrip()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str) -> str:
        text = self._kept_back + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)].rstrip()
        begun_stop = max((_overlap(text, stop) for stop in self._stop), default=0)
        sent = text[: len(text) - begun_stop].rstrip()
        self._kept_back = text[len(sent) :]
        return sent


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

"""From tokens to the text that may be sent: whole characters, no outer white space, nothing from a stop string on."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

_UNFINISHED = "\ufffd"  # how bytes that are no character yet are read
_CONTEXT = 8  # tokens before a continued text: how its first one reads depends on them


class AnswerText:
    """One answer's text, piece by piece; the pieces add up to ``tokenizer.decode(ids).strip()``, cut at a stop string.

    Any tokens are taken, such as sampling at a high temperature gives; where they are no characters, there is a mark.

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
        self._decoder: Any = tokenizer.backend_tokenizer
        self._stop = stop
        # The tokens since the last end but one of whole characters, and how many of them are in ``_known``.
        self._ids = list(continues[-_CONTEXT:])
        self._whole = len(self._ids)
        self._known = self._decode()
        self._kept_back = ""
        self._begun = bool(continues)
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that can be sent now that this token is known; empty while it may still change."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_UNFINISHED):
            return ""
        # What was sent stays, also where a byte that belongs to no character has those before it read otherwise.
        new = text[len(self._known) :]
        if not new:  # a window without text would have the space after it left out
            return ""
        self._ids, self._whole = self._ids[self._whole :], len(self._ids) - self._whole
        self._known = self._decode()
        return self._release(new)

    def finish(self) -> str:
        """What was kept back, when no token follows."""
        if self.stopped:
            return ""
        rest = self._release(self._decode()[len(self._known) :])
        return rest if self.stopped else rest + self._kept_back.rstrip()

    def _decode(self) -> str:
        return str(self._decoder.decode(self._ids, skip_special_tokens=True))

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

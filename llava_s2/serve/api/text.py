"""From tokens to the text that may be sent: whole characters, no outer white space, nothing from a stop string on."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast


class AnswerText:
    """One answer's text, piece by piece; the pieces add up to ``tokenizer.decode(ids).strip()``, cut at a stop string.

    Args:
        tokenizer: of the model.
        stop: strings at which the answer ends; they are not part of it.

    Attributes:
        stopped: whether a stop string came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        # Token texts depend on their neighbours: a few tokens that are out already are decoded again with the new ones.
        self._context_from, self._out_to = 0, 0
        self._kept_back = ""
        self._begun = False
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that can be sent now that this token is known; empty while it may still change."""
        self._ids.append(token)
        before = self._decode(self._ids[self._context_from : self._out_to])
        text = self._decode(self._ids[self._context_from :])
        if len(text) <= len(before) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._context_from, self._out_to = self._out_to, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was kept back, when no token follows."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context_from : self._out_to])
        rest = self._release(self._decode(self._ids[self._context_from :])[len(before) :])
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

"""What OpenAI-compatible servers differ in: parameters that they refuse, and where a reply holds its answer."""

import re
from collections.abc import Mapping
from typing import Any

OUT_OF_TOKENS = "output limit was reached"
"""Of OpenAI's error where the reasoning has left no token for the reply."""

_ROOM = 8192  # tokens for the reasoning of a judge, whose verdict is a few tokens long
_TAG = r"think|thinking|thought|reasoning|analysis"
_OPENS = re.compile(rf"\s*(?:<(?:{_TAG})>|◁think▷)", re.IGNORECASE)
_CLOSES = re.compile(rf"</(?:{_TAG})>|◁/think▷", re.IGNORECASE)


class Dialect:
    """Writes requests as one server takes them, by what it has refused so far; safe for several threads.

    Attributes:
        own_temperature: it refuses every temperature, so that its own applies.
    """

    def __init__(self) -> None:
        self.own_temperature = False
        self._renamed = False
        self._room = 0

    def spell(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request with ``max_tokens`` and ``temperature`` as the server takes them."""
        sent = dict(request)
        if self.own_temperature:
            sent.pop("temperature", None)
        if self._room:
            sent["max_tokens"] += self._room
        if self._renamed:
            sent["max_completion_tokens"] = sent.pop("max_tokens")
        return sent

    def learn(self, sent: Mapping[str, Any], refusal: str) -> bool:
        """Whether the refused request is to be sent again, since it would now be spelled otherwise."""
        # Several requests are refused at once: what counts is what this one held, not what is known by now.
        if "max_tokens" in sent and "max_completion_tokens" in refusal:
            self._renamed = True
        elif "temperature" in sent and "temperature" in refusal:
            self.own_temperature = True
        else:
            return False
        return True

    def give_room(self, sent: Mapping[str, Any]) -> bool:
        """Whether a request whose reply was spent on reasoning is to be sent again, with more tokens for it."""
        bound = sent.get("max_tokens", sent.get("max_completion_tokens", 0))
        self._room = _ROOM
        return bound < _ROOM


def broken_off(choice: Mapping[str, Any]) -> str:
    """Why the server broke a reply off, as OpenRouter (``error``) and vLLM (``abort``) tell it; empty if it did not."""
    finish = choice.get("finish_reason")
    return str(choice.get("error") or "") or (f"finish_reason {finish}" if finish in ("error", "abort") else "")


def reply_text(message: Mapping[str, Any]) -> str:
    """The words of a reply: a text, the texts of its parts, or a refusal in place of them."""
    words = message.get("content")
    if isinstance(words, list):
        words = "".join(part["text"] for part in words if isinstance(part, dict) and isinstance(part.get("text"), str))
    return str(words or message.get("refusal") or "")


def without_reasoning(text: str) -> str:
    """What follows the reasoning that a reply begins with, in ``<think>`` or the like; empty where that does not end.

    The opening mark may be missing, as some templates put it into the prompt.
    """
    if closing := [*_CLOSES.finditer(text)]:
        return text[closing[-1].end() :].strip()
    return "" if _OPENS.match(text) else text

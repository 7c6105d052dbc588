"""How VLMEvalKit reads the option that an answer names, by its exact matching (no judge), in two versions."""

import re
from collections.abc import Sequence

from llava_s2.eval.letters import RULE, read_option
from llava_s2.eval.schema import LETTERS

RULES = {
    "vlmevalkit": "VLMEvalKit's exact matching, before 2026-06-17",
    "vlmevalkit-2026-06": "VLMEvalKit's exact matching, since 2026-06-17",
    "llava-s2": RULE,
}
"""Ways to read the option that an answer names; those of the tasks that VLMEvalKit hosts, its own first."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = {ord(mark): " " for mark in ".()[],:;!*#{}"}
_STATED = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")


def read_by_rule(text: str, options: Sequence[str], rule: str) -> str | None:
    """The letter that an answer names by one of ``RULES``, or None."""
    if rule == "llava-s2":
        option = read_option(text, options)
        return None if option is None else LETTERS[list(options).index(option)]
    return match_letter(text, options, verbose=rule == "vlmevalkit-2026-06")


def match_letter(text: str, options: Sequence[str], *, verbose: bool = False) -> str | None:
    """The letter by exact matching, or None.

    It is the only letter among the words, and one of the last four of them; else, if ``verbose`` (the rule since
    2026-06-17), the first of A to D after "answer is"; else the only option whose text occurs, in an answer at most
    twice as long as the options together.
    """
    if "Failed to obtain answer via API" in text or any(refusal in text for refusal in _REFUSALS):
        return None
    words = text.translate(_MARKS).split()
    named = [letter for letter in LETTERS[: len(options)] if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return None
    if verbose and (stated := _STATED.search(text)) and stated[1].upper() in LETTERS[: len(options)]:
        return stated[1].upper()
    if len(text) > 2 * sum(map(len, options)):
        return None
    held = [letter for letter, o in zip(LETTERS, options, strict=False) if o.lower() in text.lower()]
    return held[0] if len(held) == 1 else None

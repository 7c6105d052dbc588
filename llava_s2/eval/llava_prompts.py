"""LLaVA-1.5's requests, word for word; tests hold them against its own question files."""

from collections.abc import Sequence

from llava_s2.eval.schema import LETTERS

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_SENTENCE = "Answer with the option's letter from the given choices directly."
CHINESE_LETTER_SENTENCE = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""VizWiz's permission to give up."""

NEW_TOKENS = 128
"""LLaVA-1.5's bound on an answer to the questions of ``model_vqa_loader.py``."""
MANY_NEW_TOKENS = 1024
"""Its bound in the other programs: ScienceQA, MMBench, MM-Vet and LLaVA-Bench."""


def lettered(question: str, options: Sequence[str], request: str = LETTER_SENTENCE) -> str:
    """The question, its options as lines ``A. …``, and the request for a letter."""
    return "\n".join(
        (question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)), request)
    )

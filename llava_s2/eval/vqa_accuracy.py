"""VQA accuracy: agreement of an answer with ten people's (Antol et al. 2015), after normalising the texts.

The rules are those of the official evaluation code of VQA (GT-Vision-Lab/VQA), of VizWiz (its API) and of M4C (in
facebookresearch/mmf, which LLaVA scores TextVQA with and prepares its other submissions with), slips included: a
published number depends on them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
# The first 32 only: the official code passes the flag re.UNICODE, which is 32, where the count belongs.
_PERIODS = 32

_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


# Each form with one of its apostrophes left out -> the form. "somebody'd" loses its apostrophe in the official tables.
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _FORMS.split()
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}

# VizWiz's table has typographic apostrophes, but for these keys and values.
_STRAIGHT_KEYS = frozenset(("couldn'tve", "hadn'tve"))
_STRAIGHT_FORMS = frozenset(("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've"))


def _typographic(text: str) -> str:
    return text.replace("'", "\u2019")


_VIZWIZ_CONTRACTIONS = {
    key if key in _STRAIGHT_KEYS else _typographic(key): form if form in _STRAIGHT_FORMS else _typographic(form)
    for key, form in _CONTRACTIONS.items()
}


def normalize(text: str, contractions: Mapping[str, str] = _CONTRACTIONS) -> str:
    """An answer as the VQA code compares it.

    Punctuation becomes a space; but where a mark stands beside a space, or the text has a comma between two digits,
    that mark, or all of it, is left out. Periods go unless a digit follows. Then, word by word in lower case: number
    words up to ten become digits, articles go, contractions get back their apostrophe.
    """
    bare = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _PUNCTUATION:
        kept = kept.replace(mark, "" if bare or mark + " " in text or " " + mark in text else " ")
    kept = re.sub(r"\.(?!\d)", "", kept, count=_PERIODS)
    words = (_DIGITS.get(word, word) for word in kept.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)


def normalize_m4c(text: str) -> str:
    """An answer as M4C's "EvalAI processor" compares it: no commas and question marks, a possessive stands alone."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize(_one_line(text))


def vqa_accuracy(answer: str, annotations: Sequence[Mapping[str, Any]]) -> float:
    """The VQA code's accuracy of one answer.

    The mean, over the annotations, of min(1, matches among the others / 3). Texts are normalised only where people
    disagree; where all wrote the same, the answer must be that letter for letter.

    Args:
        answer: any text.
        annotations: one a person, each with its text in ``answer``. Equal ones count as the same person's: the official
            files tell them apart by ``answer_id``.
    """
    answer = _one_line(answer)
    people = [{**person, "answer": _one_line(person["answer"])} for person in annotations]
    if len({person["answer"] for person in people}) > 1:
        answer = normalize(answer)
        people = [{**person, "answer": normalize(person["answer"])} for person in people]
    matching = [person for person in people if person["answer"] == answer]
    return _mean_agreement([sum(other != person for other in matching) for person in people])


def vizwiz_accuracy(answer: str, annotations: Sequence[str]) -> float:
    """The VizWiz code's accuracy of one answer: as VQA's, but the answer is always normalised and no annotation is."""
    return _leave_one_out(normalize(_one_line(answer), _VIZWIZ_CONTRACTIONS), annotations)


def m4c_accuracy(answer: str, annotations: Sequence[str]) -> float:
    """M4C's accuracy of one answer: as VQA's, but all texts go through ``normalize_m4c``."""
    return _leave_one_out(normalize_m4c(answer), [normalize_m4c(text) for text in annotations])


def _leave_one_out(answer: str, annotations: Sequence[str]) -> float:
    matches = [text == answer for text in annotations]
    return _mean_agreement([sum(matches) - match for match in matches])


def _mean_agreement(others: Sequence[int]) -> float:
    """Mean of min(1, n / 3), added up in order as the official code does."""
    return float(sum(min(1, count / 3) for count in others)) / len(others)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()

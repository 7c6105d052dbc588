"""The rule that reads which option an answer names, on several hundred forms that models write."""

import json
from pathlib import Path

import pytest

from llava_s2.eval.letters import read_option
from llava_s2.eval.vlmevalkit import match_letter

FORMS = json.loads(Path(__file__).with_name("letter_forms.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("group", FORMS, ids=lambda group: " ".join(group["options"])[:40])
def test_every_form_names_its_option(group):
    options = group["options"]
    wrong = []
    for letter, forms in group["forms"].items():
        expected = None if letter == "none" else options["ABCDEFGHIJ".index(letter)]
        wrong += [
            (form, read_option(form, options), expected) for form in forms if read_option(form, options) != expected
        ]
    assert not wrong


def test_an_option_word_for_word_goes_before_a_letter():
    assert read_option("The glove is rubber.", ["rubber", "cotton"], ["The glove is rubber."]) == "The glove is rubber."
    assert read_option("A", ["B", "A"]) == "B"  # a letter that was asked for, and not the text of the second option


@pytest.mark.parametrize(
    ("text", "before", "since"),
    [
        (
            "The correct answer is **B**, since A is smaller, and C can be seen to be wrong",
            None,
            "B",
        ),
        ("B", "B", "B"),
        ("I am sure that the answer is b", None, "B"),
        ("blue", "B", "B"),
        ("A. or B.", None, None),
    ],
)
def test_the_two_versions_of_vlmevalkits_matching(text, before, since):
    options = ["red", "blue", "green"]
    assert match_letter(text, options) == before and match_letter(text, options, verbose=True) == since

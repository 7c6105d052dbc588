"""Questions about scenes, with their answers: V*'s two kinds (attributes and relative positions) and what else a
conversation about an image asks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_s2.synthetic.scenes import Scene, Thing
from llava_s2.synthetic.thing_names import COLORS, with_article

_OPTIONS = 4
# Two things stand beside each other when they are apart by this share of the image's longer side.
_CLEARLY_APART = 1 / 8
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DESCRIBE = (
    "What small things are in the image?",
    "Describe the image.",
    "What do you see?",
    "What is in this image?",
    "Describe this photograph in a sentence.",
)
_OUTSIDE_KNOWLEDGE = (
    "What does the text say?",
    "Who is the person in the image?",
    "What is the weather like?",
    "Where was this image taken?",
    "What is the person doing?",
    "What brand is it?",
    "Why is this image funny?",
    "What time of day is it?",
    "What breed is it?",
    "How old is the person?",
    "Translate the sign.",
    "Is the person happy or sad?",
    "How many people are there?",
    "What is written on the shirt?",
    "What will happen next?",
    "What is the name of this painting?",
)
REFUSAL = "I only know small named things, such as a fox or a red umbrella, so I cannot answer that."
NOTHING = "I see none of the small things that I know."


@dataclass(frozen=True)
class Question:
    """A question with its options, the correct one first (the V* convention), and the things that it is about."""

    text: str
    options: tuple[str, ...]
    targets: tuple[Thing, ...]

    @property
    def answer(self) -> str:
        """The correct option."""
        return self.options[0]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _listed(phrases: Sequence[str], conjunction: str) -> str:
    return f"{', '.join(phrases[:-1])} {conjunction} {phrases[-1]}" if len(phrases) > 1 else phrases[0]


def caption(scene: Scene) -> str:
    """Names every thing in reading order of seven rows: ``A red umbrella, a fox and a key.``; `NOTHING` of none."""
    if not scene.things:
        return NOTHING
    row = max(scene.image.size) / 7
    ordered = sorted(scene.things, key=lambda thing: (thing.y // row, thing.x))
    return _sentence(_listed([thing.phrase for thing in ordered], "and"))


def naming_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Which of four things is in the image: a question for each thing. The wrong options are things that are not there
    and could have been: tinted ones where the thing is tinted, so that the text does not tell."""
    questions = []
    for thing in scene.alone():
        names = [thing.name, *scene.absent(thing.color is not None, rng)][:_OPTIONS]
        phrases = [with_article(name) for name in names]
        shown = _listed(rng.permutation(phrases).tolist(), "or")
        text = f"Which of these is in the image: {shown}?"
        questions.append(Question(text, tuple(_sentence(phrase) for phrase in phrases), (thing,)))
    return questions


def color_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The colour of each tinted thing; the wrong options are the colours of the others first."""
    tinted = [thing for thing in scene.alone() if thing.color]
    questions = []
    for thing in tinted:
        others = [other.color for other in tinted if other is not thing]
        rest = [color for color in rng.permutation(list(COLORS)).tolist() if color not in (thing.color, *others)]
        colors = [thing.color, *others, *rest][:_OPTIONS]
        options = tuple(f"The color of the {thing.name} is {color}." for color in colors)
        questions.append(Question(f"What is the color of the {thing.name}?", options, (thing,)))
    return questions


def colored_thing_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Which thing has a colour; the wrong options are the image's other tinted things, then others that can be."""
    tinted = [thing for thing in scene.alone() if thing.color]
    questions = []
    for thing in tinted:
        others = [other.name for other in tinted if other is not thing]
        names = [thing.name, *others, *scene.absent(True, rng)][:_OPTIONS]
        options = tuple(_sentence(f"the {name}") for name in names)
        questions.append(Question(f"Which thing is {thing.color}?", options, (thing,)))
    return questions


def relation_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Left or right, above or below: a question for each pair and axis on which the two are clearly apart, shuffled."""
    margin = max(scene.image.size) * _CLEARLY_APART
    questions = []
    for first in scene.alone():
        for second in scene.alone():
            if first is second:
                continue
            pair = f"The {first.name} is {{}} the {second.name}."
            if abs(first.x - second.x) >= margin:
                sides = ["on the left side of", "on the right side of"][:: 1 if first.x < second.x else -1]
                text = f"Is the {first.name} on the left or right side of the {second.name}?"
                questions.append(Question(text, tuple(pair.format(side) for side in sides), (first, second)))
            if abs(first.y - second.y) >= margin:
                sides = ["above", "below"][:: 1 if first.y < second.y else -1]
                text = f"Is the {first.name} above or below the {second.name}?"
                questions.append(Question(text, tuple(pair.format(side) for side in sides), (first, second)))
    return [questions[i] for i in rng.permutation(len(questions))]


def place(scene: Scene, thing: Thing) -> str:
    """Where the thing is, in thirds of the image: ``in the upper left``, ``in the center``."""
    width, height = scene.image.size
    row = ("upper", "", "lower")[min(2, int(3 * thing.y / height))]
    column = ("left", "middle", "right")[min(2, int(3 * thing.x / width))]
    if not row:
        return "in the center" if column == "middle" else f"on the {column}"
    return f"in the {row} {column}"


def presence_question(name: str, thing: Thing | None) -> Question:
    """Whether there is a thing of this name; ``thing`` is the one that there is, if any."""
    verdict = f"Yes, there is {with_article(name)}." if thing else f"No, there is no {name}."
    return Question(f"Is there {with_article(name)} in the image?", (verdict,), (thing,) if thing else ())


def place_questions(scene: Scene) -> list[Question]:
    """Where each thing is."""
    return [
        Question(f"Where is the {thing.name}?", (_sentence(place(scene, thing)),), (thing,)) for thing in scene.alone()
    ]


def neighbour_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """What is nearest to the left of, or above, each thing, where something or nothing clearly is."""
    margin = max(scene.image.size) * _CLEARLY_APART
    questions = []
    for thing in scene.alone():
        left = [other for other in scene.things if thing.x - other.x >= margin]
        above = [other for other in scene.things if thing.y - other.y >= margin]
        for text, found, nearest in (
            (f"What is to the left of the {thing.name}?", left, lambda other: -other.x),
            (f"What is above the {thing.name}?", above, lambda other: -other.y),
        ):
            answer = _sentence(min(found, key=nearest).phrase) if found else "Nothing."
            questions.append(Question(text, (answer,), (thing,)))
    return [questions[i] for i in rng.permutation(len(questions))]


def conversation(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Up to nine questions of all kinds; some ask for what is not in the image.

    What is there is asked before anything tells it, because later questions name what is in the image: a model would
    learn to answer from the text. For the same reason a description, which ends a conversation, is one of its own now
    and then: a model would learn that what is described at once is empty.
    """
    if rng.random() < 0.15:
        return [_describe(scene, rng)]
    there = scene.alone()
    namings = _some(naming_questions(scene, rng), 2, rng)
    named = {thing for question in namings for thing in question.targets}
    unnamed = [thing for thing in there if thing not in named]
    absent = scene.absent(bool(rng.random() < 0.5), rng)
    # Yes as often as no, but where nothing is left to ask for.
    present = unnamed[int(rng.integers(len(unnamed)))] if unnamed and rng.random() < 0.5 else None
    name = present.name if present else absent[0]
    first = [*namings, presence_question(name, present)]
    # What is not there is asked about in the words of what is, or a model answers every question as if it were.
    lacking = _absent_questions(scene, rng)
    colors = _some(color_questions(scene, rng) if rng.random() < 0.7 else lacking[:1], 1, rng)
    told = {thing for question in colors for thing in question.targets}
    rest = [question for question in colored_thing_questions(scene, rng) if not told & set(question.targets)]
    rest = colors + _some(rest, 1, rng) + _some(relation_questions(scene, rng), 2, rng)
    if rng.random() < 0.6:
        rest += _some(place_questions(scene) if rng.random() < 0.6 else lacking[1:], 1, rng)
    last = _describe(scene, rng) if rng.random() < 0.3 else _rare_question(scene, absent[1:], rng)
    asked = [*_some(first, len(first), rng), *_some(rest, len(rest), rng), last]
    if rng.random() < 0.5:
        return asked
    # Every kind is also asked first, and in short: what a model only ever answered later it does not answer alone.
    opening = asked.pop(int(rng.integers(len(first), len(asked))))
    told = set(re.findall(r"[a-z]+", f"{opening.text} {opening.answer}".lower()))
    later = [question for question in asked if not told & {thing.name for thing in question.targets}]
    return [opening, *later[: int(rng.integers(4))]]


def _some(questions: list[Question], count: int, rng: np.random.Generator) -> list[Question]:
    return [questions[i] for i in rng.permutation(len(questions))[:count]]


def _describe(scene: Scene, rng: np.random.Generator) -> Question:
    return Question(_DESCRIBE[int(rng.integers(len(_DESCRIBE)))], (caption(scene),), scene.things)


def _absent_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The color of one thing that is not in the image; then of another its place, also beside something that is."""
    colored, name = scene.absent(True, rng)[0], scene.absent(bool(rng.random() < 0.5), rng)[-1]
    texts = [f"Where is the {name}?"]
    if there := scene.alone():
        other = there[int(rng.integers(len(there)))].name
        texts.append(f"Is the {name} on the left or right side of the {other}?")
        texts.append(f"Is the {name} above or below the {other}?")
    answer = (f"There is no {name} in the image.",)
    return [absent_color_question(colored), *(Question(text, answer, ()) for text in texts)]


def absent_color_question(name: str) -> Question:
    """The color of something that is not in the image."""
    return Question(f"What is the color of the {name}?", (f"There is no {name} in the image.",), ())


def _rare_question(scene: Scene, absent: list[str], rng: np.random.Generator) -> Question:
    """One of the kinds of which every conversation needs only one in a few."""
    kind = int(rng.integers(5))
    names = [thing.name for thing in scene.things]
    if kind == 0 and len(names) < len(_NUMBERS):
        verb = "is" if len(names) == 1 else "are"
        answer = _sentence(f"there {verb} {_NUMBERS[len(names)]}") if names else NOTHING
        return Question("How many small things are in the image?", (answer,), scene.things)
    if kind == 1:
        name = max(names, key=names.count) if names and rng.random() < 0.7 else absent[0]
        return Question(
            f"How many times is {with_article(name)} in the image?", (_sentence(_NUMBERS[names.count(name)]),), ()
        )
    if kind in (2, 3) and (neighbours := neighbour_questions(scene, rng)):
        return neighbours[0]
    return Question(_OUTSIDE_KNOWLEDGE[int(rng.integers(len(_OUTSIDE_KNOWLEDGE)))], (REFUSAL,), ())

"""What a benchmark is to the runner: samples from a data folder, and a grade for each answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError

Scoring = Literal["likelihood", "generate"]


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique in the benchmark; the ``question_id`` of its prediction.
        category: a key of the benchmark's ``categories``.
        images: shown before the prompt, in order.
        prompt: the user's words, without image placeholders unless ``interleaved``.
        options: the replies that likelihood scoring compares; empty where only generation applies.
        reference: what ``grade`` compares with; any JSON-like value or dataclass, opaque to the runner.
        aliases: other ids under which a predictions file may name this question.
        also: more categories that it counts in.
        group: of CircularEval variants, the same in all; they count once, right if all are right.
        interleaved: the images stand where the prompt has ``<image>``, one each, and not before it.
        boxes: where in the first image the thing asked for is: ``(x, y, width, height)`` in pixels.
    """

    id: str
    category: str
    images: tuple[Path | Embedded, ...]
    prompt: str
    options: tuple[str, ...]
    reference: Any
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    group: str = ""
    interleaved: bool = False
    boxes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Grade:
    """How right an answer is.

    Attributes:
        correct: True or False; or, of a metric with partial credit, a float from 0.0 to 1.0.
        parseable: False where no answer could be read from the text.
    """

    correct: float
    parseable: bool = True


class HubFiles(NamedTuple):
    """Files on the hub.

    Attributes:
        name: the data set's id.
        patterns: of the files; where one has alternatives with ``|`` between, the first that the data set has.
        folder: below the data folder, where another variant's files have the same names.
    """

    name: str
    patterns: tuple[str, ...]
    folder: str = ""


class Benchmark(ABC):
    """A benchmark is data and a metric; loading models, batching, resuming and reporting are the runner's.

    Args:
        variant: one of ``variants``; by default the first whose files are there.
        seed: has an answer that cannot be read replaced by a guess, drawn from the seed and the question's id.
        rule: one of ``rules``; by default the first.

    Raises:
        InputError: no such variant or rule, or the benchmark does not guess.
    """

    name: ClassVar[str]
    protocols: ClassVar[Mapping[Scoring, str]]
    """The ways of scoring it has, the default first, each with the protocol's name for the report."""
    categories: ClassVar[Mapping[str, str]]
    """Category of a sample -> heading in the table, in the table's order; others follow under their own names."""
    max_new_tokens: ClassVar[int]
    """Bound on a generated answer, in tokens."""
    variants: ClassVar[Mapping[str, str]] = {}
    """Splits or settings of the data -> what they are, if there are several."""

    rules: ClassVar[Mapping[str, str]] = {}
    """Ways to read the option that an answer names -> what they are, the default first, if there are several."""
    folders: ClassVar[tuple[str, ...]] = ()
    """What else its data folder is called; case, ``-`` and ``_`` do not matter."""
    hub: ClassVar[Mapping[str, HubFiles]] = {}
    """Variant -> its files on the hub, the default first; ``""`` stands for every variant."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Packages that it needs beside the runner's, by the names that Python imports."""

    guesses: ClassVar[bool] = False
    """Whether its official code guesses where an answer cannot be read."""

    judge_runs: ClassVar[int] = 0
    """Times that its official code asks a language model about each answer; 0 where it asks none."""
    without_judge: ClassVar[str] = ""
    """What its user should know where there is no such model."""

    def __init__(self, variant: str | None = None, seed: int | None = None, rule: str | None = None) -> None:
        if variant is not None and variant not in self.variants:
            known = f"use {' or '.join(self.variants)}" if self.variants else "it has none"
            raise InputError(f"{self.name} has no variant {variant!r}; {known}")
        if seed is not None and not self.guesses:
            raise InputError(f"{self.name} guesses no answers; leave out the seed")
        if rule is not None and rule not in self.rules:
            known = f"use {' or '.join(self.rules)}" if self.rules else "it has one rule only"
            raise InputError(f"{self.name} has no rule {rule!r}; {known}")
        self.seed = seed
        self.rule = rule or next(iter(self.rules), "")
        self.variant = variant
        """The variant in use; ``load`` sets it if it was left open."""

    @property
    def default_scoring(self) -> Scoring:
        """The benchmark's own protocol."""
        return next(iter(self.protocols))

    def protocol(self, scoring: Scoring) -> str:
        """The protocol's name, with the rule that reads its answers."""
        read = f"; {self.rules[self.rule]}" if scoring == "generate" and self.rules else ""
        return self.protocols[scoring] + read

    @abstractmethod
    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads and checks the whole data folder, except for the images' pixels.

        Args:
            data: the folder.
            scoring: the protocol that the samples are for; None to grade what any program answered.

        Raises:
            InputError: anything missing, malformed or doubled, naming the file and the record.
        """

    def gold(self, sample: Sample) -> Any:
        """The reference as ``compare`` holds those of two runs against each other, JSON-like."""
        return sample.reference

    def answer(self, text: str) -> str:
        """What of a generated text counts as the answer: the ``text`` of its prediction."""
        return text

    @abstractmethod
    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """Grades one line of a predictions file, of which ``prediction["text"]`` is the answer.

        Returns:
            The grade, or None where the data has no answers, as a test set that only its server can score.
        """

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """The benchmark's own figures where these are no mean of grades, such as an F1: name -> value.

        Args:
            graded: every question that counts, its grade and its prediction.
        """
        return {}

    def judge(
        self, ask: Callable[..., str], sample: Sample, prediction: Mapping[str, Any], runs: int
    ) -> dict[str, Any]:
        """Asks a language model about one prediction; called for several at once.

        Args:
            ask: ``Judge.ask``.
            sample: the question.
            prediction: its prediction, of which ``prediction["text"]`` is the answer.
            runs: times to ask.

        Returns:
            JSON fields that the prediction gains, for ``grade`` to read.
        """
        raise NotImplementedError(f"{self.name} has no judge")

    def judged(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the report says of the judge's verdicts beyond the grades: JSON fields."""
        return {}

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """Writes the file that the benchmark's server takes, if it has one.

        Args:
            samples: all of the benchmark.
            predictions: of each, by id.
            folder: where to write.

        Returns:
            The file, or None where there is no such thing.
        """
        return None

"""One visitor's images and conversation, apart from how the page shows them."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.serve import tower_cache
from llava_s2.serve.chat import Chat, Reply, Sampling
from llava_s2.serve.demo.pyramid import squared
from llava_s2.serve.demo.timing import Timing, stopwatch


@dataclass(frozen=True)
class Model:
    """A loaded model, what to call it, and what its tower made of images, whoever showed them."""

    name: str
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    cache: tower_cache.FeatureCache = field(default_factory=lambda: tower_cache.FeatureCache(tower_cache.DEFAULT_BYTES))


@dataclass(frozen=True, eq=False)
class PageImage(tower_cache.KeyedImage):
    """An image with the file of its small copy that the page shows, and the uploaded file if it was one.

    Attributes:
        full: file of all its pixels, for whoever enlarges it.
        is_example: whether it is here because the page opens with it; the visitor's own first image replaces it.
    """

    thumbnail: str
    upload: str = ""
    full: str = ""
    is_example: bool = False

    def squared(self, mode: str) -> "PageImage":
        """As a square, see ``pyramid.squared``; "" leaves that to the processor."""
        return replace(self, image=squared(self.image, mode)) if mode else self


@dataclass(eq=False)
class Turn:
    """A question with the images shown along with it, and its answer as far as it has come.

    Attributes:
        stopped: set, from any thread, to end the answer.
        reply, timing: once the answer has ended; ``reply`` stays None where it was stopped before it began.
    """

    question: str
    images: list[PageImage]
    answer: str = ""
    stopped: bool = False
    ended: bool = False
    reply: Reply | None = None
    timing: Timing | None = None


@dataclass
class Session:
    """What the page remembers of a visitor.

    Attributes:
        images: those on the page. turns: the conversation.
        compared: the turns of the latest comparison.
        trouble: what the visitor is still to be told.
        answered: how many answers have ended.
        mode: how images become squares; "" leaves it to the processor.
    """

    images: list[PageImage] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    compared: list[Turn] = field(default_factory=list)
    trouble: InputError | None = None
    answered: int = 0
    mode: str = ""

    def begin(self, question: str) -> None:
        """Adds a question, with the images that the conversation does not hold yet. Raises InputError if empty."""
        if not question.strip():
            raise InputError("type a question first")
        held = [image for turn in self.turns if not turn.ended or turn.answer for image in turn.images]
        self.turns.append(Turn(question, [image for image in self.images if image not in held]))

    def take_back(self) -> Turn:
        """Removes the last question, stopping its answer. Raises InputError if there is none."""
        if not self.turns:
            raise InputError("there is no question yet")
        self.turns[-1].stopped = True
        return self.turns.pop()

    def again(self) -> None:
        """Puts the last question anew. Raises InputError if there is none."""
        last = self.take_back()
        self.turns.append(Turn(last.question, last.images))

    def clear(self) -> None:
        """Stops what goes on and forgets the conversation; the images stay on the page."""
        self.stop()
        self.turns = []

    def stop(self) -> None:
        """Has every answer that is being made end after its current word."""
        for turn in [*self.turns, *self.compared]:
            turn.stopped = True

    def answer(self, model: Model, sampling: Sampling) -> Iterator[Turn]:
        """Answers the oldest open question, yielding its turn after every piece; yields nothing where none is open.

        Raises:
            InputError: the conversation leaves no room for an answer; the question is then taken back.
        """
        turn = next((turn for turn in self.turns if not turn.ended), None)
        if turn is None:
            return
        try:
            yield from answer_turn(turn, model, sampling, self.turns[: self.turns.index(turn)], self.mode)
            self.answered += 1
        except InputError:
            if turn in self.turns:  # the visitor may have begun anew meanwhile
                self.turns.remove(turn)
            raise


class Sessions:
    """Sessions by a name that nobody can guess, so that a page that is loaded again finds its own."""

    def __init__(self, most: int = 32) -> None:
        self._most, self._kept, self._one_at_a_time = most, OrderedDict[str, Session](), threading.Lock()

    def find(self, name: str | None, otherwise: Session) -> tuple[str, Session]:
        """The session of this name, or else another, which gets a name of its own. The oldest are forgotten."""
        with self._one_at_a_time:
            if name not in self._kept or name is None:
                name = uuid.uuid4().hex
                self._kept[name] = otherwise
            self._kept.move_to_end(name)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return name, self._kept[name]


def answer_turn(
    turn: Turn, model: Model, sampling: Sampling, before: list[Turn], mode: str = "", *, cold: bool = False
) -> Iterator[Turn]:
    """Fills ``turn.answer``, yielding the turn after every piece and once more at the end.

    Args:
        turn: to be answered.
        model: that answers.
        sampling: how.
        before: the turns before it.
        mode: how images become squares.
        cold: whether to forget what the tower made of the images, so that its time is measured.

    Raises:
        InputError: see ``Chat.ask``.
    """
    chat = Chat(model.model, model.processor, sampling, tower_cache.FeatureCache(0) if cold else model.cache)
    for earlier in before:
        if earlier.answer:  # as in a Chat, a question without any answer leaves nothing
            chat.recall(earlier.question, [one.squared(mode) for one in earlier.images], earlier.answer.strip())
    shown = [image.squared(mode) for image in turn.images]
    try:
        with stopwatch(model.model) as timing, closing(chat.ask(turn.question, shown)) as pieces:
            while not turn.stopped and (piece := next(pieces, None)) is not None:
                turn.answer += piece
                yield turn
        turn.reply, turn.timing = chat.reply, timing
    finally:
        turn.ended = True
    yield turn

"""The tab that puts one question to two models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.serve.chat import Sampling
from llava_s2.serve.demo import show
from llava_s2.serve.demo.demo_examples import Example
from llava_s2.serve.demo.events import MODEL, QUICK, bring_in, defers, html, tell_deferred, warn
from llava_s2.serve.demo.pyramid import Sight
from llava_s2.serve.demo.session import Model, Session, Turn, answer_turn


@dataclass(frozen=True)
class CompareTab:
    """What is compared, the components that other parts of the page set, and the two steps of asking both."""

    names: list[str]
    question: gr.Textbox
    answers: list[Any]
    ask: Callable[..., Any]
    answer: Callable[..., Iterator[Any]]


def build_compare(
    model: Model,
    baseline: Model | None,
    session: gr.State,
    gallery: gr.Gallery,
    sampling: list[gr.Slider],
    folder: Path,
    examples: Sequence[Example],
) -> CompareTab:
    """Lays the tab out and wires it.

    Without a baseline the same model answers from the image shrunk to its first scale, so that nothing is in the
    pixels that the larger scales could see.
    """
    sight = Sight.of(model.model, model.processor)
    other = baseline or model
    other_sight = Sight.of(other.model, other.processor)
    shrunk = f"{model.name}, the image shrunk to {sight.scales[0]} pixels"
    question = gr.Textbox(label="Question", placeholder="One question, without the conversation", elem_id="compared")
    with gr.Row(elem_classes="s2-buttons"):
        both = gr.Button("Ask both", variant="primary", size="sm", min_width=80, elem_id="ask-both")
        stop = gr.Button("Stop", variant="stop", visible=False, size="sm", min_width=80, elem_id="stop-both")
    with gr.Row():
        with gr.Column(min_width=240):
            first = gr.Textbox(label=show.sight_line(model.name, sight), lines=2, max_lines=12, elem_id="answer-a")
            first_timing = html(elem_classes="s2-note", elem_id="timing-a")
        with gr.Column(min_width=240):
            label = show.sight_line(baseline.name, other_sight) if baseline else shrunk
            second = gr.Textbox(label=label, lines=2, max_lines=12, elem_id="answer-b")
            second_timing = html(elem_classes="s2-note", elem_id="timing-b")
    html(show.note("Both see all images on the page. No time is saved by images that were asked about before."))

    @defers
    def ask(state: Session, shown: list[tuple[str, str | None]] | None, text: str) -> gr.Button:
        if not text.strip():
            raise InputError("type a question first")
        bring_in(state, shown, folder)
        images = others = list(state.images)
        if baseline is None:
            others = [replace(one, image=_shrink(one.image, sight.scales[0])) for one in images]
        for turn in state.compared:
            turn.stopped = True
        state.compared = [Turn(text, images), Turn(text, others)]
        return gr.Button(visible=True)

    def seen(turns: list[Turn]) -> list[str]:
        a, b = turns
        options: tuple[str, ...] = next((one.options for one in examples if one.question == a.question), ())
        if not all(one.is_example for one in a.images):
            options = ()
        marks = [show.verdict(turn.answer, options) if turn.reply else "" for turn in turns]
        times = [show.timing_line(turn) for turn in turns]
        lines = [" · ".join(filter(None, pair)) for pair in zip(marks, times, strict=True)]
        return [a.answer.strip(), lines[0], b.answer.strip(), lines[1]]

    def answer(state: Session, temperature: float, top_p: float, most: int) -> Iterator[Any]:
        tell_deferred(state)
        turns = state.compared
        if not turns:
            return
        try:
            for turn, asked in zip(turns, (model, other), strict=True):
                if turn.ended:  # by the event of an earlier click
                    continue
                for _ in answer_turn(turn, asked, Sampling(temperature, top_p, int(most)), [], state.mode, cold=True):
                    yield seen(turns)
        except InputError as error:  # told without failing, or the button would not be set back
            warn(error)
            yield seen(turns)
        finally:
            for turn in turns:
                turn.ended = True

    def settle(state: Session) -> gr.Button:
        return gr.Button(visible=not all(turn.ended for turn in state.compared))

    answers = [first, first_timing, second, second_timing]
    begun = gr.on([both.click, question.submit], ask, [session, gallery, question], [stop], **QUICK)
    begun.success(answer, [session, *sampling], answers, **MODEL).then(settle, [session], [stop], **QUICK)
    stop.click(lambda state: state.stop(), [session], None, **QUICK)
    return CompareTab([model.name, baseline.name if baseline else shrunk], question, answers, ask, answer)


def _shrink(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small

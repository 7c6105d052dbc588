"""The tab that weighs given answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from llava_s2.errors import InputError
from llava_s2.serve.demo import show
from llava_s2.serve.demo.events import MODEL, bring_in, html, tells
from llava_s2.serve.demo.likelihood import MOST_OPTIONS, parse_options, weigh
from llava_s2.serve.demo.session import Model, Session


def build_likelihood(
    models: Sequence[Model],
    baseline: Model | None,
    chosen: gr.Dropdown,
    session: gr.State,
    gallery: gr.Gallery,
    folder: Path,
) -> tuple[gr.Textbox, gr.Textbox]:
    """Lays the tab out and wires it; returns the boxes with the question and with the options."""
    question = gr.Textbox(label="Question", elem_id="weighed")
    options = gr.Textbox(label=f"Options, one a line, two to {MOST_OPTIONS}", lines=4, elem_id="options")
    button = gr.Button("Show probabilities", variant="primary", size="sm", elem_id="weigh")
    table = html(elem_id="likelihoods")
    html(
        show.note(
            "Probability: of the whole answer, given that it is one of these. Loss: mean over the answer's tokens, in "
            "nats; the V* benchmark chooses the smallest."
        )
    )

    @tells
    def shares(state: Session, name: str, shown: list[tuple[str, str | None]] | None, text: str, lines: str) -> Any:
        choices = parse_options(lines)
        bring_in(state, shown, folder)
        if not state.images:
            raise InputError("add an image first")
        images = [one.squared(state.mode).image for one in state.images]
        asked = [*(model for model in models if model.name == name), *([baseline] if baseline else [])]
        return "".join(show.likelihood_table(model.name, weigh(model, images, text, choices)) for model in asked)

    button.click(shares, [session, chosen, gallery, question, options], [table], **MODEL)
    return question, options

"""The page as a whole: pictures at the side, a tab for each thing to do with them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from llava_s2.serve.demo import show
from llava_s2.serve.demo.chat_tab import build_chat
from llava_s2.serve.demo.compare_tab import build_compare
from llava_s2.serve.demo.events import QUICK, QUIET, bring_in, html, tells
from llava_s2.serve.demo.examples import Example
from llava_s2.serve.demo.likelihood_tab import build_likelihood
from llava_s2.serve.demo.pictures import add_picture, read_address
from llava_s2.serve.demo.pyramid import Sight
from llava_s2.serve.demo.sees_tab import build_sees
from llava_s2.serve.demo.session import Model, Session

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def build_page(
    model: Model,
    baseline: Model | None,
    examples: Sequence[Example],
    folder: Path,
    sampling: tuple[float, float, int],
    *,
    allow_urls: bool = False,
    about: str = "",
    votes: Path | None = None,
) -> gr.Blocks:
    """Builds the page.

    Args:
        model: that answers.
        baseline: that it is compared with.
        examples: pictures to try.
        folder: takes the small copies of pictures, and transcripts.
        sampling: temperature, top-p and bound on new tokens that the page starts with.
        allow_urls: whether the server fetches pictures from addresses.
        about: what the model can do, in a sentence.
        votes: a file of JSON lines that takes visitors' votes on answers; without it there are no buttons for them.
    """
    sight = Sight.of(model.model, model.processor)
    with gr.Blocks(title="LLaVA-S²", analytics_enabled=False, delete_cache=(3600, 7200)) as page:
        session = gr.State(lambda: Session(), delete_callback=Session.stop)  # a dataclass itself, Gradio takes apart
        html(show.headline(model.name, sight, about))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300):
                gallery = gr.Gallery(
                    label="Pictures",
                    sources=["upload", "clipboard"],
                    file_types=["image"],
                    columns=3,
                    height=260,
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=True,
                    elem_id="pictures",
                )
                address = gr.Textbox(
                    label="Address of a picture",
                    placeholder="https://…  Enter fetches it",
                    type="text",
                    visible=allow_urls,
                    elem_id="address",
                )
                shown = gr.Gallery(
                    [(example.picture, example.question) for example in examples],
                    label="Examples",
                    columns=3,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    format="jpeg",
                    elem_id="examples",
                )
                with gr.Accordion("Sampling", open=False, elem_id="sampling"):
                    temperature, top_p, most = sampling
                    sliders = [
                        gr.Slider(0, 2, temperature, step=0.05, label="Temperature (0: the likeliest token)"),
                        gr.Slider(0.05, 1, top_p, step=0.05, label="Top-p"),
                        gr.Slider(1, max(2048, most), most, step=1, label="Most new tokens"),
                    ]
            with gr.Column(scale=5, min_width=300), gr.Tabs():
                with gr.Tab("Chat"):
                    chat = build_chat(model, sight, session, gallery, sliders, folder, votes)
                with gr.Tab("Compare"):
                    compared = build_compare(model, baseline, session, gallery, sliders, folder)
                with gr.Tab("Likelihood"):
                    weighed, options = build_likelihood(
                        [model, baseline] if baseline else [model], session, gallery, folder
                    )
                with gr.Tab("What the model sees") as sees:
                    build_sees(model, session, gallery, sees, folder)

        def example_values(state: Session, number: int) -> list[Any]:
            example = examples[number]
            state.clear()
            state.pictures = []
            add_picture(state, example.picture, folder)
            asked = {"text": example.question, "files": []}
            listed = "\n".join(example.options)
            return [[state.pictures[0].thumbnail], asked, example.question, example.question, listed, [], "", ""]

        async def stay_connected() -> AsyncIterator[None]:
            """Keeps the visitor's stream of events open: Gradio closes it when nothing is under way, and an event that
            joins in that moment would be lost."""
            while True:
                yield
                await asyncio.sleep(15)

        def changed(state: Session, files: list[tuple[str, str | None]] | None) -> list[str]:
            bring_in(state, files, folder)
            return [picture.thumbnail for picture in state.pictures]

        @tells
        def bring_from(state: Session, url: str) -> tuple[list[str], str]:
            add_picture(state, read_address(url), folder)
            return [picture.thumbnail for picture in state.pictures], ""

        @tells
        def take_example(state: Session, event: gr.SelectData) -> list[Any]:
            return example_values(state, event.index)

        gallery.upload(changed, [session, gallery], [gallery], **QUIET)
        gallery.delete(changed, [session, gallery], [gallery], **QUIET)
        if allow_urls:
            address.submit(bring_from, [session, address], [gallery, address], **QUIET)
        filled = [gallery, chat.question, compared, weighed, options]
        filled += [chat.conversation, chat.timing, chat.transcript]
        shown.select(take_example, [session], filled, **QUICK)
        page.load(stay_connected, None, None, concurrency_limit=None, **QUIET)
    return page

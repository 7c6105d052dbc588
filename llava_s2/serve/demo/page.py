"""The page as a whole: images at the side, a tab for each thing to do with them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from llava_s2.serve.demo import show
from llava_s2.serve.demo.chat_tab import build_chat
from llava_s2.serve.demo.compare_tab import build_compare
from llava_s2.serve.demo.demo_examples import Example
from llava_s2.serve.demo.events import MODEL, QUICK, QUIET, bring_in, html, tells
from llava_s2.serve.demo.likelihood_tab import build_likelihood
from llava_s2.serve.demo.page_images import add_image, read_address
from llava_s2.serve.demo.pyramid import Sight
from llava_s2.serve.demo.sees_tab import build_sees
from llava_s2.serve.demo.session import Model, Session, Sessions

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


_SQUARES = [
    ("as the model was trained", ""),
    ("padded with grey", "pad"),
    ("cut in the middle", "square"),
    ("stretched", "resize"),
]


def build_page(
    models: Sequence[Model],
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
        models: one of which answers; the first, unless the visitor chooses another.
        baseline: that it is compared with.
        examples: images to try.
        folder: takes the small copies of images, and transcripts.
        sampling: temperature, top-p and bound on new tokens that the page starts with.
        allow_urls: whether the server fetches images from addresses.
        about: what the model can do, in a sentence.
        votes: a file of JSON lines that takes visitors' votes on answers; without it there are no buttons for them.
    """
    model, sessions = models[0], Sessions()
    sight = Sight.of(model.model, model.processor)
    with gr.Blocks(title="LLaVA-S²", analytics_enabled=False, delete_cache=(3600, 7200)) as page:
        session = gr.State(lambda: Session())  # a dataclass itself, Gradio takes apart
        remembered = gr.BrowserState(None, storage_key="llava-s2-session")
        html(show.headline(model.name, sight, about))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300, elem_id="side"):
                gallery = gr.Gallery(
                    label="Images",
                    sources=["upload", "clipboard"],
                    file_types=["image"],
                    columns=3,
                    height=260,
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=True,
                    elem_id="images",
                )
                full_size = html(elem_id="full-size")
                address = gr.Textbox(
                    label="Address of an image",
                    placeholder="https://…  Enter fetches it",
                    type="text",
                    visible=allow_urls,
                    elem_id="address",
                )
                shown = gr.Gallery(
                    [(example.image, example.question) for example in examples],
                    label="Examples",
                    columns=3,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    format="jpeg",
                    elem_id="examples",
                )
                names = [one.name for one in models]
                chosen = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
                with gr.Accordion("Settings", open=False, elem_id="sampling"):
                    square = gr.Dropdown(_SQUARES, value="", label="An image that is not square is", elem_id="square")
                    temperature, top_p, most = sampling
                    sliders = [
                        gr.Slider(0, 2, temperature, step=0.05, label="Temperature (0: the likeliest token)"),
                        gr.Slider(0.05, 1, top_p, step=0.05, label="Top-p"),
                        gr.Slider(1, max(2048, most), most, step=1, label="Most new tokens"),
                    ]
            with gr.Column(scale=5, min_width=300, elem_id="main"):
                truth = html(elem_id="truth")
                with gr.Tabs():
                    with gr.Tab("Chat"):
                        chat = build_chat(models, chosen, session, gallery, sliders, folder, votes)
                    with gr.Tab("Compare"):
                        compared = build_compare(model, baseline, session, gallery, sliders, folder, examples)
                    with gr.Tab("Likelihood"):
                        weighed, options = build_likelihood(models, baseline, chosen, session, gallery, folder)
                    with gr.Tab("What the model sees") as sees:
                        build_sees(model, session, gallery, sees, folder)

        def images_of(state: Session) -> list[Any]:
            return [[one.thumbnail for one in state.images], show.full_size_links(state.images)]

        def example_values(state: Session, number: int) -> list[Any]:
            """Puts an example on the page, and its question into every box."""
            example = examples[number]
            state.clear()
            state.images = []
            add_image(state, example.image, folder, is_example=True)
            asked = {"text": example.question, "files": []}
            told = show.truth(example.question, example.options[0])
            listed = "\n".join(sorted(example.options))
            return [*images_of(state), told, asked, example.question, example.question, listed, *chat.restored(state)]

        def opened(name: str | None, state: Session) -> list[Any]:
            """What the page shows when it is loaded: the visitor's session, or else the first example."""
            is_untouched = not (state.images or state.turns)
            name, found = sessions.find(name if is_untouched else None, state)
            if found.images or found.turns:
                rest = [*images_of(found), *[gr.skip()] * 5, *chat.restored(found)]
            elif examples:
                rest = example_values(found, 0)
            else:
                rest = [gr.skip()] * len(filled)
            return [name, found, *rest]

        def opening(state: Session, *settings: Any) -> Iterator[Any]:
            """Asks both models about the example that the page opens with, so that the difference is seen at once."""
            if state.turns or not (state.images and state.images[0].is_example) or state.compared:
                return
            example = examples[0]
            compared.ask(state, [(one.thumbnail, None) for one in state.images], example.question)
            for answers in compared.answer(state, *settings):
                marks = [
                    (name, show.verdict(turn.answer, example.options) if turn.reply else "")
                    for name, turn in zip(compared.names, state.compared, strict=True)
                ]
                yield [*answers, show.truth(example.question, example.options[0], marks)]

        async def stay_connected() -> AsyncIterator[None]:
            """Keeps the visitor's stream of events open: Gradio closes it when nothing is under way, and an event that
            joins in that moment would be lost."""
            while True:
                yield
                await asyncio.sleep(15)

        def changed(state: Session, files: list[tuple[str, str | None]] | None) -> list[Any]:
            bring_in(state, files, folder)
            return [*images_of(state), "" if not any(one.is_example for one in state.images) else gr.skip()]

        def cleared(state: Session, files: list[tuple[str, str | None]] | None) -> Any:
            if files:
                return [gr.skip()] * 2
            bring_in(state, files, folder)
            return ["", ""]

        @tells
        def bring_from(state: Session, url: str) -> list[Any]:
            add_image(state, read_address(url), folder)
            return [*images_of(state), "", ""]

        @tells
        def take_example(state: Session, event: gr.SelectData) -> list[Any]:
            return example_values(state, event.index)

        def choose_square(state: Session, mode: str) -> None:
            state.mode = mode

        on_page = [gallery, full_size, truth]
        gallery.upload(changed, [session, gallery], on_page, **QUIET)
        gallery.delete(changed, [session, gallery], on_page, **QUIET)
        gallery.change(cleared, [session, gallery], [full_size, truth], **QUICK)
        square.change(choose_square, [session, square], None, **QUICK)
        if allow_urls:
            address.submit(bring_from, [session, address], [*on_page, address], **QUIET)
        filled = [*on_page, chat.question, compared.question, weighed, options, *chat.view]
        shown.select(take_example, [session], filled, **QUICK)
        page.load(stay_connected, None, None, concurrency_limit=None, **QUIET)
        page.load(opened, [remembered, session], [remembered, session, *filled], **QUICK).then(
            opening, [session, *sliders], [*compared.answers, truth], **{**MODEL, "show_progress": "hidden"}
        )
    return page

"""The tab with the conversation."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from llava_s2.errors import InputError
from llava_s2.serve.chat import Sampling
from llava_s2.serve.demo import show
from llava_s2.serve.demo.events import MODEL, QUICK, bring_in, defers, html, tell_deferred, tells, warn
from llava_s2.serve.demo.page_images import add_image, read_upload
from llava_s2.serve.demo.session import Model, Session


@dataclass(frozen=True)
class ChatTab:
    """The components that other parts of the page set, and what ``view`` shows of a session."""

    question: gr.MultimodalTextbox
    view: list[Any]
    restored: Callable[[Session], list[Any]]


def build_chat(
    models: Sequence[Model],
    chosen: gr.Dropdown,
    session: gr.State,
    gallery: gr.Gallery,
    sampling: list[gr.Slider],
    folder: Path,
    votes: Path | None = None,
) -> ChatTab:
    """Lays the tab out and wires it. ``chosen`` names the one of the models that answers, ``folder`` takes small copies
    of images pasted into the question, ``votes`` the visitors' opinions of answers.
    """
    named = {model.name: model for model in models}
    conversation = gr.Chatbot(
        label="Conversation",
        height=420,
        render_markdown=False,
        buttons=["copy"],
        feedback_options=("Like", "Dislike") if votes else None,
        elem_id="conversation",
        placeholder="Add an image, or take an example, and ask about it.",
    )
    timing = html(elem_id="timing", elem_classes="s2-note")
    ended = html(elem_id="ended", elem_classes="s2-spoken")
    question = gr.MultimodalTextbox(
        label="Question",
        show_label=False,
        placeholder="Ask about the images, or paste one here",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        elem_id="question",
    )
    with gr.Row(elem_classes="s2-buttons"):
        stop = gr.Button("Stop", variant="stop", visible=False, size="sm", min_width=80, elem_id="stop")
        regenerate = gr.Button("Regenerate", interactive=False, size="sm", min_width=80, elem_id="regenerate")
        edit = gr.Button("Edit last question", interactive=False, size="sm", min_width=80, elem_id="edit")
        clear = gr.Button("New chat", size="sm", min_width=80, elem_id="clear")
    with gr.Accordion("Transcript", open=False, elem_id="transcript"):
        # With its label and frame: without, Gradio leaves the button out.
        transcript = gr.Textbox(label="As plain text", lines=4, max_lines=12, buttons=["copy"])
        download = gr.DownloadButton("Download", size="sm", interactive=False, elem_id="download")

    buttons = [stop, regenerate, edit, download]
    view = [conversation, timing, transcript]

    def seen(state: Session) -> tuple[Any, ...]:
        last = state.turns[-1] if state.turns else None
        return show.messages(state.turns), show.timing_line(last) if last else "", show.transcript(state.turns)

    def buttons_of(state: Session) -> list[Any]:
        running, any_turn = any(not turn.ended for turn in state.turns), bool(state.turns)
        file = None
        if any_turn and not running:
            file = folder / f"{id(state):x}" / "transcript.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text(show.transcript(state.turns), encoding="utf-8")
        return [
            gr.Button(visible=running),
            gr.Button(interactive=any_turn and not running),
            gr.Button(interactive=any_turn and not running),
            gr.DownloadButton(value=file, interactive=file is not None),
        ]

    @defers
    def ask(state: Session, box: dict[str, Any], shown: list[tuple[str, str | None]] | None) -> Any:
        bring_in(state, shown, folder)
        for path in box["files"]:
            add_image(state, read_upload(path), folder)
        state.begin(box["text"])
        thumbnails = [one.thumbnail for one in state.images]
        return [{"text": "", "files": []}, thumbnails, *seen(state), *buttons_of(state)]

    @defers
    def ask_again(state: Session) -> Any:
        state.again()
        return restored(state)

    @tells
    def edit_last(state: Session) -> Any:
        return [{"text": state.take_back().question, "files": []}, *seen(state), *buttons_of(state)]

    def answer(state: Session, name: str, temperature: float, top_p: float, most: int) -> Iterator[Any]:
        tell_deferred(state)
        try:
            for _ in state.answer(named[name], Sampling(temperature, top_p, int(most), stop_repetition=True)):
                yield seen(state)
        except InputError as error:  # the question is taken back, and the page must show that
            warn(error)
            yield seen(state)

    def begin_anew(state: Session) -> Any:
        state.clear()
        return restored(state)

    def settle(state: Session) -> Any:
        spoken = f"Answer {state.answered} is complete." if state.answered else ""
        return [*restored(state), spoken]

    def restored(state: Session) -> Any:
        return [*seen(state), *buttons_of(state)]

    for begun in (
        question.submit(ask, [session, question, gallery], [question, gallery, *view, *buttons], **QUICK),
        regenerate.click(ask_again, [session], [*view, *buttons], **QUICK),
    ):
        answered = begun.success(answer, [session, chosen, *sampling], view, **MODEL)
        answered.then(settle, [session], [*view, *buttons, ended], **QUICK)
    stop.click(lambda state: state.stop(), [session], None, **QUICK)
    edit.click(edit_last, [session], [question, *view, *buttons], **QUICK)
    clear.click(begin_anew, [session], [*view, *buttons], **QUICK)
    if votes:
        one_at_a_time = Lock()

        def vote(state: Session, name: str, event: gr.LikeData) -> None:
            place = event.index if isinstance(event.index, int) else event.index[0]
            turn = show.question_of(state.turns, place)
            if turn is not None:
                line = {"time": int(time.time()), "model": name, "liked": event.liked, "question": turn.question}
                with one_at_a_time, votes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "answer": turn.answer.strip()}, ensure_ascii=False) + "\n")

        conversation.like(vote, [session, chosen], None, **QUICK)
    return ChatTab(question, [*view, *buttons], restored)

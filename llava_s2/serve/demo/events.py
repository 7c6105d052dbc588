"""What every event of the page has in common."""

import functools
import inspect
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from llava_s2.errors import InputError
from llava_s2.serve.demo.page_images import sync
from llava_s2.serve.demo.session import Session

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events that answer at once."""
QUICK: dict[str, Any] = {**QUIET, "queue": False}
"""Of events that must not wait for an answer that is being made."""
MODEL: dict[str, Any] = {**QUIET, "show_progress": "minimal", "concurrency_id": "model", "concurrency_limit": 1}
"""Of events that run a model: one at a time, the others wait in the queue."""


def tells(function: Callable) -> Callable:
    """Has a handler's InputError shown on the page, as text: the page would take markup in it for markup."""

    @functools.wraps(function)
    def plain(*args: Any) -> Any:
        try:
            return function(*args)
        except InputError as error:
            raise _shown(error) from None

    @functools.wraps(function)
    def streaming(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except InputError as error:
            raise _shown(error) from None

    return streaming if inspect.isgeneratorfunction(function) else plain


def defers(function: Callable) -> Callable:
    """Has a QUICK handler's InputError told by the event that follows, see ``tell_deferred``.

    Of an event that goes past the queue the page shows neither errors nor warnings.
    """

    @functools.wraps(function)
    def deferring(state: Session, *args: Any) -> Any:
        try:
            return function(state, *args)
        except InputError as error:
            state.trouble = error
            return gr.skip()

    return deferring


def tell_deferred(state: Session) -> None:
    """Shows what a handler that ``defers`` left."""
    if state.trouble:
        warn(state.trouble)
        state.trouble = None


def warn(error: InputError) -> None:
    """Shows an error without ending the handler."""
    gr.Warning(escape(str(error)))


def bring_in(state: Session, gallery: list[tuple[str, str | None]] | None, folder: Path) -> None:
    """Has the session hold what the gallery shows, and tells of uploads that are no images.

    Called by every event that looks at images: a visitor may ask before the upload's own event has come.
    """
    for error in sync(state, [path for path, _ in gallery or []], folder):
        warn(error)


def _shown(error: InputError) -> gr.Error:
    return gr.Error(escape(str(error)), print_exception=False)


def html(text: str = "", **more: Any) -> gr.Markdown:
    """A place for HTML of ``show``. Not ``gr.HTML``: that evaluates templates as JavaScript, which the page forbids."""
    return gr.Markdown(text, latex_delimiters=[], **more)

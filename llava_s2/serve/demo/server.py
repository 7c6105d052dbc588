"""From a page to a server."""

import socket
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from llava_s2.serve.demo.guard import MAX_UPLOAD_BYTES, Guard
from llava_s2.serve.demo.page import CSS, SCRIPT
from llava_s2.serve.demo.page_images import ORIGINALS


def build_app(
    page: gr.Blocks,
    folder: Path,
    auth: list[tuple[str, str]] | None = None,
    *,
    local_names_only: bool = False,
) -> ASGIApp:
    """The page as an application.

    Args:
        page: from ``build_page``.
        folder: as given there; its originals are sent to whoever knows their random names.
        auth: pairs of name and password; without any, everybody is let in.
        local_names_only: see ``Guard``.
    """
    page.queue(default_concurrency_limit=4, max_size=64)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/static/page.js")(lambda: Response(SCRIPT, media_type="text/javascript"))  # inline, the policy forbids it
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[str(folder / ORIGINALS)],
        auth=auth,
        # Fonts that every machine has: Gradio's own would be fetched from the net.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        head='<script src="/static/page.js"></script>',
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        mcp_server=False,
        enable_monitoring=False,
    )
    return Guard(app, local_names_only=local_names_only)


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Runs until SIGINT or SIGTERM, which end open pages after a few seconds."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])

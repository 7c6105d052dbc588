"""From a page to a server: what is mounted where, and what a browser is told not to do."""

from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from llava_s2.serve.demo.page import CSS

MAX_UPLOAD_BYTES = 20 << 20


def build_app(page: gr.Blocks, auth: list[tuple[str, str]] | None = None) -> FastAPI:
    """The page as an application; ``auth`` are the pairs of name and password that are let in."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page.queue(default_concurrency_limit=4, max_size=64)
    font = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=auth,
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        mcp_server=False,
        enable_monitoring=False,
    )


def serve(app: FastAPI, host: str, port: int) -> None:
    """Runs until SIGINT or SIGTERM."""
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)

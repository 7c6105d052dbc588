"""The tab that shows what the model gets of an image."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from llava_s2.serve.demo import show
from llava_s2.serve.demo.events import QUICK, bring_in, html
from llava_s2.serve.demo.pyramid import Sight, pyramid, spot, spot_of_original, with_borders
from llava_s2.serve.demo.session import Model, Session

_SPOT_SIDE = 320


def build_sees(model: Model, session: gr.State, gallery: gr.Gallery, tab: gr.Tab, folder: Path) -> None:
    """Lays the tab out and wires it."""
    sight = Sight.of(model.model, model.processor)
    html(show.sight_paragraph(sight), elem_id="sight")
    timing = html(elem_classes="s2-note", elem_id="sees-timing")
    with gr.Row(elem_classes=["s2-levels", "s2-true-size"]):
        levels = [
            gr.Image(
                label=f"{side}² pixels, {tiles * tiles} tile{'s' * (tiles > 1)}",
                interactive=False,
                buttons=["fullscreen"],
                format="png",
                min_width=150,
                elem_id=f"level-{side}",
            )
            for side, tiles in zip(sight.scales, sight.tiles, strict=True)
        ]
    html(
        show.note(
            "Every scale is shown pixel for pixel, without smoothing. Click a spot to see it at each scale's "
            "resolution, or choose it here:"
        )
    )
    with gr.Row():
        across = gr.Slider(0, 100, 50, step=1, label="Across, %", min_width=130, elem_id="across")
        down = gr.Slider(0, 100, 50, step=1, label="Down, %", min_width=130, elem_id="down")
        share = gr.Slider(4, 40, 12, step=1, label="Side of the spot, %", min_width=130, elem_id="share")
    with gr.Row(elem_classes="s2-levels"):
        spots = [
            gr.Image(
                label=label,
                interactive=False,
                buttons=[],
                format="png",
                min_width=130,
                elem_id=f"spot-{number}",
            )
            for number, label in enumerate([*(f"the spot at {side}²" for side in sight.scales), "in your image"])
        ]
    chosen = gr.State(0)

    one_at_a_time = Lock()  # these events pass by the queue, and a large image takes memory

    def scales_of(state: Session, number: int) -> tuple[Any, Any]:
        image = state.images[min(number, len(state.images) - 1)].squared(state.mode).image
        with one_at_a_time:
            return image, pyramid(image, sight, model.processor)

    def spot_images(image: Any, scales: Any, x: float, y: float, percent: float) -> list[Any]:
        at, part = (x / 100, y / 100), percent / 100
        return [
            *spot(scales, at, part, _SPOT_SIDE),
            spot_of_original(image, sight, at, part, _SPOT_SIDE),
        ]

    def everything(
        state: Session, number: int, x: float, y: float, percent: float, shown: list[tuple[str, str | None]] | None
    ) -> list[Any]:
        bring_in(state, shown, folder)
        answered = [turn for turn in state.turns if turn.reply]
        line = show.timing_line(answered[-1]) if answered else ""
        if not state.images:
            return ["Add an image, or take an example.", *[None] * (len(levels) + len(spots))]
        count = len(state.images)
        image = state.images[min(number, count - 1)].image
        which = f"Image {min(number, count - 1) + 1} of {count}, {image.width} x {image.height} pixels. "
        return [which + (f"Latest answer: {line}" if line else ""), *views(state, number, x, y, percent)]

    def views(state: Session, number: int, x: float, y: float, percent: float) -> list[Any]:
        """Every scale with the spot marked, and the spot at every scale."""
        if not state.images:
            return [None] * (len(levels) + len(spots))
        image, scales = scales_of(state, number)
        marked = [with_borders(scale, (x / 100, y / 100), percent / 100) for scale in scales]
        return [*marked, *spot_images(image, scales, x, y, percent)]

    def clicked_on(side: int) -> Callable[[gr.SelectData], tuple[float, float]]:
        def clicked(event: gr.SelectData) -> tuple[float, float]:
            return round(100 * event.index[0] / side), round(100 * event.index[1] / side)

        return clicked

    def pick(event: gr.SelectData) -> int:
        return event.index

    where = [session, chosen, across, down, share]
    tab.select(everything, [*where, gallery], [timing, *levels, *spots], **QUICK)
    gallery.select(pick, None, [chosen], **QUICK).then(
        everything, [*where, gallery], [timing, *levels, *spots], **QUICK
    )
    for level, side in zip(levels, sight.scales, strict=True):
        level.select(clicked_on(side), None, [across, down], **QUICK).then(views, where, [*levels, *spots], **QUICK)
    for slider in (across, down, share):
        slider.release(views, where, [*levels, *spots], **QUICK)

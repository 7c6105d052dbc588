"""What the page says in words and HTML. All text that a visitor or a model wrote goes through ``html.escape`` here."""

import re
from collections.abc import Sequence
from html import escape
from importlib.metadata import metadata
from typing import Any
from urllib.parse import quote

from llava_s2.serve.demo.likelihood import Weight
from llava_s2.serve.demo.pyramid import Sight
from llava_s2.serve.demo.session import PageImage, Turn

_FINISH = {
    "stop": "",
    "repeated": " · stopped where it began to repeat itself",
    "length": " · cut off at the limit of new tokens",
    "interrupted": " · stopped",
}


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The conversation as a Chatbot takes it."""
    shown: list[dict[str, Any]] = []
    for turn in turns:
        shown += [
            {"role": "user", "content": {"path": image.thumbnail, "alt_text": "an image of this question"}}
            for image in turn.images
        ]
        shown.append({"role": "user", "content": escape(turn.question)})
        if turn.answer.strip():
            shown.append({"role": "assistant", "content": escape(turn.answer.strip())})
        elif turn.reply:
            shown.append({"role": "assistant", "content": "(no answer)"})
    return shown


def question_of(turns: Sequence[Turn], index: int) -> Turn | None:
    """The turn that a message of ``messages`` belongs to, by its place there."""
    for turn in turns:
        index -= len(turn.images) + 1 + bool(turn.answer.strip() or turn.reply)
        if index < 0:
            return turn
    return None


def transcript(turns: Sequence[Turn]) -> str:
    """The conversation as plain text."""
    parts = []
    for turn in turns:
        images = "".join(f"[image {p.image.width} x {p.image.height}] " for p in turn.images)
        parts.append(f"User: {images}{turn.question}\nAssistant: {turn.answer.strip()}\n")
    return "\n".join(parts)


def sight_line(name: str, sight: Sight) -> str:
    """One line on a model: how it looks at an image."""
    scales = " + ".join(f"{side}²" for side in sight.scales)
    return f"{name}: {len(sight.scales)} scale{'s' * (len(sight.scales) > 1)} ({scales} pixels), {sight.tokens} tokens"


def full_size_links(images: Sequence[PageImage]) -> str:
    """Links to the images with all their pixels."""
    links = [
        f"<a href='/gradio_api/file={escape(quote(one.full))}' target='_blank' rel='noopener'>"
        f"{one.image.width} x {one.image.height}</a>"
        for one in images
    ]
    return f"<p class='s2-note'>Enlarge to full resolution: {', '.join(links)}</p>" if links else ""


def truth(question: str, answer: str, found: Sequence[tuple[str, str]] = ()) -> str:
    """What is true of an example, and the ``verdict`` on each model by its name."""
    verdicts = "".join(f" · {escape(name)}: {verdict}" for name, verdict in found if verdict)
    return f"<p>{escape(question)} Truth: <strong>{escape(answer)}</strong>{verdicts}</p>"


def verdict(answer: str, options: Sequence[str]) -> str:
    """Whether an answer to an example's question is the true one (the first option), in a word, or empty."""
    if not options or not answer:
        return ""
    said = [option for option in options if re.search(rf"(?<!\w){re.escape(option.rstrip('.'))}(?!\w)", answer, re.I)]
    is_right = bool(said) and max(said, key=len) == options[0]
    return "<strong class='s2-right'>✓ right</strong>" if is_right else "<strong class='s2-wrong'>✗ wrong</strong>"


def timing_line(turn: Turn) -> str:
    """Where an answer's time went, or an empty string while there is none."""
    if turn.reply is None or turn.timing is None:
        return "stopped before the first word" if turn.ended and turn.stopped else ""
    reply, timing = turn.reply, turn.timing
    later = max(reply.new_tokens - 1, 0)
    rate = f" ({later / timing.decode:.0f} a second)" if later and timing.decode else ""
    known = reply.known_images
    seen = f" ({known} image{'s' * (known > 1)} known already)" if known else ""
    return (
        f"vision tower {timing.tower:.2f} s{seen} · prompt of {reply.prompt_tokens} tokens {timing.prefill:.2f} s · "
        f"{reply.new_tokens} new tokens {timing.decode:.2f} s{rate}{_FINISH[reply.finish]}"
    )


def likelihood_table(name: str, weights: Sequence[Weight]) -> str:
    """A table of weighed options with bars."""
    least = min(weight.loss for weight in weights)
    rows = [
        f"<tr><th scope='row'>{escape(weight.option)}</th>"
        f"<td><div class='s2-bar' style='width:{100 * weight.probability:.1f}%'></div></td>"
        f"<td>{weight.probability:.1%}</td><td>{weight.loss:.3f}{' (V* choice)' * (weight.loss == least)}</td></tr>"
        for weight in weights
    ]
    return (
        f"<table class='s2-options'><caption>{escape(name)}</caption>"
        "<thead><tr><th scope='col'>option</th><th scope='col'></th><th scope='col'>probability</th>"
        f"<th scope='col'>loss a token</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def note(text: str) -> str:
    """A line in small print."""
    return f"<p class='s2-note'>{escape(text)}</p>"


def headline(name: str, sight: Sight, about: str = "") -> str:
    """The top of the page: what this is, in a line, and where to read on. ``about`` says what the model can do."""
    urls = dict(line.split(", ", 1) for line in metadata("llava-s2").get_all("Project-URL") or [])
    links = " · ".join(
        f"<a href='{escape(url)}' target='_blank' rel='noopener'>{label}</a>"
        for label, url in (("Paper", urls.get("Paper")), ("Docs", urls.get("Documentation")))
        if url
    )
    return (
        "<h1 class='s2-title'>LLaVA-S²</h1><p class='s2-note'>Ask about small details: this vision-language model "
        f"looks at every image at several scales at once. {escape(about)}<br>{escape(sight_line(name, sight))}. "
        f"{links} · Licence: Apache-2.0</p>"
    )


def sight_paragraph(sight: Sight) -> str:
    """How many tiles, features and tokens an image makes."""
    grid = round(sight.tokens**0.5)
    count = sum(tiles * tiles for tiles in sight.tiles)
    return (
        f"<p>{count} tile{'s' * (count > 1)} of {sight.scales[0]} by {sight.scales[0]} pixels go through the vision "
        f"tower. Every scale's features are averaged to one {grid} by {grid} grid and stand side by side in it: "
        f"<strong>{sight.tokens} visual tokens</strong> of {sight.channels} numbers, whatever the image's size.</p>"
    )

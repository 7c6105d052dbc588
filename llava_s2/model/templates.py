"""Conversation templates as chat templates (Jinja), saved with the processor.

The wording is the format that the checkpoints were trained on: ``vicuna_v1`` is LLaVA-1.5's ``v1``, ``llama_2`` its
``llava_llama_2``, ``plain`` its stage 1 (image, caption, newline); ``chatml`` is the format of SmolLM2, Qwen and
others. ``{% generation %}`` encloses a reply, its text and the token that ends it: the loss mask.

A message's content is either a string in which ``<image>`` marks an image (LLaVA's records) or a list of parts
``{"type": "image"}`` and ``{"type": "text", "text": …}``. As in LLaVA, a single image goes in front of its message.

Any other chat template serves too: a language model's own, or a Jinja file (`find_template`).
"""

import json
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError

IMAGE_TOKEN = "<image>"
IMAGE_START_TOKEN, IMAGE_END_TOKEN = IMAGE_MARKERS = "<im_start>", "<im_end>"

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_CHATML_SYSTEM = "You are a helpful assistant."

# vLLM reads from the loops over messages and contents that it has to hand on contents in parts; it follows a slice of
# `messages` into them, and no other expression.
# Shared by all: `system`, the messages after it, and a message's text with its image first.
_PREAMBLE = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else SYSTEM -%}"
    "{%- set turns = messages[(1 if messages[0].role == 'system' else 0):] -%}"
    "{%- macro said(content) -%}"
    "{%- if content is string -%}{%- set ns = namespace(text=content) -%}"
    "{%- else -%}{%- set ns = namespace(text='') -%}"
    "{%- for part in content -%}"
    "{%- set ns.text = ns.text + ('<image>\\n' if part.type == 'image' else part.text) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if ns.text.count('<image>') == 1 and not ns.text.startswith('<image>\\n') -%}"
    "{%- set ns.text = ('<image>\\n' + ns.text.replace('<image>', '').strip()).strip() -%}"
    "{%- endif -%}"
    "{{- ns.text.replace('<image>', IMAGE) -}}"
    "{%- endmacro -%}"
)

_VICUNA_V1 = (
    "{{- said(system) + ' ' -}}"
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}{{- 'USER: ' + said(turn.content) + ' ' -}}"
    "{%- else -%}{{- 'ASSISTANT:' -}}"
    "{% generation %}{{- ' ' + said(turn.content) + eos_token -}}{% endgeneration %}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)

_LLAMA_2 = (
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}"
    "{{- ('' if loop.first else bos_token | default('', true)) + '[INST] ' -}}"
    "{%- if loop.first and system -%}{{- '<<SYS>>\\n' + said(system) + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}"
    "{{- said(turn.content) + ' [/INST]' -}}"
    "{%- else -%}"
    "{% generation %}{{- ' ' + said(turn.content) + ' ' + eos_token -}}{% endgeneration %}"
    "{%- endif -%}"
    "{%- endfor -%}"
)

# Stage 1 shows the images and no words: what the human says is dropped.
_PLAIN = (
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}{{- '<image>' * said(turn.content).count('<image>') -}}"
    "{%- else -%}{% generation %}{{- said(turn.content) + '\\n' -}}{% endgeneration %}"
    "{%- endif -%}"
    "{%- endfor -%}"
)

_CHATML = (
    "{{- '<|im_start|>system\\n' + said(system) + '<|im_end|>\\n' -}}"
    "{%- for turn in turns -%}"
    "{{- '<|im_start|>' + turn.role + '\\n' -}}"
    "{%- if turn.role == 'user' -%}{{- said(turn.content) + '<|im_end|>' -}}"
    "{%- else -%}{% generation %}{{- said(turn.content) + '<|im_end|>' -}}{% endgeneration %}"
    "{%- endif -%}{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _template(system: str, body: str) -> str:
    constants = f'{{%- set SYSTEM = "{system}" -%}}{{%- set IMAGE = "{IMAGE_TOKEN}" -%}}'
    return constants + _PREAMBLE + body


TEMPLATES: dict[str, str] = {
    "vicuna_v1": _template(_VICUNA_SYSTEM, _VICUNA_V1),
    "llama_2": _template(_LLAMA_2_SYSTEM, _LLAMA_2),
    "plain": _template("", _PLAIN),
    "chatml": _template(_CHATML_SYSTEM, _CHATML),
}


def with_image_start_end(template: str) -> str:
    """The same chat template for a checkpoint of LLaVA's ``mm_use_im_start_end``: every image between two markers."""
    plain = f'{{%- set IMAGE = "{IMAGE_TOKEN}" -%}}'
    marked = f'{{%- set IMAGE = "{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}" -%}}'
    return template.replace(plain, marked)


OWN = "own"
TEMPLATE_HELP = f"conversation template: {', '.join(TEMPLATES)}, own (the language model's), or a Jinja file"
LLAVA_NAMES = {"v1": "vicuna_v1", "llava_llama_2": "llama_2"}
_PROBE = "\ue000probe\ue001"  # of no template's own text


def find_template(name: str | Path, own: str | None = None) -> str:
    """The chat template (Jinja text) that a name stands for.

    Args:
        name: a name in ``TEMPLATES`` or LLaVA's for one of them (``v1``, ``llava_llama_2``); ``own``; a Jinja file, a
            ``tokenizer_config.json`` or a folder with one of them; or Jinja text itself.
        own: the chat template of the model's tokenizer.

    Raises:
        InputError: there is no such template.
    """
    text = str(name)
    text = LLAVA_NAMES.get(text, text)
    if text in TEMPLATES:
        return TEMPLATES[text]
    if text == OWN:
        if not own:
            raise InputError(
                f"--template own: the model's tokenizer has no chat template; name one of {', '.join(TEMPLATES)}, or a "
                "Jinja file"
            )
        return own
    if "{%" in text or "{{" in text:
        return text
    path = Path(text)
    files = [path, path / "chat_template.jinja", path / "chat_template.json", path / "tokenizer_config.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise InputError(
            f"--template {text}: not known; use {', '.join(TEMPLATES)}, own (the language model's) or a Jinja file"
        )
    try:
        text = file.read_text("utf-8")
        text = json.loads(text)["chat_template"] if file.suffix == ".json" else text
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--template {file}: holds no chat template") from None
    if not isinstance(text, str) or not ("{%" in text or "{{" in text):
        raise InputError(f"--template {file}: is no Jinja text")
    return text


def template_name(chat_template: str | None) -> str | None:
    """The name of a chat template in ``TEMPLATES``; None of another."""
    return next((name for name, text in TEMPLATES.items() if text == chat_template), None)


def render(chat_template: str, messages: list[dict[str, Any]], **values: Any) -> str:
    """A conversation's text, as ``apply_chat_template`` renders it.

    Args:
        messages: ``{"role": …, "content": …}``.
        values: what the template reads besides: ``bos_token``, ``add_generation_prompt`` …

    Raises:
        InputError: the template is no Jinja, or it refuses these messages.
    """
    return render_with_marks(chat_template, messages, **values)[0]


def render_with_marks(
    chat_template: str, messages: list[dict[str, Any]], **values: Any
) -> tuple[str, list[tuple[int, int]]]:
    """As `render`, and start and end of each ``{% generation %}`` block in the text."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    known: dict[str, Any] = {"bos_token": "", "eos_token": "", **{name: value or "" for name, value in values.items()}}
    # What apply_chat_template does inside; called whole, it differs between transformers versions in how it maps the
    # answers' characters to tokens, and newer ones refuse an image placeholder without its image.
    try:
        rendered: Any = render_jinja_template(
            [_in_its_form(chat_template, messages)],
            chat_template=chat_template,
            return_assistant_tokens_mask=marks_replies(chat_template),
            **known,
        )
    except (TemplateError, TypeError) as error:
        raise InputError(f"the chat template refuses the conversation: {' '.join(str(error).split())}") from None
    (text,), marks = rendered
    return text, [tuple(mark) for mark in marks[0]] if marks else []


def _in_its_form(chat_template: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with their texts as lists of parts, where the chat template takes nothing else."""
    line_break = _line_break_of_parts(chat_template)
    if line_break is None:
        return messages
    made = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            pieces = content.split(IMAGE_TOKEN)
            content = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
            for piece in pieces[1:]:
                content += [{"type": "image"}, {"type": "text", "text": piece.removeprefix(line_break)}]
        made.append({**message, "content": content})
    return made


@lru_cache
def _line_break_of_parts(chat_template: str) -> str | None:
    """None where a chat template takes texts; else what it writes itself between an image and the text behind it."""
    if "content" not in chat_template or "type" not in chat_template:
        return None
    environment: Any = {"chat_template": chat_template, "bos_token": "", "eos_token": ""}
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    def text(content: Any) -> str:
        try:
            return str(render_jinja_template([[{"role": "user", "content": content}]], **environment)[0][0])
        except (TemplateError, TypeError):
            return ""

    if _PROBE in text(_PROBE):
        return None
    _, image, rest = text([{"type": "image"}, {"type": "text", "text": _PROBE}]).partition(IMAGE_TOKEN)
    if not image or _PROBE not in rest:
        return None
    return "\n" if rest.startswith("\n") else ""


def marks_replies(chat_template: str) -> bool:
    """Whether a chat template encloses replies in ``{% generation %}``."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None


def takes_system(chat_template: str) -> bool:
    """Whether a chat template has a place for a system message, rather than refusing or dropping it."""
    try:
        return "system messages" not in _lost(chat_template, ("system", "user"))
    except InputError:
        return False


def check_keeps_words(chat_template: str) -> None:
    """Looks whether a chat template writes what people and the model say, and marks replies and nothing else as such.

    A system message need not have a place: records that have one are refused then. ``plain`` is meant to keep no words
    of a question.

    Raises:
        InputError: something of a conversation is lost; or the template refuses a question with its answer.
    """
    if chat_template == TEMPLATES["plain"]:
        return
    lost = _lost(chat_template, ("user", "assistant"))
    if not lost:
        with suppress(InputError):  # it may be made for one round alone
            lost = _lost(chat_template, ("user", "assistant") * 2)
    if lost:
        raise InputError(
            f"the chat template drops, changes or marks wrongly {' and '.join(lost)}, so a model would not learn what "
            "the records say; name another one with --template"
        )


@lru_cache
def _lost(chat_template: str, roles: tuple[str, ...]) -> list[str]:
    """What of a conversation between these roles a chat template does not write as it is said, or marks wrongly."""
    said = [f"{_PROBE}{number}\ue001" for number in range(len(roles))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    messages[roles.index("user")]["content"] = f"{IMAGE_TOKEN}\n{said[roles.index('user')]}"
    text, replies = render_with_marks(chat_template, messages)
    lost = [] if IMAGE_TOKEN in text else ["images"]
    for number, (role, words) in enumerate(zip(roles, said, strict=True)):
        place, is_last = text.find(words), role not in roles[number + 1 :]
        is_marked = any(start <= place < end for start, end in replies)
        # Earlier replies may be left out of what is learnt.
        should_be_marked = marks_replies(chat_template) and role == "assistant" and (is_last or is_marked)
        if place < 0 or is_marked != should_be_marked:
            name = {"user": "questions", "assistant": "answers"}.get(role, "system messages")
            lost.append(name if is_last else f"earlier {name}")
    return lost


@lru_cache
def end_of_turn(chat_template: str, eos_token: str) -> str:
    """The token that ends a reply in this chat template, given the tokenizer's own end-of-sequence token."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    try:
        _, found, rest = render(chat_template, messages, eos_token=eos_token).rpartition(_PROBE)
    except InputError:
        return eos_token
    end = re.match(r"\s*(<[^<>\s]+>)", rest)
    return end[1] if found and end else eos_token

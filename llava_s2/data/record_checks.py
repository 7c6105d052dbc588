"""One record looked at whole: every fault that it has, not the first alone."""

from dataclasses import dataclass, field
from typing import Any

from llava_s2.data.conversation import to_messages
from llava_s2.data.faults import RecordFault
from llava_s2.data.image_decoding import Embedded
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.records import images_of
from llava_s2.model.templates import IMAGE_TOKEN


@dataclass
class Look:
    """What was seen of a record.

    Attributes:
        messages: its turns as chat messages; None where they cannot be trained on.
        images: what it names, in order.
        faults: all there are, each kind once.
    """

    messages: list[dict[str, str]] | None = None
    images: list[str | Embedded] = field(default_factory=list)
    faults: list[RecordFault] = field(default_factory=list)

    @property
    def refused(self) -> RecordFault | None:
        """The first fault that training refuses."""
        return next((fault for fault in self.faults if fault.kind != "empty_turn"), None)


def look_at(record: dict[str, Any], template: str, files: ImageFiles, *, decode: bool = False) -> Look:
    """Checks turns, placeholders and images.

    Args:
        record: LLaVA's.
        template: a conversation template's name.
        files: where its images are.
        decode: to open every image, rather than to look whether it is there.
    """
    look = Look()

    def note(fault: RecordFault) -> None:
        if all(fault.kind != other.kind for other in look.faults):
            look.faults.append(fault)

    turns = record.get("conversations", [])
    try:
        look.messages = to_messages(turns, template)
    except RecordFault as fault:
        if "conversations" in record or "messages" not in record:
            note(fault)
        else:
            note(RecordFault("malformed", 'has "messages", not "conversations": [{"from": "human", "value": …}, …]'))
    try:
        look.images = images_of(record)
    except RecordFault as fault:
        note(fault)
        return look
    texts = _texts(turns)
    tags = sum(text.count(IMAGE_TOKEN) for text in texts)
    if texts and tags != len(look.images):
        way_out = f"; write {IMAGE_TOKEN} in the question, where the image belongs" if not tags else ""
        note(
            RecordFault(
                "image_placeholders", f'{tags} {IMAGE_TOKEN} in its turns, but {len(look.images)} in "image"{way_out}'
            )
        )
    for image in look.images:
        try:
            if decode:
                files.open(image)
            elif isinstance(image, str):
                files.find(image)
        except RecordFault as fault:
            note(fault)
    for number, text in enumerate(texts):
        if not text.strip():
            note(RecordFault("empty_turn", f"turn {number} is empty"))
    return look


def _texts(turns: Any) -> list[str]:
    """The words of every turn, as far as there are any; an answer before the first question is not trained on."""
    if not isinstance(turns, list):
        return []
    turns = turns[1:] if turns and isinstance(turns[0], dict) and turns[0].get("from") == "gpt" else turns
    values = [turn.get("value") for turn in turns if isinstance(turn, dict)]
    return [value for value in values if isinstance(value, str)]

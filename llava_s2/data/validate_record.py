"""One record validated as a whole: every fault that it has, not the first alone."""

from dataclasses import dataclass, field
from typing import Any

from llava_s2.data.conversation import to_messages
from llava_s2.data.image_decoding import Embedded
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.record_shapes import Turn, count_images, images_of, read_turns
from llava_s2.data.validation_error import WARNINGS, ValidationError
from llava_s2.model.templates import IMAGE_TOKEN


@dataclass
class Validation:
    """What was found in a record.

    Attributes:
        messages: its turns as chat messages; None where they cannot be trained on.
        images: what it names, in order.
        faults: all there are, each kind once.
    """

    messages: list[dict[str, Any]] | None = None
    images: list[str | Embedded] = field(default_factory=list)
    faults: list[ValidationError] = field(default_factory=list)

    @property
    def error(self) -> ValidationError | None:
        """The first fault that training refuses."""
        return next((fault for fault in self.faults if fault.kind not in WARNINGS), None)

    def add(self, fault: ValidationError) -> None:
        """Adds a fault, unless there is one of its kind."""
        if all(fault.kind != other.kind for other in self.faults):
            self.faults.append(fault)


def validate_record(
    record: dict[str, Any], chat_template: str, files: ImageFiles, *, decode: bool = False
) -> Validation:
    """Checks turns, placeholders and images.

    Args:
        record: of any shape that `llava_s2.data.record_shapes` knows.
        chat_template: Jinja text.
        files: where its images are.
        decode: to open every image, rather than to look whether it is there.
    """
    found = Validation()
    turns: list[Turn] = []
    try:
        turns = read_turns(record)
        found.messages = to_messages(turns, chat_template)
    except ValidationError as fault:
        found.add(fault)
    try:
        found.images = images_of(record)
    except ValidationError as fault:
        found.add(fault)
        return found
    spoken = [turn for turn in turns if turn.role != "system"]
    if spoken and spoken[0].role == "assistant":  # it is not trained on
        del spoken[0]
    tags = sum(count_images(turn.text) for turn in spoken)
    if spoken and tags != len(found.images):
        key = '"images"' if record.get("image") is None and record.get("images") else '"image"'
        way_out = f"; write {IMAGE_TOKEN} in the question, where the image belongs" if not tags else ""
        found.add(
            ValidationError(
                "image_placeholders", f"{tags} {IMAGE_TOKEN} in its turns, but {len(found.images)} in {key}{way_out}"
            )
        )
    for image in found.images:
        try:
            if decode:
                files.open(image)
            elif isinstance(image, str):
                files.find(image)
        except ValidationError as fault:
            found.add(fault)
    for number, turn in enumerate(spoken):
        if not turn.text.strip():
            found.add(ValidationError("empty_turn", f"turn {number} is empty"))
    return found

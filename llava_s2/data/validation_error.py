"""What can be wrong with a training record, by kind: the same words in training's errors and in ``data check``."""

from llava_s2.errors import InputError

KINDS = {
    "malformed": "no JSON, or not what a training record holds",
    "roles": "turns that are not a human's and the model's in turn",
    "image_placeholders": "<image> in the turns and images do not fit",
    "missing_image": "an image that is not there",
    "corrupt_image": "an image that cannot be opened",
    "no_target": "no answer to learn",
    "empty_turn": "a turn without text",
    "too_long": "more tokens than the maximum length; training cuts the end off",
    "duplicate_id": "an id that an earlier record has",
}
"""Kind -> what it means."""

WARNINGS = ("empty_turn", "too_long", "duplicate_id")
"""The kinds that training trains on and warns of; it refuses the others."""


class ValidationError(InputError):
    """Bad input in one record.

    Attributes:
        kind: a key of ``KINDS``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # it travels from DataLoader workers
        return ValidationError, (self.kind, str(self))

"""Images to try the page with, drawn when it starts: small things on large photographs, as the method is for."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava_s2.synthetic.scene_questions import color_questions, naming_questions, relation_questions
from llava_s2.synthetic.scenes import SceneConfig, make_scene

ABOUT = "This small one was trained on drawn things on photographs: it names 150 of them, and knows little else."
"""What the shipped model can do, for the page's first line."""

# Of photographs whose question the shipped model answers right.
_ASKED = {40_006: naming_questions, 40_000: color_questions, 40_010: relation_questions}


@dataclass(frozen=True)
class Example:
    """An image, a question about it and possible answers, the true one first."""

    image: Image.Image
    question: str
    options: tuple[str, ...]


def examples() -> list[Example]:
    """A few photographs of the held-out split, 2000 pixels large, with things of 63 to 89 pixels."""
    config = SceneConfig(side=(2000, 2000))
    shown = []
    for seed, ask in _ASKED.items():
        scene = make_scene("test", seed, config)
        question = ask(scene, np.random.default_rng(seed))[0]
        shown.append(Example(scene.image, question.text, question.options))
    return shown

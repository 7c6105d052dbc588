"""The tiny reference model for whole runs through the command line."""

from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
MODEL = ["--model", str(GOLDEN / "llava-tiny-s2"), "--vision_tower", str(GOLDEN / "clip-tiny"), "--dtype", "float32"]

"""The image processor of a LLaVA-S2: stock LLaVA's, always on PIL."""

from transformers import LlavaImageProcessorPil


class S2ImageProcessor(LlavaImageProcessorPil):
    """LLaVA's image preparation with PIL's resampling, which the checkpoints were trained on.

    It has a name of its own because `AutoProcessor` would load stock LLaVA's class with torchvision, whose resampling
    rounds otherwise: up to two of 255 levels, and logits that differ in the third decimal.
    """

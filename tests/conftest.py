"""What every process of tests imports once, kept out of the garbage collector's way.

accelerate and DeepSpeed collect garbage at every start, end and save of a training; each time the collector would walk
through a million objects of modules that stay.
"""

import gc

import transformers.trainer  # noqa: F401

import llava_s2.formats.load  # noqa: F401

gc.collect()
gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()

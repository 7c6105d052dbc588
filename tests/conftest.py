"""Keeps what the tests have imported out of the garbage collector's way.

accelerate and DeepSpeed collect garbage at every start, end and save of a training; each time the collector would walk
through a million objects of modules that stay.
"""

import gc


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()

"""What vLLM runs when it starts: its entry point ``vllm.general_plugins`` makes the S² tower known to it."""

from importlib.metadata import version

OLDEST, NEWEST = (0, 32), (0, 33)
"""Versions of vLLM that answered as ``generate`` does: from the first up to, but without, the second."""


def register() -> None:
    """Registers the model type ``s2_vision`` in a vLLM process. vLLM then runs the model by its transformers backend.

    Raises:
        RuntimeError: a version of vLLM with which this was not tried, or whose transformers is too old.
    """
    import vllm

    release = tuple(map(int, vllm.__version__.split(".")[:2]))
    if not OLDEST <= release < NEWEST:
        raise RuntimeError(
            f"llava-s2 was tried with vLLM {'.'.join(map(str, OLDEST))}, and this is {vllm.__version__}: "
            f"pip install 'vllm=={'.'.join(map(str, OLDEST))}.*', or set VLLM_PLUGINS='' to go without llava-s2"
        )
    if tuple(map(int, version("transformers").split(".")[:2])) < (5, 16):
        raise RuntimeError(f"llava-s2 needs transformers 5.16 or newer; this is {version('transformers')}")
    import llava_s2.s2  # noqa: F401

"""The quantizations that ``load_pretrained`` takes. Their names are here without torch, for the command line."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llava_s2.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

BITSANDBYTES, INT8 = ("4bit", "8bit"), ("int8", "int8-all")  # on a GPU, on a CPU
UNQUANTIZED = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]  # matched from the front


def check_int8_is_possible(quantization: str, device_map: str | dict[str, Any] | None = None) -> None:
    """Raises InputError where int8 weights do not work: on a GPU, or on a processor without fast int8 products."""
    from llava_s2.s2.int8 import check_int8

    if device_map not in (None, "cpu", {"": "cpu"}):
        raise InputError(f'quantization={quantization} is for a CPU; on a GPU use "8bit" or "4bit"')
    try:
        check_int8()
    except ValueError as error:
        raise InputError(f"quantization={quantization}: {error}") from None


def quantization_config(quantization: str, dtype: "str | torch.dtype" = "auto") -> "BitsAndBytesConfig":
    """How bitsandbytes quantizes the language model; the tower, the projector and the head keep their dtype.

    Raises:
        InputError: another name than "4bit" or "8bit", no bitsandbytes, or no GPU.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantization not in BITSANDBYTES:
        raise InputError(f"quantization {quantization!r} is not known; use one of {', '.join(BITSANDBYTES + INT8)}")
    if find_spec("bitsandbytes") is None:
        raise InputError(f"quantization={quantization} needs bitsandbytes: pip install 'llava-s2[train]'")
    if not torch.cuda.is_available():
        raise InputError(f"quantization={quantization} needs a GPU, and torch sees none; leave it out to use the CPU")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=UNQUANTIZED,
    )

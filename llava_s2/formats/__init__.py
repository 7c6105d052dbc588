"""Checkpoint formats: transformers', LLaVA's and PEFT's, told apart, read, written, inspected and converted."""

import logging
import warnings

# Of what PEFT does, and nobody here can act upon: bitsandbytes, which it imports, has no faster kernel for 4-bit
# weights on a CPU; DeepSpeed, which it looks for, finds no GPU; and it asks transformers by an older name whether
# activations are checkpointed.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit" not in record.getMessage())
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

"""Names of the quantizations that ``load_pretrained`` takes, without torch, for the command line."""

BITSANDBYTES, INT8 = ("4bit", "8bit"), ("int8", "int8-all")  # on a GPU, on a CPU

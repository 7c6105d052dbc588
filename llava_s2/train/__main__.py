"""``torchrun … -m llava_s2.train finetune …``: the same program as ``llava-s2 train finetune …``.

So is ``deepspeed --module llava_s2.train …`` with the flags of one of LLaVA's scripts behind it.
"""

import sys

from llava_s2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

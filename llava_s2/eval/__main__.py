"""``torchrun … -m llava_s2.eval TASK …``: the same program as ``llava-s2 eval TASK …``."""

import sys

from llava_s2.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))

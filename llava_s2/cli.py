"""``llava-s2``: the command line.

Each part of the package has a ``…_cli`` module that adds its own subcommands; those modules import torch only inside
the functions that run, so that ``--help`` answers at once.
"""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence

from llava_s2 import __version__
from llava_s2.errors import InputError
from llava_s2.threads import choose_threads
from llava_s2.train.llava_flags import with_stage

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""Errors of writing, in which the system names no file."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; every subcommand sets ``run``, a function of the parsed arguments."""
    from llava_s2 import quickstart
    from llava_s2.bench import bench_cli
    from llava_s2.data import data_cli
    from llava_s2.eval import eval_cli
    from llava_s2.formats import checkpoint_cli
    from llava_s2.serve import chat_cli
    from llava_s2.serve.api import serve_cli
    from llava_s2.studies import study_cli
    from llava_s2.train import train_cli

    parser = argparse.ArgumentParser(prog="llava-s2", description="LLaVA that sees fine detail: S2 multi-scale vision.")
    parser.add_argument("--version", action="version", version=f"llava-s2 {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (
        quickstart,
        data_cli,
        train_cli,
        eval_cli,
        chat_cli,
        serve_cli,
        checkpoint_cli,
        bench_cli,
        study_cli,
    ):
        part.add_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or 2 for input that is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["train"]:
        words[1:] = with_stage(words[1:])
    args, rest = build_parser().parse_known_args(words)
    if rest and not getattr(args, "takes_more_flags", False):
        build_parser().error(f"unrecognized arguments: {' '.join(rest)}")
    args.more_flags = rest
    args.main = main  # for commands that run other commands
    _hush()
    choose_threads()
    try:
        return args.run(args) or 0
    except InputError as error:
        print(f"llava-s2: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of a file that cannot be read or written; any other is a fault of this program
        if error.filename is None and error.errno not in _OF_DISKS:
            raise
        name = error.filename2 or error.filename or "writing"  # the second is what a file should have been renamed to
        print(f"llava-s2: error: {name}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llava-s2: stopped", file=sys.stderr)
        return 130


def _hush() -> None:
    """Keeps from the terminal what packages say and nobody here can act upon; see also ``llava_s2.formats``."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # of --dataloader_num_workers, twice a run
    # Progress of what is over in a moment: tqdm, when it is imported, takes this as every bar's default.
    os.environ.setdefault("TQDM_DELAY", "5")


if __name__ == "__main__":
    sys.exit(main())

"""``llava-s2 chat`` and ``llava-s2 demo``."""

import argparse
import json
from dataclasses import asdict, replace

from llava_s2.errors import InputError
from llava_s2.formats.model_source import ModelSource, add_model_arguments
from llava_s2.serve.demo.demo_cli import add_demo
from llava_s2.serve.sampling_flags import add_sampling_arguments


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the commands to the command line."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model about images",
        description="Without --prompt: an interactive chat. Ctrl-C stops an answer.",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--image", action="extend", nargs="+", default=[], metavar="X", help="image(s) shown with the first message"
    )
    parser.add_argument("--prompt", metavar="P", help="ask this, print the answer and leave")
    parser.add_argument("--json", action="store_true", help="with --prompt: print the answer as one JSON object")
    add_sampling_arguments(parser)
    parser.set_defaults(run=_chat)
    add_demo(subparsers)


def _chat(args: argparse.Namespace) -> None:
    from llava_s2.data.image_decoding import open_image

    if args.json and args.prompt is None:
        raise InputError("--json needs --prompt")
    if args.prompt is not None and not args.prompt.strip():
        raise InputError("--prompt is empty")
    images = [open_image(path) for path in args.image]  # before the weights: a bad image should not cost minutes
    source = ModelSource.from_arguments(args)
    if source.model is None:
        from llava_s2.model.embedded import default_model

        source = replace(source, model=str(default_model()))

    from llava_s2.serve.chat import Chat, Sampling
    from llava_s2.serve.terminal import interact, print_answer

    model, processor = source.load()
    chat = Chat(model, processor, Sampling(args.temperature, args.top_p, args.max_new_tokens))
    for image in images:
        chat.add_image(image)
    if args.prompt is None:
        interact(chat)
    elif not args.json:
        print_answer(chat, args.prompt)
    else:
        for _ in chat.ask(args.prompt):
            pass
        assert chat.reply is not None
        print(json.dumps({**asdict(chat.reply), "model": source.model, "images": args.image}, ensure_ascii=False))

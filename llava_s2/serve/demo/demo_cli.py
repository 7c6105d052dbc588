"""``llava-s2 demo``."""

import argparse
import os
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from llava_s2.errors import InputError, require
from llava_s2.formats.model_source import ModelSource, add_model_arguments
from llava_s2.serve.sampling_flags import add_sampling_arguments


def add_demo(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="talk with a model about images in a browser, and see what it sees",
        description="A page with chat, a comparison with a baseline, likelihoods of answers, and what the model sees.",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--baseline",
        metavar="M",
        help="checkpoint to compare with (default: the single-scale baseline of a quickstart here, if no --model "
        "is named; else the model itself, shown the image shrunk to its first scale)",
    )
    parser.add_argument(
        "--more-models", nargs="+", default=[], metavar="M", help="checkpoints that the visitor may choose instead"
    )
    add_sampling_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--allow-urls", action="store_true", help="fetch images by their address on the public internet"
    )
    parser.add_argument(
        "--votes-file",
        type=Path,
        metavar="F",
        help="let visitors vote on answers, and add their votes to this file of JSON lines",
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument(
        "--auth-file", type=Path, metavar="F", help="let in only who knows a line of this file, each NAME:PASSWORD"
    )
    access.add_argument("--no-auth", action="store_true", help="let in everybody, on a public --host too")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    require("demo", "gradio", "httpcore")
    from llava_s2.serve.api.access import is_loopback

    auth = _read_auth(args.auth_file) if args.auth_file else None
    if not (is_loopback(args.host) or auth or args.no_auth):
        raise InputError(f"--host {args.host} is open to others: say who may come in with --auth-file, or --no-auth")
    source, baseline = _sources(args)
    with (
        _listen(args.host, args.port) as listener,  # before the weights
        tempfile.TemporaryDirectory(prefix="llava-s2-demo-") as folder,
    ):
        # Where gradio keeps what is uploaded: it goes when the program does.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "cache")
        _serve(args, source, baseline, auth, listener, Path(folder))


def _serve(
    args: argparse.Namespace,
    source: ModelSource,
    baseline: ModelSource | None,
    auth: list[tuple[str, str]] | None,
    listener: socket.socket,
    folder: Path,
) -> None:
    from llava_s2.serve.demo.demo_examples import ABOUT, examples
    from llava_s2.serve.demo.page import build_page
    from llava_s2.serve.demo.server import build_app, serve
    from llava_s2.serve.demo.session import Model

    sources = [source, *(replace(source, model=name, vision_tower=None) for name in args.more_models)]
    models = [Model(_public_name(one), *one.load()) for one in sources]
    if len({model.name for model in models}) < len(models):
        raise InputError("--more-models: two models have the same name; rename a folder")
    compared = Model(_public_name(baseline), *baseline.load()) if baseline else None
    loaded = time.perf_counter()
    sampling = (args.temperature, args.top_p, args.max_new_tokens)
    page = build_page(
        models,
        compared,
        examples(),
        folder,
        sampling,
        allow_urls=args.allow_urls,
        about=ABOUT if args.model is None else "",
        votes=args.votes_file,
    )
    app = build_app(page, folder, auth, local_names_only=not (auth or args.no_auth))
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"{address}  (ready {time.perf_counter() - loaded:.1f} s after the model; Ctrl-C ends)", flush=True)
    serve(app, listener)


def _sources(args: argparse.Namespace) -> tuple[ModelSource, ModelSource | None]:
    """What answers, and what it is compared with if that is another checkpoint."""
    from llava_s2.model.embedded import QUICKSTART_FOLDER, default_model, is_finished

    source = ModelSource.from_arguments(args)
    baseline = args.baseline
    if source.model is None:
        source = replace(source, model=str(default_model()))
        single = QUICKSTART_FOLDER / "models" / "single"
        if baseline is None and Path(str(source.model)).is_relative_to(QUICKSTART_FOLDER) and is_finished(single):
            baseline = str(single)
    # The baseline has a tower of its own; a language model or a way to round is asked for once, for both.
    return source, replace(source, model=baseline, vision_tower=None) if baseline else None


def _public_name(source: ModelSource) -> str:
    """What the page calls a model: not where it lies on this machine."""
    from llava_s2.model.embedded import QUICKSTART_FOLDER, shipped_model

    path = Path(str(source.model))
    if path == shipped_model():
        return "The shipped model"
    known = {"s2": "Your quickstart's model", "single": "Its single-scale baseline"}
    if path.parent == QUICKSTART_FOLDER / "models" and path.name in known:
        return known[path.name]
    return path.resolve().name if path.is_dir() else str(path)


def _read_auth(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    pairs = [(number, *line.partition(":")) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, name, colon, password in pairs:
        if not (name and colon and password):
            raise InputError(f"{path}: line {number} is not NAME:PASSWORD")
    if not pairs:
        raise InputError(f"{path}: holds no line NAME:PASSWORD")
    return [(name, password) for _, name, _, password in pairs]


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:  # which getaddrinfo would cut to 16 bits
        raise InputError(f"--port {port} is not a port; choose one from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error}); choose another --port or --host") from None

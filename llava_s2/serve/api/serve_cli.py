"""``llava-s2 serve``."""

import argparse
import gc
import os
from dataclasses import replace
from typing import Any

from llava_s2.errors import InputError, require
from llava_s2.formats.model_source import ModelSource, add_model_arguments, positive


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="OpenAI-compatible HTTP API",
        description="Answers POST /v1/chat/completions and /tokenize, GET /v1/models, /health and /metrics.",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument("--model-name", metavar="NAME", help="what clients call the model, if not by its folder's name")

    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    network.add_argument("--port", type=_port, default=8000, help="default: %(default)s; 0 takes a free one")
    network.add_argument("--api-key-file", metavar="F", help="a key a line, in plain or as sha256:HEX")
    network.add_argument("--no-auth", action="store_true", help="without keys, answer on any address and by any name")
    network.add_argument("--allow-urls", action="store_true", help="fetch images from http(s) URLs on the public net")
    network.add_argument(
        "--cors-origin", nargs="+", default=[], metavar="URL", help="web pages whose scripts may ask; * for all"
    )

    limits = parser.add_argument_group("limits")

    def limit(flag: str, value: int, what: str, unit: str = "N", **more: Any) -> None:
        limits.add_argument(
            flag, type=positive, default=value, metavar=unit, help=f"{what} (default: %(default)s)", **more
        )

    def renamed(old: str, flag: str) -> None:  # takes the flag's name of the last release, unseen in --help
        name = flag.removeprefix("--").replace("-", "_")
        limits.add_argument(old, dest=name, type=positive, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    limit("--max-batch", 32, "answers that run together")
    limit("--max-batch-tokens", 16384, "bound on rows x longest row of the batch's cache")
    limit("--max-queue", 64, "requests that wait; more get 429")
    limit("--max-images", 8, "images of one request")
    limit("--max-new-tokens", 512, "tokens of an answer whose request names no bound")
    limit("--timeout", 300, "seconds a request may take", "S")
    limit("--drain-timeout", 30, "seconds for answers to end after SIGTERM or Ctrl-C", "S")
    limit("--image-cache-mb", 256, "memory of the features of images that were asked about", "MB")
    renamed("--max-pictures", "--max-images")
    renamed("--picture-cache-mb", "--image-cache-mb")
    limits.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads of the model (default: one a core)"
    )
    parser.set_defaults(run=_serve)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 ... 65535")
    return value


def _serve(args: argparse.Namespace) -> None:
    require("serve", "fastapi", "uvicorn", "prometheus_client", "openai", "httpcore")
    from llava_s2.serve.api.access import is_loopback, read_keys

    keys = read_keys(args.api_key_file) if args.api_key_file else []
    local = is_loopback(args.host)
    if not (local or keys or args.no_auth):
        raise InputError(
            f"--host {args.host} can be reached from other machines: give --api-key-file, or --no-auth to let all ask"
        )
    # Threads that wait in a loop take from each other what other programs leave them. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    source = ModelSource.from_arguments(args)
    if source.model is None:
        from llava_s2.model.embedded import default_model

        source = replace(source, model=str(default_model()))
    model, processor = source.load()

    import torch

    from llava_s2.serve.api.api_server import make_server
    from llava_s2.serve.api.app import build_app
    from llava_s2.serve.api.service import Limits, Service
    from llava_s2.serve.urls import fetch

    if args.threads:
        torch.set_num_threads(args.threads)
    limits = Limits(
        batch=args.max_batch,
        batch_tokens=args.max_batch_tokens,
        queue=args.max_queue,
        images=args.max_images,
        new_tokens=args.max_new_tokens,
        seconds=args.timeout,
        drain_seconds=args.drain_timeout,
        cache_bytes=args.image_cache_mb << 20,
    )
    name = args.model_name or _name(source.model)
    service = Service.build(model, processor, name, limits, fetch if args.allow_urls else None)
    app = build_app(
        service,
        keys,
        local_names_only=local and not keys and not args.no_auth,
        cors_origins=args.cors_origin,
    )

    def begin_drain() -> None:
        service.draining = True

    server = make_server(
        app,
        args.host,
        args.port,
        begin_drain=begin_drain,
        give_up=service.give_up,
        is_idle=lambda: service.under_way == 0,
        drain_seconds=args.drain_timeout,
    )
    service.engine.start()
    # What is loaded stays. The collector would look through it for half a second now and then, and for two at the exit.
    gc.freeze()
    server.run()
    service.close()


def _name(model: str) -> str:
    """A folder's last part; a hub id as it is."""
    from pathlib import Path

    return Path(model).resolve().name if Path(model).exists() else model

"""Serve masks over HTTP, with a page to click on: pictures are sent once, then points and boxes give masks.

Example:
  trt-sam serve mobile_sam                      (exports it into the cache first, once; then open the address that it prints)
  trt-sam serve mobile_sam/ --port 8000         (a set of trt-sam export --encoder or build --encoder; no torch)
  trt-sam serve mobile_sam --host 0.0.0.0       (for other machines: prints the token that they must send)

Only this machine reaches it unless --host says otherwise. Each request is a line of JSON on stdout. Ctrl-C or SIGTERM finishes
what is under way and ends it. docs/serving.md has the addresses, the bounds and what to watch.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
from pathlib import Path

from trt_sam._files import existing_file
from trt_sam._lazy import require_all
from trt_sam.commands._options import CHECKPOINT_HELP, add_cache_argument
from trt_sam.commands._served import open_model
from trt_sam.errors import InputError

HELP = "masks over HTTP, and a page to click on"
TOKEN_VARIABLE = "TRT_SAM_TOKEN"

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `serve`."""
    parser.add_argument("set", metavar="SET", help=f"a set with an image encoder; or {CHECKPOINT_HELP}")
    add_cache_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--token-file",
        metavar="F",
        type=Path,
        help=f"file of the token that clients must send (default: {TOKEN_VARIABLE}; with --host for others: a new one)",
    )
    parser.add_argument("--images", type=int, default=64, metavar="N", help="images that are kept (default: %(default)s)")
    parser.add_argument(
        "--image-seconds", type=int, default=1800, metavar="S", help="without use, after which one goes (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the model (default: the cores)")


def run(args: argparse.Namespace) -> int:
    """Serve until it is stopped."""
    require_all(("starlette", "uvicorn", "prometheus_client", "PIL"), "to serve")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}, must be from 0 to 65535")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads is {args.threads}, must be at least 1; leave it out for the cores of this process")
    from trt_sam.serve.app import create_app
    from trt_sam.serve.http.server import check_port, run_server
    from trt_sam.serve.settings import ServeSettings, is_loopback

    token = _token(args)
    if not token and not is_loopback(args.host):
        token = secrets.token_urlsafe(18)
    check_port(args.host, args.port)
    settings = ServeSettings(images=args.images, image_seconds=args.image_seconds, token=token)
    with open_model(args) as model:

        def listening(host: str, port: int) -> None:
            secret = f"#token={token}" if token else ""
            _log.info("%s in %s: http://%s:%d/%s", model.name, model.executed, _reached(host), port, secret)

        run_server(create_app(model, settings), settings, args.host, args.port, listening)
    return 0


def _reached(host: str) -> str:
    """The address of a link to a server that listens on `host`; of one that listens on all, this machine's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _token(args: argparse.Namespace) -> str:
    if args.token_file is None:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        token = existing_file(args.token_file, "token").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        raise InputError(f"--token-file {args.token_file} is not a file of ASCII text") from None
    if not token:
        raise InputError(f"--token-file {args.token_file} is blank; write a token into it")
    return token

"""``ilgnet serve``: a page in the browser that scores images."""

from __future__ import annotations

import argparse
import copy
import errno
import os
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ._console import say
from ._options import (
    BATCH,
    COUNT,
    Whole,
    add_allow_missing,
    add_crop_option,
    add_fast_options,
    add_preprocessing_options,
    add_score_options,
    add_text_options,
    check_exist,
    load_for_images,
    make_fast,
    read_shapes,
    read_stages,
    reads_distributions,
    say_notes,
    text_path,
)

if TYPE_CHECKING:
    from ..web.service import Served

_EPILOG = """examples:
  ilgnet serve --weights net.caffemodel
  ilgnet serve --weights net.safetensors --engine auto --folder photos
  ilgnet serve --weights before.caffemodel --weights after.caffemodel
  ilgnet serve --weights squeezenet.caffemodel --labels synset_words.txt --mean-value 104,117,123
  ilgnet serve --weights net.onnx --host 0.0.0.0 --port 8080

The page is at the address that is printed; Ctrl-C ends it. POST /api/score takes images in the multipart field `files`:
  curl -F files=@a.jpg -F files=@b.jpg http://127.0.0.1:8000/api/score"""
PORT = 8000
_MEBI = 1 << 20


def add_parser(subparsers: Any) -> None:
    """Add ``serve``."""
    parser = subparsers.add_parser(
        "serve", description="Serve a page in the browser that scores images, ranks them and shows where the net looks.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--weights", required=True, action="append", metavar="W",
        help="a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file; give it twice to compare two nets",
    )  # fmt: skip
    parser.add_argument(
        "--prototxt",
        action="append",
        default=[],
        metavar="P",
        help="the net of the weights; once per --weights",
    )
    parser.add_argument(
        "--labels", metavar="FILE",
        help="the classes, one per line, such as synset_words.txt, or a labelmap prototxt: shows the five best",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=COUNT, default=5, metavar="N", help="classes shown per image (default 5)"
    )
    parser.add_argument(
        "--folder", action="append", default=[], metavar="DIR",
        help="a folder whose images, with those of its subfolders, the page may read; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=BATCH, default=4, metavar="N", help="images that a net takes at a time (default 4)"
    )
    add_score_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="where it listens (default 127.0.0.1: this machine only); any other address needs a token",
    )  # fmt: skip
    group.add_argument(
        "--port", type=Whole(0, 65535), default=PORT, metavar="N", help=f"default {PORT}; 0 takes a free one"
    )
    group.add_argument(
        "--token",
        metavar="TEXT",
        help="what requests must give; without it one is made for other addresses than loopback",
    )
    group.add_argument(
        "--max-upload",
        type=Whole(1, 4096),
        default=64,
        metavar="MIB",
        help="largest request (default 64 MiB)",
    )
    add_text_options(parser)
    add_crop_option(parser)
    add_allow_missing(parser)
    add_fast_options(parser)
    add_preprocessing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Load the nets, print the page's address, and serve until the process is asked to end."""
    check_exist(args.weights, map_paths(args.prototxt), args.mean_file, args.labels, args.folder)
    if len(args.prototxt) not in (0, len(args.weights)):
        raise IlgnetError(
            f"--prototxt: given {len(args.prototxt)} times for {len(args.weights)} weights files; give one per file"
        )
    try:
        import uvicorn

        from ..web.app import create_app
        from ..web.guard import is_local
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == "ilgnet_repro":
            raise
        raise IlgnetError(
            f"serve: needs {error.name or 'fastapi'}; pip install 'ilgnet_repro[serve]' brings it"
        ) from error
    local = is_local(args.host)
    token = read_token(args.token, local)
    with listen(args.host, args.port) as listener:
        nets = load_nets(args)
        guard = create_app(
            nets, folders=args.folder, token=token, only_local=local, most_body=args.max_upload * _MEBI
        )
        say_address(args.host, listener.getsockname()[1], token)
        config = uvicorn.Config(
            guard, log_config=None, access_log=False, lifespan="on", server_header=False, proxy_headers=False,
            http="h11", ws="none", limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])
    return 0


MOST_CONNECTIONS = 512


def map_paths(prototxts: list[str]) -> list[str]:
    """The prototxts that are files."""
    return [path for path in map(text_path, prototxts) if path]


def read_token(given: str | None, local: bool) -> str:
    """Return the token that requests must give, or "" where none is needed.  Raises IlgnetError for a weak one."""
    if given is None:
        return "" if local else secrets.token_urlsafe(24)
    if len(given) < 8 or not given.isascii() or not given.isprintable() or " " in given:
        raise IlgnetError(
            "--token: is too weak or not plain; give at least 8 letters, digits or signs of ASCII"
        )
    return given


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.  Raises IlgnetError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror):
            raise IlgnetError(
                f"--host {host}: is not an address of this machine; give one such as 127.0.0.1"
            ) from error
        if error.errno == errno.EADDRINUSE:
            raise IlgnetError(
                f"--port {port}: is in use on {host}; give another, or 0 for a free one"
            ) from error
        reason = error.strerror or error
        raise IlgnetError(
            f"--host {host} --port {port}: cannot listen there ({reason}); give another"
        ) from error
    return listener


def load_nets(args: argparse.Namespace) -> list[Served]:
    """Load each of the nets with the options of the command."""
    from ..process import tune_process
    from ..reading.labels import read_labels
    from ..runtime.net import CaffeNet
    from ..scoring import Scorer
    from ..web.service import open_served
    from ..web.view_files import open_view

    tune_process()
    labels = tuple(read_labels(args.labels)) if args.labels else ()
    loaded = []
    for weights, prototxt in zip(args.weights, args.prototxt or [None] * len(args.weights), strict=True):
        one = copy.copy(args)
        one.weights, one.prototxt = weights, prototxt
        net, preprocessing, about = load_for_images(one)
        say_notes(f"{weights}: {note}" for note in (*about.notes, *about.random_notes))
        if isinstance(net, CaffeNet):
            net.about = about  # heat maps prepare images by it
        scorer = Scorer(
            make_fast(net, one, 1 if about.image_order else args.batch), preprocessing=preprocessing, batch=args.batch,
            labels=labels, top=args.top, raw_pixels=args.raw_pixels, distributions=reads_distributions(args),
        )  # fmt: skip
        view = partial(
            open_view, text_path(prototxt), weights, level=one.level, stages=read_stages(one.stage),
            input_shapes=read_shapes(one.shape), ignore_fields=tuple(one.ignore_field), crop=one.crop,
        )  # fmt: skip
        loaded.append((os.path.basename(weights), scorer, view))
    return open_served(loaded)


def say_address(host: str, port: int, token: str) -> None:
    """Print where the page is, with its token, which browsers keep to themselves."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    address = f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
    say(f"{address}#token={token}" if token else address, flush=True)
    if token:
        say(f"token: {token} (as the header Authorization: Bearer TOKEN)", flush=True)

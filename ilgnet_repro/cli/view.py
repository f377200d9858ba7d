"""``ilgnet view``: a net as a graph, as a page in the browser or as SVG."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ._console import say
from ._options import (
    Whole,
    add_net_options,
    check_exist,
    line_for_command,
    read_shapes,
    read_stages,
    say_notes,
)

if TYPE_CHECKING:
    from ..web.view_files import View

_EPILOG = """examples:
  ilgnet view net.caffemodel
  ilgnet view net.onnx --no-open --port 8001
  ilgnet view deploy.prototxt --svg net.svg
  ilgnet view deploy.prototxt net.caffemodel --svg net.svg
  ilgnet view train_val.prototxt --phase TRAIN --svg train.svg

The page shows each layer's text, shapes, parameters and multiply-adds and, with weights, the statistics of its weights and
of what it writes, for an image or for seeded inputs. It is at the address that is printed, on this machine only; Ctrl-C
ends it.

A box is a layer with the in-place layers on its top: type, shape, parameters, multiply-adds of the batch. A layer that is
not supported is drawn too, and what is wrong with it is said on stderr."""


_OTHER_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".pdf", ".ps", ".html")


def add_parser(subparsers: Any) -> None:
    """Add ``view``."""
    parser = subparsers.add_parser(
        "view", description="Draw a net as a graph of its layers, with shapes, parameters and multiply-adds.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="a prototxt, a weights file (.caffemodel, .caffemodel.h5, .safetensors), or both, in any order; or a .onnx or "
        ".pt2 file",
    )  # fmt: skip
    parser.add_argument("--svg", metavar="FILE", help="write the drawing there, and serve no page")
    parser.add_argument("--port", type=Whole(0, 65535), metavar="N", help="of the page (default: a free one)")
    parser.add_argument(
        "--no-open", action="store_true", help="print the page's address, and open no browser"
    )
    add_net_options(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the net and write the file, or serve the page until the process is asked to end."""
    from .audit import texts_and_weights

    check_exist(args.files)
    if args.svg is not None and (args.port is not None or args.no_open):
        flag = "--no-open" if args.no_open else f"--port {args.port}"
        raise IlgnetError(f"{flag}: is of the page, which --svg does not serve; leave one of them out")
    if args.svg is None:
        _expect_server()
    texts, weights = texts_and_weights(args.files)
    from ..web.view_files import open_view

    view = open_view(
        texts[0] if texts else None, weights[0] if weights else None, phase=args.phase, level=args.level,
        stages=read_stages(args.stage), input_shapes=read_shapes(args.shape), ignore_fields=tuple(args.ignore_field),
        crop=args.crop,
    )  # fmt: skip
    if args.svg is None:
        return _serve(view, args.port or 0, not args.no_open)
    return _write_svg(view, args)


def _write_svg(view: View, args: argparse.Namespace) -> int:
    from ..files import atomic_file, check_output
    from ..web.net_graph import draw, svg

    check_output(args.svg, args.files, "--svg")
    if os.path.splitext(args.svg)[1].lower() in _OTHER_IMAGES:
        raise IlgnetError(
            f"--svg {args.svg}: only SVG is written; end it in .svg, or draw the net with `ilgnet caffe draw_net`"
        )
    drawing = draw(view.rows)
    with atomic_file(args.svg) as file:
        file.write(svg(drawing).encode("utf-8"))
    say_notes(map(line_for_command, view.rows.notes))  # the page shows them beside the graph
    say(f"{args.svg}: {_counts(view)}")
    return 0


def _counts(view: View) -> str:
    net = view.rows
    return f"{len(net.layers)} layers, {net.parameters:,} parameters, {net.multiply_adds:,} multiply-adds per image"


def _expect_server() -> None:
    """Raise IlgnetError, in one line, where the packages of the page are not installed."""
    try:
        import uvicorn  # noqa: F401

        from ..web import view_app  # noqa: F401
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == "ilgnet_repro":
            raise
        raise IlgnetError(
            f"view: the page needs {error.name or 'fastapi'}; pip install 'ilgnet_repro[serve]' brings it, and --svg FILE "
            "draws without it"
        ) from error


def _serve(view: View, port: int, opens: bool) -> int:
    import uvicorn

    from ..web.view_app import create_view_app
    from .serve import listen

    app = create_view_app(view)
    with listen("127.0.0.1", port) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/view"
        say(f"{view.name}: {_counts(view)}")
        say(address, flush=True)
        if opens and _has_display():
            webbrowser.open(address)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, proxy_headers=False,
            http="h11", ws="none", timeout_keep_alive=10, timeout_graceful_shutdown=3,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _has_display() -> bool:
    """Whether a browser can open a window here."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))

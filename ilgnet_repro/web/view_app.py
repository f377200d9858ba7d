"""The server of `ilgnet view`: the page of one net, on the loopback interface only."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import IlgnetError, excerpt, printable
from ..version import __version__
from .guard import MOST_BODY, Guard, RequestError
from .view_files import View
from .view_page import VIEW, Views, router, show


def _on_error(request: Request, error: Exception) -> Response:
    """Answer with the one line of an error."""
    status, text = 422, str(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
        text = f"{excerpt(where) or 'the body'}: {first['msg']}"
    elif isinstance(error, HTTPException):
        status, text = error.status_code, str(error.detail)
    elif isinstance(error, RequestError):
        status = error.status
    elif isinstance(error, ClientDisconnect):
        status, text = 400, "the request ended before its body did"
    return JSONResponse({"error": printable(text)}, status)


def _on_failure(request: Request, error: Exception) -> Response:
    """Answer to what should not happen; the server prints the traceback."""
    text = "internal error; please report it with the lines that the server printed"
    return JSONResponse({"error": text}, 500)


def to_page() -> Response:
    """Send the browser to the page."""
    return RedirectResponse(VIEW)


def create_view_app(view: View, most_body: int = MOST_BODY) -> Guard:
    """Return the ASGI application of the page of one net.  Raises GraphError for a net that cannot be drawn."""
    app = FastAPI(
        title="ilgnet view", version=__version__, docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None,
        description="A net as a graph.",
    )  # fmt: skip
    shown = show(view)
    app.state.views = Views([lambda: shown], [(VIEW, "Graph")])
    for kind in (HTTPException, RequestValidationError, RequestError, ClientDisconnect, IlgnetError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(Exception, _on_failure)
    app.include_router(router)
    app.add_api_route("/", to_page, include_in_schema=False)
    return Guard(app, only_local=True, most_body=most_body)

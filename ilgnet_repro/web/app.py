"""The server: one page, and its API of scores, heat maps and folders as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import DataError, GraphError, IlgnetError, excerpt, printable
from ..version import __version__
from .folders import LONGEST_PATH, MOST_LISTED, Folders, MissingError, path_of
from .guard import MOST_BODY, Guard, RequestError
from .service import Reader, Served, Service, shown_name
from .shell import render_page
from .view_page import VIEW, Shown, Views, show
from .view_page import router as view_router

MOST_FILES = 64  # of a request
THUMBNAIL = 1024  # pixels: the longest side of a small copy
LINKS = (("/", "Scores"), (VIEW, "Graph"))
PUBLIC = frozenset({"/", VIEW, "/healthz"})
"""Paths that hold nothing of the nets and images: the page itself asks for the token."""
QUEUED = frozenset({"/api/folder", "/api/folder/image", "/api/view", "/api/view/weights"})
"""Paths without a body that read folders, images or nets, and wait their turn as requests with one do."""


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Record(BaseModel):
    """One image: its name, and its score or why it has none."""

    name: str
    score: float | None = Field(
        None, description="of the net's own meaning, else that of its best class or box"
    )
    error: str | None = Field(None, description="why the image has no score; then it is all but the name")
    meaning: str | None = None
    deviation: float | None = None
    distribution: list[float] | None = None
    classes: list[dict[str, Any]] | None = None
    boxes: list[dict[str, Any]] | None = None
    height: int | None = None
    width: int | None = None
    notes: list[str] | None = None


class BranchShare(BaseModel):
    """The share of a branch of the net in the value."""

    name: str
    share: float


class Bars(BaseModel):
    """Values that explain an output, such as the weights that a model gives to parts of itself."""

    name: str
    values: list[float]


class HeatMap(BaseModel):
    """Where in an image the net finds what speaks for a value of its output."""

    name: str
    blob: str
    output: str
    index: int
    score: float | None
    region: list[float] = Field(description="what the net sees, as fractions: left, top, width, height")
    branches: list[BranchShare] = Field(description="of the last Concat: what each kind of its bottoms adds")
    bars: list[Bars] = Field(
        description="what the model itself explains, such as TANet's weights of the theme"
    )
    values: list[list[float]] = Field(description="rows from the top, from 0 to 1")


class Chosen(BaseModel):
    """Images of an allowed folder."""

    folder: int = Field(0, ge=0, lt=2**31, strict=True, description="its number in /api/folders")
    images: list[Annotated[str, Field(max_length=4 * LONGEST_PATH)]] = Field(
        min_length=1, max_length=MOST_FILES
    )


@dataclass(frozen=True)
class Upload:
    """A file of a request."""

    name: str
    read: Reader


@dataclass(frozen=True)
class Site:
    """What the routes serve: `request.app.state.site`."""

    service: Service
    folders: Folders
    most_body: int = MOST_BODY


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


GET, POST = (
    _problems(400, 401, 403, 404, 421, 422),
    _problems(400, 401, 403, 404, 408, 413, 415, 421, 422, 503),
)
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "files": {
                        "type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1,
                        "maxItems": MOST_FILES,
                    }
                },
                "required": ["files"],
                "additionalProperties": False,
            }
        }
    },
}  # fmt: skip
router, public = APIRouter(), APIRouter()


# ------------------------------------------------------------------------------------------- what requests give


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def _net(
    request: Request, net: Annotated[int, Query(ge=0, lt=2**31, description="its number in /api/nets")] = 0
) -> Served:
    nets = _site(request).service.nets
    if net >= len(nets):
        raise HTTPException(404, f"net {net} is not served; there are {len(nets)}, from 0")
    return nets[net]


@asynccontextmanager
async def _uploads(request: Request, most: int) -> AsyncIterator[list[Upload]]:
    """The files of the field `files`, open as long as they are used."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, "send the images as multipart/form-data, in the field `files`")
    async with request.form(max_files=MOST_FILES, max_fields=8) as form:
        others = [name for name in form if name != "files"]
        if others:
            raise HTTPException(
                422, f"field {excerpt(others[0])!r}: is unknown; images are in the field `files`"
            )
        found = form.getlist("files")
        files = [one for one in found if isinstance(one, UploadFile)]
        if not found or len(files) < len(found):
            raise HTTPException(422, "field `files`: holds no file; give images, each with a file name")
        if len(files) > most:
            raise HTTPException(422, f"field `files`: holds {len(files)} files; give one")
        yield [
            Upload(shown_name(file.filename, number), file.file.read) for number, file in enumerate(files, 1)
        ]


SiteOf = Annotated[Site, Depends(_site)]
NetOf = Annotated[Served, Depends(_net)]


# ------------------------------------------------------------------------------------------- routes


@public.get("/", response_class=HTMLResponse, include_in_schema=False)
def page(site: SiteOf) -> HTMLResponse:
    """Return the page; it holds nothing of the nets and images."""
    text, headers = render_page("app.html.j2", "/", LINKS, most_files=MOST_FILES, most_body=site.most_body)
    return HTMLResponse(text, headers=headers)


@public.get("/healthz", responses=_problems(400, 421))
def healthz() -> dict[str, str]:
    """Return that the server answers."""
    return {"status": "ok", "version": __version__}


@router.get("/api/nets", responses=GET)
async def nets(site: SiteOf) -> list[dict[str, Any]]:
    """Return what is known of each net: its file, its provenance, whether its weights are random."""
    return await site.service.facts()


@router.post(
    "/api/score", response_model=list[Record], response_model_exclude_unset=True, responses=POST,
    openapi_extra={"requestBody": _BODY},
)  # fmt: skip
async def score(request: Request, site: SiteOf, net: NetOf) -> Any:
    """Score images: one object per file, in order, with its name, and its score or error."""
    async with _uploads(request, MOST_FILES) as files:
        images = [(file.name, file.read) for file in files]
        return await site.service.score(net, images)


@router.post(
    "/api/heat", response_model=HeatMap, responses=POST, openapi_extra={"requestBody": _BODY},
)  # fmt: skip
async def heat(
    request: Request, site: SiteOf, net: NetOf, blob: Annotated[str | None, Query(max_length=1000)] = None
) -> Any:
    """Return the heat map of one image (Grad-CAM) at a blob, by default the last one with height and width."""
    async with _uploads(request, 1) as files:
        return await site.service.heat(net, files[0].name, files[0].read, blob)


@router.get("/api/folders", responses=GET)
def folders(site: SiteOf) -> list[str]:
    """Return the folders whose images may be scored by name."""
    return [printable(folder) for folder in site.folders.shown]


@router.get("/api/folder", responses=GET)
def folder(
    site: SiteOf,
    folder: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    path: Annotated[str, Query(max_length=LONGEST_PATH, description="a folder below it")] = "",
) -> dict[str, Any]:
    """Return the images of an allowed folder, or of one below it, with those of its subfolders."""
    found, is_cut = site.folders.listed(folder, path)
    return {
        "images": [{"id": one, "name": printable(path_of(one))} for one in found],
        "note": f"only the first {MOST_LISTED:,} images are listed" if is_cut else "",
    }


@router.post(
    "/api/folder/score", response_model=list[Record], response_model_exclude_unset=True, responses=POST
)
async def score_folder(site: SiteOf, net: NetOf, chosen: Chosen) -> Any:
    """Score images of an allowed folder, by the ids that /api/folder gives."""
    images = [
        (printable(path_of(one)), partial(site.folders.read, chosen.folder, one)) for one in chosen.images
    ]
    return await site.service.score(net, images)


@router.post("/api/folder/heat", response_model=HeatMap, responses=POST)
async def heat_in_folder(
    site: SiteOf, net: NetOf, chosen: Chosen, blob: Annotated[str | None, Query(max_length=1000)] = None
) -> Any:
    """Return the heat map of one image of an allowed folder."""
    if len(chosen.images) != 1:
        raise HTTPException(422, f"images: {len(chosen.images)} images; give one")
    read = partial(site.folders.read, chosen.folder, chosen.images[0])
    return await site.service.heat(net, printable(path_of(chosen.images[0])), read, blob)


@router.get(
    "/api/folder/image", response_class=Response,
    responses={**GET, 200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
)  # fmt: skip
async def folder_image(
    site: SiteOf,
    image: Annotated[str, Query(max_length=4 * LONGEST_PATH)],
    folder: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    side: Annotated[int, Query(ge=16, le=THUMBNAIL)] = 256,
) -> Response:
    """Return a small copy of an image of an allowed folder, as a JPEG."""
    read = partial(site.folders.read, folder, image)
    data = await site.service.small_copy(printable(path_of(image)), read, side)
    return Response(data, media_type="image/jpeg")


# ------------------------------------------------------------------------------------------- the application


def _answer(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _on_error(request: Request, error: Exception) -> Response:
    """Answer with the one line of an error."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body")) or "the body"
        return _answer(422, printable(f"{excerpt(where)}: {first['msg']}"))
    if isinstance(error, HTTPException):
        answer = _answer(error.status_code, printable(str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer
    if isinstance(error, RequestError):
        return _answer(error.status, str(error))
    if isinstance(error, ClientDisconnect):
        return _answer(400, "the request ended before its body did")
    is_missing = isinstance(error, MissingError) or (isinstance(error, GraphError) and error.option == "blob")
    return _answer(404 if is_missing else 422, str(error))


def _on_failure(request: Request, error: Exception) -> Response:
    """Answer to what should not happen; the server prints the traceback."""
    return _answer(500, "internal error; please report it with the lines that the server printed")


def _show(net: Served) -> Shown:
    if net.view is None:
        raise IlgnetError(f"{net.name}: was not served from a file, so it is not drawn")
    return show(net.view())


def create_app(
    nets: Sequence[Served],
    *,
    folders: Sequence[str] = (),
    token: str = "",
    only_local: bool = True,
    most_body: int = MOST_BODY,
) -> Guard:
    """Return the ASGI application that serves ``nets``, and images below ``folders``.

    ``token``, ``only_local`` and ``most_body`` are those of its `Guard`.
    """
    service = Service(nets)

    @asynccontextmanager
    async def until_closed(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="ilgnet serve", version=__version__, docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None,
        description="Scores of images by any net.", lifespan=until_closed,
    )  # fmt: skip
    app.state.views = Views([partial(_show, net) for net in nets], LINKS)
    app.state.site = Site(service, Folders(folders), most_body)
    for kind in (
        HTTPException,
        RequestValidationError,
        RequestError,
        ClientDisconnect,
        DataError,
        IlgnetError,
    ):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(Exception, _on_failure)
    app.include_router(public)
    bearer = [Depends(HTTPBearer(auto_error=False))] if token else []  # for the text: the guard asks for it
    for one in (router, view_router):
        app.include_router(one, dependencies=bearer)
    return Guard(app, token=token, only_local=only_local, public=PUBLIC, queued=QUEUED, most_body=most_body)

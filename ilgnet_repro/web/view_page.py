"""The page of one net as a graph, and its API: layers and drawing, a layer's text, the statistics of weights and values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..errors import GraphError, excerpt, printable, printable_lines
from ..reading.photos import decode_photo
from .net_graph import Drawing, draw
from .rows import OpenShape, Row
from .shell import Links, render_page
from .view_files import View
from .view_values import show_blob, show_weights

VIEW = "/view"
router = APIRouter()
_ROW = Annotated[int, Query(ge=0, lt=2**31, description="its position in the net, from 0")]
_PROBLEM = {"description": "why, in one line", "content": {"application/json": {"schema": {
    "type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}}}  # fmt: skip
_GET: Mapping[int | str, Any] = dict.fromkeys((400, 401, 403, 404, 421, 422), _PROBLEM)
_POST: Mapping[int | str, Any] = dict.fromkeys((400, 401, 403, 404, 408, 413, 415, 421, 422, 503), _PROBLEM)
_BODY = {
    "required": False,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 1}
                },
                "additionalProperties": False,
            }
        }
    },
}  # fmt: skip


class Shown:
    """A net as the routes show it."""

    def __init__(self, view: View) -> None:
        """Draw it.  Raises GraphError for a net that is too large to draw."""
        self.view = view
        self.lock = threading.Lock()  # one request computes at a time
        self.facts = facts(view, draw(view.rows))

    def row(self, number: int) -> Row:
        """Return a row by its position.  Raises HTTPException."""
        rows = self.view.rows.layers
        if number >= len(rows):
            raise HTTPException(404, f"row {number}: the net has {len(rows)}, from 0")
        return rows[number]

    def weights(self, row: Row) -> list[dict[str, Any]]:
        """Return the statistics of a row's weights."""
        with self.lock:
            return show_weights(self.view.values(), row)

    def blob(self, row: Row, top: int, data: bytes | None, name: str) -> dict[str, Any]:
        """Return the statistics of what a row writes, for the bytes of an image or for seeded inputs."""
        if top >= len(row.writes):
            raise HTTPException(404, f"{printable(row.name)}: writes {len(row.writes)} values, from 0")
        with self.lock:
            image = None
            if data is not None:
                image = np.ascontiguousarray(decode_photo(data, None, name).pixels[:, :, :3])
            return show_blob(self.view.values(), row, row.writes[top], image)


class Views:
    """The nets of a server, by number: `request.app.state.views`.  Each is opened when it is first asked for."""

    def __init__(self, openers: Sequence[Callable[[], Shown]], links: Links) -> None:
        self.links = links
        self._openers = tuple(openers)
        self._opened: dict[int, Shown] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Shown:
        """Return a net.  Raises HTTPException, and IlgnetError for one that cannot be drawn."""
        if number >= len(self._openers):
            raise HTTPException(404, f"net {number} is not served; there are {len(self._openers)}, from 0")
        with self._lock:
            if number not in self._opened:
                self._opened[number] = self._openers[number]()
            return self._opened[number]


def facts(view: View, drawing: Drawing) -> dict[str, Any]:
    """Return a net and its drawing as plain values; names of the file are printable in them."""
    rows = view.rows
    whole = sum(row.multiply_adds for row in rows.layers)
    batch = whole // rows.multiply_adds if rows.multiply_adds else 1
    of_batch = [f"the multiply-adds of a layer are those of the whole batch of {batch}"] if batch > 1 else []
    return {
        "name": printable(view.name),
        "net": printable(rows.net),
        "form": printable(rows.form),
        "parameters": rows.parameters,
        "multiply_adds": rows.multiply_adds,
        "inputs": [{"name": printable(one.name), "shape": one.shape} for one in rows.inputs],
        "outputs": [printable(name) for name in rows.outputs],
        "notes": [*(printable(note) for note in rows.notes), *of_batch],
        "why": printable(view.why),
        "layers": [_layer(number, row) for number, row in enumerate(rows.layers)],
        "drawing": _drawing(drawing),
    }


def _layer(number: int, row: Row) -> dict[str, Any]:
    return {
        "row": number,
        "name": printable(row.name),
        "type": printable(row.type),
        "tops": _ends(row.writes, row.tops),
        "bottoms": _ends(row.reads, row.bottoms),
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "in_place": row.in_place,
        "blobs": [{"name": printable(blob.name), "shape": blob.shape} for blob in row.blobs],
        **{key: printable(getattr(row, key)) for key in ("problem", "need", "note")},
    }


def _ends(names: Sequence[str], shapes: Sequence[OpenShape | None]) -> list[dict[str, Any]]:
    known = len(names) == len(shapes)
    return [
        {"name": printable(name), "shape": shapes[position] if known else None}
        for position, name in enumerate(names)
    ]


def _drawing(drawing: Drawing) -> dict[str, Any]:
    rows = iter(drawing.rows)
    return {
        "width": round(drawing.width, 1),
        "height": round(drawing.height, 1),
        "boxes": [
            {
                "x": round(box.x, 1), "y": round(box.y, 1), "width": round(box.width, 1),
                "height": round(box.height, 1), "kind": box.kind, "title": printable(box.title), "row": box.index,
                "rows": list(next(rows)), "lines": [printable(line) for line in box.lines],
            }
            for box in drawing.boxes
        ],
        "edges": [
            {"path": edge.path, "blob": printable(edge.blob), "from": edge.start, "to": edge.end}
            for edge in drawing.edges
        ],
    }  # fmt: skip


def _shown(
    request: Request, net: Annotated[int, Query(ge=0, lt=2**31, description="its number, from 0")] = 0
) -> Shown:
    views: Views = request.app.state.views
    return views[net]


ShownOf = Annotated[Shown, Depends(_shown)]


@router.get(VIEW, response_class=HTMLResponse, include_in_schema=False)
def page(request: Request) -> HTMLResponse:
    """Return the page; it holds nothing of the net."""
    text, headers = render_page("view_page.html.j2", VIEW, request.app.state.views.links)
    return HTMLResponse(text, headers=headers)


@router.get("/api/view", responses={**_GET})
def view(shown: ShownOf) -> dict[str, Any]:
    """Return the net: its layers, their shapes and costs, and where they are drawn."""
    return shown.facts


@router.get("/api/view/layer", responses={**_GET})
def layer(shown: ShownOf, row: _ROW) -> dict[str, str]:
    """Return the text of a layer as it is written in the file."""
    return {"fields": printable_lines(shown.row(row).fields)}


@router.get("/api/view/weights", responses={**_GET})
async def weights(shown: ShownOf, row: _ROW) -> list[dict[str, Any]]:
    """Return the statistics of a layer's weights."""
    return await run_in_threadpool(shown.weights, shown.row(row))


@router.post("/api/view/blob", responses={**_POST}, openapi_extra={"requestBody": _BODY})
async def blob(
    request: Request, shown: ShownOf, row: _ROW, top: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> dict[str, Any]:
    """Return the statistics and first channels of what a layer writes, for an image or for seeded inputs."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind:
            raise HTTPException(
                415, "send the image as multipart/form-data, in the field `files`, or no body"
            )
        return await run_in_threadpool(shown.blob, shown.row(row), top, None, "")
    async with request.form(max_files=1, max_fields=1) as form:
        found = form.getlist("files")
        files = [one for one in found if isinstance(one, UploadFile)]
        if len(form) > len(found) or len(files) != len(found):
            raise HTTPException(422, "field `files`: give one image, with a file name, or no body")
        data = await files[0].read() if files else None
        name = excerpt(files[0].filename or "image") if files else ""
    return await run_in_threadpool(shown.blob, shown.row(row), top, data, name)


def show(view: View) -> Shown:
    """Return a net as the routes show it.  Raises GraphError for one without layers, or too large to draw."""
    if not view.rows.layers:
        raise GraphError(f"{view.name}: holds no layers to draw")
    return Shown(view)

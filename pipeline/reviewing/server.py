"""The review server: a few addresses behind `Guard`, each one function over `Desk`. It needs no network and keeps nothing but decisions."""

import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import BadInput, PurifyError
from pipeline.pages.text import page
from pipeline.reviewing.desk import Desk, require_reviewer
from pipeline.reviewing.exports import EXPORTS
from pipeline.reviewing.guard import Guard
from pipeline.reviewing.pages import AuditPages

_SAMPLE = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
Sample = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Reviewer = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(max_length=1024)]
Key = Annotated[str, Field(pattern=r"^[sm][0-9a-f]{32}$")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    by: Reviewer


class _Skipped(_Asked):
    key: Key


class _Answered(_Skipped):
    verdict: Annotated[str, Field(pattern="^(keep|drop|relabel|merge|apart)$")]
    identity: Name | None = None
    note: Annotated[str, Field(max_length=1000)] = ""


class _Decided(_Asked):
    sample: Sample
    verdict: Annotated[str, Field(pattern="^(keep|drop|relabel)$")]
    identity: Name | None = None


class _Standing(_Asked):
    samples: Annotated[list[Sample], Field(max_length=1500)]


@dataclass(frozen=True)
class Review:
    """A server that is ready to run: its address with the token, and what runs it until it is stopped."""

    address: str
    serve: Callable[[], None]
    stop: Callable[[], None]


def open_review(run: Path, *, port: int = 0, title: str) -> Review:
    """A review of `run` on loopback; port 0 is any that is free. Raises BadInput for a run without a manifest and for a port that is taken."""
    desk, pages = Desk(run), AuditPages(run)
    desk.next("", most=0)  # says now, not to the browser, when there is nothing to review
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise BadInput(f"Port {port} on this machine is taken ({error}). Give another --port, or leave it out.") from error
    number, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    app = Guard(application(desk, pages, title), token=token, port=number)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=5)
    )

    def serve() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            listener.close()
            pages.close()

    def stop() -> None:
        server.should_exit = True

    return Review(f"http://127.0.0.1:{number}/{token}/review.html", serve, stop)


def application(desk: Desk, pages: AuditPages, title: str) -> FastAPI:
    """The addresses, without who may ask for them."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    html = page(
        "review.html.jinja",
        style=("base.css", "review.css"),
        script=("page.js", "ask.js", "names.js", "review.js"),
        connect=True,
        title=title,
    )

    @app.exception_handler(PurifyError)
    def explained(_: Request, error: PurifyError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": f"That is no request of the review page: {error.errors()[0]['msg']}."}, 422)

    def known(identity: str | None) -> str | None:
        if identity is not None and not desk.has_identity(identity):
            raise BadInput(
                "There is no identity of exactly that name in this run. To make one: purify decide RUN --sample SAMPLE_ID --verdict relabel "
                "--identity NAME --new-identity"
            )
        return identity

    @app.get("/review.html")
    def review() -> Response:
        return Response(html, media_type="text/html; charset=utf-8")

    @app.get("/api/next")
    def upcoming(by: Annotated[str, Query(min_length=1, max_length=200)]) -> JSONResponse:
        reviewer = require_reviewer(by)
        return JSONResponse({"cases": desk.next(reviewer), "progress": desk.progress(reviewer)})

    @app.post("/api/answer")
    def answer(said: _Answered) -> JSONResponse:
        reviewer = require_reviewer(said.by)
        count = desk.answer(reviewer, said.key, said.verdict, identity=known(said.identity), note=said.note)
        return JSONResponse({"recorded": count, "cases": desk.next(reviewer), "progress": desk.progress(reviewer)})

    @app.post("/api/decide")
    def decide(said: _Decided) -> JSONResponse:
        return JSONResponse({"recorded": desk.decide(require_reviewer(said.by), said.sample, said.verdict, identity=known(said.identity))})

    @app.post("/api/standing")
    def standing(said: _Standing) -> JSONResponse:
        require_reviewer(said.by)
        return JSONResponse(desk.standing(said.samples))

    @app.post("/api/skip")
    def skip(said: _Skipped) -> JSONResponse:
        reviewer = require_reviewer(said.by)
        desk.skip(reviewer, said.key)
        return JSONResponse({"cases": desk.next(reviewer), "progress": desk.progress(reviewer)})

    @app.post("/api/undo")
    def undo(said: _Asked) -> JSONResponse:
        reviewer = require_reviewer(said.by)
        count, again = desk.undo(reviewer)
        return JSONResponse({"undone": count, "cases": again or desk.next(reviewer), "progress": desk.progress(reviewer)})

    @app.get("/api/names")
    def names(like: Annotated[str, Query(min_length=1, max_length=200)]) -> JSONResponse:
        return JSONResponse(desk.names(like))

    @app.get("/crop/{sample}.jpg")
    def crop(sample: str) -> Response:
        content = desk.crop(sample) if _SAMPLE.fullmatch(sample) else None
        return Response(content, media_type="image/jpeg") if content else Response("There is no such crop.", 404)

    @app.get("/export/{form}")
    def export(form: str) -> Response:
        if form not in EXPORTS:
            return Response("There is no such export.", 404)
        make, kind = EXPORTS[form]
        name = "decisions." + ("json" if form == "label-studio" else form)
        return Response(make(desk.run), media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})

    @app.get("/{name:path}")
    def file(name: str) -> Response:
        found = pages.read(name)
        return Response(found[0], media_type=found[1]) if found else Response("There is no such page.", 404)

    return app

"""The server's application: its paths, and what is read of it: the page, the model, the health, the metrics."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Route

from training.serve.answering import Served
from training.serve.answers import chat_completions, check_model, completions, generate, served_by
from training.serve.gate import refusal_response
from training.serve.openai_shapes import model_entry
from training.serve.refusals import RefusalError


def make_app(served: Served) -> FastAPI:
    """Return the application that answers with a model."""
    page = files("training.serve").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": content_policy(page), "referrer-policy": "no-referrer"}

    async def chat_page(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    app = FastAPI(
        routes=[
            Route("/", chat_page),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/generate", generate, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        exception_handlers={RefusalError: refused, HTTPException: not_here, Exception: broken},
        openapi_url=None,  # its pages load from a CDN
    )
    app.state.served = served
    return app


async def refused(request: Request, error: RefusalError) -> Response:
    return refusal_response(error)


async def not_here(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    told = {404: f"nothing at {path}", 405: f"{path} does not take {request.method}"}
    return refusal_response(RefusalError(error.status_code, told.get(error.status_code, str(error.detail))))


async def broken(request: Request, error: Exception) -> Response:
    return refusal_response(RefusalError(500, "the server has a bug; its log has the details"))


async def health(request: Request) -> Response:
    engine = served_by(request).engine
    is_well = engine.thread.is_alive() and not engine.is_closing
    state = {"status": "ok" if is_well else "stopping", "running": engine.running, "waiting": len(engine.waiting)}
    return JSONResponse(state, status_code=200 if is_well else 503)


async def metrics(request: Request) -> Response:
    return Response(served_by(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [model_entry(served_by(request))]})


async def one_model(request: Request) -> Response:
    check_model(served_by(request), request.path_params["name"])
    return JSONResponse(model_entry(served_by(request)))


def content_policy(page: str) -> str:
    """Return the policy under which the page runs its own script and style, and loads nothing from elsewhere."""

    def allowed(tag: str) -> str:
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

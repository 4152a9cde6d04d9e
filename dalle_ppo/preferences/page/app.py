"""The page's server: a few files, pictures and three calls, for who knows the token alone."""

import json
from collections.abc import Callable
from pathlib import Path
from secrets import compare_digest
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dalle_ppo.base.lock import Busy
from dalle_ppo.preferences.page.desk import Desk
from dalle_ppo.preferences.store import Store

STATIC = Path(__file__).parent / "static"
FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "clock.js": "text/javascript",
    "outbox.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
LARGEST = 100_000
"""Bytes of a request; an answer has a thousand."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
NO_TOKEN = (
    "This page needs the token in the address that python -m dalle_ppo.label printed last. Open that address."
)


class Guard:
    """Lets in who knows the token, from a page of this server alone.

    A page from elsewhere that knows the port fails: its name for this machine is not among the hosts (DNS
    rebinding), its requests carry no cookie, and it may not write. See
    https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html

    Args:
        app: what is guarded.
        token: as in the address.
        port: that the server listens on.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"dalle_ppo_label_{port}"  # cookies know no ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        in_address = self._is_token(request.query_params.get("token"))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._headers(message, in_address)}
            await send(message)

        refusal = self._refusal(request, in_address)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _headers(self, message: Message, set_cookie: bool) -> list[tuple[bytes, bytes]]:
        headers = [*message.get("headers", [])]
        extra = dict(HEADERS)
        if not any(name.lower() == b"cache-control" for name, _ in headers):
            extra["cache-control"] = "no-store"
        if set_cookie:
            extra["set-cookie"] = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        return headers + [(name.encode(), value.encode()) for name, value in extra.items()]

    def _refusal(self, request: Request, in_address: bool) -> Response | None:
        host = request.headers.get("host", "")
        if host not in self._hosts:
            return _no(f"This server answers to 127.0.0.1 and localhost, not to {host[:100]!r}.")
        if not (in_address or self._is_token(request.cookies.get(self._cookie))):
            return _no(NO_TOKEN)
        if request.method in ("GET", "HEAD"):
            return None
        site = request.headers.get("sec-fetch-site", "same-origin")
        if request.headers.get("origin") != f"http://{host}" or site != "same-origin":
            return _no("Only the page itself may write.")
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _no("A request must be JSON.")
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            return _no("A request must state its length, and be short.")
        return None

    def _is_token(self, text: str | None) -> bool:
        return text is not None and compare_digest(text.encode(errors="replace"), self._token.encode())


def build_app(desk: Desk, store: Store, token: str, port: int) -> ASGIApp:
    """The guarded application.

    Args:
        desk: what raters see.
        store: where pictures are.
        token: that lets in.
        port: that the server listens on.
    """

    def page(request: Request) -> Response:
        return FileResponse(STATIC / "page.html", media_type="text/html")

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(STATIC / name, media_type=FILES[name]) if name in FILES else _gone()

    def image(request: Request) -> Response:
        try:
            path = store.image_path(request.path_params["key"])
        except ValueError:
            return _gone()
        if not path.is_file():
            return _gone()
        # Its name is the hash of what is in it.
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        return FileResponse(path, media_type="image/png", headers=headers)

    async def state(request: Request) -> Response:
        rater = request.query_params.get("rater")
        return await _reply(desk.hello) if rater is None else await _reply(desk.state, rater)

    async def answer(request: Request) -> Response:
        return await _reply(desk.answer, await _body(request))

    async def undo(request: Request) -> Response:
        return await _reply(desk.undo, await _body(request))

    routes = [
        Route("/", page),
        Route("/static/{name}", file),
        Route("/images/{key}.png", image),
        Route("/api/state", state),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), token, port)


async def _body(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        return None


async def _reply(function: Callable[..., dict[str, Any]], *args: Any) -> Response:
    """The result as JSON; a mistake as one line with 400, a failure of the disk with 503."""
    try:
        return JSONResponse(await run_in_threadpool(function, *args))
    except OSError as error:
        return JSONResponse({"error": f"it could not be written: {error}"}, 503)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 503 if isinstance(error, Busy) else 400)


def _no(line: str) -> Response:
    return PlainTextResponse(line + "\n", 403)


def _gone() -> Response:
    return PlainTextResponse("There is no such file.\n", 404)

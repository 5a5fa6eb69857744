"""The page and its socket, for this machine only.

Whoever has the address with its token may use it. A page of another site that the same browser has open does not get
in: requests need the token, the name of this machine as `Host` (a name of another site may be pointed here) and, at
the socket, this page as their `Origin`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from la_reconvla.errors import UserError
from la_reconvla.live.scene import Arm, Choice
from la_reconvla.live.session import WISHES, Call, Session, Viewer

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
TABS = 8  # at once
MAX_MESSAGE = 8192  # bytes of a wish
GOING = 1001  # the websocket's code for a server that ends; the page knows it
FAREWELL = 2.0  # seconds that a tab has to answer it
ASSETS = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_TOKEN = "This page needs its key: open the full address that the terminal printed.\n"
NO_HOST = "This address is for this machine only: open http://127.0.0.1 with the port that the terminal printed.\n"
NO_ORIGIN = "Only the page that this server sent may connect.\n"

SESSION: web.AppKey[Session] = web.AppKey("session", Session)
SOCKETS: web.AppKey[set[web.WebSocketResponse]] = web.AppKey("sockets", set)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(session: Session, token: str) -> web.Application:
    """The server.

    Args:
        session: what tabs share.
        token: that page and socket need.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.url.host not in NAMES or not _is_host(request.headers.get("Host", "")):
            return _refused(NO_HOST)
        if request.path in ("/", "/socket"):
            given = request.query.getall("token", [])
            if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "replace"), token.encode()):
                return _refused(NO_TOKEN)
        if request.path == "/socket" and request.headers.get("Origin") != f"http://{request.host}":
            return _refused(NO_ORIGIN)
        return await handler(request)

    app = web.Application(middlewares=[guard], client_max_size=MAX_MESSAGE)
    app[SESSION], app[SOCKETS] = session, set()
    for address in ASSETS:
        app.router.add_get(address, _asset)
    app.router.add_get("/socket", _socket)
    app.on_shutdown.append(_hang_up)
    return app


def _is_host(host: str) -> bool:
    name, _, port = host.partition(":")
    return name in NAMES and (not port or port.isdecimal())


def _refused(why: str) -> web.Response:
    return web.Response(status=403, text=why, headers=HEADERS)


async def _asset(request: web.Request) -> web.Response:
    name = ASSETS[request.path]
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=TYPES[Path(name).suffix], headers=HEADERS)


async def _socket(request: web.Request) -> web.StreamResponse:
    session, sockets = request.app[SESSION], request.app[SOCKETS]
    if len(sockets) >= TABS:
        return web.Response(status=503, text=f"{TABS} tabs are open: close one.\n", headers=HEADERS)
    socket = web.WebSocketResponse(timeout=FAREWELL, heartbeat=20, max_msg_size=MAX_MESSAGE)
    sockets.add(socket)
    viewer = session.join()
    try:
        await socket.prepare(request)
        sending = asyncio.create_task(_send(socket, viewer))
        try:
            await _listen(socket, session, viewer)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
    finally:
        sockets.discard(socket)
        session.leave(viewer)
    return socket


async def _listen(socket: web.WebSocketResponse, session: Session, viewer: Viewer) -> None:
    """Wishes, each on its own: pausing does not wait for what goes on."""
    wishes: set[asyncio.Task[None]] = set()
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            continue
        try:
            wish: Any = json.loads(message.data)
        except (ValueError, RecursionError):
            wish = None
        if len(wishes) < TABS:
            task = asyncio.create_task(session.handle(wish, viewer))
            wishes.add(task)
            task.add_done_callback(wishes.discard)
        else:
            viewer.show({"kind": "notice", "text": "One thing after the other, please."})


async def _send(socket: web.WebSocketResponse, viewer: Viewer) -> None:
    """All news of a tab. Where that ends with an error the socket closes, so that the page connects anew."""
    try:
        while True:
            await viewer.news.wait()
            for message in viewer.take():
                await socket.send_str(json.dumps(message))
    except Exception:
        await socket.close(code=WSCloseCode.INTERNAL_ERROR)
        raise


async def _hang_up(app: web.Application) -> None:
    farewells = (socket.close(code=GOING, message=b"the program has ended") for socket in app[SOCKETS])
    await asyncio.gather(*farewells, return_exceptions=True)  # some may be broken
    await app[SESSION].close()


@dataclass(frozen=True)
class Page:
    """What the page is made of; see `la_reconvla.live.session.Session`."""

    arms: tuple[Arm, ...]
    suites: dict[str, list[dict[str, Any]]]
    cameras: tuple[str, ...]
    log: Path
    first: Choice
    token: str


async def serve(page: Page, call: Call, port: int, ready: Callable[[str], None]) -> None:
    """Serve until cancelled; the port closes with it.

    Args:
        page: what to serve.
        call: runs a method of the worker's scene.
        port: of 127.0.0.1; 0 takes a free one.
        ready: is given the address with its token when it is open.

    Raises:
        UserError: the port cannot be opened, or the first scene cannot be set up.
    """
    session = Session(call, page.arms, page.suites, page.cameras, page.log)
    runner = web.AppRunner(application(session, page.token), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"port {port} of {HOST} cannot be opened ({error}): choose another with --port") from error
        opened = runner.addresses[0][1]
        ready(f"http://{HOST}:{opened}/?token={page.token}")
        await session.work("choose", page.first, slow=f"starting the simulator; {WISHES['choose'][2]}")
        session.tell()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()

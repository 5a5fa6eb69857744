"""`la-reconvla serve`: a trained policy behind a port, for robots and simulators.

One process, one policy, one pass at a time; several clients take turns. Everything that a client can make the server
hold is bounded: the size of a message, waiting messages (one per client), clients, requests per second. The fast path
is recorded before the port opens for the instructions that are named, and for others when a client first says them.
That first answer takes seconds: ask once before the robot moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import http
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float

from la_reconvla.contracts import Observation
from la_reconvla.errors import UserError
from la_reconvla.robot import proprio_width
from la_reconvla.serving import wire
from la_reconvla.training.acting import Actor, EpisodeNoise
from la_reconvla.training.trained_policy import TrainedPolicy

MAX_SIDE = 2048  # pixels of a picture
MAX_PROMPT = 1000  # characters
MAX_MESSAGE = 2 * MAX_SIDE * MAX_SIDE * 3 + 100_000  # bytes: two pictures and what is around them
MAX_ERRORS = 20  # of one client, then it is disconnected
HEALTH = "/healthz"


@dataclass(frozen=True)
class Limits:
    """What clients may ask for.

    Attributes:
        clients: at once.
        rate: messages per second and client; faster ones wait.
        idle: seconds without a message after which a client is disconnected.
    """

    clients: int = 4
    rate: float = 100.0
    idle: float = 600.0


class Service:
    """The policy as the server calls it: a checked map in, a chunk of actions out.

    Args:
        policy: a trained policy; it acts by its fast path from the first call under an instruction on.
        instructions: for which the fast path is recorded now.
    """

    def __init__(self, policy: TrainedPolicy, instructions: Sequence[str] = ()):
        self._policy = policy
        policy.actor = Actor(policy.policy, patience=0)
        config = policy.config
        kind = config.backbone.proprio
        self.width = proprio_width("all" if kind == "gripper" else kind)  # clients send the whole state
        self.served = 0
        size = config.backbone.image_size
        self.metadata: dict[str, Any] = {
            "program": f"la-reconvla {version('la-reconvla')}",
            "policy": config.condition,
            "seed": config.seed,
            "orientation": config.inputs.orientation,
            "cameras": list(config.inputs.cameras[: 1 + config.backbone.wrist]),
            "image_size": size,
            "wrist": config.backbone.wrist,
            "state": self.width,
            "chunk": config.backbone.chunk,
            wire.EPISODE: "optional",
            wire.ACTION_NAMES: list(config.bins.space.names),
            "action_kinds": list(config.bins.space.kinds),
            "action_low": list(config.bins.low),
            "action_high": list(config.bins.high),
        }
        blank, noise = np.full((size, size, 3), 128, np.uint8), self.noise()
        state = np.zeros(self.width, np.float32) if self.width else None
        for told in instructions:
            for _ in range(2):  # the first records, the second runs the recording
                self._act(Observation(blank, told, blank if config.backbone.wrist else None, state), noise)
        self.metadata["recorded"] = list(instructions) if policy.actor.records() else []

    def noise(self) -> EpisodeNoise:
        """For one client: which episode it is in, and how many chunks it has asked for there."""
        return EpisodeNoise(self._policy.config.seed)

    def __call__(self, message: Any, noise: EpisodeNoise) -> Float[np.ndarray, "c a"]:
        """The chunk for one observation of the client whose `noise` it is.

        Raises:
            UserError: the message is no observation of this policy; nothing has acted.
        """
        seen = self._observation(message)
        episode = message.get(wire.EPISODE, noise.episode)
        if not isinstance(episode, str) or len(episode) > MAX_PROMPT:
            raise UserError(f"'{wire.EPISODE}' must be a name of at most {MAX_PROMPT} characters")
        if episode != noise.episode:
            noise.begin(episode)
        return self._act(seen, noise)

    def _act(self, seen: Observation, noise: EpisodeNoise) -> Float[np.ndarray, "c a"]:
        self._policy.noise = noise
        self._policy.tell(seen.instruction)
        actions = self._policy.act(seen)
        if not np.isfinite(actions).all():
            raise UserError("the policy gave NaN or infinity: its weights or its input are damaged; stop the robot")
        self.served += 1
        return np.asarray(actions, np.float32)

    def _observation(self, message: Any) -> Observation:
        if not isinstance(message, dict):
            raise UserError(f"send a map of observations, not a {type(message).__name__}")
        told = message.get(wire.PROMPT)
        if not isinstance(told, str) or not told.strip() or len(told) > MAX_PROMPT:
            raise UserError(f"'{wire.PROMPT}' must be an instruction of 1 to {MAX_PROMPT} characters")
        wanted = self.metadata["orientation"]
        orientation = message.get(wire.ORIENTATION, wanted)
        if orientation != wanted:
            raise UserError(f"pictures must be {wanted}, not {str(orientation)[:40]!r}: turn them before sending")
        wrist = _picture(message, wire.WRIST) if self.metadata["wrist"] else None
        return Observation(_picture(message, wire.IMAGE), told, wrist, self._state(message) if self.width else None)

    def _state(self, message: dict[Any, Any]) -> Float[np.ndarray, " p"]:
        state = message.get(wire.STATE)
        if not isinstance(state, np.ndarray) or state.shape != (self.width,) or state.dtype.kind != "f":
            raise UserError(f"'{wire.STATE}' must be {self.width} floats, not {_shown(state)}")
        if not np.isfinite(state).all():
            raise UserError(f"'{wire.STATE}' has NaN or infinity")
        return state.astype(np.float32)


def _picture(message: dict[Any, Any], name: str) -> np.ndarray:
    found = message.get(name)
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        raise UserError(f"'{name}' must be a picture, uint8 [H W 3], not {_shown(found)}")
    if not all(1 <= side <= MAX_SIDE for side in found.shape[:2]):
        raise UserError(f"'{name}' is {found.shape[0]} x {found.shape[1]} pixels; 1 to {MAX_SIDE} are taken")
    return found.copy()  # what came by the wire cannot be written to, and torch warns of that


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def require_safe(host: str, token: str | None) -> None:
    """Refuse to open a port to others without a token.

    Raises:
        UserError: with the way out.
    """
    local = host == "localhost"
    with contextlib.suppress(ValueError):
        local = ipaddress.ip_address(host).is_loopback
    if not local and token is None:
        raise UserError(
            f"{host} can be reached from elsewhere, and whoever reaches it moves the robot: give a file with a token "
            "(--token-file; `openssl rand -hex 32 > token`), or serve on 127.0.0.1"
        )
    if token is not None and len(token) < 16:
        raise UserError("the token is shorter than 16 characters, easy to guess: `openssl rand -hex 32 > token`")


async def run(
    service: Service,
    host: str,
    port: int,
    token: str | None = None,
    limits: Limits = Limits(),
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until cancelled.

    Args:
        service: what answers.
        host: address to listen on.
        port: its port; 0 takes a free one.
        token: what clients must send as ``Authorization: Api-Key TOKEN``; None on this machine alone.
        limits: of clients.
        ready: told the port when it is open.

    Raises:
        UserError: an address elsewhere without a token, or a port that cannot be opened.
    """
    from websockets.asyncio.server import serve

    require_safe(host, token)
    doorman = Doorman(token, limits, service)
    with ThreadPoolExecutor(1, "policy") as passes:  # one pass at a time, while health and refusals go on
        handler = functools.partial(_converse, service=service, passes=passes, limits=limits)
        try:
            server = await serve(
                doorman.counted(handler),
                host,
                port,
                process_request=doorman.admit,
                max_size=MAX_MESSAGE,
                max_queue=1,
                compression=None,  # pictures hardly shrink, and a small message could unfold to a huge one
                open_timeout=10,
                close_timeout=5,
                ping_interval=20,
                ping_timeout=20,
            )
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be opened ({error}): choose another with --port") from error
        async with server:
            ready(server.sockets[0].getsockname()[1])
            await server.serve_forever()


class Doorman:
    """Who may come in: those with the token, as long as there is room. Health is for everyone."""

    def __init__(self, token: str | None, limits: Limits, service: Service):
        self._token, self._limits, self._service, self._inside = token, limits, service, 0

    def admit(self, connection: Any, request: Any) -> Any:
        """None to go on with the handshake, or the answer that ends it."""
        if request.path == HEALTH:
            body = {"status": "ok", "clients": self._inside, "served": self._service.served}
            return connection.respond(http.HTTPStatus.OK, json.dumps(body) + "\n")
        given = request.headers.get_all("Authorization")
        if self._token is not None and not (len(given) == 1 and _equal(given[0], f"Api-Key {self._token}")):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send Authorization: Api-Key TOKEN\n")
        if self._inside >= self._limits.clients:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "as many clients as there may be\n")
        return None

    def counted(self, handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """`handler`, with its clients counted; those who came in at the same moment and are too many are sent off."""

        async def inside(connection: Any) -> None:
            if self._inside >= self._limits.clients:
                await connection.close(1013, "as many clients as there may be")
                return
            self._inside += 1
            try:
                await handler(connection)
            finally:
                self._inside -= 1

        return inside


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


async def _converse(connection: Any, *, service: Service, passes: ThreadPoolExecutor, limits: Limits) -> None:
    """One client: metadata, then an answer to each observation."""
    from websockets.exceptions import ConnectionClosed

    errors, loop, noise = 0, asyncio.get_running_loop(), service.noise()
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        await connection.send(wire.pack(service.metadata))
        while errors < MAX_ERRORS:
            message = await asyncio.wait_for(connection.recv(), limits.idle)
            begun = time.perf_counter()
            try:
                if not isinstance(message, bytes):
                    raise UserError("send observations as binary msgpack, not as text")
                asked = wire.unpack(message)
                actions = await loop.run_in_executor(passes, service, asked, noise)
            except UserError as error:
                errors += 1
                await connection.send(f"error: {error}")
            else:
                spent = 1e3 * (time.perf_counter() - begun)
                await connection.send(wire.pack({"actions": actions, "server_timing": {"infer_ms": spent}}))
            await asyncio.sleep(max(0.0, 1 / limits.rate - (time.perf_counter() - begun)))
        await connection.close(1008, "too many errors")

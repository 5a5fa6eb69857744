"""A policy behind somebody's port as a policy to roll out: any server that speaks openpi's wire format."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from la_reconvla.contracts import Observation
from la_reconvla.data.instructions import Words
from la_reconvla.data.samples import GREY
from la_reconvla.data.starts import Start
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_INPUTS
from la_reconvla.serving import wire
from la_reconvla.sim.env import ACTION_DIM, Env
from la_reconvla.sim.policies import told
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.storage import plain

TOKEN = "LA_RECONVLA_TOKEN"  # environment variable with the server's token
MAX_ANSWER = 16_000_000  # bytes of a chunk of actions and what comes with it
SHOWN = EnvSettings(image_size=256, wrist=True, proprio=True, quality="official")  # as openpi's LIBERO example
PATIENCE = 300  # seconds: a large policy compiles itself in its first call


def is_address(run: str) -> bool:
    """Whether a policy is named by the address of its server."""
    return run.startswith(("ws://", "wss://"))


@dataclass(frozen=True)
class Remote:
    """A policy behind a websocket.

    Attributes:
        url: such as ``ws://127.0.0.1:8000``.
        view: ``true``; ``grey_image`` shows it grey pictures; ``wrong_instruction`` gives it another instruction.
        swaps: for the wrong instruction: (task, true instruction, what it is given instead).
        words: in which tasks are told, see `la_reconvla.sim.tasks.in_words`.
        execute: so many actions of each chunk are carried out; None for all of them.
    """

    url: str
    view: View = "true"
    swaps: tuple[tuple[int, str, str], ...] = ()
    words: Words = "files"
    execute: int | None = None

    def identity(self) -> dict[str, Any]:
        """Where it is and what it says of itself. Its weights cannot be seen."""
        connection = Connection(self.url)
        connection.close()
        asked = {"view": self.view, "words": self.words, "execute": self.execute}
        return {"url": self.url, "server": json.loads(json.dumps(plain(connection.metadata), default=str)), **asked}

    def build(self) -> RemotePolicy:
        """Connect.

        Raises:
            UserError: nobody answers there, or it asks for a token.
        """
        return RemotePolicy(self)


class Connection:
    """One conversation with a server; `metadata` is what it said first.

    Raises:
        UserError: nobody answers there, it asks for another token, or speaks something else.
    """

    def __init__(self, url: str):
        wire.require_packages()
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._open = ExitStack()
        try:
            server = connect(
                url, additional_headers=headers, compression=None, max_size=MAX_ANSWER, open_timeout=10, proxy=None
            )
            self._socket = self._open.enter_context(server)
            first = self._socket.recv(PATIENCE)
        except InvalidStatus as error:
            if error.response.status_code == 401:
                raise UserError(f"{url} wants a token: put it into the environment variable {TOKEN}") from error
            raise UserError(f"{url} refuses: {error}") from error
        except Exception as error:  # the socket's, the library's, a name that does not resolve, a malformed address
            raise UserError(f"{url}: no policy server answers there ({error}); is it running?") from error
        found = wire.unpack(first) if isinstance(first, bytes) else None
        self.metadata: dict[str, Any] = found if isinstance(found, dict) else {}
        self.url = url

    def ask(self, observation: dict[str, Any]) -> Any:
        """The server's answer to one observation.

        Raises:
            UserError: it says that something is wrong, or does not answer.
        """
        try:
            self._socket.send(wire.pack(observation))
            answer = self._socket.recv(PATIENCE)
        except Exception as error:
            raise UserError(f"{self.url} does not answer any more ({error})") from error
        if isinstance(answer, str):
            raise UserError(f"{self.url} answers with an error:\n{answer[-2000:]}")
        return wire.unpack(answer)

    def close(self) -> None:
        """Say goodbye."""
        self._open.close()


class RemotePolicy:
    """`la_reconvla.sim.env.RolloutPolicy` over a connection."""

    name, sees = "remote", True

    def __init__(self, specification: Remote):
        self.specification = specification
        self._connection = Connection(specification.url)
        self._instruction, self._episode = "", ""
        said, given = self._connection.metadata, LIBERO_INPUTS.orientation
        if (wanted := said.get(wire.ORIENTATION, given)) != given:
            raise UserError(f"{specification.url} wants {wanted} pictures; the simulator gives {given} ones")
        ours = list(LIBERO_ACTIONS.names)
        if (theirs := said.get(wire.ACTION_NAMES, ours)) != ours:
            raise UserError(f"{specification.url} acts by {theirs}; LIBERO's are {ours}: serve a policy of those")

    def reset(self, start: Start, env: Env) -> None:
        """The wrong-instruction floor looks at `start` to know what not to say; its id names the episode."""
        asked = self.specification
        self._instruction, self._episode = told(start, asked.view, asked.swaps, asked.words), start.id

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """One chunk, clipped to the environment's range as LIBERO's controller does.

        Raises:
            UserError: the answer is no chunk of LIBERO's actions.
        """
        if observation is None:
            raise ValueError("a remote policy needs an observation")
        grey = self.specification.view == "grey_image"

        def shown(picture: np.ndarray) -> np.ndarray:
            return np.full_like(picture, GREY) if grey else picture

        asked: dict[str, Any] = {wire.IMAGE: shown(observation.image), wire.PROMPT: self._instruction}
        if observation.wrist is not None:
            asked[wire.WRIST] = shown(observation.wrist)
        if observation.proprio is not None:
            asked[wire.STATE] = observation.proprio
        if wire.EPISODE in self._connection.metadata:  # servers of others may refuse what they do not know
            asked[wire.EPISODE] = self._episode
        answer = self._connection.ask(asked)
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] < ACTION_DIM:
            raise UserError(f"{self.specification.url} gives no actions of shape [c {ACTION_DIM}]")
        chunk = np.asarray(actions[: self.specification.execute, :ACTION_DIM], np.float64)
        if len(chunk) == 0 or not np.isfinite(chunk).all():
            raise UserError(f"{self.specification.url} gives no actions, or NaN or infinity among them")
        return np.clip(chunk, -1.0, 1.0)

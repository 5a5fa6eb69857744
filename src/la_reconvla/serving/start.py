"""From a run folder to an open port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from la_reconvla.errors import UserError
from la_reconvla.serving import wire
from la_reconvla.serving.server import Limits, Service, require_safe, run
from la_reconvla.training.checkpoint import find_run
from la_reconvla.training.devices import pick_device
from la_reconvla.training.trained_policy import Trained


def start(
    source: str,
    host: str,
    port: int,
    token_file: Path | None,
    instructions: Sequence[str],
    device: str,
    clients: int,
) -> None:
    """Load a policy, record its fast path and serve it until Ctrl-C; see the command ``serve``.

    Raises:
        UserError: before anything is loaded, if the address needs a token, or a package is missing.
    """
    wire.require_packages()
    token = None if token_file is None else read_token(token_file)
    require_safe(host, token)
    if clients < 1:
        raise UserError(f"--clients must be at least 1, not {clients}")
    console = Console(stderr=True)
    policy = Trained(find_run(source), device=str(pick_device(device))).build()
    service = Service(policy, instructions)
    facts = service.metadata
    shown = "image" + (", wrist image" if facts["wrist"] else "") + (", state" if facts["state"] else "")
    console.print(f"{facts['policy']}: takes {shown} and prompt, gives {facts['chunk']} actions", soft_wrap=True)

    def ready(opened: int) -> None:
        guarded = "with a token" if token else "without a token, from this machine only"
        console.print(f"ws://{host}:{opened}  {guarded}; health: http://{host}:{opened}/healthz", soft_wrap=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(service, host, port, token, Limits(clients=clients), ready))
    console.print(f"{service.served} observations answered")


def read_token(path: Path) -> str:
    """The first line of a file.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no token can be read ({error}); make one: openssl rand -hex 32 > {path}") from error
    if not lines:
        raise UserError(f"{path} is empty; make a token: openssl rand -hex 32 > {path}")
    return lines[0]

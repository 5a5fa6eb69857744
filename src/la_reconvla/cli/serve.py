"""The command that puts a policy behind a port."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.study.options import IfGiven
from la_reconvla.training.run_folders import folder_here


def serve(
    run: Positional[str],
    port: int = 8000,
    host: str = "127.0.0.1",
    token_file: IfGiven[Path] = None,
    instruction: tuple[str, ...] = (),
    device: str = "auto",
    clients: int = 4,
) -> None:
    """Serve a policy to robots and simulators by websocket and msgpack, in openpi's wire format. Ctrl-C ends it.

    Args:
        run: a run folder, base, or user/name on the Hugging Face hub.
        port: to listen on; 0 takes a free one.
        host: address to listen on; others than this machine's own need a token.
        token_file: file whose first line clients must send, as openpi's client does with its api_key.
        instruction: instructions to record the fast path for before the port opens; others take seconds when they are
            first said.
        device: auto, cpu, cuda or mps.
        clients: at once.
    """
    folder_here(run)  # before what takes seconds to import
    from la_reconvla.serving.start import start

    start(run, host, port, token_file, instruction, device, clients)

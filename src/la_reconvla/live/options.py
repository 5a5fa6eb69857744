"""The options of the command ``try``. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from la_reconvla.sim.options import IfGiven


@dataclass(frozen=True, kw_only=True)
class TryOptions:
    """How the page begins.

    Attributes:
        port: of 127.0.0.1 to listen on; 0 takes a free one.
        suite: LIBERO suite to begin with; by default one that the policy has learned.
        task: its task to begin with; by default one that the policy has learned.
        scene: number of the wide scene to begin with; by default 0.
        out: file for the actions, a JSON line each; by default runs/try/DATE.jsonl.
        device: auto, cpu, cuda or mps.
        allow_any_mujoco: accept a MuJoCo whose physics and pictures differ.
    """

    port: int = 8010
    suite: IfGiven[str] = None
    task: IfGiven[int] = None
    scene: IfGiven[int] = None
    out: IfGiven[Path] = None
    device: str = "auto"
    allow_any_mujoco: bool = False

"""What the bench measures: the options of ``check speed``. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from la_reconvla.bench.rows import SECTIONS, Section
from la_reconvla.errors import UserError, unknown
from la_reconvla.sim.options import IfGiven


@dataclass(frozen=True)
class Settings:
    """What is measured and for how long.

    Attributes:
        backbones: presets (their sizes), ids on the hub, or folders with a config.json; weights are random.
        device: auto, cpu, cuda or mps.
        dtype: dtype of the computation; auto takes the one that suits the device.
        threads: CPU threads.
        repeats: maximum of rounds; every arm runs once per round.
        seconds: a section of one backbone starts no further round after this time.
        only: sections to run; data includes the simulator if it is installed.
        demonstrations: folder with *_demo.hdf5 files for the loader; random noise by default.
        episodes: episodes of the simulator; 0 skips it.
    """

    backbones: Annotated[tuple[str, ...], tyro.conf.arg(name="backbone")] = ("quick", "small")
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = 1
    repeats: int = 20
    seconds: float = 60.0
    only: tuple[Section, ...] = SECTIONS
    demonstrations: IfGiven[Path] = None
    episodes: int = 3

    def __post_init__(self):
        if self.threads < 1 or self.repeats < 1 or self.episodes < 0 or not self.seconds > 0:
            raise UserError("threads and repeats must be at least 1, seconds above 0 and episodes not negative")
        if not self.backbones:
            raise UserError("name at least one backbone: a preset, an id on the hub or a folder")
        for section in self.only:
            if section not in SECTIONS:
                raise unknown("section", section, SECTIONS)

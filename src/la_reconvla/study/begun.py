"""What ``study.json`` says of a study that has begun."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from la_reconvla import layout
from la_reconvla.analysis.results import Look, Results
from la_reconvla.storage import plain, read_json, write_json
from la_reconvla.typed_json import parse


@dataclass(frozen=True)
class Begun:
    """The facts that later parts of a study take from its file; `la_reconvla.storage.claim` compares the rest.

    Attributes:
        config: what it is, without what may grow.
        versions: version of each package that matters.
        precision: of its training.
        started: when, ISO 8601.
        commits: git commits of the code that worked on it.
        hardware: processor, memory, accelerator of the machine that began it.
        hypotheses: as declared.
        hypotheses_hash: SHA-256 of that.
        command: the last command line.
        size: what may grow, as it was last asked for; empty where it was stopped before that was written.
        read: what of the configuration may change, as it was last asked for; empty in files of before it was kept.
        looks: each size at which it was judged, the first one first.
    """

    config: dict[str, Any]
    versions: dict[str, str]
    precision: str
    started: str
    commits: tuple[str, ...]
    hardware: dict[str, Any]
    hypotheses: str
    hypotheses_hash: str
    command: str = ""
    size: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()


def read_begun(path: Path) -> Begun:
    """Read ``study.json``.

    Raises:
        UserError: it is missing, no JSON, of another version, or a field is missing or of another type.
    """
    return parse(Begun, layout.require_schema(read_json(path), str(path)), str(path))


def record_look(
    path: Path,
    results: Results,
    seeds: int,
    episodes: int,
    elsewhere: tuple[str, ...] = (),
    there: int = 0,
    also_official: int = 0,
) -> tuple[Look, ...]:
    """Add to ``study.json`` that the study was judged at this size, unless it was already; returns all looks.

    Args:
        path: of ``study.json``.
        results: with their verdicts.
        seeds: of each arm.
        episodes: starts of each task.
        elsewhere: other suites.
        there: starts of each task of these.
        also_official: official starts of each task beside the study's own.

    Raises:
        UserError: as `read_begun`.
    """
    arms = tuple(arm.id for arm in results.conditions)
    verdicts: dict[str, str] = {h.id: h.verdict for h in results.hypotheses}
    there = there if elsewhere else 0
    look = Look(results.study.finished, seeds, episodes, arms, verdicts, elsewhere, there, also_official)
    looks = read_begun(path).looks
    if look.size not in [before.size for before in looks]:
        looks = (*looks, look)
        write_json(path, {**read_json(path), "looks": plain(looks)})
    return looks

"""Which instance of a recorded scene is the target or the destination, at each picture of an episode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from la_reconvla.data.demonstrations import Episode
from la_reconvla.errors import UserError, unknown

ROLES = ("target", "destination")
"""Names that denote another instance in each episode, and in each part of an episode that has several."""


@dataclass(frozen=True)
class Part:
    """Control steps of an episode that are about one thing: from `begin` up to `end`.

    Attributes:
        begin: its first step.
        end: the first step after it.
        target: what is moved, opened, closed or switched.
        destination: where it is moved to; equals `target` where nothing is moved.
    """

    begin: int
    end: int
    target: str
    destination: str


def parts_of(episode: Episode) -> tuple[Part, ...]:
    """The parts of an episode in order; none if it does not say that there are several."""
    ends = [*(begin for begin, _, _ in episode.parts), len(episode.actions)][1:]
    return tuple(Part(begin, end, *names) for (begin, *names), end in zip(episode.parts, ends, strict=True))


def instance_number(episode: Episode, name: str) -> int:
    """The number of an instance in `Episode.instances`; ``target`` and ``destination`` are those of the episode.

    Raises:
        UserError: the file has no such instance, or does not record which one that is.
    """
    wanted = getattr(episode, name) if name in ROLES else name
    if wanted is None:
        raise UserError(f"{episode.path}: {episode.demo} does not record its {name}; collect with this package")
    owners = [owner for owner in episode.instance_names if name in ROLES and wanted.startswith(f"{owner}_")]
    if wanted not in episode.instance_names and not owners:
        raise unknown(f"instance in {episode.name}", wanted, episode.instance_names)
    shown = wanted if wanted in episode.instance_names else owners[0]  # a region is shown by what it belongs to
    return episode.instance_names.index(shown) + 1


def instance_numbers(episode: Episode, name: str) -> UInt8[np.ndarray, " F"]:
    """The same at each of `Episode.frame_steps`: target and destination are those of the part that the step is in.

    Raises:
        UserError: as `instance_number`.
    """
    steps, parts = episode.frame_steps, parts_of(episode) if name in ROLES else ()
    if not parts:
        return np.full(len(steps), instance_number(episode, name), dtype=np.uint8)
    found = np.zeros(len(steps), dtype=np.uint8)
    for part in parts:
        own = instance_number(replace(episode, target=part.target, destination=part.destination), name)
        found[(part.begin <= steps) & (steps < part.end)] = own
    return found

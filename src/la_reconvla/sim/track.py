"""What an episode leaves so that it can be drawn again later: states of the simulator, actions, and where it looked.

Nothing is rendered for it, so that an evaluation is no slower for being filmed. One file an episode::

    states   float64 [m s]   the simulator's state, every `EVERY` control steps and at the end
    at       int32   [m]     control steps before each of them
    actions  float32 [j a]   what was done, step by step
    looks    float16 [q n]   saliency of the patches for each chunk of actions, none for what does not look
    looked   int32   [q]     control steps before each of these
    stages   int32   [5]     control steps until each of `MARKS` was first reached, -1 for never
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write, explain_disk_errors, why_unreadable

EVERY = 4  # control steps between two states
MARKS = ("approached", "distractor_approached", "grasped", "lifted", "placed")
SUFFIX = ".npz"


@runtime_checkable
class Stateful(Protocol):
    """An environment whose state can be kept and set again."""

    def state(self) -> Float[np.ndarray, " s"]:
        """All that decides what is seen and what comes next."""
        ...


@dataclass(eq=False)
class Track:
    """One episode, as the file holds it; see the module."""

    states: list[Float[np.ndarray, " s"]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    actions: list[Float[np.ndarray, " a"]] = field(default_factory=list)
    looks: list[Float[np.ndarray, " n"]] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)

    def keep(self, env: object, step: int) -> None:
        """The present state, `step` control steps after the beginning.

        Raises:
            TypeError: the environment has no state.
        """
        if not isinstance(env, Stateful):
            raise TypeError(f"{type(env).__name__} has no state to draw again")
        self.states.append(env.state())
        self.at.append(step)

    def look(self, look: Float[np.ndarray, " n"], step: int) -> None:
        """Where the policy looks before the chunk of actions that begins at `step`."""
        self.looks.append(look)
        self.looked.append(step)

    def mark(self, reached: Mapping[str, bool], step: int) -> None:
        """Which stages are reached after `step` control steps."""
        for name, yes in reached.items():
            if yes:
                self.stages.setdefault(name, step)

    def look_at(self, step: int) -> int | None:
        """Which of `looks` the action at `step` was chosen by; None if there are none."""
        return None if not self.looks else max(0, int(np.searchsorted(self.looked, step, side="right")) - 1)

    def save(self, path: Path) -> int:
        """Write the file, atomically; its size in bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with explain_disk_errors(path), atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                states=np.stack(self.states),
                at=np.array(self.at, np.int32),
                actions=np.array(self.actions, np.float32),
                looks=np.array(self.looks, np.float16),
                looked=np.array(self.looked, np.int32),
                stages=np.array([self.stages.get(name, -1) for name in MARKS], np.int32),
            )
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> Track:
        """What `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                fields = {name: held[name] for name in ("states", "at", "actions", "looks", "looked", "stages")}
            lengths = {name: len(values) for name, values in fields.items()}
            known = lengths["at"] > 0 and lengths["stages"] == len(MARKS)
            if not known or lengths["states"] != lengths["at"] or lengths["looks"] != lengths["looked"]:
                raise ValueError(f"its arrays have the lengths {lengths}")
        except Exception as error:  # zip and numpy have many names for a damaged file
            raise UserError(f"{path}: {why_unreadable(error, 'delete it: only its film is lost')}") from error
        return cls(
            list(fields["states"]),
            fields["at"].tolist(),
            list(fields["actions"]),
            list(fields["looks"].astype(np.float32)),
            fields["looked"].tolist(),
            {name: int(step) for name, step in zip(MARKS, fields["stages"], strict=True) if step >= 0},
        )

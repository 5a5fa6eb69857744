"""An episode of a dataset that other programs wrote: labels, words, pictures, perhaps a state, and no simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5_layout import FINGERS, lacks, picture_names
from la_reconvla.data.robot_states import checked_state
from la_reconvla.robot import Quality

LIBERO_STATE = ("x", "y", "z", "rx", "ry", "rz", "finger 1", "finger 2")
"""What the robot's state is where `Episode.state_width` is None; the names are ours."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetEpisode(Episode):
    """What all formats of datasets share; of `Episode`'s methods, a format adds `stored`, `sampled` and `files`.

    Attributes:
        sizes: rows and columns of the pictures of `cameras`.
        recorded_state: of the robot at every step, as it lies there; None where there is none.
        state_name: the format's name of it.
        remedy: what helps where a dataset is damaged.
    """

    suite: str | None = None
    task: int | None = None
    quality: Quality = "official"
    frame_stride: int = 1
    turn: tuple[int, int] = (1, 1)
    sizes: tuple[tuple[int, int], ...]
    recorded_state: np.ndarray | None
    state_name: ClassVar[str]
    remedy: ClassVar[str]

    def picture_size(self, camera: str) -> tuple[int, int]:
        """See `Episode`."""
        if camera not in self.cameras:
            raise lacks(self._where, picture_names(camera)[0])
        return self.sizes[self.cameras.index(camera)]

    def proprio(self) -> Float32[np.ndarray, "T p"]:
        """See `Episode`.

        Raises:
            UserError: the dataset has no state, or it is not finite.
        """
        if self.recorded_state is None:
            raise lacks(self._where, self.state_name)
        shape = len(self.actions), self.state_width or len(LIBERO_STATE)
        return checked_state(self._where, self.state_name, self.recorded_state, shape, self.remedy)

    def fingers(self) -> Float32[np.ndarray, "T 2"]:
        """See `Episode`; those of LIBERO's state are its last two numbers.

        Raises:
            UserError: as `proprio`, or it is the state of another robot.
        """
        if self.state_width is not None:
            raise lacks(self._where, FINGERS[0])
        return self.proprio()[:, -2:]

    def executed(self) -> Float32[np.ndarray, "T a"]:
        """The labels: no format has anything else."""
        return self.actions

    def first_state(self) -> Any:
        """See `Episode`.

        Raises:
            UserError: always; no format has MuJoCo's states.
        """
        raise lacks(self._where, "init_state")

    def _array(self, names: tuple[str, ...], rows: int) -> np.ndarray:
        raise lacks(self._where, names[0])

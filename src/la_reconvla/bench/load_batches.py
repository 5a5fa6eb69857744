"""Loading: one batch as training takes it, from a collection or from a drawn one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from la_reconvla.bench.sizes import Compute, Size
from la_reconvla.bench.timing import Work
from la_reconvla.bench.train_steps import BATCH
from la_reconvla.contracts import Batch
from la_reconvla.data.hdf5_writer import FileHeader, Recording, write_file
from la_reconvla.data.samples import Samples, batch_indices, shifted
from la_reconvla.data.starts import Start
from la_reconvla.randomness import generator
from la_reconvla.training.gradient import to_device

SHIFT = 4  # pixels that the loader moves pictures by, as DrQ does; by default training moves none


@dataclass(frozen=True)
class Load:
    """One batch as training takes it: gathered in memory, its pictures shifted, moved to the device."""

    samples: Samples
    batch: int = BATCH
    id: str = "a batch of the loader, shifted and on the device"

    def build(self, size: Size, compute: Compute) -> Work:
        """See `Case`."""
        steps = itertools.count()

        def work() -> Batch:
            step = next(steps)
            batch = self.samples.batch(batch_indices(0, step, self.batch, len(self.samples)))
            return to_device(shifted(batch, SHIFT, generator(0, "shift", step)), compute.device, blind=False)

        return work


def recording(folder: Path, image_size: int, episodes: int = 4, length: int = 100) -> None:
    """Write a drawn recording: noise for pictures, in the layout of a collected one."""
    rng = np.random.default_rng(0)
    name = "bench"
    header = FileHeader(
        suite="libero_spatial",
        task=0,
        name=name,
        language="pick up the black bowl and compute it on the plate",
        bddl_file=f"libero_spatial/{name}.bddl",
        bddl_content="",
        env_args="{}",
        problem="libero_tabletop_manipulation",
        quality="fast",
        image_size=image_size,
        frame_stride=2,
    )
    frames = (length + 1) // 2
    recordings = [
        Recording(
            start=Start(
                *("libero_spatial", 0, "wide", "train", number, number),
                state=np.zeros(5),
                instruction=header.language,
                target="akita_black_bowl_1",
                destination="plate_1",
            ),
            actions=(actions := rng.uniform(-1, 1, (length, 7))),
            executed=actions,
            states=np.zeros((length, 5)),
            robot_states=np.zeros((length, 9)),
            proprio=np.zeros((length, 8), np.float32),
            joints=np.zeros((length, 7)),
            frames=rng.integers(0, 256, (frames, image_size, image_size, 3), dtype=np.uint8),
            wrist=None,
            instances=None,
            instance_names=(),
            model_xml="<mujoco/>",
            success_step=length - 1,
            noise=0.0,
            seed=number,
        )
        for number in range(episodes)
    ]
    write_file(folder / f"{name}_demo.hdf5", header, recordings)

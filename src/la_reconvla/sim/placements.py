"""Wide starts: initial states of ours in which the image and the words are needed.

In LIBERO-Spatial's official states a task's objects move by 0-11 mm, and replaying one demonstration blindly succeeds
in a quarter or more of them. In the states of `wide_starts`:

- the objects on the table are shifted together by up to `Wide.shift` and turned together by up to `Wide.turn`, then
  each is moved by up to `Wide.jitter` more; what is on an object goes with it;
- a bowl on furniture, which cannot move, is moved within the room that it has there (`wide_scenes.ROOM`), and one that
  is named by the table's centre around that centre;
- every scene occurs twice, with two things to move: indices 2j and 2j + 1 show the same image under two instructions,
  each true of its target (`wide_targets.asks`). Where a scene has two bowls, each is distinguished from the other
  (`wide_targets.BowlRelation`); otherwise (LIBERO-Object, LIBERO-Goal) the second instruction is that of another task
  of the suite, whose target and destination are in this scene, too.

The wording is LIBERO's: the instruction of that task of the suite in which a bowl in this relation is the target.
Every state is checked in the simulator as `LiberoEnv.reset` will set it up: nothing overlaps, slides, falls or tilts,
both targets and destinations can be reached by the hand and are in the camera's view, and both instructions still hold.

What that leaves, by task of LIBERO-Spatial:

======== =================================== ===========================================================
tasks    targets                             what varies
======== =================================== ===========================================================
0 1 2 8  both on the table                   targets, plate and the rest over about 25 x 20 cm
5        on the ramekin, on the cookies box  the same: what carries the bowls is moved
6        on the table, on the stove          the same for the first; the second stays within 3 cm
3        on the cookies box, on the cabinet  the same for the first; the second stays within 4 cm
4 7 9    in the drawer, on stove or cabinet  targets stay within 1, 3 or 4 cm; the plate and the rest widely
======== =================================== ===========================================================

In LIBERO-Object and LIBERO-Goal all free objects are on the floor or on the table and vary widely; the furniture of
LIBERO-Goal, and with it the destinations on stove, cabinet and rack, stays.

Draws are seeded by (suite, task, split, j), so that a start never depends on which others are asked for, and training
and test starts come from different streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from la_reconvla.data.starts import Split, Start
from la_reconvla.errors import UserError, unknown
from la_reconvla.sim.tasks import load_task
from la_reconvla.sim.wide_scenes import SEED, Wide, scene_states
from la_reconvla.sim.wide_targets import asks


def wide_starts(
    suite: str,
    task: int,
    split: Split,
    indices: Iterable[int],
    cache: Path | None = None,
    *,
    allow_any_mujoco: bool = False,
) -> list[Start]:
    """Starts with objects moved about; equal arguments give bit-equal starts.

    Args:
        suite: one whose tasks have `asks`: LIBERO-Spatial, LIBERO-Object, LIBERO-Goal.
        task: its task, whose layout and relations the scenes keep.
        split: ``train`` or ``test``: different streams of random numbers.
        indices: which starts, in the order wanted. 2j has the first of the task's `asks` in scene j, 2j + 1 the second.
        cache: folder in which scenes are kept, by all that they depend on; a scene takes about a second to make.
        allow_any_mujoco: make them with whatever MuJoCo is installed; they are kept apart in the cache.

    Raises:
        UserError: if the suite, task, split or an index is unknown, there are not two things to ask for in the task's
            scene, or there is no good scene within `Wide.tries` draws.
    """
    indices = list(indices)
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if min(indices, default=0) < 0:
        raise UserError(f"starts are numbered from 0: there is no start {min(indices)}")
    scene_task = load_task(suite, task)
    choices = asks(scene_task)
    states = scene_states(scene_task, split, sorted({index // 2 for index in indices}), cache, Wide(), allow_any_mujoco)
    return [
        Start(
            suite=suite,
            task=task,
            placement="wide",
            split=split,
            index=index,
            seed=SEED,
            state=states[index // 2],
            instruction=choices[index % 2].instruction,
            target=choices[index % 2].target,
            destination=choices[index % 2].destination,
        )
        for index in indices
    ]


def target_position(start: Start) -> Float[np.ndarray, "3"]:
    """Where the target is in `start.state` (m, world), read from the state alone.

    A state is the time, then 7 + 2 joints of arm and fingers, then 7 numbers (position, wxyz) for each movable object
    in the BDDL file's order.
    """
    place = load_task(start.suite, start.task).objects.index(start.target)
    return np.asarray(start.state[1 + 9 + 7 * place :][:3])

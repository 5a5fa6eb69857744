"""What a collection records with: tasks, scenes, simulator and expert, behind one protocol and from LIBERO."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from la_reconvla import layout
from la_reconvla.data.hdf5_layout import SHARDS
from la_reconvla.data.hdf5_writer import FileHeader
from la_reconvla.data.starts import Start
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.recording import RecordableEnv, ScriptedExpert

CORRECTED = 10_000  # wide scenes in which a policy is corrected: those before may have trained it


class RecordingSetup(Protocol):
    """Where episodes are recorded: builds everything in the process that uses it. Pickled to the workers."""

    def header(self, config: CollectConfig, task: int) -> FileHeader:
        """What the file of a task holds about it; raises `UserError` for an unknown suite or task."""
        ...

    def check(self, config: CollectConfig) -> None:
        """Make sure that this machine can record, before anything is written; raises `UserError` if it cannot."""
        ...

    def prepare(self, config: CollectConfig, task: int, scenes: range) -> None:
        """Make the scenes of a task with these numbers, if that is cheaper than one by one."""
        ...

    def scene(self, config: CollectConfig, task: int, number: int) -> Sequence[Start]:
        """The starts of scene `number`."""
        ...

    def env(self, config: CollectConfig) -> RecordableEnv: ...

    def expert(self) -> ScriptedExpert: ...

    def names(self, config: CollectConfig, task: int) -> tuple[str, ...]:
        """Instances to draw maps of."""
        ...


@dataclass(frozen=True)
class LiberoSetup:
    """The real simulator and the scripted expert."""

    def header(self, config: CollectConfig, task: int) -> FileHeader:
        """From the task's BDDL file; refuses a task beyond the expert or the placements before anything starts."""
        from la_reconvla.sim.expert_tasks import require_feasible
        from la_reconvla.sim.tasks import load_task
        from la_reconvla.sim.wide_targets import asks

        loaded = load_task(config.suite, task)
        require_feasible([loaded])
        if config.placement == "wide":
            asks(loaded)
        content = loaded.bddl.read_text(encoding="utf-8")
        match = re.search(r"\(problem\s+(\w+)\)", content)
        problem = match.group(1) if match else ""
        bddl_file = f"{config.suite}/{loaded.bddl.name}"
        return FileHeader(
            suite=config.suite,
            task=task,
            name=loaded.name,
            language=loaded.instruction,
            bddl_file=bddl_file,
            bddl_content=content,
            env_args=json.dumps(_env_args(config, problem, bddl_file)),
            problem=problem.lower(),
            quality=config.quality,
            image_size=config.image_size,
            frame_stride=config.frame_stride,
        )

    def check(self, config: CollectConfig) -> None:
        """The simulator can be imported, and draws."""
        from la_reconvla.sim.machine import require_simulator

        require_simulator(allow_any_mujoco=config.allow_any_mujoco)

    def prepare(self, config: CollectConfig, task: int, scenes: range) -> None:
        """Wide scenes are made in another simulator, which takes longer to build than a scene to make."""
        if config.placement == "wide":
            self._wide(config, task, scenes)

    def scene(self, config: CollectConfig, task: int, number: int) -> Sequence[Start]:
        """An official state, used again when all training states were used, or the two starts of a wide scene."""
        if config.placement == "wide":
            return self._wide(config, task, range(number, number + 1))
        from la_reconvla.sim.tasks import load_task, official_start

        state = number % config.official_states
        return (official_start(load_task(config.suite, task), state, split=config.split),)

    def _wide(self, config: CollectConfig, task: int, scenes: range) -> Sequence[Start]:
        from la_reconvla.sim.placements import wide_starts

        first = 0 if config.learner is None else CORRECTED
        indices = range(2 * (first + scenes.start), 2 * (first + scenes.stop))
        return wide_starts(
            config.suite,
            task,
            config.split,
            indices,
            cache=config.out / SHARDS / layout.PLACEMENTS,
            allow_any_mujoco=config.allow_any_mujoco,
        )

    def env(self, config: CollectConfig) -> RecordableEnv:
        """A `LiberoEnv`."""
        from la_reconvla.sim.libero import LiberoEnv

        return LiberoEnv(
            image_size=config.image_size,
            wrist=config.wrist,
            proprio=config.learner is not None,
            quality=config.quality,
            allow_any_mujoco=config.allow_any_mujoco,
        )

    def expert(self) -> ScriptedExpert:
        """The scripted expert."""
        from la_reconvla.sim.expert import Expert

        return Expert()

    def names(self, config: CollectConfig, task: int) -> tuple[str, ...]:
        """All movable objects, what the goal names, or what that belongs to, and the robot that hides them."""
        from la_reconvla.sim.tasks import load_task
        from la_reconvla.sim.wide_targets import asks

        loaded = load_task(config.suite, task)
        wide = config.placement == "wide"
        return loaded.shown([ask.destination for ask in asks(loaded)] if wide else loaded.named)


def _env_args(config: CollectConfig, problem: str, bddl_file: str) -> dict[str, Any]:
    """How to build the simulator, by LIBERO's files; keywords are those of its `OffScreenRenderEnv`."""
    return {
        "type": 1,
        "env_name": problem,
        "problem_name": problem.lower(),
        "bddl_file": f"libero/libero/bddl_files/{bddl_file}",
        "env_kwargs": {
            "robots": ["Panda"],
            "controller": "OSC_POSE",
            "control_freq": 20,
            "camera_names": ["robot0_eye_in_hand", "agentview"],
            "camera_heights": config.image_size,
            "camera_widths": config.image_size,
        },
    }

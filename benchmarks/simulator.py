"""How much faster is an environment that renders only when asked? Run: python benchmarks/simulator.py

Compared in one process, a block of each in turn, so that whatever else the machine does falls on all alike:

    plain     LIBERO's own OffScreenRenderEnv.step, two cameras drawn in every step
    official  LiberoEnv, chunks of 8 steps, one camera drawn once per chunk, drawn as LIBERO does
    fast      the same without reflections, shadows and multisampling

Prints a table and, as the last line, the same numbers as JSON. An episode is a reset with its settling steps and 110
control steps, about what the scripted expert needs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from la_reconvla.data.starts import Start
from la_reconvla.sim.libero import SETTLING_STEPS, LiberoEnv
from la_reconvla.sim.prepare import prepare_simulator
from la_reconvla.sim.tasks import load_task, official_start

CHUNK = 8
EPISODE_STEPS = 110
NO_OP = [0.0] * 6 + [-1.0]


@dataclass
class Simulation:
    """One way to simulate, with its measurements in seconds."""

    reset: Callable[[], Any]
    run: Callable[[np.ndarray], Any]
    close: Callable[[], Any]
    resets: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def measure(self, actions: np.ndarray) -> None:
        self.resets.append(_seconds(self.reset))
        self.steps.append(_seconds(lambda: self.run(actions)) / len(actions))

    def summary(self) -> dict[str, float]:
        step, reset = median(self.steps), median(self.resets)
        return {
            "steps_per_second": 1 / step,
            "step_ms": 1000 * step,
            "reset_s": reset,
            "episodes_per_minute": 60 / (reset + EPISODE_STEPS * step),
        }


def main(task: int = 0, repeats: int = 5, steps: int = 24, image_size: int = 128) -> None:
    """Compare the three.

    Args:
        task: index in LIBERO-Spatial.
        repeats: blocks of each arm; medians are reported.
        steps: control steps a block, a multiple of 8.
        image_size: rows and columns of the images.
    """
    if steps < CHUNK or steps % CHUNK:
        raise SystemExit(f"--steps must be a multiple of {CHUNK}")
    start = official_start(load_task("libero_spatial", task), 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 7))
    official, fast = (LiberoEnv(image_size, quality=quality) for quality in ("official", "fast"))
    arms = {
        "plain": plain_libero(start, image_size),
        "official": ours(official, start),
        "fast": ours(fast, start),
    }
    pictures: dict[str, list[float]] = {"official": [], "fast": []}
    for repeat in range(repeats + 1):
        for arm in arms.values():
            arm.measure(actions)
            if repeat == 0:  # compiles, uploads textures
                arm.resets.clear()
                arm.steps.clear()
        for env in (official, fast):
            pictures[env.quality].append(_seconds(env.observe))
    for arm in arms.values():
        arm.close()
    report({name: arm.summary() for name, arm in arms.items()}, {n: 1000 * median(p) for n, p in pictures.items()})


def ours(env: LiberoEnv, start: Start) -> Simulation:
    def run(actions: np.ndarray) -> None:
        for chunk in np.split(actions, len(actions) // CHUNK):
            env.observe()
            env.step(chunk, stop_at_success=False)

    return Simulation(lambda: env.reset(start), run, env.close)


def plain_libero(start: Start, image_size: int) -> Simulation:
    prepare_simulator()
    from libero.libero.envs import OffScreenRenderEnv

    bddl = load_task(start.suite, start.task).bddl
    env = OffScreenRenderEnv(bddl_file_name=str(bddl), camera_heights=image_size, camera_widths=image_size)

    def take_opengl() -> None:
        # robosuite draws into, and frees, whatever context is current; with others in the process it must be its own.
        env.sim._render_context_offscreen.gl_ctx.make_current()

    def reset() -> None:
        take_opengl()
        env.seed(start.seed)
        env.reset()
        env.set_init_state(start.state)
        run(np.array([NO_OP] * SETTLING_STEPS))

    def run(actions: np.ndarray) -> None:
        take_opengl()
        for action in actions:
            env.step(action)

    def close() -> None:
        take_opengl()
        env.close()

    return Simulation(reset, run, close)


def report(arms: dict[str, dict[str, float]], pictures: dict[str, float]) -> None:
    plain = arms["plain"]
    table = Table(title=f"medians; ours in chunks of {CHUNK}")
    for column in ("", "steps/s", "times plain", "reset s", "ep./min", "times plain", "ms/picture"):
        table.add_column(column, justify="right")
    for name, arm in arms.items():
        arm["step_ratio"] = arm["steps_per_second"] / plain["steps_per_second"]
        arm["episode_ratio"] = arm["episodes_per_minute"] / plain["episodes_per_minute"]
        table.add_row(
            name,
            f"{arm['steps_per_second']:.1f}",
            f"{arm['step_ratio']:.2f}",
            f"{arm['reset_s']:.2f}",
            f"{arm['episodes_per_minute']:.1f}",
            f"{arm['episode_ratio']:.2f}",
            f"{pictures[name]:.0f}" if name in pictures else "",
        )
    Console().print(table)
    rounded = {name: {key: round(value, 3) for key, value in arm.items()} for name, arm in arms.items()}
    print(json.dumps({"chunk": CHUNK, "arms": rounded, "picture_ms": {k: round(v, 1) for k, v in pictures.items()}}))


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    tyro.cli(main)

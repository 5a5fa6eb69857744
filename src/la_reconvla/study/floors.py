"""The floors of one trained policy: what can be had without the image or the words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from la_reconvla import layout
from la_reconvla.conditions import NO_IMAGE
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.starts import Start
from la_reconvla.episodes import Label
from la_reconvla.serving.client import Remote
from la_reconvla.serving.lerobot_policy import LeRobot
from la_reconvla.sim.expert_tasks import feasible
from la_reconvla.sim.policies import Replay, replayable
from la_reconvla.sim.tasks import load_task
from la_reconvla.study.evaluate import Evaluation
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig
from la_reconvla.training.trained_policy import Trained

VIEWS = ("grey_image", "wrong_instruction")  # floors that are a policy itself, shown or told else


def view_floors(
    policy: Trained | Remote | LeRobot, folder: Path, label: Label, swaps: tuple[tuple[int, str, str], ...]
) -> list[Evaluation]:
    """The floors that a policy needs nothing else for: itself with a grey image, and with another instruction.

    Args:
        policy: what acts.
        folder: where its episodes are.
        label: of its episodes.
        swaps: what it is told instead.
    """
    return [
        Evaluation(folder / layout.FLOORS / view, replace(label, floor=view), replace(policy, view=view, swaps=swaps))
        for view in VIEWS
    ]


def floors_of(
    policy: Trained,
    folder: Path,
    label: Label,
    swaps: tuple[tuple[int, str, str], ...],
    starts: Sequence[Start],
    demonstrations: Path | None = None,
) -> list[Evaluation]:
    """The floors of one trained policy, each in a folder below `folder`; what a study has beside its runs is found.

    Those are the policy itself shown a grey image and told something else, the run without image of the same seed and
    data, and blind replay of the demonstrations, on the starts that they have the task and target of. What is left out
    is said.

    Args:
        policy: the trained policy.
        folder: where its episodes are.
        label: of its episodes.
        swaps: what it is told instead.
        starts: that it is evaluated on.
        demonstrations: what to replay; by default those of the study that the run is part of.
    """
    below = folder / layout.FLOORS
    result = view_floors(policy, folder, label, swaps)
    study = policy.run.parent.parent
    blind = study / NO_IMAGE.id / policy.run.name
    if (blind / WEIGHTS).exists() and PolicyConfig.load(blind).data_hash == PolicyConfig.load(policy.run).data_hash:
        own = Label(NO_IMAGE.id, label.seed)
        result.append(Evaluation(below / "no_image", own, replace(policy, run=blind)))
    else:
        say(f"floor without image: left out, there is no run at {blind}")
    replayed = demonstrations or study / layout.DEMONSTRATIONS
    if demonstrations is None and not replayed.is_dir():
        say("floor blind replay: left out, it needs --demonstrations")
    else:
        known = functools.partial(has_replay, open_demonstrations(replayed))
        if any(map(known, starts)):
            alone = Label(None, None, "blind_replay")
            result.append(Evaluation(below / "blind_replay", alone, Replay(replayed.resolve()), only=known))
        if lacking := len(starts) - sum(map(known, starts)):
            say(f"floor blind replay: {replayed} has no demonstration for {lacking} of {len(starts)} starts")
    return result


def has_replay(demonstrations: Demonstrations, start: Start) -> bool:
    """Whether blind replay has a demonstration of what a start asks for."""
    return bool(replayable(start, demonstrations.episodes))


def expert_can(start: Start) -> bool:
    """Whether the scripted expert knows how to do what is asked for."""
    return feasible(load_task(start.suite, start.task))

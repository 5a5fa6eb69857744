"""CALVIN's protocol: its list against the published one, and the environment over a stand-in with the same API."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_calvin
import numpy as np
import pytest

from la_reconvla.contracts import Observation
from la_reconvla.episodes import Label
from la_reconvla.errors import UserError
from la_reconvla.sim import calvin
from la_reconvla.sim.calvin import CalvinEnv, CalvinSettings, environment_of, missing, run_sequence, start_of
from la_reconvla.sim.calvin_sequences import (
    ROBOT,
    SUBTASKS,
    fnv1,
    initial_states,
    possible,
    published_sequences,
    scene_at,
    start_seed,
)
from la_reconvla.sim.env import Env
from la_reconvla.sim.policies import Uniform

# Of the published list, which evaluations of others ship as a file: the first and the second.
FIRST = (
    {"led": 1, "lightbulb": 1, "slider": "left", "drawer": "open"}
    | {"red_block": "slider_left", "blue_block": "table", "pink_block": "slider_right", "grasped": 0},
    ("rotate_blue_block_right", "move_slider_right", "lift_red_block_slider", "place_in_slider", "turn_off_lightbulb"),
)
SECOND = ("turn_off_led", "push_into_drawer", "lift_blue_block_drawer", "place_in_slider", "close_drawer")
HASH = "840cb992c69ce9b6d59f6020966b6300c15233f8e0b9667b6486c1962424d308"


def test_the_list_begins_as_the_published_one() -> None:
    first, second = published_sequences(2)
    assert (dict(first.state), first.subtasks) == FIRST
    assert second.subtasks == SECOND
    assert [s.index for s in (first, second)] == [0, 1]
    for count in (0, 1001):
        with pytest.raises(UserError, match="1 to 1000"):
            published_sequences(count)


@pytest.mark.slow
def test_the_whole_list_is_the_published_one() -> None:
    """The hash is that of the file `eval_sequences.json` of RoboFlamingo and ReconVLA, written as here."""
    found = published_sequences()
    content = json.dumps([[dict(one.state), list(one.subtasks)] for one in found])
    assert hashlib.sha256(content.encode()).hexdigest() == HASH
    counts = np.bincount([one.state_index for one in found])
    assert (len(counts), set(counts.tolist())) == (192, {5, 6})
    assert all(possible(one.state, one.subtasks) for one in found)


def test_states_and_subtasks_are_calvins() -> None:
    states = initial_states()
    assert (len(states), len(SUBTASKS), len({subtask.says for subtask in SUBTASKS.values()})) == (192, 34, 34)
    assert all(1 <= list(state.values()).count("table") <= 2 for state in states)
    state = FIRST[0]
    assert not possible(state, ("open_drawer",))  # it is open
    assert possible(state, ("close_drawer", "open_drawer")) is False  # two of one kind
    assert not possible(state, ("lift_red_block_slider",))  # the door is before it
    assert possible(state, ("move_slider_right", "lift_red_block_slider", "place_in_slider"))
    assert possible({**state, "slider": "right"}, ("lift_red_block_slider", "place_in_drawer"))
    assert not possible(state, ("stack_block",))  # nothing in the hand
    assert possible(state, ("lift_blue_block_table", "place_in_drawer"))


def test_fnv_is_that_of_the_package_that_calvin_uses() -> None:
    """The first two are values of pyhash's own tests; with the usual initial value it would be 0xBC2C0BE9."""
    assert fnv1("test".encode("utf-16-le")) == 3910690890
    assert fnv1(b"test") == 3698262380
    assert fnv1(b"") == 0


def test_scenes_are_those_of_the_published_code() -> None:
    """Numbers of its own function for the first sequence, and a hash of all 192 scenes, rounded to a micrometre."""
    scene = scene_at(FIRST[0])
    np.testing.assert_allclose(scene[:6], [0.28, 0.22, 0, 0.088, 1, 1])
    np.testing.assert_allclose(scene[[6, 11]], [-0.240851662, 1.8859410064104645], rtol=1e-12)
    np.testing.assert_allclose(scene[[12, 17]], [0.229995412, 1.488143437705632], rtol=1e-12)
    np.testing.assert_allclose(scene[[18, 23]], [0.070341633, 1.4683986863194542], rtol=1e-12)
    every = np.round(np.concatenate([scene_at(state) for state in initial_states()]), 6)
    expected = "168d9445f9b8a3ff02cf9a6ec0a9c5fad87c5c9c31c9f1631224655d0379ce72"
    assert hashlib.sha256(every.astype("<f8").tobytes()).hexdigest() == expected
    assert len({start_seed(state) for state in initial_states()}) == 192


# ---------------------------------------------------------------- the environment


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dataset's description of its environment, with the stand-in installed."""
    needs = dict(zip(FIRST[1], (3, 5, 2, 4, 360), strict=True)) | {SECOND[0]: 361}
    monkeypatch.syspath_prepend(fake_calvin.write(tmp_path / "packages", needs))
    for name in [name for name in sys.modules if name.split(".")[0] in ("calvin_env", "pybullet", "hydra")]:
        monkeypatch.delitem(sys.modules, name)
    fake_calvin.configure(tmp_path / "data")
    yield tmp_path / "data"
    for name in [name for name in sys.modules if name.split(".")[0] == "calvin_env"]:
        del sys.modules[name]


class Opener:
    """Sends chunks of eight that open the hand, and remembers what it saw."""

    name, sees = "opener", True

    def __init__(self) -> None:
        self.told: list[str] = []
        self.seen: list[Observation] = []

    def reset(self, start: Any, env: Any) -> None:
        self.told.append(start.instruction)

    def act(self, observation: Observation | None) -> np.ndarray:
        assert observation is not None
        self.seen.append(observation)
        return np.tile([2.0, -0.5, 0, 0, 0, 0, -1.0], (8, 1))


def test_a_sequence_goes_on_until_a_subtask_fails(dataset: Path) -> None:
    env: Any = CalvinEnv(CalvinSettings(dataset=environment_of(dataset), cameras=("static", "gripper"), proprio=True))
    assert isinstance(env, Env)
    first, second = published_sequences(2)
    policy = Opener()
    record = run_sequence(env, policy, first, Label("C4", 0))
    assert (record.completed, record.steps, record.state) == (5, (3, 5, 2, 4, 360), 190)
    assert policy.told == [SUBTASKS[name].says for name in first.subtasks]
    assert [seen.instruction for seen in policy.seen[:4]] == policy.told[:4]  # each was done within one chunk
    record = run_sequence(env, Opener(), second, Label("C4", 0))
    assert (record.completed, record.steps) == (0, (360,))  # it would have been done in the next step
    np.testing.assert_array_equal(env._env.log[0], [1, -0.5, 0, 0, 0, 0, 1])  # clipped, and theirs opens with +1
    shown = policy.seen[1]
    assert shown.wrist is not None
    assert (shown.image.shape, shown.wrist.shape, int(shown.image[0, 0, 0])) == ((200, 200, 3), (84, 84, 3), 3)
    np.testing.assert_allclose(shown.proprio, ROBOT, rtol=1e-6)
    assert env._env.config["env"]["use_egl"] is False
    assert list(env._env.config["scene"]["objects"]) == ["block_red", "block_blue"]  # not sorted: states number them
    with pytest.raises(UserError, match="no instance maps"):
        env.masks(("block_red",))
    np.testing.assert_allclose(env.poses()["gripper"].quaternion, [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    env.close()


def test_the_scene_begins_as_the_sequence_says(dataset: Path) -> None:
    env: Any = CalvinEnv(CalvinSettings(dataset=environment_of(dataset), max_steps=2))
    sequence = published_sequences(1)[0]
    env.reset(start_of(sequence))
    np.testing.assert_array_equal(env._env.scene, scene_at(FIRST[0]))
    np.testing.assert_array_equal(env._env.robot, ROBOT)
    outcome = env.step(np.zeros((5, 7)) - 1)
    assert (outcome.steps, outcome.success, outcome.done) == (2, False, True)
    assert env.observe().wrist is None
    assert env.observe().proprio is None
    record = run_sequence(env, Uniform().build(), sequence, Label("random", None))
    again = run_sequence(env, Uniform().build(), sequence, Label("random", None))
    assert replace(record, seconds=0) == replace(again, seconds=0)


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_calvin.configure(tmp_path)
    monkeypatch.setattr(calvin.importlib.util, "find_spec", lambda name: None if name == "pybullet" else name)
    with pytest.raises(UserError, match=r"pybullet not installed.*git clone --recursive"):
        environment_of(tmp_path)
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    assert "no wheel for Python 3.12" in str(missing())
    with pytest.raises(UserError, match=r"no validation/.hydra/merged_config.yaml"):
        environment_of(tmp_path / "validation/.hydra")


def test_an_environment_that_ends_the_process_is_a_message(dataset: Path) -> None:
    path = dataset.parent / "packages/calvin_env/envs/play_table_env.py"
    path.write_text("import sys\ndef get_env(*_, **__): sys.exit()\n")
    with pytest.raises(UserError, match=r"does not start.*SystemExit"):
        CalvinEnv(CalvinSettings(dataset=environment_of(dataset)))

"""Rollouts against a toy simulator whose answers are known, and the evaluation's bookkeeping."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from la_reconvla import layout
from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start
from la_reconvla.episodes import WAYS, EpisodeRecord, First, Label, StartName, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.execution import local
from la_reconvla.sim import rollout
from la_reconvla.sim.env import Outcome, Pose
from la_reconvla.sim.expert_tasks import asked_for
from la_reconvla.sim.policies import Scripted, Uniform, swapped
from la_reconvla.sim.rollout import EnvSettings, StageTracker, rollouts, run_episode
from la_reconvla.sim.tasks import load_task, official_start
from la_reconvla.sim.track import Track
from la_reconvla.storage import read_json, write_json
from la_reconvla.study import evaluate as evaluation
from la_reconvla.study.starts import evaluation_starts


def start(index: int = 0, task: int = 0, placement: str = "wide", target: str = "bowl_1") -> Start:
    return Start("toy", task, placement, "test", index, 0, np.zeros(1), "move the bowl", target, "plate_1")


def scene(objects, instance):
    """A task that puts its target on its destination."""
    return SimpleNamespace(objects=objects, instance=instance, init=(), goal_for=lambda *names: (("on", *names),))


@dataclass
class ToyEnv:
    """The hand moves by 10 cm an action; a closed hand within 5 cm of an object carries it; success on the plate."""

    limit: int = 30
    rendered: int = 0
    positions: dict = field(default_factory=dict)

    def __post_init__(self):
        self.task = scene(("bowl_1", "bowl_2", "plate_1"), lambda name: name)

    def reset(self, start):
        self.steps = 0
        self.positions = {
            "gripper": np.array([0.0, 0.0, 0.3]),
            "bowl_1": np.array([0.5, 0.0, 0.0]),
            "bowl_2": np.array([0.0, 0.5, 0.0]),
            "plate_1": np.array([0.5, 0.5, 0.0]),
        }
        self.target = start.target

    def step(self, chunk):
        for action in chunk:
            self.steps += 1
            hand = self.positions["gripper"]
            held = [
                name
                for name in ("bowl_1", "bowl_2")
                if action[6] > 0 and np.linalg.norm(self.positions[name] - hand) < 0.05
            ]
            for name in ("gripper", *held):
                self.positions[name] = self.positions[name] + 0.1 * action[:3]
        away = self.positions[self.target] - self.positions["plate_1"]
        success = bool(np.linalg.norm(away[:2]) < 0.05 and away[2] < 0.05)
        return Outcome(len(chunk), success, success or self.steps >= self.limit)

    def observe(self):
        self.rendered += 1
        return Observation(np.zeros((4, 4, 3), np.uint8), "move the bowl")

    def poses(self):
        return {name: Pose(p, np.array([0, 0, 0, 1.0])) for name, p in self.positions.items()}

    def state(self):
        return np.concatenate([self.positions["gripper"], self.positions["bowl_1"]])

    def height(self, name):
        return 0.04

    def touch(self):
        """A hand within 12 cm of a bowl touches it, one within 5 cm has it between its fingers."""

        def now():
            away = {n: np.linalg.norm(self.positions[n] - self.positions["gripper"]) for n in ("bowl_1", "bowl_2")}
            return {name: bool(d < 0.05) for name, d in away.items() if d < 0.12}

        return SimpleNamespace(now=now, shifted=set)


@dataclass
class Script:
    """Plays given moves, then stands still; asks for pictures if `sees`."""

    moves: list
    sees: bool = False
    name = "script"

    def reset(self, start, env):
        self.left = list(self.moves)

    def act(self, observation):
        assert (observation is not None) == self.sees
        move = self.left.pop(0) if self.left else ((0, 0, 0), 1)
        return np.array([[*move[0], 0, 0, 0, move[1]]], dtype=float)


DOWN, UP, RIGHT, BACK = (0, 0, -1), (0, 0, 1), (1, 0, 0), (0, 1, 0)


def fetch(sideways, carry):
    return [(sideways, -1)] * 5 + [(DOWN, -1)] * 3 + [(UP, 1)] * 2 + [(carry, 1)] * 5 + [(DOWN, 1)] * 2


def test_a_solved_episode_reaches_every_stage_and_stops():
    record = run_episode(ToyEnv(), Script(fetch(RIGHT, BACK)), start())
    stages = ("approached", "grasped", "lifted", "placed", "tsr")
    assert all(record.value(stage) for stage in stages)
    assert not record.reached.distractor_approached
    assert record.steps == 17
    assert record.reached.smallest_distance == pytest.approx(0, abs=1e-6)


def test_carrying_it_over_the_destination_is_not_placing_it():
    record = run_episode(ToyEnv(), Script([*fetch(RIGHT, BACK)[:-2], *[(RIGHT, 1)] * 5]), start())
    assert record.reached.lifted
    assert not record.reached.placed


def test_carrying_the_twin_counts_as_the_distractor_and_nothing_else():
    record = run_episode(ToyEnv(), Script(fetch(BACK, RIGHT)), start())
    assert record.reached.distractor_approached
    assert not any(record.value(stage) for stage in ("approached", "grasped", "lifted", "placed", "tsr"))
    assert record.steps == 30


def test_the_same_moves_succeed_when_the_twin_is_asked_for():
    assert run_episode(ToyEnv(), Script(fetch(BACK, RIGHT)), start(target="bowl_2")).success


class RegionEnv(ToyEnv):
    """The destination is a region of the tray, over which a thing has been put as soon as the simulator says so."""

    def __post_init__(self):
        objects = ("bowl_1", "can_1", "tray_1")
        self.task = scene(objects, lambda name: name.removesuffix("_inside"))

    def reset(self, start):
        super().reset(start)
        self.positions["can_1"] = self.positions["bowl_2"]
        self.positions["tray_1"] = np.array([0.0, 0.0, 0.3])  # where the hand begins, so that it is no distractor

    def holds(self, predicate):
        assert predicate == ("on", "bowl_1", "tray_1_inside")
        return bool(np.linalg.norm((self.positions[self.target] - self.positions["plate_1"])[:2]) < 0.05)


def test_over_a_region_the_simulators_own_check_says_what_is_placed():
    begin = replace(start(), destination="tray_1_inside")
    record = run_episode(RegionEnv(), Script(fetch(RIGHT, BACK)), begin)
    assert record.reached.placed
    assert not record.reached.distractor_approached
    elsewhere = run_episode(RegionEnv(), Script([*fetch(RIGHT, BACK)[:-5], *[(RIGHT, 1)] * 5]), begin)
    assert elsewhere.reached.lifted
    assert not elsewhere.reached.placed


def test_without_a_twin_any_other_thing_but_the_destination_is_a_distractor():
    begin = replace(start(), destination="tray_1_inside")
    assert run_episode(RegionEnv(), Script([(BACK, -1)] * 5 + [(DOWN, -1)] * 3), begin).reached.distractor_approached


def test_the_first_thing_moved_is_named_and_a_touch_is_no_move():
    assert run_episode(ToyEnv(), Script(fetch(RIGHT, BACK)), start()).moved == "bowl_1"
    assert run_episode(ToyEnv(), Script(fetch(BACK, RIGHT)), start()).moved == "bowl_2"
    both = [*fetch(BACK, RIGHT), (UP, -1), (UP, -1), *[((1, -1, 0), -1)] * 2]
    assert run_episode(ToyEnv(), Script(both), start()).moved == "bowl_2"
    assert run_episode(ToyEnv(), Script([(RIGHT, -1)] * 5 + [(DOWN, -1)] * 3), start()).moved is None


def test_the_first_thing_touched_and_held_is_named():
    """Over the second bowl without taking it, then the first one is fetched."""
    right = run_episode(ToyEnv(), Script(fetch(RIGHT, BACK)), start())
    assert right.first == First(("bowl_1",), "bowl_1", "bowl_1")
    assert [right.value(way) for way in WAYS] == [1.0, 1.0, 1.0]
    back = (0, -1, 0)
    passing = [*[(BACK, -1)] * 5, *[(DOWN, -1)] * 2, *[(UP, -1)] * 2, *[(back, -1)] * 5, *fetch(RIGHT, BACK)]
    touched = run_episode(ToyEnv(), Script(passing), start())
    assert touched.first == First(("bowl_1",), "bowl_2", "bowl_1")
    assert [touched.value(way) for way in WAYS] == [0.0, 1.0, 1.0]
    nothing = run_episode(ToyEnv(), Script([]), start())
    assert nothing.first == First(("bowl_1",))
    assert [nothing.value(way) for way in WAYS] == [None, None, None]


def test_records_of_before_contacts_were_watched_are_read_and_know_nothing_of_them():
    record = run_episode(ToyEnv(), Script(fetch(BACK, RIGHT)), start())
    old = record.to_json()
    del old["first"]
    found = EpisodeRecord.from_json(old, "there")
    assert found == replace(record, first=None)
    assert [found.value(way) for way in WAYS] == [None, None, 0.0]
    assert EpisodeRecord.from_json(json.loads(json.dumps(record.to_json())), "there") == record


@pytest.mark.sim
def test_contacts_of_the_hand_are_those_that_mujoco_lists_by_name():
    """Against names of bodies, read pair by pair, along an episode of the expert."""
    begin = official_start(load_task("libero_goal", 2), 0)
    seen = set()
    with EnvSettings().build() as env:
        env.reset(begin)
        expert = Scripted().build()
        expert.reset(begin, env)
        touch, sim = env.touch(), env.sim
        while not env.step(expert.act(None)[:1]).done:
            found = set()
            for contact in sim.data._data.contact:
                bodies = [sim.model.body_id2name(sim.model.geom_bodyid[geom]) for geom in contact.geom]
                if bodies[1].startswith("gripper0_"):
                    bodies.reverse()
                if bodies[0].startswith("gripper0_"):
                    found |= {name for name in env.poses() if bodies[1].startswith(f"{name}_")}
            assert set(touch.now()) == found
            seen |= {(name, held) for name, held in touch.now().items()}
    assert ("wine_bottle_1", True) in seen


class ChainEnv(ToyEnv):
    """Both bowls are asked for: the first on the plate, the second in the drawer, which the hand pulls at a corner."""

    asks = (("on", "bowl_1", "plate_1"), ("in", "bowl_2", "wooden_cabinet_1_top_region"))

    def __post_init__(self):
        owner = lambda name: name.removesuffix("_top_region")  # noqa: E731
        objects = ("bowl_1", "bowl_2", "can_1", "plate_1")
        self.task = SimpleNamespace(objects=objects, instance=owner, init=(), goal_for=lambda *names: self.asks)

    def reset(self, start):
        super().reset(start)
        self.positions["can_1"] = np.array([-0.5, 0.0, 0.0])
        self.positions["wooden_cabinet_1"] = np.array([0.0, -0.5, 0.0])

    def holds(self, predicate):
        assert predicate == self.asks[1]
        return bool(self.positions["bowl_2"][0] > 0.4)

    def touch(self):
        objects = super().touch()

        def there():
            return bool(self.positions["gripper"][1] < -0.3)

        return SimpleNamespace(
            now=lambda: {**objects.now(), **({"wooden_cabinet_1": False} if there() else {})},
            shifted=lambda: {"wooden_cabinet_1"} if self.positions["gripper"][2] < 0.25 else set(),
        )


def test_each_thing_of_a_chain_is_a_target_and_none_of_them_a_distractor():
    """Its second part is done first, then the first half of the first: a twin that is asked for is no distractor."""
    record = run_episode(ChainEnv(), Script(fetch(BACK, RIGHT)), start())
    assert all(record.value(stage) for stage in ("approached", "grasped", "lifted", "placed"))
    assert not record.reached.distractor_approached
    assert record.first == First(("bowl_1", "bowl_2", "wooden_cabinet_1"), "bowl_2", "bowl_2")
    assert (record.moved, record.value("moved")) == ("bowl_2", 1.0)
    carried = run_episode(ChainEnv(), Script([*fetch(BACK, RIGHT)[:10], (RIGHT, 1)]), start())
    assert carried.reached.lifted
    assert not carried.reached.placed, "over the other one's destination, or anywhere, is not over its own"


def test_what_is_not_asked_for_in_a_chain_is_a_distractor():
    left = (-1, 0, 0)
    assert run_episode(ChainEnv(), Script([(left, -1)] * 5 + [(DOWN, -1)] * 3), start()).reached.distractor_approached


def test_furniture_is_moved_by_the_hand_that_touches_it():
    forward = (0, -1, 0)
    pulled = run_episode(ChainEnv(), Script([*[(forward, -1)] * 4, (DOWN, -1)]), start())
    assert (pulled.moved, pulled.value("moved")) == ("wooden_cabinet_1", 1.0)
    assert run_episode(ChainEnv(), Script([(DOWN, -1)]), start()).moved is None, "the hand was not there"
    assert run_episode(ChainEnv(), Script([(forward, -1)] * 4), start()).moved is None, "a touch is no move"


@pytest.mark.sim
@pytest.mark.parametrize(("task", "thing"), [(0, "wooden_cabinet_1"), (7, "flat_stove_1")])
def test_the_drawer_and_the_knob_that_the_expert_moves_are_moved(task, thing):
    with EnvSettings(max_steps=300).build() as env:
        record = run_episode(env, Scripted().build(), official_start(load_task("libero_goal", task), 49))
    assert (record.success, record.moved, record.value("moved")) == (True, thing, 1.0)
    assert record.reached.approached is None


def test_a_closed_drawer_that_something_belongs_in_is_asked_for():
    goal = load_task("libero_goal", 3)
    assert asked_for(goal, goal.goal) == ("akita_black_bowl_1", "wooden_cabinet_1")
    plate = load_task("libero_goal", 8)
    assert asked_for(plate, plate.goal) == ("akita_black_bowl_1",)
    both = load_task("libero_10", 3)
    assert set(asked_for(both, both.goal)) == {"akita_black_bowl_1", "white_cabinet_1"}


class FallingEnv(ToyEnv):
    """Something falls over far from the hand: nobody moved it."""

    def step(self, chunk):
        self.positions["plate_1"] = self.positions["plate_1"] - np.array([0.0, 0.0, 0.1])
        return super().step(chunk)


def test_what_moves_by_itself_was_not_moved():
    assert run_episode(FallingEnv(), Script([]), start()).moved is None


class BottleEnv(ToyEnv):
    """The first bowl is a bottle, 25 cm high, which is taken 15 cm above its origin; it lies or stands."""

    up = np.array([0.0, 0.0, 0.15])
    turned = (0.0, 0.0, 0.0, 1.0)

    def height(self, name):
        return 0.25 if name == "bowl_1" else 0.04

    def step(self, chunk):
        self.positions["bowl_1"] = self.positions["bowl_1"] + self.up  # the hand carries what is near its grip
        result = super().step(chunk)
        self.positions["bowl_1"] = self.positions["bowl_1"] - self.up
        return result

    def poses(self):
        poses = super().poses()
        return {**poses, "bowl_1": Pose(poses["bowl_1"].position, np.array(self.turned))}


def test_a_tall_thing_is_taken_at_its_upper_part():
    moves = [((0, 0, -0.5), -1), *[(RIGHT, -1)] * 5, (DOWN, -1), *[(UP, 1)] * 2, *[(BACK, 1)] * 5]
    record = run_episode(BottleEnv(), Script(moves), start())
    assert all(record.value(stage) for stage in ("approached", "grasped", "lifted"))
    assert record.moved == "bowl_1"
    assert record.reached.smallest_distance == pytest.approx(0, abs=1e-6)
    flat = run_episode(ToyEnv(), Script(moves), start())
    assert not flat.reached.approached, "15 cm above a bowl is not near it"


def test_the_line_of_a_tall_thing_turns_with_it():
    env = BottleEnv()
    env.reset(start())
    stages = StageTracker(env, start())
    env.positions["gripper"] = env.positions["bowl_1"] + np.array([0.15, 0.0, 0.0])
    stages.look()
    assert not stages.stage["approached"]
    env.turned = (0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5))  # by 90 degrees about y: up points along x
    stages.look()
    assert stages.stage["approached"]
    assert stages.smallest_distance == pytest.approx(0, abs=1e-6)


def test_where_nothing_is_put_anywhere_stages_are_not_recorded():
    record = run_episode(ToyEnv(), Script(fetch(RIGHT, BACK)[:8]), replace(start(), target="bowl_1"))
    assert record.reached.approached is True
    drawer = replace(start(), target="drawer_1", destination="drawer_1")
    env = ToyEnv(limit=3)
    env.step = lambda chunk: Outcome(1, False, True)
    record = run_episode(env, Script([]), drawer)
    stages = ("approached", "distractor_approached", "grasped", "lifted", "placed", "smallest_distance")
    assert all(record.value(stage) is None for stage in stages)


def test_pushing_without_lifting_is_not_a_grasp():
    record = run_episode(ToyEnv(), Script([(RIGHT, -1)] * 5 + [(DOWN, -1)] * 3 + [(BACK, 1)] * 5), start())
    assert record.success  # the simulator's own check has the last word
    assert record.reached.approached
    assert not record.reached.grasped
    assert not record.reached.placed


def test_nothing_is_rendered_for_those_who_do_not_look():
    env = ToyEnv()
    run_episode(env, Script([]), start())
    assert env.rendered == 0
    run_episode(env, Script([], sees=True), start())
    assert env.rendered == 30
    run_episode(env, Script([]), start(), Track())
    assert env.rendered == 30, "a track takes no pictures"


class Chunked(Script):
    """The same moves, all of them in one chunk."""

    def act(self, observation):
        return np.concatenate([super(Chunked, self).act(observation) for _ in range(30)])


def test_a_track_goes_on_while_a_long_chunk_is_executed_and_changes_nothing():
    track, moves = Track(), fetch(RIGHT, BACK)
    tracked = run_episode(ToyEnv(), Chunked(moves, sees=True), start(), track)
    assert track.at == [0, 4, 8, 12, 16, 17], "every four control steps, and the end"
    plain = run_episode(ToyEnv(), Chunked(moves, sees=True), start())
    assert replace(tracked, seconds=0.0) == replace(plain, seconds=0.0)
    assert np.array_equal(np.array(track.actions)[:, [0, 1, 2, 6]], [[*move, grip] for move, grip in moves])


def test_a_track_says_when_each_stage_was_reached():
    track = Track()
    run_episode(ToyEnv(), Script(fetch(RIGHT, BACK)), start(), track)
    # Five moves to the side and three down bring the hand there; the first lift is the ninth, and it is 10 cm high.
    assert track.stages == {"approached": 8, "grasped": 9, "lifted": 9, "placed": 17}
    hands = [state[:3] for state in track.states]
    assert hands[2] == pytest.approx([0.5, 0, 0], abs=1e-9), "after eight moves it is at the bowl"


class Looking(Script):
    """Looks at another patch each time."""

    quality = "fast"

    def look(self, observation):
        self.count = getattr(self, "count", -1) + 1
        return np.eye(4)[self.count % 4]


def test_a_track_comes_back_from_its_file(tmp_path):
    track = Track()
    run_episode(ToyEnv(), Looking(fetch(RIGHT, BACK), sees=True), start(), track)
    track.save(tmp_path / "tracks/a.npz")
    again = Track.load(tmp_path / "tracks/a.npz")
    assert (again.at, again.looked, again.stages) == (track.at, list(range(17)), track.stages)
    assert np.array_equal(again.states, track.states), "states to the last bit"
    assert np.array_equal(again.looks, track.looks)
    assert again.actions == pytest.approx(np.array(track.actions), abs=1e-6)
    assert [again.look_at(step) for step in (0, 16, 17)] == [0, 16, 16]
    (tmp_path / "tracks/a.npz").write_bytes(b"PK")
    short = Track(track.states, track.at[:-1], track.actions)
    short.save(tmp_path / "tracks/b.npz")
    for name in ("a", "b"):
        with pytest.raises(UserError, match=rf"{name}\.npz: .*delete it: only its film is lost"):
            Track.load(tmp_path / f"tracks/{name}.npz")


class DeadPool:
    def __init__(self, lives: int):
        self.lives = lives

    def submit(self, work, job):
        self.lives -= 1
        if self.lives < 0:
            raise BrokenProcessPool("gone")
        done: Future = Future()
        done.set_exception(BrokenProcessPool("gone"))
        return done


@pytest.mark.parametrize("lives", [0, 1], ids=["before the next is handed in", "while one runs"])
def test_a_worker_that_died_is_explained(monkeypatch, lives):
    monkeypatch.setattr(local, "worker_pool", lambda *_: contextlib.nullcontext(DeadPool(lives)))
    job = rollout.Job(Label("C1", 0), Uniform(), start(), EnvSettings())
    with pytest.raises(UserError, match=r"died.*, most likely for lack of memory.*fewer --workers"):
        list(rollouts([job, job], 2))


def test_the_random_policy_is_repeatable_and_bounded():
    one, two = Uniform(0).build(), Uniform(0).build()
    for policy in (one, two):
        policy.reset(start(3), ToyEnv())
    a, b = one.act(None), two.act(None)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a).max() <= 1
    assert abs(a[0, 6]) == 1
    two.reset(start(4), ToyEnv())
    assert not np.array_equal(a, two.act(None))


def test_swaps_prefer_the_other_instruction_of_the_same_scene():
    said = [(0, "left bowl"), (0, "right bowl"), (1, "cheese"), (0, "left bowl")]
    assert swapped(said) == ((0, "left bowl", "right bowl"), (0, "right bowl", "left bowl"), (1, "cheese", "left bowl"))
    with pytest.raises(UserError, match="at least two instructions"):
        swapped([(0, "left bowl")])


# ---------------------------------------------------------------- bookkeeping


@pytest.fixture
def fake_rollouts(monkeypatch):
    ran = []

    def rollouts(jobs, workers, ahead=None):
        for job in jobs:
            ran.append((job.label.condition, job.start.id))
            yield job, EpisodeRecord(job.label, StartName.of(job.start), True, 1, 0.1), None

    monkeypatch.setattr(evaluation, "rollouts", rollouts)
    return ran


def test_an_evaluation_goes_on_where_it_was_and_pairs_starts(tmp_path, fake_rollouts):
    starts = [start(i, task=i % 2) for i in range(6)]
    arms = [evaluation.Evaluation(tmp_path / id, Label(id, 0), Uniform()) for id in ("C1", "C4")]
    few = evaluation.Evaluation(tmp_path / "floor", Label("floor", None), Uniform(), episodes=2)
    evaluation.evaluate(arms[:1], starts[:3], EnvSettings(), 1)
    assert evaluation.pending([*arms, few], starts) == 3 + 6 + 2
    evaluation.evaluate([*arms, few], starts, EnvSettings(), 1)
    assert len(fake_rollouts) == len(set(fake_rollouts)) == 6 + 6 + 2
    files = [read_episodes(arm.folder) for arm in arms]
    assert {r.start.id for r in files[0]} == {r.start.id for r in files[1]} == {s.id for s in starts}
    assert evaluation.pending([*arms, few], starts) == 0
    evaluation.evaluate(arms, starts, EnvSettings(), 1)
    assert len(fake_rollouts) == 14


def test_episodes_of_another_policy_or_setting_are_never_counted(tmp_path, fake_rollouts):
    starts = [start(i) for i in range(2)]
    one = evaluation.Evaluation(tmp_path, Label("random", None), Uniform(0))
    evaluation.evaluate([one], starts, EnvSettings(), 1)
    before = (tmp_path / layout.EPISODES).read_bytes()
    for other, settings in (
        (replace(one, policy=Uniform(1)), EnvSettings()),
        (replace(one, label=Label("C4", 0)), EnvSettings()),
        (one, EnvSettings(quality="fast")),
        (one, EnvSettings(max_steps=5)),
        (replace(one, instruction="put it down"), EnvSettings()),
    ):
        with pytest.raises(UserError, match="another configuration"):
            evaluation.evaluate([other], starts, settings, 1)
    assert (tmp_path / layout.EPISODES).read_bytes() == before


def test_an_instruction_of_ones_own_is_said_in_place_of_the_tasks(tmp_path, fake_rollouts):
    told = evaluation.Evaluation(tmp_path / "told", Label("random", None), Uniform(0), instruction="put it down")
    first = start(0)
    evaluation.evaluate([told], [first], EnvSettings(max_steps=7), 1)
    (record,) = read_episodes(told.folder)
    assert (record.start.id, record.start.target) == (first.id, first.target)  # what counts is the task's
    assert record.start.instruction == "put it down" != first.instruction
    held = read_json(told.folder / layout.EVALUATION)
    assert (held["instruction"], held["settings"]["max_steps"]) == ("put it down", 7)
    with pytest.raises(UserError, match="instruction: put it down, now None"):
        evaluation.evaluate([replace(told, instruction=None)], [first], EnvSettings(max_steps=7), 1)


@pytest.mark.sim
def test_a_step_limit_ends_an_episode():
    with EnvSettings(max_steps=3).build() as env:
        record = rollout.run_episode(env, Uniform(0).build(), official_start(load_task("libero_spatial", 0), 0))
    assert (record.steps, record.success) == (3, False)


def test_an_evaluation_of_before_a_choice_goes_on(tmp_path, fake_rollouts):
    starts = [start(i) for i in range(2)]
    one = evaluation.Evaluation(tmp_path, Label("random", None), Uniform(0))
    evaluation.evaluate([one], starts[:1], EnvSettings(), 1)
    held = read_json(path := tmp_path / layout.EVALUATION)
    assert (held["label"]["kind"], held["settings"]["kind"]) == ("Label", "EnvSettings")
    del held["label"]["floor"], held["settings"]["quality"], held["settings"]["max_steps"], held["instruction"]
    write_json(path, held)
    evaluation.evaluate([one], starts, EnvSettings(), 1)
    assert len(read_episodes(tmp_path)) == 2
    with pytest.raises(UserError, match=r"settings.quality: official, now fast"):
        evaluation.evaluate([one], starts, EnvSettings(quality="fast"), 1)


@pytest.mark.sim
def test_official_evaluation_uses_other_states_than_training():
    used = frozenset(f"libero_spatial/0/official/train/{i}" for i in (49, 48, 3))
    starts = evaluation_starts("libero_spatial", [0], "official", 4, trained_on=used)
    assert [s.index for s in starts] == [47, 46, 45, 44]
    used = frozenset(f"libero_spatial/0/official/train/{i}" for i in range(48))
    with pytest.raises(UserError, match="2 official starts were not trained on, 4 are wanted"):
        evaluation_starts("libero_spatial", [0], "official", 4, trained_on=used)


@pytest.mark.sim
def test_the_expert_reaches_every_stage_with_a_bottle():
    with EnvSettings().build() as env:
        record = run_episode(env, Scripted().build(), official_start(load_task("libero_goal", 2), 0))
        assert env.height("wine_bottle_1") > 0.15
        assert env.height("akita_black_bowl_1") < rollout.DEEP, "of low things nothing but the origin counts"
    assert all(record.value(stage) for stage in ("tsr", "approached", "grasped", "lifted", "placed"))
    assert record.moved == "wine_bottle_1"
    assert record.first == First(("wine_bottle_1",), "wine_bottle_1", "wine_bottle_1")

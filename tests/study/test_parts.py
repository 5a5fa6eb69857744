"""Phases and things of recorded frames, and the records of maps and their controls that are made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_floors import save_run
from test_hdf5 import make_header, make_recording

from helpers import TINY
from la_reconvla.contracts import Batch, PolicyInput
from la_reconvla.data.boxes import Masks
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.instances import instance_number, instance_numbers
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.study.heldout import controlled, measure_run, watched
from la_reconvla.study.parts import PARTS, distractor, part_boxes, part_masks, part_patches, phases

CLOSED, OPEN = 1.0, -1.0


def recorded(folder: Path, gripper: list[float], x: list[float], **changes: Any) -> Episode:
    """A demonstration with these gripper commands, and the hand at these places along x (m)."""
    recording = make_recording(0, length=len(gripper), size=TINY.image_size, wrist=False)
    actions, proprio = recording.actions.copy(), recording.proprio.copy()
    actions[:, -1], proprio[:, 0], proprio[:, 1:3] = gripper, x, 0.0
    recording = dataclasses.replace(recording, actions=actions, proprio=proprio, **changes)
    folder.mkdir()
    write_file(folder / "task_demo.hdf5", make_header(size=TINY.image_size), [recording])
    return open_demonstrations(folder).episodes[0]


def test_phases_follow_the_gripper_and_the_way_to_where_it_lets_go(tmp_path: Path) -> None:
    gripper = [OPEN, OPEN, CLOSED, CLOSED, CLOSED, CLOSED, OPEN, OPEN]
    found = phases(recorded(tmp_path / "a", gripper, [0.0, 0.1, 0.2, 0.3, 0.45, 0.5, 0.5, 0.4]))
    assert found == ["reach", "reach", "carry", "carry", "place", "place", "place", "place"]


def test_a_second_try_reaches_again(tmp_path: Path) -> None:
    gripper = [OPEN, CLOSED, OPEN, CLOSED, CLOSED]
    assert phases(recorded(tmp_path / "a", gripper, [0.0, 0.0, 0.0, 0.1, 0.9])) == [
        *["reach"] * 3,
        "carry",
        "place",
    ]


def test_passing_over_the_destination_on_the_way_is_still_carrying(tmp_path: Path) -> None:
    found = phases(recorded(tmp_path / "a", [CLOSED] * 5, [0.5, 0.0, 0.3, 0.48, 0.5]))
    assert found == ["carry", "carry", "carry", "place", "place"]


def test_a_gripper_that_never_closes_only_reaches(tmp_path: Path) -> None:
    assert phases(recorded(tmp_path / "a", [OPEN] * 3, [0.0, 1.0, 2.0])) == ["reach"] * 3


def test_each_part_of_a_chain_has_phases_and_a_target_of_its_own(tmp_path: Path) -> None:
    """Two things and a drawer: maps of every frame hold all of them, and boxes are of the one that it is about."""
    gripper = [OPEN, CLOSED, CLOSED, OPEN, OPEN, CLOSED, CLOSED, CLOSED]
    maps = np.zeros((8, TINY.image_size, TINY.image_size), dtype=np.uint8)
    maps[:, :2, :2], maps[:, 4:6, 4:6], maps[:, 2:4, 2:4] = 1, 2, 3
    maps[4, 4:6, 4:6] = 0  # the second is hidden where its part begins
    names = ("soup_1", "sauce_1", "cabinet_1", "robot")
    parts = ((0, "soup_1", "sauce_1"), (4, "sauce_1", "cabinet_1_top_region"), (6, *["cabinet_1_top_region"] * 2))
    where = [0.0, 0.1, 0.5, 0.5, 0.0, 0.1, 0.1, 0.1]
    changes = {"instances": maps, "instance_names": names, "parts": parts}
    episode = recorded(tmp_path / "a", gripper, where, **changes)
    assert episode.parts == parts
    assert phases(episode) == ["reach", "carry", "place", "place", "reach", "place", "reach", "reach"]
    assert instance_numbers(episode, "target").tolist() == [1] * 4 + [2] * 2 + [3] * 2
    assert instance_numbers(episode, "destination").tolist() == [2] * 4 + [3] * 4
    assert instance_numbers(episode, "soup_1").tolist() == [1] * 8
    corners = (Masks()(episode)[:, :2] * TINY.image_size).round().T.tolist()
    flipped = [[TINY.image_size - 2 - c for c in (0, 0, 0, 0, 4, 4, 2, 2)]] * 2
    assert corners in (flipped, [[0, 0, 0, 0, 4, 4, 2, 2]] * 2)
    assert np.isnan(Masks().unfilled(episode)[4]).all()


@pytest.mark.parametrize(
    "parts", [((1, "a", "b"),), ((0, "a", "b"), (9, "c", "d")), ((0, "a"),), ((0, "a", 1),), ((0, "a", "b"),) * 2, 3]
)
def test_parts_that_are_none_are_refused(tmp_path: Path, parts: Any) -> None:
    with pytest.raises(UserError, match="not the parts of 3 steps"):
        recorded(tmp_path / "a", [OPEN] * 3, [0.0] * 3, parts=parts)


def named(target: str | None, names: tuple[str, ...], scene: str = "s", parts: tuple = ()) -> Any:
    return SimpleNamespace(target=target, instance_names=names, scene=scene, parts=parts)


def test_the_distractor_is_the_twin_or_what_else_is_asked_for_in_the_scene() -> None:
    bowls, things = ("bowl_1", "bowl_2", "plate_1"), ("cheese_1", "bowl_1", "plate_1")
    assert distractor(named("bowl_2", bowls), []) == "bowl_1"
    cheese, bowl = named("cheese_1", things), named("bowl_1", things)
    assert distractor(cheese, [cheese, bowl]) == "bowl_1"
    elsewhere = named("plate_1", things, scene="another")
    assert distractor(cheese, [cheese, elsewhere]) == "plate_1", "another scene of the same things, another instruction"
    assert distractor(cheese, [cheese, bowl, elsewhere]) == "bowl_1", "the same scene comes first"
    assert distractor(cheese, [cheese, named("moon_1", things)]) is None
    assert distractor(named(None, ()), [cheese]) is None
    both = named("bowl_2", bowls, parts=((0, "bowl_2", "plate_1"), (5, "bowl_1", "plate_1")))
    assert distractor(both, []) is None, "a twin that is asked for, too"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("demonstrations")
    recordings = [make_recording(index, length=6, size=TINY.image_size, wrist=False) for index in range(2)]
    write_file(folder / "task_demo.hdf5", make_header(size=TINY.image_size), recordings)
    return Samples(open_demonstrations(folder), TINY.image_size, TINY.chunk)


def test_boxes_and_patches_are_those_of_the_instance_maps(samples: Samples) -> None:
    indices = np.arange(len(samples))
    masks = part_masks(samples, indices)
    boxes, patches = part_boxes(masks), part_patches(masks, (1, 1))
    told = samples.annotated(Masks()).batch(indices).gaze
    assert told is not None
    assert np.allclose(boxes[:, 0], told.numpy())
    for row, index in enumerate(indices):
        episode, step = samples.origin(int(index))
        shown = episode.instances()[step // episode.frame_stride]
        rival = distractor(episode, samples.demonstrations.episodes)
        for column, name in enumerate(("target", "destination", rival)):
            share = 0.0 if name is None else (shown == instance_number(episode, name)).mean()
            assert patches[row, column, 0] == pytest.approx(share, abs=1e-6)


class Looks:
    """A policy whose map is drawn: one patch for each word, or the same for all."""

    def __init__(self, follows: bool):
        self.follows = follows
        self.backbone = SimpleNamespace(grid=(2, 2))

    def look(self, inputs: PolicyInput) -> torch.Tensor:
        maps = torch.full((len(inputs.instructions), 4), 0.01)
        for row, text in enumerate(inputs.instructions):
            maps[row, int(text) if self.follows else 0] = 1.0
        return maps


def overlaps(follows: bool) -> dict[str, dict[str, float]]:
    """Target at the patch that the instruction names, frame by frame; destination always at patch 3."""
    told = ["0", "1", "2"]
    coverage = np.zeros((3, 3, 4))
    for row in range(3):
        coverage[row, 0, row] = coverage[row, 1, 3] = 1.0
    batch = Batch(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), told, torch.zeros(3, 1, 7), torch.ones(3, 1).bool())
    policy: Any = Looks(follows)
    found = controlled(policy, batch, told, coverage)
    assert found[0]["distractor"]["policy"].visible is False
    assert found[0]["distractor"]["policy"].pointing is None
    return {
        part: {kind: float(np.mean([record[part][kind].pointing for record in found])) for kind in found[0][part]}
        for part in PARTS[:2]
    }


def test_a_map_that_follows_the_words_beats_every_control() -> None:
    target = overlaps(follows=True)["target"]
    assert target["policy"] == 1.0
    assert target["shuffled"] == 0.0
    assert target["mean_map"] == pytest.approx(1 / 3, abs=1e-4)  # ties of three patches
    assert target["uniform"] == target["centre"] == pytest.approx(1 / 4)
    assert max(overlaps(follows=True)["destination"][kind] for kind in ("policy", "mean_map", "shuffled")) == 0.0


def test_a_map_that_ignores_the_words_scores_what_its_controls_score() -> None:
    target = overlaps(follows=False)["target"]
    assert target["policy"] == target["mean_map"] == target["shuffled"] == pytest.approx(1 / 3, abs=1e-4)


def test_with_one_instruction_nothing_is_shuffled() -> None:
    batch = Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["0"], torch.zeros(1, 1, 7), torch.ones(1, 1).bool())
    policy: Any = Looks(True)
    found = controlled(policy, batch, ["0"], np.ones((1, 3, 4)))
    assert set(found[0]["target"]) == {"policy", "uniform", "centre", "mean_map"}


def test_records_of_a_run_have_phase_maps_and_effects_however_they_are_batched(samples: Samples, tmp_path) -> None:
    run = save_run(tmp_path / "run")
    told = sorted({episode.instruction for episode in samples.demonstrations.episodes})
    swaps = tuple((0, text, told[0]) for text in (*told, "something else"))
    one, other = (measure_run(run, samples, np.arange(len(samples)), swaps, size)["true"] for size in (3, 50))
    for record, same in zip(one, other, strict=True):
        assert record.phase in ("reach", "carry", "place")
        assert set(record.maps) == set(record.hidden) == set(PARTS)
        assert record.phase == same.phase
        first, again = ([(v.shift, v.control) for _, v in sorted(r.hidden.items())] for r in (record, same))
        for values, others in zip(first, again, strict=True):
            assert values == pytest.approx(others, abs=1e-4)
        mean, policy = record.mean_map, record.maps["target"]["policy"]
        assert mean is not None
        assert mean.target.visible == policy.visible
        assert policy.aos == pytest.approx(mean.target.aos, abs=1e-4)


def test_drift_and_overlap_over_training_by_hand(tmp_path: Path) -> None:
    (tmp_path / "looks").mkdir()
    maps = {0: [[1.0, 0, 0, 0]], 200: [[0.0, 1, 0, 0]], 400: [[0.0, 2, 0, 0]]}
    for step, values in maps.items():
        np.save(tmp_path / "looks" / f"{step:06d}.npy", np.array(values, np.float32))
    found = watched(tmp_path, np.array([[0.0, 1, 0, 0]], np.float32))
    assert [one.step for one in found] == [0, 200, 400]
    assert [one.drift for one in found] == [None, pytest.approx(1.0), pytest.approx(0.0)]
    assert [one.aos for one in found] == [0.0, 1.0, 1.0]
    assert [one.entropy for one in found] == [0.0, 0.0, 0.0]
    assert watched(tmp_path, np.zeros((0, 0), np.float32))[1].aos is None
    assert watched(tmp_path / "old", np.zeros((0, 0), np.float32)) == ()

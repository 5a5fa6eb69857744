"""The toy world: boards, answers and demonstrations, against what the pixels and the numbers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from la_reconvla.data.boxes import Masks
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.method.mask import MaskContext
from la_reconvla.method.variants.gaze import GazeMask, ShuffledGazeMask
from la_reconvla.sim import toy
from la_reconvla.sim.policies import Uniform
from la_reconvla.sim.rollout import run_episode


def shown(picture: np.ndarray, target: str) -> float:
    """Angle in which the shade of the tile of this colour rises, read off the pixels alone."""
    tiles = picture.reshape(2, toy.TILE, 2, toy.TILE, 3).transpose(0, 2, 1, 3, 4).reshape(4, toy.TILE, toy.TILE, 3)
    wanted = np.array(toy.COLOURS[target.removesuffix("_tile")])
    edges = tiles[:, : toy.EDGE].reshape(4, -1, 3).mean(1)
    body = tiles[np.abs(edges - wanted).sum(1).argmin(), toy.EDGE :].mean(-1)
    down, right = np.gradient(body)
    return float(np.arctan2(down.mean(), right.mean()))


@pytest.mark.parametrize("index", range(12))
def test_the_picture_alone_holds_the_answer(index: int) -> None:
    start, env = toy.start("test", index), toy.ToyEnv()
    env.reset(start)
    angle = shown(env.observe().image, start.target)
    assert start.target.startswith(start.instruction.removeprefix("push "))
    outcome = env.step(np.array([[np.cos(angle), np.sin(angle), 0, 0, 0, 0, -1]]))
    assert outcome.success
    assert outcome.done
    assert outcome.steps == 1
    env.reset(start)
    assert not env.step(np.array([[-np.cos(angle), -np.sin(angle), 0, 0, 0, 0, -1]])).success


def test_nothing_pushed_is_nothing_won_and_every_board_must_be_right() -> None:
    env, start = toy.ToyEnv(), toy.start("test", 0, boards=3)
    env.reset(start)
    assert not env.step(np.zeros((3, 7))).success
    answers = np.stack([toy.push(board.answer(start.target)) for board in toy.boards_of(start)])
    env.reset(start)
    assert not env.step(answers[:2]).done
    assert env.step(answers[2:]).success
    env.reset(start)
    assert not env.step(answers * np.array([[-1], [1], [1]])).success
    env.reset(start)
    assert env.step(np.concatenate([answers, answers])).steps == 3


def test_expert_always_and_chance_one_in_eight() -> None:
    env, expert, chance = toy.ToyEnv(), toy.ToyScripted().build(), Uniform().build()
    starts = [toy.start("test", index) for index in range(400)]
    assert all(run_episode(env, expert, start).success for start in starts[:20])
    rate = np.mean([run_episode(env, chance, start).success for start in starts])
    assert abs(rate - 1 / 8) < 3 * np.sqrt(1 / 8 * 7 / 8 / 400)


def test_some_tile_s_direction_is_right_as_often_as_said() -> None:
    right = []
    for index in range(1000):
        start = toy.start("test", index)
        board = toy.boards_of(start)[0]
        right.append(board.says[0] == board.answer(start.target))  # always the upper left one
    assert abs(np.mean(right) - (1 / 4 + 3 / 4 / 8)) < 3 * np.sqrt(0.34 * 0.66 / 1000)


def test_demonstrations_in_the_projects_layout(tmp_path) -> None:
    toy.demonstrations(tmp_path, episodes=30, boards=16, errors=0.5)
    samples = Samples(open_demonstrations(tmp_path), toy.SIZE, chunk=1).annotated(Masks())
    batch = samples.batch(np.arange(len(samples)))
    assert len(samples) == 480
    answers, labels = [], []
    for number in range(len(samples)):
        episode, _ = samples.origin(number)
        picture = batch.images[number].permute(1, 2, 0).numpy()
        answers.append(round(shown(picture, str(episode.target)) / (np.pi / 4)) % 8)
        labels.append(toy.direction(batch.actions[number, 0].numpy()))
    share = np.mean(np.array(answers) == np.array(labels))  # half are right, and an eighth of the others
    assert abs(share - 9 / 16) < 4 * np.sqrt(0.25 / 480)
    assert batch.gaze is not None
    sizes = batch.gaze[:, 2:] - batch.gaze[:, :2]
    assert torch.equal(sizes, torch.full_like(sizes, 0.5))  # a tile is one patch of 2 x 2: one in four is masked
    mask = GazeMask()(MaskContext((480, 4), torch.Generator(), grid=(2, 2), boxes=batch.gaze))
    for number in range(0, 480, 37):
        tile = int(mask[number].nonzero())
        corner = batch.images[number].view(3, 2, 16, 2, 16)[:, tile // 2, : toy.EDGE, tile % 2].float().mean((1, 2))
        colour = toy.COLOURS[batch.instructions[number].removeprefix("push ")]
        assert (corner - torch.tensor(colour)).abs().max() < 12


def test_a_shuffled_mask_is_another_samples() -> None:
    gaze = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]])
    context = MaskContext((3, 4), torch.Generator(), grid=(2, 2), boxes=gaze)
    own, other = GazeMask()(context), ShuffledGazeMask()(context)
    assert own.int().argmax(1).tolist() == [0, 1, 2]
    assert other.int().argmax(1).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="boxes"):
        ShuffledGazeMask()(MaskContext((3, 4), torch.Generator(), grid=(2, 2)))

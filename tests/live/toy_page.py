"""A page over the toy: a policy that pushes as the first colour of its words says, and things that may be moved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.live.scene import Arm, Choice, Frame, Scene, World
from la_reconvla.live.session import Session
from la_reconvla.sim import toy

TOKEN = "a-token-of-this-test"
LONGEST = 12  # words that the policy reads
FIRST = Choice("toy", 0, "wide", 0)
SUITES = {"toy": [{"task": 0, "instruction": "push red", "wide": True}]}
BOARDS = 60  # of an episode, a push each


class Pusher:
    name, sees, quality = "pusher", True, "fast"

    def __init__(self, turn: int):
        self.turn, self.words = turn, ""

    def reset(self, start: Start, env: Any) -> None:
        self.tell(start.instruction)

    def tell(self, instruction: str) -> None:
        self.words = instruction

    def act(self, observation: Any) -> np.ndarray:
        colours = [i for i, colour in enumerate(toy.COLOURS) if colour in self.words.split()]
        return np.stack([toy.push(((colours or [6])[0] + self.turn) % toy.DIRECTIONS)] * 4)

    def look(self, observation: Any) -> np.ndarray:
        if len(self.words.split()) > LONGEST:
            raise UserError("the instruction has too many tokens: shorten it")
        return np.array([0.1, 0.2, 0.3, float(len(self.words))])


@dataclass(frozen=True)
class Pushing:
    turn: int = 0

    def identity(self) -> dict[str, Any]:
        return {"turn": self.turn}

    def build(self) -> Pusher:
        return Pusher(self.turn)


class ToyView:
    def __init__(self, env: toy.ToyEnv):
        self._env = env

    def ready(self) -> None: ...

    def picture(self, camera: str) -> np.ndarray:
        return np.kron(self._env.observe().image, np.ones((8, 8, 1), np.uint8))

    def handles(self, camera: str) -> dict[str, tuple[float, float]]:
        return {name: (0.25 + 0.5 * (i % 2), 0.25 + 0.5 * (i // 2)) for i, name in enumerate(toy.TILES)}

    def put(self, name: str, camera: str, across: float, down: float) -> np.ndarray:
        if down > 0.9:
            raise UserError("There is no room there.")
        return np.roll(self._env._start.state.reshape(-1, 2, 4), 1, axis=2).ravel()

    def close(self) -> None: ...


def start(choice: Choice) -> Start:
    if choice.task:
        raise UserError(f"unknown task {choice.task}")
    return toy.start("test", choice.number, boards=BOARDS)


def goals(start: Start) -> dict[str, Start]:
    first = toy.start("test", start.index, boards=BOARDS)
    other = replace(first, instruction="push red", target=toy.TILES[0], destination=toy.TILES[0])
    return {first.instruction: first, "push red": other}


def offers(start: Start) -> tuple[str, ...]:
    return tuple(f"push {colour}" for colour in toy.COLOURS)


def vocabulary() -> frozenset[str]:
    return frozenset({"push", *toy.COLOURS})


TOY = World({"front": "front", "above": "above"}, start, goals, offers, ToyView, vocabulary)  # pyright: ignore
ARMS = tuple(Arm(f"arm {i}", "pushes", Pushing(i), toy.ToySettings(), (2, 2)) for i in range(2))  # pyright: ignore


def toy_session(log: Path) -> Session:
    scene = Scene(TOY, ARMS)

    async def call(method: str, *arguments: Any) -> Frame:
        return await asyncio.to_thread(getattr(scene, method), *arguments)

    return Session(call, ARMS, SUITES, tuple(TOY.cameras), log)

"""One live episode in the worker process: a simulator, a policy, the words typed, and pictures for the page.

The page's server never touches these objects. It sends the name of a method and its arguments to `do`, which runs in
the worker, and gets a `Frame` back.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from la_reconvla.data.starts import PlacementKind, Start
from la_reconvla.errors import UserError, unknown
from la_reconvla.sim.policies import Specification
from la_reconvla.sim.rollout import EnvSettings, LookingPolicy, StageTracker, TaskEnv

MAX_WORDS = 300  # characters of an instruction
MAX_STEPS = 2000  # that an episode may be given
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Arm:
    """A policy to choose from.

    Attributes:
        name: unique, for people.
        about: what it is, in a few words.
        policy: builds it.
        settings: what it sees.
        grid: rows and columns of its attention map.
    """

    name: str
    about: str
    policy: Specification
    settings: EnvSettings
    grid: tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """Which start to show: official state `number`, or wide scene `number`, of a task."""

    suite: str
    task: int
    placement: PlacementKind
    number: int


@dataclass(frozen=True, eq=False)
class Frame:
    """What the page shows of one point in time.

    Attributes:
        jpeg: the picture.
        camera: which one drew it.
        attention: one score per patch of `grid`, only proportions matter; None where the camera is not the policy's.
        grid: rows and columns of patches.
        handles: where each thing that can be moved is in the picture, as fractions from the left and from the top.
        step: control steps taken.
        limit: control steps that the episode may take.
        done: the episode has ended.
        success: the simulator's check of `checked` has held.
        checked: the instruction whose goal the simulator checks.
        words: what the policy is told.
        reached: the stages of the episode, None where the goal has none.
        touched: the first thing that the hand touched, None for nothing yet.
        moved: the first thing that it moved, None for nothing yet.
        placed_by_hand: the start was changed by dragging.
        choice: which start it is.
        episode: number of the beginnings so far, those before a failure put back what was there included.
        arm: name of the policy.
        offers: instructions that this scene suggests, and whether the simulator can check each.
        actions: float [c 7] lists, those executed since the last frame; `step` is the number of the last one.
        note: a sentence about the words, empty for none.
    """

    jpeg: bytes
    camera: str
    attention: list[float] | None
    grid: tuple[int, int]
    handles: dict[str, tuple[float, float]]
    step: int
    limit: int
    done: bool
    success: bool
    checked: str
    words: str
    reached: dict[str, Any]
    touched: str | None
    moved: str | None
    placed_by_hand: bool
    choice: Choice
    episode: int
    arm: str
    offers: tuple[tuple[str, bool], ...]
    actions: list[list[float]]
    note: str


class View(Protocol):
    """Draws an environment for people, and puts things where they drag them."""

    def ready(self) -> None:
        """The environment was reset, perhaps to another task, and has not been observed since."""
        ...

    def picture(self, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """What `camera` sees now."""
        ...

    def handles(self, camera: str) -> dict[str, tuple[float, float]]:
        """Where each movable thing is in `picture`, as fractions from the left and from the top."""
        ...

    def put(self, name: str, camera: str, across: float, down: float) -> Float[np.ndarray, " s"]:
        """The state, at rest, with `name` where that point of the picture is.

        Raises:
            UserError: it cannot stay there.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class World:
    """What differs between the simulator and a toy: functions of a module, so that a worker process can have them.

    Attributes:
        cameras: names for `View.picture`, by what people call them; the first is the policy's.
        start: the start of a choice.
        goals: what can be asked for and checked in a start's scene: instruction -> the start that asks for it.
        offers: instructions to suggest beside those.
        view: draws an environment.
        vocabulary: every word of the suite's instructions, in lower case.
    """

    cameras: Mapping[str, str]
    start: Callable[[Choice], Start]
    goals: Callable[[Start], dict[str, Start]]
    offers: Callable[[Start], tuple[str, ...]]
    view: Callable[[TaskEnv], View]
    vocabulary: Callable[[], frozenset[str]]


@runtime_checkable
class Listener(LookingPolicy, Protocol):
    """A policy that can be told other words at any time."""

    def tell(self, instruction: str) -> None: ...


class Scene:
    """The live episode.

    Args:
        world: where it happens.
        arms: policies to choose from, at least one.
    """

    def __init__(self, world: World, arms: tuple[Arm, ...]):
        self._world, self._arms = world, {arm.name: arm for arm in arms}
        self._arm = arms[0]
        self._settings: EnvSettings | None = None
        self._env: Any = None
        self._view: View | None = None
        self._policy: tuple[str, Listener] | None = None
        self._camera = next(iter(world.cameras.values()))
        self._first_camera = self._camera
        self._limit: int | None = None
        self._note = ""
        self._episode = 0

    # ------------------------------------------------------------ what the page asks for

    def choose(self, choice: Choice) -> Frame:
        """Another start, with its instruction."""
        start = self._world.start(choice)
        return self._instead(start, start.instruction, self._arm, choice, by_hand=False)

    def swap(self, arm: str) -> Frame:
        """Another policy, on the same start with the same words."""
        if arm not in self._arms:
            raise unknown("policy", arm, self._arms)
        return self._instead(self._start, self._words, self._arms[arm], self._choice, self._by_hand)

    def again(self) -> Frame:
        """The same scene, policy and words from the beginning; what the words ask for is checked, if it can be."""
        return self._begin(self._goals.get(self._words, self._start), self._words)

    def say(self, words: str) -> Frame:
        """Tell the policy other words; it plans anew from the next step on.

        Raises:
            UserError: nothing was said, or too much for this policy; it goes on under the words of before.
        """
        words = " ".join(words.split())
        if not words:
            raise UserError("Type what the robot should do.")
        if len(words) > MAX_WORDS:
            raise UserError(f"That is {len(words)} characters long; at most {MAX_WORDS} are read. Say it shorter.")
        self._require_readable(words)
        if self._step == 0 and words in self._goals and words != self._start.instruction:
            return self._instead(self._goals[words], words, self._arm, self._choice, self._by_hand)
        self._words, self._queue, self._note = words, [], self._strange(words)
        return self._frame()

    def advance(self, steps: int) -> Frame:
        """At most so many control steps, fewer at the episode's end."""
        taken: list[list[float]] = []
        policy = self._built()
        while len(taken) < steps and not self._over:
            if not self._queue:
                self._queue = list(np.asarray(policy.act(self._env.observe())))
            action = self._queue.pop(0)
            outcome = self._env.step(action[None])
            self._stages.look()
            taken.append([float(value) for value in action])
            self._step += outcome.steps
            self._success, self._ended = bool(outcome.success), bool(outcome.done)
        return self._frame(taken)

    def put(self, name: str, across: float, down: float) -> Frame:
        """Move a thing of the start to a point of the picture, as fractions from the left and the top.

        Raises:
            UserError: there is no such thing, or it cannot stay there; nothing has changed.
        """
        view = self._shown()
        if name not in view.handles(self._camera):
            raise unknown("thing", name, view.handles(self._camera))
        if self._step:
            self._begin(self._start, self._words)
        try:
            start = replace(self._start, state=self._shown().put(name, self._camera, across, down))
        except Exception:
            self._begin(self._start, self._words)  # trying took steps, and may have counted as success
            raise
        return self._instead(start, self._words, self._arm, self._choice, by_hand=True)

    def look(self, camera: str) -> Frame:
        """Show another camera, by what people call it."""
        if camera not in self._world.cameras:
            raise unknown("camera", camera, self._world.cameras)
        before, self._camera = self._camera, self._world.cameras[camera]
        try:
            return self._frame()
        except Exception:
            self._camera = before
            raise

    def limit(self, steps: int) -> Frame:
        """Let the episode take so many control steps."""
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"An episode may take 1 to {MAX_STEPS} steps, not {steps}.")
        self._limit = steps
        return self._frame()

    # ------------------------------------------------------------ inside

    @property
    def _over(self) -> bool:
        return self._ended or self._step >= self._steps_allowed

    @property
    def _steps_allowed(self) -> int:
        return self._limit or self._env.task.max_steps

    def _instead(self, start: Start, words: str, arm: Arm, choice: Choice, by_hand: bool) -> Frame:
        """Begin with something changed; where that fails, what was there before begins again."""
        before = (self._start, self._words, self._arm, self._choice, self._by_hand) if self._episode else None
        self._arm, self._choice, self._by_hand = arm, choice, by_hand
        try:
            return self._begin(start, words)
        except Exception:
            if before is not None:
                start, words, self._arm, self._choice, self._by_hand = before
                with contextlib.suppress(Exception):  # what failed first is what helps
                    self._begin(start, words)
            raise

    def _begin(self, start: Start, words: str) -> Frame:
        """Reset to `start`, policy included."""
        settings = replace(self._arm.settings, max_steps=MAX_STEPS)  # the limit here may be raised while it runs
        if self._settings != settings:
            if self._view is not None:
                self._view.close()
            if self._env is not None:
                self._env.close()
            self._settings = self._env = self._view = None
            self._env = settings.build()
            self._settings = settings
        self._env.reset(start)
        self._view = self._view or self._world.view(self._env)
        self._view.ready()
        policy = self._built()
        policy.reset(start, self._env)
        self._episode += 1
        self._start, self._words, self._queue = start, words, []
        self._step, self._success, self._ended = 0, False, False
        self._goals = {text: replace(other, state=start.state) for text, other in self._world.goals(start).items()}
        self._offers = tuple(dict.fromkeys((*self._goals, *self._world.offers(start))))
        self._stages = StageTracker(self._env, start)
        self._require_readable(words)
        self._note = self._strange(words)
        return self._frame()

    def _built(self) -> Listener:
        if self._policy is None or self._policy[0] != self._arm.name:
            self._policy = None  # the one of before makes room first
            built = self._arm.policy.build()
            if not isinstance(built, Listener):
                raise UserError(f"{self._arm.name} listens to no words: choose a trained policy")
            self._policy = self._arm.name, built
        return self._policy[1]

    def _shown(self) -> View:
        assert self._view is not None, "a start is chosen first"
        return self._view

    def _require_readable(self, words: str) -> None:
        """Tell the policy `words` and let it look once, so that what it cannot read shows now."""
        policy = self._built()
        policy.tell(words)
        try:
            policy.look(self._env.observe())
        except Exception:
            policy.tell(self._words)
            raise

    def _strange(self, words: str) -> str:
        """A sentence about words that no instruction of the simulator has; empty if there are none."""
        said = [word.strip(".,;:!?'\"()").lower() for word in words.split()]
        strange = [word for word in dict.fromkeys(said) if word and word not in self._world.vocabulary()]
        if not strange:
            return ""
        if len(strange) == len(set(filter(None, said))):
            return "None of these words is in any task of the simulator. The robot will move all the same: watch how."
        listed = ", ".join(f"“{word[:40]}”" for word in strange[:5]) + (" and more" if len(strange) > 5 else "")
        return f"New to this robot: {listed}. No task of the simulator says that, so what follows is a guess."

    def _frame(self, actions: list[list[float]] | None = None) -> Frame:
        view, attention = self._shown(), None
        if self._camera == self._first_camera:
            attention = [float(score) for score in self._built().look(self._env.observe())]
        jpeg = io.BytesIO()
        Image.fromarray(view.picture(self._camera)).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        return Frame(
            jpeg=jpeg.getvalue(),
            camera=next(name for name, camera in self._world.cameras.items() if camera == self._camera),
            attention=attention,
            grid=self._arm.grid,
            handles=view.handles(self._camera),
            step=self._step,
            limit=self._steps_allowed,
            done=self._over,
            success=self._success,
            checked=self._start.instruction,
            words=self._words,
            reached={name: value for name, value in vars(self._stages.reached()).items() if value is not None},
            touched=self._stages.first().touched,
            moved=self._stages.moved,
            placed_by_hand=self._by_hand,
            choice=self._choice,
            episode=self._episode,
            arm=self._arm.name,
            offers=tuple((text, text in self._goals) for text in self._offers),
            actions=actions or [],
            note=self._note,
        )


# The worker process keeps one scene.
_scene: Scene | None = None


def prepare(world: World, arms: tuple[Arm, ...]) -> None:
    """Call first in the worker."""
    global _scene
    _scene = Scene(world, arms)


def do(method: str, *arguments: Any) -> Frame:
    """Call a method of the scene in the worker."""
    assert _scene is not None, "prepare() comes first"
    return getattr(_scene, method)(*arguments)

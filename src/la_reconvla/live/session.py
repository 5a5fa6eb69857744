"""What all tabs share: one scene, whether it plays, who watches. In the event loop; a worker process does the work."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from la_reconvla.data.starts import PlacementKind
from la_reconvla.errors import UserError
from la_reconvla.live.scene import Arm, Choice, Frame
from la_reconvla.sim.rollout import CONTROL_RATE
from la_reconvla.storage import append_jsonl

SPEEDS = (0.25, 0.5, 1.0, 2.0, 0.0)  # times real time; 0 is as fast as this machine can
FEWEST, MOST = 2, 8  # control steps between two pictures
KEPT_NOTICES = 20
SCENES = 1_000_000  # of each task

Call = Callable[..., Awaitable[Frame]]


@dataclass(eq=False)
class Viewer:
    """One tab: what it has still to be sent. Of pictures and states only the newest waits, so a slow tab skips some."""

    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def show(self, message: dict[str, Any]) -> None:
        """Let `message` be sent next."""
        if message["kind"] == "notice":
            self.notices = [*self.notices, message][-KEPT_NOTICES:]
        else:
            self.latest.pop(message["kind"], None)  # the order stays that of time
            self.latest[message["kind"]] = message
        self.news.set()

    def take(self) -> list[dict[str, Any]]:
        """All that waits."""
        waiting = [*self.latest.values(), *self.notices]
        self.latest, self.notices = {}, []
        self.news.clear()
        return waiting


class Session:
    """The page's state.

    Args:
        call: runs a method of the worker's scene.
        arms: the policies.
        suites: what to choose from: suite -> its tasks, each ``{task, instruction, wide}``.
        cameras: names of the views.
        log: file that gets one line for each action that was executed.
    """

    def __init__(
        self,
        call: Call,
        arms: Sequence[Arm],
        suites: dict[str, list[dict[str, Any]]],
        cameras: Sequence[str],
        log: Path,
    ):
        self._call, self._log = call, log
        self._offered = {
            "arms": [{"name": arm.name, "about": arm.about} for arm in arms],
            "suites": suites,
            "cameras": list(cameras),
            "speeds": list(SPEEDS),
        }
        self.viewers: set[Viewer] = set()
        self.frame: Frame | None = None
        self.playing, self.speed, self.busy, self.rate = False, 1.0, "", 0.0
        self._turn = asyncio.Lock()
        self._player: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ tabs

    def join(self) -> Viewer:
        """A tab has opened."""
        viewer = Viewer()
        self.viewers.add(viewer)
        viewer.show({"kind": "offered", **self._offered})
        if self.frame is not None:
            viewer.show(self._drawn(self.frame))
        self.tell()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A tab has closed, or its connection broke. Nothing plays for nobody."""
        self.viewers.discard(viewer)
        if not self.viewers:
            self.playing = False
        self.tell()

    async def handle(self, message: Any, viewer: Viewer) -> None:
        """Do what a tab asks; what is wrong with it is said to this tab alone."""
        try:
            await self._handle(message)
        except UserError as error:
            viewer.show(_notice(str(error)))
            self.tell()  # so that the page's controls show again what is true

    async def _handle(self, message: Any) -> None:
        wish = message.get("do") if isinstance(message, dict) and isinstance(message.get("do"), str) else None
        if wish == "pause":
            self.playing = False
        elif wish == "speed":
            if message.get("value") not in SPEEDS:
                raise UserError(f"The speed is one of {', '.join(map(str, SPEEDS))}.")
            self.speed = float(message["value"])
        elif wish == "play":
            await self._play()
        elif wish in WISHES:
            method, read, slow = WISHES[wish]
            await self.work(method, *read(message), slow=slow)
            if message.get("play") is True:  # only after what was asked for was done
                await self._play()
        else:
            raise UserError("The page sent something that is not understood: reload it.")
        self.tell()

    # ------------------------------------------------------------ work

    async def work(self, method: str, *arguments: Any, slow: str = "") -> None:
        """One call of the worker, and its picture to every tab.

        Args:
            method: of `la_reconvla.live.scene.Scene`.
            arguments: its arguments.
            slow: what takes so long, for people; playing pauses for it. Empty for what takes a fraction of a second.

        Raises:
            UserError: from the scene, or because something slow is going on.
        """
        if self.busy:
            raise UserError(f"One moment: {self.busy}")
        if slow:
            self.playing, self.busy = False, slow
            self.tell()
        try:
            async with self._turn:
                self.frame = frame = await self._call(method, *arguments)
                try:
                    if frame.actions:
                        await self._write(frame)  # what is shown is on the disk
                finally:
                    self._to_all(self._drawn(frame))
        except BrokenProcessPool as error:
            raise UserError(
                "The simulator's process has ended, perhaps for lack of memory. Press Ctrl-C in the terminal and start "
                "it again."
            ) from error
        except UserError:
            raise
        except Exception as error:  # of a library, about this scene or policy: the page lives on
            raise UserError(f"That failed inside the simulator or the policy ({error!r}). Start over.") from error
        finally:
            self.busy = "" if slow else self.busy

    async def _play(self) -> None:
        if self.frame is None or self.busy:
            raise UserError(f"One moment: {self.busy or 'the scene is not there yet.'}")
        if self.frame.done:
            await self.work("again", slow="starting over.")
        self.playing = True
        if self._player is None or self._player.done():
            self._player = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Advance until somebody pauses or the episode ends."""
        steps = FEWEST
        try:
            while self.playing and not (self.frame and self.frame.done):
                begun = time.monotonic()
                await self.work("advance", steps)
                spent, speed = time.monotonic() - begun, self.speed
                lasts = steps / CONTROL_RATE / speed if speed else 0.0
                if spent < lasts:
                    await asyncio.sleep(lasts - spent)
                self.rate = steps / CONTROL_RATE / max(spent, lasts, 1e-6)
                # Pictures cost more than steps: where the machine cannot keep up, there are fewer of them.
                steps = min(MOST, steps + 1) if spent > lasts else max(FEWEST, steps - 1)
                self.tell()
        except UserError as error:
            self._to_all(_notice(str(error)))
        finally:
            self.playing = False
            self.tell()

    async def close(self) -> None:
        """End what plays."""
        self.playing = False
        if self._player is not None:
            self._player.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._player

    async def _write(self, frame: Frame) -> None:
        first = frame.step - len(frame.actions)
        told = {
            "episode": frame.episode,
            "arm": frame.arm,
            "start": asdict(frame.choice),
            "moved_by_hand": frame.placed_by_hand,
            "instruction": frame.words,
        }
        rows = [{**told, "step": first + i, "action": action} for i, action in enumerate(frame.actions)]
        try:
            await asyncio.to_thread(append_jsonl, self._log, *rows)  # a slow disk holds up no tab
        except OSError as error:
            raise UserError(f"The actions cannot be written to {self._log} ({error}). See to the disk.") from error

    # ------------------------------------------------------------ what tabs are sent

    def _drawn(self, frame: Frame) -> dict[str, Any]:
        shown = {name: value for name, value in vars(frame).items() if name not in ("jpeg", "choice", "actions")}
        picture = base64.b64encode(frame.jpeg).decode()
        return {
            "kind": "frame",
            "image": f"data:image/jpeg;base64,{picture}",
            **shown,
            "choice": asdict(frame.choice),
            "action": frame.actions[-1] if frame.actions else None,
        }

    def tell(self) -> None:
        """Send every tab what is going on."""
        self._to_all(
            {
                "kind": "state",
                "playing": self.playing,
                "speed": self.speed,
                "rate": round(self.rate, 2),
                "busy": self.busy,
                "tabs": len(self.viewers),
            }
        )

    def _to_all(self, message: dict[str, Any]) -> None:
        for viewer in self.viewers:
            viewer.show(message)


def _notice(text: str) -> dict[str, Any]:
    return {"kind": "notice", "text": text}


# ---------------------------------------------------------------- reading wishes


def _value(message: dict[str, Any], name: str, kind: type) -> Any:
    value = message.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**53 else None  # larger ones are no measure of anything, or overflow
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError("The page sent something that is not understood: reload it.")
    return value


def _text(message: dict[str, Any]) -> tuple[str]:
    text = _value(message, "text", str)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON can carry and no file can hold
        raise UserError("A character of that is damaged: type it again.") from error
    return (text,)


def _choice(message: dict[str, Any]) -> tuple[Choice]:
    placement = _value(message, "placement", str)
    if placement not in get_args(PlacementKind):
        raise UserError("A start is official or wide.")
    suite, task, number = (_value(message, *field) for field in (("suite", str), ("task", int), ("number", int)))
    if not 0 <= number < SCENES:
        raise UserError(f"A scene has a number from 0 to {SCENES - 1}.")
    return (Choice(suite, task, placement, number),)


def _place(message: dict[str, Any]) -> tuple[str, float, float]:
    across, down = _value(message, "across", float), _value(message, "down", float)
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise UserError("Drop it inside the picture.")
    return _value(message, "name", str), across, down


def _one(name: str, kind: type) -> Callable[[dict[str, Any]], tuple[Any]]:
    return lambda message: (_value(message, name, kind),)


# What a tab may wish: the scene's method, how its arguments are read, and what to say while it takes long.
WISHES: dict[str, tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]], str]] = {
    "say": ("say", _text, ""),
    "step": ("advance", lambda message: (1,), ""),
    "again": ("again", lambda message: (), "starting over."),
    "choose": ("choose", _choice, "setting up the scene. A new one takes up to half a minute."),
    "arm": ("swap", _one("name", str), "loading the policy."),
    "put": ("put", _place, "putting it down."),
    "camera": ("look", _one("camera", str), ""),
    "limit": ("limit", _one("steps", int), ""),
}

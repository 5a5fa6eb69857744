"""The page of `try` without the simulator: who gets in, what is refused, and what every tab sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer
from toy_page import ARMS, FIRST, TOKEN, TOY, goals, toy_session

from la_reconvla.errors import UserError
from la_reconvla.live import session as session_module
from la_reconvla.live.options import TryOptions
from la_reconvla.live.scene import Scene
from la_reconvla.live.server import TABS, application
from la_reconvla.live.session import KEPT_NOTICES, Session, Viewer
from la_reconvla.live.start import arms_of, first_choice
from la_reconvla.storage import read_jsonl

PATIENCE = 20.0  # seconds


class Tab:
    """A client of the socket that keeps the newest of what it was sent."""

    def __init__(self, socket: ClientWebSocketResponse):
        self.socket = socket
        self.latest: dict[str, Any] = {}
        self.notices: list[str] = []

    async def send(self, **wish: Any) -> None:
        await self.socket.send_str(json.dumps(wish))

    async def until(self, holds: Callable[[Tab], Any]) -> None:
        """Read until something is so."""
        end = time.monotonic() + PATIENCE
        while not holds(self):
            message = await self.socket.receive(timeout=max(0.01, end - time.monotonic()))
            assert message.type is WSMsgType.TEXT, f"the socket closed: {message}"
            read = json.loads(message.data)
            self.latest[read["kind"]] = read
            if read["kind"] == "notice":
                self.notices.append(read["text"])

    async def refused(self, **wish: Any) -> str:
        """What the page says to a wish that is refused."""
        before = len(self.notices)
        await self.send(**wish)
        await self.until(lambda tab: len(tab.notices) > before)
        return self.notices[-1]

    @property
    def frame(self) -> dict[str, Any]:
        return self.latest.get("frame", {})

    @property
    def state(self) -> dict[str, Any]:
        return self.latest.get("state", {})


class Opened:
    def __init__(self, client: TestClient, session: Session, log: Path):
        self.client, self.session, self.log = client, session, log
        self.origin = f"http://127.0.0.1:{client.port}"

    async def tab(self, **headers: str) -> Tab:
        sent = {"Origin": self.origin, **headers}
        socket = await self.client.ws_connect(f"/socket?token={TOKEN}", headers=sent)
        tab = Tab(socket)
        await tab.until(lambda tab: tab.frame and tab.state and "offered" in tab.latest)
        return tab


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Opened]:
    log = folder / "actions.jsonl"
    session = toy_session(log)
    async with TestClient(TestServer(application(session, TOKEN))) as client:
        await session.work("choose", FIRST)
        await session.work("limit", 40)
        yield Opened(client, session, log)


def on_a_page(folder: Path, check: Callable[[Opened], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(folder) as page:
            await check(page)

    asyncio.run(asyncio.wait_for(run(), 3 * PATIENCE))


# ---------------------------------------------------------------- who gets in


def test_the_page_and_its_socket_need_the_token(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        for query in ("", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?token={TOKEN}&token={TOKEN}", "?token=%ff"):
            answer = await page.client.get(f"/{query}")
            assert answer.status == 403
            assert "open the full address" in await answer.text()
            with pytest.raises(WSServerHandshakeError, match="403"):
                await page.client.ws_connect(f"/socket{query}", headers={"Origin": page.origin})
        answer = await page.client.get(f"/?token={TOKEN}")
        assert answer.status == 200
        assert TOKEN not in await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"  # the address holds the token
        assert page.session.viewers == set()

    on_a_page(tmp_path, check)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1]:80", "a@b"]
)
def test_another_name_of_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    """DNS rebinding: a page of another site whose name was pointed here."""

    async def check(page: Opened) -> None:
        for path in (f"/?token={TOKEN}", "/page.js"):
            assert (await page.client.get(path, headers={"Host": host})).status in (400, 403)
        with pytest.raises(WSServerHandshakeError):
            await page.tab(Host=host, Origin=f"http://{host}")
        assert (await page.client.get(f"/?token={TOKEN}", headers={"Host": "localhost:1"})).status == 200

    on_a_page(tmp_path, check)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_the_page_of_another_site_does_not_get_in(tmp_path: Path, origin: str) -> None:
    async def check(page: Opened) -> None:
        with pytest.raises(WSServerHandshakeError, match="403"):
            await page.tab(Origin=origin)
        with pytest.raises(WSServerHandshakeError, match="403"):
            await page.client.ws_connect(f"/socket?token={TOKEN}")  # none at all
        await page.tab()

    on_a_page(tmp_path, check)


def test_nothing_but_the_page_is_there(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        for path in ("/../scene.py", "/scene.py", "/page.html", "/page.js/..%2fscene.py"):
            assert (await page.client.get(path)).status in (403, 404)
        assert (await page.client.post(f"/?token={TOKEN}", data=b"x")).status == 405

    on_a_page(tmp_path, check)


# ---------------------------------------------------------------- what is refused

PUT = {"do": "put", "name": "red_tile", "across": 0.5, "down": 0.5}
CHOOSE = {"do": "choose", "suite": "toy", "task": 0, "placement": "wide", "number": 3}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("{", "not understood"),
        ("", "not understood"),
        ("[" * 5000, "not understood"),
        ("7", "not understood"),
        ('{"do": "_begin"}', "not understood"),
        ('{"do": ["play"]}', "not understood"),
        ({"do": "say"}, "not understood"),
        ({"do": "say", "text": 5}, "not understood"),
        ({"do": "say", "text": " \n"}, "Type what"),
        ({"do": "say", "text": "push \ud800 red"}, "is damaged"),
        ({"do": "say", "text": "push " * 100}, "Say it shorter"),
        ({"do": "say", "text": "push red " * 10}, "shorten it"),
        ({"do": "speed", "value": 3}, "The speed is one of"),
        ('{"do": "speed", "value": NaN}', "The speed is one of"),
        ({"do": "speed", "value": [1]}, "The speed is one of"),
        ({"do": "limit", "steps": 0}, "1 to 2000"),
        ({"do": "limit", "steps": True}, "not understood"),
        ({"do": "camera", "camera": "behind"}, "unknown camera"),
        ({"do": "arm", "name": "arm 7"}, "unknown policy 'arm 7': did you mean arm"),
        ({**PUT, "name": "robot"}, "unknown thing"),
        ({**PUT, "down": 0.95}, "no room"),
        ({**PUT, "across": 1.5}, "inside the picture"),
        ({**PUT, "across": 10**400}, "not understood"),
        ({**PUT, "across": True}, "not understood"),
        ('{"do": "put", "name": "red_tile", "across": NaN, "down": 0}', "inside the picture"),
        ({**CHOOSE, "task": 4}, "unknown task 4"),
        ({**CHOOSE, "number": -1}, "a number from 0"),
        ({**CHOOSE, "number": 10**30}, "a number from 0"),
        ({**CHOOSE, "placement": "mine"}, "official or wide"),
    ],
)
def test_what_makes_no_sense_is_said_and_changes_nothing(tmp_path: Path, wish: Any, said: str) -> None:
    async def check(page: Opened) -> None:
        tab, other = await page.tab(), await page.tab()
        before = page.session.frame
        await tab.socket.send_str(wish if isinstance(wish, str) else json.dumps(wish))
        await tab.until(lambda tab: tab.notices)
        assert said in tab.notices[0]
        assert page.session.frame is before
        await tab.send(do="step")
        await tab.until(lambda tab: tab.frame["step"] == 1)
        await other.until(lambda tab: tab.frame["step"] == 1)
        assert (tab.frame["words"], other.notices) == (before.words, [])  # the robot goes on under its words

    on_a_page(tmp_path, check)


def test_a_huge_message_ends_its_tab_alone(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab, other = await page.tab(), await page.tab()
        await tab.socket.send_str("x" * 100_000)
        while (message := await tab.socket.receive(timeout=PATIENCE)).type is WSMsgType.TEXT:
            pass
        assert message.type is WSMsgType.CLOSE
        assert tab.socket.close_code == 1009
        await other.send(do="step")
        await other.until(lambda tab: tab.frame["step"] == 1 and tab.state["tabs"] == 1)

    on_a_page(tmp_path, check)


# ---------------------------------------------------------------- words


def test_other_words_give_other_actions_and_the_log_shows_it(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        for colour in ("black", "white"):
            episode = tab.frame["episode"]
            await tab.send(do="again")
            await tab.until(lambda tab, before=episode: tab.frame["episode"] > before and not tab.state["busy"])
            await tab.send(do="say", text=f"push  {colour}\n")
            await tab.until(lambda tab, told=f"push {colour}": tab.frame["words"] == told and tab.frame["step"] == 0)
            for _ in range(2):
                await tab.send(do="step")
            await tab.until(lambda tab: tab.frame["step"] == 2)
            assert tab.frame["attention"][-1] == len(f"push {colour}")

    on_a_page(tmp_path, check)
    rows = read_jsonl(tmp_path / "actions.jsonl")
    told = {
        text: [row["action"] for row in rows if row["instruction"] == text] for text in ("push black", "push white")
    }
    assert [len(actions) for actions in told.values()] == [2, 2]
    assert told["push black"] != told["push white"]
    assert [row["step"] for row in rows] == [0, 1, 0, 1]
    assert {row["arm"] for row in rows} == {"arm 0"}
    assert len({row["episode"] for row in rows}) == 2


def test_words_in_the_middle_of_an_episode_take_effect_in_the_next_step(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        await tab.send(do="step")  # the policy's chunk has four actions: three are left
        await tab.until(lambda tab: tab.frame["step"] == 1)
        first = tab.frame["action"]
        await tab.send(do="say", text="push white")
        await tab.send(do="step")
        await tab.until(lambda tab: tab.frame["step"] == 2)
        assert tab.frame["action"] != first

    on_a_page(tmp_path, check)


def test_nonsense_is_acted_on_with_a_warning(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        for text, said in (("xyzzy \U0001f916 <b>", "None of these words"), ("push the Xyzzy!", "“the”, “xyzzy”")):
            await tab.send(do="say", text=text)
            await tab.until(lambda tab, told=text: tab.frame["words"] == told)
            assert said in tab.frame["note"]
            step = tab.frame["step"]
            await tab.send(do="step")
            await tab.until(lambda tab, before=step: tab.frame["step"] == before + 1)
        await tab.send(do="say", text="Push, WHITE!")
        await tab.until(lambda tab: tab.frame["words"] == "Push, WHITE!")
        assert tab.frame["note"] == ""

    on_a_page(tmp_path, check)


def test_what_the_simulator_checks_follows_words_that_it_knows(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        assert ["push red", True] in tab.frame["offers"]
        await tab.send(do="say", text="push red")
        await tab.until(lambda tab: tab.frame["checked"] == "push red")
        await tab.send(do="step")
        await tab.send(do="say", text="push yellow")
        await tab.until(lambda tab: tab.frame["words"] == "push yellow")
        assert tab.frame["checked"] == "push red"  # this episode began with it
        await tab.send(do="say", text=page.session.frame.offers[0][0])
        await tab.until(lambda tab: tab.frame["words"] == tab.frame["offers"][0][0])
        await tab.send(do="again")
        await tab.until(lambda tab: tab.frame["step"] == 0 and not tab.state["busy"])
        assert tab.frame["checked"] == tab.frame["words"] != "push red"
        checked = tab.frame["checked"]
        await tab.send(do="say", text="push it somehow")
        await tab.until(lambda tab: tab.frame["words"] == "push it somehow")
        assert tab.frame["checked"] == checked

    on_a_page(tmp_path, check)


# ---------------------------------------------------------------- time


def test_only_words_that_are_heard_are_acted_on(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        assert "Say it shorter" in await tab.refused(do="say", text="push " * 100, play=True)
        assert not page.session.playing
        await tab.send(do="say", text="push white", play=True)
        await tab.until(lambda tab: tab.frame["words"] == "push white" and tab.frame["step"] > 1)

    on_a_page(tmp_path, check)


def test_an_episode_is_a_beginning_and_no_other_camera_or_limit(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        first = tab.frame["episode"]
        await tab.send(do="camera", camera="above")
        await tab.until(lambda tab: tab.frame["camera"] == "above")
        await tab.send(do="limit", steps=50)
        await tab.until(lambda tab: tab.frame["limit"] == 50)
        assert tab.frame["episode"] == first
        await tab.send(do="again")
        await tab.until(lambda tab: tab.frame["episode"] == first + 1)

    on_a_page(tmp_path, check)


def test_actions_that_cannot_be_written_are_said_and_the_page_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise OSError("no space")

    async def check(page: Opened) -> None:
        tab = await page.tab()
        monkeypatch.setattr(session_module, "append_jsonl", full)
        assert "cannot be written" in await tab.refused(do="step")
        await tab.until(lambda tab: tab.frame["step"] == 1)

    on_a_page(tmp_path, check)


def test_it_plays_to_the_limit_at_the_speed_asked_for_and_plays_again(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        begun = time.monotonic()
        await tab.send(do="speed", value=2)
        await tab.send(do="play")
        await tab.until(lambda tab: tab.state["playing"])
        await tab.until(lambda tab: tab.frame["done"] and not tab.state["playing"])
        assert tab.frame["step"] == 40
        assert time.monotonic() - begun > 40 / 20 / 2 - 0.2
        await tab.send(do="limit", steps=44)
        await tab.until(lambda tab: not tab.frame["done"])  # it may go on
        await tab.send(do="speed", value=0)
        await tab.send(do="play")
        await tab.until(lambda tab: tab.frame["step"] == 44)
        episode = tab.frame["episode"]
        await tab.send(do="play")
        await tab.until(lambda tab: tab.frame["episode"] == episode + 1 and tab.frame["step"] > 0)

    on_a_page(tmp_path, check)


def test_pause_stops_between_two_pictures(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        await tab.send(do="play")
        await tab.until(lambda tab: tab.frame["step"] > 0)
        await tab.send(do="pause")
        await tab.until(lambda tab: not tab.state["playing"])
        await asyncio.sleep(0.5)
        step = page.session.frame.step
        await asyncio.sleep(0.5)
        assert page.session.frame.step == step < 40

    on_a_page(tmp_path, check)


# ---------------------------------------------------------------- the scene


def test_a_thing_that_was_moved_stays_so_for_another_policy(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        picture = tab.frame["image"]
        await tab.send(**PUT)
        await tab.until(lambda tab: tab.frame["placed_by_hand"])
        moved = tab.frame["image"]
        assert moved != picture
        await tab.send(do="arm", name="arm 1")
        await tab.until(lambda tab: tab.frame["arm"] == "arm 1")
        assert (tab.frame["image"], tab.frame["step"]) == (moved, 0)
        await tab.send(**{**CHOOSE, "number": FIRST.number})
        await tab.until(lambda tab: not tab.frame["placed_by_hand"])
        assert tab.frame["image"] == picture
        await tab.send(do="camera", camera="above")
        await tab.until(lambda tab: tab.frame["camera"] == "above")
        assert tab.frame["attention"] is None  # the policy does not see this picture

    on_a_page(tmp_path, check)


# ---------------------------------------------------------------- tabs and accidents


def test_every_tab_shows_the_same_robot(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        first = await page.tab()
        second = await page.tab()
        await first.until(lambda tab: tab.state["tabs"] == 2)
        await second.send(do="step")
        for tab in (first, second):
            await tab.until(lambda tab: tab.frame["step"] == 1)
        assert first.frame == second.frame
        others = [await page.tab() for _ in range(TABS - 2)]
        with pytest.raises(WSServerHandshakeError, match="503"):
            await page.tab()
        await others[0].socket.close()
        await first.until(lambda tab: tab.state["tabs"] == TABS - 1)
        await page.tab()

    on_a_page(tmp_path, check)


def test_a_connection_that_breaks_stops_the_robot_and_can_come_back(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        await tab.send(do="play")
        await tab.until(lambda tab: tab.frame["step"] > 0)
        tab.socket._response.connection.transport.abort()  # no farewell
        end = time.monotonic() + PATIENCE
        while page.session.viewers or page.session.playing:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)
        step = page.session.frame.step
        again = await page.tab()
        assert again.frame["step"] == step < 40
        await again.send(do="step")
        await again.until(lambda tab: tab.frame["step"] == step + 1)

    on_a_page(tmp_path, check)


def test_when_the_program_ends_every_tab_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as page:
            tab = await page.tab()
            await tab.send(do="play")
            await tab.until(lambda tab: tab.state["playing"])
            closing = asyncio.create_task(page.client.server.close())
            with pytest.raises(AssertionError, match="closed"):
                await tab.until(lambda tab: False)
            assert tab.socket.close_code == 1001
            await closing

    asyncio.run(asyncio.wait_for(run(), 3 * PATIENCE))


def test_a_tab_that_cannot_be_sent_to_is_closed_and_connects_anew(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab = await page.tab()
        (viewer,) = page.session.viewers
        viewer.show({"kind": "frame", "image": object()})  # no JSON
        while (await tab.socket.receive(timeout=PATIENCE)).type is WSMsgType.TEXT:
            pass
        assert tab.socket.close_code == 1011
        again = await page.tab()
        await again.until(lambda tab: tab.state["tabs"] == 1)

    on_a_page(tmp_path, check)


def test_a_slow_tab_gets_the_newest_picture_and_holds_no_more() -> None:
    viewer = Viewer()
    for step in range(1000):
        viewer.show({"kind": "frame", "step": step})
        viewer.show({"kind": "notice", "text": str(step)})
    waiting = viewer.take()
    assert waiting[0] == {"kind": "frame", "step": 999}
    assert len(waiting) == 1 + KEPT_NOTICES
    assert not viewer.news.is_set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenProcessPool("gone"), "The simulator's process has ended"),
        (ZeroDivisionError("in a library"), "failed inside the simulator"),
        (UserError("an action contains NaN"), "contains NaN"),
    ],
)
def test_what_breaks_in_the_worker_is_said_and_the_page_lives(tmp_path: Path, error: Exception, said: str) -> None:
    async def check(page: Opened) -> None:
        tab, whole = await page.tab(), page.session._call

        async def broken(*_: Any) -> Any:
            raise error

        page.session._call = broken
        assert said in await tab.refused(do="step")
        await tab.send(do="play")
        await tab.until(lambda tab: len(tab.notices) > 1 and not tab.state["playing"])
        page.session._call = whole
        await tab.send(do="step")
        await tab.until(lambda tab: tab.frame["step"] == 1)

    on_a_page(tmp_path, check)


def test_while_a_scene_is_set_up_nothing_else_begins(tmp_path: Path) -> None:
    async def check(page: Opened) -> None:
        tab, call, go = await page.tab(), page.session._call, asyncio.Event()

        async def slow(*arguments: Any) -> Any:
            await go.wait()
            return await call(*arguments)

        page.session._call = slow
        await tab.send(**CHOOSE)
        await tab.until(lambda tab: tab.state["busy"])
        for wish in ({"do": "step"}, {"do": "play"}, CHOOSE):
            assert "One moment: setting up the scene" in await tab.refused(**wish)
        go.set()
        await tab.until(lambda tab: tab.frame["choice"]["number"] == 3 and not tab.state["busy"])

    on_a_page(tmp_path, check)


@dataclass(frozen=True)
class Broken:
    def identity(self) -> dict[str, Any]:
        return {}

    def build(self) -> Any:
        raise ZeroDivisionError("of a library")


def test_what_fails_while_it_begins_leaves_what_was_there() -> None:
    """An error that is no UserError, of a library, about another policy or another scene."""
    arms = (ARMS[0], replace(ARMS[1], policy=Broken()))  # pyright: ignore[reportArgumentType]
    world = replace(TOY, goals=lambda start: goals(start) if start.index < 5 else 1 / 0)  # pyright: ignore
    scene = Scene(world, arms)
    scene.choose(FIRST)
    before = scene.advance(2)
    for wrong in (lambda: scene.swap("arm 1"), lambda: scene.choose(replace(FIRST, number=7))):
        with pytest.raises(ZeroDivisionError):
            wrong()
        now = scene.look("front")
        assert (now.arm, now.choice, now.words, now.step) == ("arm 0", FIRST, before.words, 0)
        assert scene.advance(2).actions == before.actions


# ---------------------------------------------------------------- what is tried


def test_a_study_that_has_trained_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match="without a trained policy yet"):
        arms_of(str(tmp_path), TryOptions())


def test_it_begins_with_a_task_that_was_learned() -> None:
    pytest.importorskip("libero")
    seen = ("libero_goal/8/wide/train/0", "libero_goal/1/wide/train/2")
    assert first_choice(seen, TryOptions(scene=4)).__dict__ == {
        "suite": "libero_goal",
        "task": 1,
        "placement": "wide",
        "number": 4,
    }
    assert first_choice((), TryOptions()).suite == "libero_spatial"
    with pytest.raises(UserError, match="--scene is a number from 0 to 999999, not -1"):
        first_choice(seen, TryOptions(scene=-1))
    with pytest.raises(UserError, match="no wide scenes: leave --scene out"):
        first_choice(seen, TryOptions(task=0, scene=0))
    drawer = first_choice(seen, TryOptions(task=0))  # no wide placements
    assert (drawer.placement, drawer.number) == ("official", 49)
    with pytest.raises(UserError, match="unknown task 77"):
        first_choice(seen, TryOptions(task=77))

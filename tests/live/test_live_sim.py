"""The page over the real simulator and the base policy: the view's geometry, things moved by hand, and the command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aiohttp import ClientSession, WSMsgType

from la_reconvla.errors import UserError
from la_reconvla.live.scene import Choice
from la_reconvla.live.world import CAMERAS, DEEP, LIBERO, LiberoView, start
from la_reconvla.sim.libero import AGENTVIEW, LiberoEnv
from la_reconvla.storage import read_jsonl

pytestmark = [pytest.mark.sim, pytest.mark.slow]
OFFICIAL = Choice("libero_spatial", 0, "official", 40)
PLATE = "plate_1"


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    with LiberoEnv(image_size=128, max_steps=1000) as env:
        env.reset(start(OFFICIAL))
        yield env


@pytest.fixture(scope="module")
def shown(env: LiberoEnv) -> Iterator[LiberoView]:
    view = LiberoView(env)
    view.ready()
    yield view
    view.close()


def test_rings_are_on_the_things_that_the_instance_map_shows(env: LiberoEnv, shown: LiberoView) -> None:
    masks, handles = env.masks(env.task.objects), shown.handles(AGENTVIEW)
    assert set(handles) == set(env.task.objects)
    for name, mask in masks.items():
        middle = (np.argwhere(mask).mean(0) + 0.5) / len(mask)  # rows, then columns
        assert np.allclose(middle[::-1], handles[name], atol=0.035), name


@pytest.mark.parametrize("camera", CAMERAS.values())
def test_a_point_of_the_picture_is_a_point_of_the_world_and_back(
    env: LiberoEnv, shown: LiberoView, camera: str
) -> None:
    for pose in env.poses().values():
        across, down = shown.seen_at(pose.position, camera)
        back = shown.lies_at(camera, across, down, float(pose.position[2]))
        assert np.allclose(back, pose.position, atol=1e-9)


def test_above_the_horizon_there_is_no_table(shown: LiberoView) -> None:
    with pytest.raises(UserError, match="in the air"):
        shown.lies_at(AGENTVIEW, 0.5, -0.6, 0.9)


def test_a_thing_is_let_down_where_it_was_dropped(env: LiberoEnv, shown: LiberoView) -> None:
    begin = start(OFFICIAL)
    env.reset(begin)
    stood = env.poses()
    there = shown.middle("cookies_1") + np.array([-0.03, 0.08, 0])
    across, down = shown.seen_at(there, AGENTVIEW)
    moved = replace(begin, state=shown.put("cookies_1", AGENTVIEW, across, down))
    env.reset(moved)
    now, state = env.poses(), env.state()
    assert np.linalg.norm(now["cookies_1"].position[:2] - there[:2]) < 0.03
    assert np.allclose(now["gripper"].position, stood["gripper"].position, atol=0.01)
    for name in ("akita_black_bowl_1", "akita_black_bowl_2"):
        assert np.allclose(now[name].position, stood[name].position, atol=0.01), name
    env.reset(moved)
    assert np.array_equal(env.state(), state)  # the start that was made by hand repeats bit for bit


def test_a_bowl_can_be_put_on_the_plate(env: LiberoEnv, shown: LiberoView) -> None:
    env.reset(start(OFFICIAL))
    place = np.array([*env.poses()[PLATE].position[:2], shown.middle("akita_black_bowl_1")[2]])
    shown.put("akita_black_bowl_1", "birdview", *shown.seen_at(place, "birdview"))
    data = env.sim.data._data
    assert min((c.dist for c in data.contact[: data.ncon]), default=0) > -2 * DEEP
    assert env.holds(("on", "akita_black_bowl_1", PLATE))


def test_what_cannot_stay_is_refused_and_nothing_has_moved(env: LiberoEnv, shown: LiberoView) -> None:
    env.reset(start(OFFICIAL))
    before = env.state()
    for point in ([0.9, 0.9, 0.9], [-0.66, 0.0, 0.9]):  # off the table; inside the robot's base
        with pytest.raises(UserError, match="back where it was"):
            shown.put("cookies_1", "birdview", *shown.seen_at(np.array(point), "birdview"))
        assert np.array_equal(env.state(), before)


def test_words_to_suggest_are_those_of_the_scene() -> None:
    bowls = start(OFFICIAL)
    assert [goal.target for goal in LIBERO.goals(bowls).values()] == ["akita_black_bowl_1", "akita_black_bowl_2"]
    assert LIBERO.offers(bowls) == ()
    kitchen = start(Choice("libero_goal", 1, "official", 0))
    assert "turn on the stove" in LIBERO.offers(kitchen)
    groceries = start(Choice("libero_object", 0, "official", 0))
    assert all("chocolate pudding" not in text for text in LIBERO.offers(groceries))  # it is not in this scene
    assert {"bowl", "stove"} <= LIBERO.vocabulary()


def test_the_command_with_the_base_policy(tmp_path: Path) -> None:
    """From the command to Ctrl-C: two instructions that differ in one word, and their actions differ."""
    log = tmp_path / "actions.jsonl"
    command = ["try", "base", "--port", "0", "--suite", "libero_goal", "--task", "0", "--out", str(log)]
    child = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    child += "from la_reconvla.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", child, *command], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
    ) as process:
        try:
            assert process.stderr is not None
            address = next(line.strip() for line in process.stderr if line.startswith("http://"))
            asyncio.run(asyncio.wait_for(_converse(address), 400))
        finally:
            process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert f"closed; the actions are in {log}" in " ".join(said.split())
    assert time.monotonic() - begun < 60
    with pytest.raises(OSError, match=r"refused|Cannot connect"):
        asyncio.run(_get(address))  # the port is closed
    rows = read_jsonl(log)
    told = {text: np.array([row["action"] for row in rows if row["instruction"] == text]) for text in WORDS}
    first, second = told.values()
    assert first.shape == second.shape == (3, 7)
    assert np.abs(first - second).max() > 0.05
    assert {row["start"]["suite"] for row in rows} == {"libero_goal"}


WORDS = ("put the bowl on the stove", "put the bowl on the plate")


async def _get(address: str) -> None:
    async with ClientSession() as client, client.get(address):
        pass


async def _converse(address: str) -> None:
    origin, _, query = address.partition("/?")
    async with ClientSession() as client:
        async with client.get(address) as answer:
            assert answer.status == 200
        async with client.ws_connect(f"{origin}/socket?{query}", headers={"Origin": origin}) as socket:

            async def until(words: str, step: int) -> None:
                while True:
                    message = await socket.receive(timeout=300)
                    assert message.type is WSMsgType.TEXT, message
                    read = json.loads(message.data)
                    assert read["kind"] != "notice", read
                    if read["kind"] == "frame" and (words in ("", read["words"]) and read["step"] == step):
                        return

            await until("", 0)
            for words in WORDS:
                await socket.send_json({"do": "say", "text": words})
                await until(words, 0)
                for step in (1, 2, 3):
                    await socket.send_json({"do": "step"})
                    await until(words, step)
                await socket.send_json({"do": "again"})
                await until(words, 0)

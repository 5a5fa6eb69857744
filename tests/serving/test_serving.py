"""A policy behind a port: its answers are its own, in openpi's format, and nobody without the token gets one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import robot_client
import torch
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from helpers import TINY, tiny_policy, untrained
from la_reconvla.conditions import C1
from la_reconvla.contracts import Observation, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.robot import ActionSpace, Inputs, Standard
from la_reconvla.serving import client, wire
from la_reconvla.serving.server import MAX_ERRORS, MAX_SIDE, Limits, Service, require_safe, run
from la_reconvla.serving.start import read_token
from la_reconvla.training.trained_policy import Trained, TrainedPolicy

UNBOUNDED = Limits()
TOKEN, TOLD = "a-token-of-enough-letters", "pick up the black bowl"


def service(recorded=(TOLD,)) -> Service:
    torch.set_num_threads(1)
    return Service(TrainedPolicy(tiny_policy(head=None), untrained(C1), Trained(None)), recorded)  # pyright: ignore


@contextmanager
def served(service: Service, token: str | None = None, limits: Limits = UNBOUNDED):
    """The server in a thread; its port."""
    opened, port, loops = threading.Event(), [], []

    async def main():
        loops.append((asyncio.get_running_loop(), asyncio.current_task()))
        await run(service, "127.0.0.1", 0, token, limits, lambda found: (port.append(found), opened.set()))

    def thread():
        with suppress(asyncio.CancelledError):
            asyncio.run(main())

    running = threading.Thread(target=thread, daemon=True)
    running.start()
    assert opened.wait(30)
    try:
        yield port[0]
    finally:
        loop, task = loops[0]
        loop.call_soon_threadsafe(task.cancel)
        running.join(30)
        assert not running.is_alive()


def openpi_pack(message: dict) -> bytes:
    """As openpi's client packs: written from its format, not with our code."""

    def default(value):
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}

    return msgpack.packb(message, default=default)


def openpi_unpack(message: bytes) -> dict:
    def hook(value):
        if b"__ndarray__" in value:
            return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
        return value

    return msgpack.unpackb(message, object_hook=hook)


def picture(seed=0, shape=(40, 48, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def serving():
    found = service()
    with served(found, TOKEN) as port:
        yield found, port


def open_socket(port, token=TOKEN):
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    return connect(f"ws://127.0.0.1:{port}", additional_headers=headers, compression=None, proxy=None)


def test_a_client_of_openpi_gets_the_actions_of_the_policy(serving):
    _, port = serving
    policy = tiny_policy(head=None)
    with open_socket(port) as socket:
        facts = openpi_unpack(socket.recv())
        assert (facts["chunk"], facts["orientation"], facts["recorded"]) == (TINY.chunk, "mirrored", [TOLD])
        for seed, shape in ((0, (32, 32, 3)), (1, (32, 32, 3)), (2, (40, 48, 3))):
            seen = picture(seed, shape)
            socket.send(openpi_pack({"observation/image": seen, "prompt": TOLD, "observation/state": np.zeros(8)}))
            answer = openpi_unpack(socket.recv())
            small = np.asarray(Image.fromarray(seen).resize((32, 32), Image.Resampling.LANCZOS))
            wanted = policy.act(PolicyInput(torch.from_numpy(small.copy()).permute(2, 0, 1)[None], [TOLD]))[0]
            np.testing.assert_allclose(answer["actions"], wanted.numpy(), atol=1e-4)
            assert answer["server_timing"]["infer_ms"] > 0


def test_the_fast_path_is_recorded_before_the_port_opens(serving):
    found, _ = serving
    assert found._policy.actor.records() >= 1


def test_without_the_token_there_is_no_action(serving):
    found, port = serving
    before = found.served
    for token in (None, "a-token-of-enough-letterz", TOKEN[:-1], TOKEN + "x", "ä"):
        with pytest.raises(InvalidStatus, match="401"):
            open_socket(port, token and token.encode().decode("latin-1"))
    twice = [("Authorization", "Api-Key no"), ("Authorization", f"Api-Key {TOKEN}")]
    with pytest.raises(InvalidStatus, match="401"):
        connect(f"ws://127.0.0.1:{port}", additional_headers=twice, proxy=None)
    assert found.served == before
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as health:
        assert json.load(health)["status"] == "ok"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)


GOOD = {"observation/image": picture(), "prompt": TOLD}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"", "no observation in msgpack"),
        (b"\xc1", "no observation in msgpack"),
        (openpi_pack(GOOD)[:-7], "no observation in msgpack"),
        (msgpack.packb([1, 2]), "send a map"),
        (msgpack.packb({i: i for i in range(1000)}), "no observation in msgpack"),
        (b"\x81" * 5000, "no observation in msgpack"),
        ("text", "not as text"),
        (openpi_pack({**GOOD, "prompt": ""}), "'prompt' must be"),
        (openpi_pack({**GOOD, "prompt": "x" * 2000}), "'prompt' must be"),
        (openpi_pack({**GOOD, "prompt": 3}), "'prompt' must be"),
        (openpi_pack({"prompt": TOLD}), "must be a picture"),
        (openpi_pack({**GOOD, "observation/image": picture().astype(np.float32)}), "must be a picture"),
        (openpi_pack({**GOOD, "observation/image": picture()[..., 0]}), "must be a picture"),
        (openpi_pack({**GOOD, "observation/image": picture()[:0]}), "pixels"),
        (openpi_pack({**GOOD, "observation/image": np.zeros((1, MAX_SIDE + 1, 3), np.uint8)}), "pixels"),
        (openpi_pack({**GOOD, "orientation": "upright"}), "must be mirrored"),
        (openpi_pack({**GOOD, "episode": np.arange(3)}), "'episode' must be"),
        (openpi_pack({**GOOD, "episode": "x" * 2000}), "'episode' must be"),
        (
            msgpack.packb(
                {**GOOD, "observation/image": {b"__ndarray__": True, b"data": b"12", b"dtype": "|O", b"shape": [1]}}
            ),
            "are not read",
        ),
        (
            msgpack.packb(
                {"observation/image": {b"__ndarray__": True, b"data": b"1", b"dtype": "<u1", b"shape": [1 << 40]}}
            ),
            "does not have 1 bytes",
        ),
        (
            msgpack.packb(
                {"observation/image": {b"__ndarray__": True, b"data": b"1", b"dtype": "<u1", b"shape": [-1]}}
            ),
            "is no shape",
        ),
    ],
    ids=range(21),
)
def test_a_hostile_message_is_answered_in_a_sentence_and_moves_nothing(serving, message, told):
    found, port = serving
    before = found.served
    with open_socket(port) as socket:
        socket.recv()
        socket.send(message)
        answer = socket.recv()
        assert isinstance(answer, str)
        assert told in answer
        assert found.served == before
        socket.send(openpi_pack(GOOD))
        assert openpi_unpack(socket.recv())["actions"].shape == (TINY.chunk, 7), "and goes on"


def test_who_only_errs_is_disconnected(serving):
    _, port = serving
    with open_socket(port) as socket:
        socket.recv()
        for _ in range(MAX_ERRORS):
            socket.send(b"\xc1")
            assert "error" in socket.recv()
        with pytest.raises(ConnectionClosed):
            socket.recv()


def test_a_message_too_large_ends_the_conversation_not_the_server(serving):
    _, port = serving
    with open_socket(port) as socket:
        socket.recv()
        with suppress(ConnectionClosed):  # it may be closed while the message is on its way
            socket.send(b"\0" * 30_000_000)
        with pytest.raises(ConnectionClosed):
            socket.recv()
    with open_socket(port) as socket:
        assert openpi_unpack(socket.recv())["policy"] == "C1"


def test_clients_are_counted_and_their_rate_is_bounded():
    with served(service(()), limits=Limits(clients=2, rate=20)) as port:
        with open_socket(port, None) as one, open_socket(port, None) as two:
            one.recv()
            two.recv()
            with pytest.raises(InvalidStatus, match="503"):
                open_socket(port, None)
            begun = time.perf_counter()
            for _ in range(6):
                one.send(b"\xc1")
                one.recv()
            assert time.perf_counter() - begun > 5 / 20, "a flood waits"
        for _ in range(50):
            try:
                with open_socket(port, None) as again:
                    again.recv()
                break
            except InvalidStatus:
                time.sleep(0.05)
        else:
            raise AssertionError("a place that was left stays taken")


def test_the_example_drives_a_robot(serving):
    _, port = serving
    robot = robot_client.FakeRobot()
    facts = robot_client.drive(robot, f"ws://127.0.0.1:{port}", TOLD, steps=5, token=TOKEN)
    assert facts["policy"] == "C1"
    assert [action.shape for action in robot.moved] == [(7,)] * 5
    with pytest.raises(RuntimeError, match="prompt"):
        robot_client.drive(robot, f"ws://127.0.0.1:{port}", " ", steps=1, token=TOKEN)


def test_a_server_is_a_policy_to_roll_out(serving, monkeypatch):
    _, port = serving
    url = f"ws://127.0.0.1:{port}"
    with pytest.raises(UserError, match="LA_RECONVLA_TOKEN"):
        client.Remote(url).build()
    monkeypatch.setenv("LA_RECONVLA_TOKEN", TOKEN)
    start = begun("a")
    seen = Observation(picture(3, (32, 32, 3)), TOLD)
    direct = tiny_policy(head=None)

    def wanted(image, told):
        return direct.act(PolicyInput(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], [told]))[0].numpy()

    for view, image, told in (
        ("true", seen.image, TOLD),
        ("grey_image", np.full_like(seen.image, 128), TOLD),
        ("wrong_instruction", seen.image, "open the drawer"),
    ):
        policy = client.Remote(url, view, ((0, TOLD, "open the drawer"),), execute=1).build()
        policy.reset(start, None)  # pyright: ignore
        np.testing.assert_allclose(policy.act(seen), wanted(image, told)[:1].clip(-1, 1), atol=1e-4)
    assert client.Remote(url).identity()["server"]["policy"] == "C1"
    with pytest.raises(UserError, match="no policy server answers"):
        client.Remote("ws://127.0.0.1:9").build()


def begun(id: str):
    return type("Start", (), {"id": id, "instruction": TOLD, "task": 0, "suite": "libero_spatial"})()


def test_noise_is_that_of_a_rollout_whatever_was_served_before():
    """A policy that draws its actions, with weights that make something of the noise, here and behind the port."""
    torch.set_num_threads(1)
    config = replace(untrained(C1, decoding="flow", seed=5), reconstruction_head=None)
    policy = config.build().eval()
    torch.nn.init.normal_(policy.action_head.network.leave.weight)  # pyright: ignore
    direct = TrainedPolicy(policy, config, Trained(None))  # pyright: ignore
    seen = Observation(picture(3, (32, 32, 3)), TOLD)

    def chunks(policy, *starts):
        acted = []
        for start in starts:
            policy.reset(begun(start), None)
            acted.append([policy.act(seen) for _ in range(2)])
        return np.array(acted)

    wanted = chunks(direct, "a", "b").clip(-1, 1)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01
    assert np.abs(wanted[0, 0] - wanted[0, 1]).max() > 0.01
    with served(Service(TrainedPolicy(policy, config, Trained(None)), [TOLD])) as port:  # pyright: ignore
        for starts, which in (("ab", [0, 1]), ("ba", [1, 0])):  # a client after the other
            remote = client.Remote(f"ws://127.0.0.1:{port}").build()
            np.testing.assert_allclose(chunks(remote, *starts), wanted[which], atol=1e-4)
        message = openpi_pack({"observation/image": seen.image, "prompt": TOLD})
        with open_socket(port, None) as one, open_socket(port, None) as other:
            unnamed = {one: [], other: []}
            for socket in unnamed:
                socket.recv()
            for socket in (one, other, one, other):  # they take turns
                socket.send(message)
                unnamed[socket].append(openpi_unpack(socket.recv())["actions"])
    np.testing.assert_array_equal(unnamed[one], unnamed[other])
    assert np.abs(unnamed[one][0] - unnamed[one][1]).max() > 0.01


def test_a_policy_of_another_robot_is_served():
    space = ActionSpace(("left", "right", "grip"), ("continuous", "continuous", "binary"))
    inputs = Inputs(("front", "side"), "upside_down", "pad", Standard((1.0,) * 5, (2.0,) * 5))
    backbone = replace(TINY, proprio=5, wrist=True)
    bins = ActionBins((-1.0,) * 3, (1.0,) * 3, space=space)
    config = untrained(C1, backbone=backbone, bins=bins, inputs=inputs)
    policy = config.build().eval()
    with served(Service(TrainedPolicy(policy, config, Trained(None)), [TOLD])) as port:  # pyright: ignore
        front, side, state = picture(1, (32, 16, 3)), picture(2, (32, 32, 3)), np.arange(5, dtype=np.float32)
        seen = {"observation/image": front, "observation/wrist_image": side, "observation/state": state}
        with open_socket(port, None) as socket:
            facts = openpi_unpack(socket.recv())
            assert (facts["orientation"], facts["cameras"], facts["state"]) == ("upside_down", ["front", "side"], 5)
            assert (facts["action_names"], facts["action_kinds"]) == (list(space.names), list(space.kinds))
            socket.send(openpi_pack({**seen, "prompt": TOLD, "orientation": "upside_down"}))
            answer = openpi_unpack(socket.recv())["actions"]
        padded = np.zeros((32, 32, 3), np.uint8)
        padded[:, 8:24] = front
        main, second = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] for p in (padded, side))
        wanted = policy.act(PolicyInput(main, [TOLD], second, torch.from_numpy((state - 1) / 2)[None]))[0]
        np.testing.assert_allclose(answer, wanted.numpy(), atol=1e-4)
        with pytest.raises(UserError, match="upside_down pictures"):
            client.Remote(f"ws://127.0.0.1:{port}").build()
    upright = untrained(C1, backbone=backbone, bins=bins)
    service = Service(TrainedPolicy(upright.build().eval(), upright, Trained(None)))  # pyright: ignore
    with served(service) as port, pytest.raises(UserError, match=r"acts by \['left', 'right', 'grip'\]; LIBERO's are"):
        client.Remote(f"ws://127.0.0.1:{port}").build()


def test_a_port_for_others_needs_a_token(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.2", "robot.local"):
        with pytest.raises(UserError, match="moves the robot"):
            require_safe(host, None)
        require_safe(host, TOKEN)
    for host in ("127.0.0.1", "localhost", "::1"):
        require_safe(host, None)
    with pytest.raises(UserError, match="16 characters"):
        require_safe("0.0.0.0", "short")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_token(tmp_path / "token")
    with pytest.raises(UserError, match="no token can be read"):
        read_token(tmp_path / "none")


def test_what_is_packed_is_unpacked():
    message = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": {"c": [1, "two", 3.0, None, True]},
        "d": np.float64(0.5),
        "e": np.zeros((0, 3), np.uint8),
    }
    for read in (wire.unpack(wire.pack(message)), openpi_unpack(wire.pack({"a": message["a"]}))):
        assert np.array_equal(read["a"], message["a"])
        assert read["a"].dtype == np.float32
    assert wire.unpack(openpi_pack(message))["b"] == message["b"]
    assert wire.unpack(wire.pack(message))["d"] == 0.5
    with pytest.raises(TypeError):
        wire.pack({"a": np.array([object()])})

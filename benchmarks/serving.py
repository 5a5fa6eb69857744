"""Hostile clients against `la-reconvla serve`, and its latency beside the policy's own: `python benchmarks/serving.py`.

Counts, by kind of message: answers that are errors, connections that the server ended, actions; and whether the server
still acts for an honest client afterwards. No message of these is an honest observation, so any action is a failure, as
is the end of the server's process.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgpack
import numpy as np
import psutil
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from la_reconvla.contracts import Observation
from la_reconvla.serving.wire import pack, unpack
from la_reconvla.training.acting import Actor
from la_reconvla.training.checkpoint import find_run
from la_reconvla.training.trained_policy import Trained

TOLD = "pick up the black bowl next to the plate and place it on the plate"


def honest(draw: np.random.Generator, size: int) -> dict:
    picture = draw.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return {
        "observation/image": picture,
        "observation/wrist_image": picture,
        "observation/state": np.zeros(8),
        "prompt": TOLD,
    }


def truncated(draw, rng, size):
    whole = pack(honest(draw, size))
    return whole[: rng.randrange(len(whole))]


def flipped(draw, rng, size):
    whole = bytearray(pack(honest(draw, size))[:-1])
    head = min(len(whole), 300)  # where the structure is, and before it ends
    for _ in range(rng.randint(1, 20)):
        whole[rng.randrange(head)] = rng.randrange(256)
    return bytes(whole)


def noise(draw, rng, size):
    return rng.randbytes(rng.choice([0, 1, 7, 100, 10_000]))


def huge(draw, rng, size):
    lie = {
        b"__ndarray__": True,
        b"data": b"x" * rng.choice([0, 1, 100]),
        b"dtype": "<u1",
        b"shape": [1 << rng.randint(10, 62), 3],
    }
    return rng.choice(
        [
            msgpack.packb({"observation/image": lie, "prompt": TOLD}),
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\x91" * 4000,
        ]
    )


def shapes(draw, rng, size):
    shape = rng.choice([(0, 0, 3), (size,), (size, size), (size, size, 4), (3, size, size), (1, 1, 1, 1), (4000, 2, 3)])
    return pack({**honest(draw, size), "observation/image": np.zeros(shape, np.uint8)})


def types(draw, rng, size):
    picture = rng.choice([None, 1, "x", [1], {"a": 1}, np.zeros((size, size, 3)), np.full((size, size, 3), np.nan)])
    other = rng.choice([{"observation/image": picture}, {"prompt": rng.choice([None, 1, [1], {"a": 1}])}])
    return pack({**honest(draw, size), **other})


def objects(draw, rng, size):
    kind = rng.choice(["|O", "O", "<U4", "|V8", "<c8", "<M8[s]", "nonsense", ""])
    return msgpack.packb(
        {
            "observation/image": {b"__ndarray__": True, b"data": b"12345678", b"dtype": kind, b"shape": [1]},
            "prompt": TOLD,
        }
    )


def prompts(draw, rng, size):
    return pack({**honest(draw, size), "prompt": rng.choice(["", " ", "\n", "x" * 100_000, 3, None, ["a"]])})


def text(draw, rng, size):
    return rng.choice(["", "hello", "{}", "é" * 1000])


KINDS = {k.__name__: k for k in (truncated, flipped, noise, huge, shapes, types, objects, prompts, text)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--run", default="base")
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--repeats", type=int, default=200)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        token = Path(place) / "token"
        token.write_text(os.urandom(16).hex(), encoding="utf-8")
        command = [sys.executable, "-m", "la_reconvla", "serve", given.run, "--port", "0", "--token-file", str(token)]
        server = subprocess.Popen(
            [*command, "--instruction", TOLD, "--device", "cpu"], stderr=subprocess.PIPE, encoding="utf-8"
        )
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r":(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        try:
            attack(int(found[1]), token.read_text(encoding="utf-8"), given.count, server)
            latency(int(found[1]), token.read_text(encoding="utf-8"), given.run, given.repeats)
        finally:
            server.terminate()
            server.wait(20)


def open_socket(port: int, token: str | None):
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    return connect(f"ws://127.0.0.1:{port}", additional_headers=headers, compression=None, proxy=None, max_size=None)


def attack(port: int, token: str, count: int, server: subprocess.Popen) -> None:
    draw, rng, process = np.random.default_rng(0), random.Random(0), psutil.Process(server.pid)
    before = peak = process.memory_info().rss
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with open_socket(port, token) as one:
        size = unpack(one.recv())["image_size"]
    sent, begun = 0, time.perf_counter()
    while sent < count:
        kind = rng.choice(list(KINDS))
        try:
            with open_socket(port, token) as client:
                client.recv()
                for _ in range(20):  # as many errors as a client may make
                    client.send(KINDS[kind](draw, rng, size))
                    sent += 1
                    answer = client.recv()
                    acted = isinstance(answer, bytes)
                    found[kind]["answered with actions" if acted else "answered with an error"] += 1
                    kind = rng.choice(list(KINDS))
        except ConnectionClosed:
            found[kind]["disconnected"] += 1
        peak = max(peak, process.memory_info().rss)
        if server.poll() is not None:
            raise SystemExit(f"the server died after {sent} messages ({kind})")
    for _ in range(200):  # without the token, or with another
        try:
            with open_socket(port, rng.choice([None, "x" * 16, token[:-1]])) as client:
                client.send(pack(honest(draw, size)))
                client.recv()
            found["no token"]["answered with actions"] += 1
        except InvalidStatus:
            found["no token"]["refused"] += 1
    for _ in range(50):  # begins and says no more; speaks another protocol
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(rng.choice([b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", rng.randbytes(2000), b""]))
        found["no websocket"]["left alone"] += 1
    for _ in range(20):  # a message larger than any
        try:
            with open_socket(port, token) as client:
                client.recv()
                client.send(b"\0" * 60_000_000)
                client.recv()
            found["60 MB"]["answered with actions"] += 1
        except ConnectionClosed:
            found["60 MB"]["disconnected"] += 1
        peak = max(peak, process.memory_info().rss)
    with open_socket(port, token) as client:
        client.recv()
        client.send(pack(honest(draw, size)))
        honest_after = isinstance(client.recv(), bytes)
    print(
        f"\n{sent} hostile messages in {time.perf_counter() - begun:.0f} s; the server runs: {server.poll() is None}; "
    )
    print(f"an honest client gets actions afterwards: {honest_after}")
    print(f"memory {before / 1e6:.0f} MB before, {peak / 1e6:.0f} MB at most\n")
    print("| kind | errors | disconnected | refused | actions |\n|---|---|---|---|---|")
    for kind, c in found.items():
        cells = (
            c["answered with an error"],
            c["disconnected"] + c["left alone"],
            c["refused"],
            c["answered with actions"],
        )
        print(f"| {kind} | {' | '.join(map(str, cells))} |")


def latency(port: int, token: str, run: str, repeats: int) -> None:
    draw, policy = np.random.default_rng(1), Trained(find_run(run)).build()
    policy.actor = Actor(policy.policy, 0)
    size = policy.config.backbone.image_size
    policy.tell(TOLD)
    times: dict[str, list[float]] = {"act alone": [], "over loopback": []}
    with open_socket(port, token) as client:
        client.recv()
        for i in range(repeats + 5):
            seen = honest(draw, size)
            for name in random.Random(i).sample(list(times), 2):
                begun = time.perf_counter()
                if name == "act alone":
                    image = seen["observation/image"]
                    policy.act(Observation(image, TOLD, image, np.zeros(8, np.float32)))
                else:
                    client.send(pack(seen))
                    unpack(client.recv())
                if i >= 5:
                    times[name].append(1e3 * (time.perf_counter() - begun))
    print("\n| | median (ms) | 5th to 95th percentile |\n|---|---|---|")
    for name, t in times.items():
        print(f"| {name} | {np.median(t):.2f} | {np.percentile(t, 5):.2f} to {np.percentile(t, 95):.2f} |")


if __name__ == "__main__":
    main()

"""A robot's side of `la-reconvla serve RUN`: a loop that looks, asks for a chunk of actions, and carries it out.

The format is openpi's, so its own client (`openpi_client.websocket_client_policy.WebsocketClientPolicy`) works too.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np
from websockets.sync.client import connect

from la_reconvla.serving.wire import pack, unpack


class FakeRobot:
    """Stands for yours: what its camera shows, what its joints say, and a way to move."""

    def __init__(self) -> None:
        self.moved: list[np.ndarray] = []

    def look(self) -> dict:
        """Pictures uint8 [H W 3], as LIBERO's stand ("mirrored"); position, axis-angle and two finger positions."""
        picture = np.random.default_rng(len(self.moved)).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        return {"observation/image": picture, "observation/wrist_image": picture, "observation/state": np.zeros(8)}

    def move(self, action: np.ndarray) -> None:
        self.moved.append(action)


def drive(robot: FakeRobot, url: str, prompt: str, steps: int, execute: int = 8, token: str | None = None) -> dict:
    """Act for `steps` control steps, `execute` actions of each chunk; what the server said of itself."""
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    with connect(url, additional_headers=headers, compression=None, max_size=None, proxy=None) as server:
        facts = unpack(server.recv())
        queue: deque[np.ndarray] = deque()
        for _ in range(steps):
            if not queue:
                server.send(pack({**robot.look(), "prompt": prompt, "orientation": "mirrored"}))
                answer = server.recv()
                if isinstance(answer, str):  # text is an error: stop, do not repeat the last action
                    raise RuntimeError(answer)
                queue.extend(unpack(answer)["actions"][:execute])
            robot.move(queue.popleft())
    return facts


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    address, prompt = given.get(1, "ws://127.0.0.1:8000"), given.get(2, "pick up the black bowl")
    try:
        print(drive(FakeRobot(), address, prompt, steps=24))
    except ConnectionRefusedError:
        sys.exit(f"nobody answers at {address}: start `la-reconvla serve RUN` first")

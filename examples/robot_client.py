"""A robot's side of `la-reconvla serve RUN`: a loop that looks, asks for a chunk of actions, and carries it out.

The format is openpi's, so its own client (`openpi_client.websocket_client_policy.WebsocketClientPolicy`) works too.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque

import numpy as np
from websockets.sync.client import connect

from la_reconvla.serving.wire import pack, unpack


class FakeRobot:
    """Stands for yours: what its cameras show, what its joints say, and a way to move."""

    def __init__(self) -> None:
        self.moved: list[np.ndarray] = []

    def look(self, numbers: int) -> dict:
        """Pictures uint8 [H W 3] of both cameras, and as many numbers of the robot's state as the policy wants."""
        picture = np.random.default_rng(len(self.moved)).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        state = np.zeros(numbers)
        return {"observation/image": picture, "observation/wrist_image": picture, "observation/state": state}

    def move(self, action: np.ndarray) -> None:
        self.moved.append(action)


def drive(
    robot: FakeRobot, url: str, prompt: str, steps: int, execute: int = 8, stands: str = "", token: str | None = None
) -> dict:
    """Act for `steps` control steps, `execute` actions of each chunk; what the server said of itself.

    `stands` is how the robot's pictures stand (upright, mirrored, upside_down): the server refuses those that are not
    as its policy learned. A robot that is none takes what the policy wants.
    """
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    with connect(url, additional_headers=headers, compression=None, max_size=None, proxy=None) as server:
        facts = unpack(server.recv())
        queue: deque[np.ndarray] = deque()
        for _ in range(steps):
            if not queue:
                seen = {**robot.look(facts["state"]), "prompt": prompt, "orientation": stands or facts["orientation"]}
                server.send(pack(seen))
                answer = server.recv()
                if isinstance(answer, str):  # text is an error: stop, do not repeat the last action
                    raise RuntimeError(answer)
                queue.extend(unpack(answer)["actions"][:execute])
            robot.move(queue.popleft())
    return facts


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("address", nargs="?", default="ws://127.0.0.1:8000")
    given.add_argument("prompt", nargs="?", default="pick up the black bowl")
    given.add_argument("--steps", type=int, default=24)
    options, robot = given.parse_args(), FakeRobot()
    try:
        facts = drive(robot, options.address, options.prompt, options.steps)
    except ConnectionRefusedError:
        sys.exit(f"nobody answers at {options.address}: start `la-reconvla serve RUN` first")
    print(f"{facts['policy']}: {len(robot.moved)} actions of {', '.join(facts['action_names'])}; the last one:")
    print(robot.moved[-1].round(3))

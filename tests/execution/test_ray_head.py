"""A head of a Ray cluster that is lost ends the command in a sentence; one that is away for a moment does not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from la_reconvla.errors import UserError
from la_reconvla.execution import ray_head
from la_reconvla.execution.ray_head import Disconnected, Head, require_answer

COMMAND = """
import sys, time
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.execution.jobs import Job, Needs, nothing
from la_reconvla.execution.on_ray import cluster
jobs = [Job("short", time.sleep, (0,)), Job("long", time.sleep, (600,))]
try:
    with cluster("auto"):
        for job, _ in executor().map(jobs, [Job("start", nothing)], Needs(memory=100_000_000), "test"):
            print(job.name, flush=True)
            if sys.argv[1] == "between":
                break
        time.sleep(5)
        next(executor().map(jobs, [Job("start", nothing)], Needs(memory=100_000_000), "test"))
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head, "BETWEEN", 0.1)
    monkeypatch.setattr(ray_head, "alive", lambda: [{"NodeID": "other"}, {"NodeID": "ours"}])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_head_that_answers_is_asked_now_and_then(port: int, scheme: str) -> None:
    head = Head(f"{scheme}127.0.0.1:{port}", "ours", silent=0.2)
    head.require()
    time.sleep(0.2)
    head.require()
    require_answer(f"ray://127.0.0.1:{port}")


def test_a_head_that_is_away_for_a_moment_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
    back = threading.Timer(0.6, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    servers: list[socket.socket] = []
    back.start()
    begun = time.monotonic()
    Head(f"127.0.0.1:{port}", "ours", silent=20).require()
    assert 0.5 < time.monotonic() - begun < 15
    servers.pop().close()


def test_a_silent_head_is_lost_and_the_error_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = Head(address, "ours", silent=0.5)
        head.require()
    time.sleep(0.2)
    with pytest.raises(Disconnected, match=f"{address}, no longer answers. What was finished is kept.*run the same"):
        head.require()
    with pytest.raises(UserError, match="nothing answers there"):
        require_answer(address)


def test_the_node_of_this_process_is_missed(port: int) -> None:
    Head(f"127.0.0.1:{port}", "ours").require()
    with pytest.raises(Disconnected, match=r"node of Ray on this command's machine has ended\. What was finished"):
        Head(f"127.0.0.1:{port}", "third").require()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "when", "said"),
    [
        ("gcs_server", "at work", "the head of the cluster, .*, no longer answers"),
        ("gcs_server", "between", "the head of the cluster, .*, no longer answers"),
        ("raylet", "at work", "the node of Ray on this command's machine has ended"),
    ],
)
def test_a_command_that_loses_its_cluster_ends_in_a_sentence(process: str, when: str, said: str) -> None:
    """Without its head Ray would end it after 60 seconds with words about itself; without its node it would hang."""
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_ADDRESS": cluster.address,
        }
        with subprocess.Popen(
            [sys.executable, "-c", COMMAND, when], stdout=subprocess.PIPE, env=environment
        ) as command:
            assert command.stdout is not None
            assert command.stdout.readline() == b"short\n"
            os.kill(cluster.head_node.all_processes[process][0].process.pid, signal.SIGKILL)
            try:
                printed, _ = command.communicate(timeout=200)
            finally:
                command.kill()
        assert command.returncode == 2, printed
        assert re.search(f"{said}. What was finished is kept", printed.decode())
    finally:
        cluster.shutdown()


def test_a_head_that_is_lost_while_nobody_asks_ends_the_process_with_a_sentence() -> None:
    """What waits within Ray is not asked; while the head answers, the same goes on."""
    waits = "import time\nfrom la_reconvla.execution.ray_head import watched\n"
    waits += "with watched('127.0.0.1:{}', silent=1.0):\n    time.sleep({})\nprint('went on')"
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        there = subprocess.run([sys.executable, "-c", waits.format(port, 6)], capture_output=True, text=True)
    assert (there.returncode, there.stdout) == (0, "went on\n")
    lost = subprocess.run([sys.executable, "-c", waits.format(port, 60)], capture_output=True, text=True, timeout=50)
    assert lost.returncode == 2
    assert lost.stderr.startswith(f"error: the head of the cluster, 127.0.0.1:{port}, no longer answers. What was")


def test_connecting_ends_in_time_with_a_sentence() -> None:
    """Ray catches every exception while it connects, so that the process is ended; in time nothing happens."""
    late = (
        "import time\nfrom la_reconvla.execution.ray_head import in_time\nwith in_time('auto', {}):\n    time.sleep({})"
    )
    found = subprocess.run([sys.executable, "-c", late.format(0.2, 60)], capture_output=True, text=True, timeout=50)
    assert found.returncode == 2
    assert found.stderr.startswith("error: the cluster, auto, stopped answering. What was finished is kept")
    in_time = f"{late.format(5, 0)}\nprint('went on')"
    assert subprocess.run([sys.executable, "-c", in_time], capture_output=True, text=True).stdout == "went on\n"

"""A pool that is cut off takes its own processes with it, and no others."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from la_reconvla.processes import worker_pool


def cut_off_after(seconds: float) -> None:
    with worker_pool(2) as pool:
        for _ in range(4):
            pool.submit(time.sleep, 60)
        time.sleep(seconds)
        raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [0, 0.02, 1])
def test_a_pool_that_is_cut_off_leaves_no_process_and_spares_those_of_others(seconds):
    """However far its processes have come; they used to outlive it now and then."""
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cut_off_after(seconds)
        assert multiprocessing.active_children() == [other]
    finally:
        other.terminate()
        other.join()

"""The thread pool: barriers hold, any thread may enter, forks work, an idle pool uses no CPU time."""

import os
import threading
import time

import pytest

native = pytest.importorskip("lowbit._native")


@pytest.mark.parametrize("threads", [1, 2, 3, 2 * (os.cpu_count() or 1)])
def test_barriers_hold(threads):
    pool = native.ThreadPool(threads)
    assert pool.size == threads
    assert pool.exercise(20, 20) == 0


def test_many_barriers():
    assert native.ThreadPool(2).exercise(1, 100_000) == 0


def test_many_callers_queue():
    pool = native.ThreadPool(2)
    results = []
    callers = [threading.Thread(target=lambda: results.append(pool.exercise(30, 5))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert results == [0] * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_gets_its_own_workers():
    pool = native.ThreadPool(2)
    assert pool.exercise(2, 2) == 0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if pool.exercise(5, 5) == 0 else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    pytest.fail("the pool hangs in a forked child")


def test_idle_pool_uses_no_cpu_time():
    pool = native.ThreadPool(2)
    pool.exercise(5, 5)
    time.sleep(0.05)  # workers spin for a moment before they sleep
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_pools_come_and_go():
    for _ in range(20):
        assert native.ThreadPool(3).exercise(1, 3) == 0

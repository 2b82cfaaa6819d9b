"""The thread pool: barriers hold, any thread may enter, forks work, an idle pool uses no CPU time."""

import os
import subprocess
import sys
import threading
import time

import pytest

native = pytest.importorskip("lowbit._native")


@pytest.mark.parametrize("threads", [1, 2, 3, 2 * (os.cpu_count() or 1)])
def test_barriers_hold(threads):
    pool = native.ThreadPool(threads)
    assert pool.size == threads
    assert pool.exercise(20, 20) == 0


# Two barriers for each phase: a million of them, and where all members but a few must sleep, a hundredth.
@pytest.mark.parametrize(("threads", "phases"), [(2, 500_000), (4 * (os.cpu_count() or 1) + 1, 5_000)])
def test_a_million_barriers(threads, phases):
    """In a process of its own, which a deadlock does not outlive."""
    # The watchdog starts anew with every thousand phases: a busy machine is slow, not hung.
    code = f"""
import faulthandler
from lowbit import _native
pool = _native.ThreadPool({threads})
for first in range(0, {phases}, 1000):
    faulthandler.dump_traceback_later(60, exit=True)
    assert pool.exercise(1, min(1000, {phases} - first)) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_many_callers_queue():
    pool = native.ThreadPool(2)
    results = []
    callers = [threading.Thread(target=lambda: results.append(pool.exercise(30, 5))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert results == [0] * 8


def exit_code(child: int) -> int:
    """Returns the exit code of a forked child, which has 30 seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the pool hangs in a forked child")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_children_get_their_own_workers_while_the_parent_works(threads):
    pool = native.ThreadPool(threads)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            pool.exercise(3, 50)

    busy = threading.Thread(target=work)
    busy.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = 0 if pool.exercise(5, 5) == 0 else 2
                finally:
                    os._exit(code)
            assert exit_code(child) == 0
    finally:
        stop.set()
        busy.join(60)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds the stacks of threads on Linux")
def test_refused_threads_are_an_error_that_passes():
    code = """
import resource
from lowbit import _native
pool = _native.ThreadPool(64)
pages = int(open("/proc/self/statm").read().split()[0])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (40 << 20), before[1]))
try:
    pool.exercise(1, 1)
except RuntimeError as error:
    assert "cannot start 64 threads" in str(error) and "Runtime(threads=...)" in str(error), error
else:
    raise AssertionError("64 stacks fit into 40 MB")
resource.setrlimit(resource.RLIMIT_AS, before)
assert pool.exercise(2, 2) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


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

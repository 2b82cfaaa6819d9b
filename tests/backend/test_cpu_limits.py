"""The limits of a real process: its affinity mask, and the quota of control groups where a test may make one."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lowbit import machine

# Prints what a fresh process takes: its quota, threads of a runtime, threads of the loaders' pool, CPUs of its threads.
REPORT = """
import json, os, sys
if len(sys.argv) > 1:
    open(sys.argv[1], "w").write(str(os.getpid()))
from lowbit import machine, ops, runtime
pool = ops.pool()
pool.exercise(2, 2)
masks = {len(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")}
print(json.dumps([machine.read_cpus().quota, runtime.Runtime().resolve().threads, pool.size, sorted(masks)]))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity masks and control groups are Linux's")


def report(*command: str, entrance: Path | None = None):
    """Returns what REPORT prints, run by a command that starts others, in a control group."""
    variables = {name: value for name, value in os.environ.items() if name != "LOWBIT_THREADS"}
    arguments = [*command, sys.executable, "-c", REPORT, *([str(entrance)] if entrance else [])]
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
def test_threads_follow_the_affinity_mask():
    pytest.importorskip("lowbit._native")
    cpu = min(os.sched_getaffinity(0))
    pinned = f"import os, sys; os.sched_setaffinity(0, {{{cpu}}}); os.execv(sys.argv[1], sys.argv[1:])"
    assert report(sys.executable, "-c", pinned)[1:] == [1, 1, [1]]


@contextmanager
def nested_groups(quotas):
    """Yields the innermost of nested control groups with these quotas in CPUs (None: no limit), or skips the test."""
    root = Path("/sys/fs/cgroup")
    for controller, top in (("", root), ("cpu", root / "cpu")):
        own = machine._control_group(Path("/"), controller)
        if own is not None and (limits := _limit_files(top / own)):
            break
    else:
        pytest.skip("this process is in no control group that limits CPUs")
    made: list[Path] = []
    try:
        for depth, quota in enumerate(quotas):
            folder = (made[-1] if made else top / own) / f"lowbit-test-{os.getpid()}-{depth}"
            try:
                folder.mkdir()
                made.append(folder)
                if quota is not None:
                    (folder / limits[0]).write_text(limits[1].format(int(quota * 100000)))
            except OSError as error:
                pytest.skip(f"control groups cannot be made here ({error})")
        yield made[-1]
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _limit_files(folder: Path):
    """Returns the file that limits CPU time in a group below `folder` and what is written there; None: it has none."""
    if (folder / "cpu.cfs_quota_us").exists():
        return "cpu.cfs_quota_us", "{}"
    shared = folder / "cgroup.subtree_control"
    return ("cpu.max", "{} 100000") if shared.exists() and "cpu" in shared.read_text().split() else None


@linux
@pytest.mark.parametrize("quotas", [(1.5,), (0.5, None), (1, 0.7)])
def test_threads_follow_the_quota_of_real_groups(quotas):
    pytest.importorskip("lowbit._native")
    outside = machine.read_cpus().quota
    tightest = min(quota for quota in (*quotas, outside) if quota is not None)
    with nested_groups(quotas) as folder:
        quota, threads, loaders, _ = report(entrance=folder / "cgroup.procs")
    assert quota == pytest.approx(tightest)
    assert loaders == min(2 if tightest > 1 else 1, len(os.sched_getaffinity(0)))
    assert threads <= loaders

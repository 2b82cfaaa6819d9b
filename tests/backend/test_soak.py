"""Five hundred mixed requests from threads and asyncio: answers, memory and threads are as before."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not (Path("/proc/self/statm").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")),
    reason="needs /proc and glibc to see what a process keeps",
)
def test_soak():
    model = HERE.parents[1] / "demo" / "model"
    if not (model / "config.json").exists():
        pytest.skip("the embedded model is not in this checkout yet")
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(HERE / "soak.py"), str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

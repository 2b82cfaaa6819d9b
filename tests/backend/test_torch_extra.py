"""Without torch: importing lowbit works, and what needs torch says how to get it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["optimize_model", "load_low_bit", "low_memory_init"])
def test_a_missing_torch_is_named_with_the_command(name):
    code = f"import sys; sys.modules['torch'] = None; import lowbit; lowbit.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert 'ImportError: this needs PyTorch 2.4 or newer; install it with: pip install "lowbit[torch]"' in done.stderr

"""Fixtures of the PyTorch tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny_torch.py


@pytest.fixture(autouse=True)
def _quiet_torch():
    """One torch thread (its pool spins, and these models are tiny) and no gradients, as scripts run inference."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        yield

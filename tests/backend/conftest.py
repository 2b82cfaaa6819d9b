"""Fixtures of the backend tests."""

import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny_hf.py


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a connection or look a name up fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was used: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

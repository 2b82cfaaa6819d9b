"""Fixtures of the backend tests."""

import socket
import sys
from fnmatch import fnmatch
from pathlib import Path
from shutil import copyfile

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


class FakeHub:
    """Stands for `snapshot_download`: a repository in a folder, and what was asked for."""

    def __init__(self, repository, cache):
        self.repository, self.cache, self.calls = repository, cache / ("f" * 40), []

    def __call__(self, repo_id, *, allow_patterns, **options):
        self.calls.append((repo_id, allow_patterns, options))
        self.cache.mkdir(parents=True, exist_ok=True)
        for file in self.repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                copyfile(file, self.cache / file.name)
        return str(self.cache)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "repository").mkdir()
    fake = FakeHub(tmp_path / "repository", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake

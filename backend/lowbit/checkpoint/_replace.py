"""A folder that is either the old one or the new one, never half of each.

The new content is made in a staging folder on the same file system, written through to the disk, and then takes the old
one's place in one step. Knows nothing about models but the name of the manifest that marks a folder as ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_FOREIGN_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "*.index.json")


def refuse_target(target: Path, manifest: str) -> None:
    """Raises FileExistsError when `target` is a file or a folder with weights that lowbit did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; choose a folder to save to")
    if (target / manifest).exists():
        return
    if weights := [path.name for pattern in _FOREIGN_WEIGHTS for path in target.glob(pattern)]:
        raise FileExistsError(
            f"{target} holds a model that lowbit did not write ({weights[0]}) and is not replaced; "
            "choose another folder"
        )


@contextlib.contextmanager
def staging_folder(target: Path, manifest: str) -> Iterator[Path]:
    """Yields an empty folder on the target's file system, and removes what is left of it in any case."""
    foreign = target.exists() and not (target / manifest).exists()
    parent = target if foreign else target.parent  # inside: a foreign folder may be a mount point
    parent.mkdir(parents=True, exist_ok=True)
    stage = parent / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"
    stage.mkdir()
    try:
        yield stage
    finally:
        if stage.exists():
            shutil.rmtree(stage)


def put_in_place(stage: Path, target: Path, manifest: str) -> None:
    """Moves the staging folder to `target`; what was there afterwards lies in `stage`, except files that are not ours.

    A new or an older low-bit folder is replaced in one step. Into a folder of other files the new ones are moved one
    by one, the manifest last, so that a folder with a manifest is complete.
    """
    _sync_folders(stage)
    while not _is_folder_of_others(target, manifest):
        if _rename_new(stage, target) or _exchange(stage, target):
            _keep_foreign_files(old=stage, new=target, manifest=manifest)
            sync_file(target.parent)
            return
        # Another process made or removed the target in between: look again.
    for path in sorted(stage.rglob("*"), key=lambda p: (p.name == manifest, p)):
        goal = target / path.relative_to(stage)
        if path.is_dir():
            goal.mkdir(exist_ok=True)
        else:
            os.replace(path, goal)
    _sync_folders(target)


def sync_file(path: Path) -> None:
    """Writes a file's content, or a folder's list of names, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        sync_file(Path(folder))


def _is_folder_of_others(target: Path, manifest: str) -> bool:
    return target.exists() and not (target / manifest).exists() and any(True for _ in target.iterdir())


def _rename_new(stage: Path, target: Path) -> bool:
    """Renames onto an absent or empty folder; False when somebody else's content is there."""
    try:
        os.rename(stage, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(stage: Path, target: Path) -> bool:
    """Swaps the two folders' names, in one step where the system can; False when `target` is gone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):  # glibc 2.28, musl 1.2.5
            paths = os.fsencode(stage), _AT_FDCWD, os.fsencode(target)
            if libc.renameat2(_AT_FDCWD, *paths, _RENAME_EXCHANGE) == 0:
                return True
            number = ctypes.get_errno()
            if number == errno.ENOENT and stage.exists():
                return False
            if number not in (errno.EINVAL, errno.ENOSYS):  # a file system without the exchange
                raise OSError(number, os.strerror(number), str(target))
    # Two steps, undone when the second fails: for a moment no folder has the name.
    aside = stage.with_name(stage.name + ".old")
    try:
        os.rename(target, aside)
    except FileNotFoundError:
        return False
    try:
        os.rename(stage, target)
    except OSError:
        os.rename(aside, target)
        raise
    os.rename(aside, stage)
    return True


def _keep_foreign_files(old: Path, new: Path, manifest: str) -> None:
    """Moves files of the replaced folder that are neither in its manifest nor in the new folder to the new one."""
    if not old.exists():
        return  # there was no old folder
    ours = {manifest, *_listed(old / manifest)}
    for path in sorted(old.rglob("*")):
        goal = new / path.relative_to(old)
        if path.is_file() and path.relative_to(old).as_posix() not in ours and not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, goal)


def _listed(manifest: Path) -> set[str]:
    """Returns the files a manifest lists; none when it is damaged, so that nothing is taken for ours by mistake."""
    try:
        return set(json.loads(manifest.read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()

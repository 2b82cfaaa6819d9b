"""A blocking iterator as an asynchronous one: a worker thread runs it, the event loop stays alive."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from collections.abc import Generator as PyGenerator
from typing import TypeVar

T = TypeVar("T")

AHEAD = 64  # items a worker may be ahead of its reader before it waits
EXIT_CHECK_SECONDS = 1.0  # how often a waiting worker looks whether the interpreter wants to end


async def iterate_in_thread(
    make: Callable[[threading.Event], PyGenerator[T, None, None]],
) -> AsyncGenerator[T, None]:
    """Yields the items of an iterator that a worker thread runs, at most AHEAD of them before they are asked for.

    `make` is called in the worker with the event that is set when the consumer stops early: the worker then closes its
    iterator after the step it is in; the event loop does not wait for it.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T | None, BaseException | None, bool]] = asyncio.Queue()
    cancel = threading.Event()
    room = threading.Semaphore(AHEAD)

    def put(item: T | None, error: BaseException | None = None, done: bool = False) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, (item, error, done))
        except RuntimeError:  # the loop was closed: nobody listens any more
            cancel.set()

    def wait_for_room() -> None:
        while not room.acquire(timeout=EXIT_CHECK_SECONDS) and not cancel.is_set():
            if not threading.main_thread().is_alive():  # the interpreter waits for this thread, whose reader is gone
                cancel.set()

    def work() -> None:
        try:
            with contextlib.closing(make(cancel)) as items:
                for item in items:
                    wait_for_room()
                    put(item)
                    if cancel.is_set():
                        break
        except BaseException as error:
            put(None, error, True)
        else:
            put(None, None, True)

    # A thread of its own, because a long answer would occupy one of the loop's few executor threads; not a daemon, so
    # that the interpreter does not end below it (the cancel event bounds how long it lives).
    threading.Thread(target=work, name="lowbit-generate").start()
    try:
        while True:
            item, error, done = await queue.get()
            if error is not None:
                raise error
            if done:
                return
            room.release()
            yield item  # type: ignore[misc]
    finally:
        cancel.set()
        room.release()

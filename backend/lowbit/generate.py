"""Generation: token ids in, token ids out, for any number of prompts at once. Knows no text.

Owns the loop (prefill in chunks, steps, rows that leave when they finish), the sessions and their reuse. The one
primitive is `Generator.start`, an iterator of events; everything else is a fold over it.

Thread safety: any thread may start a batch at any time. Each row owns a session while it runs; the engine's forward
passes queue on the native pool.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lowbit import ops
from lowbit.sampling import GenerationOptions, new_seed
from lowbit.sessions import Cache, Session, SessionPool

# Rows decoded together; the others of a longer list wait and enter as rows leave. On a 0.5 B model and two cores 16
# rows gave 1.5 times the tokens per second of 8 and 9 times those of one; more rows make every row slow.
MAX_BATCH = 16
# Prompt tokens per forward pass; cancellation is honoured between passes. 128 gave 96 % of the prefill rate of 512.
PREFILL_CHUNK = 128


class Engine(Protocol):
    """What computes logits: the native decoder (engine.py), or a toy in tests."""

    vocab_size: int
    context: int  # longest sequence, in tokens

    def capacity(self, tokens: int) -> int:
        """Returns the capacity of the cache to use for a sequence that may grow to that many tokens."""

    def new_cache(self, capacity: int) -> Cache:
        """Returns an empty cache; memory is touched as it fills."""

    def forward(self, parts: list[tuple[Cache, np.ndarray, bool]]) -> np.ndarray:
        """Appends int32 tokens to each cache; returns float32 [rows, vocab_size], logits of the last token of each part
        (of all its tokens where the third item is True)."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    prompt: token ids, at least one. eos: ids that end the answer. allowed: called before each choice with the output
    ids so far (int32), returns the tokens allowed next as uint32 bit words [ceil(vocab / 32)], or None for all.
    """

    prompt: Sequence[int] | np.ndarray
    options: GenerationOptions
    eos: tuple[int, ...] = ()
    allowed: Callable[[np.ndarray], np.ndarray | None] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One generated token of one row, or the end of a row ("cancelled" comes without a token).

    finish_reason: None, "stop" (token is an eos id), "length" or "cancelled". logprob and alternatives [(id, logprob)]:
    where options.logprobs asks for them.
    """

    row: int
    token: int | None
    finish_reason: str | None = None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class _Row:
    """The state of one request while it runs."""

    def __init__(self, index: int, request: Request, engine: Engine) -> None:
        prompt = np.asarray(request.prompt)
        if prompt.ndim != 1 or (prompt.size and prompt.dtype.kind not in "iu"):
            raise TypeError(f"a prompt is a 1-D sequence of token ids, got shape {prompt.shape} of {prompt.dtype}")
        if prompt.size == 0:
            raise ValueError(
                "the prompt is empty and the tokenizer adds no beginning-of-text token: give at least one token"
            )
        outside = prompt[(prompt < 0) | (prompt >= engine.vocab_size)]
        if outside.size:
            raise ValueError(
                f"token id {outside[0]} in the prompt is outside the vocabulary (0 to {engine.vocab_size - 1})"
            )
        if prompt.size >= engine.context:
            raise ValueError(
                f"the prompt has {prompt.size} tokens, the context is {engine.context} tokens for prompt and answer "
                "together; shorten the prompt or load the model with a larger context"
            )
        self.index = index
        self.options = request.options
        self.seed = new_seed() if request.options.seed is None else request.options.seed
        self.eos = () if self.options.ignore_eos else request.eos
        self.allowed = request.allowed
        self.prompt_tokens = int(prompt.size)
        room = min(self.options.new_tokens_allowed(self.prompt_tokens), engine.context - self.prompt_tokens)
        self.ids = np.empty(self.prompt_tokens + room, np.int32)  # prompt, then output
        self.ids[: self.prompt_tokens] = prompt
        self.count = self.prompt_tokens  # ids known so far
        self.session: Session | None = None
        self.finished = False
        self._sampler = self.options.sampler_arguments()
        self._mask = _mask_without(engine.vocab_size, self.options.suppress_tokens)
        self._early_mask = _mask_without(engine.vocab_size, self.options.suppress_tokens + self.eos)

    @property
    def output(self) -> np.ndarray:
        return self.ids[self.prompt_tokens : self.count]

    @property
    def pending(self) -> np.ndarray:
        """Ids not yet in the cache."""
        assert self.session is not None
        return self.ids[self.session.cache.length : self.count]

    @property
    def cancelled(self) -> bool:
        return self.options.cancel is not None and self.options.cancel.is_set()

    def choose(self, logits: np.ndarray) -> Event:
        """Appends the next token, chosen from a row of logits (scratch afterwards), and returns its event."""
        output = self.output
        mask = self._early_mask if output.size < self.options.min_new_tokens else self._mask
        if self.allowed is not None and (allowed := self.allowed(output)) is not None:
            mask = allowed if mask is None else allowed & mask
        token, logprob, alternatives = ops.sample(
            logits, prompt=self.ids[: self.prompt_tokens], output=output, mask=mask, seed=self.seed,
            position=output.size, **self._sampler,
        )  # fmt: skip
        self.ids[self.count] = token
        self.count += 1
        reason = "stop" if token in self.eos else "length" if self.count == self.ids.size else None
        if self.options.logprobs is None:
            return Event(self.index, token, reason)
        return Event(self.index, token, reason, logprob, tuple(alternatives))


class Batch:
    """The running rows of one `Generator.start` call: an iterator of events, a context manager.

    `finish(row)` takes a row out (its stop string was found); `close()` ends everything and frees the sessions at once.
    """

    def __init__(self, generator: Generator, rows: list[_Row], cancel: threading.Event | None) -> None:
        self._rows = rows
        self._cancel = cancel
        self._generator = generator
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self, row: int) -> None:
        """Takes a row out of the batch; no further event of it comes."""
        self._rows[row].finished = True

    def close(self) -> None:
        """Ends the batch and frees its sessions; further iteration ends at once."""
        self._events.close()

    def prompt_tokens(self, row: int) -> int:
        """Returns the length of a row's prompt."""
        return self._rows[row].prompt_tokens

    def cached_tokens(self, row: int) -> int:
        """Returns how many tokens of a row's prompt came from a kept session (0 before its prefill)."""
        session = self._rows[row].session
        return 0 if session is None else session.reused

    def _is_cancelled(self, row: _Row) -> bool:
        return row.cancelled or (self._cancel is not None and self._cancel.is_set())

    def _run(self) -> PyGenerator[Event, None, None]:
        waiting = deque(self._rows)
        active: list[_Row] = []
        sessions = self._generator.sessions
        try:
            while waiting or active:
                while waiting and len(active) < self._generator.max_batch:
                    active.append(waiting.popleft())
                for row in active:
                    if not row.finished and self._is_cancelled(row):
                        row.finished = True
                        yield Event(row.index, None, "cancelled")
                    if not row.finished and row.session is None:
                        row.session = sessions.acquire(row.ids[: row.count], row.ids.size)
                ready = self._generator.forward([row for row in active if not row.finished])
                for row, logits in ready:
                    if row.finished or self._is_cancelled(row):
                        continue  # a cancelled row gets its event at the top of the loop
                    event = row.choose(logits)
                    row.finished = event.finish_reason is not None
                    yield event
                for row in [row for row in active if row.finished]:
                    active.remove(row)
                    self._release(row)
        finally:
            for row in active:
                self._release(row)

    def _release(self, row: _Row) -> None:
        if row.session is not None and not row.session.released:
            self._generator.sessions.release(row.session, row.ids)


class Generator:
    """Generates with one engine, and keeps a few idle sessions: a prompt that begins like an earlier one is prefilled
    only from where it differs."""

    def __init__(
        self, engine: Engine, *, idle_sessions: int = 4, max_batch: int = MAX_BATCH, prefill_chunk: int = PREFILL_CHUNK
    ) -> None:
        self.engine = engine
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk
        self.sessions = SessionPool(engine, idle_sessions)

    def start(self, requests: Sequence[Request], *, cancel: threading.Event | None = None) -> Batch:
        """Returns the events of several prompts decoded together. `cancel` ends all rows, options.cancel its own.

        Raises ValueError for an empty prompt, an id outside the vocabulary, a prompt that leaves no room in the context
        or under max_length; nothing is truncated.
        """
        return Batch(self, [_Row(i, request, self.engine) for i, request in enumerate(requests)], cancel)

    def forward(self, rows: list[_Row]) -> list[tuple[_Row, np.ndarray]]:
        """Runs one pass over what the rows have pending; returns the rows whose prompt is complete, with their logits.

        Rows that step take one token each; the prompts still to prefill share the rest of the chunk, first come first.
        """
        room = self.prefill_chunk - sum(row.pending.size == 1 for row in rows)
        parts: list[tuple[Any, np.ndarray, bool]] = []
        taking: list[_Row] = []
        for row in rows:
            pending = row.pending
            if pending.size > 1:
                pending = pending[: max(room, 0)]
                room -= pending.size
            if pending.size:
                assert row.session is not None
                parts.append((row.session.cache, pending, False))
                taking.append(row)
        if not parts:
            return []
        try:
            logits = self.engine.forward(parts)
        except BaseException:
            for row in taking:  # a pass that broke off may have left half a token in these
                assert row.session is not None
                row.session.usable = False
            raise
        return [(row, logits[i]) for i, row in enumerate(taking) if not row.pending.size]


def _mask_without(vocab_size: int, ids: tuple[int, ...]) -> np.ndarray | None:
    """Returns bit words that allow every token but `ids`, or None where that is every token."""
    inside = [i for i in ids if i < vocab_size]
    if not inside:
        return None
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    for i in inside:
        mask[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
    return mask

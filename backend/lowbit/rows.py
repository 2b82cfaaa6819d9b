"""A row: the state of one request while it runs, and the mailbox through which its caller hears of it."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.requests import Engine, Event, Request
from lowbit.sampling import new_seed
from lowbit.sessions import Held, Session
from lowbit.speculation import Drafter, DraftModel, drafters

# Events on their way from whoever makes the steps to the caller who asked for them; an exception ends the caller's
# rows; None calls the reader to make steps itself. SimpleQueue, because its put() may be interrupted by another put(),
# as the garbage collector does when it finds an abandoned stream.
Mailbox = SimpleQueue["Event | BaseException | None"]
Sampled = tuple[int, float, list[tuple[int, float]]]  # token, its log-probability, alternatives


class Row:
    """One request while it runs. Raises what `Generator.start` says about bad prompts.

    `delivered` is written by the scheduler alone and `taken` by the reader alone, so neither needs a lock.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        engine: Engine,
        mailbox: Mailbox,
        cancel: threading.Event | None,
        draft_model: DraftModel | None = None,
    ) -> None:
        prompt = _checked(request.prompt, engine)
        self.index = index
        self.mailbox = mailbox
        self._cancels = [event for event in (cancel, request.options.cancel) if event is not None]
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
        self.held: Held | None = None  # the session's cache and the ids it holds, for others to begin from
        self.waits_for: tuple[Row, int] | None = None  # a row that is prefilling what this one begins with, how far
        self._drafters = drafters(self.options, engine.exact_tokens - 1, draft_model, self._guess, self.ids.size)
        self._drafter: Drafter | None = None  # whose draft is being checked
        self.reused = 0  # prompt tokens that a kept session already held
        self.delivered = 0  # events put into the mailbox
        self.taken = 0  # events the caller has read
        self.finished = False  # no further pass
        self.closed = False  # the caller wants no further event
        self._sampler = self.options.sampler_arguments()
        self._guesser = {**self._sampler, "top_logprobs": 0}  # of a guess only its own log-probability is asked for
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

    def draft(self) -> np.ndarray:
        """Guessed ids after the known ones, at most as many as there is room for before the last one."""
        for drafter in self._drafters:
            draft = drafter.draft(self.ids[: self.count], self.ids.size - self.count - 1)
            if draft.size:
                self._drafter = drafter
                return draft
        return self.ids[:0]

    def settle(self) -> None:
        """Cuts the cache back to ids that are chosen and not to be computed again: what follows was a draft, or its
        logits were lost with an interrupted step."""
        assert self.session is not None
        if self.session.cache.length >= self.count:
            self.session.cache.truncate(self.count - 1)

    def choose_all(self, logits: np.ndarray, draft: np.ndarray) -> None:
        """Chooses the next token from the first row of logits, and on from the others as long as the draft is right."""
        for accepted in range(draft.size + 1):
            self.choose(logits[accepted])
            if self.finished or accepted == draft.size or self.ids[self.count - 1] != draft[accepted]:
                break
        if draft.size:
            assert self._drafter is not None
            self._drafter.learn(draft.size, accepted)

    @property
    def cancelled(self) -> bool:
        """True once somebody asked for an end."""
        return any(event.is_set() for event in self._cancels)

    @property
    def unread(self) -> int:
        return self.delivered - self.taken

    def choose(self, logits: np.ndarray) -> None:
        """Appends the next token, chosen from a row of logits (scratch afterwards), and delivers it."""
        allowed = None if self.allowed is None else self.allowed(self.output)
        token, logprob, alternatives = self._sample(logits, self.ids[: self.count], allowed, **self._sampler)
        self.ids[self.count] = token
        self.count += 1
        reason = "stop" if token in self.eos else "length" if self.count == self.ids.size else None
        if self.options.logprobs is None:
            self.deliver(Event(self.index, token, reason))
        else:
            self.deliver(Event(self.index, token, reason, logprob, tuple(alternatives)))

    def _guess(self, logits: np.ndarray, ids: np.ndarray) -> tuple[int, float]:
        """A draft model's choice of what follows `ids`, and how sure it is. Constraints are not asked: they are told of
        chosen tokens only."""
        token, logprob, _ = self._sample(logits, ids, None, **self._guesser)
        return token, logprob

    def _sample(self, logits: np.ndarray, ids: np.ndarray, allowed: np.ndarray | None, **sampler: Any) -> Sampled:
        """Chooses what follows `ids` from a row of logits."""
        output = ids[self.prompt_tokens :]
        mask = self._early_mask if output.size < self.options.min_new_tokens else self._mask
        if allowed is not None:
            mask = allowed if mask is None else allowed & mask
        return ops.sample(
            logits, prompt=ids[: self.prompt_tokens], output=output, mask=mask, seed=self.seed, position=output.size,
            **sampler,
        )  # fmt: skip

    def leave(self) -> None:
        """Gives back what drafts were made with."""
        for drafter in self._drafters:
            drafter.close()

    def deliver(self, event: Event) -> None:
        """Puts an event into the mailbox; one with a finish reason ends the row."""
        self.finished = event.finish_reason is not None
        self.delivered += 1
        self.mailbox.put(event)

    def fail(self, error: BaseException) -> None:
        """Ends the row with an error, which the caller's next read raises."""
        self.finished = True
        self.mailbox.put(error)


def _checked(ids: object, engine: Engine) -> np.ndarray:
    prompt = np.asarray(ids)
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
    return prompt


def _mask_without(vocab_size: int, ids: tuple[int, ...]) -> np.ndarray | None:
    """Returns bit words that allow every token but `ids`, or None where that is every token."""
    inside = [i for i in ids if i < vocab_size]
    if not inside:
        return None
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    for i in inside:
        mask[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
    return mask

"""TextModel: text in, text out, over the generator. A stream of `Delta` is the primitive, a completion a fold over it.

Owns the meeting of ids and text: encoding, streaming decoding, stop strings, counts. Safe to call from any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lowbit.asynchronous import iterate_in_thread
from lowbit.generate import Batch, Engine, Event, Generator, Request
from lowbit.grammar import Guide, constraint_of
from lowbit.sampling import GenerationOptions, from_generation_config
from lowbit.speculation import DraftModel
from lowbit.stop import StopMatcher
from lowbit.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray
T = TypeVar("T")
Running = PyGenerator[T, None, None]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a chosen token under the model's unmodified distribution, with the most likely alternatives.

    text is the token alone, decoded. alternatives: (token id, text, logprob), most likely first.
    """

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streamed text and the tokens behind it.

    The texts of a stream join to the completion's text, the token ids to its ids. finish_reason is None except on the
    last delta: "stop" (eos or a stop string), "length" or "cancelled". completion_tokens counts this delta's, too.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text. token_ids are all generated ids, an eos and the tokens of a stop string included.

    prompt_tokens, completion_tokens: counts; cached_tokens: how many of the prompt's were reused from a kept session.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int = 0


class TextModel:
    """A loaded model that continues text.

    model_id, spec, config, generation_config, tokenizer, runtime, device and context say what it is. draft_model: a
    smaller model of the same vocabulary that guesses tokens, which this one then checks several at a time; no text
    changes. `engine` and `tokenizer` replace what is made from `loaded` and `runtime` (tests do).

    Raises ValueError for a draft model of another vocabulary.
    """

    def __init__(
        self,
        loaded: Any,
        runtime: Any,
        *,
        draft_model: TextModel | None = None,
        engine: Engine | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if engine is None:
            from lowbit.engine import NativeEngine

            engine = NativeEngine(loaded, runtime)
        self._loaded = loaded
        self.runtime = runtime
        self.spec = loaded.spec
        self.config: dict[str, Any] = loaded.config
        self.generation_config: dict[str, Any] = loaded.generation_config
        self.model_id = str(loaded.provenance.get("source", ""))
        self.tokenizer = tokenizer if tokenizer is not None else Tokenizer.from_files(loaded.tokenizer_files)
        self.draft_model = draft_model
        self.generator = Generator(engine, draft_model=None if draft_model is None else self._drafting(draft_model))
        self._defaults = from_generation_config(self.generation_config)
        self._eos = _first_given(
            self._defaults.get("eos_token_id"), self.config.get("eos_token_id"), self.tokenizer.eos_id
        )

    def __repr__(self) -> str:
        return (
            f"TextModel({self.model_id!r}, family={self.spec.family!r}, device={self.device!r}, context={self.context})"
        )

    @property
    def device(self) -> str:
        """Where the model runs, for example "cpu"."""
        return str(self.runtime.device)

    @property
    def quantization(self) -> dict[str, Any]:
        """How the weights are stored: format, group_size, head_format, ... as a low-bit folder records it."""
        return dict(self._loaded.quantization)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where weights and tokenizer came from: source, revision, and tokenizer where it is another model's."""
        return dict(self._loaded.provenance)

    @property
    def context(self) -> int:
        """Longest sequence in tokens, prompt and answer together."""
        return self.generator.engine.context

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text where the call names none."""
        return self._eos

    # ---- text and ids ------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, by default with the tokens the model expects around a prompt."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def count_tokens(self, text: str) -> int:
        """Returns how many tokens a text is as a prompt."""
        return len(self.encode(text))

    # ---- generation --------------------------------------------------------------------------------------------

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Delta]:
        """Returns the deltas of one continuation; the last one has a finish reason. Closing the iterator ends the work.

        prompt is text or token ids. Options are the fields of `lowbit.sampling.GenerationOptions`; what is not given
        comes from the model's generation_config. Raises TypeError for unknown options and ValueError for bad values, an
        empty prompt and one that is longer than the context, at the call.
        """
        return _deltas(self._start([prompt], options))

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Completion | list[Completion]:
        """Returns the completion of one prompt, or of a list of prompts decoded together, in their order.

        Takes what `stream` takes; the options hold for every prompt.
        """
        return self._generate(prompts, options, None)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Delta]:
        """Yields what `stream` does without blocking the loop; cancelling the task ends the work within one step."""
        deltas = iterate_in_thread(lambda cancel: _deltas(self._start([prompt], options, cancel)))
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def agenerate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Completion | list[Completion]:
        """Returns what `generate` returns without blocking the event loop; cancelling the task ends the work."""
        results = iterate_in_thread(lambda cancel: (self._generate(p, options, cancel) for p in [prompts]))
        try:
            return await anext(results)
        finally:
            await results.aclose()

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the logits after each of `ids`, float32 [len(ids), vocab_size], without using or keeping a session.

        Raises ValueError for ids outside the vocabulary or more of them than the context holds.
        """
        engine = self.generator.engine
        cache = engine.new_cache(engine.capacity(min(len(ids), engine.context)))
        return engine.forward([(cache, np.asarray(ids, np.int32), True)])

    @property
    def loaded(self) -> Any:
        """The model's parts as they lie in memory (checkpoint.LoadedModel): spec, tensors, quantisation."""
        return self._loaded

    def memory(self) -> dict[str, int]:
        """Returns bytes and counts: weights_bytes (mapped ones too), and what `Generator.memory` says of sessions."""
        return {"weights_bytes": self._weights_bytes(), **self.generator.memory()}

    def save_low_bit(self, path: str | Path) -> None:
        """Writes the model as a complete low-bit folder that `lowbit.load` opens: weights, tokenizer, settings."""
        from lowbit import checkpoint

        checkpoint.save(self._loaded, Path(path))

    def options(self, **options: Any) -> GenerationOptions:
        """Returns the checked options that a call with these would use, the model's own defaults included."""
        return GenerationOptions.resolve(self._defaults, options)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _drafting(self, small: TextModel) -> DraftModel:
        own, other = (model.tokenizer.backend.get_vocab(with_added_tokens=False) for model in (self, small))
        if own != other:
            raise ValueError(
                f"draft_model {small.model_id!r} has another vocabulary than {self.model_id!r}, so its tokens mean "
                "something else; take the smallest model of the same family"
            )
        cost = small.memory()["weights_bytes"] / max(1, self._weights_bytes())
        return DraftModel(small.generator.engine, small.generator.sessions, self.spec.vocab_size, cost)

    def _weights_bytes(self) -> int:
        return sum(int(getattr(tensor, "data", tensor).nbytes) for tensor in self._loaded.tensors.values())

    def _generate(
        self, prompts: Prompt | Sequence[Prompt], options: Mapping[str, Any], cancel: threading.Event | None
    ) -> Completion | list[Completion]:
        single = _is_prompt(prompts)
        batch = [prompts] if single else list(prompts)  # type: ignore[list-item]
        parts: list[list[Delta]] = [[] for _ in batch]
        for row, delta in self._start(batch, options, cancel):  # type: ignore[arg-type]
            parts[row].append(delta)
        completions = [_join(deltas) for deltas in parts]
        return completions[0] if single else completions

    def _start(
        self, prompts: Sequence[Prompt], options: Mapping[str, Any], cancel: threading.Event | None = None
    ) -> Running[tuple[int, Delta]]:
        """Checks and encodes, then returns the running (row, delta) pairs of several prompts."""
        resolved = self.options(**options)
        eos = resolved.eos_token_id if resolved.eos_token_id is not None else self._eos
        constraint = constraint_of(resolved, self.tokenizer, self.generator.engine.vocab_size)
        guides = [None if constraint is None else constraint.guide(eos) for _ in prompts]
        requests = [Request(self._ids(p), resolved, eos, guide) for p, guide in zip(prompts, guides, strict=True)]
        return self._run(self.generator.start(requests, cancel=cancel), resolved, guides)

    def _ids(self, prompt: Prompt) -> Sequence[int] | np.ndarray:
        if not isinstance(prompt, str):
            return prompt
        ids = self.encode(prompt)
        if not ids:
            raise ValueError(
                "the prompt is empty, and this model's tokenizer adds no beginning-of-text token: give some text"
            )
        return ids

    def _run(self, batch: Batch, options: GenerationOptions, guides: list[Guide | None]) -> Running[tuple[int, Delta]]:
        texts = [_RowText(self.tokenizer, options, guide) for guide in guides]
        with batch:
            for event in batch:
                text = texts[event.row]
                piece = text.push(event)
                if text.finish_reason is not None:
                    batch.finish(event.row)
                if piece or text.finish_reason is not None:
                    yield event.row, text.delta(piece, batch.prompt_tokens(event.row), batch.cached_tokens(event.row))


@dataclass(slots=True)
class _RowText:
    """Turns the events of one row into text."""

    tokenizer: Tokenizer
    options: GenerationOptions
    guide: Guide | None = None  # what keeps the row to a grammar
    finish_reason: str | None = None
    count: int = 0
    ids: list[int] = field(default_factory=list)  # since the last delta
    logprobs: list[TokenLogprob] = field(default_factory=list)
    decoder: Any = None
    stops: Any = None

    def __post_init__(self) -> None:
        self.decoder = self.tokenizer.stream(keep=self.options.keep_tokens)
        self.stops = StopMatcher(self.options.stop, None if self.guide is None else self.guide.constraint.matches)

    def push(self, event: Event) -> str:
        """Returns the text that is certain after an event; sets finish_reason when the row is done."""
        piece = ""
        if event.token is not None:
            self.count += 1
            self.ids.append(event.token)
            if event.logprob is not None:
                self.logprobs.append(self._logprob(event))
            if event.finish_reason != "stop":  # an eos token is no text, whatever its string
                piece = self.stops.push(self.decoder.push(event.token))
        self.finish_reason = event.finish_reason
        if event.finish_reason is not None:
            piece += self.stops.push(self.decoder.flush())
        if self.stops.stopped:
            self.finish_reason = "stop"
        elif self.finish_reason is not None:
            piece += self.stops.flush()
            # The last token allowed may be the one that completes what the grammar asks for.
            if event.finish_reason == "length" and self.guide is not None and event.token is not None:
                self.finish_reason = "stop" if self.guide.completed_by(event.token) else "length"
        return piece

    def delta(self, text: str, prompt_tokens: int, cached_tokens: int) -> Delta:
        logprobs = tuple(self.logprobs) if self.options.logprobs is not None else None
        delta = Delta(text, tuple(self.ids), self.finish_reason, logprobs, prompt_tokens, self.count, cached_tokens)
        self.ids.clear()
        self.logprobs.clear()
        return delta

    def _logprob(self, event: Event) -> TokenLogprob:
        text = self.tokenizer.token_text
        alternatives = tuple((i, text(i), p) for i, p in event.alternatives)
        assert event.token is not None
        assert event.logprob is not None
        return TokenLogprob(event.token, text(event.token), event.logprob, alternatives)


def _deltas(run: Running[tuple[int, Delta]]) -> Running[Delta]:
    """The deltas of a run of one row; closing this closes the run."""
    with contextlib.closing(run):
        for _, delta in run:
            yield delta


def _join(deltas: Sequence[Delta]) -> Completion:
    last = deltas[-1]
    assert last.finish_reason is not None
    return Completion(
        text="".join(d.text for d in deltas),
        token_ids=tuple(i for d in deltas for i in d.token_ids),
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        finish_reason=last.finish_reason,
        logprobs=None if last.logprobs is None else tuple(p for d in deltas for p in d.logprobs or ()),
        cached_tokens=last.cached_tokens,
    )


def _is_prompt(value: Any) -> bool:
    """True for one prompt (text or a flat sequence of ids), False for a list of prompts."""
    if isinstance(value, str):
        return True
    if hasattr(value, "ndim"):  # numpy's and torch's arrays
        return bool(value.ndim == 1)
    return len(value) > 0 and isinstance(value[0], (int, np.integer))


def _first_given(*values: int | Sequence[int] | None) -> tuple[int, ...]:
    """The first value that is not None, as a tuple of ids."""
    for value in values:
        if value is not None:
            return (value,) if isinstance(value, int) else tuple(value)
    return ()

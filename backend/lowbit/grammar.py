"""Answers that keep to a grammar: JSON schema, regular expression, list of choices, or a grammar in Lark or GBNF.

The grammar engine is llguidance (extra `grammar`; docs/structured_output.md says why). Here: the four kinds, compiled
grammars kept per tokenizer, and `Guide`, which tells before every step which tokens may come. An eos token may come
exactly where the grammar accepts the text so far.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.grammar_vocabulary import Vocabulary
from lowbit.json_schemas import read_schema
from lowbit.sampling import CONSTRAINTS, GenerationOptions
from lowbit.tokenizer import Tokenizer

KEPT_GRAMMARS = 64  # compiled ones per tokenizer; the least recently used goes first
# Between the parts of a JSON text: nothing, one space, or a new line with its indentation. Without a bound a model that
# has lost its way writes spaces until the token limit.
JSON_WHITESPACE = r"( |\n {0,32})?"
_JSON_OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": JSON_WHITESPACE,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,  # an unknown keyword is an error
}


class UnfinishedError(ValueError):
    """An answer ended before it was what its constraint asks for."""


class Guide:
    """One answer's way through a grammar: the `allowed` of a `lowbit.generate.Request`. For one thread at a time."""

    def __init__(self, constraint: Constraint, eos: Sequence[int]) -> None:
        self.constraint = constraint
        vocabulary = constraint.vocabulary
        self._matcher = constraint.new_matcher()
        self._count = 0  # tokens consumed
        self._length = (vocabulary.size + 31) // 32
        self._words = np.zeros((1, vocabulary.size // 32 + 1), np.int32)  # the engine's own end token included
        self._eos = [i for i in eos if 0 <= i < vocabulary.size]
        if not self._eos:
            raise ValueError(
                "a constrained answer ends with an end-of-text token, and none is known for this model: "
                "give eos_token_id"
            )

    def __call__(self, output: np.ndarray) -> np.ndarray:
        """Returns the tokens that may follow `output` (int32 ids so far), as uint32 bit words [ceil(vocab / 32)]; valid
        until the next call. Raises ValueError when the vocabulary cannot spell what the grammar asks for."""
        self._advance(output)
        words = self._words.view(np.uint32)[0]
        if self._count == 0 and self.constraint.first is not None:
            _fill(self.constraint.new_matcher(first=True), self._words)
        elif self._matcher.is_stopped():
            words[:] = 0
        else:
            _fill(self._matcher, self._words)
        accepting = self._matcher.is_accepting()
        for token in (*self._eos, self.constraint.vocabulary.end):
            _set(words, token, False)
        words = words[: self._length]
        for token in self._eos:
            _set(words, token, accepting)
        for token in self.constraint.vocabulary.silent if self._count == 0 else ():
            _set(words, token, True)
        if not words.any():
            raise ValueError(
                "nothing can continue the answer as the grammar asks: it accepts no text from here, or only text with "
                "characters that the vocabulary of this model does not have"
            )
        return words

    def completed_by(self, token: int) -> bool:
        """Returns whether the answer with one more token, its last, is whole and nothing could be added to it."""
        self._consume(token)
        return bool(self._matcher.is_accepting() and self._matcher.is_stopped())

    def _advance(self, output: np.ndarray) -> None:
        if output.size < self._count:  # begun anew
            self._matcher, self._count = self.constraint.new_matcher(), 0
        for token in output[self._count :].tolist():
            self._consume(token)

    def _consume(self, token: int) -> None:
        vocabulary = self.constraint.vocabulary
        tokens = vocabulary.first_as_inner(token) if self._count == 0 else [token]
        self._count += 1
        if tokens and not self._matcher.consume_tokens(tokens):
            raise RuntimeError(f"the grammar refuses token {token}: {_first_line(self._matcher.get_error())}")


class Constraint:
    """A compiled grammar over a vocabulary. Immutable; `guide` begins an answer."""

    def __init__(self, vocabulary: Vocabulary, source: str) -> None:
        engine = vocabulary.engine
        self.vocabulary = vocabulary
        self._lock = threading.Lock()  # matchers are copied from these
        self._inner = engine.LLMatcher(vocabulary.inner, source, log_level=0)
        self.first = None if vocabulary.first is None else engine.LLMatcher(vocabulary.first, source, log_level=0)
        if self._inner.is_error():
            raise ValueError(self._inner.get_error())

    def guide(self, eos: Sequence[int]) -> Guide:
        """Returns what masks one answer's tokens; `eos`: the ids that may end it. Raises ValueError without any."""
        return Guide(self, eos)

    def matches(self, text: str) -> bool:
        """Returns whether a whole text is one that the grammar accepts."""
        tokens = self.vocabulary.spell(text.encode())
        if tokens is None:
            return False
        matcher = self.new_matcher()
        return bool((not tokens or matcher.consume_tokens(tokens)) and matcher.is_accepting())

    def new_matcher(self, first: bool = False) -> Any:
        """Returns the engine's matcher at the beginning; `first`: over the bytes that first tokens write."""
        with self._lock:
            matcher = self.first if first else self._inner
            assert matcher is not None
            return matcher.deep_copy()


_vocabularies: weakref.WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]] = weakref.WeakKeyDictionary()
_vocabularies_lock = threading.Lock()


def compile_constraint(kind: str, value: Any, tokenizer: Tokenizer, vocab_size: int) -> Constraint:
    """Returns the constraint of a kind ("json_schema", "regex", "choice" or "grammar") for a model's vocabulary.

    json_schema: dictionary, JSON text or pydantic class. regex: the whole text matches it (Rust's syntax: no
    look-around, no back-references). choice: list of strings, one of which is the text. grammar: Lark as llguidance
    reads it, or GBNF. The first call for a tokenizer reads its vocabulary (half a second for 100 000 tokens); this and
    compiled grammars are kept.

    Raises ImportError naming the extra when the engine is missing, TypeError for a value of another type, ValueError
    that names what cannot be enforced, or the tokenizer's kind where it cannot be constrained.
    """
    with _vocabularies_lock:
        sizes = _vocabularies.setdefault(tokenizer, {})
        if vocab_size not in sizes:
            sizes[vocab_size] = Vocabulary(tokenizer, vocab_size)
    return compile_over(sizes[vocab_size], kind, value)


def compile_over(vocabulary: Vocabulary, kind: str, value: Any) -> Constraint:
    """Returns a constraint over a vocabulary, compiled once; the rest is as in `compile_constraint`."""
    text = _TEXTS[kind](value)
    compiled = vocabulary.compiled
    with vocabulary.lock:
        if (kind, text) in compiled:
            compiled.move_to_end((kind, text))
            kept: Constraint = compiled[kind, text]
            return kept
    source = _grammar_source(vocabulary.engine, kind, text)
    problem = vocabulary.engine.LLMatcher.validate_grammar(source)
    if problem and not problem.startswith("WARNING"):
        raise ValueError(f"{kind} cannot be enforced: {problem.strip()}")
    constraint = Constraint(vocabulary, source)
    with vocabulary.lock:
        compiled[kind, text] = constraint
        while len(compiled) > KEPT_GRAMMARS:
            compiled.popitem(last=False)
    return constraint


def constraint_of(options: GenerationOptions, tokenizer: Tokenizer, vocab_size: int) -> Constraint | None:
    """Returns the constraint that options ask for, or None. Raises what `compile_constraint` does."""
    for kind in CONSTRAINTS:
        value = getattr(options, kind)
        if value is not None:
            return compile_constraint(kind, value, tokenizer, vocab_size)
    return None


def check_finished(finish_reason: str, constrained: bool) -> None:
    """Raises UnfinishedError for a constrained answer that did not end by itself: half an answer is none."""
    if constrained and finish_reason != "stop":
        fix = "raise max_new_tokens or bound the constraint" if finish_reason == "length" else "ask again"
        raise UnfinishedError(
            f"the answer ended ({finish_reason}) before it was whole by its json_schema, regex, choice or grammar; "
            f"{fix}"
        )


def embedded_schema(schema: Mapping[str, Any]) -> str:
    """Returns a checked schema (`json_schemas.read_schema`) as it stands behind `%json` in a Lark grammar."""
    return json.dumps({**schema, "x-guidance": _JSON_OPTIONS})


def _set(words: np.ndarray, token: int, allowed: bool) -> None:
    bit = np.uint32(1 << (token % 32))
    words[token // 32] = words[token // 32] | bit if allowed else words[token // 32] & ~bit


def _fill(matcher: Any, words: np.ndarray) -> None:
    """Writes what may come next into int32 bit words [1, n]."""
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error():
        error = _first_line(matcher.get_error())
        if not error.startswith("NoExtension"):
            raise RuntimeError(f"the grammar engine gave up: {error}")
        words[:] = 0


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


# ---- the four kinds, as canonical text and as the engine's grammar ----


def _schema_text(value: Any) -> str:
    return json.dumps(read_schema(value))  # in the schema's own order: properties come in it


def _string(kind: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{kind} must be a string, got {type(value).__name__}")
        return value

    return check


def _choice_text(value: Any) -> str:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise TypeError(f"choice must be a list of strings, got {type(value).__name__}")
    for each in value:
        if not isinstance(each, str):
            raise TypeError(f"choice must be a list of strings, it holds {each!r}")
    if not value or "" in value:
        raise ValueError("choice must be a list of at least one string, none of them empty")
    return json.dumps(list(dict.fromkeys(value)))


_TEXTS: dict[str, Callable[[Any], str]] = {
    "json_schema": _schema_text,
    "regex": _string("regex"),
    "choice": _choice_text,
    "grammar": _string("grammar"),
}


def _literal(text: str) -> str:
    """A text as a regular expression that only matches it."""
    return re.sub(r"[^\w\s]|_", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _grammar_source(engine: Any, kind: str, text: str) -> str:
    matcher = engine.LLMatcher
    if kind == "json_schema":
        source = matcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    elif kind == "grammar":
        source = engine.grammar_from("grammar", text)
    else:
        expression = text if kind == "regex" else "|".join(_literal(each) for each in json.loads(text))
        source = matcher.grammar_from_regex(expression)
    return str(source)

"""GenerationOptions: what a caller may ask of one generation, checked, with the meanings transformers gives the names.

Owns the names, their merging (model -> model_kwargs -> call) and their validation. Knows no model, token or text.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 256  # when nobody names a limit; transformers' 20 cuts nearly every answer
DEFAULT_TOP_K = 50  # of transformers, when sampling

# Options that constrain the text; an answer has one of them at most.
CONSTRAINTS = ("json_schema", "regex", "choice", "grammar")

ALIASES = {"stop_strings": "stop", "max_tokens": "max_new_tokens"}

# Names of transformers that change nothing here as long as they have one of these values (None: any value).
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "use_cache": None,
    "prompt_lookup_num_tokens": None,  # `speculate` is on anyway, and changes no answer
    "pad_token_id": None,
    "bos_token_id": None,
    "attention_mask": None,
    "return_dict_in_generate": (False, None),
    "num_beams": (1, None),
    "num_beam_groups": (1, None),
    "num_return_sequences": (1, None),
    "min_length": (0, None),
    "early_stopping": None,
    "length_penalty": None,
    "no_repeat_ngram_size": (0, None),
    "typical_p": (1, 1.0, None),
    "epsilon_cutoff": (0, 0.0, None),
    "eta_cutoff": (0, 0.0, None),
    "diversity_penalty": (0, 0.0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "encoder_repetition_penalty": (1, 1.0, None),
    "bad_words_ids": (None,),
    "force_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (1, 1.0, None),
    "penalty_alpha": (None,),
}


@dataclass(frozen=True)
class GenerationOptions:
    """The options of one generation. Construct with `resolve` to merge and check several sources.

    max_new_tokens: generated tokens at most. max_length: prompt and generated tokens together; where both are given
    max_new_tokens wins. Neither: 256 new tokens. min_new_tokens: no eos token before that many.
    do_sample: None = sample if temperature > 0, top_k, top_p or min_p is given.
    temperature: 0 = greedy. top_k: 0 = off. top_p in (0, 1]. min_p in [0, 1].
    repetition_penalty: > 0, over prompt and output. presence_penalty, frequency_penalty: in [-2, 2], over the output.
    seed: None = a new one per call; the same seed gives the same tokens, alone or in a batch.
    stop: strings that end the text and are removed from it. eos_token_id: one id or several.
    ignore_eos: go on after them.
    suppress_tokens: ids never generated. keep_tokens: ids of special tokens that, unlike the others, stay in the text.
    logprobs: None, or how many alternatives to report beside the chosen token.
    speculate: guess tokens that stood in prompt or output before and check several in one pass: faster where the answer
    quotes, never another answer. None = when greedy and alone, as long as it pays; True = when sampling, too.
    cancel: an event; when it is set, generation ends within one step with finish reason "cancelled".
    json_schema (dictionary, JSON text or pydantic class), regex, choice (list of strings), grammar (Lark or GBNF): what
    the text keeps to, one of them at most (extra `grammar`). Finish reason "stop" then says that the text is whole; a
    stop string ends it only where it is.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_id: tuple[int, ...] | None = None
    ignore_eos: bool = False
    suppress_tokens: tuple[int, ...] = ()
    keep_tokens: tuple[int, ...] = ()
    logprobs: int | None = None
    speculate: bool | None = None
    cancel: threading.Event | None = None
    json_schema: Any = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "stop", _strings(self.stop))
        set_(self, "eos_token_id", None if self.eos_token_id is None else _ids("eos_token_id", self.eos_token_id))
        set_(self, "suppress_tokens", _ids("suppress_tokens", self.suppress_tokens))
        set_(self, "keep_tokens", _ids("keep_tokens", self.keep_tokens))
        if self.logprobs is True:  # OpenAI's chat spelling: the chosen token alone
            set_(self, "logprobs", 0)
        elif self.logprobs is False:
            set_(self, "logprobs", None)
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                set_(self, name, check(name, value))
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise TypeError(f"cancel must be a threading.Event, got {type(self.cancel).__name__}")
        if kinds := [name for name in CONSTRAINTS if getattr(self, name) is not None]:
            if len(kinds) > 1:
                raise TypeError(f"{' and '.join(kinds)} are given: an answer keeps to one of them at most")
            for name in ("ignore_eos", "min_new_tokens"):
                if getattr(self, name):
                    raise ValueError(f"{name} contradicts {kinds[0]}, which says where the answer ends: leave it out")

    @classmethod
    def resolve(cls, *sources: Mapping[str, Any] | None, **call: Any) -> GenerationOptions:
        """Returns the options that several sources make together, later ones winning; `call` is the last.

        The first source may be a model's generation_config (`from_generation_config` cleans it). None as a value means
        "not given". Raises TypeError for unknown names, with the nearest known one, and ValueError for bad values.
        """
        return cls(**merge(*sources, call))

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken."""
        if self.temperature == 0 or self.do_sample is False:
            return True
        return not self.do_sample and all(v is None for v in (self.temperature, self.top_k, self.top_p, self.min_p))

    def sampler_arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of `ops.sample` that do not change from token to token."""
        top_k = DEFAULT_TOP_K if self.top_k is None else self.top_k
        return {
            "temperature": 0.0 if self.greedy else (1.0 if self.temperature is None else self.temperature),
            "top_k": top_k,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "min_p": 0.0 if self.min_p is None else self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "top_logprobs": -1 if self.logprobs is None else self.logprobs,
        }

    def new_tokens_allowed(self, prompt_tokens: int) -> int:
        """Returns how many tokens may follow a prompt of that length, at least 1.

        Raises ValueError with both numbers when max_length leaves no room for one.
        """
        if self.max_new_tokens is not None:
            if self.max_length is not None:
                logger.warning("max_new_tokens=%d and max_length=%d are both given: max_new_tokens counts",
                               self.max_new_tokens, self.max_length)  # fmt: skip
            return self.max_new_tokens
        if self.max_length is None:
            return DEFAULT_MAX_NEW_TOKENS
        if prompt_tokens >= self.max_length:
            raise ValueError(
                f"the prompt has {prompt_tokens} tokens and max_length={self.max_length} counts prompt and answer "
                "together, so nothing can be generated; raise max_length or give max_new_tokens instead"
            )
        return self.max_length - prompt_tokens


def merge(*sources: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what several sources of options make together, later ones winning, under canonical names.

    Values are not checked. Raises TypeError for unknown names, with the nearest known one.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update(_layer(source or {}, merged))
    return {name: value for name, value in merged.items() if value is not None}


def is_constrained(options: Mapping[str, Any]) -> bool:
    """Returns whether options constrain the text (json_schema, regex, choice or grammar)."""
    return any(options.get(name) is not None for name in CONSTRAINTS)


def new_seed() -> int:
    """Returns a random seed for a generation that names none."""
    return int.from_bytes(os.urandom(8), "little")


OPTION_NAMES = tuple(f.name for f in fields(GenerationOptions))


def from_generation_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the options a generation_config.json sets: a first source for `GenerationOptions.resolve`.

    As in transformers, its temperature, top_k, top_p and min_p count only once something samples, so a missing
    do_sample is False. Names this engine does not know are left out; those that would change the output are logged.
    """
    options: dict[str, Any] = {}
    for name, value in (config or {}).items():
        name = ALIASES.get(name, name)
        if name in OPTION_NAMES and name not in ("seed", "cancel", "logprobs", *CONSTRAINTS):
            options[name] = value
        elif name in NEUTRAL and not _is_neutral(name, value):
            logger.warning("generation_config sets %s=%r, which is not supported and has no effect", name, value)
    if options.get("temperature") == 0:  # transformers refuses to sample at 0; files that say so mean greedy
        options["do_sample"] = False
    options["do_sample"] = bool(options.get("do_sample"))
    return options


def check_names(names: Iterable[str]) -> None:
    """Raises TypeError for a name that is no generation option, with the nearest one."""
    known = {*OPTION_NAMES, *ALIASES}
    for name in names:
        if name not in known and name not in NEUTRAL:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OPTION_NAMES)}"
            raise TypeError(f"unknown generation option {name!r}; {hint}")


def _layer(source: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """One source's options under their canonical names, with what they imply for do_sample made explicit."""
    check_names(source)
    layer: dict[str, Any] = {}
    for name, value in source.items():
        if name in NEUTRAL:
            if not _is_neutral(name, value):
                raise ValueError(f"{name}={value!r} is not supported; leave it out (greedy and sampled decoding only)")
        elif value is not None:
            canonical = ALIASES.get(name, name)
            if canonical in layer:
                raise TypeError(f"{name!r} and {canonical!r} are the same option: give one of them")
            layer[canonical] = value
    if layer.get("temperature") == 0:
        layer["do_sample"] = False
    elif "do_sample" not in layer and any(name in layer for name in ("temperature", "top_k", "top_p", "min_p")):
        # A caller who sets one of these wants it to have an effect (transformers only warns), except over an explicit
        # temperature of 0 from an earlier source: top_p alone does not undo that.
        layer["do_sample"] = "temperature" in layer or before.get("temperature") != 0
    elif layer.get("do_sample") and before.get("temperature") == 0:
        layer.setdefault("temperature", 1.0)
    if any(name in layer for name in CONSTRAINTS):  # a constraint named later replaces one of another kind
        layer |= {name: None for name in CONSTRAINTS if name not in layer}
    # A limit named later replaces an earlier one of the other kind: bind(max_length=64) over a model's max_new_tokens.
    if "max_length" in layer and "max_new_tokens" not in layer and "max_new_tokens" in before:
        layer["max_new_tokens"] = None
    elif "max_new_tokens" in layer and "max_length" not in layer and "max_length" in before:
        layer["max_length"] = None
    return layer


def _is_neutral(name: str, value: Any) -> bool:
    allowed = NEUTRAL[name]
    return allowed is None or any(value is a or (a is not None and value == a) for a in allowed)


def _strings(stop: Any) -> tuple[str, ...]:
    values = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"stop must be a string or a list of strings, got {type(value).__name__}")
        if not value:
            raise ValueError("a stop string is empty: it would end every text before its first character")
    return tuple(dict.fromkeys(values))


def _ids(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, Iterable) else (value,)
    return tuple(int(_whole(0)(name, v)) for v in values if v is not None)


def _whole(low: int, high: int | None = None) -> Any:
    def check(name: str, value: Any) -> int:
        whole = hasattr(value, "__index__") or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        number = int(value)
        if number < low or (high is not None and number > high):
            upper = f" and at most {high}" if high is not None else ""
            raise ValueError(f"{name} must be at least {low}{upper}, got {number}")
        return number

    return check


def _real(low: float, high: float | None, low_allowed: bool = True) -> Any:
    def check(name: str, value: Any) -> float:
        if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be a number, got {value!r}")
        number = float(value)
        inside = (number >= low if low_allowed else number > low) and number < float("inf")
        if not inside or (high is not None and number > high):
            lower = f"{'at least' if low_allowed else 'above'} {low:g}"
            upper = f" and at most {high:g}" if high is not None else ""
            raise ValueError(f"{name} must be {lower}{upper}, got {value!r}")
        return number

    return check


def _flag(name: str, value: Any) -> bool:
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


_CHECKS = {
    "max_new_tokens": _whole(1),
    "max_length": _whole(1),
    "min_new_tokens": _whole(0),
    "do_sample": _flag,
    "temperature": _real(0, None),
    "top_k": _whole(0, 2**31 - 1),
    "top_p": _real(0, 1, low_allowed=False),
    "min_p": _real(0, 1),
    "repetition_penalty": _real(0, None, low_allowed=False),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "seed": _whole(0, 2**64 - 1),
    "ignore_eos": _flag,
    "logprobs": _whole(0),
    "speculate": _flag,
}

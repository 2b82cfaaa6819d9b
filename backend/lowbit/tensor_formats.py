"""Which format each tensor of a model gets: the layers', the head's, the embedding's, and what stays float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.formats import FLOAT, Choice, resolve
from lowbit.ops import BF16
from lowbit.sources.gather import Gathered

# Embedding and head where the rest is quantised: few of the bytes that a token reads, and the first and last place
# where rounding shows.
OUTER_FORMAT = "sym_int8"
FLOAT_FORMATS = {BF16: "bf16", np.dtype("<f2"): "fp16", np.dtype("<f4"): "fp32"}
# Embedders and rerankers have smaller groups in formats of few bits where the caller names no size: all-MiniLM-L6-v2 in
# sym_int4 loses 2.7 % of its nDCG@10 on Cranfield in groups of 64, 1.3 % in groups of 32.
FINE_BITS, FINE_GROUP_SIZE = 4, 32
HEAD_MODULE = "lm_head"  # what users call the head, also where it has no tensor of its own because it is tied


@dataclass(frozen=True)
class TensorFormats:
    """Which format each tensor gets. None stands for the float type the checkpoint has."""

    body: Choice | None
    head: Choice | None
    embedding: Choice | None
    group_size: int | None
    kept: tuple[str, ...]
    asked_outer: tuple[str | None, str | None]
    modules: tuple[tuple[str, Choice], ...] = ()  # of the layers: part of a module's name -> its own format

    @classmethod
    def choose(
        cls,
        low_bit: str | None,
        group_size: int | None,
        kept: Sequence[str] | None,
        head: str | None,
        embedding: str | None,
        modules: Mapping[str, str] | None = None,
        task: str = "text",
    ) -> TensorFormats:
        """Returns the choices. task: "text", or "embed" or "rerank", where up to 4 bits come in groups of 32.

        A group size that is given, or that a format's name implies, holds everywhere. Raises ValueError for an unknown
        name or group size, TypeError for a wrong kind.
        """
        if isinstance(kept, str):
            raise TypeError(f"modules_to_not_convert is a list of strings; use [{kept!r}]")

        def named(name: str) -> Choice:
            choice = resolve(name)
            fine = task != "text" and choice.group_size is None and choice.format.bits <= FINE_BITS
            return replace(choice, group_size=FINE_GROUP_SIZE) if fine else choice

        body = None if low_bit is None else named(low_bit)
        quantised = body is not None and body.format.codes != FLOAT
        default = named(OUTER_FORMAT) if quantised else body
        head_choice = default if head is None else named(head)
        embedding_choice = default if embedding is None else named(embedding)
        if modules is not None and not isinstance(modules, Mapping):
            raise TypeError(f'module_formats is a dictionary such as {{"down_proj": "sym_int8"}}, not {modules!r}')
        own = tuple((keyword, named(name)) for keyword, name in (modules or {}).items())
        for choice in (body, head_choice, embedding_choice, *(choice for _, choice in own)):
            if choice is not None:
                choice.format.group(group_size)
        return cls(body, head_choice, embedding_choice, group_size, tuple(kept or ()), (head, embedding), own)

    def of(self, gathered: Gathered, tied_head: bool) -> Choice:
        """Returns the choice for a tensor."""
        recipe = gathered.recipe
        if recipe.kind == "table":
            return resolve(FLOAT_FORMATS[gathered.dtype])
        choice = {"head": self.head, "embedding": self.embedding}.get(recipe.kind, self.body)
        is_tied = tied_head and recipe.name == "embedding.weight"
        if is_tied and self.asked_outer[0] is not None:
            if self.asked_outer[1] is not None and self.head != self.embedding:
                raise ValueError(
                    f"the head is tied to the embedding, so head_format={self.asked_outer[0]!r} and "
                    f"embedding_format={self.asked_outer[1]!r} cannot both hold; give one of them"
                )
            choice = self.head
        modules = [name.removesuffix(".weight") for name in gathered.names] + [HEAD_MODULE] * is_tied
        if choice is None or any(keyword in module for keyword in self.kept for module in modules):
            return resolve(FLOAT_FORMATS[gathered.dtype])
        if recipe.kind in ("head", "embedding"):
            return choice
        return next((own for word, own in self.modules if any(word in module for module in modules)), choice)

    def group_of(self, choice: Choice) -> int | None:
        return self.group_size if self.group_size is not None else choice.group_size

    def to_dict(self) -> dict[str, Any]:
        """Returns what a low-bit folder records: canonical names, None for the checkpoint's own float type."""
        group = None if self.body is None else self.body.format.group(self.group_of(self.body))
        return {
            "format": None if self.body is None else self.body.format.name,
            "group_size": group,
            "full_range": self.body is None or self.body.full_range,
            "head_format": None if self.head is None else self.head.format.name,
            "embedding_format": None if self.embedding is None else self.embedding.format.name,
            "modules_to_not_convert": list(self.kept),
        } | ({"module_formats": {word: own.format.name for word, own in self.modules}} if self.modules else {})


def refuse_others(formats: TensorFormats, config: dict[str, Any], folder: Path, default: str) -> None:
    """Raises ValueError when arguments ask for other numbers than a low-bit folder has; `default` asks for nothing."""
    saved, asked = config["quantization_config"], formats.to_dict()
    wanted = {
        "low_bit": ("format", asked["format"] != default),
        "group_size": ("group_size", formats.group_size is not None),
        "head_format": ("head_format", formats.asked_outer[0] is not None),
        "embedding_format": ("embedding_format", formats.asked_outer[1] is not None),
        "modules_to_not_convert": ("modules_to_not_convert", bool(formats.kept)),
        "module_formats": ("module_formats", bool(formats.modules)),
    }
    for argument, (key, is_asked) in wanted.items():
        if is_asked and asked[key] != saved.get(key):
            raise ValueError(
                f"{folder} was saved with {argument}={saved.get(key)!r} and cannot be opened with {asked[key]!r}; "
                f"leave {argument} out, or load the original model with it"
            )

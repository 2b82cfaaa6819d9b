"""From a name to a model in memory: find it, read its graph, quantise its weights one by one, or map a low-bit folder.

Owns the order of things and the choice of a format for each tensor. What is in memory at any time is the packed model
so far and the tensor being packed; its pages of the file are given back right after.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit import checkpoint, models, precision
from lowbit.calibration import (
    Importance,
    Quantiser,
    Weights,
    finish,
    importance_of,
    measure_importance,
    quantise_layers,
)
from lowbit.checkpoint import CONFIG, GENERATION_CONFIG, LoadedModel, read_json
from lowbit.formats import FLOAT, Choice
from lowbit.models._spec import AnySpec, EncoderSpec, Family, ModelSpec, ModuleSpec, Recipe
from lowbit.ops import to_fp32
from lowbit.packed import PackedTensor
from lowbit.quantize import CLIP_RATIOS, quantize_rows
from lowbit.runtime import Resolved, Runtime
from lowbit.sources import Source, archive, hub, open_source
from lowbit.sources._foreign import refuse_foreign
from lowbit.sources.gather import Gathered, gather
from lowbit.sources.integers import IntegerSource, settings_of, with_old_config
from lowbit.tensor_formats import HEAD_MODULE, TensorFormats, refuse_others
from lowbit.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "measure"]

logger = logging.getLogger(__name__)

DEFAULT_LOW_BIT = "sym_int4"
# Task -> the format of a caller who asks for none in particular.
TASKS = {"text": DEFAULT_LOW_BIT, "embed": "sym_int8", "rerank": "sym_int8"}


def load_model(
    id_or_path: str | os.PathLike,
    low_bit: str | None = DEFAULT_LOW_BIT,
    *,
    group_size: int | None = None,
    modules_to_not_convert: Sequence[str] | None = None,
    head_format: str | None = None,
    embedding_format: str | None = None,
    module_formats: Mapping[str, str] | None = None,
    runtime: Runtime | Resolved | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    show_progress: bool = False,
    local_files_only: bool = False,
    tokenizer_id: str | os.PathLike | None = None,
    saved_only: bool = False,
    verify: bool | None = None,
    quantiser: Quantiser | str | None = None,
    task: str = "text",
) -> LoadedModel:
    """Returns the model of a hub id, a local Hugging Face folder or a low-bit folder, weights packed and in memory.

    low_bit: a name of formats.py, or None to keep the checkpoint's own float type. group_size: weights per scale (None:
    64; 32 for up to 4 bits of embedders and rerankers; or what the name implies, as Q4_0 does). modules_to_not_convert:
    tensors whose module name contains one of these strings stay float. head_format, embedding_format: formats of the
    head and of embeddings (default sym_int8, or low_bit if that is a float; a tied head is one tensor with one format).
    module_formats: other formats for modules of the layers, by a part of their names, such as {"down_proj":
    "sym_int8"}; q, k and v, and gate and up, are one tensor each and take it together. runtime: whose threads quantise,
    and whether the errors of int8 activations are measured on the way (precision "auto": see precision.measure).
    trust_remote_code: accepted because callers pass it; no code of a checkpoint is ever run. A low-bit folder is opened
    as it was saved; arguments that ask for something else raise. One of ipex-llm keeps its format, GPTQ and AWQ codes
    where 4 bits are asked for are taken over. tokenizer_id: hub id or folder to take the tokenizer from instead.
    saved_only: accept a low-bit folder only, so that nothing is quantised by mistake. verify: whether every byte of a
    low-bit folder is checked (None: up to a size, see checkpoint.load). quantiser: how weights are rounded (None: to
    nearest; see calibration.Quantiser for AWQ, GPTQ, TEQ, clip search and importance matrices). task: what the model is
    for, "text", "embed" or "rerank"; a model that cannot do it is refused before its weights are read.

    Raises FileNotFoundError, PermissionError or ValueError that name the file or tensor, the cause and the fix.
    """
    access = hub.Access(cache_dir, token, local_files_only, show_progress)
    formats = TensorFormats.choose(
        low_bit, group_size, modules_to_not_convert, head_format, embedding_format, module_formats, task
    )
    quantiser = Quantiser(quantiser) if isinstance(quantiser, str) else quantiser or Quantiser()
    tokenizer_files, tokenizer_name = _tokenizer(tokenizer_id, access)
    location = hub.locate(id_or_path, revision, access)
    config = _read_config(location.folder)
    if checkpoint.is_low_bit(config):
        refuse_others(formats, config, location.folder, TASKS[task])
        if quantiser != Quantiser():
            raise ValueError(f"{location.folder} is quantised already; give the original model to use a quantiser on")
        saved = checkpoint.load(hub.fetch_weights(location, access).folder, verify)
        _refuse_other_tasks(saved.spec, task, location.folder, saved.embedding_files)
        if task == "text" and not _has_head(saved):
            raise ValueError(
                f"{location.folder} was saved by lowbit.Embedder, without the head that makes text; open it with that, "
                "or save the original model with lowbit.load"
            )
        if not tokenizer_files:
            return saved
        return replace(saved, tokenizer_files=tokenizer_files, provenance={**saved.provenance, **tokenizer_name})
    config = with_old_config(config, location.folder)
    archived = archive.format_of(config, location.folder)
    if archived is None:
        refuse_foreign(location.folder, config)
    elif formats.body is None or formats.body.format.name in (DEFAULT_LOW_BIT, archived):  # nothing else is asked for
        group = archive.BLOCK if group_size is None else group_size
        head = head_format or archived
        formats = TensorFormats.choose(archived, group, modules_to_not_convert, head, embedding_format, module_formats)
    integers = settings_of(config, location.folder)
    if saved_only and archived is None:
        raise ValueError(
            f"{location.folder} is not a low-bit folder: it holds a float checkpoint. Load it as a model to quantise "
            "(from_model_id, or lowbit.load without saved_only), or give the folder that save_low_bit wrote"
        )
    family = models.family(config)
    embedding_files = _matching(location.folder, hub.EMBEDDING_FILES)
    _refuse_other_tasks(family.spec, task, location.folder, embedding_files)
    if task == "embed" and isinstance(family.spec, ModelSpec):  # vectors need no head, and checkpoints may have none
        family = replace(family, recipes=tuple(r for r in family.recipes if not r.name.startswith("head.")))
    location = hub.fetch_weights(location, access)
    tokenizer_files = tokenizer_files or _matching(location.folder, hub.TOKENIZER_FILES)
    sequences = _calibration(quantiser, family.spec, tokenizer_files)
    source = open_source(location.folder)
    if integers is not None:
        source = IntegerSource(source, integers)
    if archived is not None:
        source = archive.ArchiveSource(source, archived, family)
    try:
        settings = (runtime or Runtime()).resolve()
        tensors = _convert(family, source, location.folder, formats, quantiser, sequences, settings.pool, show_progress)
    finally:
        source.close()
    generation = location.folder / GENERATION_CONFIG
    name = _origin(location)
    loaded = LoadedModel(
        spec=family.spec,
        tensors=tensors,
        config=archive.without_marks(config),
        generation_config=read_json(generation) if generation.exists() else {},
        tokenizer_files=tokenizer_files,
        provenance={"source": name, "revision": location.revision, **tokenizer_name},
        quantization=formats.to_dict()
        | ({} if integers is None else {"checkpoint": dataclasses.asdict(integers)})
        | ({} if quantiser == Quantiser() else {"quantiser": quantiser.to_dict()}),
        embedding_files=embedding_files,
        notices=_matching(location.folder, hub.NOTICES),
    )
    if settings.precision != "auto":
        return loaded
    return replace(loaded, activation_errors=precision.measure(loaded, settings))


def config_of(
    id_or_path: str | os.PathLike,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    *,
    missing_ok: bool = False,
) -> dict[str, Any]:
    """Returns the config.json of a hub id or folder; no weights are downloaded. Raises as `load_model` does.

    missing_ok: {} for a folder that has none.
    """
    folder = hub.locate(id_or_path, revision, hub.Access(cache_dir, token, local_files_only)).folder
    return {} if missing_ok and not (folder / CONFIG).exists() else _read_config(folder)


def task_of(id_or_path: str | os.PathLike, revision: str | None, access: hub.Access) -> str:
    """Returns what a model is for, a key of TASKS, by its configuration; no weights are read or downloaded.

    Raises FileNotFoundError, PermissionError or ValueError as `load_model` does.
    """
    folder = hub.locate(id_or_path, revision, access).folder
    config = _read_config(folder)
    if checkpoint.is_low_bit(config):
        saved = config["quantization_config"]
        is_encoder, labels = saved.get("graph") == "encoder", (saved.get("spec") or {}).get("labels", 0)
    else:
        refuse_foreign(folder, config)
        spec = models.family(config).spec
        is_encoder, labels = isinstance(spec, EncoderSpec), getattr(spec, "labels", 0)
    if is_encoder:
        return "rerank" if labels else "embed"
    return "embed" if (folder / "modules.json").exists() else "text"


def measure(
    id_or_path: str | os.PathLike,
    calibration: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokens: int = 16384,
    length: int = 512,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    show_progress: bool = False,
) -> tuple[Importance, int]:
    """Returns the importance matrix of a float model, the mean square of every input of its linear layers over a text,
    and how many sequences of the text were read.

    calibration: texts or sequences of token ids, of which at most `tokens` in sequences of at most `length` are read.
    The matrix is float32 [inputs] by canonical module name ("layers.0.qkv"); `calibration.write_imatrix` stores both in
    llama.cpp's format, `Quantiser(imatrix=...)` reads that. Raises as `load_model` does.
    """
    access = hub.Access(cache_dir, token, local_files_only, show_progress)
    location = hub.locate(id_or_path, revision, access)
    config = _read_config(location.folder)
    if checkpoint.is_low_bit(config) or settings_of(config, location.folder) is not None:
        raise ValueError(f"{location.folder} is quantised already; importance is measured on the original model")
    refuse_foreign(location.folder, config)
    family = models.family(config)
    location = hub.fetch_weights(location, access)
    quantiser = Quantiser(calibration=calibration, tokens=tokens, length=length)
    sequences = _calibration(quantiser, family.spec, _matching(location.folder, hub.TOKENIZER_FILES))
    if not sequences:
        raise ValueError("an importance matrix needs text: a few dozen paragraphs")
    assert isinstance(family.spec, ModelSpec)  # _calibration has refused others
    source = open_source(location.folder)
    try:
        gathered = [gather(recipe, source) for recipe in _located(family, source, location.folder)]
        for g in gathered:
            _check_shape(g, family.spec)
        return measure_importance(family.spec, _weights(gathered), sequences, show_progress), len(sequences)
    finally:
        source.close()


def _convert(
    family: Family,
    source: Source,
    folder: Path,
    formats: TensorFormats,
    quantiser: Quantiser,
    sequences: list[list[int]],
    pool: Any,
    show_progress: bool,
) -> dict[str, PackedTensor | np.ndarray]:
    """Returns all tensors of a model. All are looked up before one is converted, so that errors come early."""
    gathered = [gather(recipe, source) for recipe in _located(family, source, folder)]
    for g in gathered:
        _check_shape(g, family.spec)
    tied_head = isinstance(family.spec, ModelSpec) and family.spec.tied_head
    choices = {g.recipe.name: formats.of(g, tied_head) for g in gathered if g.recipe.kind != "vector"}
    _warn_of_unused("modules_to_not_convert", formats.kept, gathered, tied_head)
    _warn_of_unused("module_formats", [word for word, _ in formats.modules], gathered, tied_head)
    tensors: dict[str, PackedTensor | np.ndarray] = {}
    if sequences:
        assert isinstance(family.spec, ModelSpec)  # _calibration has refused others
        weights = _weights(gathered)

        def choice_of(name: str) -> tuple[Choice, int | None]:
            return choices[name], formats.group_of(choices[name])

        layers = quantise_layers(family.spec, weights, choice_of, quantiser, sequences, pool, show_progress)
        tensors.update(layers)
        gathered = [g for g in gathered if g.recipe.name not in tensors]
    clips, importance = CLIP_RATIOS if quantiser.clips else None, importance_of(quantiser)
    total = sum(g.nbytes for g in gathered)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading", disable=not show_progress) as bar:
        for g in gathered:
            name = g.recipe.name
            if name not in choices:
                tensors[name] = _vector(g)
            else:
                choice = choices[name]
                if isinstance(source, IntegerSource) and (kept := source.packed(g, choice, pool)) is not None:
                    tensors[name] = kept
                    g.release()
                    bar.update(g.nbytes)
                    continue
                counts = importance(name.removesuffix(".weight")) if choice.format.codes != FLOAT else None
                tensors[name] = packed = quantize_rows(
                    g.read, g.shape, choice, formats.group_of(choice), clip_ratios=clips, importance=counts,
                    name=g.where, pool=pool,
                )  # fmt: skip
                finish(packed, quantiser)
            g.release()
            bar.update(g.nbytes)
    return tensors


def _calibration(
    quantiser: Quantiser, spec: ModelSpec | EncoderSpec, tokenizer_files: dict[str, Path]
) -> list[list[int]]:
    """Returns the calibration text as token ids, none for a quantiser without. ValueError for models it is not for."""
    if not quantiser.needs_layers:
        return []
    if not isinstance(spec, ModelSpec):
        raise ValueError(
            f"calibration is for language models; this is an embedder ({spec.family}), which takes rtn without text"
        )

    tokenizer = functools.cache(lambda: Tokenizer.from_files(tokenizer_files))  # token ids need none
    return quantiser.sequences(lambda text: tokenizer().encode(text), spec.context, spec.vocab_size)


def _weights(gathered: Sequence[Gathered]) -> Weights:
    """Returns the checkpoint as calibration reads it; a tensor's pages are given back after each reading."""
    by_name = {g.recipe.name: g for g in gathered}

    def read(name: str) -> np.ndarray:
        values = _vector(by_name[name])
        by_name[name].release()
        return values

    def rows(name: str, ids: np.ndarray) -> np.ndarray:
        return np.stack([to_fp32(by_name[name].read(i, i + 1))[0] for i in map(int, ids)])

    return Weights(frozenset(by_name), read, rows)


def _located(family: Family, source: Source, folder: Path) -> tuple[Recipe, ...]:
    """Returns the recipes in the spelling of this checkpoint; ValueError naming the folder and the missing tensors."""
    try:
        return family.located(set(source.names))
    except ValueError as error:
        raise ValueError(
            f"{folder}: {error}; the folder is incomplete or its config.json belongs to another model: download again"
        ) from None


def _refuse_other_tasks(spec: AnySpec, task: str, folder: Path, embedding_files: dict[str, Path]) -> None:
    """Raises ValueError when a model cannot do what it is loaded for. A decoder embeds where its files say how."""
    kind = f"{folder} holds a {spec.family} model"
    if isinstance(spec, ModuleSpec):
        raise ValueError(
            f"{kind} that only PyTorch can run; open it with lowbit.load_low_bit or load_low_bit of the class in "
            'lowbit.transformers (pip install "lowbit[torch]")'
        )
    if task == "text" and isinstance(spec, EncoderSpec):
        raise ValueError(
            f"{kind}, which turns texts into vectors and cannot continue them; open it with lowbit.Embedder"
            + (" or lowbit.Reranker" if spec.labels else "")
        )
    if task == "embed" and isinstance(spec, ModelSpec) and "modules.json" not in embedding_files:
        raise ValueError(
            f"{kind}, a causal language model whose folder does not say how to make vectors of it (it has no "
            "modules.json of sentence-transformers); open it with lowbit.load, or give an embedding model"
        )
    if task == "rerank" and not (isinstance(spec, EncoderSpec) and spec.labels):
        raise ValueError(
            f"{kind} without a classification head; a reranker's config.json names a ...ForSequenceClassification "
            "architecture" + ("; open this one with lowbit.Embedder" if isinstance(spec, EncoderSpec) else "")
        )


def _has_head(loaded: LoadedModel) -> bool:
    return isinstance(loaded.spec, ModelSpec) and (loaded.spec.tied_head or "head.weight" in loaded.tensors)


def _check_shape(gathered: Gathered, spec: ModelSpec | EncoderSpec) -> None:
    """Raises ValueError where a matrix is not what config.json says; the engine checks again, without file names."""
    heads = spec.heads * spec.head_dim
    kv = spec.kv_heads * spec.head_dim if isinstance(spec, ModelSpec) else heads
    ffn, hidden = spec.ffn_size, spec.hidden_size
    expected = {
        "embedding": (spec.vocab_size, None),  # the width may be a smaller word size (OPT-350m)
        "head": (spec.vocab_size if isinstance(spec, ModelSpec) else spec.labels, None),
        "qkv": (heads + 2 * kv, hidden),
        "o": (hidden, heads),
        "gate_up": (2 * ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }.get(gathered.recipe.name.removesuffix(".weight").rpartition(".")[2])
    if gathered.recipe.kind == "vector" or expected is None:
        return
    shape = (gathered.source_rows, *gathered.columns)
    if any(want not in (None, got) for want, got in zip(expected, shape, strict=True)):
        asked = [n if n is not None else "any" for n in expected]
        raise ValueError(
            f"{gathered.where} has shape {list(shape)}, config.json asks for {asked}; "
            "the two are from different models: download both again"
        )


def _vector(gathered: Gathered) -> np.ndarray:
    """Returns a whole tensor as float32. Raises ValueError naming it when it is not finite."""
    vector = np.array(to_fp32(gathered.read(0, gathered.rows)), np.float32)  # a copy: the source is closed later
    if not np.isfinite(vector).all():
        raise ValueError(f"{gathered.where} holds NaN or infinite values; the checkpoint is damaged: download it again")
    return vector


def _warn_of_unused(argument: str, kept: Sequence[str], gathered: Sequence[Gathered], tied_head: bool) -> None:
    modules = [n.removesuffix(".weight") for g in gathered for n in g.names] + [HEAD_MODULE] * tied_head
    for keyword in kept:
        if not any(keyword in module for module in modules):
            parts = {part for module in modules for part in module.split(".") if not part.isdecimal()}
            close = difflib.get_close_matches(keyword, parts, n=3)
            logger.warning("%s: nothing is called %r; nearest: %s", argument, keyword, ", ".join(close) or "none")


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        refuse_foreign(folder)
        raise FileNotFoundError(f"no {CONFIG} in {folder}; give a folder that has one beside the weights")
    return read_json(folder / CONFIG)


def _tokenizer(tokenizer_id: str | os.PathLike | None, access: hub.Access) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the files of another model's tokenizer and what provenance says of it; empty where none is asked for."""
    if tokenizer_id is None:
        return {}, {}
    location = hub.locate(tokenizer_id, None, access)
    files = _matching(location.folder, hub.TOKENIZER_FILES)
    if not files:
        raise FileNotFoundError(f"no tokenizer in {location.folder}; leave tokenizer_id out to use the model's own")
    return files, {"tokenizer": _origin(location)}


def _origin(location: hub.Location) -> str:
    return location.model_id if location.revision else location.folder.name  # a path says nothing on another machine


def _matching(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Returns the files of a folder that match, by their name relative to it."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}

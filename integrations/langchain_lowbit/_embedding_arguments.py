"""Sorts the arguments of embedding classes: what loads the model, what `encode` is given, what means nothing here."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from langchain_lowbit._arguments import NO_EFFECT
from lowbit.options import option_names
from lowbit.runtime import nearest

logger = logging.getLogger(__name__)

POOLINGS = ("mean", "cls")

# Names of sentence-transformers, optimum-intel and this package's other classes -> lowbit.Embedder's.
_LOADING_NAMES = {
    "load_in_low_bit": "low_bit",
    "low_bit": "low_bit",
    "cache_folder": "cache_dir",
    "use_auth_token": "token",
    "max_seq_length": "max_length",
    "max_length": "max_length",
    "truncate": "truncate",
}
# The same for the arguments of SentenceTransformer.encode and of `encode`.
_ENCODE_NAMES = {
    "batch_size": "batch_size",
    "normalize_embeddings": "normalize",
    "normalize": "normalize",
    "prompt": "prompt",
    "prompt_name": "prompt_name",
    "truncate_dim": "truncate_dim",
    "show_progress_bar": "show_progress",
    "show_progress": "show_progress",
}
_ENCODE_NO_EFFECT = {
    "convert_to_numpy": "LangChain's embeddings are lists of numbers",
    "convert_to_tensor": "LangChain's embeddings are lists of numbers",
    "device": "the device is chosen when the model is loaded: model_kwargs={'device': ...}",
    "num_workers": "threads are chosen when the model is loaded: model_kwargs={'threads': ...}",
}
_LOADING_NO_EFFECT = NO_EFFECT | {
    "backend": "there is one engine",
    "similarity_fn_name": "a vector store compares vectors",
    "export": "weights are read as they are",
    "use_cache": "an encoder has no cache",
}
# Only their default is what LangChain's embeddings can be.
_ONLY = {"output_value": "sentence_embedding", "precision": "float32", "output": "float32"}


def loading_options(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the options of `lowbit.Embedder` or `lowbit.Reranker` in a model_kwargs; changes nothing in place.

    Raises TypeError for a name nobody knows, with the nearest one.
    """
    runtime, loading = option_names()
    names = _LOADING_NAMES | {name: name for name in runtime | loading}
    options: dict[str, Any] = {}
    for name, value in (model_kwargs or {}).items():
        if name in names:
            options[names[name]] = value
        elif name in _ENCODE_NAMES:
            raise TypeError(f"{name!r} belongs in encode_kwargs: encode_kwargs={{{name!r}: ...}}")
        elif name in _LOADING_NO_EFFECT:
            logger.info("model_kwargs[%r] has no effect: %s", name, _LOADING_NO_EFFECT[name])
        else:
            known = sorted({*names, *_LOADING_NO_EFFECT})
            raise TypeError(f"unknown option {name!r} in model_kwargs{nearest(name, known)}")
    return options


def encode_options(encode_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the options of `lowbit.Embedder.encode` in an encode_kwargs; changes nothing in place.

    Raises TypeError for an unknown name, with the nearest one, and ValueError for a precision that is not float.
    """
    options: dict[str, Any] = {}
    for name, value in (encode_kwargs or {}).items():
        if name in _ENCODE_NAMES:
            options[_ENCODE_NAMES[name]] = value
        elif name in _ONLY:
            if value != _ONLY[name]:
                raise ValueError(
                    f"encode_kwargs[{name!r}] = {value!r} does not fit LangChain's embeddings, which are lists of "
                    "floats; call lowbit.Embedder.encode for others"
                )
        elif name in _ENCODE_NO_EFFECT:
            logger.info("encode_kwargs[%r] has no effect: %s", name, _ENCODE_NO_EFFECT[name])
        else:
            known = sorted({*_ENCODE_NAMES, *_ONLY, *_ENCODE_NO_EFFECT})
            raise TypeError(f"unknown option {name!r} in encode_kwargs{nearest(name, known)}")
    return options


def check_pooling(pooling: str) -> str:
    """Returns a pooling that the classes know; ValueError for another, with the nearest one."""
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}{nearest(str(pooling), POOLINGS)} Choose 'mean' or 'cls'.")
    return pooling


def refuse_unknown(kwargs: Mapping[str, Any], constructor: Callable[..., None]) -> None:
    """Raises TypeError for arguments that a constructor (self, ..., **kwargs) does not name, with the nearest one."""
    known = list(inspect.signature(constructor).parameters)[1:-1]
    for name in kwargs:
        raise TypeError(f"unknown argument {name!r}{nearest(name, known)} It takes {', '.join(known)}.")

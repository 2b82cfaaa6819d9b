"""lowbit: Hugging Face language models in 3 to 8 bits on ordinary CPUs, in process.

The public surface. Importing it loads neither torch nor transformers and prints nothing; each name is imported when it
is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lowbit import compat, formats
    from lowbit.embed import Embedder
    from lowbit.rerank import Reranker
    from lowbit.runtime import Runtime
    from lowbit.text import TextModel
    from lowbit.torch import load_low_bit, low_memory_init, optimize_model

# public name -> (module, attribute or None for the module itself)
_LAZY = {
    "Embedder": ("lowbit.embed", "Embedder"),
    "Reranker": ("lowbit.rerank", "Reranker"),
    "Runtime": ("lowbit.runtime", "Runtime"),
    "TextModel": ("lowbit.text", "TextModel"),
    "compat": ("lowbit.compat", None),
    "formats": ("lowbit.formats", None),
    "load_low_bit": ("lowbit.torch", "load_low_bit"),
    "low_memory_init": ("lowbit.torch", "low_memory_init"),
    "optimize_model": ("lowbit.torch", "optimize_model"),
}
__all__ = [
    "Embedder",
    "Reranker",
    "Runtime",
    "TextModel",
    "__version__",
    "compat",
    "formats",
    "load",
    "load_low_bit",
    "low_memory_init",
    "optimize_model",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    module_name, attribute = _LAZY[name]
    module = import_module(module_name)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    id_or_path: str, low_bit: str | None = "sym_int4", *, draft_model: str | TextModel | None = None, **options: Any
) -> TextModel:
    """Returns a `TextModel` for a hub id, a local Hugging Face folder or a low-bit folder.

    A float checkpoint is quantised while it is read (`low_bit`: a name of `lowbit.formats`, or None for none); a
    low-bit folder is opened as it was saved. `options` are the keyword arguments of `lowbit.loading.load_model`
    (`modules_to_not_convert`, `head_format`, `embedding_format`, `group_size`, `trust_remote_code`, `revision`,
    `show_progress`, ...) and the fields of `lowbit.Runtime` (`device`, `threads`, `context`, `compute`, `kv_dtype`,
    ...). draft_model: a smaller model of the same vocabulary, or its id or path, that guesses tokens for this one to
    check; answers stay the same and come sooner where it guesses well.

    Raises ValueError or OSError with the cause and the fix; TypeError for an unknown option, with the nearest name.

    >>> model = load("Qwen/Qwen2.5-0.5B-Instruct", low_bit="nf4")      # doctest: +SKIP
    >>> for delta in model.stream("Once upon a time", max_new_tokens=32):  # doctest: +SKIP
    ...     print(delta.text, end="")
    """
    from lowbit.options import ACCESS, split_options

    runtime_options, load_options = split_options(options)
    from lowbit.loading import load_model
    from lowbit.runtime import Runtime
    from lowbit.text import TextModel

    runtime = Runtime(**runtime_options).resolve()
    if draft_model is not None and not isinstance(draft_model, TextModel):
        shared = {name: value for name, value in load_options.items() if name in ACCESS}
        draft_model = TextModel(load_model(draft_model, low_bit, runtime=runtime, **shared), runtime)
    loaded = load_model(id_or_path, low_bit, runtime=runtime, **load_options)
    return TextModel(loaded, runtime, draft_model=draft_model)

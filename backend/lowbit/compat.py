"""The old import paths as views of lowbit: `ipex_llm`, `bigdl.llm` and `intel_extension_for_transformers`.

For code that cannot be changed, such as the classes of langchain-community. After `install()` those modules can be
imported, and hold the names of lowbit that replace them; nothing is installed by itself, and nothing of transformers or
torch is altered. Where the import line can be changed, change it: docs/migration.md says to what.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

from lowbit.runtime import nearest


@dataclass(frozen=True)
class View:
    """What one old module shows. sources: lowbit's modules whose public names it has. own: further names, each with its
    place, "module:name". gone: names that have no counterpart, each with what to do instead."""

    sources: Sequence[str] = ()
    own: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)


_LOW_BIT_ONLY = "convert the model with `lowbit convert`, and open it with lowbit.load"
_ONE_MACHINE = "lowbit runs on one machine; leave it out"
_NATIVE = "its ggml files are another format: AutoModelForCausalLM.from_pretrained(..., load_in_4bit=True)"

_IPEX_LLM = {
    "": View(
        own={"optimize_model": "lowbit.torch:optimize_model"},
        gone={
            "llm_convert": _LOW_BIT_ONLY,
            "llm_patch": "it replaced functions of transformers and peft; call lowbit.optimize_model(model)",
            "llm_unpatch": "nothing is patched",
        },
    ),
    ".optimize": View(
        own={name: f"lowbit.torch:{name}" for name in ("load_low_bit", "low_memory_init", "optimize_model")}
    ),
    ".transformers": View(
        ["lowbit.transformers"],
        gone={
            **{f"{family}ForCausalLM": _NATIVE for family in ("Llama", "ChatGLM", "Gptneox", "Bloom", "Starcoder")},
            "ggml_convert_low_bit": "lowbit.optimize_model(model, low_bit=...)",
            "convert_model_hybrid": "lowbit.optimize_model(model, low_bit=...)",
            "init_pipeline_parallel": _ONE_MACHINE,
            "PPModelWorker": _ONE_MACHINE,
            "get_enable_ipex": "lowbit uses no IPEX",
        },
    ),
    ".transformers.convert": View(
        own={"_optimize_pre": "lowbit.compat:_unchanged", "_optimize_post": "lowbit.compat:_optimized_encoder"}
    ),
    ".transformers.model": View(["lowbit.transformers"]),
}
_INT8_GRAPH = "lowbit quantises weights: RtnConfig(bits=8)"
_ITREX = {
    "": View(),
    ".transformers": View(
        ["lowbit.transformers"],
        gone={
            **{f"{name}Config": _INT8_GRAPH for name in ("SmoothQuant", "StaticQuant", "DynamicQuant")},
            "MixedPrecisionConfig": "load with load_in_low_bit='bf16'",
            "QuantAwareTrainingConfig": "lowbit trains nothing",
        },
    ),
    ".transformers.modeling": View(["lowbit.transformers"]),
    ".utils": View(),
    ".utils.utils": View(own={"is_ipex_available": "lowbit.compat:_xpu_usable"}),
    ".tools": View(),
    ".tools.utils": View(own={"is_ipex_available": "lowbit.compat:_xpu_usable"}),
}
VIEWS: Mapping[str, View] = MappingProxyType(
    {
        **{f"ipex_llm{name}": view for name, view in _IPEX_LLM.items()},
        "bigdl": View(),
        **{f"bigdl.llm{name}": view for name, view in _IPEX_LLM.items()},
        **{f"intel_extension_for_transformers{name}": view for name, view in _ITREX.items()},
    }
)
"""Old module name -> what it shows."""
PACKAGES = tuple(name for name in VIEWS if "." not in name)


def install() -> None:
    """Makes the old import paths importable; doing it again changes nothing.

    Raises ImportError when torch or transformers is missing, which code that imports those paths works with, and when
    one of the old packages is installed itself: the two would be mixed.
    """
    with _lock:
        if _finder in sys.meta_path:
            return
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"the old import paths are about PyTorch models, and {' and '.join(missing)} cannot be imported: "
                "pip install 'lowbit[torch]'"
            )
        for name in PACKAGES:
            if name in sys.modules or importlib.util.find_spec(name) is not None:
                raise ImportError(
                    f"{name} itself is installed here, and would be mixed with lowbit's view of it: uninstall it, or "
                    "import lowbit's classes by their own names"
                )
        sys.meta_path.append(_finder)


def uninstall() -> None:
    """Takes the old import paths away again; modules that imported from them keep what they have."""
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
            for name in VIEWS:
                sys.modules.pop(name, None)


def installed() -> bool:
    """Returns True between `install` and `uninstall`."""
    return _finder in sys.meta_path


class _ViewModule(ModuleType):
    """A module whose attributes are found when they are first asked for, so that importing it imports nothing."""

    def __getattr__(self, name: str) -> Any:
        view = VIEWS[self.__name__]
        if name in view.own:
            module, _, attribute = view.own[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name in view.gone:
            raise ImportError(f"{self.__name__}.{name} has no counterpart in lowbit: {view.gone[name]}")
        if name == "__all__":
            return self._public()
        hint = "."
        if not name.startswith("_"):
            for module_ in map(importlib.import_module, view.sources):
                if name in module_.__all__:
                    return getattr(module_, name)
            hint = nearest(name, self._public())
        raise AttributeError(f"lowbit's view of {self.__name__} has no {name!r}{hint}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._public()})

    def _public(self) -> list[str]:
        view = VIEWS[self.__name__]
        named = (name for source in view.sources for name in importlib.import_module(source).__all__)
        return sorted({*view.own, *named})


class _Finder:
    """Finds and makes the modules of VIEWS (importlib's protocols of a finder and a loader)."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in VIEWS:
            return None
        return ModuleSpec(name, self, origin="lowbit.compat", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _ViewModule(spec.name, f"lowbit's view of {spec.name}; see docs/migration.md.")

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


_finder = _Finder()
_lock = threading.Lock()


# ---- what the old classes call beside lowbit's public names ----


def _unchanged(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`_optimize_pre`: renamed and merged weights before a conversion; here nothing has to be merged."""
    return model


def _optimized_encoder(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`_optimize_post` of a SentenceTransformer: its linear layers in int8. The predecessor replaced the attention
    alone; as in lowbit's own embedding classes, int8 is what an encoder gets where nobody asks for anything."""
    from lowbit.torch import optimize_model

    return optimize_model(model, low_bit="sym_int8")


def _xpu_usable() -> bool:
    """`is_ipex_available`: whether there is an Intel GPU that lowbit can run on."""
    from lowbit.runtime import describe

    return any(device["name"].startswith("xpu") and device["usable"] for device in describe()["devices"])

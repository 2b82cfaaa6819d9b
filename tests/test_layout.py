"""The house rules, checked: who may import what, what an import costs, what must not exist."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BACKEND = ROOT / "backend" / "lowbit"

# Layers from the bottom up: a module may import its own layer and those below (docs in design.md, section 3).
LAYERS = [
    {"formats", "machine", "models._spec", "replaced", "asynchronous", "chat_templates", "tool_syntax"},
    {"ops", "packed", "runtime", "reference"},
    {"vector_index", "vector_folder", "passages", "corpus_folder"},
    {"tokenizer", "tokenizer_files", "sentencepiece", "detokenize", "sampling", "stop", "perplexity"},
    {"models", "sources", "quantize", "reference_decoder", "calibration", "checkpoint", "precision"},
    {"tensor_formats", "loading", "woq"},
    {"sessions", "sentence", "texts", "speculation"},
    {"requests", "rows", "scheduler", "generate", "engine"},
    {"token_bytes", "json_numbers", "json_schemas", "grammar_vocabulary", "grammar"},
    {"text"},
    {"chat", "tool_calls", "call_text", "tool_grammar", "answers", "options"},
    {"embed", "rerank"},
    {"corpus", "eval", "harness"},
    {"torch"},
    {"transformers", "compat"},
    {"cli", ""},
]
HEAVY = {"torch", "transformers"}
FOR_TORCH = ("lowbit.torch", "lowbit.transformers")  # what the extra `torch` is for: these import it
FRAMEWORKS = {"langchain_core", "langchain", "llama_index"}


def modules(root: Path, package: str):
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield ".".join((package, *parts)), path


def imports(path: Path, top_level_only: bool = False):
    """Yields the absolute names a file imports; with top_level_only those that run when it is imported."""
    tree = ast.parse(path.read_text())

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                for alias in node.names:
                    yield f"{node.module}.{alias.name}"
            elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)) or (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and top_level_only
            ):
                continue
            else:
                yield from walk(ast.iter_child_nodes(node))

    yield from walk(tree.body)


def layer_of(name: str) -> int | None:
    relative = name.removeprefix("lowbit").lstrip(".")
    for level, names in enumerate(LAYERS):
        if relative in names or (relative.split(".")[0] in names and relative not in ("models._spec",)):
            return level
    return None


def test_backend_imports_point_downwards():
    for module, path in modules(BACKEND, "lowbit"):
        level = layer_of(module)
        assert level is not None, f"{module} has no layer: give it a place in LAYERS"
        for name in imports(path, top_level_only=True):
            if name in ("lowbit.__version__", "lowbit._native") or not name.startswith("lowbit."):
                continue
            target = name if layer_of(name) is not None else name.rpartition(".")[0]
            assert layer_of(target) <= level, f"{module} imports {name}, which lies above it"


def test_only_ops_imports_the_extension():
    for module, path in modules(BACKEND, "lowbit"):
        if module not in ("lowbit.ops",):
            assert not any("_native" in name for name in imports(path)), (
                f"{module} imports lowbit._native; use lowbit.ops"
            )


@pytest.mark.parametrize("folder", ["backend/lowbit", "integrations/langchain_lowbit", "integrations/llama_index"])
def test_no_torch_at_module_level(folder):
    for module, path in modules(ROOT / folder, folder.split("/")[-1]):
        if module.startswith(FOR_TORCH):
            continue
        for name in imports(path, top_level_only=True):
            assert name.split(".")[0] not in HEAVY, f"{module} imports {name} when it is imported"


def test_backend_knows_no_framework():
    for module, path in modules(BACKEND, "lowbit"):
        for name in imports(path):
            assert name.split(".")[0] not in FRAMEWORKS, f"{module} imports {name}"


def test_environment_is_read_in_runtime_alone():
    for module, path in [*modules(BACKEND, "lowbit"), *modules(ROOT / "integrations", "integrations")]:
        if module == "lowbit.runtime":
            continue
        text = path.read_text()
        for name in ("os.environ", "getenv"):
            assert name not in text, f"{module} touches the environment; use lowbit.runtime"


def test_llama_index_stays_a_namespace():
    """The leaves are packages; what lies above them belongs to every LlamaIndex distribution at once."""
    root = ROOT / "integrations" / "llama_index"
    found = {path.parent.relative_to(root).as_posix() for path in root.rglob("__init__.py")}
    assert {"embeddings/lowbit", "postprocessor/lowbit_rerank"} <= found
    for folder in found:
        assert folder.count("/") == 1, f"llama_index/{folder}/__init__.py would break every LlamaIndex install"


def test_integrations_do_not_import_each_other():
    own = {"langchain_lowbit": {"langchain_core"}, "llama_index": {"llama_index"}}
    for folder, frameworks in own.items():
        others = (FRAMEWORKS | set(own)) - frameworks - {folder}
        for module, path in modules(ROOT / "integrations" / folder, folder):
            for name in imports(path):
                assert name.split(".")[0] not in others, f"{module} imports {name}"


def test_the_wheel_takes_every_package():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]
    leaves = {
        path.parent.relative_to(ROOT / "integrations").as_posix(): path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / "integrations").rglob("__init__.py")
    }
    assert packages == {"lowbit": "backend/lowbit", **leaves}


def test_files_stay_small():
    for folder in ("backend", "integrations", "native"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h"):
                lines = len(path.read_text().splitlines())
                assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: make it two rooms"


def test_import_is_quiet_and_light():
    code = (
        "import sys, lowbit, lowbit.formats, lowbit.runtime, lowbit.text, lowbit.loading\n"
        "heavy = [m for m in ('torch', 'transformers', 'langchain_core') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_the_langchain_classes_import_no_extra():
    """The extras are for some classes: who uses the others needs neither, and waits for neither."""
    code = (
        "import sys, langchain_lowbit\n"
        "heavy = [m for m in ('torch', 'transformers', 'faiss', 'pandas', 'llama_index') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_readme_names_real_commands():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for line in readme.splitlines():
        words = line.strip().split()
        if words[:1] == ["make"] and len(words) > 1:
            assert f"\n{words[1]}:" in makefile, f"README says `make {words[1]}`, the Makefile has no such target"

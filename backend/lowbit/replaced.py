"""Hub ids that hold a format of a runtime that no longer exists, and the float models they were made from.

Scripts and cookbooks of the predecessors name them; their weights are TorchScript archives or graphs that nothing
maintained can load. The float model is quantised here instead.
"""

from __future__ import annotations

import logging
import os
import threading

logger = logging.getLogger(__name__)

# Neural Compressor's int8 models of BGE: TorchScript for optimum-intel (rag), ONNX for ITREX's Neural Engine (sts).
REPLACED = {
    f"Intel/bge-{size}-en-v1.5-{kind}": f"BAAI/bge-{size}-en-v1.5"
    for size in ("small", "base", "large")
    for kind in (
        "rag-int8-static",
        "sts-int8-static",
        "sts-int8-static-inc",
        "sts-int8-dynamic",
        "sts-int8-dynamic-inc",
    )
}
_BY_LOWER_CASE = {name.lower(): model for name, model in REPLACED.items()}

_told: set[str] = set()
_lock = threading.Lock()


def replacement(id_or_path: str | os.PathLike) -> str | os.PathLike:
    """Returns the float model that a dead id was made from, telling so once; any other id or folder as it is."""
    name = str(id_or_path)
    model = _BY_LOWER_CASE.get(name.lower())
    if model is None or os.path.isdir(name):
        return id_or_path
    with _lock:
        first = name not in _told
        _told.add(name)
    if first:
        logger.warning(
            "%s holds int8 weights of a runtime that no longer exists; %s, which it was made from, is loaded and "
            "quantised here instead",
            name,
            model,
        )
    return model

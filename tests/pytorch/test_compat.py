"""The old import paths as views of lowbit; the unmodified classes of langchain-community on them, where installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from lowbit import compat

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "demo" / "model")
QUESTION = "Context: Tarvik lives in Quonda.\nQuestion: Where does Tarvik live?\nAnswer:"


@pytest.fixture(autouse=True)
def _installed():
    compat.install()
    yield
    compat.uninstall()


# ---- the views ----

# What the adapters of LangChain and LlamaIndex, the tutorials and the READMEs import.
SURFACE = {
    "ipex_llm": ["optimize_model"],
    "ipex_llm.optimize": ["load_low_bit", "low_memory_init", "optimize_model"],
    "ipex_llm.transformers": [
        "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForMultipleChoice",
        "AutoModelForNextSentencePrediction", "AutoModelForQuestionAnswering", "AutoModelForSeq2SeqLM",
        "AutoModelForSequenceClassification", "AutoModelForSpeechSeq2Seq", "AutoModelForTokenClassification",
    ],
    "ipex_llm.transformers.convert": ["_optimize_pre", "_optimize_post"],
    "bigdl.llm": ["optimize_model"],
    "bigdl.llm.transformers": ["AutoModel", "AutoModelForCausalLM"],
    "intel_extension_for_transformers.transformers": [
        "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoRoundConfig", "AwqConfig", "GPTQConfig",
        "RtnConfig", "TeqConfig", "WeightOnlyQuantConfig",
    ],
    "intel_extension_for_transformers.utils.utils": ["is_ipex_available"],
    "intel_extension_for_transformers.tools.utils": ["is_ipex_available"],
}  # fmt: skip


@pytest.mark.parametrize("module", SURFACE)
def test_names_can_be_imported(module):
    for name in SURFACE[module]:
        namespace: dict = {}
        exec(f"from {module} import {name}", namespace)
        assert callable(namespace[name])
    assert set(SURFACE[module]) <= set(dir(importlib.import_module(module)))


def test_views_show_lowbits_own_objects():
    import bigdl.llm.transformers
    import intel_extension_for_transformers.transformers as itrex
    import ipex_llm.transformers

    import lowbit.transformers
    import lowbit.woq

    assert ipex_llm.optimize_model is lowbit.optimize_model
    for view in (ipex_llm.transformers, bigdl.llm.transformers, itrex):
        assert view.AutoModelForCausalLM is lowbit.transformers.AutoModelForCausalLM
    assert itrex.WeightOnlyQuantConfig is lowbit.woq.WeightOnlyQuantConfig
    assert importlib.import_module("intel_extension_for_transformers.utils.utils").is_ipex_available() is False
    for name in compat.PACKAGES:  # as adapters look for packages
        assert importlib.util.find_spec(name) is not None


def test_star_imports():
    namespace: dict = {}
    exec("from ipex_llm.transformers import *", namespace)
    assert "AutoModelForCausalLM" in namespace


def test_what_is_gone_says_what_to_do():
    with pytest.raises(ImportError, match="llm_convert has no counterpart in lowbit: convert the model with `lowbit"):
        from ipex_llm import llm_convert  # noqa: F401
    with pytest.raises(ImportError, match="ggml files are another format"):
        from ipex_llm.transformers import LlamaForCausalLM  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'AutoModelForCausalLLM'"):
        from ipex_llm.transformers import AutoModelForCausalLLM  # noqa: F401
    import ipex_llm.transformers

    with pytest.raises(AttributeError, match="did you mean 'AutoModelForCausalLM'"):
        _ = ipex_llm.transformers.AutoModelForCausalLLM
    with pytest.raises(ModuleNotFoundError, match=r"ipex_llm\.serving"):
        importlib.import_module("ipex_llm.serving")


# ---- installing ----


def test_install_and_uninstall():
    compat.install()  # again: nothing changes
    assert compat.installed()
    import ipex_llm.transformers

    compat.uninstall()
    compat.uninstall()
    assert not compat.installed()
    assert not any(name.split(".")[0] in compat.PACKAGES for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        import ipex_llm  # noqa: F401


def test_nothing_happens_by_itself_and_installing_imports_nothing():
    code = (
        "import importlib.util as u, sys, lowbit, lowbit.transformers, langchain_lowbit\n"
        "assert u.find_spec('ipex_llm') is None\n"
    )
    quick = (
        "import sys; from lowbit import compat; compat.install(); import ipex_llm.transformers\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    for lines in (code, quick):
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_a_real_package_is_not_shadowed(tmp_path, monkeypatch):
    compat.uninstall()
    (tmp_path / "ipex_llm").mkdir()
    (tmp_path / "ipex_llm" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="ipex_llm itself is installed here"):
        compat.install()
    assert not compat.installed()


def test_without_torch_the_extra_is_named(monkeypatch):
    compat.uninstall()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    with pytest.raises(ImportError, match=r"pip install 'lowbit\[torch\]'"):
        compat.install()


# ---- the unmodified classes of langchain-community ----


@pytest.fixture(scope="module")
def community():
    return pytest.importorskip("langchain_community", reason="langchain-community is not installed (archived)")


@pytest.mark.parametrize("streaming", [True, False])
def test_ipex_llm_of_langchain_community(community, streaming, capsys):
    from langchain_community.llms import IpexLLM

    # The documented model_kwargs; transformers alone refuses them since its version 5.
    model_kwargs = {"temperature": 0, "max_length": 64, "trust_remote_code": True}
    llm = IpexLLM.from_model_id(DEMO, model_kwargs, streaming=streaming)
    assert type(llm.model).__name__ == "LlamaForCausalLM"
    assert hasattr(llm.model, "native_graph")
    answer = llm.invoke(QUESTION)
    assert answer == (QUESTION + " Quonda." if streaming else " Quonda.")  # streaming repeats the prompt: upstream's
    assert ("Quonda." in capsys.readouterr().out) == streaming  # ... and prints
    assert llm.model.generation_config.max_length == 64


def test_saved_by_langchain_community_opened_by_lowbit(community, tmp_path):
    from langchain_community.llms import IpexLLM

    import langchain_lowbit

    llm = IpexLLM.from_model_id(DEMO, load_in_low_bit="asym_int4", streaming=False)
    llm.model.save_low_bit(str(tmp_path / "saved"))
    again = IpexLLM.from_model_id_low_bit(str(tmp_path / "saved"), {"max_new_tokens": 12}, streaming=False)
    assert again.invoke(QUESTION) == llm.invoke(QUESTION, max_new_tokens=12) == " Quonda."
    own = langchain_lowbit.IpexLLM.from_model_id_low_bit(str(tmp_path / "saved"), {"temperature": 0})
    assert own.invoke(QUESTION) == " Quonda."


def test_stop_of_langchain_communitys_class_is_broken_by_itself(community):
    from langchain_community.llms import IpexLLM

    llm = IpexLLM.from_model_id(DEMO, streaming=False)
    with pytest.raises(ModuleNotFoundError, match=r"transformers\.tools"):
        llm.invoke(QUESTION, stop=["."])


def test_bigdl_llm_of_langchain_community(community):
    from langchain_community.llms import BigdlLLM

    assert BigdlLLM.from_model_id(DEMO, streaming=False).invoke(QUESTION, max_new_tokens=12) == " Quonda."


@pytest.mark.parametrize("how", ["load_in_4bit", "load_in_8bit", "quantization_config", "the class", "pipeline"])
def test_weight_only_quant_pipeline_of_langchain_community(community, how):
    from intel_extension_for_transformers.transformers import AutoModelForCausalLM, WeightOnlyQuantConfig
    from langchain_community.llms import WeightOnlyQuantPipeline
    from transformers import AutoTokenizer, pipeline

    config = WeightOnlyQuantConfig(weight_dtype="int4_clip", mse_range=True)
    if how == "pipeline":
        model = AutoModelForCausalLM.from_pretrained(DEMO, quantization_config=config)
        tokenizer = AutoTokenizer.from_pretrained(DEMO)
        llm = WeightOnlyQuantPipeline(
            pipeline=pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=12)
        )
    else:
        configs = {"quantization_config": config, "the class": WeightOnlyQuantConfig}  # as published examples do
        given = {"quantization_config": configs[how]} if how in configs else {how: True}
        llm = WeightOnlyQuantPipeline.from_model_id(
            model_id=DEMO, task="text-generation", pipeline_kwargs={"max_new_tokens": 12}, **given
        )
    assert llm.invoke(QUESTION) == " Quonda."


def test_graphs_of_the_neural_engine_are_refused_with_what_to_do(community, tmp_path, monkeypatch):
    """QuantizedBgeEmbeddings of langchain-community opens nothing else; it insists on onnx, so that is feigned."""
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from langchain_community.embeddings import QuantizedBgeEmbeddings

    onnx = ModuleType("onnx")
    onnx.__spec__ = ModuleSpec("onnx", None)
    monkeypatch.setitem(sys.modules, "onnx", onnx)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(DEMO) / name).read_bytes())
    (tmp_path / "int8-model.onnx").write_bytes(b"graph")
    with pytest.raises(ValueError, match=r"Neural Engine, which is gone; lowbit\.Embedder"):
        QuantizedBgeEmbeddings(str(tmp_path))


def test_bge_embeddings_of_langchain_community(community, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    import numpy as np
    from langchain_community.embeddings import IpexLLMBgeEmbeddings

    monkeypatch.syspath_prepend(ROOT / "tests" / "backend")
    from tiny_bert import write_bert, write_sentence_files

    import langchain_lowbit
    from lowbit.torch import LowBitLinear

    folder = write_sentence_files(write_bert(tmp_path / "bge"), pooling="cls_token")
    pooling = next(folder.glob("*Pooling/config.json"))
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": hidden}))
    arguments = {"model_name": str(folder), "encode_kwargs": {"normalize_embeddings": True}}
    old, new = IpexLLMBgeEmbeddings(**arguments), langchain_lowbit.IpexLLMBgeEmbeddings(**arguments)
    assert sum(isinstance(m, LowBitLinear) for m in old.client.modules()) >= 6
    a, b = (np.array(e.embed_documents(["w1 w2", "w3"])) for e in (old, new))
    assert (a * b).sum(1).min() > 0.99


# ---- the unmodified class of LlamaIndex's deleted package, which no environment of ours has: it pins an old core ----


def _old_package(name):
    """Skips where a package is absent; returns whether LlamaIndex's core is one that it was written for."""
    pytest.importorskip("llama_index.core")
    try:
        version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed (deleted; it pins llama-index-core<0.11)")
    return tuple(int(part) for part in version("llama-index-core").split(".")[:2]) < (0, 11)


def test_ipex_llm_of_llama_index(tmp_path):
    if not _old_package("llama-index-llms-ipex-llm"):
        with pytest.raises(AttributeError, match="field_info"):
            importlib.import_module("llama_index.llms.ipex_llm")
        return
    from llama_index.llms.ipex_llm import IpexLLM

    llm = IpexLLM.from_model_id(model_name=DEMO, tokenizer_name=DEMO, max_new_tokens=12)
    assert llm.complete(QUESTION).text == " Quonda."
    assert "".join(response.delta for response in llm.stream_complete(QUESTION)).strip() == "Quonda."
    llm._model.save_low_bit(str(tmp_path))
    again = IpexLLM.from_model_id_low_bit(model_name=str(tmp_path), tokenizer_name=DEMO, max_new_tokens=12)
    assert again.complete(QUESTION).text == " Quonda."

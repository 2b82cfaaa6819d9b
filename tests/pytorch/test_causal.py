"""Causal language models on the native decoder: whatever is asked, the answer is that of the modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import tiny_torch as tiny
from tiny_torch import EXACT, close

pytestmark = pytest.mark.torch

MODELS = {
    "llama": ("llama", {}),
    "llama-tied-biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
}


class Pair:
    """The same low-bit weights twice: on the native decoder, and module by module."""

    def __init__(self, name, low_bit="sym_int4"):
        from lowbit import optimize_model

        kind, settings = MODELS[name]
        tiny.needs_native(kind)
        self.float = tiny.causal(kind, **settings)
        self.native = optimize_model(copy.deepcopy(self.float), low_bit, **EXACT)
        self.modules = optimize_model(copy.deepcopy(self.float), low_bit, optimize_llm=False, **EXACT)
        assert hasattr(self.native, "native_graph")
        assert not hasattr(self.modules, "native_graph")


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    return Pair(request.param)


@pytest.fixture(scope="module")
def llama():
    return Pair("llama")


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes of the native decoder."""
    from lowbit.engine import NativeEngine

    calls = []
    original = NativeEngine.forward
    monkeypatch.setattr(NativeEngine, "forward", lambda self, parts: calls.append(len(parts)) or original(self, parts))
    return calls


def left_padded(rows=3, length=20):
    import torch

    ids = tiny.ids(rows, length)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : 3 * row] = 0
    return ids, mask


def test_logits(pair, passes):
    ids = tiny.ids(2)
    expected = pair.modules(ids).logits
    assert not passes
    assert close(pair.native(ids).logits, expected) < 1e-4
    assert close(pair.native(ids).logits, tiny.dequantised(pair.modules, pair.float)(ids).logits) < 1e-3
    assert close(pair.native(ids, logits_to_keep=3).logits, expected[:, -3:]) < 1e-4
    assert pair.native(ids, return_dict=False)[0].shape == expected.shape
    assert len(passes) == 4


def test_loss_is_the_models(pair):
    ids = tiny.ids(2)
    assert pair.native(ids, labels=ids).loss.item() == pytest.approx(
        pair.modules(ids, labels=ids).loss.item(), rel=1e-4
    )


def test_padding(pair):
    ids, mask = left_padded()
    ours, theirs = (m(ids, attention_mask=mask).logits for m in (pair.native, pair.modules))
    assert close(ours[mask == 1], theirs[mask == 1]) < 1e-4
    ours, theirs = (m(ids, attention_mask=mask.flip(1)).logits for m in (pair.native, pair.modules))
    assert close(ours[mask.flip(1) == 1], theirs[mask.flip(1) == 1]) < 1e-4


GENERATION = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[7]]},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3, "eos_token_id": 2},  # 4.48 fails without one
    "attentions": {"do_sample": False, "output_attentions": True, "return_dict_in_generate": True},
    "scores": {"do_sample": False, "output_scores": True, "return_dict_in_generate": True},
    "no cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.filterwarnings("ignore")
def test_generates_what_the_modules_generate(pair, how):
    import torch

    ids, mask = left_padded(1 if how == "prompt lookup" else 3)
    ours, theirs = (
        copy.deepcopy(model).generate(ids, attention_mask=mask, max_new_tokens=16, **GENERATION[how])
        for model in (pair.native, pair.modules)
    )
    ours, theirs = (result if isinstance(result, torch.Tensor) else result.sequences for result in (ours, theirs))
    assert torch.equal(ours, theirs)


def test_generation_runs_natively(llama, passes):
    ids, mask = left_padded()
    llama.native.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert passes == [3] * 8
    passes.clear()
    llama.native.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=2, do_sample=False)
    assert passes == [3, *[6] * 7]  # beams that begin alike are computed once


def test_assisted_generation(llama, passes):
    import torch

    ids = tiny.ids()
    assistant = Pair("qwen2").native
    plain = llama.modules.generate(ids, max_new_tokens=16, do_sample=False)
    for helper in (assistant, copy.deepcopy(llama.native)):
        ours = llama.native.generate(ids, max_new_tokens=16, do_sample=False, assistant_model=helper)
        assert torch.equal(ours, plain)
    assert passes


def test_criteria_and_streamers(llama):
    from transformers import StoppingCriteria, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids.shape[1] >= 25

    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.reshape(-1).tolist()

        def end(self):
            self.tokens.append("end")

    streamer = Collect()
    out = llama.native.generate(
        tiny.ids(), max_new_tokens=50, streamer=streamer, stopping_criteria=StoppingCriteriaList([After()])
    )
    assert out.shape == (1, 25)
    assert streamer.tokens == [*out[0].tolist(), "end"]


def test_a_users_own_cache_and_steps(pair, passes):
    """The usual loop: the cache is changed in place, and may be cropped or given to a call only modules can answer."""
    import torch
    from transformers import DynamicCache

    ids, native = tiny.ids(2), copy.deepcopy(pair.native)  # transformers leaves hooks behind
    expected = pair.modules(ids).logits
    cache = DynamicCache()
    first = native(ids[:, :7], past_key_values=cache).logits
    assert cache.get_seq_length() == 7
    steps = [native(ids[:, i : i + 1], past_key_values=cache).logits for i in range(7, 12)]
    assert close(torch.cat([first, *steps], 1), expected[:, :12]) < 1e-4
    cache.crop(-5)
    assert cache.get_seq_length() == 7
    assert close(native(ids[:, 7:15], past_key_values=cache).logits, expected[:, 7:15]) < 1e-4
    before = len(passes)
    hidden = native(ids[:, 15:], past_key_values=cache, output_hidden_states=True)
    assert len(hidden.hidden_states) == 3
    assert close(hidden.logits, expected[:, 15:]) < 1e-4
    assert len(passes) == before
    assert type(cache) is DynamicCache
    assert cache.get_seq_length() == 20


def test_what_only_modules_can_do(llama, passes):
    import torch

    ids = tiny.ids(2)
    embeds = llama.native.get_input_embeddings()(ids)
    expected = llama.modules(ids).logits
    assert close(llama.native(inputs_embeds=embeds).logits, expected) < 1e-6
    blocked = torch.tril(torch.ones(2, 1, 20, 20, dtype=torch.bool))
    assert close(llama.native(ids, attention_mask=blocked).logits, expected) < 1e-6
    long = tiny.ids(1, 130)
    assert close(llama.native(long).logits, llama.modules(long).logits) < 1e-6
    shuffled = torch.arange(20).flip(0)[None]
    assert (
        close(llama.native(ids, position_ids=shuffled).logits, llama.modules(ids, position_ids=shuffled).logits) < 1e-6
    )
    assert not passes
    with pytest.raises(IndexError):
        llama.native(torch.tensor([[500]]))


def test_hooks_run(llama, passes):
    seen = []
    handle = llama.native.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    llama.native(tiny.ids())
    handle.remove()
    llama.native(tiny.ids())
    assert (seen, len(passes)) == ([1], 1)


def test_changes_to_the_model_count():
    """A changed norm, a replaced layer, loaded weights: the next call computes with them."""
    import torch

    pair, ids = Pair("llama"), tiny.ids()
    before = pair.native(ids).logits
    for model in (pair.native, pair.modules):
        model.model.norm.weight.mul_(2)
    assert close(pair.native(ids).logits, 2 * before) < 1e-5
    for model in (pair.native, pair.modules):
        model.model.layers[0].mlp = torch.nn.Identity()
    assert close(pair.native(ids).logits, pair.modules(ids).logits) < 1e-5
    a, b = Pair("llama"), Pair("llama", "sym_int4")
    for model in (b.native, b.modules):
        for parameter in model.buffers():
            if parameter.dtype == torch.uint8:
                parameter.zero_()
    assert close(b.native(ids).logits, a.native(ids).logits) > 0.1
    b.native.load_state_dict(a.native.state_dict())
    assert close(b.native(ids).logits, a.native(ids).logits) == 0


def test_copies_and_pickles(pair, passes):
    ids = tiny.ids()
    expected = pair.native(ids).logits
    for other in (copy.deepcopy(pair.native), pickle.loads(pickle.dumps(pair.native))):
        assert type(other) is type(pair.native)
        assert close(other(ids).logits, expected) == 0
    assert len(passes) == 3
    assert isinstance(pair.native, type(pair.float))


def test_memory_is_shared_with_the_modules(llama):
    graph = llama.native.native_graph()
    packed = graph.tensors["layers.0.qkv.weight"].data
    attention = llama.native.model.layers[0].self_attn
    address = packed.ctypes.data
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert layer.packed.data_ptr() == address
        address += layer.packed.numel()
    assert address == packed.ctypes.data + packed.nbytes


def test_training_is_refused(llama):
    model = copy.deepcopy(llama.native).train()
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        model(tiny.ids())


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_run_their_modules(llama, passes):
    import torch

    compiled = torch.compile(llama.native, backend="aot_eager")
    assert close(compiled(tiny.ids(), use_cache=False).logits, llama.modules(tiny.ids()).logits) < 1e-5
    assert not passes

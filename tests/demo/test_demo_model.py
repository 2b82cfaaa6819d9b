"""The trainer's own Llama and its export mean the same as Hugging Face's."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

DEMO = Path(__file__).parents[2] / "demo"
sys.path.insert(0, str(DEMO))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained small model, its tokenizer, and the folder both were exported to."""
    import corpus
    import export
    import llama

    torch.manual_seed(3)
    tokenizer = corpus.train_tokenizer(512, documents_read=300)
    model = llama.Llama(llama.Config(vocab_size=512, num_hidden_layers=2))
    for weight in model.parameters():  # the export is fp16, and zero projections would hide a mistake
        weight.data = (weight + 0.05 * torch.randn_like(weight)).half().float()
    folder = tmp_path_factory.mktemp("exported")
    export.export(model, tokenizer, folder)
    return model, tokenizer, folder


def test_transformers_computes_the_same_logits(exported):
    from transformers import AutoModelForCausalLM

    model, _, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 512, (2, 70))
    with torch.inference_mode():
        ours, expected = model.logits(model(ids)), theirs(ids).logits
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert len(theirs.generation_config.eos_token_id) == 2


def test_transformers_tokenizer_begins_once_and_renders_the_chat(exported):
    import prompts
    from transformers import AutoTokenizer

    _, tokenizer, folder = exported
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == prompts.BEGIN + prompts.render_chat(messages)
    ids = theirs(text.removeprefix(prompts.BEGIN))["input_ids"]
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(prompts.render_chat(messages)).ids
    assert ids.count(theirs.bos_token_id) == 1
    assert theirs.decode(ids, skip_special_tokens=True) == "Be kind.Hello!"


def test_a_name_has_the_same_tokens_wherever_it_stands(exported):
    _, tokenizer, _ = exported
    alone = tokenizer.encode("Marolin", add_special_tokens=False).tokens
    for before in ("I saw ", "name: ", "\n", '"', "("):
        tokens = tokenizer.encode(before + "Marolin.", add_special_tokens=False).tokens
        assert tokens[-len(alone) - 1 : -1] == alone, before


def test_weights_follow_their_pieces(exported):
    import corpus

    _, tokenizer, _ = exported
    document = [("<|begin|>Q: x", "context"), ("\nA:", "question"), (" Tazo.<|end|>", "answer")]
    (ids, weights), *_ = corpus.encode(tokenizer, [document])
    kept = [i for i, w in zip(ids, weights, strict=True) if w == corpus.WEIGHTS["answer"]]
    assert tokenizer.decode(kept, skip_special_tokens=False) == " Tazo.<|end|>"
    assert len(ids) == len(weights)


def test_no_token_spans_the_border_of_prompt_and_answer(exported):
    import corpus

    _, tokenizer, _ = exported
    document = [("<|begin|>Answer: ", "question"), ("red.", "answer"), ("<|end|>", "answer")]
    (ids, weights), *_ = corpus.encode(tokenizer, [document])
    prompt = tokenizer.encode("Answer: ").ids
    assert ids[: len(prompt)] == prompt
    assert [w == corpus.WEIGHTS["answer"] for w in weights] == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


def test_a_grown_model_computes_what_it_did_and_its_optimizers_remember(tmp_path, exported, monkeypatch):
    import grow
    import llama
    import train

    monkeypatch.setattr(train, "train_tokenizer", lambda size: exported[1])
    config = llama.Config(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=3, head_dim=16)
    training = train.Training(tmp_path / "model", 1.0, seed=1, config=config, device="cpu", resume=False)
    ids = torch.randint(0, 512, (4, 32))
    for _ in range(3):
        training.step(ids, torch.ones(4, 32), 1.0)
    monkeypatch.setattr(train, "exact_share", lambda *_: 0.0)
    training.save()
    grown = train.Training(tmp_path / "model", 1.0, 1, config, "cpu", resume=True, grow=(0, 2))
    assert grown.model.config.num_hidden_layers == 5
    assert torch.equal(training.model(ids), grown.model(ids))

    before, after = (dict(t.model.named_parameters()) for t in (training, grown))
    for old, new in ((0, 0), (1, 2), (2, 3)):  # layers 1 and 4 are new
        name = "self_attn.q_proj.weight"
        (kept, _), (moved, _) = training.optimizers, grown.optimizers
        momentum = kept.state[before[f"layers.{old}.{name}"]]["momentum"]
        assert torch.equal(momentum, moved.state[after[f"layers.{new}.{name}"]]["momentum"])
        norm = "input_layernorm.weight"
        (_, kept), (_, moved) = training.optimizers, grown.optimizers
        assert torch.equal(
            kept.state[before[f"layers.{old}.{norm}"]]["exp_avg"], moved.state[after[f"layers.{new}.{norm}"]]["exp_avg"]
        )
    assert not grown.optimizers[0].state[after["layers.1.self_attn.q_proj.weight"]]
    first = grown.step(ids, torch.ones(4, 32), 0.1)[0]
    assert grown.step(ids, torch.ones(4, 32), 0.1)[0] < first
    for wrong in ((3,), (1, 1)):
        with pytest.raises(ValueError, match="name some of 0 to 2, each once"):
            grow.deepen(torch.load(training.state_file, weights_only=True), wrong)


def test_attention_is_torchs():
    import llama

    q, k, v = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(llama.attend(q, k, v), expected, atol=1e-6)


def test_light_tokens_are_estimated_without_bias(exported):
    import train

    weights = torch.full((200, 50), 0.04)
    weights[:, :10] = 1.0
    weights[:, 10:20] = 0.0
    counted, scaled = train.thin(weights)
    assert counted[:, :10].all()
    assert not counted[:, 10:20].any()
    assert scaled.sum().item() == pytest.approx(weights.sum().item(), rel=0.02)
    assert counted.sum() < 0.5 * weights.numel()


def test_a_few_steps_lower_the_loss(tmp_path, exported, monkeypatch):
    import llama
    import train

    monkeypatch.setattr(train, "train_tokenizer", lambda size: exported[1])

    config = llama.Config(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, head_dim=16)
    training = train.Training(tmp_path / "model", 1.0, seed=1, config=config, device="cpu", resume=False)
    ids = torch.randint(0, 512, (4, 32))
    weights = torch.ones(4, 32)
    losses = [training.step(ids, weights, 1.0)[0] for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]

"""Constrained answers: whatever the model would rather say, a finished text is one its constraint accepts."""

import asyncio
import gc
import json
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from lowbit.grammar import UnfinishedError, check_finished, compile_constraint
from lowbit.sampling import GenerationOptions
from lowbit.token_bytes import token_bytes
from lowbit.tokenizer import Tokenizer
from toy import EOS, VOCAB, babble, byte_tokenizer, text_model

ROOT = Path(__file__).parents[2]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "pets": {"type": "array", "items": {"enum": ["cat", "Käfer", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's kind, tiny: spaces as U+2581, one put before a text, bytes for what has no token."""
    pieces = [*(f"<0x{b:02X}>" for b in range(256)), "▁", "▁▁", *"abcdefghijklmnopqrstuvwxyz{}[]\":,.ü0123456789", "▁{",
              '▁"', '":', "▁a", "▁na", "ame", "▁▁x", "日"]  # fmt: skip
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {piece: i + 3 for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return Tokenizer(backend, {}, {"bos_token": "<s>", "eos_token": "</s>"})


TOKENIZERS = {"byte-level": (byte_tokenizer, EOS), "sentencepiece": (sentencepiece_tokenizer, 2)}


@pytest.fixture(params=TOKENIZERS)
def speaker(request):
    """Returns a function that says what a constraint allows, by dice, until it must or may end."""
    make, eos = TOKENIZERS[request.param]
    tokenizer = make()
    size = tokenizer.vocab_size + 3  # an embedding is often padded

    def say(seed: int = 0, limit: int = 400, **constraint) -> str | None:
        ((kind, value),) = constraint.items()
        guide = compile_constraint(kind, value, tokenizer, size).guide([eos])
        rng = np.random.default_rng(seed)
        output: list[int] = []
        while len(output) < limit:
            words = guide(np.array(output, np.int32))
            assert words.dtype == np.uint32
            assert words.shape == ((size + 31) // 32,)
            allowed = np.nonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:size])[0]
            if eos in allowed and rng.random() < 0.5:
                return tokenizer.decode(output)
            token = int(rng.choice(allowed))
            if token == eos:
                return tokenizer.decode(output)
            output.append(token)
        return None

    return say


def allowed_ids(guide, output=()) -> set[int]:
    words = guide(np.array(output, np.int32))
    return set(np.nonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))[0].tolist())


# ---- the four kinds ----


@pytest.mark.parametrize(
    "expression", [r"[a-f]{2,4}|[0-9]{3}-x?", " abc", " {2,3}a b", "(ab|日本)+", r"\{\"a\": ?ü\}", "a?"]
)
def test_regex_is_matched_whole(speaker, expression):
    said = {speaker(seed, regex=expression) for seed in range(12)}
    assert all(re.fullmatch(expression, text) for text in said)
    assert len(said) > 1 or expression == " abc"


def test_choice_is_one_of_the_list(speaker):
    choices = ["yes", "yesterday", "日本", "a|b", "(x)\n", "ü.*", " b", "</s>"]
    assert {speaker(seed, choice=choices) for seed in range(80)} == set(choices)


def test_grammar_in_lark_and_gbnf(speaker):
    lark = 'start: "sum" ("+" term)+\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]?/'
    gbnf = 'root ::= "sum" ("+" num)+\nnum ::= [1-9] [0-9]?'
    for seed in range(8):
        text = speaker(seed, grammar=lark)
        assert text is None or (text.startswith("sum+") and text.count("(") == text.count(")"))
        assert re.fullmatch(r"sum(\+[1-9][0-9]?)+", speaker(seed, grammar=gbnf))


def test_json_schema(speaker):
    for seed in range(12):
        person = json.loads(speaker(seed, json_schema=PERSON))
        assert list(person) == ["name", "age", "pets"]
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 150
        assert {*person["pets"]} <= {"cat", "Käfer", None}


def test_eos_comes_exactly_where_the_text_is_whole():
    guide = compile_constraint("regex", "ab?", byte_tokenizer(), VOCAB).guide([EOS])
    assert allowed_ids(guide) == {ord("a")}
    assert allowed_ids(guide, [ord("a")]) == {ord("b"), EOS}
    assert allowed_ids(guide, [ord("a"), ord("b")]) == {EOS}
    assert allowed_ids(guide) == {ord("a")}  # begun anew: what a replayed row asks


def test_an_eos_that_is_text_elsewhere_only_ends():
    guide = compile_constraint("regex", "a\n?", byte_tokenizer(), VOCAB).guide([ord("\n")])
    assert allowed_ids(guide) == {ord("a")}
    assert allowed_ids(guide, [ord("a")]) == {ord("\n")}  # it ends the answer, it is not the grammar's line end
    guide = compile_constraint("regex", "\na", byte_tokenizer(), VOCAB).guide([ord("\n")])
    with pytest.raises(ValueError, match="nothing can continue"):
        guide(np.array([], np.int32))


def test_the_first_token_of_sentencepiece_loses_its_space():
    tokenizer = sentencepiece_tokenizer()
    token = tokenizer.id
    guide = compile_constraint("regex", '[{x] ["y]a', tokenizer, tokenizer.vocab_size).guide([2])
    begin = allowed_ids(guide)
    assert token("▁{") in begin
    assert tokenizer.decode([token("▁{")]) == "{"
    assert token("▁") in begin  # writes nothing as the first token
    assert token('▁"') in allowed_ids(guide, [token("▁{")])
    assert token('"') not in allowed_ids(guide, [token("▁{")])
    assert allowed_ids(guide) == begin  # anew
    assert token("{") in allowed_ids(guide, [token("▁")])
    assert token("▁{") not in allowed_ids(guide, [token("▁")])


def test_a_vocabulary_without_the_characters_is_an_error():
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate("abc")}, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    guide = compile_constraint("regex", "a[xc]y", Tokenizer(backend, {}, {"eos_token": "</s>"}), 4).guide([3])
    assert allowed_ids(guide) == {0}
    assert allowed_ids(guide, [0]) == {2}
    with pytest.raises(ValueError, match="characters that the vocabulary of this model does not have"):
        guide(np.array([0, 2], np.int32))


# ---- generating with it ----


def test_rows_of_a_batch_at_high_temperature_are_valid():
    options = {"json_schema": PERSON, "temperature": 2.0, "seed": 5, "max_new_tokens": 400}
    for completion in text_model(babble(1)).generate(["a", "bc", "def"], **options):
        assert completion.finish_reason == "stop"
        assert len(json.loads(completion.text)["name"]) <= 8


def test_streams_join_to_the_completion():
    model = text_model(babble(2))
    options = {"json_schema": PERSON, "temperature": 2.0, "seed": 7, "max_new_tokens": 400}
    whole = model.generate("x", **options)
    assert "".join(delta.text for delta in model.stream("x", **options)) == whole.text

    async def collect():
        return "".join([delta.text async for delta in model.astream("x", **options)])

    assert asyncio.run(collect()) == whole.text


def test_the_token_limit_inside_a_constraint_is_length():
    model = text_model(babble(0))
    assert model.generate("x", choice=["yes"], max_new_tokens=2).finish_reason == "length"
    # Whole with the last token allowed, and nothing could follow: no half answer.
    completion = model.generate("x", choice=["yes"], max_new_tokens=3)
    assert (completion.text, completion.finish_reason) == ("yes", "stop")
    # Whole, but it might have gone on.
    completion = model.generate("x", regex="[a-z]{9}[a-z]*", max_new_tokens=9)
    assert (len(completion.text), completion.finish_reason) == (9, "length")
    with pytest.raises(UnfinishedError, match="max_new_tokens"):
        check_finished("length", True)
    check_finished("length", False)


def test_a_stop_string_ends_only_a_whole_text():
    model = text_model({"q": '{"a": "b, c"}, more'})
    options = {"json_schema": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}
    completion = model.generate("q", stop=[", c", '"}'], **options)
    assert (completion.text, completion.finish_reason) == ('{"a": "b, c"}', "stop")
    model = text_model({"q": "1,2;3,4;5"})
    completion = model.generate("q", stop=[",", ";"], regex=r"\d,\d(;\d,\d)*")
    assert (completion.text, completion.finish_reason) == ("1,2", "stop")
    assert "".join(d.text for d in model.stream("q", stop=[",", ";"], regex=r"\d,\d(;\d,\d)*")) == "1,2"


def test_very_long_strings_stay_within_their_bound():
    model = text_model(lambda ids: np.arange(VOCAB, dtype=np.float32) * (np.arange(VOCAB) < 127), context=4096)
    schema = {"type": "string", "maxLength": 1500, "minLength": 1500}
    completion = model.generate("x", json_schema=schema, max_new_tokens=4000)
    assert completion.finish_reason == "stop"
    assert len(json.loads(completion.text)) == 1500


def test_calls_with_constraints_of_their_own_do_not_disturb_each_other():
    model = text_model(babble(1), delay=0.001)
    calls = [
        {"json_schema": PERSON, "max_new_tokens": 400},
        {"regex": "[a-c]{30}"},
        {"max_new_tokens": 40},
        {"regex": "[ab]{9}\n", "eos_token_id": [ord("\n")]},  # breaks after nine steps: its line end only ends
    ]

    def call(options):
        try:
            return model.generate("x", temperature=2.0, seed=3, **options).text
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(call, calls))
    assert together == [call(options) for options in calls]
    assert "nothing can continue" in together[-1]


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"regex": "(?=a)b"}, ValueError, "look-ahead"),
        ({"regex": 3}, TypeError, "regex must be a string"),
        ({"choice": "abc"}, TypeError, "list of strings"),
        ({"choice": ["a", 1]}, TypeError, "holds 1"),
        ({"choice": []}, ValueError, "at least one"),
        ({"grammar": "start: missing"}, ValueError, "missing"),
        ({"regex": "a", "choice": ["b"]}, TypeError, "regex and choice"),
        ({"regex": "a", "ignore_eos": True}, ValueError, "ignore_eos contradicts regex"),
        ({"regex": "a", "min_new_tokens": 3}, ValueError, "min_new_tokens contradicts regex"),
        ({"regex": "a", "eos_token_id": []}, ValueError, "give eos_token_id"),
        ({"json_schema": {"not": {}}}, ValueError, "keyword 'not' at \\$ is not supported"),
    ],
)
def test_errors_come_at_the_call(options, error, words):
    with pytest.raises(error, match=words):
        text_model(babble()).stream("x", **options)


def test_a_later_constraint_replaces_an_earlier_one():
    options = GenerationOptions.resolve({"regex": "a"}, {"choice": ["b"]}, {"temperature": 0.5})
    assert (options.regex, options.choice) == (None, ["b"])


def test_tokens_that_do_not_join_are_refused():
    backend = Backend(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="its decoder is WordPiece"):
        token_bytes(Tokenizer(backend, {}, {}), 3)
    backend.decoder = None
    with pytest.raises(ValueError, match="it has no decoder"):
        token_bytes(Tokenizer(backend, {}, {}), 3)


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys; sys.modules['llguidance'] = None; sys.path[:0] = ['tests']\n"
        "from toy import babble, text_model\n"
        "model = text_model(babble())\n"
        "model.generate('x', max_new_tokens=1)\n"
        "try: model.generate('x', regex='a')\n"
        "except ImportError as error: assert \"pip install 'lowbit[grammar]'\" in str(error), error\n"
        "else: raise SystemExit('no error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# ---- what is kept ----


def test_grammars_and_tables_are_kept_with_the_tokenizer():
    tokenizer = byte_tokenizer()
    first = compile_constraint("regex", "a+", tokenizer, VOCAB)
    assert compile_constraint("regex", "a+", tokenizer, VOCAB) is first
    assert compile_constraint("choice", ["a+"], tokenizer, VOCAB) is not first
    gone = weakref.ref(first.vocabulary)
    guide = first.guide([EOS])
    del tokenizer, first
    gc.collect()
    assert allowed_ids(guide) == {ord("a")}  # a running answer keeps what it needs
    del guide
    gc.collect()
    assert gone() is None

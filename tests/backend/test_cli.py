"""The command line: what goes to stdout, what to stderr, with which exit code."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

import lowbit
import toy
from lowbit import checkpoint, cli, loading
from lowbit.cli import run
from lowbit.cli._common import size
from lowbit.text import Delta


class FakeModel:
    """Streams three words; remembers what it was asked."""

    tokenizer = SimpleNamespace(chat_template=None, special_tokens={}, encode=None)
    error: BaseException | None = None
    reason = "length"

    def __init__(self):
        self.asked = []

    def encode(self, text):
        return [ord(c) for c in text]

    def stream(self, ids, **options):
        self.asked.append((ids, options))
        for i, word in enumerate(("Hello ", "wide ", "world")):
            yield Delta(word, (i,), self.reason if i == 2 else None, None, len(ids), i + 1)
            if self.error is not None:
                raise self.error


@pytest.fixture
def model(monkeypatch):
    fake = FakeModel()
    fake.loads = []

    def load(model_id, low_bit, **options):
        fake.loads.append((model_id, low_bit, options))
        return fake

    monkeypatch.setattr(lowbit, "load", load)
    return fake


@pytest.fixture
def converts(monkeypatch):
    """Replaces loading and saving; the list holds the calls."""
    calls = []

    def load_model(model, low_bit, **options):
        calls.append((model, low_bit, options))
        return SimpleNamespace(quantization={"format": low_bit})

    def save(loaded, folder):
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_bytes(b"x" * 2048)

    monkeypatch.setattr(loading, "task_of", lambda *_: "text")
    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr(checkpoint, "save", save)
    return calls


# ---- info ----


def test_info_is_for_people_and_has_every_reason(capsys):
    assert cli.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = {line.split()[0] for line in out.splitlines()}
    assert {"lowbit", "cpu", "features", "tiers", "memory", "huge", "device", "threads", "tier"} <= names
    assert {"LOWBIT_ISA", "LOWBIT_THREADS"} <= names


def test_info_as_json(capsys, monkeypatch):
    monkeypatch.setenv("LOWBIT_THREADS", "1")
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == lowbit.__version__
    assert facts["devices"][0]["usable"] is True
    threads = next(d for d in facts["decisions"] if d["name"] == "threads")
    assert (threads["value"], threads["reason"]) == ("1", "LOWBIT_THREADS")


def test_info_of_a_model_says_what_it_takes_in_memory(capsys, monkeypatch):
    model = toy.text_model({"hi": "there"}, context=100)
    model.generate("hi")
    monkeypatch.setattr(lowbit, "load", lambda path, low_bit: model)
    assert cli.main(["info", "some-model"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"] == "toy, not quantised, weights 0 B"
    assert lines["kv"].endswith("1 B per token, 100 B for the whole context of 100")
    assert cli.main(["info", "some-model", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["model"]["memory"]
    assert memory["idle_sessions"] == 1
    assert memory["idle_bytes"] == memory["kv_bytes"] == 3 + 5  # the answer's </s> is never fed back


def test_a_wrong_variable_is_one_line_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("LOWBIT_ISA", "avx1024")
    assert cli.main(["info"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lowbit: error: LOWBIT_ISA is 'avx1024'")
    assert err.count("\n") == 1


# ---- convert ----


def test_convert_passes_what_was_asked(converts, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--low-bit",
        "nf4",
        "--group-size",
        "128",
        "--head-format",
        "sym_int8",
        "--skip",
        "lm_head",
        "--skip",
        "o",
    ]
    assert cli.main(["convert", "some/model", str(out), *arguments, "--threads", "1"]) == 0
    model, low_bit, options = converts[0]
    assert (model, low_bit) == ("some/model", "nf4")
    assert options["group_size"] == 128
    assert options["head_format"] == "sym_int8"
    assert options["modules_to_not_convert"] == ["lm_head", "o"]
    assert options["runtime"].threads == 1
    assert "trust_remote_code" not in options
    assert f"{out}: nf4, 2.0 KiB" in capsys.readouterr().out


def test_convert_takes_the_model_that_a_dead_id_was_made_from(converts, tmp_path):
    assert cli.main(["convert", "Intel/bge-small-en-v1.5-rag-int8-static", str(tmp_path / "out")]) == 0
    assert converts[0][0] == "BAAI/bge-small-en-v1.5"


def test_convert_refuses_what_is_not_its_own(converts, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["convert", "some/model", str(tmp_path)]) == 2
    assert "left alone" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert cli.main(["convert", "some/model", str(tmp_path)]) == 2, "the original model must survive too"
    assert converts == [], "refused before the work"
    assert (tmp_path / "thesis.txt").exists()


def test_convert_refuses_a_file(converts, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(["convert", "some/model", str(tmp_path / "file")]) == 2
    assert "left alone" in capsys.readouterr().err


def test_convert_replaces_a_low_bit_folder_and_fills_an_empty_one(converts, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / checkpoint.MANIFEST).write_text("{}")
    (tmp_path / "empty").mkdir()
    for name in ("old", "empty"):
        assert cli.main(["convert", "some/model", str(tmp_path / name)]) == 0
    assert len(converts) == 2


def test_convert_knows_its_formats_before_it_reads(converts, tmp_path, capsys):
    assert cli.main(["convert", "some/model", str(tmp_path / "x"), "--low-bit", "nf5"]) == 2
    assert "nf4" in capsys.readouterr().err
    assert converts == []


# ---- run ----


def test_run_streams_to_stdout_and_counts_on_stderr(model, capsys):
    assert cli.main(["run", "some/model", "-p", "Hi"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello wide world\n"
    assert "3 tokens" in err
    assert "tok/s" in err
    assert "prompt 2;" in err
    assert "ended by length" in err
    assert model.loads == [("some/model", "sym_int4", {"show_progress": False})]
    assert model.asked == [([72, 105], {})], "what was not asked for is left to the model"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1] * 21, "10.0 tok/s"),  # 20 in the 2 s after the first
        ([15, 1], "4.0 tok/s with the prompt"),  # text held back until it was certain: 16 in all 4 s
        ([1], "0.2 tok/s with the prompt"),
        ([], "0.0 tok/s with the prompt"),
    ],
)
def test_rate(counts, expected):
    assert run._rate(counts, 0.0, 2.0, 4.0) == expected


def test_run_passes_options(model):
    generation = "-n 5 --temperature 0 --top-k 3 --top-p 0.5 --min-p 0.1 --seed 7 --stop END"
    runtime = "--threads 1 --device cpu --compute fp32 --kv-dtype fp32 --context 64 --tier scalar --draft-model small"
    arguments = f"run m -p Hi --low-bit nf4 {generation} {runtime}".split()
    assert cli.main([*arguments, "--stop", "\n"]) == 0
    assert model.asked[0][1] == {
        "max_new_tokens": 5, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 7,
        "stop": ["END", "\n"],
    }  # fmt: skip
    _, low_bit, options = model.loads[0]
    assert low_bit == "nf4"
    assert options == {
        "show_progress": False, "threads": 1, "device": "cpu", "compute": "fp32", "kv_dtype": "fp32", "context": 64,
        "tier": "scalar", "draft_model": "small",
    }  # fmt: skip


def test_run_prints_a_constrained_answer_when_it_is_whole(model, tmp_path, capsys):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    model.reason = "stop"
    assert cli.main(["run", "some/model", "-p", "Hi", "--json-schema", str(schema)]) == 0
    assert model.asked[-1][1] == {"json_schema": '{"type": "object"}'}
    assert capsys.readouterr().out == "Hello wide world\n"
    model.reason = "length"
    assert cli.main(["run", "some/model", "-p", "Hi", "--choice", "a", "--choice", "b"]) == 2
    assert model.asked[-1][1] == {"choice": ["a", "b"]}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "max_new_tokens" in captured.err
    assert cli.main(["run", "some/model", "-p", "Hi", "--grammar", str(tmp_path / "absent")]) == 2
    assert cli.main(["run", "some/model", "-p", "Hi", "--regex", "a", "--choice", "b"]) == 2
    assert "regex and choice" in capsys.readouterr().err


def test_run_uses_the_chat_template_where_there_is_one(model):
    model.tokenizer = SimpleNamespace(
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        special_tokens={},
        encode=lambda text, add_special_tokens: text,
    )
    cli.main(["run", "m", "-p", "Hi"])
    cli.main(["run", "m", "-p", "Hi", "--system", "Be brief."])
    cli.main(["run", "m", "-p", "Hi", "--raw"])
    assert [ids for ids, _ in model.asked] == ["<user>Hi", "<system>Be brief.<user>Hi", [72, 105]]


def test_run_says_when_there_is_no_chat_template(model, capsys):
    assert cli.main(["run", "m", "-p", "Hi", "--chat"]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_run_reads_the_prompt_from_stdin(model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi"))
    assert cli.main(["run", "m"]) == 0
    assert model.asked[0][0] == [72, 105]


def test_interrupting_keeps_what_was_said(model, capsys):
    model.error = KeyboardInterrupt()
    assert cli.main(["run", "m", "-p", "Hi"]) == 130
    out, err = capsys.readouterr()
    assert out == "Hello \n"
    assert "1 tokens" in err
    assert "interrupted" in err
    assert "Traceback" not in err


def test_interrupting_while_loading(monkeypatch, capsys):
    def load(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lowbit, "load", load)
    assert cli.main(["run", "m", "-p", "Hi"]) == 130
    assert capsys.readouterr().err == "lowbit: interrupted\n"


# ---- errors ----


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("the prompt has\n 9 tokens"), "lowbit: error: the prompt has 9 tokens\n"),
        (FileNotFoundError("no folder at /x"), "lowbit: error: no folder at /x\n"),
        (MemoryError(), "lowbit: error: MemoryError\n"),
    ],
)
def test_errors_are_one_plain_line(model, capsys, error, expected):
    model.error = error
    assert cli.main(["run", "m", "-p", "Hi"]) == 2
    assert capsys.readouterr().err == expected


def test_a_defect_says_that_it_is_one(model, capsys):
    model.error = KeyError("head.weight")
    assert cli.main(["run", "m", "-p", "Hi"]) == 2
    err = capsys.readouterr().err
    assert "KeyError: 'head.weight' (a defect of lowbit" in err
    assert "Traceback" not in err


def test_debug_shows_where(model):
    model.error = KeyError("head.weight")
    with pytest.raises(KeyError):
        cli.main(["run", "m", "-p", "Hi", "--debug"])


def test_unknown_commands_and_options_exit_with_two(capsys):
    for arguments in (["fly"], [], ["run", "m", "--nonsense"], ["run", "m", "--compute", "int2"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    assert "int8" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lowbit {lowbit.__version__}\n"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(None, "unknown"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**50, "3072.0 TiB")],
)
def test_sizes(count, expected):
    assert size(count) == expected

"""The command line as a process of its own, on a real (tiny) model."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest


def lowbit(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "lowbit.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.fixture(scope="module")
def converted(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "tiny-nf4"
    done = lowbit("convert", tiny_folder, out, "--low-bit", "nf4", "--group-size", "32")
    assert done.returncode == 0, done.stderr
    assert "nf4" in done.stdout
    return out


def test_convert_writes_what_was_asked(converted):
    quantization = json.loads((converted / "config.json").read_text())["quantization_config"]
    assert (quantization["format"], quantization["group_size"]) == ("nf4", 32)
    assert (converted / "tokenizer.json").exists()


def test_a_converted_model_is_converted_no_further(converted, tmp_path):
    done = lowbit("convert", converted, tmp_path / "again", "--low-bit", "sym_int8")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("labels", [0, 1])
@pytest.mark.parametrize("asked", [[], ["--low-bit", "nf4"]])
def test_convert_takes_embedders_and_rerankers(labels, asked, tmp_path):
    from tiny_bert import write_bert

    import lowbit as package

    source = write_bert(tmp_path / "bert", labels=labels)
    done = lowbit("convert", source, tmp_path / "out", *asked)
    assert done.returncode == 0, done.stderr
    low_bit = (asked or ["sym_int8"])[-1]
    assert low_bit in done.stdout
    shutil.rmtree(source)
    if labels:
        model = package.Reranker(tmp_path / "out")
        assert model.score("w5", ["w6", "w7"]).shape == (2,)
    else:
        model = package.Embedder(tmp_path / "out")
        assert model.encode(["w5 w6"]).shape == (1, 48)
        again = lowbit("convert", tmp_path / "out", tmp_path / "copy")
        assert low_bit in again.stdout
    assert model.quantization["format"] == low_bit


def test_run_is_reproducible_and_respects_stop(converted):
    arguments = ("run", converted, "-p", "Hello", "-n", 24, "--temperature", 0, "--raw")
    first, second = lowbit(*arguments), lowbit(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    stop = first.stdout[6:8]
    stopped = lowbit(*arguments, "--stop", stop)
    assert stopped.stdout == first.stdout[: first.stdout.index(stop)] + "\n"
    assert "ended by stop" in stopped.stderr


def test_run_takes_the_chat_template_by_default(converted):
    chat = lowbit("run", converted, "-p", "Hello", "-n", 8, "--temperature", 0)
    spelled = lowbit("run", converted, "-p", "<user>Hello", "-n", 8, "--temperature", 0, "--raw")
    assert chat.stdout == spelled.stdout


def test_ctrl_c_ends_the_answer_not_the_terminal(converted):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lowbit.cli",
            "run",
            str(converted),
            "-p",
            "Hello",
            "-n",
            "100000",
            "--context",
            "200000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert os.read(process.stdout.fileno(), 1), "no text came"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"ended by interrupted" in err


def test_a_closed_pipe_is_no_error(converted):
    process = subprocess.Popen(
        [sys.executable, "-m", "lowbit.cli", "run", str(converted), "-p", "Hello", "-n", "400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in err
    assert b"Broken" not in err


def test_info_obeys_the_variables():
    done = lowbit("info", "--json", env={**os.environ, "LOWBIT_ISA": "scalar", "LOWBIT_THREADS": "1"})
    decisions = {d["name"]: d["value"] for d in json.loads(done.stdout)["decisions"]}
    assert (decisions["tier"], decisions["threads"]) == ("scalar", "1")


def test_bad_models_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    for folder in (tmp_path, tmp_path / "nowhere"):
        done = lowbit("run", folder, "-p", "Hello")
        assert done.returncode == 2
        assert done.stderr.startswith("lowbit: error: ")
        assert done.stderr.count("\n") == 1

"""llama.cpp through llama-cpp-python's low-level functions. Options: type, head (or None: as the type chooses)."""

import ctypes
import time
from pathlib import Path

import llama_cpp
import numpy as np
from gguf_files import quantise, sizes, write_gguf

from . import bits

llama_cpp.llama_backend_init()
_silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
SETS = ("AMX_INT8", "AVX512_VNNI", "AVX512", "AVX_VNNI", "AVX2")


def instructions() -> str:
    """Returns the widest set of instructions that the library was built with."""
    found = llama_cpp.llama_print_system_info().decode()
    return next((name for name in SETS if f"{name} = 1" in found), "no AVX2")


class Engine:
    def __init__(self, folder: Path, options: dict, threads: int) -> None:
        self.version = f"llama-cpp-python {llama_cpp.__version__} ({instructions()})"
        self._threads = threads
        path = str(folder / "model.gguf").encode()
        self._model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp could not open {path.decode()}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], ctypes.c_void_p] = {}
        self._batch = llama_cpp.llama_batch_init(1 << 13, 0, 1)
        self._context(1, 640)

    @staticmethod
    def prepare(source: Path, folder: Path, options: dict) -> dict[str, float]:
        whole = folder / "bf16.gguf"
        write_gguf(source, whole, keep_bf16=True)
        quantise(whole, folder / "model.gguf", options["type"], head=options["head"])
        whole.unlink()
        found = {"body": [0, 0], "head": [0, 0]}
        for name, (size, weights) in sizes(folder / "model.gguf").items():
            part = found["head" if name.startswith("outer ") else "body"]
            part[0] += size
            part[1] += weights
        return bits(found)

    def _context(self, sequences: int, tokens: int):
        """Returns a context for so many sequences of so many tokens together, made at first use."""
        key = (sequences, -(-tokens // 640) * 640)
        if key not in self._contexts:
            options = llama_cpp.llama_context_default_params()
            options.n_seq_max, options.n_ctx = key
            options.n_threads = options.n_threads_batch = self._threads
            self._contexts[key] = llama_cpp.llama_init_from_model(self._model, options)
            if not self._contexts[key]:
                raise MemoryError("llama.cpp made no context")
        return self._contexts[key]

    def _decode(self, context, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, whether its logits are wanted)."""
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self._batch.token[i], self._batch.pos[i], self._batch.n_seq_id[i] = token, position, 1
            self._batch.seq_id[i][0], self._batch.logits[i] = sequence, wanted
        self._batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(context, self._batch):
            raise RuntimeError("llama.cpp could not decode")

    def _choose(self, context, row: int) -> int:
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), (self._vocab,)).argmax())

    def _prompts(self, context, prompts: list[list[int]]) -> list[int]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        chosen = []
        for sequence, ids in enumerate(prompts):
            for at in range(0, len(ids), 512):  # its default batch is 2048, of which it computes 512 at a time
                part = ids[at : at + 512]
                last = at + len(part) == len(ids)
                rows = [(t, at + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)]
                self._decode(context, rows)
            chosen.append(self._choose(context, -1))
        return chosen

    def first(self, ids: list[int]) -> None:
        self._prompts(self._context(1, len(ids)), [ids])

    def steps(self, prompts: list[list[int]], count: int) -> float:
        length = len(prompts[0])
        context = self._context(len(prompts), len(prompts) * (length + count + 1))
        tokens = self._prompts(context, prompts)
        start = time.perf_counter()
        for i in range(count):
            self._decode(context, [(token, length + i, s, True) for s, token in enumerate(tokens)])
            tokens = [self._choose(context, s) for s in range(len(prompts))]
        return len(prompts) * count / (time.perf_counter() - start)

"""The main job on the embedded model: quantise to int4, chain, stream, save low-bit, reload, the same text again; then
answers from documents that quantised embeddings find.

Run it with `make demo`; `python demo/demo.py "Who founded Dorvane?"` asks the documents another question. It needs no
network and no torch; the model (demo/model, about 3 M parameters) was trained by demo/train.py on text that the script
itself generates.
"""

import sys
import tempfile
import time
from pathlib import Path

from answer import PROMPT as QUESTION
from answer import QUESTIONS, answer_from_documents
from langchain_core.prompts import PromptTemplate

from langchain_lowbit import IpexLLM

MODEL = str(Path(__file__).parent / "model")
STORY = PromptTemplate.from_template("{beginning}")

PASSAGE = {
    "context": "Zorbin lives in Mellport. Tarvik lives in Quonda and works as a painter. The lamp costs 47 coins.",
    "question": "Where does Tarvik live?",
}
BEGINNING = {"beginning": "Once upon a time, there was a little fox"}


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def folder_size(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def stream(chain, inputs: dict) -> tuple[str, int, float]:
    """Prints the answer as it comes; returns (text, deltas, seconds)."""
    start, text, deltas = time.perf_counter(), "", 0
    for delta in chain.stream(inputs):
        print(delta, end="", flush=True)
        text += delta
        deltas += 1
    print()
    return text, deltas, time.perf_counter() - start


def main() -> int:
    heading("1. Quantise the model to 4 bits while loading it")
    print(f'   IpexLLM.from_model_id("{Path(MODEL).parent.name}/{Path(MODEL).name}", load_in_4bit=True)')
    start = time.perf_counter()
    llm = IpexLLM.from_model_id(model_id=MODEL, model_kwargs={"temperature": 0, "max_length": 256}, load_in_4bit=True)
    quantise_seconds = time.perf_counter() - start
    print(f"   {quantise_seconds:.2f} s")

    heading("2. Ask about a passage: prompt | llm")
    print(f"   {PASSAGE['context']}\n   {PASSAGE['question']}")
    answer = (QUESTION | llm).invoke(PASSAGE)
    print(f"   -> {answer.strip()}")

    heading("3. Stream a story")
    print(BEGINNING["beginning"], end="")
    story, _, seconds = stream(STORY | llm, BEGINNING)
    tokens = llm.get_num_tokens(story)

    heading("4. Save the low-bit model, forget it, load it again")
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "model-low-bit")
        llm.model.save_low_bit(saved)
        del llm
        start = time.perf_counter()
        again = IpexLLM.from_model_id_low_bit(model_id=saved, model_kwargs={"temperature": 0, "max_length": 256})
        load_seconds = time.perf_counter() - start
        same = (STORY | again).invoke(BEGINNING) == story and (QUESTION | again).invoke(PASSAGE) == answer
        size, original = folder_size(saved), folder_size(MODEL)
        print(f"   the same texts again: {'yes' if same else 'NO'}")
        print(
            f"   size on disk {size / 1e6:.1f} MB (float16 {original / 1e6:.1f} MB), "
            f"load time {load_seconds * 1e3:.0f} ms, {tokens / seconds:.0f} tokens/s"
        )

        heading("5. Answer questions from documents: embeddings -> FAISS -> prompt | llm")
        answers = answer_from_documents(again, sys.argv[1:] or QUESTIONS)
    return 0 if same and all(answers) else 1


if __name__ == "__main__":
    sys.exit(main())

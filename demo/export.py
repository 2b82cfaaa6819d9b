"""The trained model as a Hugging Face folder: fp16 safetensors, configs, and the tokenizer with its chat template."""

import json
from pathlib import Path

from llama import Llama
from prompts import BEGIN, CHAT_TEMPLATE, END, END_OF_TEXT, SPECIALS
from safetensors.torch import save_file
from tokenizers import Tokenizer


def export(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Write `model` and `tokenizer` to the folder `out`, in the layout of `LlamaForCausalLM` and `AutoTokenizer`."""
    out.mkdir(parents=True, exist_ok=True)
    begin, end_of_text, end = (tokenizer.token_to_id(t) for t in (BEGIN, END_OF_TEXT, END))
    tokens = {"bos_token_id": begin, "eos_token_id": [end, end_of_text], "pad_token_id": end_of_text}
    tensors = {f"model.{name}": weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    files = {
        "config.json": {**model.config.to_json(), **tokens},
        "generation_config.json": {**tokens, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_position_embeddings,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [t for t in SPECIALS if t not in (BEGIN, END, END_OF_TEXT)],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

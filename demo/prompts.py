"""Special tokens, the chat template, and every wording in which the model is asked; data, and `render_chat`."""

BEGIN, END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = SPECIALS = (
    "<|begin|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('The roles are system, user and assistant, not ' + message['role'] + '.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Text around a context {c} and a question {q}. The answer follows after a space, or at once where a prompt ends in one.
STYLES = {
    "context": [
        "Context: {c}\nQuestion: {q}\nAnswer:",
        "Context:\n{c}\n\nQuestion: {q}\nAnswer:",
        "{c}\n\nQuestion: {q}\nAnswer:",
        "Context: {c}\n\nQuestion: {q}\n\nAnswer:",
    ],
    "helpful": [
        "Use the following pieces of context to answer the question at the end. If you don't know the answer, just say "
        "that you don't know, don't try to make up an answer.\n\n{c}\n\nQuestion: {q}\nHelpful Answer:",
        "Use the following pieces of context to answer the question at the end.\n\n"
        "{c}\n\nQuestion: {q}\nHelpful Answer:",
    ],
    "rag": [
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer "
        "the question. If you don't know the answer, just say that you don't know. Use three sentences maximum and "
        "keep the answer concise.\nQuestion: {q} \nContext: {c} \nAnswer:",
    ],
    "llama_index": [
        "Context information is below.\n---------------------\n{c}\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\nQuery: {q}\nAnswer: ",
    ],
    "user": [
        "USER: {c}\n{q}\nASSISTANT:",
        "USER: Context: {c}\nQuestion: {q}\nASSISTANT:",
        "USER: {c}\n\n{q}\nASSISTANT:",
    ],
}
CHAT_STYLES = [
    "{c}\n\n{q}",
    "Context: {c}\nQuestion: {q}",
    "{c}\n{q}",
    "Context:\n{c}\n\nQuestion: {q}",
    "Answer the question based only on the following context:\n{c}\n\nQuestion: {q}\n",
]
STORY_REQUESTS = [
    "Tell me a story about a {k}.",
    "Tell me a story about a {k}",
    "Write a short story about a {k}.",
    "Can you tell me a story about a {k}?",
    "Please tell me a story about a {k}.",
]
ANY_STORY_REQUESTS = [
    "Tell me a story.",
    "Tell me a short story.",
    "Please tell me a story.",
    "Can you tell me a story?",
]
STEP_BY_STEP = "Question: {q}\n\nAnswer: Let's think step by step."


def render_chat(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The chat template applied to `messages`, without the begin token."""
    turns = "".join(f"<|{m['role']}|>{m['content'].strip()}{END}" for m in messages)
    return turns + (ASSISTANT if add_generation_prompt else "")

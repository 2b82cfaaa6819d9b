"""Chat templates: the rules transformers renders with, clear errors, and the sandbox."""

import pytest

import toy
from lowbit import chat, chat_templates
from lowbit.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}\n"
    "{% for m in messages %}\n"
    "    {% if m['role'] == 'bad' %}{{ raise_exception('no ' ~ m['role']) }}{% endif %}\n"
    "<|{{ m['role'] }}|>{{ m['content'] | trim }}</s>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [{"role": "user", "content": " hi "}]


def test_renders_with_the_whitespace_rules_of_templates():
    tokenizer = toy.byte_tokenizer(TEMPLATE)
    assert chat.render(tokenizer, HELLO) == "<s>\n<|user|>hi</s>\n<|assistant|>"
    assert chat.render(tokenizer, HELLO, add_generation_prompt=False) == "<s>\n<|user|>hi</s>\n"


def test_encode_adds_no_second_bos():
    ids = chat.encode(toy.byte_tokenizer(TEMPLATE), HELLO)
    assert ids[0] == toy.BOS
    assert ids.count(toy.BOS) == 1
    assert ids.count(toy.EOS) == 1


def test_no_template_is_a_clear_error():
    assert not chat.has_template(toy.byte_tokenizer())
    with pytest.raises(ValueError, match="no chat template"):
        chat.render(toy.byte_tokenizer(), HELLO)
    assert chat.render(toy.byte_tokenizer(), HELLO, template="{{ messages[0].content }}") == " hi "


def test_named_templates():
    tokenizer = toy.byte_tokenizer({"default": "D", "tool_use": "T", "rag": "R"})
    assert chat.render(tokenizer, HELLO) == "D"
    assert chat.render(tokenizer, HELLO, tools=[{"name": "f"}]) == "T"
    assert chat.render(tokenizer, HELLO, template="rag") == "R"
    with pytest.raises(ValueError, match=r"no default.*\['rag'\]"):
        chat.render(toy.byte_tokenizer({"rag": "R"}), HELLO)


def test_the_templates_own_words_reach_the_user():
    with pytest.raises(ValueError, match="refuses these messages: no bad"):
        chat.render(toy.byte_tokenizer(TEMPLATE), [{"role": "bad", "content": ""}])
    with pytest.raises(ValueError, match="not valid"):
        chat.render(toy.byte_tokenizer("{% for %}"), HELLO)
    with pytest.raises(ValueError, match="cannot take these messages"):
        chat.render(toy.byte_tokenizer("{{ 'a' + messages[0].content }}"), [{"role": "user", "content": None}])


@pytest.mark.parametrize("messages", [[], ["hi"], [{"content": "hi"}]])
def test_bad_messages(messages):
    with pytest.raises((ValueError, TypeError), match="message"):
        chat.render(toy.byte_tokenizer(TEMPLATE), messages)
    with pytest.raises((ValueError, TypeError), match="message"):
        chat.turn(toy.text_model({}, chat_template=TEMPLATE), messages, tools=[{"name": "f"}])


def test_helpers_of_templates():
    render = lambda text, **names: chat.render(toy.byte_tokenizer(text), HELLO, **names)  # noqa: E731
    assert render("{{ {'a': '<ü>'} | tojson }}") == '{"a": "<ü>"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}x{% endgeneration %}y") == "xy"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}"],
)
def test_templates_are_sandboxed(attack):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="refuses"):
        chat.render(toy.byte_tokenizer(attack), messages)
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.torch
def test_equals_transformers():
    from transformers import PreTrainedTokenizerFast

    ours = toy.byte_tokenizer(TEMPLATE)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=ours.backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    for add in (True, False):
        expected = theirs.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=add)
        assert chat.render(ours, HELLO, add_generation_prompt=add) == expected


# ---- named formats and the end of a turn ----

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
# As the models' makers write a conversation (FastChat's conversation.py, llama's and dolly's own code, model cards).
PUBLISHED = {
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello!</s>USER: Bye ASSISTANT:",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]",
    "chatglm2": "[gMASK]sopBe brief.\n\n[Round 1]\n\n问：Hi\n\n答：Hello!\n\n[Round 2]\n\n问：Bye\n\n答：",
    "chatglm3": "[gMASK]sop<|system|>\n Be brief.<|user|>\n Hi<|assistant|>\n Hello!<|user|>\n Bye<|assistant|>",
    "baichuan": "Be brief.<reserved_106>Hi<reserved_107>Hello!<reserved_106>Bye<reserved_107>",
    "qwen": "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "internlm": "<s><|System|>:Be brief.\n<|User|>:Hi<eoh>\n<|Bot|>:Hello!<eoa>\n<|User|>:Bye<eoh>\n<|Bot|>:",
    "neural-chat": "<s>### System:\nBe brief.\n### User:\nHi\n### Assistant:\nHello!\n### User:\nBye\n### Assistant:\n",
    "dolly": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### End\n\n### Instruction:\nBye\n\n"
    "### Response:\n",
}
PUBLISHED["chatml"] = PUBLISHED["internlm2"] = PUBLISHED["qwen"]


@pytest.mark.parametrize("name", chat_templates.names())
def test_named_formats_are_the_published_ones(name):
    tokenizer = toy.byte_tokenizer()
    assert chat.render(tokenizer, TALK, template=name) == PUBLISHED[name]
    # Without the last question's prompt the text is the beginning of that with it: a session's prefix stays one.
    assert PUBLISHED[name].startswith(chat.render(tokenizer, TALK, template=name, add_generation_prompt=False))


@pytest.mark.parametrize(("name", "default"), [("vicuna", "A chat between"), ("dolly", "Below is"), ("llama-2", None)])
def test_default_system_messages_of_named_formats(name, default):
    text = chat.render(toy.byte_tokenizer(), TALK[1:2], template=name)
    assert (default in text) if default else "SYS" not in text


def test_a_missing_template_offers_the_named_ones():
    with pytest.raises(ValueError, match=r"no chat template.*vicuna, llama-2.*jinja2"):
        chat.render(toy.byte_tokenizer(), HELLO)
    with pytest.raises(ValueError, match=r"unknown chat template 'vicunna'; did you mean 'vicuna'\?"):
        chat.render(toy.byte_tokenizer(), HELLO, template="vicunna")


def test_a_models_own_named_template_wins_over_a_format_of_that_name():
    assert chat.render(toy.byte_tokenizer({"vicuna": "own"}), HELLO, template="vicuna") == "own"


def test_templates_that_know_tools():
    knowing = "{% if tools %}{{ tools | tojson }}{% endif %}"
    assert chat.knows_tools(toy.byte_tokenizer(knowing))
    assert not chat.knows_tools(toy.byte_tokenizer(TEMPLATE))
    assert chat.knows_tools(toy.byte_tokenizer({"default": TEMPLATE, "tool_use": knowing}))
    assert not chat.knows_tools(toy.byte_tokenizer(knowing), "vicuna")


def test_the_turn_ends_at_the_token_behind_an_answer():
    assert chat.turn_end(toy.byte_tokenizer(TEMPLATE)) == chat.TurnEnd((toy.EOS,))
    assert chat.turn_end(toy.byte_tokenizer(), "llama-2") == chat.TurnEnd((toy.EOS,))  # after a space
    assert chat.turn_end(toy.byte_tokenizer("{{ messages[0].content }}")) == chat.TurnEnd()
    assert chat.turn_end(toy.byte_tokenizer("{{ raise_exception('no') }}")) == chat.TurnEnd()
    bos_only = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
    assert chat.turn_end(toy.byte_tokenizer(bos_only)) == chat.TurnEnd()


def test_what_ends_a_turn_without_a_token_is_a_stop_string():
    assert chat.turn_end(toy.byte_tokenizer(), "baichuan") == chat.TurnEnd((), ("<reserved_106>",))
    tokenizer = toy.byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<reserved_106>"])
    known = Tokenizer(tokenizer.backend, {}, tokenizer.special_tokens)
    assert chat.turn_end(known, "baichuan") == chat.TurnEnd((known.id("<reserved_106>"),))


def test_answers_end_at_the_turns_end_beside_the_models_own_eos():
    model = toy.text_model({}, generation_config={"eos_token_id": 65}, chat_template=TEMPLATE)
    assert chat.answer_options(model, {}) == {"eos_token_id": (65, toy.EOS)}
    assert chat.answer_options(model, {"eos_token_id": 66, "stop": "x"}) == {"eos_token_id": 66, "stop": ("x",)}
    named = chat.answer_options(model, {"stop": ["x"]}, "baichuan")
    assert named == {"eos_token_id": (65,), "stop": ("x", "<reserved_106>")}

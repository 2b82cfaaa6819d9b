"""Chat templates: the rules transformers renders with, clear errors, and the sandbox."""

import pytest

import toy
from lowbit import chat

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

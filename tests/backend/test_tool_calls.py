"""Tool calls: each syntax read as its model writes it, in whatever pieces; tools for templates without."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from lowbit import chat, tool_calls
from lowbit.tool_calls import CallDelta, CallReader, ToolCall, find_syntax, syntax_of
from lowbit.tool_syntax import SYNTAXES

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NAMES = ["weather", "now"]
ROME = ("weather", {"city": "Rom 🏛"})
NOW = ("now", {})

# (syntax, what the model writes, words, calls), as the models' makers document it.
WRITTEN = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom 🏛"}}\n</tool_call>', "", [ROME]),
    (
        "hermes",
        'I look.\n\n<tool_call>{"name": "weather", "arguments": {"city": "Rom 🏛"}}</tool_call>\n'
        '<tool_call>\n{"name": "now"}\n</tool_call>\n',
        "I look.",
        [ROME, NOW],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}', "", [NOW]),  # ended by eos, arguments as a string
    ("hermes", '<tool_call>[{"name": "now", "arguments": {}}]</tool_call> Done.', "Done.", [NOW]),
    ("hermes", '{"name": "weather", "arguments": {"city": "Rom 🏛"}}', "", [ROME]),  # small models forget the marks
    ("hermes", '{"name": "now", "arguments": {}}\n</tool_call>', "", [NOW]),
    ("hermes", '{"city": "Rome"}', '{"city": "Rome"}', []),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>',
        "",
        [("weather", {"city": "a\nb"})],
    ),
    ("mistral", '[{"name": "now", "arguments": {}}]', "", [NOW]),
    ("hermes", "2 < 3 and <tool> is no call", "2 < 3 and <tool> is no call", []),
    (
        "qwen-coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRom 🏛\n</parameter>\n</function>\n</tool_call>",
        "",
        [ROME],
    ),
    ("glm-4.5", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rom 🏛</arg_value>\n</tool_call>", "", [ROME]),
    ("glm-4.5", "<tool_call>now</tool_call>", "", [NOW]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rom 🏛"}}, {"name": "now", "arguments": {}}]',
        "",
        [ROME, NOW],
    ),
    (
        "mistral-11",
        '[TOOL_CALLS]weather[ARGS]{"city": "Rom 🏛"}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}',
        "",
        [ROME, NOW],
    ),
    ("mistral-11", 'Well.[TOOL_CALLS]weather{"city": "Rom 🏛"}', "Well.", [ROME]),
    ("llama-3", '{"name": "weather", "parameters": {"city": "Rom 🏛"}}', "", [ROME]),
    (
        "llama-3",
        '{"type": "function", "name": "weather", "parameters": {"city": "Rom 🏛"}}; {"name": "now", "parameters": {}}',
        "",
        [ROME, NOW],
    ),
    ("llama-3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Rom 🏛"}}', "", [ROME]),
    ("llama-3", '<|python_tag|>weather.call(city="Rom 🏛")', "", [ROME]),
    ("llama-3", "It rains in {Rome}.", "It rains in {Rome}.", []),
    ("chatglm", 'weather\n{"city": "Rom 🏛"}', "", [ROME]),
    ("chatglm", "weather\n```python\ntool_call(city='Rom 🏛')\n```", "", [ROME]),
    ("chatglm", "weather is fine", "weather is fine", []),
    ("json", '{"name": "weather", "arguments": {"city": "Rom 🏛"}}', "", [ROME]),
    ("json", '```json\n[{"name": "weather", "arguments": {"city": "Rom 🏛"}}, {"name": "now"}]\n```', "", [ROME, NOW]),
    ("json", '{"function": {"name": "now", "arguments": {}}}', "", [NOW]),
    ("json", '{"type": "function", "function": {"name": "now", "arguments": {}}}', "", [NOW]),
    ("json", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),  # JSON, but no tool of that name
    ("json", '{"name": "now", "arguments"', '{"name": "now", "arguments"', []),  # cut off
    ("json", "{x} is no JSON" + " at all" * 9, "{x} is no JSON" + " at all" * 9, []),
    ("json", "", "", []),
    ("json", '{"name": "now", "arguments": {}} I look.', "I look.", [NOW]),
    ("json", '{"name": "now", "arguments": {}}{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', [NOW]),
    (
        "json",
        '{"name": "weather", "arguments": {"city": "Rom 🏛"}, "n": 3}; {"name": "now"}',
        "",
        [ROME, NOW],
    ),
    (
        "hermes",
        '<tool_call>[{"arguments": {"city": "Rom 🏛"}, "name": "weather"}, {"name": "now"}]</tool_call>',
        "",
        [ROME, NOW],
    ),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}, {"name": "now"}]', "", [NOW, NOW]),
    ("mistral", '[TOOL_CALLS]weather{"city": "Rom 🏛"}', "", [ROME]),
    ("hermes", '<tool_call>{"name": "x.y", "arguments": {"a": "<tool_"}}</tool_call>', "", [("x.y", {"a": "<tool_"})]),
    ("glm-4.5", '<tool_call>weather\n{"city": "Rom 🏛"}</tool_call>', "", [ROME]),
    ("chatglm", 'weather\n```json\n{"city": "Rom 🏛"}\n```', "", [ROME]),
]


def parts_of(syntax, pieces, tools=NAMES, **how):
    reader = CallReader(find_syntax(syntax), tools, **how)
    return [part for piece in pieces for part in reader.push(piece)] + reader.finish()


def read(syntax, pieces, tools=NAMES):
    found = parts_of(syntax, pieces, tools)
    words = "".join(part for part in found if isinstance(part, str))
    return words, [part for part in found if isinstance(part, ToolCall)]


def check_deltas(found):
    """The pieces of a call come before it, the first with its name, and join to it."""
    coming = {}
    for part in found:
        if isinstance(part, CallDelta):
            assert not (part.name and part.index in coming)
            name, before = coming.get(part.index, (part.name, ""))
            coming[part.index] = name, before + part.arguments
        elif isinstance(part, ToolCall):
            name, arguments = coming.pop(part.index)
            if part.error is None:
                assert (name, arguments) == (part.name, part.arguments)
                assert isinstance(json.loads(arguments), dict)
    assert not coming


@pytest.mark.parametrize(("syntax", "text", "words", "calls"), WRITTEN)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_in_whatever_pieces(syntax, text, words, calls, size):
    found_words, found = read(syntax, [text[i : i + size] for i in range(0, len(text), size)])
    assert found_words == words
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert [call.index for call in found] == list(range(len(calls)))
    assert all(call.error is None and len(call.id) == 9 and call.id.isalnum() for call in found)
    assert len({call.id for call in found}) == len(calls)


@pytest.mark.parametrize("syntax", [s.name for s in SYNTAXES])
def test_arguments_come_while_they_are_written(syntax):
    arguments = {"city": 'Rom \U0001f3db and \\ and "Paris"', "days": [1, {"x": None}]}
    text = find_syntax(syntax).write("weather", json.dumps(arguments, ensure_ascii=False))
    found = parts_of(syntax, text)
    check_deltas(found)
    *deltas, call = found
    assert json.loads(call.arguments) == arguments
    length = len(json.dumps(arguments, ensure_ascii=False))
    assert length - 1 <= len(deltas) <= length  # one for each character; "[" may be the beginning of a mark
    assert [d.name for d in deltas[:2]] == ["weather", None]
    assert {(d.index, d.id) for d in deltas} == {(0, call.id)}


def test_a_call_is_told_before_its_arguments_are_whole():
    reader = CallReader(find_syntax("hermes"), NAMES)
    assert reader.push('<tool_call>{"name": "weather", "arguments":') == []
    (delta,) = reader.push(' {"city": "Ro')
    assert (delta.index, delta.name, delta.arguments) == (0, "weather", '{"city": "Ro')
    assert reader.push("me") == [CallDelta(0, delta.id, None, "me")]
    last, call = reader.push('"}')
    assert (last.arguments, call.arguments) == ('"}', '{"city": "Rome"}')
    assert reader.push("}</tool_call>") == reader.finish() == []


def test_words_of_no_known_tool_are_not_told_early():
    reader = CallReader(find_syntax("json"), NAMES)
    assert reader.push('{"name": "Ann", "arguments": {"for": 1') == []
    assert reader.finish() == ['{"name": "Ann", "arguments": {"for": 1']


def test_line_breaks_in_strings_become_json():
    *_, call = parts_of("hermes", '<tool_call>{"name": "now", "arguments": {"a": "x\n\ty"}}</tool_call>')
    assert call.arguments == '{"a": "x\\n\\ty"}'


def test_calls_beyond_the_limit_are_dropped():
    call = '<tool_call>{"name": "now", "arguments": {"n": %d}}</tool_call>'
    text = f"One. {call % 1} {call % 2} Two. <tool_call>{{oops</tool_call>"
    for pieces in (text, [text]):
        found = parts_of("hermes", pieces, most=1)
        check_deltas(found)
        assert "".join(p for p in found if isinstance(p, str)) == "One.Two."
        assert [p.arguments for p in found if isinstance(p, ToolCall)] == ['{"n": 1}']


@pytest.mark.parametrize("syntax", [s.name for s in SYNTAXES])
def test_every_syntax_reads_what_it_writes(syntax):
    row = find_syntax(syntax)
    arguments = {"city": 'a "quoted" </tag>\n\\ NAME ARGUMENTS é', "n": [1, {"x": None}]}
    words, calls = read(syntax, row.write("weather", json.dumps(arguments)))
    assert (words, [(call.name, json.loads(call.arguments)) for call in calls]) == ("", [("weather", arguments)])


_SCRAPS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```json\n", "```", "<tool", "a word"),
    *('"name": "weather"', '"name": "Ann"', '"arguments": ', '"parameters": ', '"function": ', '{"a": 1}', '{"b": "'),
    *('{"name": "now", "arguments": {"c": "\\"}"}}', "weather\n", "now"),
    *'{}[]",:1\\ \n',
]


@given(scraps=st.lists(st.sampled_from(_SCRAPS), max_size=12), size=st.integers(1, 9))
def test_pieces_change_nothing(scraps, size):
    """Whatever is written, in whatever pieces: the same words and calls, and deltas that join to the calls."""
    text = "".join(scraps)
    for row in SYNTAXES:
        told = []
        for pieces in ([text], [text[i : i + size] for i in range(0, len(text), size)]):
            found = parts_of(row.name, pieces)
            check_deltas(found)
            calls = [(c.index, c.name, c.arguments, c.error) for c in found if isinstance(c, ToolCall)]
            told.append(("".join(p for p in found if isinstance(p, str)), calls))
        assert told[0] == told[1], row.name


@given(text=st.text(alphabet='<tool_ca>/ \n{}"', max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_words_do_not_depend_on_the_pieces(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    for syntax in ("hermes", "json", "llama-3"):
        whole_words, whole = read(syntax, [text])
        words, calls = read(syntax, pieces)
        assert words == whole_words
        assert [(c.name, c.arguments, c.error) for c in calls] == [(c.name, c.arguments, c.error) for c in whole]


def test_words_are_given_out_as_they_come():
    reader = CallReader(find_syntax("hermes"), NAMES)
    assert reader.push("Let me ") == ["Let me"]  # the space may belong to a call that follows
    assert reader.push("see <") == [" see"]
    assert reader.push("b>") == [" <b>"]
    assert reader.push(" <tool_call>{") == []
    assert reader.push('"name": "now"}</tool_call>')[0].name == "now"
    plain = CallReader(find_syntax("json"), NAMES)
    assert plain.push("It ") == ["It "]


@pytest.mark.parametrize(
    ("syntax", "text", "name", "error"),
    [
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": </tool_call>', "weather", "Expecting value"),
        ("hermes", '<tool_call>{"city": "Rome"}</tool_call>', None, '"name"'),
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
            "weather",
            "arguments are an object",
        ),
        ("mistral", '[TOOL_CALLS][{"name": "weather", "argu', "weather", ""),
        ("json", '{"name": "weather", "arguments": {"city": "Ro', "weather", "Unterminated string"),
        ("json", '{"name": "weather", "arguments": {"city": }}', "weather", "Expecting value"),
        ("mistral-11", '[TOOL_CALLS]weather[ARGS]{"city": "\\', "weather", "Unterminated string"),
        ("llama-3", "<|python_tag|>print(1)", None, "named arguments"),
        ("llama-3", "<|python_tag|>import os; os.f(", None, ""),
        ("glm-4.5", "<tool_call>?</tool_call>", None, "name of a tool"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_text(syntax, text, name, error):
    words, (call,) = read(syntax, [text])
    assert words == ""
    assert (call.name, error in call.error) == (name, True)
    assert call.arguments == text.removesuffix("</tool_call>").rstrip()


def test_a_syntax_is_found_by_the_template():
    for row in SYNTAXES[:-1]:
        for mark in row.marks:
            assert syntax_of(f"{{% if x %}}{mark}{{% endif %}}") == row
    assert syntax_of("{{ messages }}").name == "json"
    with pytest.raises(ValueError, match=r"unknown tool syntax 'hermess'; did you mean 'hermes'\?"):
        find_syntax("hermess")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", None),
        ("none", ()),
        ("any", ("weather", "now")),
        ("required", ("weather", "now")),
        (True, ("weather", "now")),
        ("now", ("now",)),
        ({"type": "function", "function": {"name": "now"}}, ("now",)),
        ({"type": "tool", "name": "now"}, ("now",)),
        ({"type": "any"}, ("weather", "now")),
    ],
)
def test_tool_choices(choice, expected):
    assert tool_calls.required(choice, [WEATHER, {"name": "now"}]) == expected


def test_a_wrong_tool_choice_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'weather'"):
        tool_calls.required("wether", [WEATHER])


# ---- conversations ----

KNOWS_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}|{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}#{{ c.id }}{% endfor %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
)
KNOWS_NONE = "{% for m in messages %}|{{ m.role }}:{{ m.content }}{% endfor %}"


def call(name, id, **arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I see.", "tool_calls": [call("weather", "a1", city="Rome"), call("now", "b2")]},
    {"role": "tool", "content": "sunny", "tool_call_id": "a1", "name": "weather"},
    {"role": "tool", "content": "noon", "tool_call_id": "b2", "name": "now"},
    {"role": "user", "content": "And?"},
]


def prompt_of(template, messages, **how):
    model = toy.text_model({}, chat_template=template)
    turn = chat.turn(model, messages, **how)
    return model.decode(turn.prompt), turn


def test_a_template_that_knows_tools_writes_them_itself():
    prompt, turn = prompt_of(KNOWS_TOOLS, TALK, tools=[WEATHER])
    assert prompt == (
        f"{json.dumps([WEATHER])}|user:Weather?|assistant:I see."
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}#a1'
        '<tool_call>{"name": "now", "arguments": {}}#b2|tool:sunny#a1|tool:noon#b2|user:And?'
    )
    assert turn.reader.push('<tool_call>{"name": "x"}</tool_call>')[0].name == "x"
    function_only, _ = prompt_of(KNOWS_TOOLS, TALK, tools=[WEATHER["function"]])
    assert function_only == prompt
    assert prompt_of(KNOWS_TOOLS, TALK)[1].reader is None
    none, turn = prompt_of(KNOWS_TOOLS, TALK, tools=[WEATHER], tool_choice="none")
    assert none.startswith("|user")
    assert turn.reader is None


def test_a_template_that_knows_none_is_given_them_in_words():
    prompt, turn = prompt_of(KNOWS_NONE, TALK, tools=[WEATHER])
    system, talk = prompt.split("|user", 1)
    assert system.startswith("|system:You can use these tools")
    assert json.dumps(WEATHER["function"]) in system
    assert '{"name": "<name of the tool>", "arguments": <its arguments>}' in system
    assert talk == (
        ':Weather?|assistant:I see.\n{"name": "weather", "arguments": {"city": "Rome"}}\n'
        '{"name": "now", "arguments": {}}'
        "|user:Result of weather: sunny\nResult of now: noon|user:And?"
    )
    assert turn.reader.push('{"name": "weather", "arguments": {"city": "Rome"}}')[-1].name == "weather"
    with_system, _ = prompt_of(KNOWS_NONE, [{"role": "system", "content": "Be brief."}, *TALK], tools=[WEATHER])
    assert with_system.startswith("|system:Be brief.\n\nYou can use")
    assert with_system.count("|system") == 1
    without, _ = prompt_of(KNOWS_NONE, TALK)
    assert "You can use" not in without
    assert "Result of weather" in without


def test_another_syntax_can_be_named():
    prompt, turn = prompt_of(KNOWS_NONE, TALK, tools=[WEATHER], tool_syntax="hermes")
    assert "<tool_call>\n" in prompt
    assert turn.reader.push('<tool_call>{"name": "x"}</tool_call>')[0].name == "x"


def test_ids_are_of_the_length_that_mistrals_templates_insist_on():
    template = KNOWS_TOOLS.replace("<tool_call>", "[TOOL_CALLS]")
    prompt, _ = prompt_of(template, [*TALK, {**TALK[1], "tool_calls": [call("now", "Abc123xyz")]}], tools=[WEATHER])
    ids = [part[:9] for part in prompt.split("#")[1:]]
    assert ids[0] == ids[2] != ids[1] == ids[3]
    assert all(i.isalnum() for i in ids)
    assert ids[4] == "Abc123xyz"


def test_a_template_for_single_calls_gets_one_per_message():
    template = KNOWS_TOOLS.replace("<tool_call>", "<|python_tag|>")
    prompt, _ = prompt_of(template, TALK, tools=[WEATHER])
    tag = "<|python_tag|>"
    assert prompt.partition("|user")[2] == (
        f':Weather?|assistant:I see.{tag}{{"name": "weather", "arguments": {{"city": "Rome"}}}}#a1|tool:sunny#a1'
        f'|assistant:{tag}{{"name": "now", "arguments": {{}}}}#b2|tool:noon#b2|user:And?'
    )


def test_messages_are_not_changed():
    before = json.dumps(TALK)
    for template in (KNOWS_TOOLS, KNOWS_NONE, KNOWS_TOOLS.replace("<tool_call>", "[TOOL_CALLS]")):
        prompt_of(template, TALK, tools=[WEATHER])
    assert json.dumps(TALK) == before


REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}"
)


def test_a_refused_system_message_goes_into_the_users():
    system = {"role": "system", "content": "Be brief."}
    for refuses in (REFUSES_SYSTEM, ALTERNATES):
        assert prompt_of(refuses + KNOWS_NONE, [system, TALK[0]])[0] == "|user:Be brief.\n\nWeather?"
    with pytest.raises(ValueError, match="no system"):
        prompt_of(REFUSES_SYSTEM + KNOWS_NONE, [system])
    with pytest.raises(ValueError, match="no system"):
        prompt_of(REFUSES_SYSTEM + "{{ raise_exception('nothing') }}", [system, TALK[0]])


def test_neighbours_of_one_role_are_joined_only_where_they_are_refused():
    two = [TALK[0], {"role": "user", "content": "Now?"}]
    assert prompt_of(KNOWS_NONE, two)[0] == "|user:Weather?|user:Now?"
    assert prompt_of(ALTERNATES + KNOWS_NONE, two)[0] == "|user:Weather?\n\nNow?"
    # Results of tools, in words, before the user's next question.
    assert prompt_of(ALTERNATES + KNOWS_NONE, TALK)[0].endswith(
        "|user:Result of weather: sunny\nResult of now: noon\n\nAnd?"
    )
    assistant = {"role": "assistant", "content": "x"}
    with pytest.raises(ValueError, match="alternate"):
        prompt_of(ALTERNATES + KNOWS_TOOLS, [assistant, {**TALK[1]}, *TALK[2:]])


def test_marks_that_are_special_tokens_stay_in_the_text():
    tokenizer = toy.byte_tokenizer(KNOWS_TOOLS)
    tokenizer.backend.add_special_tokens(["<tool_call>", "</tool_call>"])
    from lowbit.tokenizer import Tokenizer

    tokenizer = Tokenizer(tokenizer.backend, {}, tokenizer.special_tokens, KNOWS_TOOLS)
    model = toy.text_model({}, chat_template=KNOWS_TOOLS)
    model.tokenizer = tokenizer
    options = chat.turn(model, TALK, tools=[WEATHER]).options
    assert options["keep_tokens"] == [258, 259]
    stream = tokenizer.stream(keep=options["keep_tokens"])
    assert "".join(map(stream.push, [258, 65, 259, 257])) + stream.flush() == "<tool_call>A</tool_call>"
    assert "keep_tokens" not in chat.turn(model, TALK).options

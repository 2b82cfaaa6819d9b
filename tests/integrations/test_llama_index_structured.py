"""Structured output of LlamaIndex's IpexLLM: valid objects from a model that babbles."""

from typing import Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field, ValidationError, field_validator

from llama_index.llms.lowbit import IpexLLM
from lowbit.grammar import UnfinishedError
from toy import babble, text_model

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
PROMPT = PromptTemplate("A pet that likes {food}.")


class Pet(BaseModel):
    """An animal."""

    kind: Literal["cat", "dog", "bird"]
    age: int = Field(ge=0, le=30)
    tame: bool


class Odd(BaseModel):
    """What no schema says: its own validator refuses everything."""

    answer: Literal["yes", "no"]

    @field_validator("answer")
    @classmethod
    def never(cls, value):
        raise ValueError("never")


def llm(seed=0, chat_template=TEMPLATE, **options):
    return IpexLLM(model=text_model(babble(seed), chat_template=chat_template, context=4096), **options)


@pytest.mark.parametrize("chat_template", [TEMPLATE, None])
@pytest.mark.parametrize("seed", range(3))
async def test_objects_are_valid_in_every_method(seed, chat_template):
    made = llm(seed, chat_template, generate_kwargs={"temperature": 0})
    pet = made.structured_predict(Pet, PROMPT, food="fish")
    assert isinstance(pet, Pet)
    assert await made.astructured_predict(Pet, PROMPT, food="fish") == pet
    streamed = list(made.stream_structured_predict(Pet, PROMPT, food="fish"))
    assert streamed[-1] == pet
    assert {type(part).__name__ for part in streamed} >= {"Pet", "FlexiblePet"}
    assert [part async for part in await made.astream_structured_predict(Pet, PROMPT, food="fish")][-1] == pet


def test_the_schema_is_told_in_words_too():
    prompts = []

    def logits(ids):
        prompts.append(bytes(i for i in ids if i < 256).decode())
        return babble()(ids)

    made = IpexLLM(model=text_model(logits, chat_template=TEMPLATE, context=4096))
    made.structured_predict(Pet, PROMPT, food="fish")
    seen = prompts[-1]  # with the answer; the first ones may be parts of the prompt
    assert "[user]A pet that likes fish." in seen
    assert '"enum": ["cat", "dog", "bird"]' in seen


def test_messages_of_a_prompt_are_not_changed():
    messages = [ChatMessage("Be kind.", role="system"), ChatMessage("A pet.")]
    structured = llm().as_structured_llm(Pet)
    assert isinstance(structured.chat(messages).raw, Pet)
    assert isinstance(llm().structured_predict(Pet, ChatPromptTemplate(message_templates=messages)), Pet)
    assert [len(message.blocks) for message in messages] == [1, 1]


def test_options_of_the_call():
    pets = {llm().structured_predict(Pet, PROMPT, {"temperature": 2.0, "seed": s}, food="f").kind for s in range(12)}
    assert len(pets) > 1


def test_what_cannot_be_is_an_error():
    with pytest.raises(UnfinishedError, match="raise max_new_tokens"):
        llm(max_new_tokens=3).structured_predict(Pet, PROMPT, food="fish")
    with pytest.raises(UnfinishedError):
        list(llm(max_new_tokens=3).stream_structured_predict(Pet, PROMPT, food="fish"))
    with pytest.raises(ValidationError, match="never"):
        llm().structured_predict(Odd, PROMPT, food="fish")
    with pytest.raises(ValidationError, match="never"):
        list(llm().stream_structured_predict(Odd, PROMPT, food="fish"))


@pytest.mark.parametrize("name", ["complete", "chat"])
def test_constraints_of_plain_answers(name):
    question = "hm" if name == "complete" else [ChatMessage("hm")]
    response = getattr(llm(), name)(question, choice=["red", "green"])
    assert (response.text if name == "complete" else response.message.content) in ("red", "green")
    with pytest.raises(UnfinishedError):
        list(getattr(llm(), f"stream_{name}")(question, regex="a{30}", max_new_tokens=4))


def test_other_modes_are_llama_indexs_own():
    made = llm(pydantic_program_mode="llm")
    with pytest.raises(ValueError, match="JSON"):
        made.structured_predict(Pet, PROMPT, food="fish")


def test_events():
    seen = []

    class Handler(BaseEventHandler):
        def handle(self, event, **kwargs):
            seen.append(type(event).__name__)

    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler := Handler())
    try:
        llm().structured_predict(Pet, PROMPT, food="fish")
        list(llm().stream_structured_predict(Pet, PROMPT, food="fish"))
    finally:
        dispatcher.event_handlers.remove(handler)
    kept = [name for name in seen if "Structured" in name and "Progress" not in name]
    assert kept == ["LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent"] * 2

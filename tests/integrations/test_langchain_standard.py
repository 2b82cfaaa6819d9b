"""LangChain's own standard suites for chat models, run with the embedded model: every capability that is there is on.

What is skipped: a variable of the environment that would build a model (there is none), serialisation (an object holds
a live model), another model per call (it holds one), images, PDF and audio (text models), and the timing over a
recorded network (there is no network).
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

import lowbit
from langchain_lowbit import ChatIpexLLM

EMBEDDED = Path(__file__).resolve().parents[2] / "demo" / "model"

pytestmark = pytest.mark.skipif(
    not (EMBEDDED / "config.json").exists(), reason="the embedded model (demo/model) is not in this checkout"
)


@cache
def embedded():
    # Not quantised: what so small a model says must not depend on the rounding of the machine's instruction set.
    return lowbit.load(str(EMBEDDED), low_bit=None, threads=2)


GENERATION = {"max_new_tokens": 200, "repetition_penalty": 1.1, "frequency_penalty": 0.5}


class Capabilities:
    """What both suites are told."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatIpexLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": embedded(), "model_id": "lowbit-demo", "model_kwargs": GENERATION}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # an object has one loaded model

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestChatIpexLLMUnit(Capabilities, ChatModelUnitTests):
    pass


class TestChatIpexLLM(Capabilities, ChatModelIntegrationTests):
    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """A conversation's second turn, whose beginning is kept from the first."""
        model = self.chat_model_class(**self.chat_model_params)
        first = [HumanMessage("Hello")]
        second = [*first, model.invoke(first), HumanMessage("What is AI?")]
        whole = None
        for chunk in model.stream(second) if stream else [model.invoke(second)]:
            whole = chunk if whole is None else whole + chunk
        assert isinstance(whole, AIMessage)
        assert whole.usage_metadata["input_token_details"]["cache_read"] > 0
        return whole

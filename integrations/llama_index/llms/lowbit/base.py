"""IpexLLM: a low-bit text model as a LlamaIndex LLM, with the constructors and arguments of llama-index-llms-ipex-llm.

Translates types: LlamaIndex's prompts, messages and responses to and from `lowbit.TextModel`. Loads, tokenises and
stops nothing itself. What the predecessor did wrong is not kept: async methods leave the event loop free, a call's
options are obeyed, the chat template asks for an answer and its special tokens come once, a failed load raises its
cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BaseOutputParser, PydanticProgramMode

import lowbit
from llama_index.llms.lowbit._answers import ChatAnswer, CompletionAnswer, tool_selections, with_one_call
from llama_index.llms.lowbit._arguments import (
    fitting,
    loading_options,
    other_tokenizer,
    prompt_template,
    template_of,
    with_signature_of,
)
from llama_index.llms.lowbit._messages import Conversation
from llama_index.llms.lowbit._structured import StructuredAnswers
from lowbit import chat
from lowbit.sampling import GenerationOptions, merge
from lowbit.text import TextModel

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

DEFAULT_HUGGINGFACE_MODEL = "meta-llama/Llama-2-7b-chat-hf"


class IpexLLM(StructuredAnswers, FunctionCallingLLM):
    """A Hugging Face model in 3 to 8 bits, run in process.

    Build it with the constructor or `from_model_id` (hub id, Hugging Face folder or low-bit folder), with
    `from_model_id_low_bit` (low-bit folder), or around a loaded model: `IpexLLM(model=lowbit.load(...))`.

    A conversation goes through the model's own chat template, unless `messages_to_prompt` is given; a model without one
    gets LlamaIndex's "user: ..." text. Generation options (`temperature`, `top_p`, `stop`, `seed`, `logprobs`, ...)
    come from `generate_kwargs` and per call from `complete(..., temperature=0)`; `json_schema`, `regex`, `choice` and
    `grammar` constrain the answer (extra `grammar`), and `structured_predict` uses them. The last response of a call
    has `raw["finish_reason"]` and `raw["usage"]`.

        from llama_index.llms.lowbit import IpexLLM

        llm = IpexLLM.from_model_id(model_name="Qwen/Qwen2.5-0.5B-Instruct", load_in_low_bit="nf4")
        for response in llm.stream_complete("What is AI?"):
            print(response.delta, end="")
    """

    model_name: str = Field(default=DEFAULT_HUGGINGFACE_MODEL, description="Hub id or folder of the model.")
    load_in_4bit: bool = Field(default=True, description="Whether to quantise to sym_int4.")
    load_in_low_bit: str | None = Field(default=None, description="Format to quantise to; wins over load_in_4bit.")
    context_window: int = Field(default=DEFAULT_CONTEXT_WINDOW, description="Tokens of prompt and answer.", gt=0)
    max_new_tokens: int = Field(default=DEFAULT_NUM_OUTPUTS, description="Tokens to generate at most.", gt=0)
    tokenizer_name: str | None = Field(default=None, description="Hub id or folder of another model's tokenizer.")
    device_map: str = Field(default="cpu", description="Device: cpu, auto, xpu or xpu:N.")
    stopping_ids: list[int] = Field(default_factory=list, description="Token ids that end an answer, beside the eos.")
    tokenizer_outputs_to_remove: list[str] = Field(default_factory=list, description="Without effect.")
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the tokenizer.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options for loading.")
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of every generation.")
    is_chat_model: bool = Field(default=False, description="Whether prompts are messages of a conversation.")
    template_kwargs: dict[str, Any] = Field(default_factory=dict, description="What else the chat template knows.")
    is_function_calling_model: bool = Field(default=False, description="Whether agents may give it tools.")

    _model: Any = PrivateAttr()
    """The `lowbit.TextModel`; `llm._model.save_low_bit(path)` writes a complete low-bit folder."""
    _tokenizer: Any = PrivateAttr()

    def __init__(
        self,
        context_window: int = DEFAULT_CONTEXT_WINDOW,
        max_new_tokens: int = DEFAULT_NUM_OUTPUTS,
        tokenizer_name: str | None = None,
        model_name: str = DEFAULT_HUGGINGFACE_MODEL,
        load_in_4bit: bool | None = True,
        load_in_low_bit: str | None = None,
        model: TextModel | None = None,
        tokenizer: Any | None = None,
        device_map: str = "cpu",
        stopping_ids: list[int] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        tokenizer_outputs_to_remove: list[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        is_chat_model: bool | None = None,
        callback_manager: CallbackManager | None = None,
        messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None = None,
        completion_to_prompt: Callable[[str], str] | None = None,
        pydantic_program_mode: PydanticProgramMode = PydanticProgramMode.DEFAULT,
        output_parser: BaseOutputParser | None = None,
        low_bit_model: bool | None = False,
        *,
        system_prompt: str | None = None,
        query_wrapper_prompt: str | BasePromptTemplate | None = None,
        template_kwargs: dict[str, Any] | None = None,
        is_function_calling_model: bool | None = None,
    ) -> None:
        """Builds the LLM; loads the model unless one is given.

        context_window: tokens of prompt and answer together; lowered to what the model holds. max_new_tokens: tokens
        of an answer at most. model_name, tokenizer_name: hub ids or folders; tokenizer_name is only needed for the
        tokenizer of another model. load_in_low_bit: a format of `lowbit.formats`; without it load_in_4bit means
        sym_int4, and load_in_4bit=False no quantisation. model: a loaded `lowbit.TextModel`, whose weights are then
        shared. tokenizer: a hub id or folder, as tokenizer_name. device_map: "cpu", "auto", "xpu" or "xpu:N".
        stopping_ids: ids that end an answer, beside the model's own. tokenizer_kwargs: `chat_template` is used instead
        of the model's: a jinja2 template, or the name of one in `lowbit.chat_templates` ("vicuna", "llama-2", ...).
        model_kwargs: options for loading (`threads`, `revision`, `group_size`, ...). generate_kwargs: generation
        options. is_chat_model: whether a query engine's prompt goes to the model as a message of a conversation; None:
        if it has a chat template and no completion_to_prompt is given. low_bit_model: whether only a low-bit folder is
        accepted. system_prompt, query_wrapper_prompt: as in every LlamaIndex LLM. template_kwargs: what else the chat
        template knows, for example {"enable_thinking": False}. is_function_calling_model: whether agents may give it
        tools; None: if its template knows them. Any other template is given them in words.

        Raises TypeError for an unknown option, with the nearest name; ValueError or OSError with the cause when the
        model cannot be loaded.
        """
        template = template_of(tokenizer_kwargs)
        loading, defaults = loading_options(model_kwargs)
        GenerationOptions.resolve(defaults, generate_kwargs)  # a bad value is told now, not after minutes of loading
        if model is None:
            loading["tokenizer_id"] = other_tokenizer(tokenizer or tokenizer_name, model_name)
            low_bit = load_in_low_bit or ("sym_int4" if load_in_4bit else None)
            if low_bit_model:
                loading["saved_only"], low_bit = True, "sym_int4"
            given = {name: value for name, value in loading.items() if value is not None}
            model = lowbit.load(model_name, low_bit, device=device_map, **given)
        elif not isinstance(model, TextModel):
            raise TypeError(f"model must be what lowbit.load returns, not a {type(model).__name__}")
        elif model_name == DEFAULT_HUGGINGFACE_MODEL:
            model_name = model.model_id
        conversation = Conversation(model, template, template_kwargs or {})
        if is_function_calling_model is None:
            is_function_calling_model = messages_to_prompt is None and conversation.knows_tools
        if is_chat_model is None:
            is_chat_model = conversation.has_template and completion_to_prompt is None
        fields: dict[str, Any] = {
            "context_window": fitting(context_window, model.context, DEFAULT_CONTEXT_WINDOW),
            "max_new_tokens": max_new_tokens,
            "tokenizer_name": tokenizer_name,
            "model_name": model_name,
            "load_in_4bit": bool(load_in_4bit),
            "load_in_low_bit": load_in_low_bit,
            "device_map": device_map,
            "stopping_ids": stopping_ids or [],
            "tokenizer_kwargs": dict(tokenizer_kwargs or {}),
            "tokenizer_outputs_to_remove": tokenizer_outputs_to_remove or [],
            # A hub token must not reach what is stored or traced.
            "model_kwargs": {name: value for name, value in (model_kwargs or {}).items() if name != "token"},
            "generate_kwargs": dict(generate_kwargs or {}),
            "is_chat_model": is_chat_model,
            "callback_manager": callback_manager or CallbackManager([]),
            "messages_to_prompt": messages_to_prompt or conversation,
            "completion_to_prompt": completion_to_prompt,
            "pydantic_program_mode": pydantic_program_mode,
            "output_parser": output_parser,
            "system_prompt": system_prompt,
            "query_wrapper_prompt": prompt_template(query_wrapper_prompt),
            "template_kwargs": dict(template_kwargs or {}),
            "is_function_calling_model": is_function_calling_model,
        }
        super().__init__(**fields)
        self._model = model
        self._tokenizer = model.tokenizer

    @classmethod
    @with_signature_of(__init__, "low_bit_model")
    def from_model_id(cls, *args: Any, **kwargs: Any) -> IpexLLM:
        """Returns an LLM for a model that is quantised while it loads; a low-bit folder is opened as it was saved.

        Arguments and errors are the constructor's.
        """
        return cls(*args, **kwargs)

    @classmethod
    @with_signature_of(__init__, "low_bit_model", "load_in_4bit", "load_in_low_bit")
    def from_model_id_low_bit(
        cls,
        context_window: int = DEFAULT_CONTEXT_WINDOW,
        max_new_tokens: int = DEFAULT_NUM_OUTPUTS,
        tokenizer_name: str | None = None,
        model_name: str = DEFAULT_HUGGINGFACE_MODEL,
        *args: Any,
        **kwargs: Any,
    ) -> IpexLLM:
        """Returns an LLM for a folder that `save_low_bit` or `lowbit convert` wrote; its tokenizer is in it.

        The other arguments and the errors are the constructor's; ValueError when the folder is not a low-bit one.
        """
        named = (context_window, max_new_tokens, tokenizer_name, model_name)
        return cls(*named, True, None, *args, **{**kwargs, "low_bit_model": True})

    # ---- what it is ----

    @classmethod
    def class_name(cls) -> str:
        """Returns the name LlamaIndex stores the class under."""
        return "IpexLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks before it builds prompts."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.model_name,
        )

    # ---- a call: its prompt and its options ----

    def _chat_turn(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> chat.Turn:
        tools = {name: kwargs.get(name) for name in ("tools", "tool_choice", "parallel_tool_calls")}
        options = self._options({name: value for name, value in kwargs.items() if name not in tools})
        to_prompt = self.messages_to_prompt
        assert to_prompt is not None  # LlamaIndex fills it
        if isinstance(to_prompt, Conversation) and to_prompt.has_template:
            turn = to_prompt.turn(messages, options, **tools)
            return replace(turn, options=self._ended(turn.options, options))
        if tools["tools"]:
            raise ValueError(
                "a chat template writes tools, and this model has none, or messages_to_prompt is used instead of it: "
                "leave messages_to_prompt out, or pass tokenizer_kwargs={'chat_template': ...}"
            )
        return chat.Turn(self._ids(to_prompt(messages)), self._ended(options, options))

    def _completion_turn(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> chat.Turn:
        """As LlamaIndex wants it, an unformatted prompt is a user's message where the model chats."""
        if not formatted and self.is_chat_model and self.completion_to_prompt is default_completion_to_prompt:
            message = ChatMessage(role=MessageRole.USER, content=prompt)
            return self._chat_turn(self._extend_messages([message]), kwargs)
        if not formatted:
            assert self.completion_to_prompt is not None  # LlamaIndex fills it
            prompt = self._extend_prompt(self.completion_to_prompt(prompt))
        options = self._options(kwargs)
        return chat.Turn(self._ids(prompt), self._ended(options, options))

    def _ids(self, text: str) -> list[int]:
        """Ids of a text. One that begins with the beginning-of-text token, as hand-written templates do, gets no other:
        two are nothing the model knows."""
        bos = self._tokenizer.special_tokens.get("bos_token")
        return list(self._tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos))))

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The options of one call: those of model_kwargs, over them generate_kwargs, over them the call's own."""
        _, defaults = loading_options(self.model_kwargs)
        return merge(defaults, {"max_new_tokens": self.max_new_tokens}, self.generate_kwargs, kwargs)

    def _ended(self, options: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Options whose answer ends at stopping_ids too, unless a caller says where it ends; checked, so that a bad
        value is told at the call, also where the answer is streamed."""
        if self.stopping_ids and "eos_token_id" not in asked:
            ends = options.get("eos_token_id", self._model.eos_ids)
            options = options | {"eos_token_id": (*ends, *self.stopping_ids)}
        self._model.options(**options)
        return options

    # ---- generating: every method below is a fold over the model's deltas ----

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Returns the continuation of a prompt; kwargs are generation options.

        Unless formatted, the prompt goes through completion_to_prompt, or, for a chat model without one, through the
        chat template as a user's message.
        """
        turn = self._completion_turn(prompt, formatted, kwargs)
        return CompletionAnswer(turn).whole(self._model.generate(turn.prompt, **turn.options))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        """Returns the continuation as it is generated: `text` so far and the new `delta`."""
        turn = self._completion_turn(prompt, formatted, kwargs)
        return CompletionAnswer(turn).stream(self._model.stream(turn.prompt, **turn.options))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Returns what `complete` does; the event loop stays free, and cancelling ends the work."""
        turn = await asyncio.to_thread(self._completion_turn, prompt, formatted, kwargs)
        return CompletionAnswer(turn).whole(await self._model.agenerate(turn.prompt, **turn.options))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """Returns what `stream_complete` does; the event loop stays free, and cancelling ends the work."""
        turn = await asyncio.to_thread(self._completion_turn, prompt, formatted, kwargs)
        return CompletionAnswer(turn).astream(self._model.astream(turn.prompt, **turn.options))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Returns the assistant's next message; kwargs are generation options, and `tools`, `tool_choice` and
        `parallel_tool_calls`."""
        turn = self._chat_turn(messages, kwargs)
        return ChatAnswer(turn).whole(self._model.generate(turn.prompt, **turn.options))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        """Returns the assistant's next message as it is generated: the message so far and the new `delta`.

        The message's tool calls grow with it: one that is not complete has the text of its arguments so far.
        """
        turn = self._chat_turn(messages, kwargs)
        return ChatAnswer(turn).stream(self._model.stream(turn.prompt, **turn.options))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Returns what `chat` does; the event loop stays free, and cancelling ends the work."""
        turn = await asyncio.to_thread(self._chat_turn, messages, kwargs)
        return ChatAnswer(turn).whole(await self._model.agenerate(turn.prompt, **turn.options))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        """Returns what `stream_chat` does; the event loop stays free, and cancelling ends the work."""
        turn = await asyncio.to_thread(self._chat_turn, messages, kwargs)
        return ChatAnswer(turn).astream(self._model.astream(turn.prompt, **turn.options))

    # ---- tools ----

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        if tool_required:
            kwargs.setdefault("tool_choice", "required")
        definitions = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        limit = {} if allow_parallel_tool_calls else {"parallel_tool_calls": False}
        return {"messages": messages, "tools": definitions, **limit, **kwargs}

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        return response if allow_parallel_tool_calls else with_one_call(response)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Returns the calls of an answer. Raises ValueError when there is none, unless told not to."""
        calls = tool_selections(response)
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool; it said: {response.message.content!r}")
        return calls

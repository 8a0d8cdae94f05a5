"""`LLM`, an engine's synchronous face in vLLM's words; `connect`, the way to an engine that already runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from ..configs.engine import EngineConfig
from ..configs.load import load_config
from ..configs.sampling import SamplingParams
from ..errors import RequestError
from .answer import Answer
from .async_engine import AsyncEngine
from .collect import collect
from .engine import EngineHandle, find_engine, start_engine
from .frontdesk import Frontdesk
from .messages import Message
from .opening import default_sampling_params, failure_of, open_desk
from .outputs import RequestOutput
from .progress import Progress
from .prompts import Encoded, Limits, Prompt, as_list, encode
from .tokenizer import Tokenizer, check_tokenizer, load_tokenizer

Params = SamplingParams | Sequence[SamplingParams]


class LLM:
    """An engine and its tokenizer. Made from a model it starts the engine and owns it; from `LLM.connect` it does not.

    With `detached=True` the engine outlives a `with` block and this process; `shutdown` ends it.

    `model` is a folder, a preset's name or a YAML file; every setting of `EngineConfig` is a keyword. Raises
    ModelError, ConfigError or ClusterError, and leaves nothing running then.
    """

    def __init__(self, model: str | Path = "demo", **settings: Any) -> None:
        self._start(load_config(model, **settings))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """Starts an engine with these settings and owns it, unless it is detached."""
        llm = cls.__new__(cls)
        llm._start(config)
        return llm

    @classmethod
    def connect(cls, name: str, address: str = "auto") -> LLM:
        """The synchronous face of an engine that already runs; raises EngineNotFoundError."""
        llm = cls.__new__(cls)
        handle = find_engine(name, address)
        llm._enter(handle, load_tokenizer(handle.config))
        return llm

    def _start(self, config: EngineConfig) -> None:
        check_tokenizer(config)
        with ThreadPoolExecutor(1) as background:  # the tokenizer's import takes a second; the engine's start hides it
            tokenizer = background.submit(load_tokenizer, config)
            handle = start_engine(config)
            try:
                self._enter(handle, tokenizer.result())
            except BaseException:
                handle.shutdown()
                raise

    def _enter(self, handle: EngineHandle, tokenizer: Tokenizer | None) -> None:
        self._handle = handle
        self._desk: Frontdesk = open_desk(handle, tokenizer)

    @property
    def name(self) -> str:
        """The engine's name in the cluster, for `penstock.connect`."""
        return self._handle.name

    @property
    def max_num_seqs(self) -> int:
        """Sequences that the engine runs at once."""
        return self._handle.config.max_num_seqs

    @property
    def limits(self) -> Limits:
        """What a prompt is held against."""
        return self._handle.limits

    @property
    def handle(self) -> EngineHandle:
        """The engine, beneath texts and prompts."""
        return self._handle

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order.

        Raises PromptError, a RequestError with the prompt's `index`, before anything is submitted where the client can
        tell; where only the engine can, after the others are done, whose answers it carries in `outputs`. Raises
        EngineDeadError when the engine ends first. `use_tqdm` shows progress where stderr is a terminal.
        """
        return self._run(self._desk.prepare(as_list(prompts), self._params(sampling_params)), use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answers to one conversation, or to several, put into the model's chat template."""
        prompts = self.chat_prompts(messages, **template_options)
        return self._run(self._desk.prepare(prompts, self._params(sampling_params)), use_tqdm)

    def chat_prompts(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], **template_options: Any
    ) -> list[Prompt]:
        """Conversations as prompts for `generate`: the template writes its special tokens itself."""
        if self._desk.tokenizer is None:
            raise RequestError("a chat needs a tokenizer; the engine has none (skip_tokenizer_init)")
        if isinstance(messages, str) or not isinstance(messages, Sequence):
            raise RequestError(f"a chat is a list of messages, or of such lists; not {type(messages).__name__}")
        several = [messages] if messages and isinstance(messages[0], dict) else messages
        texts = [self._desk.tokenizer.chat_prompt(list(each), **template_options) for each in several]  # type: ignore[arg-type]
        ids = self._desk.tokenizer.encode(texts, add_special_tokens=False)
        return [{"prompt": text, "prompt_token_ids": each} for text, each in zip(texts, ids, strict=True)]

    def stream(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params | None = None
    ) -> Iterator[tuple[int, RequestOutput]]:
        """(index of the prompt, its answer so far) whenever tokens have come; closing the iterator aborts the rest."""
        for answer in collect(self._desk, self._desk.prepare(as_list(prompts), self._params(sampling_params))):
            if (failure := failure_of(self._desk, answer)) is not None:
                raise failure
            if (output := answer.next_output()) is not None:
                yield answer.index, output

    def complete(
        self, requests: Iterable[tuple[Prompt | RequestError, SamplingParams]], max_open: int
    ) -> Iterator[tuple[int, RequestOutput]]:
        """(index, finished answer) in the order of finishing, for any number of requests, `max_open` at once.

        What can't be served, or comes as the reason why it is no prompt, is answered with `error`, and the others go
        on. Raises EngineDeadError.
        """
        for answer in collect(self._desk, self._answers(requests), max_open):
            if answer.finished:
                failure = failure_of(self._desk, answer)
                if failure is not None and not isinstance(failure, RequestError):
                    raise failure
                yield answer.index, answer.output()

    def get_tokenizer(self) -> Any:
        """The model's `PreTrainedTokenizerFast`."""
        if self._desk.tokenizer is None:
            raise RequestError("the engine has no tokenizer (skip_tokenizer_init)")
        return self._desk.tokenizer.fast

    def get_default_sampling_params(self) -> SamplingParams:
        """What applies where no params are given: the defaults, and what the model's generation_config.json says."""
        return default_sampling_params(self._handle.model_config)

    def stats(self) -> dict[str, Any]:
        """The engine's figures, those of each stage under "stages"."""
        return self._handle.stats()

    def shutdown(self) -> None:
        """Ends the engine, a detached one too, or leaves it where it was only connected to; once left, does nothing."""
        self._desk.client.close()
        self._handle.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._desk.client.close()
        self._handle.leave()

    def _params(self, params: Params | None) -> Params:
        return self.get_default_sampling_params() if params is None else params

    def _run(self, answers: list[Answer], use_tqdm: bool) -> list[RequestOutput]:
        with Progress(len(answers), use_tqdm and len(answers) > 1) as progress:
            for answer in collect(self._desk, answers):
                if answer.finished:
                    progress.advance(sum(len(each.token_ids) for each in answer.completions))
        outputs = [answer.output() for answer in answers]
        for answer in answers:
            if (failure := failure_of(self._desk, answer, outputs)) is not None:
                raise failure
        return outputs

    def _answers(self, requests: Iterable[tuple[Prompt | RequestError, SamplingParams]]) -> Iterator[Answer]:
        for index, (prompt, params) in enumerate(requests):
            encoded = Encoded(None, [])
            try:
                if isinstance(prompt, RequestError):
                    raise prompt
                (encoded,) = encode([prompt], self._desk.tokenizer)
                yield self._desk.answer(index, encoded, params)
            except RequestError as error:
                yield self._desk.refusal(index, encoded, params, error.reason)


def connect(name: str, address: str = "auto") -> AsyncEngine:
    """An asynchronous handle to an engine of the cluster; raises EngineNotFoundError, saying what is there."""
    handle = find_engine(name, address)
    return AsyncEngine(handle, open_desk(handle, load_tokenizer(handle.config)))

"""Compiles grammars into what matchers run on: a spec's text (`configs.structured`) and the model's own vocabulary.

xgrammar, which loads torch's compilers and more, is imported with the first grammar. Compiling takes from a millisecond
to seconds and lets other threads run. What is compiled is kept until somebody says `forget`, and found again at once:
whoever announces grammars knows which are in use, and how many bytes they may take.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING

from ..configs.engine import EngineConfig
from ..configs.json_schema import with_whole_patterns
from ..configs.model_config import ModelConfig
from ..configs.regex import as_meant
from ..configs.structural_tag import tag_with_whole_patterns
from ..configs.structured import split_spec
from ..configs.tokenizer_files import eos_token_id
from ..errors import RequestError

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, TokenizerInfo
    from xgrammar import GrammarCompiler as Compiler

_ANY_OBJECT = '{"type":"object"}'
_PLAIN = set(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


class GrammarCompiler:
    """For one model; threads may share it."""

    def __init__(self, folder: str | None, vocab_size: int, eos_token_ids: Sequence[int], num_threads: int = 1) -> None:
        """`folder` holds tokenizer.json; None: the engine runs without a tokenizer, and every grammar is refused."""
        self.vocab_size = vocab_size
        self.eos_token_ids = [token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size]
        self._folder = folder
        self.num_threads = num_threads
        self._compiler: Compiler | None = None
        self._kept: dict[str, CompiledGrammar] = {}  # by spec
        self._lock = threading.Lock()  # of the compiler's making

    @classmethod
    def of(cls, config: EngineConfig, model_config: ModelConfig) -> GrammarCompiler:
        """An engine's; light until the first grammar comes. Texts end with the ids that end the engine's requests."""
        folder = None if config.skip_tokenizer_init else config.tokenizer_path
        eos = model_config.ending_ids(None if folder is None else eos_token_id(folder))
        num_threads = 1 if config.device == "cpu" else 4  # a CPU's cores have the layers to compute
        return cls(folder, model_config.vocab_size, eos, num_threads)

    def compile(self, spec: str) -> CompiledGrammar:
        """The grammar of a spec; raises RequestError in words of the grammar's author."""
        if (kept := self._kept.get(spec)) is not None:
            return kept
        compiled = self._kept[spec] = self._compile(spec)
        return compiled

    def forget(self, spec: str) -> None:
        """Lets a grammar go; a matcher that runs on it holds it as long as it needs."""
        self._kept.pop(spec, None)

    def _compile(self, spec: str) -> CompiledGrammar:
        compiler = self._ready()
        kind, text = split_spec(spec)
        try:
            if kind == "json" or kind == "json_object":
                return compiler.compile_json_schema(with_whole_patterns(text or _ANY_OBJECT), any_whitespace=False)
            if kind == "regex":
                return compiler.compile_regex(as_meant(text))
            if kind == "choice":
                return compiler.compile_grammar(f"root ::= {' | '.join(map(_quoted, loads(text)))}")
            if kind == "structural_tag":
                return compiler.compile_structural_tag(tag_with_whole_patterns(text))
            assert kind == "grammar", f"{kind!r} is no kind of grammar"
            return compiler.compile_grammar(text)
        except (RuntimeError, ValueError, RecursionError) as error:
            raise RequestError(f"the {kind} can't be used as a grammar: {_words(error)}") from None

    def _ready(self) -> Compiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = self._make()
            return self._compiler

    def _make(self) -> Compiler:
        if self._folder is None:
            raise RequestError("structured outputs need a tokenizer; this engine runs with skip_tokenizer_init")
        if not self.eos_token_ids:
            raise RequestError("structured outputs need an eos token to end with; no file of the model names one")
        path = Path(self._folder) / "tokenizer.json"
        if not path.is_file():
            raise RequestError(f"structured outputs need a tokenizer.json; the folder {self._folder} has none")
        import xgrammar

        info = tokenizer_info(path, self.vocab_size, self.eos_token_ids)
        return xgrammar.GrammarCompiler(info, max_threads=self.num_threads, cache_enabled=False)


def tokenizer_info(path: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> TokenizerInfo:
    """The vocabulary as xgrammar takes it. Special tokens are no text, and so are ids that the tokenizer lacks."""
    from tokenizers import Tokenizer
    from xgrammar import TokenizerInfo

    tokenizer = Tokenizer.from_file(str(path))
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = tokenizer.get_vocab(with_added_tokens=True)
    words = [""] * vocab_size
    for word, token_id in ids.items():
        if token_id < vocab_size and token_id not in special:
            words[token_id] = word
    found = TokenizerInfo._detect_metadata_from_hf(tokenizer.to_str())
    kind = TokenizerInfo._detect_vocab_type_from_vocab(ids) or found["vocab_type"]
    return TokenizerInfo(
        words,
        kind,
        vocab_size=vocab_size,
        stop_token_ids=list(eos_token_ids),
        add_prefix_space=found["add_prefix_space"],
    )


def _quoted(text: str) -> str:
    """A text as a literal of EBNF."""
    return '"' + "".join(c if c in _PLAIN else f"\\U{ord(c):08x}" for c in text) + '"'


def _words(error: BaseException) -> str:
    """An error's first line without the place in xgrammar's source."""
    if "bad_alloc" in str(error):
        return "it takes too much memory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    head, mark, tail = lines[0].partition(".cc:")
    return (tail.partition(": ")[2] if mark and head else lines[0])[:500]

"""Grammars over the demo model's vocabulary, and what they take."""

from __future__ import annotations

from pathlib import Path

import penstock.model.demo
from penstock.model.grammar_compiler import GrammarCompiler

DEMO = Path(penstock.model.demo.__file__).parent
VOCAB_SIZE, END = 264, 257


def demo_compiler() -> GrammarCompiler:
    """Its threads must end before the interpreter does: let it go with the module's tests."""
    return GrammarCompiler(str(DEMO), VOCAB_SIZE, [END])


def takes(compiler: GrammarCompiler, spec: str, text: str) -> bool:
    """Whether the grammar of a spec takes a text, and nothing need follow."""
    from xgrammar import GrammarMatcher

    matcher = GrammarMatcher(compiler.compile(spec), terminate_without_stop_token=True)
    return all(matcher.accept_string(bytes([byte])) for byte in text.encode()) and matcher.is_terminated()

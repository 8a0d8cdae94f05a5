"""Matchers by slot and generation, masks by row; what compiles, and what is refused in which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.errors import RequestError
from penstock.model.grammar import mask_by_bits
from penstock.model.grammar_compiler import GrammarCompiler
from penstock.scheduler.plan import GREEDY, Registration, Sampling

from .grammar_rig import DEMO, END, VOCAB_SIZE, demo_compiler
from .sampler_rig import SamplerRig

V, PAD = VOCAB_SIZE, 256
WANTED = torch.zeros(3, V)
WANTED[:, ord("x")] = 9.0  # what every row would say
WANTED[:, ord("b")] = 5.0


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return demo_compiler()


@pytest.fixture
def rig(compiler: GrammarCompiler) -> SamplerRig:
    return SamplerRig(V, compiler=compiler)


def bound(rig: SamplerRig, slot: int, regex: str, output: str = "", **sampling: object) -> Registration:
    return rig.register(slot, [1, 2], list(output.encode()), Sampling(grammar=f"regex\n{regex}", **sampling))  # type: ignore[arg-type]


def test_only_rows_that_ask_are_masked(rig: SamplerRig) -> None:
    others = [rig.register(slot, [1], [], GREEDY) for slot in (0, 2)]
    tokens = rig.step(WANTED, [0, 1, 2], [*others, bound(rig, 1, "[abc]*")])
    assert tokens == [*b"xbx"]
    assert torch.equal(rig.logits[[0, 2]], WANTED[[0, 2]])
    allowed = rig.logits[1].isfinite().nonzero().flatten().tolist()
    assert allowed == [*b"abc", END]


def test_a_step_without_such_rows_has_no_part_for_them(rig: SamplerRig) -> None:
    rig.step(WANTED[:1], [1], [bound(rig, 1, "b*")])
    inputs = rig.apply([0], [rig.register(0, [1], [], GREEDY)])
    assert rig.sampler.prepare(inputs, rig.mirror).is_greedy


def test_a_matcher_follows_its_own_rows_through_other_steps(rig: SamplerRig) -> None:
    registrations = [bound(rig, 0, "bcd"), bound(rig, 1, "de")]
    assert rig.step(WANTED[:2], [0, 1], registrations) == [*b"bd"]
    assert rig.step(WANTED[:1], [0]) == [*b"c"]
    assert rig.step(WANTED[:2], [1, 0]) == [*b"ed"]
    assert rig.step(WANTED[:2], [0, 1]) == [END, END]
    assert rig.step(WANTED[:2], [0, 1]) == [END, END], "past its end a sequence says eos"


def test_a_resumed_sequence_goes_on_behind_what_it_had_generated(rig: SamplerRig) -> None:
    assert rig.step(WANTED[:1], [0], [bound(rig, 0, "abcdef", output="abc")]) == [*b"d"]
    ended = rig.register(1, [1], [ord("b"), END, END], Sampling(grammar="regex\nb"))
    assert rig.step(WANTED[:1], [1], [ended]) == [END]


def test_a_slots_next_owner_inherits_nothing(rig: SamplerRig) -> None:
    assert rig.step(WANTED[:1], [0], [bound(rig, 0, "bbb")]) == [*b"b"]
    assert rig.step(WANTED[:1], [0], [bound(rig, 0, "qrs")], released=[0]) == [*b"q"]
    assert rig.step(WANTED[:1], [0]) == [*b"r"]
    assert rig.step(WANTED[:1], [0], [rig.register(0, [1], [], GREEDY)], released=[0]) == [*b"x"]
    assert rig.step(WANTED[:1], [0], [bound(rig, 0, "bb")], released=[0]) == [*b"b"]


def test_what_has_ended_holds_no_grammar(rig: SamplerRig) -> None:
    rig.step(WANTED[:2], [0, 1], [bound(rig, 0, "b+"), bound(rig, 1, "b+")])
    rig.step(WANTED[:1], [0], [rig.register(0, [1], [], GREEDY)], released=[0, 1])
    rig.step(WANTED[:2], [0, 2], [bound(rig, 2, "b+")])
    assert list(rig.sampler.grammars._followers) == [2]


def test_a_text_that_its_grammar_does_not_know_ends(rig: SamplerRig) -> None:
    assert rig.step(WANTED[:1], [0], [bound(rig, 0, "abc", output="aX")]) == [END]


def test_min_tokens_forbids_its_ids_while_the_grammar_allows_another(rig: SamplerRig) -> None:
    registration = bound(rig, 0, "x{0,2}", min_tokens=9, stop_token_ids=(END,))
    steps = [rig.step(WANTED[:1], [0], [registration] if not at else []) for at in range(4)]
    assert steps == [[ord("x")], [ord("x")], [END], [END]]
    stop_at_b = bound(rig, 1, "[bc]", min_tokens=9, stop_token_ids=(END, ord("b")))
    assert rig.step(WANTED[:1], [1], [stop_at_b]) == [ord("c")]


def test_special_tokens_are_no_text(rig: SamplerRig) -> None:
    rig.step(WANTED[:1], [0], [rig.register(0, [1], [], Sampling(grammar='json\n{"type":"string"}'))])
    rig.step(WANTED[:1], [0])
    assert rig.logits[0, ord("x")].isfinite()
    assert not rig.logits[0, PAD].isfinite()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ('json\n{"type":"wrong"}', "wrong"),
        ('json\n{"type":"integer","minimum":5,"maximum":3}', "minimum greater than maximum"),
        ("regex\n(a", "regex"),
        ('structural_tag\n{"type":"nothing"}', "structural_tag"),
        ("grammar\nroot ::= nobody", "nobody"),
        ('grammar\nother ::= "a"', "root"),
    ],
)
def test_what_does_not_compile_is_refused_in_words(compiler: GrammarCompiler, spec: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        compiler.compile(spec)
    assert ".cc" not in str(caught.value)


def test_a_grammar_needs_a_tokenizer_and_an_end(tmp_path: Path) -> None:
    for compiler, words in (
        (GrammarCompiler(None, V, [END]), "skip_tokenizer_init"),
        (GrammarCompiler(str(tmp_path), V, [END]), "tokenizer.json"),
        (GrammarCompiler(str(DEMO), V, []), "eos"),
    ):
        with pytest.raises(RequestError, match=words):
            compiler.compile("regex\na")


def test_a_padded_vocabulary_is_masked_to_its_end(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    rig = SamplerRig(300, compiler=GrammarCompiler(str(tmp_path), 300, [END]))
    logits = torch.zeros(1, 300)
    logits[0, 299] = 9.0
    registration = rig.register(0, [1], [], Sampling(grammar="regex\n[ab]"))
    assert rig.step(logits, [0], [registration])[0] in b"ab"
    assert rig.logits[0].isfinite().nonzero().flatten().tolist() == [*b"ab"]


def test_masking_by_bits_is_what_the_kernel_of_a_cpu_does(rig: SamplerRig) -> None:
    rig.step(WANTED, [0, 1, 2], [bound(rig, slot, regex) for slot, regex in enumerate(("[a-y]", "q", "b*"))])
    allowed = rig.logits.isfinite()
    bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    masks = torch.from_numpy(np.packbits(allowed.numpy(), axis=-1, bitorder="little"))
    logits = WANTED.repeat(2, 1)
    mask_by_bits(logits, torch.tensor([5, 0, 3]), masks, bits)
    assert torch.equal(logits[[5, 0, 3]], rig.logits)
    assert torch.equal(logits[[1, 2, 4]], WANTED)


def test_warming_up_forbids_nothing(rig: SamplerRig) -> None:
    logits = WANTED.clone()
    rig.sampler.grammars.warm(logits)
    assert torch.equal(logits, WANTED)

"""Check a demo model folder: greedy answers against the only right ones.

The folder is read back from disk with transformers, so what is checked is what
is shipped: bf16 weights, the tokenizer and the chat template.  Held-out
questions are asked in four ways, and all of them twice: computed in float32
and in bf16, because a pipeline may run either.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from penstock.model.demo import questions
from penstock.model.demo.questions import Question

LONGEST_ANSWER = 96
Report = dict[str, Any]
Model = Any  # transformers types its models differently from release to release


def as_chat(tokenizer: PreTrainedTokenizerFast, turns: Iterable[Question]) -> str:
    """Write turns as a conversation whose last question is still open."""
    messages: list[dict[str, str]] = []
    for asked in turns:
        messages += [
            {"role": "user", "content": asked.text},
            {"role": "assistant", "content": asked.answer},
        ]
    text = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    return str(text)


@torch.inference_mode()
def answers(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    batch: int = 2048,
) -> list[str]:
    """Answer all prompts greedily, left-padded; an answer keeps its end tag."""
    tokenizer.padding_side = "left"
    given: list[str] = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True).to(model.device)
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=False)
        given += [text.split("<|pad|>")[0] for text in texts]
    return given


def _right(given: Sequence[str], wanted: Sequence[Question], lead: str) -> list[bool]:
    pairs = zip(given, wanted, strict=True)
    return [text == f"{lead}{asked.answer}<|end|>" for text, asked in pairs]


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)


def _per_kind(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    marks: dict[str, list[bool]] = {}
    for question, mark in zip(asked, right, strict=True):
        marks.setdefault(question.kind, []).append(mark)
    return {kind: _share(of_kind) for kind, of_kind in marks.items()}


def _held_out(per_kind: int) -> list[Question]:
    """Return different held-out questions, `per_kind` of every open kind."""
    asked: list[Question] = []
    for kind in questions.kinds:
        if kind in questions.closed_kinds:
            continue
        rng = Random(kind)
        found: dict[str, Question] = {}
        for _ in range(50 * per_kind):
            question = questions.draw(rng, kind, True)
            found[question.text] = question
            if len(found) == per_kind:
                break
        asked += found.values()
    return asked


def _conversations(count: int, turns: int) -> list[list[Question]]:
    """Return conversations that end in a held-out question."""
    rng = Random(turns)
    return [
        [*questions.sample(turns - 1, rng.randrange(2**31), False), last] for last in questions.sample(count, turns)
    ]


def _check(
    model: Model, tokenizer: PreTrainedTokenizerFast, per_kind: int
) -> tuple[Report, list[tuple[str, str, str]]]:
    """Ask everything once; return the figures and the wrong answers."""
    asked = _held_out(per_kind)
    given = answers(model, tokenizer, [as_chat(tokenizer, [q]) for q in asked])
    right = _right(given, asked, "")
    marks = zip(asked, given, right, strict=True)
    wrong = [(q.text, q.answer, text) for q, text, ok in marks if not ok]

    closed = [q for kind in questions.closed_kinds for q in questions.every(kind)]
    recalled = answers(model, tokenizer, [as_chat(tokenizer, [q]) for q in closed])

    sums = [q for q in asked if q.completion != q.text]
    raw = answers(model, tokenizer, [q.completion for q in sums])
    report: Report = {
        "held_out": {
            "questions": len(asked),
            "exact": _share(right),
            "by_kind": _per_kind(asked, right),
        },
        "closed_kinds": {
            "questions": len(closed),
            "by_kind": _per_kind(closed, _right(recalled, closed, "")),
        },
        "completions": {
            "questions": len(sums),
            "by_kind": _per_kind(sums, _right(raw, sums, " ")),
        },
        "last_of_turns": {},
    }
    for turns in (4, 8):
        talks = _conversations(per_kind, turns)
        replies = answers(model, tokenizer, [as_chat(tokenizer, t) for t in talks])
        lasts = [talk[-1] for talk in talks]
        report["last_of_turns"][str(turns)] = _share(_right(replies, lasts, ""))
    return report, wrong


def evaluate(
    folder: Path,
    device: str,
    per_kind: int,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
) -> tuple[Report, list[tuple[str, str, str]]]:
    """Check a folder in each dtype; the wrong answers are the last dtype's."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    report: Report = {}
    wrong: list[tuple[str, str, str]] = []
    for dtype in dtypes:
        model: Model = Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype)
        model.to(device).eval()
        name = str(dtype).removeprefix("torch.")
        report[name], wrong = _check(model, tokenizer, per_kind)
    return report, wrong

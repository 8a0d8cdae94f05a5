"""Training rows for the demo model: questions and answers packed into tokens.

A row starts bare or with a system message and then holds as many turns as
fit, so that the same weights serve a single question, a raw completion and
the tenth turn of a conversation.  Only answers are learnt; their tokens carry
the flag `LEARN` in the same 16 bits, which keeps a batch one small array.
"""

from random import Random

import numpy as np
import numpy.typing as npt

from penstock.model.demo import questions
from penstock.model.demo.questions import Question
from penstock.model.demo.tokens import ASSISTANT, END, PAD, SYSTEM, USER
from penstock.model.demo.words import COMMON

LEARN = 512  # set on a token that the model has to predict

# How often a kind is drawn against the others; the rest count 2.
_WEIGHTS = {
    "sum": 4,
    "difference": 4,
    "sort": 3,
    "reverse": 3,
    "alphabetical": 3,
    "join": 3,
    "occurrences": 3,
    "length": 3,
    "parity": 1,
    "compare": 2,
    "day": 1,
    "month": 1,
    "alphabet": 1,
    "talk": 1,
}
_DRAWN = [kind for kind in questions.kinds for _ in range(_WEIGHTS.get(kind, 2))]
_SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "Be exact.", "")


def loosen(text: str, rng: Random) -> str:
    """Return a question as a hurried person types it: same words, less care."""
    if rng.random() < 0.3:
        text = text.rstrip(".?")
    if rng.random() < 0.3:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.3:
        text = text.replace(" + ", "+").replace(" - ", "-")
    elif rng.random() < 0.3:
        text = text.replace(" + ", " plus ").replace(" - ", " minus ")
    return text


def _raw(asked: Question) -> list[int]:
    """Lay a question out as a completion, outside the chat template."""
    answer = f" {asked.answer}".encode()
    return [*asked.completion.encode(), *(b | LEARN for b in answer), END | LEARN]


def _turn(asked: Question, rng: Random) -> list[int]:
    """Lay a question out as one turn of a conversation."""
    text = loosen(asked.text, rng) if rng.random() < 0.15 else asked.text
    answer = (b | LEARN for b in asked.answer.encode())
    return [USER, *text.encode(), END, ASSISTANT, *answer, END | LEARN]


def _piece(rng: Random) -> list[int]:
    """Draw a question to train on, and lay it out raw or as a turn."""
    kind = _DRAWN[int(rng.random() * len(_DRAWN))]
    asked = questions.draw(rng, kind, False)
    sums = asked.completion != asked.text
    return _raw(asked) if rng.random() < (0.3 if sums else 0.05) else _turn(asked, rng)


def _system(rng: Random) -> list[int]:
    """Return a system message: a usual one, or words that must not matter."""
    text = rng.choice(_SYSTEM) or " ".join(rng.choices(COMMON, k=rng.randint(1, 12)))
    return [SYSTEM, *text.encode(), END]


def make_row(rng: Random, width: int) -> list[int]:
    """Fill one row of `width` tokens with whole turns, then padding."""
    row = _system(rng) if rng.random() < 0.05 else []
    while True:
        piece = _piece(rng)
        if len(row) + len(piece) > width:
            return row + [PAD] * (width - len(row))
        row += piece


def make_batch(rng: Random, rows: int, width: int) -> npt.NDArray[np.int16]:
    """Return `rows` rows as one array of 16-bit integers."""
    return np.array([make_row(rng, width) for _ in range(rows)], dtype=np.int16)

"""Questions with one right answer each, for training, checking and showing.

The split into trained and held-out questions is a hash of the question's text,
made before any training: no list has to be kept, and a question is on the same
side on every machine.  Kinds with only a handful of possible questions (days,
months, letters of the alphabet, small talk) are `closed_kinds`: all of theirs
are trained, and checking them shows memory, not understanding.

Only the standard library is used, because `penstock generate` draws its demo
batch from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from string import ascii_lowercase

from penstock.model.demo.words import listed, word


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its only right answer, and its form without a chat.

    `completion` is a text that the model goes on with " " and the answer when
    it is given raw, outside the chat template ("17 + 25 =" -> " 42").
    """

    kind: str
    text: str
    answer: str
    completion: str


# What a kind's maker returns: text, answer and, if it has one, a completion.
Parts = tuple[str, str] | tuple[str, str, str]
Maker = Callable[[Random], Parts]


def _number(rng: Random) -> int:
    """Return mostly two digits: the questions asked most often."""
    roll = rng.random()
    if roll < 0.6:
        return rng.randint(10, 99)
    return rng.randint(0, 9) if roll < 0.75 else rng.randint(100, 999)


def _sum(rng: Random) -> Parts:
    a, b = _number(rng), _number(rng)
    return f"What is {a} + {b}?", str(a + b), f"{a} + {b} ="


def _difference(rng: Random) -> Parts:
    b, a = sorted((_number(rng), _number(rng)))
    return f"What is {a} - {b}?", str(a - b), f"{a} - {b} ="


def _numbers(rng: Random, fewest: int, most: int) -> list[int]:
    top = rng.choice((9, 20, 99, 99))
    return [rng.randint(0, top) for _ in range(rng.randint(fewest, most))]


def _joined(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _sort(rng: Random) -> Parts:
    numbers = _numbers(rng, 3, 6)
    return f"Sort {_joined(numbers)}.", _joined(sorted(numbers))


def _extreme(rng: Random) -> Parts:
    numbers = _numbers(rng, 2, 5)
    name, pick = rng.choice((("largest", max), ("smallest", min)))
    return f"What is the {name} of {_joined(numbers)}?", str(pick(numbers))


def _compare(rng: Random) -> Parts:
    a = _number(rng)
    near = max(0, a + rng.choice((-10, -2, -1, 1, 2, 10)))
    b = near if rng.random() < 0.4 else _number(rng)
    return f"Is {a} larger than {b}?", "yes" if a > b else "no"


def _parity(rng: Random) -> Parts:
    a = rng.randint(0, 10 ** rng.randint(2, 4) - 1)
    return f"Is {a} even or odd?", "odd" if a % 2 else "even"


_SMALL = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")


def in_words(number: int) -> str:
    """Return a number below ten thousand as one says it: 342 -> three hundred …"""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = _TENS[number // 10 - 2], number % 10
        return f"{tens}-{_SMALL[ones]}" if ones else tens
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    head = f"{_SMALL[number // size]} {name}"
    return f"{head} {in_words(rest)}" if rest else head


def _in_words(rng: Random) -> Parts:
    number = rng.randint(0, rng.choice((999, 9999)))
    return f"Write {number} in words.", in_words(number)


def _count(rng: Random) -> Parts:
    low = rng.randint(0, 99)
    high = low + rng.randint(3, 15)
    if rng.random() < 0.3:
        text = f"Count down from {high} to {low}."
        return text, _joined(list(range(high, low - 1, -1)))
    return f"Count from {low} to {high}.", _joined(list(range(low, high + 1)))


def _reverse(rng: Random) -> Parts:
    w = word(rng)
    return f"Reverse {w}.", w[::-1]


def _spell(rng: Random) -> Parts:
    w = word(rng, 12)
    return f"Spell {w}.", " ".join(w)


def _capitals(rng: Random) -> Parts:
    w = word(rng, 12)
    return f"Write {w} in capitals.", w.upper()


def _repeat(rng: Random) -> Parts:
    w, times = word(rng, 8), rng.randint(2, 6)
    return f"Say {w} {times} times.", " ".join([w] * times)


def _length(rng: Random) -> Parts:
    w = word(rng)
    return f"How many letters are in {w}?", str(len(w))


def _occurrences(rng: Random) -> Parts:
    w = word(rng)
    letter = rng.choice(w) if rng.random() < 0.8 else rng.choice(ascii_lowercase)
    return f"How many times is {letter} in {w}?", str(w.count(letter))


def _edge(rng: Random) -> Parts:
    w = word(rng)
    name, place = rng.choice((("first", 0), ("second", 1), ("last", -1)))
    return f"What is the {name} letter of {w}?", w[place]


def _join(rng: Random) -> Parts:
    a, b = word(rng, 8), word(rng, 8)
    return f"Join {a} and {b}.", a + b


def _alphabetical(rng: Random) -> Parts:
    w = word(rng, 8)
    return f"Sort the letters of {w}.", "".join(sorted(w))


_MAKERS: dict[str, Maker] = {
    "sum": _sum,
    "difference": _difference,
    "sort": _sort,
    "extreme": _extreme,
    "compare": _compare,
    "parity": _parity,
    "in words": _in_words,
    "count": _count,
    "reverse": _reverse,
    "spell": _spell,
    "capitals": _capitals,
    "repeat": _repeat,
    "length": _length,
    "occurrences": _occurrences,
    "edge": _edge,
    "join": _join,
    "alphabetical": _alphabetical,
}

_DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = listed("January February March April May June July August September October November December")
_TALK = {
    "Hello.": "Hello. Ask me a small question about numbers or words.",
    "Thank you.": "You are welcome.",
    "Goodbye.": "Goodbye.",
    "Who are you?": "I am the Penstock demo model: two million weights, eight layers.",
    "What are you?": "I am the Penstock demo model: two million weights, eight layers.",
    "How many layers do you have?": "I have eight layers.",
    "What can you do?": ("I add and subtract, sort and count numbers, and spell, reverse and join words."),
    "What is Penstock?": ("Penstock serves language models through a pipeline of stages and keeps every stage busy."),
}


def _ring(kind: str, what: str, names: list[str]) -> list[Question]:
    """Ask what comes before and after each of names that go round in a ring."""
    asked = []
    for place, name in enumerate(names):
        for side, step in (("after", 1), ("before", -1)):
            text = f"Which {what} comes {side} {name}?"
            answer = names[(place + step) % len(names)]
            asked.append(Question(kind, text, answer, text))
    return asked


def _alphabet() -> list[Question]:
    """The alphabet has two ends, so its ring is cut between z and a."""
    ring = _ring("alphabet", "letter", list(ascii_lowercase))
    return [q for q in ring if {q.text[-2], q.answer} != {"a", "z"}]


_CLOSED: dict[str, list[Question]] = {
    "day": _ring("day", "day", _DAYS),
    "month": _ring("month", "month", _MONTHS),
    "alphabet": _alphabet(),
    "talk": [Question("talk", q, answer, q) for q, answer in _TALK.items()],
}

closed_kinds: tuple[str, ...] = tuple(_CLOSED)
kinds: tuple[str, ...] = (*_MAKERS, *_CLOSED)


def held_out(text: str) -> bool:
    """Say whether a question's text is kept out of training: one in ten is."""
    return sha256(text.encode()).digest()[0] % 10 == 0


def every(kind: str) -> list[Question]:
    """Return all questions of a closed kind."""
    return list(_CLOSED[kind])


def draw(rng: Random, kind: str, wanted: bool) -> Question:
    """Draw one question of a kind: held out if `wanted`, else one to train on."""
    if kind in _CLOSED:
        return rng.choice(_CLOSED[kind])
    while True:
        text, answer, *rest = _MAKERS[kind](rng)
        if held_out(text) == wanted:
            return Question(kind, text, answer, rest[0] if rest else text)


def sample(n: int, seed: int, held_out: bool = True) -> list[Question]:
    """Return n questions, the same for a seed, with every kind as often as others."""
    rng = Random(seed)
    asked: list[Question] = []
    while len(asked) < n:
        order = rng.sample(kinds, len(kinds))
        asked += [draw(rng, kind, held_out) for kind in order]
    return asked[:n]

"""A scheduler's run on file: every input and every plan's bytes; and the replay, which makes the plans again.

The file is a stream of MessagePack arrays: a header with the format's version and the settings, then one array for
each call that can change a plan, in the order of the calls. A run that was cut off replays as far as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from ..errors import ConfigError
from .codec import decode_plan, decode_result, decode_sampling, encode_plan, encode_result, encode_sampling
from .config import SchedulerConfig
from .cost import StepCost
from .messages import NewRequest
from .plan import StepPlan, StepResult, ints
from .scheduler import Scheduler

RECORD_VERSION = 3
_MAGIC = "penstock record"


class Recorder(Scheduler):
    """A scheduler that writes down what goes in and comes out; the file is its opener's to close."""

    def __init__(self, scheduler: Scheduler, file: BinaryIO) -> None:
        """Stands in for `scheduler`, which must be a fresh one."""
        assert scheduler.stats().num_steps == scheduler.num_unfinished == 0, "the scheduler has begun already"
        super().__init__(scheduler.config)
        self._file = file
        self._write(_MAGIC, RECORD_VERSION, asdict(scheduler.config))

    def add_request(self, request: NewRequest) -> None:
        self._write("add", *_encode_request(request))
        super().add_request(request)

    def abort(self, client_id: str, request_id: str) -> None:
        self._write("abort", client_id, request_id)
        super().abort(client_id, request_id)

    def abort_client(self, client_id: str) -> None:
        self._write("abort_client", client_id)
        super().abort_client(client_id)

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        self._write("schedule", plan and encode_plan(plan))
        return plan

    def update(self, result: StepResult) -> None:
        self._write("update", encode_result(result))
        super().update(result)

    def fail_all(self, message: str) -> None:
        self._write("fail_all", message)
        super().fail_all(message)

    def _write(self, *values: Any) -> None:
        self._file.write(msgpack.packb(values, use_bin_type=True))


@dataclass(slots=True)
class ReplayReport:
    """How a replay went."""

    num_calls: int = 0  # inputs and schedule() calls
    num_plans: int = 0
    num_plan_bytes: int = 0
    difference: str | None = None  # the first one; None: every plan byte the same


def replay(path: str | Path) -> ReplayReport:
    """Runs a record's inputs through a new scheduler and compares every plan, up to the first difference.

    Raises ConfigError when the file is no record of this version.
    """
    with open(path, "rb") as file:
        records = _records(file, path)
        with _reading(path, "its settings"):
            config = _read_header(next(records, None), path)
        scheduler, report = Scheduler(config), ReplayReport()
        for record in records:
            report.num_calls += 1
            with _reading(path, f"call {report.num_calls}"):
                name, arguments = _read_call(record)
            if name == "schedule":
                _replay_plan(scheduler, arguments[0], report, path)
            else:
                _CALLS[name](scheduler, *arguments)
            scheduler.take_events()
            if report.difference is not None:
                break
    return report


@contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    """Damage that shows where a file is read becomes a ConfigError; what the scheduler raises stays as it is."""
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
        raise ConfigError(f"{path} is damaged: {what}: {error}") from None


def _records(file: BinaryIO, path: str | Path) -> Iterator[object]:
    with _reading(path, "no MessagePack"):
        yield from msgpack.Unpacker(file, raw=False, strict_map_key=False)


def _read_header(header: object, path: str | Path) -> SchedulerConfig:
    if not isinstance(header, list) or len(header) != 3 or header[0] != _MAGIC:
        raise ConfigError(f"{path} is no record of a run")
    if header[1] != RECORD_VERSION:
        raise ConfigError(f"{path} is a record of version {header[1]}, this is version {RECORD_VERSION}")
    settings = dict(header[2])
    if (step_cost := settings.pop("step_cost", None)) is not None:
        step_cost = StepCost(**step_cost)
    return SchedulerConfig(step_cost=step_cost, **settings)


def _read_call(record: Any) -> tuple[str, list[Any]]:
    """A call's name and arguments."""
    name, *values = record
    if name == "add":
        return name, [_decode_request(values)]
    if name == "update":
        return name, [decode_result(*values)]
    if name == "schedule" and len(values) == 1 and isinstance(values[0], bytes | None):
        return name, values
    if name in _TEXTS and len(values) == _TEXTS[name] and all(isinstance(value, str) for value in values):
        return name, values
    raise ValueError(f"{_short(record)} is no call")


def _replay_plan(scheduler: Scheduler, recorded: bytes | None, report: ReplayReport, path: str | Path) -> None:
    plan = scheduler.schedule()
    replayed = None if plan is None else encode_plan(plan)
    report.num_plans += recorded is not None
    report.num_plan_bytes += len(recorded or b"")
    if replayed != recorded:
        with _reading(path, f"call {report.num_calls}"):
            report.difference = _difference(recorded, replayed, report.num_calls)


def _difference(recorded: bytes | None, replayed: bytes | None, num_calls: int) -> str:
    if recorded is None or replayed is None:
        step = decode_plan(recorded or replayed or b"").step
        return f"call {num_calls}: plan {step} was {_not(recorded)}recorded, {_not(replayed)}replayed"
    old, new = decode_plan(recorded), decode_plan(replayed)
    for field in fields(StepPlan):
        was, is_now = getattr(old, field.name), getattr(new, field.name)
        if _plain(was) != _plain(is_now):
            return f"plan {old.step}: {field.name} was {_short(was)}, replayed {_short(is_now)}"
    return f"plan {old.step}: the bytes differ, the fields do not"


def _not(data: bytes | None) -> str:
    return "" if data else "not "


def _plain(value: Any) -> object:
    """A plan's field as plain values, which compare as a whole."""
    if isinstance(value, list):
        return [[_plain(getattr(item, field.name)) for field in fields(item)] for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _encode_request(request: NewRequest) -> list[Any]:
    return [
        request.client_id,
        request.request_id,
        np.asarray(request.prompt_token_ids).astype("<i4").tobytes(),
        request.max_tokens,
        encode_sampling(request.sampling),
        list(request.stop_token_ids),
        list(request.eos_token_ids),
        request.ignore_eos,
    ]


def _decode_request(values: list[Any]) -> NewRequest:
    client_id, request_id, prompt, max_tokens, sampling, stop_token_ids, eos_token_ids, ignore_eos = values
    return NewRequest(
        request_id=request_id,
        prompt_token_ids=ints(np.frombuffer(prompt, "<i4")),
        max_tokens=max_tokens,
        sampling=decode_sampling(sampling),
        client_id=client_id,
        stop_token_ids=tuple(stop_token_ids),
        eos_token_ids=tuple(eos_token_ids),
        ignore_eos=ignore_eos,
    )


_CALLS: dict[str, Callable[..., None]] = {
    "add": Scheduler.add_request,
    "abort": Scheduler.abort,
    "abort_client": Scheduler.abort_client,
    "update": Scheduler.update,
    "fail_all": Scheduler.fail_all,
}
_TEXTS = {"abort": 2, "abort_client": 1, "fail_all": 1}  # calls whose arguments are so many texts

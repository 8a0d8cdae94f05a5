"""What completions and chat put around their choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .completion_protocol import Usage
from .fields import SamplingFields
from .service import Job, Service


class Envelope:
    """One request's, for whole answers and for the chunks of a stream."""

    def __init__(self, service: Service, body: SamplingFields, job: Job, usage: Callable[[], Usage]) -> None:
        self._service, self._body, self._job, self._usage = service, body, job, usage

    def whole(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The response of a request that has ended, or a stream's last chunk."""
        return self._around(kind, choices) | {"usage": self._told()}

    def chunks(self, kind: str, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A chunk for each choice that one step has moved; the usage is counted once for all of them."""
        usage: dict[str, Any] = {}
        if choices and self._body.wants_running_usage:
            usage = {"usage": self._told()}
        elif self._body.wants_usage:
            usage = {"usage": None}
        return [self._around(kind, [choice]) | usage for choice in choices]

    def _told(self) -> dict[str, Any]:
        return self._usage().model_dump()

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._job.request_id,
            "object": kind,
            "created": self._job.created,
            "model": self._service.model_name,
            "choices": choices,
        }

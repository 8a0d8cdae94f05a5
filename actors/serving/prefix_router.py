"""A request router for Ray Serve that sends a prompt where its beginning has been before.

The engine that saw the longest beginning of the prompt has it in its prefix cache; it is taken unless it has so many
more requests in flight than the idlest one that waiting would cost more than computing the beginning again. Otherwise,
and for beginnings that nobody has seen, the emptier of two engines is taken.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

MAX_CHUNKS = 1 << 16  # of beginnings that are remembered
MAX_LEAD = 8  # requests in flight that an engine may have more than the idlest, and still be taken


class PrefixAwareRouter(RequestRouter):
    """Chooses by the chunk hashes that are the request's first argument."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve calls it behind the constructor."""
        self._seen: OrderedDict[bytes, ReplicaID] = OrderedDict()  # chunk hash: who had it last, oldest first

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that knows the prompt's beginning, then two at random."""
        if not candidate_replicas:
            return []
        two = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        knowing = self._knowing(_prefix(pending_request), candidate_replicas)
        return [two] if knowing is None else [[knowing], two]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remembers who has the beginning now."""
        for chunk in _prefix(pending_request):
            self._seen[chunk] = replica_id
            self._seen.move_to_end(chunk)
        while len(self._seen) > MAX_CHUNKS:
            self._seen.popitem(last=False)

    def _knowing(self, prefix: Sequence[bytes], candidates: list[RunningReplica]) -> RunningReplica | None:
        by_id = {replica.replica_id: replica for replica in candidates}
        idlest = min(map(self._load, by_id))
        for chunk in reversed(prefix):
            replica_id = self._seen.get(chunk)
            if replica_id in by_id and self._load(replica_id) <= idlest + MAX_LEAD:
                return by_id[replica_id]
        return None

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests in flight, as far as known."""
        return self.replica_queue_len_cache.get(replica_id) or 0


def _prefix(request: PendingRequest | None) -> Sequence[bytes]:
    return request.args[0] if request is not None and request.args else ()

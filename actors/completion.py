"""One completion as the client sees it: tokens come in as events, text, logprobs and the end come out.

Pure: no clock, no I/O. Text is made when it is asked for, unless stop strings have to be looked for.
"""

from __future__ import annotations

from ..configs.sampling import SamplingParams
from ..scheduler.messages import TokenEvent
from ..scheduler.plan import Logprobs
from .detokenizer import Detokenizer, find_stop, held_back
from .outputs import CompletionOutput, Logprob, PositionLogprobs
from .tokenizer import Tokenizer


class Completion:
    """A growing sequence; `index` tells a request's `n` completions apart."""

    def __init__(
        self, index: int, params: SamplingParams, detokenizer: Detokenizer | None, tokenizer: Tokenizer | None
    ):
        self.index = index
        self.ending_ids: frozenset[int] = frozenset()  # tokens that end it and give no text
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        self._params = params
        self._detokenizer = detokenizer
        self._tokenizer = tokenizer
        self._stops = params.stop_strings
        self._logprobs: list[PositionLogprobs] | None = None if params.logprobs is None else []
        self._text = ""
        self._num_decoded = 0  # tokens whose text is in `_text`
        self._num_hidden = 0  # tokens at the end that give no text: the one that stopped it
        self._given = (0, 0)  # tokens and characters that `delta` has handed out
        self._has_told_end = False

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None

    def accept(self, event: TokenEvent) -> bool:
        """Takes an event in; True when a stop string ended the completion and the engine does not know it yet.

        An event may repeat tokens (one that the engine coalesced); a gap is a broken invariant.
        """
        if self.finished:
            return False
        seen = len(self.token_ids) - event.start
        assert seen >= 0, f"{event.request_id}: event starts at {event.start}, {len(self.token_ids)} tokens are here"
        ends = event.finish_reason == "stop" and not self._params.include_stop_str_in_output
        for at in range(seen, len(event.token_ids)):
            token_id = int(event.token_ids[at])
            self.token_ids.append(token_id)
            if self._logprobs is not None and at < len(event.logprobs):
                self._logprobs.extend(position_logprobs(event.logprobs[at], self._tokenizer))
            last = at == len(event.token_ids) - 1
            if ends and last and token_id in self.ending_ids:
                self._num_hidden = 1
            elif self._stops and self._met_stop_string():
                return event.finish_reason is None
        self._end_with(event)
        return False

    def snapshot(self) -> CompletionOutput:
        """What there is by now; of a running completion, without what may become a stop string."""
        return self._output(0, 0, self._num_ready_chars())

    def news(self) -> CompletionOutput | None:
        """As `delta`; None where no token has come since the last call, nor the end."""
        is_told = self._has_told_end or not self.finished
        return None if is_told and len(self.token_ids) == self._given[0] else self.delta()

    def delta(self) -> CompletionOutput:
        """What has come since the last call; its cumulative_logprob is of everything."""
        self._has_told_end = self.finished
        num_tokens, num_chars = self._given
        end = self._num_ready_chars()
        self._given = (len(self.token_ids), end)
        return self._output(num_tokens, num_chars, end)

    def _num_ready_chars(self) -> int:
        """Characters of the text, brought up to date, that can't become part of a stop string any more."""
        self._decode()
        if self.finished or self._params.include_stop_str_in_output:
            return len(self._text)
        return len(self._text) - held_back(self._text, self._stops)

    def _output(self, first_token: int, first_char: int, end_char: int) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=self._text[first_char:end_char],
            token_ids=self.token_ids[first_token:],
            cumulative_logprob=self._cumulative(),
            logprobs=None if self._logprobs is None else self._logprobs[first_token:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def fail(self, message: str) -> None:
        """Ends it with an error that did not come as an event."""
        if not self.finished:
            self.finish_reason, self.error = "error", message

    def _end_with(self, event: TokenEvent) -> None:
        if event.finish_reason is None:
            return
        self.finish_reason, self.stop_reason, self.error = event.finish_reason, event.stop_reason, event.error
        self._decode()
        if self._detokenizer is not None:
            rest = self._detokenizer.finish()
            self._text += rest
            self._cut_at_stop(len(rest))

    def _met_stop_string(self) -> bool:
        """Decodes the newest token; ends the completion if its text completes a stop string."""
        num_new = self._decode()
        return len(self.token_ids) > self._params.min_tokens and self._cut_at_stop(num_new)

    def _cut_at_stop(self, num_new: int) -> bool:
        found = find_stop(self._text, num_new, self._stops) if num_new else None
        if found is None:
            return False
        at, stop = found
        end = at + len(stop) if self._params.include_stop_str_in_output else at
        self._text = self._text[:end]
        self.finish_reason, self.stop_reason = "stop", stop
        return True

    def _decode(self) -> int:
        """Brings the text up to date; the number of new characters."""
        end = len(self.token_ids) - self._num_hidden
        if self._detokenizer is None or self._num_decoded >= end:
            return 0
        new = self._detokenizer.append(self.token_ids[self._num_decoded : end])
        self._num_decoded = end
        self._text += new
        return len(new)

    def _cumulative(self) -> float | None:
        if self._logprobs is None:
            return None
        return sum(table[token].logprob for table, token in zip(self._logprobs, self.token_ids, strict=False))


def position_logprobs(scores: Logprobs, tokenizer: Tokenizer | None) -> list[PositionLogprobs]:
    """For each of the k positions: the likeliest tokens by rank, and the scored token with its own."""
    tables: list[PositionLogprobs] = []
    for at, token_id in enumerate(scores.token_ids.tolist()):
        likeliest = zip(scores.top_ids[at].tolist(), scores.top_values[at].tolist(), strict=True)
        entries = [(token_id, float(scores.values[at]), int(scores.ranks[at]))]
        entries += [(other, value, rank) for rank, (other, value) in enumerate(likeliest, 1) if other != token_id]
        tables.append(
            {
                other: Logprob(value, rank, tokenizer.piece(other) if tokenizer else None)
                for other, value, rank in entries
            }
        )
    return tables

"""Cost of mining: a budget that can be exceeded only by errors of its estimates, and the text of a progress line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from digr.config.interests import EndpointModel, LanguageModel

_BYTES_PER_TOKEN = 3
_PROMPT_TOKENS = 100
"""Tokens of the chat template and the answer's schema."""
_IMAGE_TOKENS = 1500


class Spending(NamedTuple):
    """Number of tokens, read and written, and their cost."""

    tokens: float = 0
    usd: float = 0.0

    def plus(self, other: "Spending") -> "Spending":
        """Return the sum of both."""
        return Spending(self.tokens + other.tokens, self.usd + other.usd)


class Budget:
    """Decides which requests still fit a cap in tokens and one in USD; a cap of 0 means no cap.

    Requests in flight reserve their worst case; when an answer arrives, the unused part is released. So all costs fit the
    caps, up to errors of the estimated worst cases, and no request in flight is cancelled.
    """

    def __init__(self, caps: Spending, spent: Spending):
        self.caps, self.spent, self.stopped = caps, spent, False
        self.in_flight: dict[str, Spending] = {}

    def admit(self, worst: Mapping[str, Spending]) -> list[str] | None:
        """Return the requests of a batch that may be asked, or None if answers in flight must arrive first.

        After the first batch that does not fit completely, `stopped` is true and no more requests are admitted.

        Args:
            worst: request -> its worst case, in the order of asking.
        """
        if self.stopped:
            return [request for request in worst if request in self.in_flight]
        new = {request: one for request, one in worst.items() if request not in self.in_flight}
        if not self._fits(new):
            if self.in_flight:
                return None
            self.stopped = True
            while new and not self._fits(new):
                new.popitem()
        self.in_flight |= new
        return [request for request in worst if request in self.in_flight]

    def settle(self, requests: Sequence[str], real: Spending) -> None:
        """Count the real cost of requests, which are no longer in flight."""
        for request in requests:
            self.in_flight.pop(request, None)
        self.spent = self.spent.plus(real)

    def _fits(self, more: Mapping[str, Spending]) -> bool:
        held = [*self.in_flight.values(), *more.values()]
        tokens = self.spent.tokens + sum(one.tokens for one in held)
        usd = self.spent.usd + sum(one.usd for one in held)
        return (not self.caps.tokens or tokens <= self.caps.tokens) and (not self.caps.usd or usd <= self.caps.usd)


def cost_usd(model: LanguageModel, input_tokens: float, output_tokens: float) -> float:
    """Return the price of tokens; a model on one's own cluster costs nothing."""
    if not isinstance(model, EndpointModel):
        return 0.0
    return (input_tokens * model.usd_per_million_input_tokens + output_tokens * model.usd_per_million_output_tokens) / 1e6


def worst_case(messages: Sequence[Mapping[str, Any]], model: LanguageModel) -> Spending:
    """Return the most that a chat may cost: a generous estimate of its prompt, and the longest answer allowed."""
    read = _PROMPT_TOKENS
    for message in messages:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            # bytes, because in many scripts each letter is a token
            read += len(part["text"].encode()) // _BYTES_PER_TOKEN if "text" in part else _IMAGE_TOKENS
    return Spending(read + model.max_tokens, cost_usd(model, read, model.max_tokens))


def progress_text(done: int, expected: int, seconds: float, spent: Spending, first: tuple[int, float] = (0, 0.0)) -> str:
    """Return a miner's progress: rates over the whole time, and the time left at the rate since its first answers.

    Args:
        first: number and seconds of the first answers; before them, an engine loads its model.

    >>> progress_text(50, 200, 10.0, Spending(4000, 0.5))
    '50/200, 5.0 items/s, 400 tokens/s, 0.5000 USD, 30 s left'
    >>> progress_text(50, 200, 50.0, Spending(4000, 0.5), first=(10, 46.0))
    '50/200, 1.0 items/s, 80 tokens/s, 0.5000 USD, 15 s left'
    """
    rate = done / max(seconds, 1e-9)
    parts = [f"{done}/{expected}", f"{rate:.1f} items/s"]
    if spent.tokens:
        parts += [f"{spent.tokens / max(seconds, 1e-9):.0f} tokens/s", f"{spent.usd:.4f} USD"]
    if done < expected:
        since = (done - first[0]) / max(seconds - first[1], 1e-9)
        parts.append(f"{_duration((expected - done) / since)} left" if since else "time left unknown")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    """Write a duration in its two largest units.

    >>> [_duration(seconds) for seconds in (5.4, 65, 7300, 90000)]
    ['5 s', '1 min 5 s', '2 h 1 min', '25 h 0 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"

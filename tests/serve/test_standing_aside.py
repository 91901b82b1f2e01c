"""Work beside requests stands aside while lists are decoded, and ends nevertheless."""

import sys

import pytest

from serve.replicas.standing_aside import MAX_WAIT_SECONDS, SHARE, standing_aside


class Decoder:
    """Stands for the event that is set while nothing is decoded; a wait for it moves the clock on."""

    def __init__(self, *, is_idle: bool, batch_seconds: float = 0.0) -> None:
        self.is_idle, self.batch_seconds, self.now, self.waits = is_idle, batch_seconds, 0.0, list[float]()

    def is_set(self) -> bool:
        return self.is_idle

    def wait(self, most: float) -> None:
        self.waits.append(self.now)
        self.now += min(most, self.batch_seconds)

    def clock(self) -> float:
        return self.now


def _step(decoder: Decoder) -> None:
    decoder.now += 0.001


def _work(decoder: Decoder, steps: int) -> None:
    with standing_aside(decoder, decoder.clock):
        for _ in range(steps):
            _step(decoder)


def test_work_does_not_wait_while_nothing_is_decoded():
    decoder = Decoder(is_idle=True)
    _work(decoder, 100)
    assert decoder.waits == []
    assert decoder.now == pytest.approx(0.1)


def test_while_lists_are_decoded_work_waits_and_gets_its_share_of_the_time():
    """A list that was decoded during a load made no progress until the load had ended."""
    decoder = Decoder(is_idle=False, batch_seconds=0.02)
    _work(decoder, 100)
    assert decoder.now == pytest.approx(0.1 * (1 + 1 / SHARE), abs=0.05)
    assert len(decoder.waits) == pytest.approx(0.1 / (SHARE * 0.02), abs=2)


def test_a_wait_is_bounded_however_long_a_batch_takes():
    decoder = Decoder(is_idle=False, batch_seconds=60.0)
    _work(decoder, 10)
    assert decoder.waits == [0.0]
    assert decoder.now == pytest.approx(MAX_WAIT_SECONDS + 0.01)


def test_the_thread_is_as_before_afterwards_also_after_an_error():
    def before(frame, event, called) -> None: ...

    sys.setprofile(before)
    try:
        with pytest.raises(ValueError, match="broken run"), standing_aside(Decoder(is_idle=True)):
            raise ValueError("broken run")
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)

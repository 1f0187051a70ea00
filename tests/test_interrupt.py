import os
import signal

import pytest

from rmkit.runtime import SIGNALS, stop_asked


@pytest.fixture
def handlers():
    """Handlers that note what reaches them, put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reached = []
    for number in SIGNALS:
        signal.signal(number, lambda received, frame: reached.append(received))
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


def test_both_ways_to_ask_are_covered():
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_block_goes_on(number, handlers):
    with stop_asked() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
    assert handlers == []


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_acts_as_before(first, second, handlers):
    with stop_asked() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        assert stop.received is first
    assert handlers == [second]


def test_ctrl_c_twice_is_a_keyboard_interrupt(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped_twice():
        with stop_asked():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stopped_twice()


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_handlers_are_put_back(error, handlers):
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with stop_asked():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before

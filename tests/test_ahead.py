import threading
import time
import traceback

import pytest

from rmkit.batch.ahead import Ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_the_items_come_in_their_order_and_no_thread_is_left():
    with Ahead(iter(range(20))) as ahead:
        assert list(ahead) == list(range(20))
        assert list(ahead) == []
    assert threads() == []


def test_one_item_is_made_while_the_one_before_it_is_used():
    made = []
    seen = threading.Event()

    def items():
        for i in range(4):
            made.append((i, threading.current_thread().name))
            if i == 1:
                seen.set()
            yield i

    with Ahead(items()) as ahead:
        assert next(ahead) == 0
        assert seen.wait(10.0), "the second is made before it is asked for"
        time.sleep(0.05)
        assert [i for i, _ in made] == [0, 1], "and no third"
    assert all(name.startswith("ahead") for _, name in made)


def test_an_error_is_raised_where_its_item_is_asked_for_with_its_own_lines():
    def items():
        yield 0
        raise ValueError("a bad row")

    with Ahead(items()) as ahead:
        assert next(ahead) == 0
        with pytest.raises(ValueError, match=r"^a bad row$") as caught:
            next(ahead)
    assert "in items" in "".join(traceback.format_exception(caught.value))
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_block_ends_the_thread_with_items_left(error):
    def fails():
        with Ahead(iter(range(1000))) as ahead:
            next(ahead)
            raise error

    with pytest.raises(error):
        fails()
    assert threads() == []


def test_what_is_to_run_first_runs_in_the_thread():
    ran = []
    with Ahead(iter("ab"), lambda: ran.append(threading.current_thread().name)) as ahead:
        assert list(ahead) == ["a", "b"]
    assert len(ran) == 1
    assert ran[0].startswith("ahead")

"""What one rank meets, all know."""

import signal

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from rmkit.distributed.collectives import (
    agreed,
    agreed_stop,
    first_then_others,
    on_every_rank,
    on_first_rank,
    rank,
    ranks,
)
from rmkit.errors import AgreedError, UserError, flag
from rmkit.runtime import Stop


@pytest.fixture
def another_rank(monkeypatch):
    """As seen by rank 1 of two: what rank 0 sends is what the test says."""
    sent = []

    def gather(outcomes, mine, group=None):
        outcomes[:] = [sent[0], mine]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    return sent


def fails(error):
    def action():
        raise error

    return action


def test_one_process_needs_no_group():
    assert (rank(), ranks()) == (0, 1)
    assert on_every_rank(lambda: 3) == [3]
    assert on_first_rank(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        on_every_rank(lambda: 1 // 0)


def test_outcomes_come_by_rank(another_rank):
    another_rank.append(("a", None))
    assert (rank(), ranks()) == (1, 2)
    assert on_every_rank(lambda: "b") == ["a", "b"]
    assert on_first_rank(fails(AssertionError("only rank 0 runs it"))) == "a"


BAD_FILE = UserError("data.train", "a.jsonl", f"not there; see {flag('data.max_length')}")


@pytest.mark.parametrize(
    ("error", "own", "kind"),
    [
        (ValueError("so"), AgreedError, AgreedError),
        (OSError(28, "full"), AgreedError, AgreedError),
        (SafetensorError("No space left on device"), AgreedError, AgreedError),
        (BAD_FILE, AgreedError, AgreedError),
        (KeyError("x"), KeyError, RuntimeError),
    ],
)
def test_the_error_of_another_rank_is_raised_here(another_rank, error, own, kind):
    """What rank 0 would send is what this rank sends of the same error."""
    another_rank.append((None, None))
    received = []
    gather = dist.all_gather_object

    def keep(outcomes, mine, group=None):
        received.append(mine)
        gather(outcomes, mine)

    dist.all_gather_object = keep  # the fixture puts the true one back
    with pytest.raises(own) as caught:
        on_every_rank(fails(error))
    assert str(caught.value) == str(error)
    another_rank[0] = received[0]
    with pytest.raises(kind, match=r"^rank 0: .*") as caught:
        on_every_rank(lambda: "done")
    assert str(error) in str(caught.value)


def test_the_error_of_another_rank_is_told_in_the_words_of_the_program(another_rank):
    another_rank.append((None, ("data.train", "a.jsonl", BAD_FILE.hint)))
    with pytest.raises(AgreedError) as caught:
        on_first_rank(lambda: None)
    found = caught.value.told({"data.train": "SAMPLES", "data.max_length": "--max-length"})
    assert found == "rank 0: SAMPLES a.jsonl: not there; see --max-length"


def test_one_process_reads_what_it_has_filled_once():
    calls = []
    assert first_then_others(lambda: calls.append(1) or "read") == "read"
    assert len(calls) == 1


def test_agreed_is_what_the_action_made_here():
    model = object()
    assert agreed(lambda: model) is model
    with pytest.raises(AgreedError, match=r"^so$"):
        agreed(fails(ValueError("so")))


def test_one_process_stops_when_it_is_asked_to():
    assert agreed_stop(Stop(), torch.device("cpu")) is None
    assert agreed_stop(Stop(received=signal.SIGTERM), torch.device("cpu")) == signal.SIGTERM

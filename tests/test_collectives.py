"""What one rank meets, all know."""

import pytest
import torch.distributed as dist
from safetensors import SafetensorError

from rmkit.distributed.collectives import on_every_rank, on_first_rank, rank, ranks


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


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("so"), ValueError), (OSError(28, "full"), OSError), (KeyError("x"), RuntimeError)]
)
def test_the_error_of_another_rank_is_raised_here(another_rank, error, kind):
    """What rank 0 would send is what this rank sends of the same error."""
    another_rank.append((None, None))
    received = []
    gather = dist.all_gather_object

    def keep(outcomes, mine, group=None):
        received.append(mine)
        gather(outcomes, mine)

    dist.all_gather_object = keep  # the fixture puts the true one back
    with pytest.raises(type(error)):
        on_every_rank(fails(error))
    another_rank[0] = received[0]
    with pytest.raises(kind, match=r"^rank 0: .*") as caught:
        on_every_rank(lambda: "done")
    assert str(error) in str(caught.value)


def test_a_full_disk_is_an_os_error_whoever_tells_of_it(another_rank):
    another_rank.append((None, None))
    with pytest.raises(SafetensorError):
        on_every_rank(fails(SafetensorError("No space left on device")))

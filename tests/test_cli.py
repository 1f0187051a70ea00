"""Around every program: a sentence in a box and a status, whatever goes wrong for the user."""

import signal

import datasets
import pytest

from rmkit import cli, errors
from rmkit.distributed import launch


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("--flag 3: set 4"), 2, "--flag 3: set 4"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (errors.AgreedError("rank 3: no such file"), 2, "rank 3: no such file"),
        (KeyboardInterrupt(), 130, "nothing was lost"),
    ],
)
def test_an_error_of_the_user_is_a_box_and_a_status(error, status, told, capsys):
    def work(console):
        raise error

    assert cli.run(work, "nothing was lost") == status
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_our_own_errors_keep_their_traceback():
    def work(console):
        raise AssertionError

    with pytest.raises(AssertionError):
        cli.run(work, "")


def test_a_lost_process_is_a_box_that_says_how_to_go_on(monkeypatch, capsys):
    def work(console):
        raise RuntimeError("[pair.cc:1] Connection closed by peer, says gloo")

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(launch, "_silent_ranks", lambda: [1, 3])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.run(work, "", "Try --resume") == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = " ".join(capsys.readouterr().err.split())
    assert "rank 1, 3 has ended" in told
    assert "Connection closed by peer" in told
    assert "Try --resume" in told


def test_progress_bars_are_off_in_a_log_and_given_back():
    datasets.enable_progress_bars()  # whatever ran before
    seen = []
    assert cli.run(lambda console: seen.append(datasets.are_progress_bars_disabled()) or 0, "") == 0
    assert seen == [True]
    assert not datasets.are_progress_bars_disabled()

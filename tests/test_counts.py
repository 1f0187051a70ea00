from rmkit.data.counts import Counts, in_words


def test_rows_and_pairs_add_up():
    """A file of pairs and one of lists, of which a row makes many."""
    counts = Counts()
    flaws = {"empty response": 1}
    counts.add({"rows": 5, "dropped": {"other split": 2, **flaws}, "flaws": flaws, "benchmark": ""}, 2)
    counts.add({"rows": 2, "dropped": {"bad rows": 1}, "flaws": {}, "benchmark": "rmb"}, 9)
    counts.pairs_dropped.update({"over-long": 4})
    held = counts.as_dict()
    assert held["rows"] == held["rows_read"] + sum(held["rows_dropped"].values()) == 7
    assert held["pairs"] == held["pairs_kept"] + sum(held["pairs_dropped"].values()) == 12
    assert held["rows_dropped"] == {"bad rows": 1, "other split": 2}
    assert held["pairs_dropped"] == {"empty response": 1, "over-long": 4}
    assert counts.bad_rows == {"rmb": 1}
    assert in_words(held, "rows") == "7, of which 3 dropped (1 bad rows; 2 other split)"
    assert in_words(Counts(rows=3).as_dict(), "rows") == "3"

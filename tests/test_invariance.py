"""The campaign as a test; what is quick of it stands in test_sharding.py and test_train.py."""

import pytest

from campaigns.invariance import campaign


@pytest.mark.slow
def test_nothing_changes_with_the_number_of_processes(tmp_path):
    found = campaign(tmp_path, print)
    assert len(found) == 45
    assert [row for row in found if not row["within"]] == []

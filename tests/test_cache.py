import datasets
import pytest
from datasets import Dataset

from rmkit.data import cache
from rmkit.data.cache import Source, build, features

ROWS = [
    {"prompt": "q", "chosen": "a", "rejected": "b", "split": "test"},
    {"prompt": "q", "chosen": "a", "rejected": "a", "split": "train"},
    {"prompt": "q", "chosen": "a", "rejected": "c", "split": None},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_report_is_no_preference():
    built, report = build(Source(shown="x", own_split="train"), Dataset.from_list(ROWS))
    assert built.features == features()
    assert built["source"][:] == ["x:2"]
    dropped = {"other split": 1, "identical chosen and rejected": 1}
    known = {"form": "explicit prompt", "rows": 3, "dropped": dropped}
    assert report == known | {"columns": [], "unused": []}


def test_what_is_built_is_a_slice_without_an_index():
    """An indices mapping would turn every later read into a random one."""
    built, _ = build(Source(shown="x"), Dataset.from_list(ROWS))
    assert built._indices is None


def test_nothing_left_is_an_empty_dataset():
    built, report = build(Source(shown="x"), Dataset.from_list(ROWS[1:2]))
    assert len(built) == 0
    assert built.features == features()
    assert report["rows"] == 1


def test_another_version_of_the_code_reads_anew(monkeypatch):
    rows = Dataset.from_list(ROWS)
    build(Source(shown="x"), rows)
    monkeypatch.setattr(cache, "preferences", lambda row, form: [])
    assert len(build(Source(shown="x"), rows)[0]) == 2
    monkeypatch.setattr(cache, "_code", lambda: "another")
    assert len(build(Source(shown="x"), rows)[0]) == 0


def test_a_full_disk_is_a_sentence(monkeypatch):
    def full(row, form):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "preferences", full)
    with pytest.raises(ValueError, match=r"^x: .*No space left on device"):
        build(Source(shown="x"), Dataset.from_list(ROWS))


def test_a_failure_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def broken(row, form):
        raise ZeroDivisionError

    monkeypatch.setattr(cache, "preferences", broken)
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as caught:
        build(Source(shown="x"), Dataset.from_list(ROWS))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

"""The page of one run: whole, with nothing from elsewhere, text as text, and whatever is missing said."""

import json
import os
import re

import pytest

from rmkit.pages import run_page
from rmkit.pages.folder import opened
from rmkit.pages.verdicts import calibration
from support.page_reader import EVIL, read, text_of
from support.run_of import write_run

CHARTS = ("Accuracy", "Loss", "Margin", "Scores, held out", "Gradient norm", "Learning rate", "Speed", "Tokens saved")


def paged(run, **how) -> str:
    return run_page.page(opened(run, **how))


def test_page_is_whole_and_takes_nothing_from_elsewhere(tmp_path):
    page = paged(write_run(tmp_path, "r"))
    reader = read(page)
    assert reader.addresses == []
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert reader.tags.count("svg") == len(CHARTS) + 2
    for elsewhere in ("url(", "@import", "http:", "https:"):
        assert elsewhere not in page


def test_page_tells_figures_curves_settings_and_pairs(tmp_path):
    run = write_run(tmp_path, "r", lr=0.004)
    text = text_of(paged(run))
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert f"{last['rewards_eval/accuracies']:.4f}" in text
    assert re.search(r"95 % interval 0\.\d{3} to [01]\.\d{3}, 40 pairs, step 30", text)
    for words in (
        *CHARTS,
        "Reliability",
        "Margins of the held-out pairs",
        "accuracy at like length (length alone has 0.5)",
        "Finished after 30 steps",
        "tokens saved 75%",
    ):
        assert words in text
    assert "--optim.lr 0.004 0.002" in text
    assert "90, of which 2 dropped (2 bad row)" in text
    assert text.index("--optim.lr") < text.index("flags at their default")
    held_out = opened(run).held_out
    first, second = (text.index(f"prompt {i} ") for i in held_out.worst)
    assert first < second, "the most wrong pair comes first"


def test_a_temperature_and_what_it_mends_on_the_pairs_it_was_fitted_on(tmp_path):
    run = write_run(tmp_path, "r")
    assert "of these pairs" not in text_of(paged(run))
    contract = run / "FINAL" / "rmkit.json"
    contract.write_text(json.dumps({"trust": {"temperature": 2.5, "held_out_pairs": 31}}))
    text, error = text_of(paged(run)), calibration(opened(run).held_out.margin / 2.5)["ece"]
    assert "temperature 2.500 (fitted on 31 of these pairs; probability sigmoid(margin / temperature))" in text
    assert f"calibration error with it {error:.4f} (fitted on 31 of these pairs, so a fit and not a forecast)" in text
    assert "of these pairs" not in text_of(paged(run, running=True)), "that FINAL is of before"
    for held in ("{", "[]", "{}", '{"trust": null}', '{"trust": {"temperature": null, "held_out_pairs": 0}}'):
        contract.write_text(held)
        assert "of these pairs" not in text_of(paged(run))
    for value in ("0", "-1", "NaN", "Infinity"):
        contract.write_text(f'{{"trust": {{"temperature": {value}, "held_out_pairs": 31}}}}')
        assert "of these pairs" not in text_of(paged(run))


def test_every_text_of_a_run_is_text(tmp_path):
    plain, spoiled = (paged(write_run(tmp_path, name, text=text)) for name, text in (("a", "x"), ("b", EVIL)))
    assert read(spoiled).tags == read(plain).tags
    assert [name for name, _ in read(spoiled).attributes] == [name for name, _ in read(plain).attributes]
    assert " ".join(read(spoiled).words).count(EVIL) >= 8


def test_names_are_text(tmp_path):
    hostile = EVIL.replace("/", "\u2044")
    reader = read(paged(write_run(tmp_path, hostile)))
    assert "script" not in reader.tags
    assert sum(hostile in words for words in reader.words) == 4


def test_a_run_that_goes_on_or_stopped_says_so(tmp_path):
    run = write_run(tmp_path, "r", final=False)
    assert "It is being trained: step 30 of 30" in text_of(paged(run, running=True))
    assert "It stopped at step 30 of 30: --resume goes on" in text_of(paged(run))
    (run / "FINAL").mkdir()
    assert "Finished after 30 steps" in text_of(paged(run))
    longer = (run / "env.json").read_text().replace('"steps": 30', '"steps": 60')
    (run / "env.json").write_text(longer)
    assert "It stopped at step 30 of 60" in text_of(paged(run)), "this FINAL is of before"


def test_an_old_run_has_a_page_without_what_it_did_not_write(tmp_path):
    run = write_run(tmp_path, "r")
    (run / "heldout.jsonl").unlink()
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({name: env[name] for name in ("rmkit", "versions", "device", "cores")}))
    text = text_of(paged(run))
    assert "There is no heldout.jsonl" in text
    assert "did not write down what was read" in text
    assert "Reliability" not in text
    assert "Accuracy" in text


@pytest.mark.parametrize("name", ["config.json", "env.json"])
@pytest.mark.parametrize(
    "held", [None, "", "[]", "{", '{"model": 3, "optim": [], "data": {"train": 3}, "versions": 1}']
)
def test_a_spoiled_file_beside_is_no_error(tmp_path, name, held):
    run = write_run(tmp_path, "r")
    (run / name).unlink()
    if held is not None:
        (run / name).write_text(held)
    text = text_of(paged(run))
    assert (f"{name} cannot be read" in text) == (held is None or not held.startswith('{"'))
    assert "Accuracy" in text


def test_a_metrics_file_cut_in_a_line_is_shown_up_to_there(tmp_path):
    run = write_run(tmp_path, "r")
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[:-30])
    text = text_of(paged(run))
    assert "The last line of metrics.jsonl is cut off" in text
    assert "Accuracy" in text


@pytest.mark.parametrize("lines", [1, 2])
def test_a_page_before_and_after_the_first_step(tmp_path, lines):
    run = write_run(tmp_path, "r")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(rows[:lines]) + "\n")
    assert "held-out accuracy" in text_of(paged(run))
    (run / "metrics.jsonl").write_text("\n".join(rows[1:2]) + "\n")
    assert "no held-out pairs were evaluated" in text_of(paged(run))


def test_what_is_no_run_is_told_in_a_sentence(tmp_path):
    for name, files, told in (
        ("absent", None, "there is no such folder"),
        ("empty", {}, "is empty"),
        ("foreign", {"notes.txt": "x"}, "holds no metrics.jsonl: it is no run of rmkit's"),
        ("begun", {"config.json": "{}", "env.json": "{}"}, "no step is recorded"),
        ("spoiled", {"metrics.jsonl": "{\n{\n"}, "records no step and no evaluation (2 lines cannot be read)"),
        ("cut", {"metrics.jsonl": '{"loss/tr'}, "records no step and no evaluation"),
    ):
        if files is not None:
            (tmp_path / name).mkdir()
            for file, held in files.items():
                (tmp_path / name / file).write_text(held)
        with pytest.raises(ValueError, match=re.escape(told)):
            opened(tmp_path / name)


def test_written_whole_into_the_folder(tmp_path):
    run = write_run(tmp_path, "r")
    before = set(os.listdir(run))
    run_page.write(opened(run))
    assert set(os.listdir(run)) - before == {"report.html"}
    read((run / "report.html").read_text())

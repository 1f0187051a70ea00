"""The page: whole, with nothing from elsewhere, and text from the data never read as HTML."""

import base64
import functools
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from markupsafe import escape

from rmkit.data.cache import features
from rmkit.data.counts import Counts
from rmkit.evaluation import figures, metrics, plots, report, statistics
from rmkit.evaluation.scores import Scored
from rmkit.storage.trust import Trust
from support.page_reader import EVIL, read, text_of


def turn(role: str, length: int) -> list[dict]:
    return [{"role": role, "content": EVIL + "&" * int(length)}]


@functools.lru_cache
def made(n: int, **how):
    """What metrics.json says of n pairs with drawn scores, and their page; every text of the data is hostile."""
    described, columns, pairs = values(n, **how)
    return described, report.page(described, columns, pairs)


def values(n: int, *, against=False, subsets=("chat", "code $\\x$", EVIL), lists=False, models=(1, 2)):
    """What the page is made of. `lists`: six in styles, then some of n, three pairs each. The second of the `models`
    knows what its scores are worth."""
    rng = np.random.default_rng(n)
    rows = [
        {
            "prompt": turn("user", 3000 * (i % 2)),
            "chosen": turn("assistant", rng.integers(0, 2000)),
            "rejected": turn("assistant", rng.integers(0, 2000)),
            "more": None,
            "margin": 0.0,
            "weight": 1.0,
            "target": None,
            "ratings": None,
            "compared": 1.0,
            "subset": subsets[i % len(subsets)] if not lists else "chat",
            "id": f"{i // 9}/{i % 9 // 3}>{i % 3}" if lists else str(i),
            "source": f"<b>{{{{ i }}}}{'of n' * (lists and i >= 54)}.jsonl:{i // 9 if lists else i}",
        }
        for i in range(n)
    ]
    preferences = Dataset.from_list(rows, features=features())

    def scored(seed: int) -> Scored:
        chosen, rejected = np.random.default_rng(seed).normal(size=(2, n)).astype(np.float32)
        tokens = np.ones((n, 2), np.int64)
        alone = Scored(rows=np.arange(n), chosen=chosen, rejected=rejected, tokens=tokens, sequences=2 * n, dropped={})
        trust = Trust(temperature=1.5, temperature_with_se=1.4, held_out_pairs=40)
        return replace(alone, se=np.abs(chosen), trust=trust) if seed == 2 else alone

    first, other = scored(models[0]), scored(models[1]) if against else None
    found = metrics.columns(preferences, first, other)
    described = {
        "model": f"model {EVIL}",
        "data": [f"data {EVIL}"],
        "against_model": EVIL,
        **metrics.measure(preferences, first, other, found, Counter()),
        "counts": Counts(rows=n, pairs=n).as_dict(),
        "notes": [EVIL],
        "environment": {"command": [EVIL]},
    }
    return described, found, metrics.quoted(preferences, first, found)


KINDS = {
    "plain": {"n": 60},
    "against": {"n": 60, "against": True},
    "styles": {"n": 54, "lists": True},
    "one pair": {"n": 1},
    "two pairs": {"n": 2, "subsets": ("one",)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_whole_and_takes_nothing_from_elsewhere(kind):
    _, page = made(**KINDS[kind])
    reader = read(page)
    assert len(reader.addresses) == reader.tags.count("img") == 5
    for address in reader.addresses:
        form, _, data = address.partition(",")
        assert form == "data:image/svg+xml;base64"
        svg = base64.b64decode(data, validate=True).decode()
        assert svg.rstrip().endswith("</svg>")
        assert "<script" not in svg
        assert not re.search(r'href="(?!#|data:image/png)', svg)
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_the_data_is_text(kind):
    _, page = made(**KINDS[kind])
    reader = read(page)
    assert "script" not in reader.tags
    assert "b" not in reader.tags
    forms = (EVIL, json.dumps(EVIL)[1:-1])  # the environment is told as JSON
    assert sum(any(form in words for form in forms) for words in reader.words) >= 5, "the text is there, as text"


def hostile(value, where=""):
    """The same with hostile text in place of every string and before every key that is the name of a subset."""
    if isinstance(value, dict):
        named = where.endswith("subsets")
        return {EVIL + key if named else key: hostile(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part, f"{where}.{i}") for i, part in enumerate(value)]
    return EVIL + where if isinstance(value, str) else value


def test_whatever_metrics_and_pairs_hold_is_text_in_every_field():
    found = values(54, against=True, lists=True)
    described, pairs = hostile(found[0]), hostile(found[2])
    reader = read(report.page(described, found[1], pairs))
    assert reader.tags == read(report.page(*found)).tags
    words = " ".join(reader.words)
    shown = ("model", "data.0", "against_model", "notes.0", "length_bias.unit")
    quoted = [f"most wrong.{i}.{field}" for i in range(3) for field in ("source", "prompt", "chosen", "rejected")]
    assert [field for field in (*shown, *quoted) if f"{EVIL}.{field}" not in words] == []
    assert words.count(f"{EVIL}chat") >= 2, "in the table of subsets and in that of styles"


def test_page_tells_the_key_figures_and_every_part():
    described, page = made(60, against=True)
    text, overall = text_of(page), described["overall"]
    for figure in (overall["accuracy"], overall["accuracy_low"], overall["loss"], overall["brier"], overall["ece"]):
        assert f"{figure:.4f}" in text
    controlled = described["length_bias"]["controlled"]["accuracy"]
    assert text.count(f"accuracy at like length {controlled:.4f}") == 2, "a key figure, and in the table on length"
    titles = ("Plots", "Subsets", "Against the other model", "Reliability", "Length")
    titles += ("The other model:", "Pairs that the first model gets most wrong")
    assert [title for title in titles if title not in text] == []
    assert f"p = {described['against']['mcnemar']['p_value']:.3g}" in text
    assert f"{described['against']['overall']['accuracy']:.4f}" in text


def test_the_other_model_has_every_table_that_it_would_have_as_the_first():
    """In lists of both kinds, with a temperature of its own: as on the page where the two have changed places."""
    (described, page), (_, swapped) = (made(57, against=True, lists=True, models=m) for m in ((1, 2), (2, 1)))
    tables = re.search("<h2>Subsets.*(?=<h2>Against)", swapped, re.DOTALL)[0]
    titles = re.findall("<h2>(.*?)</h2>", tables)
    assert titles == ["Subsets", "Styles", "Best of n", "Reliability", "What a score is worth", "Length"]
    head, other = page.split(f"<h2>The other model: {escape(EVIL)}</h2>")
    assert tables.replace("h2>", "h3>").strip() in other
    assert re.search("<h2>Subsets.*(?=<h2>Against)", head, re.DOTALL)[0].replace("h2>", "h3>").strip() not in other
    assert "The temperature of training is 1.500, fitted on 40 held-out pairs" in other
    text = text_of(page)
    for name, value in figures.figures(described["against"]):
        assert f"{name} {value}" in text.partition("The other model:")[2]
    assert not [name for name, _ in read(page).attributes if name == "id"], "two tables of a kind would share it"


def test_style_matrix_is_shown_in_its_order():
    described, page = made(54, lists=True)
    (style,) = described["styles"]
    assert style["rows"] == 6
    cells = " ".join(f"{cell:.3f}" for cell in style["matrix"][0])
    assert f"chosen concise {cells}" in text_of(page)
    assert f"{style['easy']:.4f} / {style['normal']:.4f} / {style['hard']:.4f}" in text_of(page)


def test_most_wrong_pairs_come_first_and_right_ones_never():
    described, page = made(60)
    margins = [
        float(b) - float(a) for a, b in re.findall(r"chosen: (-?[\d.]+)<.*?rejected: (-?[\d.]+)<", page, re.DOTALL)
    ]
    assert len(margins) == metrics.SHOWN
    assert margins == sorted(margins, reverse=True)
    assert min(margins) > 0
    assert described["overall"]["correct"] < 60


def test_pairs_most_apart_are_those_on_which_one_model_is_right():
    _, page = made(60, against=True)
    part = page.partition("disagree most")[2]
    found = re.findall(r">(?:chosen|rejected): (-?[\d.]+), other model (-?[\d.]+)<", part)
    pairs = [np.array(found[i : i + 2], float) for i in range(0, len(found), 2)]
    assert len(pairs) == metrics.SHOWN
    apart = []
    for (chosen, other_chosen), (rejected, other_rejected) in pairs:
        assert (chosen > rejected) != (other_chosen > other_rejected)
        apart.append(
            abs(np.subtract(*statistics.sigmoid(np.array([chosen - rejected, other_chosen - other_rejected]))))
        )
    assert apart == sorted(apart, reverse=True)


def test_the_same_page_each_time():
    assert made(60)[1] == made.__wrapped__(60)[1]


def test_median_scores_are_of_groups_of_like_length():
    """Three lengths give three points, however often each comes; many give ten, rising."""
    lengths = np.repeat([4, 5, 6], [50, 30, 20])
    assert plots.medians(lengths, lengths * 2.0) == ([4, 5, 6], [8, 10, 12])
    spread = np.random.default_rng(0).permutation(1000)
    at, scores = plots.medians(spread, -spread.astype(float))
    assert len(at) == 10
    assert at == sorted(at)
    assert scores == [-x for x in at]

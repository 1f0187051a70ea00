"""Tables of subsets and oddities, with counts that are known."""

from rmkit.inspection import summary
from support.planted import facts_of, pair


def test_a_subset_has_its_pairs_ties_and_longer_wins():
    pairs = [
        pair("p", "long", "b", 0, subset="x"),
        pair("q", "b", "long", 1, subset="x"),
        pair("r", "b", "long", 2, subset="x", target=0.5),
        pair("s", "longer", "b", 3),
    ]
    rows = {row["name"]: row for row in summary.measure(facts_of(pairs))["subsets"]}
    assert [rows["x"][name] for name in ("pairs", "share", "ties", "longer_wins")] == [3, 0.75, 1, 0.5]
    assert [rows["(none)"][name] for name in ("pairs", "ties", "longer_wins")] == [1, 0, 1.0]


def test_a_table_of_many_subsets_ends_in_the_others():
    facts = facts_of([pair("p", "a", "b", i, subset=str(i)) for i in range(60)])
    rows = summary.measure(facts)["subsets"]
    assert (len(rows), rows[-1]["name"], sum(row["pairs"] for row in rows)) == (51, "10 others", 60)


def test_oddities_are_counted_with_their_places():
    facts = facts_of([pair("p", "a", "b"), pair("p", "a " * 200, "b", 7)])
    found = summary.measure(facts)["oddities"]
    assert found.keys() == {"chosen seems cut off"}
    assert (found["chosen seems cut off"]["pairs"], found["chosen seems cut off"]["examples"]) == (1, ["x:7"])


def test_quantiles_are_of_characters_and_turns():
    lengths = summary.measure(facts_of([pair("ppp", "a", "bb"), pair("p", "aaa", "bb")]))["lengths"]
    assert lengths["characters_chosen"] | {"q95": 0, "q99": 0} == {"min": 1, "median": 2, "q95": 0, "q99": 0, "max": 3}
    assert lengths["turns"]["max"] == 2

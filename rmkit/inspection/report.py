"""What an inspection found, in words: the closing table, what stands out, and the rows of every table."""

from collections.abc import Iterator
from typing import Any

from rmkit.data.counts import in_words
from rmkit.inspection.noise import LEAST
from rmkit.inspection.oddities import ODDITIES
from rmkit.inspection.subsets import level

Found = dict[str, Any]
WEAK = 0.8
"""Accuracy of the head below which estimates of label noise are far off (bench/results/noise.json)"""
TABLES = {
    "lengths": ("length", "smallest", "median", "95 %", "99 %", "largest"),
    "floors": ("floor", "accuracy", "95 % interval", "pairs"),
    "subsets": ("subset", "pairs", "share", "ties", "chars chosen", "chars rejected", "longer wins"),
    "sources": ("source", "pairs", "share", "ties", "chars chosen", "chars rejected", "longer wins"),
    "scripts": ("script", "pairs", "share", "ties", "chars chosen", "chars rejected", "longer wins"),
    "oddities": ("oddity", "pairs", "first at"),
    "hurting": ("subset", "pairs", "accuracy", "suspects", "others gain without it", "95 % interval"),
}
"""Name of a table -> its head"""


def key_figures(found: Found) -> list[tuple[str, str]]:
    """Names and values of the closing table."""
    duplicates, tokens = found["duplicates"], found["tokens"]
    figures = [
        ("rows", in_words(found["counts"], "rows")),
        ("pairs", f"{in_words(found['counts'], 'pairs')}; on {duplicates['prompts']:,} prompts"),
        ("ties", f"{duplicates['ties']:,}"),
        ("repeated", f"{duplicates['repeated']['pairs']:,} pairs"),
        ("contradictory", f"{duplicates['contradictory']['pairs']:,} pairs"),
        ("on a cycle", f"{duplicates['cycles']['pairs']:,} pairs of {duplicates['cycles']['prompts']:,} prompts"),
    ]
    if tokens:
        figures.append(
            (
                "tokens an epoch",
                f"{round(tokens['trie']):,} as a trie, {round(tokens['flat']):,} flat, "
                f"{round(tokens['padded']):,} padded ({tokens['tokenizer']}; of {tokens['sampled_pairs']:,} pairs)",
            )
        )
    why = "no pair has a preferred side" if duplicates["ties"] == found["pairs"] else "too few pairs or words"
    figures += [(name, accuracy(floor) if floor else why) for name, floor in found["floors"].items()]
    if shared := found["shared"]:
        near, of_pairs = shared["near"], f"{shared['pairs']:,} of {shared['test_pairs']:,} pairs"
        nearly = f"; near: {near['prompts']:,} prompts, {near['answers']:,} answers" if near else ""
        of_prompts = f"{shared['prompts']:,} of {shared['test_prompts']:,} prompts"
        figures.append(("shared with test", f"{of_pairs}, {of_prompts}{nearly}"))
    if judged := found["suspects"]:
        noise = judged["noise"]
        figures += [
            ("head, out of sample", accuracy(judged["accuracy"])),
            (
                "label noise",
                "not known" if judged["blind"] else noises(noise),
            ),
            ("suspects", f"{judged['suspects']:,} of {judged['pairs']:,} pairs"),
        ]
    return figures


def accuracy(share: Found) -> str:
    """0.614 (0.592 to 0.637)."""
    return f"{share['accuracy']:.3f} ({share['low']:.3f} to {share['high']:.3f})"


def rate(share: Found) -> str:
    """12.1 % (9.8 to 14.5)."""
    return f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def noises(noise: Found) -> str:
    """The share of wrong labels: the range of both estimates, and each."""
    mixture = rate(noise["mixture"])
    if noise["none_found"]:
        to = f"; interval to {high:.1%}" if (high := noise["mixture"]["high"]) > LEAST else ""
        mixture = f"none found (under {LEAST:.1%}{to})"
    low = "0" if noise["none_found"] else f"{noise['low']:.1%}"
    both = f"mixture {mixture}, confident learning {rate(noise['confident'])}"
    return f"{low} to {noise['high']:.1%}: {both}; at most {noise['at_most']:.1%}"


def apart(noise: Found) -> bool:
    """Whether the two estimates of label noise exclude each other, by more than a half and two points of a hundred."""
    less, more = sorted((noise["mixture"], noise["confident"]), key=lambda each: each["share"])
    return less["high"] < more["low"] and more["share"] > max(1.5 * less["share"], less["share"] + 0.02)


def stands_out(found: Found) -> Iterator[str]:
    """What a user should act on, a sentence each."""
    duplicates, shared, judged = found["duplicates"], found["shared"], found["suspects"]
    for name, floor in found["floors"].items():
        if floor and floor["low"] > 0.55:
            yield f"'{name}' alone is right on {floor['accuracy']:.0%} of pairs: judge a model against that, not 50 %"
    longer = found["floors"]["longer wins"]
    if longer and longer["high"] < 0.45:
        yield f"the shorter answer is preferred in {1 - longer['accuracy']:.0%} of pairs: judge a model against that"
    if n := duplicates["repeated"]["pairs"]:
        yield f"pairs that repeat an earlier one: {n:,}, such as {duplicates['repeated']['examples'][0]}"
    if n := duplicates["contradictory"]["pairs"]:
        yield f"pairs that contradict another: {n:,}, such as {duplicates['contradictory']['examples'][0]}"
    if n := duplicates["cycles"]["pairs"]:
        yield f"pairs on a cycle (A > B > C > A): {n:,}, such as {duplicates['cycles']['examples'][0]}"
    if shared and (shared["pairs"] or shared["prompts"] or (shared["near"] and shared["near"]["prompts"])):
        near = f"; near: {shared['near']['prompts']:,} more prompts" if shared["near"] else ""
        yield (
            f"test is not held out: {shared['pairs']:,} of its {shared['test_pairs']:,} pairs and "
            f"{shared['prompts']:,} of its {shared['test_prompts']:,} prompts stand in training too{near}"
        )
    for name, odd in found["oddities"].items():
        yield f"pairs with {ODDITIES[name]}: {odd['pairs']:,}, such as {odd['examples'][0]}"
    if tokens := found["tokens"]:
        yield (
            f"a trie computes {tokens['saved_against_padded']:.0%} fewer tokens than padded batches, "
            f"{tokens['saved_against_flat']:.0%} fewer than unpadded ones"
        )
    if judged and judged["blind"]:
        yield (
            f"the head is no better than a coin on pairs that it has not seen ({accuracy(judged['accuracy'])}): this "
            "model's features tell nothing of these labels, and no pair is a suspect for it"
        )
    elif judged and judged["accuracy"]["accuracy"] < WEAK:
        yield (
            f"the head is right on {judged['accuracy']['accuracy']:.0%} of pairs that it has not seen: too weak a "
            "judge to take the estimates of label noise, or single suspects, at their word"
        )
    if judged and not judged["blind"] and apart(judged["noise"]):
        mixture, confident = (rate(judged["noise"][name]) for name in ("mixture", "confident"))
        yield (
            f"the estimates of label noise exclude each other (mixture {mixture}, confident learning {confident}): "
            "take neither at its word. A model that was trained on these very pairs has learned their labels; one "
            "that was trained on others, or for fewer steps, judges better"
        )
    if judged and not judged["blind"] and judged["noise"]["none_found"] and judged["asked"] is None:
        yield (
            f"no label noise was found, so no pair is a suspect; the head disagrees with {judged['disagreed']:,} "
            "labels, and --suspects N lists the N worst"
        )
    for row in judged["subsets"] if judged else ():
        if row["hurts"]:
            tried = sum(other["gain"] is not None for other in judged["subsets"])
            among = f" (the interval at {level(tried):.2%}, for {tried} subsets tried)" if tried > 1 else ""
            yield f"subset {row['name']} hurts: without it the head is {row['gain']:.1%} better on the others{among}"


def tables(found: Found) -> dict[str, list[list[str]]]:
    """The rows of every table that has any, as text, by name."""
    names = {"characters_prompt": "characters of the prompt", "characters_chosen": "characters of chosen"}
    names |= {"characters_rejected": "characters of rejected", "turns": "turns"}
    rows = {
        "floors": [
            [name, f"{f['accuracy']:.3f}", f"{f['low']:.3f} to {f['high']:.3f}", f"{f['pairs']:,}"]
            for name, f in found["floors"].items()
            if f
        ],
        "lengths": [
            [names[name], *(f"{value:,.0f}" for value in quantiles.values())]
            for name, quantiles in found["lengths"].items()
        ],
        **{kind: [_part(row) for row in found[kind]] for kind in ("subsets", "sources", "scripts")},
        "oddities": [[odd["what"], f"{odd['pairs']:,}", odd["examples"][0]] for odd in found["oddities"].values()],
    }
    if found["suspects"]:
        rows["hurting"] = [_hurting(row) for row in found["suspects"]["subsets"]]
    return {name: of for name, of in rows.items() if of}


def _part(row: Found) -> list[str]:
    longer = "-" if row["longer_wins"] is None else f"{row['longer_wins']:.3f}"
    lengths = (f"{row[f'characters_{side}']:,.0f}" for side in ("chosen", "rejected"))
    return [row["name"], f"{row['pairs']:,}", f"{row['share']:.1%}", f"{row['ties']:,}", *lengths, longer]


def _hurting(row: Found) -> list[str]:
    gain = ["-", "-"] if row["gain"] is None else [f"{row['gain']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}"]
    return [row["name"], f"{row['pairs']:,}", f"{row['accuracy']:.3f}", f"{row['suspects']:,}", *gain]

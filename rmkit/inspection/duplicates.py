"""Pairs that repeat or contradict one another, and cycles of preferences, from the digests of prompts and answers.

The pairs on one prompt are a directed graph of answers, an edge from the preferred to the other one. Two edges in
opposite directions are a contradiction. An edge lies on a cycle of three or more answers (A > B > C > A) where its
winner is reached from its loser without the edge straight back; no Bradley-Terry score can fit all edges of either.
"""

from collections import defaultdict, deque
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rmkit.inspection.facts import EXAMPLES, Facts, mixed


def measure(facts: Facts) -> dict[str, Any]:
    """Counts and examples of repeated, contradictory and circular pairs. Ties have no direction and are left out of the
    last two."""
    winner, loser, decided = directed(facts)
    low, high = np.minimum(winner, loser), np.maximum(winner, loser)
    pair = mixed(facts["prompt"], facts["chosen"], facts["rejected"])
    first_of, times = _first_and_times(pair)
    repeated = np.flatnonzero(first_of != np.arange(len(pair)))
    both_ways = _both_ways(mixed(facts["prompt"], low, high), winner < loser, decided)
    cycles = find_cycles(facts["prompt"], winner, loser, decided)
    on_cycle = np.unique(np.concatenate([np.zeros(0, np.int64), *(cycle["pairs"] for cycle in cycles)]))
    prompts, on_prompt = np.unique(facts["prompt"], return_counts=True)
    return {
        "prompts": len(prompts),
        "most_pairs_on_a_prompt": int(on_prompt.max()),
        "ties": int((facts["preferred"] == 0).sum()),
        "repeated": {
            "pairs": len(repeated),
            "most_times": int(times.max()),
            "examples": [f"{facts.place(i)} repeats {facts.place(first_of[i])}" for i in repeated[:EXAMPLES]],
        },
        "contradictory": {
            "pairs": sum(map(len, both_ways)),
            "examples": [" against ".join(facts.places(found[:2])) for found in both_ways[:EXAMPLES]],
        },
        "cycles": {
            "pairs": len(on_cycle),
            "prompts": len({int(facts["prompt"][cycle["shortest"][0]]) for cycle in cycles}),
            "examples": [" > ".join(facts.places(cycle["shortest"])) for cycle in cycles[:EXAMPLES]],
        },
    }


def directed(facts: Facts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digest of the preferred and of the other answer, int64 [N], and whether there is a preferred one, bool [N]."""
    chosen, rejected, preferred = facts["chosen"], facts["rejected"], facts["preferred"]
    flipped = preferred < 0
    return np.where(flipped, rejected, chosen), np.where(flipped, chosen, rejected), preferred != 0


def _first_and_times(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key the index of the first equal one, int64 [N], and how often each distinct key occurs."""
    _, first, inverse, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return first[inverse.ravel()], times


def _both_ways(key: np.ndarray, direction: np.ndarray, decided: np.ndarray) -> list[list[int]]:
    """Rows of every pair of answers that is preferred in both directions, first one of each direction first."""
    rows = np.flatnonzero(decided)
    _, group = np.unique(key[rows], return_inverse=True)
    up = np.bincount(group, weights=direction[rows])
    here = (up > 0) & (up < np.bincount(group))
    found: dict[int, list[int]] = defaultdict(list)
    for row, of in zip(rows[here[group]].tolist(), group[here[group]].tolist(), strict=True):
        found[of].append(row)
    for members in found.values():
        other = next(i for i, row in enumerate(members) if direction[row] != direction[members[0]])
        members.insert(1, members.pop(other))
    return list(found.values())


def find_cycles(prompt: np.ndarray, winner: np.ndarray, loser: np.ndarray, decided: np.ndarray) -> list[dict[str, Any]]:
    """The knots of answers that hold a cycle of three or more: rows of all pairs on such a cycle, and of a shortest."""
    rows = np.flatnonzero(decided)
    if not len(rows):
        return []
    ends = np.stack([mixed(prompt[rows], side[rows]) for side in (winner, loser)])
    nodes, at = np.unique(ends, return_inverse=True)
    start, stop = at.reshape(2, -1)
    graph = coo_matrix((np.ones(len(rows), np.int8), (start, stop)), shape=(len(nodes), len(nodes))).tocsr()
    _, knot = connected_components(graph, directed=True, connection="strong")
    inside = (np.bincount(knot)[knot[start]] >= 3) & (knot[start] == knot[stop])
    edges: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for a, b, row in zip(start[inside].tolist(), stop[inside].tolist(), rows[inside].tolist(), strict=True):
        edges[int(knot[a])][a, b].append(row)
    return [cycle for of_knot in edges.values() if (cycle := _cycle(of_knot))]


def _cycle(edges: dict[tuple[int, int], list[int]]) -> dict[str, Any] | None:
    """Rows on cycles of three or more answers among the edges of one knot; None where there is none."""
    after: dict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        after[a].append(b)
    found, shortest = [], None
    for (a, b), rows in edges.items():
        if path := _path(after, b, a):
            found += rows
            if shortest is None or len(path) < len(shortest):
                shortest = path
    if shortest is None:
        return None
    steps = zip(shortest, [*shortest[1:], shortest[0]], strict=True)
    rows = [edges[step][0] for step in steps]
    first = rows.index(min(rows))
    return {"pairs": np.array(found, np.int64), "shortest": rows[first:] + rows[:first]}


def _path(after: dict[int, list[int]], start: int, stop: int) -> list[int]:
    """A shortest path of at least two steps between two nodes; [] where there is none."""
    came: dict[int, int] = {start: start}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for other in after[node]:
            if other in came or (node == start and other == stop):
                continue
            came[other] = node
            if other == stop:
                path = [stop]
                while path[-1] != start:
                    path.append(came[path[-1]])
                return path[::-1]
            waiting.append(other)
    return []

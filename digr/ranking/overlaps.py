"""Features of interests: overlap of candidates and history, and lift of steps between them, as loops compiled by Numba.

A request reads the interests of its items and the steps from those of its history. Its values per interest are in a table
that the next request reuses. Numba compiles at the first use on a machine.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32
from numba import njit

_LAST, _PROFILE, _SHARE, _LIFT = 0, 1, 2, 3
"""Columns of the table of a request's interests: profile of the last item, profile of the history, share of the history, and
lift of steps from the history to the interest."""


@njit(cache=True, nogil=True)
def interest_overlaps(  # noqa: PLR0917 (a compiled function: its arrays come one by one)
    start: Int[np.ndarray, " N1"],
    group: Int[np.ndarray, " P"],
    share: Float32[np.ndarray, " P"],
    profile: Float32[np.ndarray, " P"],
    lift_start: Int[np.ndarray, " K1"],
    lift_group: Int[np.ndarray, " Q"],
    lift: Float32[np.ndarray, " Q"],
    unseen: Float32[np.ndarray, " K"],
    item: Int[np.ndarray, " F"],
    item_start: Int[np.ndarray, " B1"],
    candidate: Int[np.ndarray, " C"],
    candidate_start: Int[np.ndarray, " B1"],
    profile_decay: float,
    lift_decay: float,
) -> Float32[np.ndarray, "C 3"]:
    """Return for each candidate the overlap with the last item and with the history's profile, and the lift of steps to it.

    Args:
        start, group, share, profile: the interests of N items, see `InterestGroups`.
        lift_start, lift_group, lift, unseen: the steps between K interests, see `Lifts`.
        item, item_start: histories of B requests, oldest first.
        candidate, candidate_start: candidates of each request.
        profile_decay, lift_decay: base of the weight of a history's item; the exponent is its place from the end.
    """
    place = np.full(len(unseen), -1, np.int32)  # row of each interest in the request's table
    most = 0
    for b in range(len(item_start) - 1):
        mine = item[item_start[b] : item_start[b + 1]]
        theirs = candidate[candidate_start[b] : candidate_start[b + 1]]
        most = max(most, (start[mine + 1] - start[mine]).sum() + (start[theirs + 1] - start[theirs]).sum())
    known, table = np.empty(most, np.int32), np.empty((most, 4))
    found = np.zeros((len(candidate), 3), np.float32)
    for b in range(len(item_start) - 1):
        count = 0
        for at in range(item_start[b], item_start[b + 1]):
            age = item_start[b + 1] - 1 - at
            weights = np.array([1.0 if age == 0 else 0.0, profile_decay**age, lift_decay**age])
            for p in range(start[item[at]], start[item[at] + 1]):
                count = _enter(group[p], place, known, table, count)
                row = table[place[group[p]]]
                row[_LAST] += weights[0] * profile[p]
                row[_PROFILE] += weights[1] * profile[p]
                row[_SHARE] += weights[2] * share[p]
        of_history = count
        for i in candidate[candidate_start[b] : candidate_start[b + 1]]:
            for p in range(start[i], start[i + 1]):
                count = _enter(group[p], place, known, table, count)
        never = _add_lifts(table, known[:of_history], place, lift_start, lift_group, lift, unseen)
        table[:of_history, _PROFILE] /= max(np.sqrt((table[:of_history, _PROFILE] ** 2).sum()), 1e-9)
        for at in range(candidate_start[b], candidate_start[b + 1]):
            for p in range(start[candidate[at]], start[candidate[at] + 1]):
                row = table[place[group[p]]]
                found[at, 0] += row[_LAST] * profile[p]
                found[at, 1] += row[_PROFILE] * profile[p]
                found[at, 2] += (row[_LIFT] + never) * share[p]
        place[known[:count]] = -1
    return found


@njit(cache=True, nogil=True)
def _add_lifts(  # noqa: PLR0917 (a compiled function: its arrays come one by one)
    table: Float64[np.ndarray, "M 4"],
    known: Int32[np.ndarray, " H"],
    place: Int32[np.ndarray, " K"],
    lift_start: Int[np.ndarray, " K1"],
    lift_group: Int[np.ndarray, " Q"],
    lift: Float32[np.ndarray, " Q"],
    unseen: Float32[np.ndarray, " K"],
) -> float:
    """Add the lifts of steps from the history's H interests to all in the table; return the value for unseen steps."""
    never = 0.0
    for slot in range(len(known)):
        never += table[slot, _SHARE] * unseen[known[slot]]
        for q in range(lift_start[known[slot]], lift_start[known[slot] + 1]):
            target = place[lift_group[q]]
            if target >= 0:
                table[target, _LIFT] += table[slot, _SHARE] * lift[q]
    return never


@njit(cache=True, nogil=True)
def _enter(
    group: int, place: Int32[np.ndarray, " K"], known: Int32[np.ndarray, " M"], table: Float64[np.ndarray, "M 4"], count: int
) -> int:
    """Add a row to the table for an interest without one; return the number of rows."""
    if place[group] >= 0:
        return count
    place[group] = count
    known[count] = group
    table[count] = 0.0
    return count + 1

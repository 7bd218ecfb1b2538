"""Mixtures of categories: which weights a dataset allows, and whose row comes next."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from llmforge.dataset.categories import MIXED
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
ROUNDING = 1e-9  # of products of shares and counts, far below the distance of a whole row


def whose_turn(shares: Float64, taken: Int64, count: int) -> Int64:
    """(count,) int64: the category of each of the next rows, where `taken` (k,) were taken of each before.

    `shares` (k,) are positive and sum to 1. After any number n of rows, of each category there are n times its share,
    give or take less than one: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980), with
    constant shares. Of the categories that are owed at least 1 / (2k - 2) rows the one comes whose row is due first.
    """
    chosen, taken = np.zeros(count, np.int64), taken.copy()
    if len(shares) == 1:
        return chosen
    least = 1 / (2 * len(shares) - 2)
    for number, total in enumerate(range(int(taken.sum()) + 1, int(taken.sum()) + count + 1)):
        owed = shares * total - taken
        with np.errstate(divide="ignore", over="ignore"):  # of a share that is all but nothing
            due = (1 - least - owed) / shares
        due[owed < least - ROUNDING] = np.inf
        chosen[number] = due.argmin()
        taken[chosen[number]] += 1
    return chosen


def check_weights(weights: Mapping[str, float], data: PackedDataset) -> None:
    """Raises `UserError` where rows of `data` cannot be mixed by `weights`, as --mix names them.

    All categories must be named, with 0 to leave one out; only `mixed`, rows that several categories share, need not.
    """
    names = sorted({*data.categories, *data.by_category})
    if unknown := sorted(set(weights) - set(names)):
        raise UserError(f"--mix names {', '.join(unknown)}, but the categories are {', '.join(names)}.")
    if missing := sorted(set(data.categories) - set(weights)):
        raise UserError(f"--mix has no weight for {', '.join(missing)}; add {missing[0]}=0 to leave it out.")
    if not data.packed_by_category and MIXED in data.by_category and MIXED not in data.categories:
        raise UserError(
            "--mix needs rows of one category, but the dataset was prepared by a version that packed all categories "
            "together; run prepare-data again, with --overwrite."
        )
    for name, weight in weights.items():
        if weight and name not in data.by_category:
            raise UserError(
                f"--mix gives {name} a weight, but it is too small to fill a row; prepare the data with "
                "fewer --bins."
            )


def describe(weights: Mapping[str, float], data: PackedDataset, rows: int) -> list[str]:
    """What an epoch of `rows` rows by `weights` reads of each category, and what has to be said of it."""
    total, found = sum(weights.values()), data.by_category
    read = {name: rows * weight / total for name, weight in sorted(weights.items()) if weight}
    parts = [
        f"{name} {round(number):,} of its {len(found[name]):,} rows ({number / len(found[name]):.2f} times)"
        for name, number in read.items()
    ]
    sentences = [f"an epoch by --mix reads {', '.join(parts)}."]
    if MIXED in found and not weights.get(MIXED):
        sentences.append(
            f"--mix leaves out the {len(found[MIXED]):,} rows that several categories share; {MIXED}=W reads them too."
        )
    tokens = {name: number * found[name].tokens / len(found[name]) for name, number in read.items()}
    shares = {name: number / sum(tokens.values()) for name, number in tokens.items()}
    if any(abs(share - weights[name] / total) > 0.01 for name, share in shares.items()):
        these = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        sentences.append(f"--mix counts rows, which are not equally long; of the tokens it is {these}.")
    return sentences

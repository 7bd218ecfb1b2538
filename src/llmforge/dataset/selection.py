"""Which documents are trained on, and why the others are not: verdicts, duplicates, the holdout, the
mixture.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmforge.console import say
from llmforge.dataset.dedup import EXACT, NEAR, Signatures, exact_duplicates, near_duplicates
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.planning import LAST_KEY, Weighed, each_shard, find_cuts, text_keys
from llmforge.dataset.shards import Records, Summary, read_hashes, shard_path
from llmforge.dataset.shuffle import Keys
from llmforge.errors import UserError

HELD_OUT, LEFT_OUT = "held out", "beyond --mix or --max-tokens"
KEPT = "kept"
Int64 = npt.NDArray[np.int64]


class Selection:
    """Judges documents shard by shard, after passes over all records that find the thresholds.

    `bin_cuts` are, for each category, the keys at which its bins end; the last one ends what the mixture
    takes.
    """

    def __init__(
        self, options: PrepareOptions, shards: Path, summaries: Sequence[Summary], names: Sequence[str]
    ) -> None:
        self.options, self.shards, self.summaries, self.names = options, shards, list(summaries), list(names)
        verdicts = dict.fromkeys(verdict for summary in summaries for verdict in summary.verdicts)
        self.reasons = [KEPT, *verdicts, EXACT, NEAR, HELD_OUT, LEFT_OUT]
        self._code = {reason: i for i, reason in enumerate(self.reasons)}
        self._duplicate: npt.NDArray[np.uint8] | None = None
        self._held_out: Keys | None = None
        self._find_duplicates()
        self._find_holdout()
        self.bin_cuts = self._find_bins()

    def shard_records(self) -> Iterator[tuple[Summary, int, Records]]:
        return each_shard(self.shards, self.summaries, self.names)

    def judge(self, summary: Summary, before: int, records: Records) -> tuple[Int64, Int64]:
        """(n,) an index of `reasons` and (n,) the bin of every document of a shard; `before` documents
        precede it.
        """
        code = self._before_mixture(summary, before, records)
        key = records["key"]
        bins = np.zeros(len(records), np.int64)
        for category in np.flatnonzero(np.bincount(records["category"])).tolist():
            mine = records["category"] == category
            bins[mine] = np.searchsorted(self.bin_cuts[category], key[mine], side="right")
        code[(code == 0) & (bins >= self.options.bins)] = self._code[LEFT_OUT]
        return code, bins

    def _before_mixture(self, summary: Summary, before: int, records: Records) -> Int64:
        verdicts = np.array([0, *(self._code[verdict] for verdict in summary.verdicts)], np.int64)
        code: Int64 = verdicts[records["verdict"]]
        if self._duplicate is not None:
            found = self._duplicate[before : before + len(records)]
            code[(code == 0) & (found == 1)] = self._code[EXACT]
            code[(code == 0) & (found == 2)] = self._code[NEAR]
        if self._held_out is not None:
            key = text_keys(self.options.seed, self.shards, summary.number)
            code[(code == 0) & (key < self._held_out[records["category"]])] = self._code[HELD_OUT]
        return code

    def _weighed(self, by_text: bool = False) -> Iterator[Weighed]:
        for summary, before, records in self.shard_records():
            keep = self._before_mixture(summary, before, records) == 0
            category = records["category"][keep].astype(np.int64)
            if by_text:
                key = text_keys(self.options.seed, self.shards, summary.number)[keep]
                yield category, key, np.ones(len(category), np.int64)
            else:
                yield category, records["key"][keep], records["tokens"][keep].astype(np.int64)

    def _totals(self, passes: Iterable[Weighed]) -> Int64:
        totals = np.zeros(len(self.names), np.int64)
        for category, _, weights in passes:
            totals += np.bincount(category, weights, len(totals)).astype(np.int64)
        return totals

    def _find_duplicates(self) -> None:
        if not self.options.dedup:
            return
        count = sum(summary.documents for summary in self.summaries)
        found = np.zeros(count, np.uint8)
        wanted = np.concatenate([records["verdict"] == 0 for _, _, records in self.shard_records()])
        position = self._positions()
        full = [summary for summary in self.summaries if summary.documents]
        hashes = np.concatenate([read_hashes(self.shards, summary.number) for summary in full])
        found[exact_duplicates(hashes, position, wanted)] = 1
        del hashes
        if self.options.dedup == "near":
            paths = [shard_path(self.shards, summary.number, "minhash") for summary in full]
            signatures = Signatures(paths, [summary.documents for summary in full])
            found[near_duplicates(signatures, position, wanted & (found == 0))] = 2
        self._duplicate = found

    def _positions(self) -> Int64:
        """Where each document stands in the input; the records of a shard stand in another order."""
        lines = np.cumsum([0, *(summary.lines for summary in self.summaries)])
        begin = {summary.number: int(line) for summary, line in zip(self.summaries, lines, strict=False)}
        return np.concatenate(
            [begin[s.number] + records["line"].astype(np.int64) for s, _, records in self.shard_records()]
        )

    def _find_holdout(self) -> None:
        """For each category, the text key below which documents are held out."""
        if not self.options.holdout:
            return
        counts = self._totals(self._weighed(by_text=True))
        # At least one document of every category that has two: an evaluation needs a text.
        share = np.maximum(1, np.rint(counts * self.options.holdout))
        wanted = np.where(counts > 1, share, 0).astype(np.int64)
        cuts = find_cuts(lambda: self._weighed(by_text=True), [np.array([k]) for k in wanted])
        ends = [cut[0] if k else 0 for cut, k in zip(cuts, wanted.tolist(), strict=True)]
        self._held_out = np.array(ends, np.uint64)

    def _find_bins(self) -> list[Keys]:
        totals = self._totals(self._weighed())
        quotas = self._quotas(totals)
        shares = np.arange(1, self.options.bins + 1) / self.options.bins
        targets = [np.rint(quota * shares).astype(np.int64) for quota in quotas]
        cuts = find_cuts(self._weighed, targets, together=True)
        for category, quota in enumerate(quotas.tolist()):
            if quota == totals[category]:
                cuts[category][-1] = LAST_KEY  # all of it: the last bin has no end
            elif quota == 0:
                cuts[category][:] = 0
        return cuts

    def _quotas(self, totals: Int64) -> Int64:
        """How many tokens of each category to take."""
        mix, most = self.options.mix, self.options.max_tokens or int(totals.sum())
        if not mix:
            taken = min(1.0, most / max(1, int(totals.sum())))
            shrunk: Int64 = np.rint(totals * taken).astype(np.int64)
            return shrunk
        unknown, missing = sorted(set(mix) - set(self.names)), sorted(set(self.names) - set(mix))
        if unknown:
            raise UserError(
                f"--mix names {', '.join(unknown)}, but the categories are {', '.join(self.names)}."
            )
        if missing:
            raise UserError(
                f"--mix has no weight for {', '.join(missing)}; add {missing[0]}=0 to leave it out."
            )
        share = np.array([mix[name] for name in self.names])
        share = share / share.sum()
        if any(share[i] > 0 and not totals[i] for i in range(len(share))):
            empty = next(name for i, name in enumerate(self.names) if share[i] > 0 and not totals[i])
            raise UserError(f"--mix gives {empty} a weight, but no documents of it are left; set {empty}=0.")
        possible = [totals[i] / share[i] for i in range(len(share)) if share[i] > 0]
        scarce = [
            name
            for i, name in enumerate(self.names)
            if share[i] > 0 and totals[i] / share[i] == min(possible)
        ]
        if min(possible) < most:
            say(
                f"--mix: {scarce[0]} has {int(totals[self.names.index(scarce[0])]):,} tokens and limits the mixture"
            )
        quotas: Int64 = np.minimum(totals, np.rint(share * min(most, *possible)).astype(np.int64))
        return quotas

"""Rows that the head takes for what comes next: the probabilities of new tokens, fitted on hidden states that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmforge.console import progress
from llmforge.embedding.distillation.snippets import Batch
from llmforge.embedding.distillation.source_model import SourceModel, apply
from llmforge.embedding.distillation.state import Saved
from llmforge.weights.modules import Logits

POSITIONS = 512  # of a step of the fit, and of old logits at a time
PASSES = 4  # over the states, at most
PATIENCE = 2  # passes that do not help, after which the fit ends
HELD_OUT = 10  # every tenth snippet tells when to stop
RATE, SHARED = 0.01, 0.3  # that of the row that is added to all, relative to the others
BETAS = (0.9, 0.98)
SHRINKAGE = 1.0  # of the mean second moment, added to that of each direction: what little text shows of the others is chance
MORE = 1.0  # added to the logits of new tokens at the start: they come where old ones came
CONSTANT = 1e-3  # ridge of the direction that is constant
HALF = 0.5  # an occurrence that is added to each token


@dataclass(frozen=True)
class States:
    """What the head was given before the tokens of some texts, and what these were.

    `hidden` float32 [places, hidden size]; `old` float32 [places] is the logarithm of the sum of the old tokens'
    exponentiated logits; `coming` int64 [places] the new token that comes, counted from the first new one, -1 for an old one,
    of which `old_logit` float32 [places] is the logit. `held_out` bool [places] are those of every tenth snippet.
    """

    hidden: torch.Tensor
    old: torch.Tensor
    coming: torch.Tensor
    old_logit: torch.Tensor
    held_out: torch.Tensor

    def some(self, which: torch.Tensor) -> "States":
        """Those of `which`."""
        return States(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def collect(
    model: SourceModel, batches: Sequence[Batch], rows: torch.Tensor, logits_are: Logits, work: Path
) -> States:
    """The states of the resized model with the new embedding rows `rows`, before each token of running text.

    The old logits do not depend on new rows of the head, so their sum is all that is kept of them. Goes on from what an
    earlier call left in `work`.
    """
    size, given = model.size, len(model.start_ids)
    offsets = np.cumsum([0, *(int(batch.lengths.sum()) for batch in batches)]).tolist()
    snippets = np.cumsum([0, *(len(batch.lengths) for batch in batches)]).tolist()
    saved = Saved(work, "states")
    if found := saved.load():
        kept, done = found[0], int(found[1]["done"])
    else:
        done, total = 0, offsets[-1]
        kept = {
            "hidden": torch.zeros(total, model.head.weight.shape[1]),
            "old": torch.zeros(total),
            "coming": torch.zeros(total, dtype=torch.int64),
            "old_logit": torch.zeros(total),
            "held_out": torch.zeros(total, dtype=torch.bool),
        }
    with progress("distill: states for the head", len(batches), "batches") as advance, torch.inference_mode():
        advance(done)
        for number in range(done, len(batches)):
            batch, here = batches[number], slice(offsets[number], offsets[number + 1])
            ids = torch.from_numpy(batch.new_ids)[:, given:]
            real = torch.arange(ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
            held_out = torch.arange(snippets[number], snippets[number + 1]) % HELD_OUT == HELD_OUT - 1
            # The state before a token is that of the token before; a start id stands before the first.
            hidden = model.states(batch.new_ids, None, rows)[:, given - 1 : -1][real.to(model.device)].float()
            coming = ids[real]
            kept["hidden"][here] = hidden.cpu()
            kept["coming"][here] = torch.where(coming >= size, coming - size, -1)
            kept["held_out"][here] = held_out[:, None].expand_as(real)[real]
            for first in range(0, len(hidden), POSITIONS):
                logits = apply(model.head(hidden[first : first + POSITIONS])[:, :size].float(), logits_are)
                old = coming[first : first + POSITIONS].clamp(max=size - 1).to(model.device)
                to = slice(here.start + first, here.start + first + len(logits))
                kept["old"][to] = torch.logsumexp(logits, dim=1).cpu()
                kept["old_logit"][to] = logits.gather(1, old[:, None])[:, 0].cpu()
            saved.save(kept, {"done": number + 1}, now=number + 1 == len(batches))
            advance(1)
    return States(**kept)


def losses(states: States, rows: torch.Tensor, bias: torch.Tensor, logits_are: Logits) -> torch.Tensor:
    """Nats of what comes at each place, float32 [places]: the softmax over all old logits and those of `rows` [new, hidden size]."""
    new = apply(states.hidden @ rows.T + bias, logits_are)
    total = torch.logaddexp(states.old, torch.logsumexp(new, dim=1))
    is_new = states.coming >= 0
    chosen = new.gather(1, states.coming.clamp(min=0)[:, None])[:, 0]
    return total - torch.where(is_new, chosen, states.old_logit)


def first_guess(
    states: States, firsts: torch.Tensor, first_ids: torch.Tensor, logits_are: Logits
) -> torch.Tensor:
    """Head rows [new tokens, hidden size] to begin the fit with: the old head's row of a token's first sub-token, as much
    less probable as the token is among those that begin so.

        w_t = h(s_1) + u log p(t | s_1) + u,  with u such that u . x is all but 1 for every state x

    The source gives s_1 the probability of all that begins so; p is counted in `states`, half an occurrence added to each
    token. `firsts` [new tokens, hidden size] are the rows h(s_1), `first_ids` int64 [new tokens] the ids s_1, -1 for none.
    """
    counts = _counts(states, len(firsts)) + HALF
    groups = torch.zeros(int(first_ids.max()) + 2).index_add_(0, first_ids + 1, counts)
    share = torch.log(counts / groups[first_ids + 1])
    rows: torch.Tensor = firsts + (share + MORE)[:, None] / logits_are.scale * _constant(states)
    return rows


def calibrated(states: States, rows: torch.Tensor, bias: torch.Tensor, logits_are: Logits) -> torch.Tensor:
    """`rows` with one number added to the logits of each new token, so that it is about as probable, summed over the places
    of `states`, as it is frequent there.

        w_t + u log((n_t + 1/2) / (sum over x of p(t | x) + 1/2)),  with n_t the occurrences of t and u as in `first_guess`

    Exact where p(t | x) is small.
    """
    expected = torch.zeros(len(rows))
    with torch.inference_mode():
        for begin in range(0, len(states.hidden), POSITIONS):
            here = slice(begin, begin + POSITIONS)
            new = apply(states.hidden[here] @ rows.T + bias, logits_are)
            total = torch.logaddexp(states.old[here], torch.logsumexp(new, dim=1))
            expected += (new - total[:, None]).exp().sum(dim=0)
    ratio = (_counts(states, len(rows)) + HALF) / (expected + HALF)
    made: torch.Tensor = rows + torch.log(ratio)[:, None] / logits_are.scale * _constant(states)
    return made


def _counts(states: States, number: int) -> torch.Tensor:
    """How often each new token comes."""
    return torch.bincount(states.coming[states.coming >= 0], minlength=number)


def _constant(states: States) -> torch.Tensor:
    """u [hidden size] such that u . x is all but 1 for every state x."""
    moment = states.hidden.T @ states.hidden / len(states.hidden)
    ridge = CONSTANT * moment.diagonal().mean() * torch.eye(len(moment))
    made: torch.Tensor = torch.linalg.solve(moment + ridge, states.hidden.mean(dim=0))
    return made


@dataclass(frozen=True)
class Anchor:
    """Holds rows that are embedding as well to `rows` [new tokens, hidden size], which the layers understand.

    What it adds to the nats a token is `weight` * sum_t p_t (w_t - r_t) C (w_t - r_t): p is how often each token comes, and C
    [hidden size, hidden size] how much the states after some layers change with a row (`inputs.sensitivity`), so that
    rows move where the layers do not look.
    """

    rows: torch.Tensor
    sensitivity: torch.Tensor
    weight: float

    def gradient(self, rows: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, float]:
        """By `rows`, and the value itself."""
        away = rows - self.rows
        half = self.weight * shares[:, None] * (away @ self.sensitivity)
        return 2 * half, float((half * away).sum())


def fit(
    states: States,
    start: torch.Tensor,
    bias: torch.Tensor,
    logits_are: Logits,
    seed: int,
    anchor: Anchor | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """Head rows [new tokens, hidden size] with which what comes is most probable, from `start`; and nats a token, on snippets
    held out, before the fit and after each pass, with what the `anchor` adds.

    The logits of old tokens stay as they are, so this is a multinomial regression, convex in the rows where the head has no
    soft cap. Steps are taken in coordinates in which the states are uncorrelated (their second moment, with its mean added to each), by Adam with linear decay; kept are the rows that are best on what was held out.
    Without an `anchor` rows are `calibrated` before and behind, where that is better on what was held out.
    """
    known = states.some(~states.held_out)
    unseen = states.some(states.held_out) if states.held_out.any() else known
    moment = known.hidden.T @ known.hidden / len(known.hidden)
    values, vectors = torch.linalg.eigh(moment)
    whitening = vectors * (values + SHRINKAGE * values.mean()).rsqrt()
    generator = torch.Generator().manual_seed(seed)
    shares = torch.bincount(known.coming[known.coming >= 0], minlength=len(start)) / len(known.coming)

    def judged(rows: torch.Tensor) -> float:
        return _mean(unseen, rows, bias, logits_are) + (anchor.gradient(rows, shares)[1] if anchor else 0.0)

    def better(rows: torch.Tensor) -> torch.Tensor:
        made = calibrated(known, rows, bias, logits_are)
        figures.append(judged(made))
        return made if figures[-1] == min(figures) else rows

    figures = [judged(start)]
    if anchor is None:
        start = better(start)
    best = start
    # The last row is what all rows move by: what one of them shows of texts with new tokens is true of the others too.
    moved = first = second = torch.zeros(len(start) + 1, start.shape[1])
    rates = torch.full((len(moved), 1), RATE)
    rates[-1] *= 0 if anchor else SHARED
    steps, step = PASSES * -(-len(known.hidden) // POSITIONS), 0
    with progress("distill: head", PASSES, "passes") as advance:
        for _ in range(PASSES):
            order = torch.randperm(len(known.hidden), generator=generator)
            for begin in range(0, len(order), POSITIONS):
                some = known.some(order[begin : begin + POSITIONS])
                rows = (start + (moved[:-1] + moved[-1]) @ whitening.T).requires_grad_(True)
                (gradient,) = torch.autograd.grad(losses(some, rows, bias, logits_are).mean(), rows)
                if anchor:
                    gradient = gradient + anchor.gradient(rows.detach(), shares)[0]
                gradient = torch.cat([gradient, gradient.sum(dim=0, keepdim=True)]) @ whitening
                step += 1
                first = torch.lerp(gradient, first, BETAS[0])
                second = torch.lerp(gradient.square(), second, BETAS[1])
                left = 1 - (step - 1) / steps
                moved = moved - left * rates * (first / (1 - BETAS[0] ** step)) / (
                    (second / (1 - BETAS[1] ** step)).sqrt() + 1e-8
                )
            rows = start + (moved[:-1] + moved[-1]) @ whitening.T
            figures.append(judged(rows))
            if figures[-1] == min(figures):
                best = rows
            advance(1, f"{figures[-1]:.3f} nats a token")
            if min(figures[-PATIENCE:]) > min(figures):
                break
    return (best if anchor else better(best)), figures


def _mean(states: States, rows: torch.Tensor, bias: torch.Tensor, logits_are: Logits) -> float:
    with torch.inference_mode():
        order = torch.arange(len(states.hidden))
        parts = [
            losses(states.some(order[begin : begin + POSITIONS]), rows, bias, logits_are)
            for begin in range(0, len(order), POSITIONS)
        ]
    return float(torch.cat(parts).mean())

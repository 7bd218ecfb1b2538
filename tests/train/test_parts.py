"""The parts of the trainer that are functions: schedules, the division of rows among ranks, guards."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmforge.backends.base import IGNORED, World
from llmforge.train.batches import Groups, MicroBatches, make_micro_batch
from llmforge.train.callbacks.guards import Guard, Running
from llmforge.train.schedule import SCHEDULES, make_schedule


@given(
    name=st.sampled_from(SCHEDULES),
    total=st.integers(1, 500),
    warmup=st.none() | st.integers(0, 600),
    ratio=st.floats(0, 1),
)
def test_schedules_stay_between_floor_and_peak(
    name: str, total: int, warmup: int | None, ratio: float
) -> None:
    schedule = make_schedule(name, 2.0, ratio, warmup, total)
    rates = [schedule.rate(step) for step in range(total)]
    after = rates[schedule.warmup :]
    assert all(0 < rate <= 2.0 + 1e-12 or ratio == 0 for rate in rates)
    assert all(rate >= 2.0 * ratio - 1e-12 for rate in after)
    assert after == sorted(after, reverse=True)
    assert rates[: schedule.warmup] == sorted(rates[: schedule.warmup])


def test_schedules_by_hand() -> None:
    cosine = make_schedule("cosine", 1.0, 0.1, 2, 10)
    assert [cosine.rate(0), cosine.rate(1)] == [0.5, 1.0]
    assert cosine.rate(5) == pytest.approx(0.1 + 0.9 * 0.5)
    assert cosine.rate(9) == pytest.approx(0.1)
    wsd = make_schedule("wsd", 1.0, 0.0, 0, 20)
    assert [wsd.rate(step) for step in (0, 17, 18, 19)] == [1.0, 1.0, 0.5, 0.0]
    assert make_schedule("cosine", 1.0, 0.1, None, 400).warmup == 10
    linear = make_schedule("linear", 1.0, 0.2, 2, 10)
    assert [linear.rate(step) for step in (1, 5, 9)] == pytest.approx([1.0, 0.6, 0.2])
    assert {make_schedule("constant", 0.01, 0.1, 2, 10).rate(step) for step in range(2, 10)} == {0.01}


@given(rows=st.integers(1, 60), micro=st.integers(1, 5), ranks=st.integers(1, 4))
def test_every_row_goes_to_one_rank_and_every_rank_makes_as_many_calls(
    rows: int, micro: int, ranks: int
) -> None:
    numbers = np.arange(rows)
    shares = [MicroBatches(micro, rows).of_rank(numbers, World(r, ranks, r, ranks)) for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(np.concatenate([part for share in shares for part in share]).tolist()) == numbers.tolist()
    assert all(len(part) <= micro for share in shares for part in share)


def row(ids: list[int], lengths: list[int], categories: list[str], masked: int = 0) -> SimpleNamespace:
    labels = np.array(ids, dtype=np.int32)
    labels[:masked] = -100
    return SimpleNamespace(
        input_ids=np.array(ids, dtype=np.int32),
        labels=labels,
        seq_lengths=np.array(lengths, dtype=np.int32),
        seq_categories=categories,
    )


def test_targets_positions_and_groups_by_hand() -> None:
    groups = Groups(("a", "b"), old_rows=100)
    rows = [row([1, 101, 3, 1, 5], [3, 2], ["b", "a"], masked=2)]
    batch = make_micro_batch(rows, 2, 7, groups, cross_document=False)
    ignored = IGNORED
    assert batch.targets.tolist() == [[ignored, 3, ignored, 5, ignored, ignored, ignored], [ignored] * 7]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert batch.lengths == ((3, 2, 2), (7,))
    assert batch.groups[0, [1, 3]].tolist() == [2, 0]
    across = make_micro_batch(rows, 1, 5, groups, cross_document=True)
    assert across.targets.tolist() == [[ignored, 3, 1, 5, ignored]]
    assert across.positions.tolist() == [[0, 1, 2, 3, 4]]
    assert across.lengths == ((5,),)
    new = make_micro_batch([row([1, 101], [2], ["a"])], 1, 2, groups, cross_document=False)
    assert new.groups[0, 0].item() == 1
    assert torch.equal(new.input_ids, torch.tensor([[1, 101]]))


def test_a_guard_knows_a_jump_from_a_ripple() -> None:
    chance = np.random.default_rng(0)
    guard = Guard("skip", 6.0)
    assert all(
        guard.accept(3 + 0.1 * chance.standard_normal(), 1 + 0.05 * chance.standard_normal())
        for _ in range(200)
    )
    assert not guard.accept(5.0, 1.0)
    assert guard.spiked is not None
    assert "loss" in guard.spiked
    assert not guard.accept(3.0, 9.0)
    assert "gradient norm" in str(guard.spiked)
    assert guard.accept(3.0, 1.0)
    again = Guard("skip", 6.0)
    again.load_state_dict(guard.state_dict())
    assert again == Guard("skip", 6.0, guard.loss, guard.norm)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50))
def test_the_running_mean_is_exact_at_first(values: list[float]) -> None:
    running = Running()
    for value in values:
        running.add(value)
    assert running.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert running.variance == pytest.approx(np.var(values), abs=1e-4)

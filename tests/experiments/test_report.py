"""Intervals, break-even and the page, from results whose answers are known."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from experiments.analysis import Curve, break_even, families, interval, mean_bits, weights
from experiments.arms import MEASURED, Arm, all_arms
from experiments.data import CHINESE, HELD
from experiments.report import PAGE, page, read_results
from experiments.run import RESULTS

DOCUMENTS = 12


def results(arm: Arm, bits_at: dict[int, float]) -> list[dict]:
    """Lines of an arm whose documents need `bits_at` bits per byte on average, some more and some less."""
    spread = np.linspace(-0.2, 0.2, DOCUMENTS)
    return [
        {
            "arm": arm.name,
            "family": arm.family,
            "recipe": arm.__dict__,
            "base_tokens": 1000,
            "part": part,
            "rows": 8000 + arm.pieces,
            "steps": part,
            "tokens": part * 1024,
            "flops": arm.budget * part / 8,
            "cpu_seconds": 1.0 * part,
            "held": {
                label: {
                    "bits_per_byte": bits,
                    "tokens_per_character": 1.5,
                    "bits": [(bits + more) * 100 for more in spread],
                    "bytes": [100] * DOCUMENTS,
                }
                for label in HELD
            },
        }
        for part, bits in bits_at.items()
    ]


def curves(*bits: float) -> list[Curve]:
    points = np.array(bits)[:, None] + np.zeros((1, 101))
    return [Curve("a", np.array([1e12, 1e13, 1e14]), points)]


def test_break_even_lies_where_the_lines_cross():
    even = break_even(curves(4, 3, 2), curves(3.5, 3, 2.5))
    assert even.flops == pytest.approx(1e13, rel=0.05)
    assert (even.low, even.high, even.reached, even.first) == (even.flops, even.flops, 1, False)


def test_break_even_that_is_not_reached_is_not_made_up():
    even = break_even(curves(4, 3.5, 3), curves(3.5, 3, 2.5))
    assert (even.flops, even.reached, even.high) == (None, 0, np.inf)


def test_a_model_that_is_ahead_once_and_falls_behind_again_does_not_break_even():
    assert break_even(curves(3, 3, 3), curves(3.5, 3.5, 2.5)).flops is None


def test_a_model_that_is_ahead_from_the_beginning_says_so():
    assert break_even(curves(3, 2, 1), curves(4, 3, 2)).first


def test_the_best_of_a_sweep_counts_at_each_compute():
    slow_and_fast = [*curves(4, 3.4, 1), *curves(3.2, 3.1, 3)]
    assert break_even(slow_and_fast, curves(3.3, 3.2, 3)).first


def test_the_interval_of_samples_holds_the_mean_and_is_that_of_the_normal_distribution():
    random = np.random.default_rng(1)
    bits = 300 + 30 * random.standard_normal(100)
    line = {"held": {"news": {"bits": bits.tolist(), "bytes": [100] * 100}}}
    value, low, high = interval(mean_bits(line, ["news"], weights({"news": 100}, 4000)))
    assert value == pytest.approx(bits.mean() / 100)
    half = 1.96 * bits.std() / 10 / 100
    assert (value - low, high - value) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_differences_are_of_the_same_documents():
    arm = Arm("a", "5M", 1e-3)
    first, second = (results(arm, {8: bits})[0] for bits in (2.0, 1.0))
    drawn = weights(dict.fromkeys(HELD, DOCUMENTS))
    difference = mean_bits(first, CHINESE, drawn) - mean_bits(second, CHINESE, drawn)
    assert np.ptp(difference) == pytest.approx(0, abs=1e-9)


def test_the_page_has_losers_what_is_missing_and_a_plot(tmp_path):
    plain, winner, loser = (
        Arm("un-grown", "5M", 1e-3),
        Arm("grown", "5M", 1e-3, pieces=1000),
        Arm("mean", "5M", 2e-3, pieces=1000, init="mean"),
    )
    lines = [
        *results(plain, dict(zip(MEASURED, (4.0, 3.0, 2.8, 2.6, 2.4), strict=True))),
        *results(winner, dict(zip(MEASURED, (5.0, 3.2, 2.8, 2.4, 2.0), strict=True))),
        *results(loser, dict(zip(MEASURED, (6.0, 5.0, 4.0, 3.5, 3.0), strict=True))),
    ]
    text = page(lines, {"later": Arm("later", "20M", 1e-3)}, tmp_path)
    summary = [line for line in text.splitlines() if "arms / seeds" in line or "1 / 1" in line]
    assert [line.split(" |")[0] for line in summary[1:]] == [
        "| 1,000 new tokens, subtoken-mean",
        "| no new tokens",
        "| 1,000 new tokens, mean",
    ]
    assert "-16.7%" in summary[1]
    assert "not reached" in summary[3]
    assert "`later` 1 of 1" in text
    headline = text.split("## Source model")[0]
    assert "1,000 new tokens, subtoken-mean | 5.00 | 5e+11" in headline
    assert "1,000 new tokens, mean | 6.00 | not reached |" in headline
    assert "No fit" in headline
    assert "60M" in text.split("What has not been run")[1]
    drawing = (tmp_path / "5M-1000-2e+12.svg").read_text()
    assert len(ET.fromstring(drawing).findall("{*}polyline")) == 3


def test_families_leave_learning_rate_and_seed_out():
    arms = [Arm(f"a{rate}", "5M", rate, seed=seed) for rate in (1e-3, 2e-3) for seed in (1, 2)]
    assert len(families([line for arm in arms for line in results(arm, {8: 2.0})])) == 1


def test_the_page_in_the_repository_is_that_of_the_results(tmp_path):
    assert page(read_results(RESULTS), all_arms(), tmp_path / "experiments") == PAGE.read_text(
        encoding="utf-8"
    )
    for plot in (tmp_path / "experiments").glob("*.svg"):
        assert plot.read_text() == (PAGE.parent / "experiments" / plot.name).read_text()

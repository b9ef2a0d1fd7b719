import gc
import statistics

import numpy
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from helpers import effects
from helpers.effects import paired_effect


@pytest.mark.parametrize("n", [2, 3, 5, 10, 60])
def test_paired_effect_is_the_paired_t_test(n):
    draw = torch.Generator().manual_seed(n)
    first = torch.randn(n, generator=draw, dtype=torch.float64).tolist()
    second = (0.3 + 1.5 * torch.randn(n, generator=draw, dtype=torch.float64)).tolist()
    effect = paired_effect(first, second)
    oracle = stats.ttest_rel(second, first)
    interval = oracle.confidence_interval(0.95)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    assert effect.n == n
    assert effect.mean == pytest.approx(statistics.mean(differences))
    assert effect.sd == pytest.approx(statistics.stdev(differences))
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.p() == pytest.approx(oracle.pvalue)
    assert effect.p(-0.5) == pytest.approx(stats.ttest_1samp(differences, -0.5).pvalue)


def test_text():
    a = [1.0, 2.0, 3.0]
    assert str(paired_effect(a, [2.0, 3.1, 4.05])) == "+1.05 ± 0.05 (3 seeds, 95 % interval +0.93 to +1.17)"


def test_seeds_that_agree_to_the_last_digit():
    same, more = paired_effect([1.0, 2.0], [1.0, 2.0]), paired_effect([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (same.p(), same.p(-1), more.p(), more.p(1)) == (1, 0, 0, 1)
    assert effects.compared(same, same.p()) == "not clear"
    assert effects.compared(same, same.p(), matters=0.5) == "too small to matter"
    assert effects.compared(more, more.p(), matters=0.5) == "seen"
    assert effects.bounded(same, same.p(-1), 1) == "holds"
    assert effects.bounded(same, same.p(0), 0) == "not clear"


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([], [])])
def test_unpaired_values(first, second):
    with pytest.raises(ValueError, match=f"same seeds.*{len(first)} and {len(second)}"):
        paired_effect(first, second)


def test_no_numbers():
    with pytest.raises(ValueError, match="must be numbers; got 0, nan"):
        paired_effect([1.0, 2.0], [1.0, float("nan")])


# ---------------------------------------------------------------------------------------------- verdicts

VERDICTS = [
    # differences, matters, verdict; alone, so that p is not adjusted
    ([1.0, 1.1, 1.2], None, "seen"),
    ([1.0, 1.1, 1.2], 1.0, "seen"),
    ([1.0, 1.1, 1.2], 1.5, "too small to matter"),
    ([-1.0, -1.1, -1.2], 1.0, "reversed"),
    ([-1.0, -1.1, -1.2], 1.5, "too small to matter"),
    ([1.0, -1.1, 0.2], 1.0, "not clear"),
    ([0.1, -0.1, 0.0], 1.0, "too small to matter"),
]


@pytest.mark.parametrize(("differences", "matters", "verdict"), VERDICTS)
def test_verdict_of_a_comparison(differences, matters, verdict):
    effect = paired_effect([0.0] * 3, differences)
    assert effects.compared(effect, effect.p(), matters) == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([-0.1, 0.0, 0.1], "holds"), ([-3.0, -3.1, -3.2], "does not hold"), ([-1.0, -0.5, 0.1], "not clear")],
)
def test_verdict_of_a_bound(differences, verdict):
    effect = paired_effect([0.0] * 3, differences)
    assert effects.bounded(effect, effect.p(-1), 1) == verdict


def test_an_adjusted_p_decides_not_the_interval():
    effect = paired_effect([0.0] * 3, [1.0, 1.2, 1.9])
    assert effect.low > 0 and effects.compared(effect, effect.p(), 0.1) == "seen"
    assert effects.compared(effect, min(1, 2 * effect.p()), 0.1) == "not clear"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_holm_is_that_of_statsmodels(size, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects after each call, half a second with PyTorch
    for seed in range(20):
        ps = numpy.random.default_rng(seed).uniform(0, 0.2, size).tolist()
        assert effects.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert effects.holm([]) == [] and effects.holm([1.0, 1.0]) == [1.0, 1.0]
    assert effects.holm([0.02, 0.02]) == [0.04, 0.04]


def chapters_verdicts(means, seeds, draws, matters):
    """Verdicts of `draws` simulated chapters with one primary claim a true mean; differences have variance 1."""
    found = []
    for differences in numpy.random.default_rng(0).normal(size=(draws, len(means), seeds)):
        blocks = [paired_effect([0.0] * seeds, row + mean) for row, mean in zip(differences, means, strict=True)]
        adjusted = effects.holm([effect.p() for effect in blocks])
        found.append([effects.compared(effect, p, matters) for effect, p in zip(blocks, adjusted, strict=True)])
    return numpy.array(found)


@pytest.mark.parametrize(("claims", "seeds"), [(1, 3), (3, 5)])
def test_few_null_chapters_show_something(claims, seeds):
    """At most 5 % of chapters without any effect may show one, up or down; three standard errors are allowed."""
    draws = 3000
    found = chapters_verdicts([0.0] * claims, seeds, draws, matters=0.01)
    wrong = numpy.isin(found, ["seen", "reversed"]).any(1).mean()
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    # and the test is no stricter than it has to be: of independent claims Holm lets all but 5 % pass
    assert wrong >= 0.05 - 4 * (0.05 * 0.95 / draws) ** 0.5


@pytest.mark.parametrize(("mean", "seeds"), [(1.0, 5), (1.0, 10), (2.0, 4)])
def test_what_is_there_is_found_as_often_as_the_power_says(mean, seeds):
    draws = 1000
    power = TTestPower().power(mean, seeds, 0.05)
    found = (chapters_verdicts([mean], seeds, draws, matters=0.01) == "seen").mean()
    assert found == pytest.approx(power, abs=4 * (power * (1 - power) / draws) ** 0.5)


def test_seeds_needed_is_the_fewest():
    for sd, half in ((1.0, 0.5), (0.3, 0.5), (2.0, 0.5)):
        n = effects.seeds_needed(sd, half)
        assert effects.half_width(sd, n) <= half and (n == 2 or effects.half_width(sd, n - 1) > half)
    assert effects.seeds_needed(1.0, 0.5) == 18 and effects.seeds_needed(0.0, 0.5) == 2
    assert effects.seeds_needed(100.0, 0.5) is None

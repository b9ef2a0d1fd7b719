"""What a difference between two arms over paired seeds is worth: its interval, its test, its verdict."""

import math
from dataclasses import dataclass

import numpy
from scipy import stats

LEVEL = 0.05
VERDICTS = ("seen", "reversed", "too small to matter", "not clear", "holds", "does not hold")
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Effect:
    """The difference between two arms over paired seeds.

    mean and sd: of the differences, one per seed. low and high: the 95 % confidence interval of their mean
    (Student's t). n: number of seeds.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def p(self, at=0.0):
        """The two-sided p-value of the paired t-test that the true mean difference is `at`."""
        away = abs(self.mean - at)
        # seeds that agree to the last digit: what they agree on is certain as far as they can tell
        if self.sd == 0:
            return float(away == 0)
        return float(2 * stats.t.sf(away / self.sd * math.sqrt(self.n), self.n - 1))

    def __str__(self):
        return f"{self.mean:+.2f} ± {self.sd:.2f} ({self.n} seeds, 95 % interval {self.low:+.2f} to {self.high:+.2f})"


def paired_effect(first, second):
    """The Effect of `second` minus `first`, two sequences with one value per seed in the same order."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired arms need the same seeds, at least two; got {len(first)} and {len(second)} values.")
    difference = numpy.asarray(second, dtype=float) - numpy.asarray(first, dtype=float)
    if not numpy.isfinite(difference).all():
        raise ValueError(f"paired differences must be numbers; got {', '.join(f'{value:g}' for value in difference)}.")
    n = len(difference)
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    half = half_width(sd, n)
    return Effect(mean, sd, mean - half, mean + half, n)


def half_width(sd, n):
    """Half the 95 % interval of a mean of `n` values with standard deviation `sd` (Student's t)."""
    return float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sd / math.sqrt(n)


def seeds_needed(sd, half, most=1000):
    """The fewest seeds, at least two, whose 95 % interval is at most `half` to each side; None if above `most`."""
    return next((n for n in range(2, most + 1) if half_width(sd, n) <= half), None)


def holm(ps):
    """Holm's adjusted p-values of a family, in the order given: below 0.05 keeps the family's error below 5 %.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def compared(effect, p, matters=None):
    """The verdict on a claim that predicts a positive difference; `p`, adjusted or not, is that of zero.

    `too small to matter` when the whole interval lies within `matters` of zero, also where it excludes zero; else
    `seen` or `reversed` when p < 0.05; else `not clear`.
    """
    if matters is not None and -matters <= effect.low and effect.high <= matters:
        return "too small to matter"
    if p >= LEVEL:
        return "not clear"
    return "seen" if effect.mean > 0 else "reversed"


def bounded(effect, p, loses):
    """The verdict on a claim that at most `loses` is lost; `p`, adjusted or not, is that of a loss of just `loses`."""
    if p >= LEVEL:
        return "not clear"
    return "holds" if effect.mean > -loses else "does not hold"

"""Claims: what a paper predicts about the arms of a study, and what the study says about it.

A chapter defines `CLAIMS = Claims(...)` in a cell tagged `model` and shows `CLAIMS.table()` in another. Claims in
`main` are primary: what would count is said before the runs, and their verdicts stand together, corrected after Holm
over all primary claims of the chapter. Claims in `also` are exploratory: each is judged by itself, and marked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import NamedTuple

from helpers import chapters, effects
from helpers.effects import Effect
from helpers.study import Study
from helpers.table import Table


class Claim(NamedTuple):
    """One comparison: `second` less `first` is predicted to be positive.

    first, second: an arm, or a list of arms that counts as its mean, seed by seed.
    paper: what the paper prints and where, such as "Table 3: 0.9 points".
    loses: makes the claim a bound: `second` is at most this much below `first`, in the unit of the block.
    """

    first: str | list
    second: str | list
    paper: str = ""
    loses: float | None = None

    @property
    def arms(self):
        """All arms of both sides, as a list of names."""
        return [*_listed(self.first), *_listed(self.second)]

    @property
    def at(self):
        """The difference that the claim has to be told from."""
        return 0.0 if self.loses is None else -self.loses


class Found(NamedTuple):
    """What became of a claim. `effect` and `p` are None while fewer than two seeds are measured.

    p: of the paired t-test, adjusted after Holm where the claim is primary. planned: how many seeds the study wants.
    """

    sentence: str
    claim: Claim
    measured: str
    effect: Effect | None
    verdict: str
    primary: bool
    p: float | None
    planned: int


@dataclass(frozen=True, eq=False)
class Claims:
    """Claims that are measured alike.

    study: a Study, or several: an arm is taken from the first that has it.
    metric: a name, or a function of (study, arm) that gives one value per seed of `study.seeds`.
    measured: what `metric` times `scale` is, such as "test accuracy, points".
    main, also: primary and exploratory claims; sentence -> Claim, or a tuple that makes one.
    matters: the smallest effect that matters, in the unit of `measured`; without it there is no `main`.
    about: what the miniature compares, for the results page.

    Raises ValueError when a claim names no arm or stands twice, or when `matters` is missing.
    """

    study: Study | tuple
    metric: str | Callable
    measured: str
    main: dict = field(default_factory=dict)
    also: dict = field(default_factory=dict)
    scale: float = 1.0
    matters: float | None = None
    about: str = ""

    def __post_init__(self):
        for kind in ("main", "also"):
            claims = {sentence: Claim(*given) for sentence, given in getattr(self, kind).items()}
            object.__setattr__(self, kind, claims)
        arms = dict.fromkeys(arm for study in self.studies for arm in study.arms)
        for sentence, claim in self.all.items():
            if unknown := [arm for arm in claim.arms if arm not in arms]:
                raise ValueError(
                    f"{self.chapter}: the claim {sentence!r} names {unknown[0]!r}, which is no arm. "
                    f"The arms are: {', '.join(map(str, arms))}."
                )
        if twice := self.main.keys() & self.also.keys():
            raise ValueError(f"{self.chapter}: the claim {min(twice)!r} is both primary and exploratory.")
        if self.main and not (self.matters and self.matters > 0):
            raise ValueError(
                f"{self.chapter}: {self.measured!r} has primary claims, so it needs matters=, the smallest effect "
                f"that matters, a positive number in that unit; got {self.matters}."
            )

    @property
    def studies(self):
        """The studies as a tuple."""
        return self.study if isinstance(self.study, tuple) else (self.study,)

    @property
    def chapter(self):
        """The chapter that makes these claims: that of its first study."""
        return self.studies[0].chapter

    @property
    def all(self):
        """Primary and exploratory claims, in this order; sentence -> Claim."""
        return self.main | self.also

    def found(self):
        """What became of every claim: a list of Found, primary ones first."""
        adjusted = _family(self)
        return [self._judge(sentence, claim, adjusted.get(sentence)) for sentence, claim in self.all.items()]

    def effect(self, claim):
        """The Effect of a Claim over the seeds that all its arms have, or None if there are fewer than two."""
        first, *others = self._seeds(claim)
        seeds = [seed for seed in first if all(seed in other for other in others)]
        if len(seeds) < 2:
            return None
        return effects.paired_effect(self._values(claim.first, seeds), self._values(claim.second, seeds))

    def table(self, decimals=2):
        """A Table of all claims; the difference is given as mean ± standard deviation over the seeds."""
        found = self.found()
        return Table(_row(one, decimals, any(other.claim.paper for other in found)) for one in found)

    def _judge(self, sentence, claim, adjusted):
        effect, primary = self.effect(claim), sentence in self.main
        planned = min(len(self.of(arm).seeds) for arm in claim.arms)
        if effect is None:
            return Found(sentence, claim, self.measured, None, effects.NOT_MEASURED, primary, None, planned)
        p = adjusted if primary else effect.p(claim.at)
        if claim.loses is None:
            verdict = effects.compared(effect, p, self.matters)
        else:
            verdict = effects.bounded(effect, p, claim.loses)
        return Found(sentence, claim, self.measured, effect, verdict, primary, p, planned)

    def of(self, arm):
        """The study that an arm is taken from."""
        return next(study for study in self.studies if arm in study.arms)

    def _seeds(self, claim):
        """The measured seeds of each arm of a claim. A function may look at every arm, so there all must be there."""
        if callable(self.metric):
            return [self.of(arm).measured_seeds() for arm in claim.arms]
        return [self.of(arm).measured_seeds(arm) for arm in claim.arms]

    def _values(self, arms, seeds):
        """One value per seed, times `scale`; several arms count as their mean."""
        rows = []
        for arm in _listed(arms):
            study = replace(self.of(arm), seeds=tuple(seeds))
            plain = self.metric(study, arm) if callable(self.metric) else study.values(arm, self.metric, seeds)
            rows.append([self.scale * value for value in plain])
        return [fmean(values) for values in zip(*rows, strict=True)]


def _listed(arms):
    return list(arms) if isinstance(arms, (list, tuple)) else [arms]


def family(chapter_name):
    """All primary claims of a chapter: sentence -> (Claims, Claim). Raises ValueError when a sentence stands twice."""
    found = {}
    for _, block in chapters.declared(Claims, chapter_name):
        for sentence, claim in block.main.items():
            if sentence in found:
                raise ValueError(f"{chapter_name}: two primary claims say {sentence!r}; word one of them otherwise.")
            found[sentence] = block, claim
    return found


def _family(own):
    """Adjusted p of each primary claim of the chapter of `own`, whose objects may be a notebook's: sentence -> p.

    A claim that is not measured yet counts as one that shows nothing, so that verdicts only gain by measuring.
    """
    if not own.main:
        return {}
    members = family(own.chapter) | {sentence: (own, claim) for sentence, claim in own.main.items()}
    found = {sentence: block.effect(claim) for sentence, (block, claim) in members.items()}
    ps = [1.0 if effect is None else effect.p(members[sentence][1].at) for sentence, effect in found.items()]
    return dict(zip(found, effects.holm(ps), strict=True))


def _row(one, decimals, with_paper):
    effect, verdict = one.effect, one.verdict if one.primary else f"{one.verdict} (exploratory)"
    seeds = f"{effect.n if effect else 'fewer than 2'} of {one.planned}"
    return {
        "claim": one.sentence,
        **({"paper": one.claim.paper} if with_paper else {}),
        one.measured: f"{effect.mean:+.{decimals}f} ± {effect.sd:.{decimals}f}" if effect else "",
        "95 % interval": f"{effect.low:+.{decimals}f} to {effect.high:+.{decimals}f}" if effect else "",
        "seeds": effect.n if effect and effect.n >= one.planned else seeds,
        "verdict": verdict,
    }

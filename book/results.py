"""The page "What came out": every paper's claim, our miniature, and what the studies in `results/` say about it.

All that it says about a paper is declared in the paper's chapter: `Claims` in its model cells, the claim in its card.
`./course pages` writes `pages/results.md` and the figure beside it. No chapter is run.
"""

import re
from itertools import groupby
from textwrap import fill

from book import pairs
from book.cards import card, link, title
from helpers import chapters, effects, plot
from helpers.claims import Claims
from helpers.settings import ROOT
from helpers.table import Table

PAGE = ROOT / "pages" / "results.md"
FOREST = ROOT / "pages" / "_static" / "results-forest.webp"

INTRODUCTION = """\
(results)=

# What came out

Each chapter tests its paper's claim in miniature: two networks that differ in one thing, trained several times each.
This page gathers these comparisons, also those that did not come out as the paper says. Every number is computed
from the files in `results/`, in the same way as in the chapters.

**Primary and exploratory.** In each chapter a few comparisons stand closest to what the paper claims; they are
primary, and on top here. All others are exploratory: they say where to look next, and among so many some will stand
out by chance.

**The difference** is the second arm less the first, for each seed by itself: the mean, ± the standard deviation over
the seeds, and in brackets the 95 % interval of the mean. The arms stand in the order in which the claim predicts a
positive number. So where less is better, as with a loss, the better arm should be the first. Points are percentage
points.

**The verdict.** *Seen*: the difference is on the claim's side of zero, by a t-test at 5 %; *reversed*: on the other
side. *Too small to matter*: the whole interval is nearer to zero than the smallest difference that would matter, which
the chapter states; that is a finding, too. *Not clear*: the interval is too wide to say. A claim that little is lost
*holds* or *does not hold*. The primary verdicts of a chapter carry Holm's correction for their number.

**The data** are CIFAR-10, animals of PASCAL VOC, and the cells of ISBI 2012, often a part of them, and often made
smaller. Each section names its own.

**What this cannot show.** The networks are small, the trainings take seconds or minutes, and the seeds are few. With
three seeds an effect has to be large and stable to be seen. *Not clear* does not mean that there is no effect.
*Reversed* does not mean that the paper is wrong; it trains larger networks on more images for far longer. The interval
is about the choice of the seed alone, not about other data or other settings.
"""

FIGURE = """\
```{{figure}} _static/{name}
:alt: {alt}
:width: 100%

Every primary comparison in units of the smallest difference that matters in it (the grey band): mean and 95 % interval.
Right of the band the claim is borne out by more than that, left of it contradicted. Filled: decided; open: not clear.
An arrow: the interval goes on.
```
"""

WAITING = """\
**Not measured yet.** These are designed and committed, so that nobody can choose a claim after its numbers. Their
trainings take hours: `./course study` with the name of a chapter.
"""

COUNT = (
    "This is no score of the papers: comparisons of one chapter share trainings, some ask the same in another measure, "
    "and some are controls of ours or ask for a gain that the paper itself does not expect."
)
DECIDED = ("seen", "reversed", "too small to matter", "holds", "does not hold")


# ------------------------------------------------------------------------------------------------ gathering


def gathered():
    """What every chapter declares: chapter's name -> [(Claims, its list of Found), …], in the order of the book."""
    by_chapter = groupby(chapters.declared(Claims), key=lambda pair: pair[0])
    return {name: [(block, block.found()) for _, block in blocks] for name, blocks in by_chapter}


def everything(results, primary=None):
    """All Found of `gathered()` as a list; with `primary` only those that are, or are not."""
    found = [one for blocks in results.values() for _, some in blocks for one in some]
    return [one for one in found if primary is None or one.primary == primary]


# ------------------------------------------------------------------------------------------------ the page


def text():
    """The whole page as Markdown."""
    results = gathered()
    sections = [section(name, blocks) for name, blocks in results.items()]
    figure = FIGURE.format(name=FOREST.name, alt=forest_alt(results))
    return "\n".join(
        [INTRODUCTION, "## The primary claims\n", figure, summary(results), *sections, "## The count\n", count(results)]
    )


def write():
    """Write the page and its figure."""
    pairs.write({PAGE: text(), FOREST: forest(gathered())._webp})


def summary(results):
    """The table of all primary claims that are measured, then that of those which are designed only."""
    columns = ("paper", "claim in miniature", "verdict", "difference", "measured")  # a phone shows the first ones
    measured, designed = [], []
    for name, blocks in results.items():
        primary = [one for _, found in blocks for one in found if one.primary]
        done, waiting = ([one for one in primary if bool(one.effect) == which] for which in (True, False))
        for place, one in enumerate(done):
            # the link once for each paper
            row = (one.sentence, said(one), spread(one.effect), one.measured)
            measured.append(("" if place else link(name), *row))
        for place, one in enumerate(waiting):
            designed.append(("" if place else link(name), one.sentence, one.measured))
        if not primary:
            measured.append((link(name), "", "no primary claim yet", "", ""))
    tables = [markdown(columns, measured)]
    if designed:
        tables += [WAITING, markdown(("paper", "claim in miniature", "measured"), designed)]
    return "\n".join(tables)


def section(name, blocks):
    """What a paper claims, all its comparisons, and where their numbers come from."""
    abouts = dict.fromkeys(block.about for block, _ in blocks if block.about)
    columns = (
        "claim",
        "verdict",
        "difference (95\u00a0% interval)",
        "measured",
        "first arm",
        "second arm",
        "the paper",
    )
    rows = [
        (
            one.sentence,
            said(one) if one.primary else f"{said(one)} (exploratory)",
            f"{spread(one.effect)} ({interval(one.effect)})" if one.effect else "",
            one.measured,
            arm_name(one.claim.first),
            arm_name(one.claim.second),
            one.claim.paper,
        )
        for _, found in blocks
        for one in found
    ]
    studies = {study.stem: study for block, _ in blocks for study in block.studies}.values()
    lines = [
        f"## {title(name)}\n",
        paragraph(f"**The paper.** {card(name)['Claim']}"),
        paragraph(f"**Ours**, in {link(name)}. {' '.join(abouts)}"),
        markdown(columns, rows),
        paragraph(f"Data: {' '.join(origin(study) for study in studies)}"),
    ]
    return "\n".join(lines)


def origin(study):
    """Data, seeds, number of runs and date of a study in one line. Raises ValueError when its data are mixed."""
    if not study.path.exists():
        return f"`results/{study.path.name}` is not measured yet."
    runs = study.runs()
    dates = sorted({run["made_with"]["date"] for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    planned = len(study.arms) * len(study.seeds)
    done = f"{len(runs)} runs" if len(runs) == planned else f"{len(runs)} of {planned} runs"
    return f"{study.provenance()}; {len(study.seeds)} seeds, {done}, {when} (`results/{study.path.name}`)."


def count(results):
    """How many comparisons have which verdict: of the primary ones, and of the others."""
    primary, others = (everything(results, which) for which in (True, False))
    return paragraph(
        f"Of {len(primary)} primary comparisons, {tally(primary)}. Of {len(others)} exploratory ones, {tally(others)}. "
        f"{COUNT}"
    )


OF_BOUNDS = {"holds": ("holds", "hold"), "does not hold": ("does not hold", "do not hold")}


def tally(found):
    verdicts, parts = [one.verdict for one in found], []
    for verdict in (*effects.VERDICTS, effects.NOT_MEASURED):
        if count := verdicts.count(verdict):
            one, several = OF_BOUNDS.get(verdict, (f"is {verdict}", f"are {verdict}"))
            parts.append(f"{count} {one if count == 1 else several}")
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts) or "there is none"


# ------------------------------------------------------------------------------------------------ the figure


def in_units(results):
    """Every primary claim that is measured: (chapter's name, Found, mean, low, high), in units of what matters."""
    rows = []
    for name, blocks in results.items():
        for block, found in blocks:
            for one in found:
                if one.primary and one.effect:
                    # a bound is told from the loss that is allowed, not from zero
                    shift = one.claim.loses or 0.0
                    values = (one.effect.mean, one.effect.low, one.effect.high)
                    rows.append((name, one, *((value + shift) / block.matters for value in values)))
    return rows


def forest(results, reach=8):
    """The figure of all primary claims: a plot.Shown. reach: where the axis ends, in units of what matters."""
    rows = in_units(results)

    def draw(fig):
        ax = fig.subplots()
        ax.axvspan(-1, 1, color="0.9", zorder=0)
        ax.axvline(0, color="0.5", linewidth=1)
        for y, (_, one, mean, low, high) in enumerate(rows):
            left, right = (min(max(end, -reach), reach) for end in (low, high))
            colour = "C1" if one.verdict in ("reversed", "does not hold") else "C0"
            ax.plot([left, right], [y, y], color=colour, linewidth=2)
            for end, cut, mark in ((low, -reach, "<"), (high, reach, ">")):
                if abs(end) > reach and (end < 0) == (cut < 0):
                    ax.plot(cut, y, mark, color=colour, markersize=7, clip_on=False)
            if abs(mean) <= reach:
                face = colour if one.verdict in DECIDED else "white"
                ax.plot(mean, y, "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)
        ax.set_yticks(range(len(rows)), [f"{int(name[:2])}  {fill(one.sentence, 52)}" for name, one, *_ in rows])
        ax.set(xlim=(-reach, reach), ylim=(len(rows) - 0.5, -0.5), xlabel="times the smallest difference that matters")
        ax.tick_params(axis="y", labelsize=8)

    return plot.show(draw, alt=forest_alt(results), width=8.5, height=0.9 + 0.36 * max(1, len(rows)))


def forest_alt(results):
    """What the figure shows, in a sentence."""
    found = [one for _, one, *_ in in_units(results)]
    return f"Forest plot of {len(found)} primary comparisons: {tally(found)}. The table below has the numbers."


# ------------------------------------------------------------------------------------------------ words


def said(one):
    """The verdict on a claim (Found), and how far its study is where seeds are missing."""
    unfinished = one.effect and one.effect.n < one.planned
    return f"{one.verdict} so far, {one.effect.n} of {one.planned} seeds" if unfinished else one.verdict


def spread(effect):
    return f"{effect.mean:+.2f} ± {effect.sd:.2f}" if effect else ""


def interval(effect):
    return f"{effect.low:+.2f}\u00a0to\u00a0{effect.high:+.2f}"


def arm_name(arm):
    return "mean of " + ", ".join(arm) if isinstance(arm, (list, tuple)) else arm


def paragraph(sentences):
    sentences = re.sub(r"(?<=\+) | (?=[\d+])", "\u00a0", sentences)  # a line that starts with these could be a list
    return fill(sentences, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def markdown(columns, rows):
    return Table(dict(zip(columns, row, strict=True)) for row in rows)._repr_markdown_() + "\n"

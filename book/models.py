"""The page "All models in one place": what every named network of the chapters costs, beside the papers' figures.

The networks and the figures are declared in the chapters (`Variants`, and `Weights` for the small trained ones). `text`
is the page, from the counts and the stored times; `measure` takes the times again. `./course pages` calls them.
"""

import json
import math
import os
import platform
import re
import time
from functools import cache
from hashlib import sha256

import torch
from tabulate import tabulate

from book import pairs
from book.cards import title
from helpers import chapters, inspect, settings
from helpers.fingerprint import code_of
from helpers.variants import UNITS, Variant, Variants, agrees
from helpers.weights import explorable

PAGE = settings.ROOT / "pages" / "models.md"
TIMES = settings.ROOT / "pages" / "models_times.json"
COUNTS = settings.ROOT / "pages" / "models_counts.json"
THREADS = 2
ROUNDS = 2
SMALL = "The small networks"


# ------------------------------------------------------------------------------------------------- the networks


@cache
def groups():
    """Every table of the page, heading -> (Variants, links): what chapters declare, then the small networks.

    links: a dict from a network's label to the page that its row links to, empty where the heading links.
    """
    found = {f"{int(name[:2])} {title(name)}": (one, {}) for name, one in chapters.declared(Variants)}
    found[SMALL] = small()
    return found


def small():
    """The trained networks that the chapters declare, as Variants, and the links of their rows."""
    trained = explorable()
    # those that name pictures were trained at 32 px, whatever they are shown later
    sides = [32 if each.name == "named" else each.size for each in trained]
    rows = [
        Variant(each.title, each.build, (3, side, side), meta=False) for each, side in zip(trained, sides, strict=True)
    ]
    about = "One of each chapter, trained. They are ours, so no paper has figures for them."
    one = Variants("", about, rows, sized=True)
    return one, {one.label(row): each.chapter for row, each in zip(rows, trained, strict=True)}


# ---------------------------------------------------------------------------------------------------- the clock


def milliseconds(variant, seconds=0.5):
    """Median milliseconds per image of the untrained network on the CPU, one image at a time, with THREADS threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return 1000 * inspect.time_per_image(variant.build(), variant.shape, seconds=seconds)
    finally:
        torch.set_num_threads(threads)


def times():
    """Time every network, in some minutes: a dict as it is stored in pages/models_times.json.

    Whatever else the machine does makes a time longer, never shorter. So each network has its turn in ROUNDS rounds,
    some minutes apart, and the smallest median counts.
    """
    best = {heading: {} for heading in groups()}
    for _ in range(ROUNDS):
        for heading, (variants, _) in groups().items():
            for variant in variants:
                label, table = variants.label(variant), best[heading]
                table[label] = min(table.get(label, math.inf), milliseconds(variant))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{os.cpu_count()} cores, {platform.machine().replace('_', '-')}",
        "threads": THREADS,
        "milliseconds": {
            heading: {label: float(f"{fastest:.3g}") for label, fastest in table.items()}
            for heading, table in best.items()
        },
    }


# --------------------------------------------------------------------------------------------------- the counts


def code(heading):
    """A hash of all code that the counts of a table rest on, in its chapter and in those that it calls."""
    variants, links = groups()[heading]
    if not links:
        names = [name for name, value in vars(chapters.chapter(variants.chapter)).items() if value is variants]
        return code_of(variants.chapter, names[0])
    built = [code_of(links[variants.label(variant)], variant.build.__name__) for variant in variants]
    return sha256("".join(built).encode()).hexdigest()[:16]


@cache
def counted(heading):
    """The counts of a table, label -> counts: those that are kept, or new ones if the code has changed since."""
    kept = json.loads(COUNTS.read_text("utf-8")).get(heading, {}) if COUNTS.exists() else {}
    if kept.get("code") == code(heading):
        return kept["counts"]
    variants, _ = groups()[heading]
    return {variants.label(variant): variant.counts for variant in variants}


# ----------------------------------------------------------------------------------------------------- the page

INTRODUCTION = """(models)=

# All models in one place

Every network that the chapters name, built by the chapters' own code and counted.

**Parameters** are all learnable numbers, the scales and shifts of batch normalisation included, its running averages
not. **Multiply-adds** are those of convolutions and linear layers for one image. What the papers call FLOPs are
multiply-adds, too. k, M and G are thousands, millions and billions.

**Receptive field** is the side, in pixels, of the square that one unit of the last map can see; it may be larger than
the image. Where there are several paths, the widest counts. Gates that average over the whole map see everything and
are left out, and so are linear layers. Where a network enlarges its maps again, as those for segmentation and
detection do, it is the field at the coarsest map. A dash stands where stages at two resolutions run side by side.

**ms** is the median time of one image, alone, through the untrained network, in milliseconds; of two
rounds the smaller.
{measured}

Beside our counts stand the papers' figures, with their tables; a dash where a paper prints none, and no column where it
prints none at all. **≠** marks a figure that is not our count rounded to as many digits; the reason, where it is
known, is below the table.
"""
MEASURED = """Measured on {machine}, with {threads} threads and PyTorch {torch}, {date}. Compare them with each other,
not with those of your machine, and only where they are far apart: the same network measured twice can differ by a fifth
and more."""


def amount(number):
    """A count to four digits with its unit: 138357544 as "138.4 M"."""
    for unit, size in UNITS.items():
        if number >= size:
            value = number / size
            return f"{value:.{3 - int(math.log10(value))}f}\u00a0{unit}"
    return str(number)


def figure_beside(count, figure):
    """A paper's figure, marked where it is not our count rounded."""
    if figure is None:
        return "—"
    return ("" if agrees(count, figure) else "≠\u00a0") + figure.replace(" ", "\u00a0")


def milliseconds_text(value):
    """Milliseconds to three digits; those of a time above a second are all shown."""
    if value is None:
        return "—"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def section(heading, variants, links, stored):
    """A table with its heading and remarks, as Markdown. stored: label -> milliseconds."""
    rows = [row(variants, variant, links, counted(heading), stored) for variant in variants]
    table = tabulate(
        [list(one.values()) for one in rows],
        list(rows[0]),
        tablefmt="pipe",
        colalign=["left"] + ["right"] * (len(rows[0]) - 1),
        disable_numparse=True,
    )
    top = heading if links else f"[{heading}](../chapters/{variants.chapter})"
    parts = [f"## {top}", variants.about, table]
    if found := list(remarks(variants)):
        parts.append("\n".join(found))
    return "\n\n".join(parts)


def row(variants, variant, links, counts, stored):
    """One network: heading -> text."""
    label = variants.label(variant)
    counts = counts[label]
    name = f"[{int(links[label][:2])} {label}](../chapters/{links[label]})" if links else label
    cells = {"network": re.sub(r" (?=px)| (?==)|(?<==) ", "\u00a0", name)}
    for place, (what, attribute) in enumerate({"parameters": "parameters", "multiply-adds": "macs"}.items()):
        cells[what] = amount(counts[what])
        if any(getattr(other, attribute) for other in variants):
            # two columns may have one heading; a blank keeps them apart
            heading = variants.printed[place] + " " * (variants.printed[place] in cells)
            cells[heading] = figure_beside(counts[what], getattr(variant, attribute))
    cells["receptive field"] = f"{counts['receptive field'] or '—'}"
    cells["ms"] = milliseconds_text(stored.get(label))
    return cells


def remarks(variants):
    """The remarks below a table, each once, with the networks that it is about."""
    about = {}
    for variant in variants:
        if variant.remark:
            about.setdefault(variant.remark, []).append(variants.label(variant))
    yield from (f"- **{'; '.join(labels)}**: {remark}" for remark, labels in about.items())
    if variants.remark:
        yield f"- {variants.remark}"


def text():
    """The page, from the counts and the stored times, as Markdown; with dashes while no times are stored."""
    stored = json.loads(TIMES.read_text("utf-8")) if TIMES.exists() else {"milliseconds": {}}
    measured = MEASURED.format(**stored) if "date" in stored else "It was not measured yet."
    sections = [
        section(heading, variants, links, stored["milliseconds"].get(heading, {}))
        for heading, (variants, links) in groups().items()
    ]
    return "\n\n".join([INTRODUCTION.format(measured=measured).rstrip(), *sections]) + "\n"


def write():
    """Write the page, and the counts that it rests on."""
    kept = {heading: {"code": code(heading), "counts": counted(heading)} for heading in groups()}
    pairs.write({PAGE: text(), COUNTS: json.dumps(kept, indent=1, ensure_ascii=False) + "\n"})


def measure():
    """Measure the times again, in some minutes, and write them beside the page."""
    pairs.write({TIMES: json.dumps(times(), indent=1, ensure_ascii=False) + "\n"})

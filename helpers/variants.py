"""Every named network beside what its paper prints about it.

A chapter declares, in a cell tagged `model`,

    NETWORKS = Variants("01_vgg", "Images of 224x224 pixels.", [
        Variant("A", partial(VGG, CONFIGS["A"]), (3, 224, 224), parameters="133 M"), ...],
        printed=("paper, Table 2", "ResNet paper"))

and shows `Table(counted(NETWORKS))`. The book's page of all models gathers these declarations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from helpers.inspect import count_parameters
from helpers.receptive_field import macs_and_field

UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}


@dataclass(frozen=True)
class Variant:
    """A network and its paper's figures.

    build: a function without arguments that gives the untrained network.
    shape: (C, H, W) of its input.
    parameters, macs: as the paper prints them, such as "138 M"; None where it prints none.
    remark: why a figure is not the count rounded to as many digits. Such a figure must have one.
    pixel: receptive field and jump of one position of the input, in pixels; None where no field can be given.
    meta: whether it can be built without numbers, on the `meta` device.
    """

    name: str
    build: Callable
    shape: tuple
    parameters: str | None = None
    macs: str | None = None
    remark: str = ""
    pixel: tuple | None = (1, 1)
    meta: bool = True

    def make(self):
        """The untrained network, on the `meta` device if it allows that: shapes without numbers."""
        with torch.device("meta" if self.meta else "cpu"):
            return self.build()

    @cached_property
    def counts(self):
        """A dict with `parameters`, `multiply-adds` of one image, and `receptive field` in pixels (None if not given).

        The receptive field is that of one unit of the last map; of several paths the widest counts (see
        `helpers.receptive_field`).
        """
        network = self.make()
        macs, field = macs_and_field(network, self.shape, self.pixel or (1, 1))
        return {
            "parameters": count_parameters(network),
            "multiply-adds": macs,
            "receptive field": field if self.pixel else None,
        }

    def differs(self, counts=None):
        """Whether a figure of the paper is not our count rounded to as many digits. counts: as `counts` gives them."""
        counts = counts or self.counts
        pairs = (counts["parameters"], self.parameters), (counts["multiply-adds"], self.macs)
        return any(figure is not None and not agrees(count, figure) for count, figure in pairs)


@dataclass(frozen=True)
class Variants:
    """The networks of one chapter.

    chapter: its name, such as "01_vgg".
    about: what goes in, and whose figures stand beside ours, in a sentence or two.
    rows: a list of Variant.
    printed: where the figures for parameters and for multiply-adds are printed.
    remark: what is to be said about all of them.
    sized: whether the side of the input belongs to the name of a network.

    Raises ValueError for two networks of one name.
    """

    chapter: str
    about: str
    rows: list
    printed: tuple = ("paper", "paper")
    remark: str = ""
    sized: bool = False

    def __post_init__(self):
        labels = [self.label(variant) for variant in self.rows]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"{self.chapter} has two networks of the name {twice[0]!r}; give each its own.")

    def __iter__(self):
        return iter(self.rows)

    def label(self, variant):
        """What a network is called in tables."""
        return f"{variant.name}, {variant.shape[1]} px" if self.sized else variant.name

    def problems(self, counted=None):
        """Figures that contradict our count without a remark, in sentences. counted: label -> counts, if known."""
        for variant in self.rows:
            counts = counted[self.label(variant)] if counted else variant.counts
            if variant.differs(counts) and not (variant.remark or self.remark):
                yield (
                    f"{self.chapter}: {self.label(variant)} has {counts['parameters']:,} parameters and "
                    f"{counts['multiply-adds']:,} multiply-adds, and the paper prints {variant.parameters} and "
                    f"{variant.macs}. Correct the network or the figure, or say in `remark` why they differ."
                )


def counted(variants):
    """Rows for a Table: the counts of every network, beside the paper's figures where it prints any."""
    figures = [("parameters", "parameters", 0), ("multiply-adds", "macs", 1)]
    for variant in variants:
        row = {"network": variants.label(variant)}
        for what, attribute, place in figures:
            row[what] = variant.counts[what]
            if any(getattr(other, attribute) for other in variants):
                row[f"{variants.printed[place]}: {what}"] = getattr(variant, attribute) or ""
        yield row


def agrees(count, figure):
    """Whether a figure such as "138 M" is the count rounded to as many digits.

    Raises ValueError for a figure that is no number with one of the units k, M, G.
    """
    digits, _, unit = figure.partition(" ")
    if unit not in UNITS:
        raise ValueError(f"{figure!r} is no figure: write a number and one of {', '.join(UNITS)}, as in '138 M'.")
    decimals = len(digits.partition(".")[2])
    return abs(count / UNITS[unit] - float(digits)) <= 0.5 / 10**decimals

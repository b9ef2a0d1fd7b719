"""Boxes and arrows: the few shapes that all diagrams of the course are made of.

Coordinates are those of the axes. Colours say what a thing is: data, a layer of the network, or what a paper adds.
"""

KINDS = {  # face and edge
    "data": ("white", "#888888"),
    "layer": ("#e8f1f8", "C0"),
    "added": ("#fdf0e3", "C1"),
}
INK = "#444444"


def box(ax, x, y, text, kind="layer", fontsize=8.5):
    """A rounded box around `text`, centred at (x, y). kind: one of KINDS."""
    face, edge = KINDS[kind]
    style = dict(boxstyle="round,pad=0.3", facecolor=face, edgecolor=edge)
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, bbox=style, zorder=3)


def arrow(ax, start, end, colour=INK, **style):
    """An arrow from point to point. style: what else Matplotlib's arrows take, such as `connectionstyle`."""
    ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=colour, shrinkA=0, shrinkB=0) | style)


def plus(ax, x, y):
    """An addition: a plus in a circle."""
    style = dict(boxstyle="circle,pad=0.12", facecolor="white", edgecolor=INK)
    ax.text(x, y, "+", ha="center", va="center", fontsize=11, bbox=style, zorder=4)


def chain(ax, y, items, start=0.0, gap=0.32):
    """Boxes from left to right with arrows between them. items: (text, width, kind) each."""
    x = start
    for number, (text, width, kind) in enumerate(items):
        if number:
            arrow(ax, (x - 0.81 * gap, y), (x + 0.12 * gap, y))
        box(ax, x + width / 2, y, text, kind)
        x += width + gap

"""Diagrams: boxes stand where they are put, and arrows run from one to the next."""

from helpers import diagram, plot


def test_a_chain_joins_its_boxes():
    ax = plot.figure().subplots()
    diagram.chain(ax, 2, [("x", 1.0, "data"), ("layer", 2.0, "layer"), ("gate", 1.0, "added")], gap=0.5)
    boxes = [text for text in ax.texts if text.get_text()]
    arrows = [text for text in ax.texts if not text.get_text()]
    assert [text.get_position() for text in boxes] == [(0.5, 2), (2.5, 2), (4.5, 2)]
    assert len({text.get_bbox_patch().get_facecolor() for text in boxes}) == 3
    assert [(arrow.xyann[0] < arrow.xy[0], arrow.xy[1]) for arrow in arrows] == [(True, 2), (True, 2)]
    for (left, right), arrow in zip(((1.0, 1.5), (3.5, 4.0)), arrows, strict=True):
        assert left < arrow.xyann[0] < arrow.xy[0] < right + 0.25 * (right - left)

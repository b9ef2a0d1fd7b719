"""Figures, tables and exercises: what a reader sees."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import red_or_blue, small_network

from helpers import cam, plot
from helpers.exercise import attempt, verify
from helpers.table import Table
from helpers.train import History


@pytest.fixture
def drawn(monkeypatch):
    """The Matplotlib figures that were drawn, instead of their pictures."""
    figures = []
    monkeypatch.setattr(plot, "webp", lambda fig: figures.append(fig) or b"")
    return figures


def picture(shown):
    source = re.search(r'src="data:image/webp;base64,([^"]+)"', shown._repr_html_())[1]
    return Image.open(io.BytesIO(base64.b64decode(source)))


# ---------------------------------------------------------------------------------------------- a figure


def test_a_figure_is_a_picture_with_alternative_text_and_caption():
    shown = plot.show(lambda fig: fig.subplots().plot([1, 2]), 'A "line" & <more>', "It rises: 1 < 2.", 4, 2)
    text = shown._repr_html_()
    assert 'alt="A &quot;line&quot; &amp; &lt;more&gt;"' in text
    assert "<figcaption>It rises: 1 &lt; 2.</figcaption></figure>" in text
    assert f'width="{4 * 96}"' in text and picture(shown).size == (2 * 4 * 96, 2 * 2 * 96)
    assert np.asarray(picture(shown)).std() > 5  # something is drawn
    assert repr(shown) == '[figure] A "line" & <more>'


def test_no_caption_no_element():
    assert "figcaption" not in plot.show(lambda fig: fig.subplots(), "Empty axes.")._repr_html_()


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_alternative_text_is_refused(alt):
    with pytest.raises(ValueError, match="alternative text"):
        plot.show(lambda fig: fig.subplots(), alt)


def test_the_same_figure_gives_the_same_bytes():
    first, second = (plot.show(lambda fig: fig.subplots().plot([1, 3, 2]), "A line.")._repr_html_() for _ in range(2))
    assert first == second


def test_photographs_are_compressed(monkeypatch):
    noise = np.random.default_rng(0).random((400, 600, 3))
    shown = plot.show(lambda fig: fig.subplots().imshow(noise), "Noise.")
    lossless = io.BytesIO()
    picture(shown).save(lossless, "webp", lossless=True)
    assert len(shown._webp) < 0.7 * lossless.tell()


def test_the_style_is_the_courses_and_stays_inside():
    import matplotlib

    before = dict(matplotlib.rcParams)
    colours = []
    plot.show(lambda fig: colours.append(matplotlib.rcParams["axes.prop_cycle"]), "Nothing.")
    assert dict(matplotlib.rcParams) == before
    assert colours[0] != before["axes.prop_cycle"]


# ---------------------------------------------------------------------------------------------- kinds of figures


def test_images_fill_a_grid_and_leave_the_rest_empty(drawn):
    batch = torch.arange(7 * 3 * 4 * 4, dtype=torch.uint8).reshape(7, 3, 4, 4)
    plot.images(batch, titles=list("abcdefg"), columns=3, alt="Seven images.")
    axes = np.array(drawn[0].axes).reshape(3, 3)
    assert [ax.get_title() for ax in axes.flat] == [*"abcdefg", "", ""]
    for i, ax in enumerate(axes.flat):
        assert not ax.axison and len(ax.images) == (i < 7)
    assert np.array_equal(axes[1, 2].images[0].get_array(), batch[5].permute(1, 2, 0))


def test_images_in_grey_and_in_float(drawn):
    plot.images(torch.rand(2, 1, 4, 4), alt="Two grey images.")
    assert drawn[0].axes[0].images[0].get_array().shape == (4, 4)
    assert len(drawn[0].axes) == 2  # no more columns than images


def test_cams_lie_over_their_images(drawn):
    batch, maps = torch.rand(3, 3, 8, 8), torch.rand(3, 4, 4)
    plot.cams(batch, maps, titles=["a", "b", "c"], alt="Three maps.")
    axes = np.array(drawn[0].axes).reshape(2, 3)
    for i in range(3):
        assert len(axes[0, i].images) == 1 and axes[0, i].get_title() == "abc"[i]
        below, above = axes[1, i].images
        assert np.allclose(below.get_array(), batch[i].permute(1, 2, 0))
        expected = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        assert np.allclose(above.get_array(), expected) and above.get_alpha() < 1


def test_cams_in_several_rows(drawn):
    rows = {"one": torch.rand(2, 4, 4), "two": torch.zeros(2, 4, 4)}
    plot.cams(torch.rand(2, 3, 8, 8), None, rows_of_maps=rows, alt="Two rows of maps.")
    axes = np.array(drawn[0].axes).reshape(3, 2)
    assert [axes[row, 0].texts[0].get_text() for row in (1, 2)] == ["one", "two"]
    assert not axes[1, 1].texts


@pytest.fixture
def verdicts():
    """A trained toy, and logits in which test images 3 and 8 are wrong, 8 more confidently."""
    data = red_or_blue(n=32)
    logits = 2.0 * torch.nn.functional.one_hot(data.test.targets, 2)
    logits[3], logits[8] = logits[3].flip(0), 3 * logits[8].flip(0)
    return data, logits


def test_mistakes_are_the_confident_ones_with_evidence_for_both_classes(drawn, verdicts):
    data, logits = verdicts
    model = small_network()
    shown = plot.mistakes(model, data, logits, "0")
    axes = np.array(drawn[0].axes).reshape(3, 2)
    assert np.array_equal(axes[0, 0].images[0].get_array(), data.test.images[8].permute(1, 2, 0))
    assert np.array_equal(axes[0, 1].images[0].get_array(), data.test.images[3].permute(1, 2, 0))
    said = {0: "blue\nis red", 1: "red\nis blue"}
    assert [ax.get_title() for ax in axes[0]] == [said[int(data.test.targets[i])] for i in (8, 3)]
    right = int(data.test.targets[8])
    for row, target in ((1, 1 - right), (2, right)):
        expected = cam.grad_cam(model, "0", data.normalize(data.test.images[8:9]), target, size=(8, 10))
        assert np.allclose(axes[row, 0].images[1].get_array(), cam.unit_range(expected)[0], atol=1e-5)
    assert "2 misclassified" in shown.alt and str(data.provenance) in shown.caption


def test_evidence_shows_the_first_image_of_each_class_for_models_or_layers(drawn, verdicts):
    data, _ = verdicts
    assert plot.fixed_images(data).tolist() == [0, 1] and data.test.targets[:2].tolist() == [0, 1]
    one, other = small_network(0), small_network(1)
    plot.evidence(one, data, {"early": "0", "late": "2"}, "Two layers.")
    shown = plot.evidence({"one": one, "other": other}, data, "0", "Two models.")
    assert "a row each: one, other" in shown.alt and shown.caption.startswith("Two models.")
    images = data.normalize(data.test.images[:2])
    for figure, rows in ((drawn[0], ((one, "0"), (one, "2"))), (drawn[1], ((one, "0"), (other, "0")))):
        axes = np.array(figure.axes).reshape(3, 2)
        for row, (model, layer) in enumerate(rows, 1):
            expected = cam.unit_range(cam.grad_cam(model, layer, images, size=(8, 10)))
            for column in range(2):
                assert np.allclose(axes[row, column].images[1].get_array(), expected[column], atol=1e-5)


def history(offset, data="toy"):
    rows = [{"epoch": i, "seconds": 10.0 * i, "train_loss": offset / i, "test_accuracy": i / 10} for i in (1, 2, 3)]
    return History(data, {}, rows)


def test_histories(drawn):
    shown = plot.histories(
        {"plain": history(1), "deep": history(2)}, alt="Curves.", caption="Deep is worse.", x="seconds"
    )
    left, right = drawn[0].axes
    assert (left.get_title("left"), right.get_title("left")) == ("train loss", "test accuracy")
    assert left.get_xlabel() == "seconds of training"
    assert list(left.lines[1].get_xdata()) == [10, 20, 30] and list(left.lines[1].get_ydata()) == [2, 1, 2 / 3]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["plain", "deep"]
    assert shown.caption == "Deep is worse. Data: toy."
    with pytest.raises(KeyError, match="iou"):
        plot.histories({"plain": history(1)}, columns=("iou",), alt="Curves.")
    both = plot.histories({"a": history(1, "x"), "b": history(1, "y")}, alt="Curves.")
    assert both.caption == "Data: x; y."
    plot.histories({"plain": history(1)}, alt="Curves.")
    assert drawn[-1].axes[0].get_legend() is None


def test_study(drawn):
    values = {"a": [0.5, 0.6, 0.7], "b": [0.8, 0.8, 0.9]}
    fake = SimpleNamespace(values=lambda arm, metric: values[arm], seeds=(0, 1, 2), provenance=lambda: "toy")
    shown = plot.study(fake, {"a": "shallow", "b": "deep"}, "accuracy", "accuracy in %", scale=100, alt="Dots.")
    (ax,) = drawn[0].axes
    dots = [(float(line.get_xdata()[0]), line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert [row for _, row in dots] == [0, 0, 0, 1, 1, 1]
    assert [value for value, _ in dots] == pytest.approx([50, 60, 70, 80, 80, 90])
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"]
    assert means == pytest.approx([60, 250 / 3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shallow", "deep"]
    assert ax.get_ylim() == (1.5, -0.5)  # the first arm on top
    assert shown.caption == "Dots: one training each, 3 seeds; orange: mean. Data: toy."


def test_confusion(drawn):
    plot.confusion(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 1, 999]]), ("cat", "dog", "fox"), alt="Confusion.")
    (ax,) = drawn[0].axes
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 0), "75"), ((1, 0), "25"), ((2, 2), "100")}
    assert np.allclose(ax.images[0].get_array(), [[75, 25, 0], [0, 0, 0], [0, 0.1, 99.9]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "fox"]


def test_boxes_lie_on_their_images(drawn):
    found = [[((1, 2, 5, 7), "cat 0.9", "C1")], [], [((0, 0, 8, 8), "", "C2"), ((2, 2, 4, 4), "dog", "C3")]]
    plot.boxes(torch.rand(3, 3, 8, 8), found, titles=["a", "b", "c"], columns=2, alt="Boxes.")
    axes = drawn[0].axes
    assert len(axes) == 4 and [len(ax.patches) for ax in axes] == [1, 0, 2, 0]
    box = axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (0.5, 1.5, 4, 5)
    assert [text.get_text() for text in axes[2].texts] == ["dog"] and axes[0].texts[0].get_text() == "cat 0.9"


def test_masks_have_their_classes_colours_and_a_legend(drawn):
    masks = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    plot.masks(torch.rand(1, 3, 2, 2), {"truth": masks, "said": masks}, ("cat", "cow"), alt="Masks.")
    axes = drawn[0].axes
    assert len(axes) == 3 and axes[1].texts[0].get_text() == "truth"
    pixels = axes[1].images[0].get_array()
    assert np.allclose(pixels[0, 0], 0) and np.allclose(pixels[1, 1], 1)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "cow"]
    assert np.allclose(pixels[0, 1], legend.get_patches()[0].get_facecolor()[:3])
    assert np.allclose(pixels[1, 0], legend.get_patches()[1].get_facecolor()[:3])


def test_rectangle():
    box = plot.rectangle(1, 2, 3, 4)
    assert (box.get_bbox().bounds, box.get_fill()) == ((1, 2, 3, 4), False)


# ---------------------------------------------------------------------------------------------- tables


def test_table_as_text_and_as_markdown():
    table = Table([{"network": "A", "parameters": 132863336, "error": 29.6, "own": True, "note": None},
                   {"network": "B|C", "parameters": 5, "error": -0.25, "own": False, "note": "x"}])  # fmt: skip
    lines = table._repr_markdown_().splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["A", "132,863,336", "29.600", "yes", ""]
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[3])[1:-1]] == [r"B\|C", "5", "-0.250", "no", "x"]
    left, right = lines[1].split("|")[1:3]
    assert left.startswith(":") and not left.endswith(":") and right.endswith(":") and not right.startswith(":")
    assert repr(table).splitlines()[2].split()[:3] == ["A", "132,863,336", "29.600"]
    assert table["parameters"] == [132863336, 5] and len(table) == 2


def test_decimals():
    rows = [{"a": 1.23456, "b": 1234.5678}]
    assert repr(Table(rows, decimals=1)).split()[-2:] == ["1.2", "1,234.6"]
    assert repr(Table(rows, decimals={"b": 0})).split()[-2:] == ["1.235", "1,235"]


def test_numbers_in_text_stay_as_they_are():
    assert repr(Table([{"k": "007", "x": "1e5"}])).split()[-2:] == ["007", "1e5"]


def test_numbers_stand_flush_right_also_in_text_and_beside_empty_cells():
    row = {"a": None, "b": "1,024", "c": "+1.2 ± 0.3", "d": "4 to 5", "e": "ResNet-20", "f": ""}
    rule = Table([row | {"a": 1.0}, row, row | {"b": "8.75"}])._repr_markdown_().splitlines()[1]
    assert [part.endswith(":") for part in rule.strip("|").split("|")] == [True, True, True, False, False, False]


def test_a_bar_ends_no_cell():
    head, _, body = Table([{"|γ|": "a|b"}])._repr_markdown_().splitlines()
    assert [len(re.split(r"(?<!\\)\|", line)) for line in (head, body)] == [3, 3]


def test_an_empty_table():
    assert Table([])._repr_markdown_() == "" == repr(Table([]))


# ---------------------------------------------------------------------------------------------- exercises


def check(answer):
    if answer(2) != 4:
        raise AssertionError(f"two twos are 4, you have {answer(2)}.")


def open_exercise(x):
    raise NotImplementedError


def test_attempt_says_how_it_went(capsys):
    for answer, said in (
        (lambda x: 2 * x, "Correct.\n"),
        (lambda x: x, "Not yet: two twos are 4, you have 2.\n"),
        (open_exercise, "Not started. Replace the line `raise NotImplementedError` and run the cell again.\n"),
    ):
        attempt(check, answer)
        assert capsys.readouterr().out == said
    with pytest.raises(ZeroDivisionError):  # the learner's own mistake keeps its traceback
        attempt(check, lambda x: x / 0)


def test_verify_lets_a_wrong_solution_fail(capsys):
    verify(check, lambda x: x + 2)
    assert capsys.readouterr().out == "The solution passes the check.\n"
    with pytest.raises(AssertionError, match="two twos"):
        verify(check, lambda x: x)
    with pytest.raises(NotImplementedError):
        verify(check, open_exercise)


def test_panels_draw_the_numbers_of_the_table(monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "show", lambda draw, alt, caption, height: drawn.append(draw))
    rows = [
        {"k": k, "net": net, "error": k * scale, "cost": -k} for net, scale in (("a", 1), ("b", 10)) for k in (1, 3)
    ]
    plot.panels(rows, "k", {"error": "error in %", "cost": "cost"}, label="net", alt="two panels")
    fig = plot.figure()
    drawn[0](fig)
    left, right = fig.axes
    assert [left.get_title(loc="left") or left.get_title(), right.get_xlabel()] == ["error in %", "k"]
    assert [line.get_ydata().tolist() for line in left.get_lines()] == [[1, 3], [10, 30]]
    assert [line.get_label() for line in left.get_lines()] == ["a", "b"]
    assert left.get_legend() is None  # it would lie on the lines
    assert [text.get_text() for legend in fig.legends for text in legend.get_texts()] == ["a", "b"]

"""Figures: one style, alt text on every one, and captions that say what to see.

Every function draws and returns a `Shown` figure; as the last line of a cell it is displayed. In the notebook and in
the book it is one HTML `<figure>` with the picture, its alternative text and its caption.
"""

import base64
import html
import io

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from helpers.cam import grad_cam, unit_range
from helpers.modes import evaluating

STYLE = __file__.replace("plot.py", "course.mplstyle")
SCREEN_DPI = 96  # CSS pixels per inch; pictures are drawn at twice that, for sharp screens


def style():
    """A context in which Matplotlib draws in the course's style."""
    return rc_context(fname=STYLE)


def figure(width=7.0, height=3.0):
    """An empty figure of the given size in inches, to be filled within `with style():`."""
    return Figure(figsize=(width, height), dpi=SCREEN_DPI, layout="constrained")


def webp(fig):
    """The figure as WebP bytes at twice the screen's resolution; lossless for drawings, which that makes small."""
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=2 * SCREEN_DPI)
    from PIL import Image

    picture = Image.open(png).convert("RGB")
    small = io.BytesIO()
    picture.save(small, "webp", lossless=True, method=4)
    if small.tell() > 40_000:  # photographs
        small = io.BytesIO()
        picture.save(small, "webp", quality=75, method=4)
    return small.getvalue()


class Shown:
    """A finished figure: alternative text says what it shows, the caption what to see in it."""

    def __init__(self, fig, alt, caption=""):
        if not alt.strip():
            raise ValueError("a figure needs alternative text: say in a sentence what it shows.")
        self.alt, self.caption = alt, caption
        self.width = round(fig.get_figwidth() * SCREEN_DPI)
        self._webp = webp(fig)

    def _repr_html_(self):
        source = "data:image/webp;base64," + base64.b64encode(self._webp).decode()
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="course-figure"><img src="{source}" width="{self.width}" '
            f'style="max-width:100%;height:auto" alt="{html.escape(self.alt, quote=True)}">{caption}</figure>'
        )

    def __repr__(self):
        return f"[figure] {self.alt}"


def show(draw, alt, caption="", width=7.0, height=3.0):
    """Draw with `draw(fig)` in the course's style and return the Shown figure. For a chapter's own figures."""
    with style():
        fig = figure(width, height)
        draw(fig)
        return Shown(fig, alt, caption)


# ------------------------------------------------------------------------------------------------ pictures


def _picture(ax, image, title=""):
    """Show one image: uint8 tensor (C, H, W), or float in [0, 1]."""
    ax.imshow(np.asarray(image.permute(1, 2, 0).squeeze(-1)), cmap="gray")
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=8, loc="center", pad=3)


def images(batch, titles=None, columns=10, alt="", caption="", inches=0.75):
    """A grid of images (N, C, H, W), uint8 or float in [0, 1], with a title each."""
    n = len(batch)
    columns = min(columns, n)
    rows = -(-n // columns)

    def draw(fig):
        axes = fig.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for i, ax in zip(range(n), axes.flat, strict=False):
            _picture(ax, batch[i], titles[i] if titles else "")

    return show(draw, alt, caption, inches * columns, (inches + (0.22 if titles else 0.02)) * rows)


def cams(batch, maps, titles=None, alt="", caption="", inches=0.95, rows_of_maps=None):
    """Images (N, C, H, W) above their class-activation maps (N, H, W), laid over them.

    rows_of_maps: instead of `maps`, a dict from row label to maps, one row each (to compare layers or models).
    """
    rows_of_maps = rows_of_maps or {"": maps}
    n, rows = len(batch), 1 + len(rows_of_maps)

    def draw(fig):
        axes = fig.subplots(rows, n, squeeze=False)
        for i in range(n):
            _picture(axes[0, i], batch[i], titles[i] if titles else "")
            for row, (label, found) in enumerate(rows_of_maps.items(), 1):
                _picture(axes[row, i], batch[i])
                axes[row, i].imshow(
                    unit_range(found[i : i + 1])[0].numpy(), cmap="inferno", alpha=0.6, interpolation="bilinear"
                )
                if label and i == 0:
                    axes[row, i].text(-0.08, 0.5, label, transform=axes[row, i].transAxes, rotation=90,
                                      ha="right", va="center", fontsize=8)  # fmt: skip

    return show(draw, alt, caption, inches * n + 0.2, inches * rows + 0.35)


def _said(data, index, predicted):
    """Titles `cat` over `is dog` for test images."""
    truth = data.test.targets
    return [f"{data.classes[predicted[i]]}\nis {data.classes[truth[i]]}" for i in index.tolist()]


def _evidence(model, layer, data, index, classes):
    images = data.normalize(data.test.images[index]).to(next(model.parameters()).device)
    return grad_cam(model, layer, images, classes[index], size=tuple(images.shape[2:])).cpu()


def mistakes(model, data, logits, layer, count=8):
    """The test images that the model is most sure of and wrong, with Grad-CAM for the wrong and for the right class.

    logits: of all test images (N, classes). layer: name of a layer whose map has at least 8x8 positions.
    """
    truth = data.test.targets
    confidence, predicted = logits.softmax(1).max(1)
    wrong = (predicted != truth).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True)][:count]
    named = [", ".join(data.classes[c] for c in labels[worst]) for labels in (predicted, truth)]
    return cams(
        data.test.images[worst],
        None,
        titles=_said(data, worst, predicted),
        rows_of_maps={
            "for the\nprediction": _evidence(model, layer, data, worst, predicted),
            "for the\ntruth": _evidence(model, layer, data, worst, truth),
        },
        alt=f"{len(worst)} misclassified test images, and below each two heat maps: where the evidence for the "
        f"predicted and for the true class lies. Predicted: {named[0]}. True: {named[1]}.",
        caption=f"The most confident mistakes, and Grad-CAM at {layer} for the wrong and for the right class. Above "
        f"each image the predicted class and the true one. Each map has its own range. Data: {data.provenance}.",
    )


def fixed_images(data):
    """The first test image of each class: the same ten images in every chapter. Positions in the test split."""
    return torch.stack([(data.test.targets == label).nonzero()[0, 0] for label in range(len(data.classes))])


def evidence(models, data, layers, caption):
    """Grad-CAM for the predicted class on the first test image of each class, a row for each model or layer.

    models: a model, or a dict from label to model. layers: a layer's name, or a dict from label to one; a dict of
    models takes one name, or a dict with the same labels. The titles are those of the first model.
    """
    if not isinstance(models, dict):
        layers = layers if isinstance(layers, dict) else {"": layers}
        models = dict.fromkeys(layers, models)
    elif not isinstance(layers, dict):
        layers = dict.fromkeys(models, layers)
    index = fixed_images(data)
    rows, titles = {}, None
    for label, model in models.items():
        images = data.normalize(data.test.images[index]).to(next(model.parameters()).device)
        said = torch.zeros_like(data.test.targets)
        with evaluating(model), torch.no_grad():
            said[index] = model(images).argmax(1).cpu()
        titles = titles or _said(data, index, said)
        rows[label] = _evidence(model, layers[label], data, index, said)
    named = ", ".join(label.replace("\n", " ") for label in rows if label)
    return cams(
        data.test.images[index],
        None,
        titles=titles,
        rows_of_maps=rows,
        alt=f"{len(index)} test images, one of each class, and below each, as a heat map, the evidence for its "
        "predicted class" + (f", a row each: {named}." if named else "."),
        caption=f"{caption} Above each image the predicted class and the true one. Data: {data.provenance}.",
    )


# ------------------------------------------------------------------------------------------------ trainings


def histories(runs, columns=("train_loss", "test_accuracy"), alt="", caption="", x="epoch"):
    """One panel per column of the histories, one line per run: `{"plain": history, …}`."""

    def draw(fig):
        axes = fig.subplots(1, len(columns), squeeze=False)[0]
        for ax, column in zip(axes, columns, strict=True):
            for label, history in runs.items():
                ax.plot(history[x], history[column], marker="o", label=label)
            ax.set(xlabel={"epoch": "epoch", "seconds": "seconds of training"}[x], title=column.replace("_", " "))
            ax.xaxis.get_major_locator().set_params(integer=x == "epoch")
        if len(runs) > 1:
            axes[0].legend()

    data = "; ".join(sorted({history.data for history in runs.values()}))
    return show(draw, alt, f"{caption} Data: {data}.".strip())


def panels(rows, x, columns, xlabel="", alt="", caption="", label="", height=3.0):
    """One line chart per column of a table, side by side, all over column `x`.

    rows: a Table or dicts. columns: names, or a dict from column to the title to show. label: a column whose values
    part the rows into lines, with a legend.
    """
    rows = getattr(rows, "rows", rows)
    titles = columns if isinstance(columns, dict) else {column: column for column in columns}
    lines = list(dict.fromkeys(row[label] for row in rows)) if label else [None]

    def draw(fig):
        axes = fig.subplots(1, len(titles), squeeze=False)[0]
        for place, (ax, (column, title)) in enumerate(zip(axes, titles.items(), strict=True)):
            for number, line in enumerate(lines):
                own = [row for row in rows if not label or row[label] == line]
                colour = f"C{number if label else place}"
                ax.plot([row[x] for row in own], [row[column] for row in own], "o-", color=colour, label=line)
            ax.set(title=title, xlabel=xlabel or x)
            ax.tick_params(axis="x", labelsize=8)
        if label:
            fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return show(draw, alt, caption, height=height)


def study(study, arms, metric, title, scale=1.0, alt="", caption="", width=7.0):
    """Every run of a study as a dot, one row per arm, the mean as a bar; paired seeds share a shade.

    arms: names of arms, or a dict from arm to the label to show. title: what `metric` times `scale` is.
    """
    labels = arms if isinstance(arms, dict) else {arm: arm for arm in arms}

    def draw(fig):
        ax = fig.subplots()
        for row, arm in enumerate(labels):
            values = [scale * value for value in study.values(arm, metric)]
            shades = np.linspace(0.35, 1, len(values))
            for value, shade in zip(values, shades, strict=True):
                ax.plot(value, row, "o", color="C0", alpha=shade, markersize=7, zorder=3)
            ax.plot([np.mean(values)] * 2, [row - 0.28, row + 0.28], color="C1", linewidth=2.5, zorder=2)
        ax.set_yticks(range(len(labels)), list(labels.values()))
        ax.set(xlabel=title, ylim=(len(labels) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)

    count = len(study.values(next(iter(labels)), metric))
    note = f"{caption} Dots: one training each, {count} seeds; orange: mean. Data: {study.provenance()}."
    return show(draw, alt, note.strip(), width, 0.7 + 0.38 * len(labels))


def confusion(counts, classes, alt="", caption=""):
    """A confusion matrix (classes, classes) as shares of each true class, in percent."""
    shares = (100 * counts.double() / counts.sum(1, keepdim=True).clamp_min(1)).numpy()

    def draw(fig):
        ax = fig.subplots()
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row in range(len(classes)):
            for column in range(len(classes)):
                value = float(shares[row, column])
                if value >= 0.5:
                    ax.text(column, row, int(value + 0.5), ha="center", va="center", fontsize=8,
                            color="white" if value > 55 else "black")  # fmt: skip
        ax.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
        ax.set_yticks(range(len(classes)), classes)
        ax.set(xlabel="predicted", ylabel="true")
        ax.grid(False)

    return show(draw, alt, caption, 5.2, 4.6)


def boxes(batch, found, titles=None, columns=5, alt="", caption="", inches=1.5):
    """A grid of images (N, C, H, W) with boxes drawn on them.

    found: for each image a list of (box, text, colour), the box as left, top, right, bottom in pixels.
    """
    n = len(batch)
    columns = min(columns, n)
    rows = -(-n // columns)

    def draw(fig):
        axes = fig.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for i, ax in zip(range(n), axes.flat, strict=False):
            _picture(ax, batch[i], titles[i] if titles else "")
            draw_boxes(ax, found[i])

    return show(draw, alt, caption, inches * columns, (inches + (0.22 if titles else 0.02)) * rows)


def draw_boxes(ax, found):
    """Boxes on an image that `ax` already shows: a list of (box, text, colour), see `boxes`."""
    for (left, top, right, bottom), text, colour in found:
        ax.add_patch(rectangle(left - 0.5, top - 0.5, right - left, bottom - top, colour))
        if text:
            ax.text(
                left, top, text, fontsize=6, color="white", va="bottom" if top > 12 else "top", clip_on=True,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip


MASK_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7")  # background, then Okabe and Ito's


def masks(batch, rows_of_masks, names, titles=None, alt="", caption="", inches=0.95):
    """Images (N, C, H, W) above masks: a dict from row label to uint8 (N, H, W); 0 is background, 255 void (white).

    names: of the classes 1, 2, ..., for the legend.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    palette = np.ones((256, 3))
    palette[: len(MASK_COLOURS)] = [to_rgb(colour) for colour in MASK_COLOURS]
    n, rows = len(batch), 1 + len(rows_of_masks)

    def draw(fig):
        axes = fig.subplots(rows, n, squeeze=False)
        for i in range(n):
            _picture(axes[0, i], batch[i], titles[i] if titles else "")
            for row, (label, found) in enumerate(rows_of_masks.items(), 1):
                axes[row, i].imshow(palette[np.asarray(found[i])], interpolation="nearest")
                axes[row, i].set_axis_off()
                if i == 0:
                    axes[row, i].text(-0.08, 0.5, label, transform=axes[row, i].transAxes, rotation=90,
                                      ha="right", va="center", fontsize=8)  # fmt: skip
        patches = [Patch(color=colour, label=name) for colour, name in zip(MASK_COLOURS[1:], names, strict=False)]
        fig.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=8)

    return show(draw, alt, caption, inches * n + 0.2, inches * rows + 0.45)


def rectangle(x, y, width, height, colour="C5"):
    """An empty box with its lower corner at pixel (x, y), for `ax.add_patch`."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2)

"""One interactive figure, two lives: live sliders in JupyterLab, a self-contained fragment in the book.

    Explorable(draw, [1, 2, 3], "layers", alt="...", caption="...", key="field")
    Explorable(draw, ([3, 5, 7], [1, 2]), ("kernel size", "stride"), alt="...", caption="...", key="field")

Both lives show the same frames, each drawn once; all of them travel in the notebook, so they are few.
"""

import base64
import html
import io
import itertools
import json
import numbers
import re
from contextlib import contextmanager
from pathlib import Path

import ipywidgets as widgets
import numpy as np

MAX_FRAMES = 40
CSS_DPI = 96  # as in helpers.plot
PIXEL_DPI = 192  # drawn at twice the size on the page, so that it stays crisp on a fine screen


class Explorable(widgets.VBox):
    """A figure as a function of one or two parameters, each with a slider over a few values.

    draw(figure, *values): draws on an empty matplotlib Figure. It looks things up rather than computes them.
    values: a list of numbers or strings; for two parameters a pair of lists.
    label: the parameter's name; for two parameters a pair of names.
    alt: what the picture says to someone who cannot see it: a sentence, to which the values are added, or a
        function of the values.
    caption: what to notice.
    key: lower-case letters, digits and hyphens, not used for another figure in the book.
    size: width and height in inches, at 96 pixels an inch on the page.
    start: the values to begin with, the first ones if it is not given.

    Raises ValueError for no frame or more than 40, labels that do not fit the values, an empty alt, a bad key, a start
    that is no frame.
    """

    def __init__(self, draw, values, label, *, alt, caption, key, size=(6.4, 3.6), start=None):
        two = not isinstance(label, str)
        self._labels = tuple(label) if two else (label,)
        self._values = tuple(tuple(v) for v in values) if two else (tuple(values),)
        if len(self._labels) != len(self._values) or len(self._labels) not in (1, 2):
            raise ValueError(
                f"{len(self._labels)} labels for {len(self._values)} lists of values; "
                "give a name and a list, or a pair of names and a pair of lists."
            )
        self._grid = list(itertools.product(*self._values))
        if not 1 <= len(self._grid) <= MAX_FRAMES:
            raise ValueError(
                f"{' x '.join(str(len(v)) for v in self._values)} = {len(self._grid)} frames; "
                f"1 to {MAX_FRAMES} are possible. Choose fewer values."
            )
        if not (callable(alt) or str(alt).strip()):
            raise ValueError("alt is empty; say in a sentence what the picture shows.")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key):
            raise ValueError(f"key={key!r} must consist of lower-case letters, digits and single hyphens.")
        self._start = self._grid[0] if start is None else tuple(start) if two else (start,)
        if self._start not in self._grid:
            raise ValueError(f"start={start!r} is none of the frames; its parts must stand in the lists of values.")
        self._draw, self._alt, self._caption, self._key, self._size = draw, alt, caption, key, size
        self._frames = {}

        self._sliders = [
            widgets.SelectionSlider(
                options=[(_text(v), v) for v in options],
                value=value,
                description=name,
                style={"description_width": "initial"},
            )
            for name, options, value in zip(self._labels, self._values, self._start, strict=True)
        ]
        self._picture = widgets.HTML()  # widgets.Image has no place for a description
        for slider in self._sliders:
            slider.observe(self._update, "value")
        self._update()
        super().__init__([*self._sliders, self._picture])

    def frame(self, *values):
        """The figure for these values as WebP bytes; drawn once, then remembered."""
        if values not in self._frames:
            self._frames[values] = _render(self._draw, values, self._size)
        return self._frames[values]

    def alt(self, *values):
        """The description of the figure for these values."""
        if callable(self._alt):
            return self._alt(*values)
        return f"{self._alt} ({self._state(values)})"

    def _state(self, values):
        return ", ".join(f"{name} {_text(v)}" for name, v in zip(self._labels, values, strict=True))

    def _update(self, _change=None):
        values = tuple(slider.value for slider in self._sliders)
        self._picture.value = f"{self._img(values)}<p><em>{html.escape(self._caption)}</em></p>"

    def _uri(self, values):
        return "data:image/webp;base64," + base64.b64encode(self.frame(*values)).decode()

    def _img(self, values):
        return (
            f'<img src="{self._uri(values)}" alt="{html.escape(self.alt(*values))}" '
            f'width="{round(self._size[0] * CSS_DPI)}" style="max-width: 100%; height: auto">'
        )

    def _html(self):
        """The static figure: frames as data URIs, a range input per parameter, a few lines of script."""
        identity = f"explorable-{self._key}"
        uris = [self._uri(v) for v in self._grid]
        alts = [self.alt(*v) for v in self._grid]
        controls = "".join(
            f'<div class="course-slider"><label for="{identity}-{n}">{html.escape(name)}</label>'
            f'<input type="range" id="{identity}-{n}" min="0" max="{len(options) - 1}" step="1" '
            f'value="{options.index(value)}" '
            f'autocomplete="off" aria-valuetext="{html.escape(_text(value))}" '
            f'data-texts="{html.escape("|".join(map(_text, options)))}">'
            f'<output for="{identity}-{n}">{html.escape(_text(value))}</output></div>\n'
            for n, (name, options, value) in enumerate(zip(self._labels, self._values, self._start, strict=True))
        )
        script = (Path(__file__).with_name("explorable.js")).read_text("utf-8")
        for mark, value in {"ID": identity, "FRAMES": _script_json(uris), "ALTS": _script_json(alts)}.items():
            script = script.replace(f"%{mark}%", value)
        # JupyterLab would otherwise take the arrow keys for itself
        return (
            f'<figure class="course-figure explorable" id="{identity}" data-lm-suppress-shortcuts="true">\n'
            f"{self._img(self._start)}\n{controls}<figcaption>{html.escape(self._caption)}</figcaption>\n"
            f"<script>\n{script}</script>\n</figure>"
        )

    def _contact_sheet(self):
        """Up to four frames side by side as PNG bytes, for paper."""
        from matplotlib.figure import Figure
        from PIL import Image

        last = len(self._grid) - 1
        picked = sorted({round(i * last / 3) for i in range(4)})
        rows, columns = (len(picked) + 1) // 2, min(len(picked), 2)
        width, height = self._size
        figure = Figure(figsize=(8, 8 / columns * rows * height / width + 0.3 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for axis, index in zip(axes, picked, strict=False):
            values = self._grid[index]
            axis.imshow(Image.open(io.BytesIO(self.frame(*values))))
            axis.set_title(self._state(values), fontsize=9)
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=90)
        Image.open(drawn).convert("RGB").quantize(64).save(small, "png", optimize=True)
        return small.getvalue()

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {
            **data,
            "text/html": self._html(),
            "image/png": base64.b64encode(self._contact_sheet()).decode(),
            "text/plain": f"Explorable: {self._state(self._grid[0])} to {self._state(self._grid[-1])}",
        }, metadata


def _render(draw, values, size):
    """A figure of fixed size as WebP bytes, in the course's style, with nothing left behind in pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with _style():
        figure = Figure(figsize=size, dpi=PIXEL_DPI, layout="constrained")
        draw(figure, *values)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # not savefig: a tight box would give each frame another size, and the page would jump
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # drawings are smaller without loss, photographs with it
    return min((_webp(image, lossless=True), _webp(image, quality=75)), key=len)


def _webp(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="webp", method=4, **options)
    return buffer.getvalue()


@contextmanager
def _style():
    try:
        from helpers import plot
    except ImportError:
        yield
        return
    with plot.style():
        yield


def _text(value):
    return f"{value:g}" if isinstance(value, numbers.Real) else str(value)


def _script_json(value):
    """JSON that can stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")

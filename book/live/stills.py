"""Still pictures of the live figures, where the browser runs no scripts, and until a reader starts the figure.

`measure` starts each figure in Chromium, on the first picture, and writes `pages/_static/live/NAME.webp`; what they
show stands in `pages/live.json`. `./course pages --measure` calls it.
"""

import io
import json
import re
import tempfile
from importlib.resources import files as files_of
from pathlib import Path

from PIL import Image

from book import gallery, pairs
from book.live import export
from book.live.browser import chromium
from helpers.chapters import names
from helpers.settings import ROOT

FOUND = ROOT / "pages/live.json"
PICTURES = ROOT / "pages/_static/live"
FIGURE = re.compile(r'<div class="live" data-figure="([\w-]+)"(?: data-network="([^"]+)")?>')
WIDTH = 800  # px, about that of the book's column
SHEETS = [  # of the book, which give colours in light and in dark
    *(
        files_of(theme) / f"theme/{theme}/static/styles/{theme.replace('_', '-')}.css"
        for theme in ("pydata_sphinx_theme", "sphinx_book_theme")
    ),
    ROOT / "pages/_static/course.css",
]


def figures():
    """{name: element} of every figure that a chapter has, such as {"gates-senet": '<div class="live" ...>'}."""
    text = "".join((ROOT / f"chapters/{name}.py").read_text("utf-8") for name in names())
    return {"-".join(filter(None, found.groups())).lower(): found[0] for found in FIGURE.finditer(text)}


def made_from(figure, networks):
    """What a still picture depends on: what the figure begins with, and hashes of its script and its networks."""
    script = export.HERE / f"figures/{FIGURE.match(figure)[1]}.js"
    files = {network.name: network.file for network in export.networks()}
    return {
        "of": export.samples()[0][0],
        "script": gallery.of_file(script),
        "networks": {name: gallery.of_file(files[name]) for name in networks},
    }


def picture(page, folder, figure):
    """(picture as bytes, what stands in live.json) of a figure that is started in an open page."""
    address = folder / "figure.html"
    links = '<link rel="stylesheet" href="live.css"><style>.live-chooser { display: none }</style>'
    head = f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>live</title>{links}'
    address.write_text(f'{head}{figure}</div><script src="start.js"></script>')
    page.goto(address.as_uri())
    for sheet in SHEETS:
        page.add_style_tag(path=sheet)
    page.locator("button.live-start").click()
    says = page.locator(".live-bench > div:last-child .live-says:not(:empty)")
    says.wait_for(timeout=300_000)
    shot = Image.open(io.BytesIO(page.locator("div.live").screenshot()))
    file = io.BytesIO()
    shot.convert("RGB").save(file, "webp", quality=75, method=6)
    made = made_from(figure, page.evaluate("[...live.networks.keys()]"))
    alt = f"The figure with a {made['of']}. {says.inner_text()}"
    return file.getvalue(), {"alt": alt, "size": shot.size} | made


def measure():
    """Take the pictures. Raises ValueError without a browser."""
    files, found = {}, {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        export.export(folder)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        for name, figure in figures().items():
            files[PICTURES / f"{name}.webp"], found[name] = picture(page, Path(folder), figure)
    pairs.write(files | {FOUND: json.dumps(found, indent=1) + "\n"})

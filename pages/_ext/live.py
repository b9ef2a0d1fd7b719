"""Live figures: the networks and the scripts that run them, made when a page of the book has such a figure.

A page asks for one with an element of plain HTML, which JupyterLab shows as the sentence in it:

    <div class="live" data-figure="gates">In the book, the network itself runs here.</div>
"""

import html
import importlib.util
import json
import re
import sys
from pathlib import Path

from docutils import nodes

DIV = '<div class="live" data-figure="'
FIGURE = re.compile(rf'({DIV}([\w-]+)"(?: data-network="([^"]+)")?>.*?)(</div>)', re.DOTALL)
FOLDER = "_static/live"
STILLS = "pages/live.json"
PYTORCH = importlib.util.find_spec("torch") is not None  # writes the networks; the rest of the book needs none


def add_scripts(app, page, template, context, doctree):
    """The page gets the two files that find its figures; those load the rest when a reader starts one."""
    body = context.get("body", "")
    if not FIGURE.search(body):
        return
    found = Path(app.srcdir, STILLS)
    stills = json.loads(found.read_text("utf-8")) if found.exists() else {}
    context["body"] = with_stills(body, stills, context["pathto"](FOLDER, 1))
    if PYTORCH:
        app.add_css_file("live/live.css")
        app.add_js_file("live/start.js", loading_method="defer")


def follow_the_stills(app, doctree):
    """A page with a figure is written again when the still pictures are others."""
    if any(DIV in raw.astext() for raw in doctree.findall(nodes.raw)):
        app.env.note_dependency(str(Path(app.srcdir, STILLS)))


def with_stills(body, stills, folder):
    """The body of a page in which each figure that has a still picture shows it until it is started."""

    def add(figure):
        name = "-".join(filter(None, figure.group(2, 3))).lower()
        if name not in stills:
            return figure[0]
        alt, (width, height) = html.escape(stills[name]["alt"]), stills[name]["size"]
        size = f'width="{width}" height="{height}" loading="lazy"'
        return f'{figure[1]}<img class="live-still" src="{folder}/{name}.webp" alt="{alt}" {size}>{figure[4]}'

    return FIGURE.sub(add, body)


def write_networks(app, exception):
    if exception or "pages/live" not in app.env.found_docs or app.builder.format != "html":
        return
    if not PYTORCH:
        print("Live figures stay still: PyTorch, which writes their networks, is not installed.", file=sys.stderr)
        return
    sys.path.append(app.srcdir)
    from book.live.export import export

    export(Path(app.outdir) / FOLDER)


def setup(app):
    app.connect("doctree-read", follow_the_stills)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_networks)
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}

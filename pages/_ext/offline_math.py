"""Equations without a network: MathJax from the package sphinx-mathjax-offline, less what the book does not use.

`pages/_static/equations.js` loads it: the parts for TeX in, HTML out, and the text for screen readers, which are half
as large as the package's one file for all. The commonest fonts travel inside a script, because Firefox reads no font
for a page that was opened from the disk.
"""

import base64
import re
import shutil
from importlib.metadata import files
from pathlib import Path

PARTS = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "output/chtml/fonts/woff-v2",
    "a11y/assistive-mml.js",
)
INSIDE = "Main-Regular", "Math-Italic", "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular"


def use_local_mathjax(app, config):
    config.mathjax_path = "equations.js"


def copy_mathjax(app, exception):
    if exception or app.builder.format != "html":
        return
    source = Path(next(file for file in files("sphinx-mathjax-offline") if file.name == "startup.js").locate()).parent
    target = Path(app.outdir) / "_static/mathjax"
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / part, target / part)
    fonts = target / "output/chtml/fonts/tex.js"
    fonts.write_text(with_fonts(fonts.read_text("utf-8"), target / "output/chtml/fonts/woff-v2"), "utf-8")


def with_fonts(script, folder):
    """The script that names the fonts' files, with the commonest of them inside it."""

    def inside(address):
        if address[1] not in INSIDE:
            return address[0]
        return (
            "data:font/woff;base64," + base64.b64encode((folder / f"MathJax_{address[1]}.woff").read_bytes()).decode()
        )

    return re.sub(r"%%URL%%/MathJax_([\w-]+)\.woff", inside, script)


def setup(app):
    app.connect("config-inited", use_local_mathjax, priority=100)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

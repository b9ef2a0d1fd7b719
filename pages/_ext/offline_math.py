"""Equations without a network: MathJax as one file of the book, taken from the package sphinx-mathjax-offline.

Sphinx would load MathJax from a server; that package's own extension would copy ten times as much.
"""

from importlib.metadata import files


def use_local_mathjax(app, config):
    script = next(file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js")
    config.html_static_path.append(str(script.locate()))
    config.mathjax_path = script.name


def setup(app):
    app.connect("config-inited", use_local_mathjax, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

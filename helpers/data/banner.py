"""The banner that says once that data are drawn."""

import sys
from html import escape

_announced = set()


def announce(name, heading, text):
    """Show it, once per process and data set: HTML in a notebook, a line of text elsewhere."""
    if name in _announced:
        return
    _announced.add(name)
    plain = f"{heading}: {text[0].lower()}{text[1:]}" if text.startswith("as ") else f"{heading}. {text}"
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import display

        style = "border-left: 0.3em solid #b45309; padding: 0.3em 0.8em; margin: 0.5em 0"
        page = f'<div class="course-standin" style="{style}"><strong>{escape(heading)}.</strong> {escape(text)}</div>'
        display({"text/html": page, "text/plain": plain}, raw=True)
    else:
        print(plain, flush=True)

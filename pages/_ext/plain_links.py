"""Citations, equation numbers and the bibliography: what is plain Markdown for all others, Sphinx gets as its own."""

import json
import re
import sys

LIST = re.compile(r"^- <a id=.*", re.MULTILINE | re.DOTALL)
BIBLIOGRAPHY = "```{bibliography}\n:all:\n```\n"


def read(app, docname, content):
    from book.links import as_roles

    if docname == "pages/bibliography":
        content[0] = LIST.sub(lambda _: BIBLIOGRAPHY, content[0])
    elif str(app.env.doc2path(docname)).endswith(".ipynb"):
        nb = json.loads(content[0])
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = as_roles("".join(cell["source"]))
        content[0] = json.dumps(nb)
    else:
        content[0] = as_roles(content[0])


def list_items(app, docname, template, context, doctree):
    """The bibliography's entries by the role that replaced docutils' `doc-biblioentry` (WAI-ARIA DPUB 1.1)."""
    if docname == "pages/bibliography":
        context["body"] = context["body"].replace(' role="doc-biblioentry"', ' role="listitem"')


def setup(app):
    sys.path.append(str(app.srcdir))
    app.connect("source-read", read)
    app.connect("html-page-context", list_items)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

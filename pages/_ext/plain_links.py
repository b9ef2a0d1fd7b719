"""Citations and equation numbers: what chapters write as plain Markdown links, Sphinx gets as its roles."""

import json
import sys


def read(app, docname, content):
    from book.links import as_roles

    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        nb = json.loads(content[0])
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = as_roles("".join(cell["source"]))
        content[0] = json.dumps(nb)
    else:
        content[0] = as_roles(content[0])


def setup(app):
    sys.path.append(str(app.srcdir))
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

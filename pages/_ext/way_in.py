"""How to get the course, in a block of commands: with `git clone` where the book has a public address (see conf.py)."""

import os

from docutils import nodes
from docutils.parsers.rst import Directive

UNPUBLISHED = "cd cnn-papers   # the folder with the course\n./course lab"
PUBLISHED = "git clone {address}\ncd {name}\n./course lab"


class WayIn(Directive):
    """Two or three lines for a shell; takes no arguments."""

    def run(self):
        address = self.state.document.settings.env.config.course_address
        lines = PUBLISHED.format(address=address, name=address.rpartition("/")[2]) if address else UNPUBLISHED
        return [nodes.literal_block(lines, lines, language="sh")]


def setup(app):
    # a value of the environment: pages are read again when it is another
    app.add_config_value("course_address", os.environ.get("COURSE_REPOSITORY", ""), "env")
    app.add_directive("way-in", WayIn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

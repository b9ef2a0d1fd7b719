"""What makes the book of the chapters. A reader's notebook never needs it."""

from helpers.settings import ROOT

BUILD = ROOT / "_build"


class Trouble(Exception):
    """What a reader or a maintainer can mend; the message says how."""


def shown(path):
    """A path as a reader in the project's folder would type it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path

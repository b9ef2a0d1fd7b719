"""The command `./course data`: what is here, download, pack."""

import argparse
import sys

from helpers import settings
from helpers.data.cifar10 import CIFAR10
from helpers.data.isbi2012 import ISBI2012
from helpers.data.pack import pack
from helpers.data.voc import VOC2012

SOURCES = {source.name: source for source in (CIFAR10, VOC2012, ISBI2012)}


def _source(name):
    if name not in SOURCES:
        raise ValueError(f"There is no data set {name!r}. Use one of: {', '.join(SOURCES)}.")
    return SOURCES[name]


def find(name):
    """The layout (see `helpers.data.source`) in which real data are on this machine, or None.

    Looks into `COURSE_DATA` first, then among the downloads. Raises ValueError for a name that does not exist.
    """
    return _source(name).find()


def fetch(name):
    """Download a data set, `"cifar10"` or `"voc2012"`, unless it is on this machine already.

    A download that was cut off goes on where it stopped. Raises ValueError for an unknown name or a damaged data set,
    FileNotFoundError for `"isbi2012"`, which has to be put there by hand, ConnectionError when no mirror delivers.
    """
    _source(name).fetch()


def status():
    """Print which data sets are here, from where, and how many images they hold; returns whether all are sound.

    Checked are what is listed and the headers of sheets; photographs are decoded when they are used.
    """
    sound = True
    for source in SOURCES.values():
        try:
            print(f"{source.name:9} {_state(source)}")
        except (ValueError, OSError) as error:
            sound = False
            print(f"{source.name:9} cannot be used. {error}")
    print(f"COURSE_SOURCE={settings.source()}; COURSE_DATA={settings.data_folder() or '(not set)'}; ", end="")
    print(f"downloads and prepared arrays: {settings.cache_folder()}")
    return sound


def _state(source):
    found = source.find()
    if found is None:
        return f"not here. {source.remedy()}"
    train, test = found.counts()
    return f"{source.title}, {train:,} + {test:,} images: {found.layout} in {found.folder}"


def add_arguments(parser):
    """Add the verbs and options of `./course data` to an ArgumentParser."""
    verbs = parser.add_subparsers(dest="data_verb", metavar="status|fetch|pack")
    verbs.add_parser("status", help="what is on this machine (the default)")
    fetching = verbs.add_parser("fetch", help="download a data set")
    fetching.add_argument("name", metavar="NAME", help=" or ".join(SOURCES))
    packing = verbs.add_parser("pack", help="write the data that are here into a folder to carry along")
    packing.add_argument("folder", metavar="FOLDER")
    packing.add_argument("--longer-side", type=int, default=224, metavar="PIXELS", help="of VOC's images (224)")


def command(options):
    """Do what the parsed options ask for; returns the exit status. What goes wrong is one line, without a traceback."""
    try:
        if options.data_verb == "fetch":
            fetch(options.name)
            print(f"{SOURCES[options.name].title} is on this machine.")
        elif options.data_verb == "pack":
            pack(settings.caller_path(options.folder), options.longer_side)
        else:
            return 0 if status() else 1
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What has arrived is kept: the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def main(arguments=None):
    """`./course data` with these arguments; returns its exit status."""
    parser = argparse.ArgumentParser(prog="./course data", description="The data sets of the course.")
    add_arguments(parser)
    return command(parser.parse_args(arguments))

"""`./course pages`: write the pages that are computed, from what chapters declare and runs have left.

With `--measure`, the times of the models page, the maps of the gallery and the README, and the stills of the live
figures are made again first; that takes minutes.
"""

from book import banner, bibliography, gallery, minutes, models, readme, results, shown
from book.live import stills

MEASURED = (models, gallery, banner, stills)
PAGES = (results, models, gallery, minutes, bibliography, readme)


def add_arguments(parser):
    parser.add_argument("--measure", action="store_true", help="measure times and maps again, on this machine")


def command(options):
    """Write every page. Raises ValueError or FileNotFoundError for what cannot be measured or read."""
    for page in MEASURED if options.measure else ():
        page.measure()
    for page in PAGES:
        page.write()
        print(shown(page.PAGE))

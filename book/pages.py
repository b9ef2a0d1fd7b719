"""`./course pages`: write the pages of the book that are computed, from what chapters declare and runs have left.

With `--measure`, the times of the models page and the maps of the gallery are measured again first; that takes minutes.
"""

from book import gallery, minutes, models, results

PAGES = (results, models, gallery, minutes)


def add_arguments(parser):
    parser.add_argument("--measure", action="store_true", help="measure times and maps again, on this machine")


def command(options):
    """Write every page. Raises ValueError or FileNotFoundError for what cannot be measured or read."""
    for page in PAGES:
        if options.measure and hasattr(page, "measure"):
            page.measure()
        page.write()
        print(f"pages/{page.PAGE.name}")

"""`./course pages`: write the pages of the book that are computed, from what the studies and measurements have left.

With `--measure`, the times of the models page and the maps of the gallery are measured again first; that takes minutes.
"""

import argparse
import sys

from book import minutes
from helpers import page_gallery, page_models, page_results

PAGES = (page_results, page_models, page_gallery, minutes)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="course pages", description="Write the pages that are computed.")
    parser.add_argument("--measure", action="store_true", help="measure times and maps again, on this machine")
    options = parser.parse_args(arguments)
    try:
        for page in PAGES:
            if options.measure and hasattr(page, "measure"):
                page.measure()
            page.PAGE.write_text(page.text(), "utf-8")
            print(f"pages/{page.PAGE.name}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"course pages: {error}")


if __name__ == "__main__":
    main()

"""A headless Chromium that opens the live page, for what is measured or pictured there."""

import importlib.util
import shutil
from contextlib import contextmanager


@contextmanager
def chromium():
    """Playwright's Browser, this machine's Chromium. Raises ValueError where one of the two is missing."""
    if not importlib.util.find_spec("playwright"):
        raise ValueError("playwright is not installed; `./course test` installs it.")
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise ValueError("Chromium is missing; on Debian: sudo apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()

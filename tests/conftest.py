"""What the browser tests share: the system's Chromium, started so that it asks the network for nothing by itself."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    """The path of Chromium. Without it the browser tests are skipped, but fail where they must run (CI)."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        message = "Chromium is missing; on Debian: sudo apt install chromium"
        if os.environ.get("CI") == "true" or os.environ.get("COURSE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def browser_type_launch_args(chromium):
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu"]
    return {"executable_path": chromium, "args": ["--no-sandbox", *quiet]}


@pytest.fixture(scope="session")
def browser_context_args():
    return {"viewport": {"width": 1400, "height": 900}}

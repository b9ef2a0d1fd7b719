"""The small chapter of `small.py`, as it should be."""

import shutil

import pytest
import small

from book import run
from book.live import export


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A chapter that is as it should be, run once."""
    script = tmp_path_factory.mktemp("executed") / "01_small.py"
    script.write_text(small.SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COURSE_SOURCE", raising=False)
        assert run.full([script]) == 0
    return script


@pytest.fixture
def script(executed, tmp_path):
    """A copy of it, to break."""
    for path in (executed, executed.with_suffix(".ipynb")):
        shutil.copy(path, tmp_path)
    return tmp_path / executed.name


@pytest.fixture(scope="session")
def live_folder(tmp_path_factory):
    """All that a live page loads, exported once: its folder."""
    out = tmp_path_factory.mktemp("live")
    export.export(out)
    return out


@pytest.fixture
def live_page(live_folder, page):
    """`live_page(figure, **data)` opens a page from the disk with this live figure, started; returns its element.

    Without `figure` the page has the networks' engine alone. `page.asked` are the addresses asked for.
    """
    asked, errors = [], []
    page.set_default_timeout(120_000)  # a busy machine is no fault
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.asked, page.errors = asked, errors

    def open_page(figure=None, start=True, folder=live_folder, **data):
        attributes = "".join(f' data-{name}="{value}"' for name, value in data.items())
        body = f'<div class="live" data-figure="{figure}"{attributes}>still</div><script src="start.js"></script>'
        engine = "".join(f'<script src="{name}"></script>' for name in ("engine.js", "fast.js", "samples.js"))
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>'
        head += '<link rel="stylesheet" href="live.css">'
        name = folder / f"test-{figure}.html"
        name.write_text(head + (body if figure else engine))
        page.goto(name.as_uri())
        if not figure:
            return page
        root = page.locator("div.live")
        if start and figure != "page":
            root.locator("button.live-start").click()
            page.wait_for_function("document.querySelector('div.live').dataset.shown > 0", timeout=120_000)
        return root

    yield open_page
    assert errors == []

"""A chapter as a reader meets it: JupyterLab in a browser, all cells run, the slider moved, a training stopped."""

import json
import os
import re
import subprocess
import sys
import time

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from book import lab as scratch
from book import pairs
from book.__main__ import main
from helpers.settings import ROOT

CHAPTER = "01_vgg"


def until(condition, seconds, page=None):
    """Whether `condition()` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        page.wait_for_timeout(300) if page else time.sleep(0.3)
    return value


@pytest.fixture(scope="module")
def lab(tmp_path_factory, chromium):
    """JupyterLab on the copy of `./course lab`, in the quick profile on the stand-in: its folder and its address."""
    work = tmp_path_factory.mktemp("lab")
    scratch.prepare(work)
    path = work / f"chapters/{CHAPTER}.ipynb"
    nb = nbformat.read(path, as_version=4)
    for cell in pairs.code_cells(nb):  # whatever is there afterwards was made in the browser
        cell.update(outputs=[], execution_count=None)
    nbformat.write(nb, path)
    settings = work / ".config/lab/user-settings/@jupyterlab"
    for plugin, value in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # keep cells out of sight in the page
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    environment = dict(
        os.environ,
        COURSE_PROFILE="quick",
        COURSE_SOURCE="standin",
        PYTHONPATH=str(ROOT),
        JUPYTER_CONFIG_DIR=str(work / ".config"),
        JUPYTER_DATA_DIR=str(work / ".data"),
        JUPYTERLAB_SETTINGS_DIR=str(work / ".config/lab/user-settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(work / ".config/lab/workspaces"),
    )
    log = work / "lab.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
            + [f"--ServerApp.root_dir={work}", "--IdentityProvider.token=t"],
            cwd=work,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/lab", log.read_text()) or server.poll(), 90)
        assert isinstance(found, re.Match), f"JupyterLab did not start:\n{log.read_text()}"
        yield work, found[0]
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.browser
def test_chapter_runs_and_its_slider_shows_the_books_frames(lab, page):
    work, address = lab
    path = work / f"chapters/{CHAPTER}.ipynb"
    page.goto(f"{address}/tree/chapters/{CHAPTER}.ipynb?token=t&reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
    idle, dialog = page.get_by_text("| Idle"), page.locator(".jp-Dialog")
    idle.or_(dialog).first.wait_for(timeout=90_000)  # before that, Run opens a dialog that asks for a kernel
    assert not dialog.count(), f"JupyterLab does not open the pair:\n{dialog.first.inner_text()[:2000]}"
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.get_by_text("Run All Cells", exact=True).click()

    def finished():
        """The saved notebook, once its last cell has run (or one has failed)."""
        page.keyboard.press("Control+s")
        page.wait_for_timeout(700)
        try:
            nb = nbformat.read(path, as_version=4)
        except nbformat.reader.NotJSONError:
            return None  # it is being written
        code = pairs.code_cells(nb)
        failed = [o for cell in code for o in cell.outputs if o.output_type == "error"]
        return nb if failed or [c.execution_count for c in code] == [*range(1, len(code) + 1)] else None

    nb = until(finished, 900, page)
    assert nb, "the chapter did not run to its end"
    errors = [o.ename + ": " + o.evalue for cell in pairs.code_cells(nb) for o in cell.outputs if "ename" in o]
    assert errors == []
    assert pairs.uses_standin(nb), "this run should have been on drawn data"

    # the page fragment that the book would show, made in this very run
    book = next(
        bundle["text/html"]
        for cell in pairs.code_cells(nb)
        for bundle in pairs.bundles(cell)
        if "explorable" in bundle.get("text/html", "")
    )
    frames = json.loads(re.search(r"\}\)\((\[.*?\]), \[", book, re.S)[1])
    ranges = re.findall(r'type="range"[^>]* max="(\d+)"[^>]* value="(\d+)"', book)
    steps, start = [int(last) + 1 for last, _ in ranges], [int(value) for _, value in ranges]
    texts = re.findall(r'data-texts="([^"]*)"', book)[0].split("|")

    slider = page.locator(".widget-hslider").first
    slider.scroll_into_view_if_needed()
    live = page.locator(".jp-OutputArea-output", has=page.locator(".widget-hslider")).first.locator("img")

    def shows(first):
        """The live figure shows the book's frame with the first slider there, the others at their start."""
        index = 0
        for count, place in zip(steps, [first, *start[1:]], strict=True):
            index = index * count + place
        return until(lambda: live.get_attribute("src") == frames[index], 30, page)

    assert shows(start[0]), "the live figure starts with another picture than the book's"
    slider.locator(".noUi-handle").focus()
    left, right = start[0], steps[0] - 1 - start[0]
    moves = min(2, max(left, right))
    for _ in range(moves):
        page.keyboard.press("ArrowRight" if right >= left else "ArrowLeft")
    moved = start[0] + (moves if right >= left else -moves)
    assert shows(moved), "the live figure did not follow to the book's frame"
    assert slider.locator(".widget-readout").inner_text() == texts[moved]


def shown_until_the_end_of(request, client):
    """What cells print or show, as (request, message), until the cell `request` has ended."""
    shown = []
    while True:
        message = client.get_iopub_msg(timeout=120)
        parent, content = message["parent_header"].get("msg_id"), message["content"]
        if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            shown.append((parent, content))
        if parent == request and content.get("execution_state") == "idle":
            return shown


def test_stop_ends_run_all_with_one_line_and_keeps_what_was_learned(tmp_path):
    under_way = tmp_path / "under way"
    cells = [
        """
from pathlib import Path
from helpers import train
from toys import red_or_blue, small_network, weights

data, model = red_or_blue(32), small_network()
""",
        f"""
def evaluate(model, data):
    # at the second evaluation there is something to keep
    if started:
        Path({str(under_way)!r}).touch()
    started.append(True)
    return train.evaluate(model, data)

started = []
history = train.fit(model, data, epochs=10**9, batch_size=16, evaluate=evaluate)
""",
        "print('the next cell runs')",
    ]
    environment = dict(os.environ, COURSE_SILENT="1", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    kernel, client = start_new_kernel(120, "python3", cwd=str(tmp_path), env=environment)
    try:
        requests = [client.execute(cell) for cell in cells]  # Run All does not wait for one before it sends the next
        assert until(under_way.exists, 300), "the training did not start"
        kernel.interrupt_kernel()
        status = {}
        while requests[-1] not in status:  # a busy kernel may first answer that it is there
            reply = client.get_shell_msg(timeout=120)
            status[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
        assert [status[request] for request in requests] == ["ok", "error", "aborted"]
        ((request, error),) = shown_until_the_end_of(requests[-1], client)
        (line,) = error["traceback"]
        assert request == requests[1] and "\n" not in line and "train.interrupted" in line

        request = client.execute("""
print(train.interrupted.stopped, train.interrupted["epoch"][0], model.training)
print((weights(model) != weights(train.untrained(model))).any().item())
""")
        printed = "".join(str(content.get("text", content)) for _, content in shown_until_the_end_of(request, client))
        assert printed == "interrupted 1 False\nTrue\n"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_the_verb_opens_the_copy_and_passes_options_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scratch, "prepare", lambda: ["01_vgg.ipynb: told"])
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append(arguments))
    assert main(["lab", "--no-browser"]) == 0
    ((_, *arguments),) = calls
    assert arguments[:3] == ["-m", "jupyterlab", f"--ServerApp.root_dir={ROOT / '_build/lab'}"]
    assert arguments[-1] == "--no-browser"
    assert "told" in (printed := capsys.readouterr().out) and "./course sync NAME --from-lab" in printed


def test_other_verbs_refuse_unknown_options(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--no-browser"])
    assert "unrecognized arguments: --no-browser" in capsys.readouterr().err

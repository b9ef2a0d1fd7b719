"""The benchmark runs and reports; how fast anything is, is not tested."""

import json
import re

import pytest
import torch

from helpers import inspect, settings


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(settings.ROOT)
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    monkeypatch.setenv("COURSE_SILENT", "1")
    import benchmarks.__main__

    return benchmarks


def committed():
    folder = settings.ROOT / "benchmarks"
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_quick_run_measures_reports_and_keeps_nothing(bench, tmp_path):
    before = committed()
    for part in ("speed", "accuracy"):
        bench.__main__.main(["--quick", "--only", part, "--folder", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"speed", "accuracy"}  # the second run kept the first's part
    for runs in results["speed"]["images"].values():
        assert list(runs) == ["bare", "fit", "usual", "usual, channels last"]
        assert all(len(found) == 2 for found in runs.values())
        assert min(sum(runs.values(), [])) > 0
    text = (tmp_path / "README.md").read_text()
    assert "stand-in" in text and "usual loop" in text and (tmp_path / "accuracy.webp").stat().st_size > 1000
    assert re.search(r"!\[Test accuracy against seconds of training\. After [^]]+\]\(accuracy\.webp\)", text)
    assert committed() == before


def test_opening_reports_from_fresh_processes(bench):
    found, seconds = bench.measure.fresh("report(value=1)\n")
    assert found == {"value": 1} and seconds > 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        bench.measure.fresh("1 / 0\n")


def test_report_says_which_goals_are_met(bench, tmp_path):
    machine = bench.measure.machine()
    runs = {"bare": [100, 110, 90], "fit": [80, 99, 90], "usual": [40, 30, 40]}
    text = bench.report.speed(
        {"machine": machine, "data": "toy", "rounds": 3, "steps": 5, "images": {"float32": runs}}, tmp_path
    )
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "0.90 (0.80 to 1.00)" in rows["bare step"] and "| yes" in rows["bare step"]
    assert "2.25 (2.00 to 3.30)" in rows["usual loop"] and "| yes" in rows["usual loop"]
    assert "In float32" in text and "Data: toy." in text
    runs["fit"] = [80, 90, 70]
    text = bench.report.speed(
        {"machine": machine, "data": "toy", "rounds": 3, "steps": 5, "images": {"float32": runs}}, tmp_path
    )
    assert "**no**" in text.split("bare step")[1].splitlines()[0]
    opened = {
        "machine": machine,
        "import": 2.9,
        "training": {"megabytes": 3000, "data": "toy"},
        "cifar10": {"first": 4.9, "later": 1, "data": "toy"},
        "voc": {"first": 9, "later": 2.5, "data": "toy"},
    }
    rows = bench.report.opening(opened, tmp_path).splitlines()[2:8]
    assert [("**no**" in row, "yes" in row) for row in rows] == [
        (False, True), (False, False), (False, False), (True, False), (False, True), (True, False)
    ]  # fmt: skip


def test_filling_in_replaces_what_is_between_the_markers(bench, tmp_path):
    text = (settings.ROOT / "benchmarks" / "README.md").read_text()
    machine = bench.measure.machine()
    found = {"machine": machine, "data": "toy", "seconds": [1, 2], "fit": [0.5, 0.6], "usual": [0.4, 0.5],
             "usual lr": 0.1, "dtype": "float32"}  # fmt: skip
    once = bench.report.fill(text, {"accuracy": found}, tmp_path)
    assert bench.report.fill(once, {"accuracy": found}, tmp_path) == once  # not twice
    assert once.split("<!-- accuracy -->")[0] == text.split("<!-- accuracy -->")[0]
    assert "50.0 %" in once.split("<!-- accuracy -->")[1]
    with pytest.raises(ValueError, match="lacks the markers <!-- speed -->"):
        bench.report.fill("# Nothing", {}, tmp_path)


def test_the_network_is_the_one_that_the_readme_says(bench):
    from benchmarks.loops import resnet8

    model = resnet8()
    assert inspect.count_parameters(model) == 77_850
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)

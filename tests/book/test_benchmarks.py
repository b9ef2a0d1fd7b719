"""The benchmark runs and reports; how fast anything is, is not tested."""

import json
import re
import subprocess
import sys

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
    for part in ("speed", "formats", "calls", "accuracy", "recipe"):
        bench.__main__.main(["--quick", "--only", part, "--folder", str(tmp_path)])
    bench.__main__.main(["--quick", "--only", "calls"])  # to no folder: nothing is kept
    results = json.loads((tmp_path / "results.json").read_text())
    # a later run kept the parts of the first
    assert set(results) == {"speed", "formats", "calls", "accuracy", "recipe"}
    assert {run["recipe"] for run in results["accuracy"]["runs"]} == {"SHORT", "usual recipe", "usual loop"}
    assert [run["recipe"] for run in results["recipe"]["runs"]] == 2 * list(bench.measure.TRIED)
    assert min(min(times.values()) for times in results["recipe"]["updates"].values()) > 0
    for runs in results["speed"]["images"].values():
        assert list(runs) == ["bare", "fit", "usual", "usual, channels last"]
        assert all(len(found) == 2 for found in runs.values())
        assert min(sum(runs.values(), [])) > 0
    assert list(results["speed"]["images"]) == ["float32", "bfloat16 autocast"]
    assert len(results["formats"]["networks"]) == 10
    for runs in results["formats"]["networks"].values():
        assert list(runs) == ["float32", "bfloat16"] and min(sum(runs.values(), [])) > 0
    text = (tmp_path / "README.md").read_text()
    assert "stand-in" in text and "usual loop" in text and (tmp_path / "accuracy.webp").stat().st_size > 1000
    assert re.search(
        r"!\[Test accuracy against seconds of training\. small VGG-D, SHORT: [^]]+\]\(accuracy\.webp\)", text
    )
    assert committed() == before


@pytest.mark.browser
def test_the_page_is_measured_in_a_process_of_its_own_and_nothing_is_kept(chromium, tmp_path):
    before = committed()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "live", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["live"]
    for loop in ("faster loop", "reference"):
        assert found[loop]["first answer"] > 0 and len(found[loop]["networks"]) == 10
        assert min(min(times.values()) for times in found[loop]["networks"].values()) >= 0
    section = (tmp_path / "README.md").read_text().split("<!-- live -->")[1].split("<!-- /live -->")[0]
    assert "Medians of 2 passes" in section and all(f"| {name} " in section for name in found["reference"]["networks"])
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


def test_report_compares_the_number_formats_round_by_round(bench, tmp_path):
    found = {"machine": bench.measure.machine(), "batch": 4, "rounds": 3, "steps": 2,
             "networks": {"net": {"float32": [30, 40, 90], "bfloat16": [20, 10, 30]}}}  # fmt: skip
    (line,) = [line for line in bench.report.formats(found, tmp_path).splitlines() if line.startswith("| net ")]
    # the ratios are 1.5, 4 and 3; the ratio of the medians would be 2
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["net", "40", "20", "3.00"]


def test_filling_in_replaces_what_is_between_the_markers(bench, tmp_path):
    text = (settings.ROOT / "benchmarks" / "README.md").read_text()
    machine = bench.measure.machine()
    run = {"network": "net", "recipe": "SHORT", "seed": 0, "accuracy": 0.5}
    found = {"machine": machine, "data": "toy", "seconds": [1, 2], "usual lr": 0.1, "dtype": "float32",
             "runs": [run | {"seconds": 1}, run | {"seconds": 2}]}  # fmt: skip
    once = bench.report.fill(text, {"accuracy": found}, tmp_path)
    assert bench.report.fill(once, {"accuracy": found}, tmp_path) == once  # not twice
    assert once.split("<!-- accuracy -->")[0] == text.split("<!-- accuracy -->")[0]
    assert "50.0 %" in once.split("<!-- accuracy -->")[1]
    with pytest.raises(ValueError, match="lacks the markers <!-- speed -->"):
        bench.report.fill("# Nothing", {}, tmp_path)


def test_report_compares_recipes_seed_by_seed(bench, tmp_path):
    machine = bench.measure.machine()
    first, second, third, *_ = bench.measure.TRIED
    runs = [
        {"network": "net", "recipe": name, "seed": seed, "accuracy": accuracy}
        for name, found in ((first, (0.5, 0.6)), (second, (0.52, 0.59, 0.9)), (third, (0.7,)))
        for seed, accuracy in enumerate(found)
    ]
    found = {"machine": machine, "data": "toy", "epochs": 2, "runs": runs, "updates": {"net": {"SGD": 1.25}}}
    lines = [line for line in bench.report.recipe(found, tmp_path).splitlines() if line.startswith("| net ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["net", first, "55.0 % (50.0 to 60.0)", "", ""],
        # the third seed has nothing to be compared with
        ["net", second, "67.0 % (52.0 to 90.0)", first, "+2.0, -1.0"],
        ["net", third, "70.0 %", first, "+20.0"],
        ["net", third, "70.0 %", second, "+18.0"],
        ["net", "1.2"],
    ]


def test_an_update_is_timed_on_the_convolutions(bench):
    seen = []

    class Optimizer:
        def __init__(self, parameters):
            seen.extend(tuple(p.shape) for p in parameters if p.grad is not None)

        def step(self):
            pass

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    assert bench.loops.milliseconds_of_an_update(Optimizer, model, lambda p: p.flatten(1)) >= 0
    assert seen == [(4, 27), (2, 4)]


def test_the_network_is_the_one_that_the_readme_says(bench):
    from benchmarks.loops import resnet8

    model = resnet8()
    assert inspect.count_parameters(model) == 77_850
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)

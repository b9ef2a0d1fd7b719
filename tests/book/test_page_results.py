"""The page "What came out": it is what `results/` says, all of it, and it agrees with the chapters."""

import json
import re
import shutil

import pytest

from helpers import page_results, study
from helpers.chapters import FOLDER
from helpers.page_results import PAGE, PAPERS, VERDICTS, measured, section, text

RESULTS = sorted(study.FOLDER.glob("*.json"))
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
LIVE = ("Grad-CAM finds the animal better than: ", "... than the gradient")  # chapter 15 computes these, no study
EFFECT = re.compile(r"[+-]\d+\.(\d+) ± \d+\.\d+")


def tables(markdown):
    """The pipe tables of a text that give verdicts, each a list of rows (dicts)."""
    for block in re.findall(r"(?:^\|.*\n?)+", markdown.replace("\u00a0", " "), re.MULTILINE):
        header, _, *body = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        )
        if any("verdict" in column for column in header):
            yield [dict(zip(header, row, strict=True)) for row in body]


def verdicts(path):
    """What a notebook prints: (claim or None, difference, interval or None, verdict), one for each verdict."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    for table in tables("\n\n".join("".join(data.get("text/markdown", "")) for data in shown)):
        for row in table:
            for column in row:
                if "verdict" in column and not row.get("claim", "").startswith(LIVE):
                    before = list(row.values())[: list(row).index(column)]
                    difference = [cell for cell in before if EFFECT.fullmatch(cell)][-1]
                    yield row.get("claim"), difference, row.get("95 % interval"), row[column]


def missing_from(found, printed):
    """The printed verdicts that no comparison in `found` (as `measured` gives it) has with the same numbers."""
    missing = []
    for claim, difference, interval, verdict in printed:
        decimals = len(EFFECT.fullmatch(difference)[1])
        ours = [
            (f"{one.effect.mean:+.{decimals}f} ± {one.effect.sd:.{decimals}f}", one.effect.verdict)
            for one in found
            if claim in (None, one.row.claim)
            and interval in (None, page_results.interval(one.effect).replace("\u00a0", " "))
        ]
        if (difference, verdict) not in ours:
            missing.append((claim, difference, interval, verdict))
    return missing


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of `results/` that the page reads instead."""
    folder = tmp_path / "results"
    shutil.copytree(study.FOLDER, folder)
    monkeypatch.setattr(study, "FOLDER", folder)
    return folder


def measured_or_skip(paper):
    try:
        return measured(paper)
    except page_results.NotMeasured as reason:
        pytest.skip(str(reason))


def falsify(path):
    """Other numbers in every run of a file, with the same data, arms and seeds."""
    content = json.loads(path.read_text())
    for place, run in enumerate(content["runs"]):
        run["metrics"] = {name: value * (1 + 0.01 * place * place) + 1 for name, value in run["metrics"].items()}
    path.write_text(json.dumps(content))


def test_the_committed_page_is_what_the_results_say():
    assert PAGE.read_text("utf-8") == text(), "write it anew: ./course pages"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_on_the_page_and_decides_what_it_says(path, copied):
    stems = {f"{paper.chapter}_{group.study}".strip("_"): paper for paper in PAPERS for group in paper.groups}
    assert path.stem in stems, f"{path.name} is not on the page: add its claims to PAPERS"
    paper = stems[path.stem]
    before = measured_or_skip(paper)
    assert path.name in section(paper, before)
    falsify(copied / path.name)
    assert measured(paper) != before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_page_and_chapter_agree(path):
    printed = list(verdicts(path))
    found = [one for paper in PAPERS if paper.chapter == path.stem for one in measured_or_skip(paper)]
    assert missing_from(found, printed) == []
    assert printed or not found, "no table with a verdict was recognised in the notebook"


def test_a_chapter_that_disagrees_is_found():
    printed = list(verdicts(FOLDER / "02_resnet.ipynb"))
    found = measured(page_results.RESNET)
    claim, difference, interval, verdict = printed[0]
    assert missing_from(found, [(claim, "+0.41 ± 0.02", interval, verdict)])
    assert missing_from(found, [(claim, difference, "+0.35 to +0.45", verdict)])
    assert missing_from(found, [(claim, difference, interval, "not clear")])
    assert missing_from(found, [("another claim", difference, interval, verdict)])


def test_other_numbers_make_another_page(copied):
    for path in copied.glob("*.json"):
        falsify(path)
    page = text()
    assert page != PAGE.read_text("utf-8")
    assert page == text()


def test_the_count_is_that_of_the_tables():
    page = PAGE.read_text("utf-8")
    short, *every = tables(page)
    for rows in (short, [row for table in every for row in table]):
        found = [row["verdict"] for row in rows if row["verdict"] != page_results.UNMEASURED]
        seen, unclear, wrong = (f"{found.count(verdict)} are {verdict}" for verdict in VERDICTS)
        assert f"{seen}, {unclear} and {wrong}." in " ".join(page.split())
        assert set(found) <= set(VERDICTS)


def test_every_paper_is_in_the_summary_and_its_chapter_exists():
    summary = next(tables(PAGE.read_text("utf-8")))
    assert [row["paper"] for row in summary if row["paper"]] == [paper.link for paper in PAPERS]
    assert [paper.chapter for paper in PAPERS] == sorted({paper.chapter for paper in PAPERS})
    assert all((FOLDER / f"{paper.chapter}.py").exists() for paper in PAPERS)


def test_a_paper_without_results_is_said_to_be_not_measured(copied):
    (copied / "12_fcn.json").unlink()
    half = json.loads((copied / "13_fpn.json").read_text())
    (copied / "13_fpn.json").write_text(json.dumps(half | {"runs": half["runs"][:-1]}))
    page = text()
    found = {row["paper"]: row["verdict"] for row in next(tables(page))}
    assert found[page_results.FCN.link] == found[page_results.FPN.link] == page_results.UNMEASURED
    assert "`results/13_fpn.json`" not in page and "`results/14_yolo.json`" in page

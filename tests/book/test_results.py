"""The page "What came out": it is what `results/` says, all of it, and the notebooks show the same."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from book import results
from book.cards import link
from helpers import chapters, effects, study
from helpers.chapters import FOLDER
from helpers.claims import Claims

RESULTS = sorted(study.FOLDER.glob("*.json"))
BLOCKS = [(name, block) for name, block in chapters.declared(Claims)]


def tables(markdown):
    """The pipe tables of a text that name claims, each a list of rows (dicts)."""
    for block in re.findall(r"(?:^\|.*\n?)+", markdown.replace("\u00a0", " "), re.MULTILINE):
        header, _, *body = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        )
        if header[0] in ("paper", "claim"):
            yield [dict(zip(header, row, strict=True)) for row in body]


def primary_rows(page):
    """The primary claims of the page: the rows of those that are measured, and of those that are not."""
    rows = [row for table in tables(page) for row in table if "claim in miniature" in row]
    return [row for row in rows if "verdict" in row], [row for row in rows if "verdict" not in row]


def shown(name):
    """All Markdown that the outputs of a committed notebook hold."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return ["".join(output.get("data", {}).get("text/markdown", "")).strip() for output in outputs]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of `results/` that the page reads instead."""
    folder = tmp_path / "results"
    shutil.copytree(study.FOLDER, folder)
    monkeypatch.setattr(study, "FOLDER", folder)
    return folder


def falsify(path):
    """Other numbers in every run of a file, sealed as if they had been measured."""
    content = json.loads(path.read_text())
    for place, run in enumerate(content["runs"]):
        run["metrics"] = {name: value * (1 + 0.01 * place * place) + 1 for name, value in run["metrics"].items()}
    path.write_text(json.dumps(content | {"seal": study.seal(content["runs"])}))


def test_the_committed_page_is_what_the_results_say():
    assert results.PAGE.read_text("utf-8") == results.text(), "write it anew: ./course pages"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_on_the_page_and_decides_what_it_says(path, copied):
    owners = {one.stem: name for name, block in BLOCKS for one in block.studies}
    assert path.stem in owners, f"no Claims of a chapter rest on {path.name}"
    name = owners[path.stem]

    def section():
        return results.section(name, [(block, block.found()) for chapter, block in BLOCKS if chapter == name])

    before = section()
    assert path.name in before
    if not any(
        one.effect for _, block in BLOCKS for one in block.found() if path.stem in {s.stem for s in block.studies}
    ):
        pytest.skip("it has one seed so far, which decides nothing")
    falsify(copied / path.name)
    assert section() != before


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[f"{name}-{block.measured}" for name, block in BLOCKS])
def test_the_notebook_shows_the_table_of_today(name, block):
    if all(one.effect is None for one in block.found()):
        pytest.skip("nothing of it is measured yet")
    assert block.table()._repr_markdown_().strip() in shown(name), (
        f"{name} does not show the table {block.measured!r} as results/ have it now; ./course run {name} --full"
    )


def test_other_numbers_make_another_page(copied):
    for path in copied.glob("*.json"):
        falsify(path)
    page = results.text()
    assert page != results.PAGE.read_text("utf-8")
    assert page == results.text()


def test_the_count_is_that_of_the_tables():
    page = results.PAGE.read_text("utf-8")
    measured, designed = primary_rows(page)
    primary = measured + [row | {"verdict": effects.NOT_MEASURED} for row in designed]
    others = [row["verdict"] for table in tables(page) for row in table if "(exploratory)" in row.get("verdict", "")]
    for rows in ([row["verdict"] for row in primary], others):
        found = [re.split(r" \(| so far", verdict)[0] for verdict in rows]
        assert set(found) <= {*effects.VERDICTS, effects.NOT_MEASURED}
        for verdict in set(found):
            number = found.count(verdict)
            one, several = results.OF_BOUNDS.get(verdict, (f"is {verdict}", f"are {verdict}"))
            said = f"{number} {one if number == 1 else several}"
            assert said in " ".join(page.split("## The count")[1].split())


def test_every_chapter_is_in_the_summary():
    halves = primary_rows(results.PAGE.read_text("utf-8"))
    papers = [[row["paper"] for row in rows if row["paper"]] for rows in halves]
    links = [link(name) for name in chapters.names()]
    assert set(sum(papers, [])) == set(links)
    for found in papers:  # each once, in the order of the book
        assert found == [each for each in links if each in found]
    assert all(row["claim in miniature"] for rows in halves for row in rows), "every chapter has a primary claim"


def test_a_study_without_results_is_said_to_be_not_measured(copied):
    (copied / "12_fcn.json").unlink()
    measured, designed = ([row["claim in miniature"] for row in rows] for rows in primary_rows(results.text()))
    own = {one for _, block in BLOCKS if block.studies[0].stem == "12_fcn" for one in block.main}
    assert own and own <= set(designed) and not own & set(measured)
    assert "`results/12_fcn.json` is not measured yet" in results.text()


def test_the_figure_has_every_primary_claim_that_is_measured(monkeypatch):
    drawn = []
    monkeypatch.setattr(results.plot, "show", lambda draw, **_: drawn.append(draw))
    gathered = results.gathered()
    results.forest(gathered)
    fig = results.plot.figure()
    drawn[0](fig)
    labels = [label.get_text().replace("\n", " ") for label in fig.axes[0].get_yticklabels()]
    primary = [one.sentence for one in results.everything(gathered, primary=True) if one.effect]
    assert [label.split("  ", 1)[1] for label in labels] == primary


def test_a_verdict_says_when_seeds_are_missing():
    effect = effects.paired_effect([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    one = type("Found", (), {"effect": effect, "verdict": "seen", "planned": 3})
    assert results.said(one) == "seen"
    one.planned = 5
    assert results.said(one) == "seen so far, 3 of 5 seeds"
    one.effect, one.verdict = None, effects.NOT_MEASURED
    assert results.said(one) == effects.NOT_MEASURED


def test_a_difference_is_drawn_in_units_of_what_matters():
    effect = effects.paired_effect([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    block = type("Block", (), {"matters": 0.5})
    claim = type("Claim", (), {"loses": None})
    one = type("Found", (), {"primary": True, "effect": effect, "claim": claim})
    ((_, _, mean, low, high),) = results.in_units({"01_toy": [(block, [one])]})
    assert mean == 4.0 and low == 2 * effect.low and high == 2 * effect.high
    claim.loses = 1.0  # a loss of one is allowed, so a gain of two is three away from what is told apart
    ((_, _, mean, _, _),) = results.in_units({"01_toy": [(block, [one])]})
    assert mean == 6.0


@pytest.mark.parametrize(
    "verdicts, sentence",
    [
        ([], "there is none"),
        (["seen"], "1 is seen"),
        (["holds", "seen", "seen", "does not hold"], "2 are seen, 1 holds and 1 does not hold"),
        (["does not hold", "holds"] * 2, "2 hold and 2 do not hold"),
    ],
)
def test_a_tally_is_a_sentence(verdicts, sentence):
    assert results.tally([SimpleNamespace(verdict=verdict) for verdict in verdicts]) == sentence

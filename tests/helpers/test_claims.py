import sys
from functools import partial

import pytest

from helpers import chapters, claims, effects, study
from helpers.claims import Claim, Claims
from helpers.study import Study

CHAPTER = """\
# %% tags=["model"]
from helpers.claims import Claims
from helpers.study import Study

ARMS = {{name: {{}} for name in ("a", "b", "c")}}
STUDY = Study("{name}", run=None, arms=ARMS, data=None, seeds=(0, 1, 2, 3))
MORE = Study("{name}", run=None, arms={{"a": {{}}, "d": {{}}}}, data=None, seeds=(0, 1, 2, 3), name="more")
"""
VALUES = {
    "a": (0.10, 0.20, 0.30, 0.40),
    "b": (0.21, 0.32, 0.39, 0.51),  # a + 0.11, 0.12, 0.09, 0.11
    "c": (0.10, 0.21, 0.30, 0.39),  # a + 0, 0.01, 0, -0.01
    "d": (0.12, 0.30, 0.31, 0.48),  # a + 0.02, 0.1, 0.01, 0.08
}


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Write chapter 01_toy, or another: its claims as source text; gives its module. Measured as VALUES."""
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "FOLDER", tmp_path / "results")
    (tmp_path / "results").mkdir()
    names = set()

    def write(text, name="01_toy"):
        names.add(name)
        (tmp_path / f"{name}.py").write_text(CHAPTER.format(name=name) + text)
        chapters.chapter.cache_clear()
        module = chapters.chapter(name)
        measure(module.STUDY, {arm: VALUES[arm] for arm in "abc"})
        measure(module.MORE, {arm: VALUES[arm] for arm in "d"})
        return module

    yield write
    chapters.chapter.cache_clear()
    for name in names:
        sys.modules.pop(f"chapter_{name}", None)


def measure(one, values):
    """Store runs of a study: `score` is what `values` says, seed by seed."""
    runs = [
        {"arm": arm, "seed": seed, "config": {}, "metrics": {"score": value}, "data": "toy", "seconds": 1.0}
        for arm, row in values.items()
        for seed, value in enumerate(row)
    ]
    one._write({"study": one.stem, "code": "", "arms": one.arms, "seeds": list(one.seeds), "runs": runs})


def block(module, **more):
    """Claims about the study of a chapter."""
    return Claims(**{"study": module.STUDY, "metric": "score", "measured": "score, points", "scale": 100} | more)


def verdicts(block):
    return {one.sentence: one.verdict for one in block.found()}


def test_verdicts_and_table(chapter):
    module = chapter("")
    ours = block(
        module,
        matters=2.0,
        main={"b helps": ("a", "b", "Table 3: 9 points"), "c is no worse": Claim("a", "c", loses=3)},
        also={"less": ("b", "a"), "c helps": ("a", "c"), "mean": (["a", "c"], ["b", "a"])},
    )
    assert verdicts(ours) == {
        "b helps": "seen",
        "c is no worse": "holds",
        "less": "reversed",
        "c helps": "too small to matter",
        "mean": "seen",
    }
    found = {one.sentence: one for one in ours.found()}
    assert found["b helps"].effect.mean == pytest.approx(10.75) and found["b helps"].primary
    # (b + a)/2 - (a + c)/2: 11, 11, 9, 12 halved
    assert found["mean"].effect.mean == pytest.approx(5.375) and not found["mean"].primary
    table = ours.table()
    assert list(table.rows[0]) == ["claim", "paper", "score, points", "95 % interval", "seeds", "verdict"]
    assert table["verdict"][:3] == ["seen", "holds", "reversed (exploratory)"]
    assert table["score, points"][0] == "+10.75 ± 1.26" and table["paper"][:2] == ["Table 3: 9 points", ""]
    assert table["seeds"] == [4] * 5
    low, high = found["b helps"].effect.low, found["b helps"].effect.high
    assert table["95 % interval"][0] == f"{low:+.2f} to {high:+.2f}"
    assert "paper" not in block(module, also={"b": ("a", "b")}).table().rows[0]


def test_a_loss_that_is_too_large_does_not_hold(chapter):
    ours = block(chapter(""), matters=1, main={"b costs little": ("b", "a", "", 5)})
    assert verdicts(ours) == {"b costs little": "does not hold"}


D_HELPS = "main={'d helps': ('a', 'd')}, matters=0.5, scale=100"


def test_holm_counts_all_primary_claims_of_a_chapter_and_no_others(chapter):
    first = "FIRST = Claims(STUDY, 'score', 'points', main={'b helps': ('a', 'b')}, matters=0.5, scale=100)\n"
    alone = chapter(first).FIRST.found()[0]
    assert alone.p == pytest.approx(alone.effect.p())
    second = f"SECOND = [Claims((STUDY, MORE), 'score', 'points', {D_HELPS})]\n"
    also = "THIRD = Claims(STUDY, 'score', 'points', also={'c helps': ('a', 'c')})\n"
    module = chapter(first + second + also)
    both = [module.FIRST.found()[0], module.SECOND[0].found()[0]]
    assert [one.p for one in both] == pytest.approx(effects.holm([one.effect.p() for one in both]))
    assert both[0].p == pytest.approx(2 * alone.p)
    assert module.THIRD.found()[0].p == pytest.approx(module.THIRD.found()[0].effect.p())
    # a primary claim that is not measured counts in the family
    module.MORE.path.unlink()
    assert [one.verdict for one in module.SECOND[0].found()] == ["not measured yet"]
    assert module.FIRST.found()[0].p == pytest.approx(2 * alone.p)


def test_a_notebooks_own_object_counts_once(chapter):
    first = "FIRST = Claims(STUDY, 'score', 'points', main={'b helps': ('a', 'b')}, matters=0.5, scale=100)\n"
    module = chapter(first)
    again = block(module, main={"b helps": ("a", "b")}, matters=0.5)
    assert again.found()[0].p == pytest.approx(module.FIRST.found()[0].p)


def test_adjusting_changes_a_verdict(chapter):
    """The difference a to d is made such that 0.025 < p < 0.05: seen alone, not clear beside another claim."""
    module = chapter("")
    measure(
        module.MORE, {"d": [value + more for value, more in zip(VALUES["a"], (0.02, 0.1, 0.05, 0.08), strict=True)]}
    )
    ours = block(module, study=(module.STUDY, module.MORE), main={"d helps": ("a", "d")}, matters=0.5)
    assert 0.025 < ours.found()[0].p < 0.05 and verdicts(ours) == {"d helps": "seen"}
    both = block(module, study=(module.STUDY, module.MORE), main={"d helps": ("a", "d"), "c": ("a", "c")}, matters=0.5)
    assert verdicts(both)["d helps"] == "not clear"
    exploratory = block(module, study=(module.STUDY, module.MORE), also=both.main)
    assert verdicts(exploratory)["d helps"] == "seen"


def test_an_arm_is_taken_from_the_first_study_that_has_it(chapter):
    module = chapter("")
    measure(module.MORE, {"a": (9, 9, 9, 9), "d": VALUES["d"]})
    ours = partial(block, module, also={"d": ("a", "d")})
    assert ours(study=(module.STUDY, module.MORE)).found()[0].effect.mean == pytest.approx(5.25)
    assert ours(study=(module.MORE, module.STUDY)).found()[0].effect.mean == pytest.approx(-869.75)


def test_a_metric_that_is_a_function(chapter):
    def less_the_rest(one, arm):
        return [value - rest for value, rest in zip(one.values(arm, "score"), one.values("c", "score"), strict=True)]

    module = chapter("")
    ours = block(module, metric=less_the_rest, also={"b": ("a", "b")})
    assert ours.found()[0].effect.mean == pytest.approx(10.75)
    # it may look at every arm, so only seeds that all of them have count
    measure(module.STUDY, {"a": VALUES["a"], "b": VALUES["b"], "c": VALUES["c"][:2]})
    assert ours.found()[0].effect.n == 2


def test_an_unfinished_study_is_read_as_far_as_it_goes(chapter):
    module = chapter("")
    ours = block(module, also={"b": ("a", "b"), "c": ("a", "c")})
    measure(module.STUDY, {"a": VALUES["a"], "b": VALUES["b"][:3], "c": VALUES["c"][:1]})
    b, c = ours.found()
    assert b.effect.n == 3 and b.effect.mean == pytest.approx((11 + 12 + 9) / 3) and b.planned == 4
    assert (c.effect, c.p, c.verdict) == (None, None, "not measured yet")
    assert ours.table()["seeds"] == ["3 of 4", "fewer than 2 of 4"]
    module.STUDY.path.unlink()
    assert verdicts(ours) == {"b": "not measured yet", "c": "not measured yet"}


def test_runs_of_other_code_or_arms_do_not_count_for_an_arm(chapter):
    module = chapter("")
    other = Study("01_toy", None, {"a": {}, "b": {"width": 2}}, None, (0, 1, 2, 3))
    assert verdicts(block(module, study=other, also={"b": ("a", "b")})) == {"b": "not measured yet"}


WRONG = {
    "no arm": ({"also": {"b": ("a", "e")}}, "01_toy: the claim 'b' names 'e', which is no arm. The arms are: a, b, c."),
    "no arm in a list": ({"also": {"b": (["a", "e"], "b")}}, "names 'e', which is no arm"),
    "both": ({"main": {"b": ("a", "b")}, "also": {"b": ("a", "b")}, "matters": 1}, "'b' is both primary and explor"),
    "nothing matters": ({"main": {"b": ("a", "b")}}, "primary claims, so it needs matters=.*; got None"),
    "zero matters": ({"main": {"b": ("a", "b")}, "matters": 0.0}, "positive number in that unit; got 0.0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_refused_in_one_sentence(chapter, kind):
    more, message = WRONG[kind]
    with pytest.raises(ValueError, match=message) as caught:
        block(chapter(""), **more)
    assert "\n" not in str(caught.value)


def test_two_primary_claims_with_one_sentence(chapter):
    one = "Claims(STUDY, 'score', 'points', main={'b helps': ('a', 'b')}, matters=0.5)"
    module = chapter(f"BOTH = [{one}, {one}]\n")
    with pytest.raises(ValueError, match="01_toy: two primary claims say 'b helps'; word one of them otherwise."):
        module.BOTH[0].found()


def test_what_is_declared_belongs_to_the_chapter_that_made_it(chapter):
    chapter("CLAIMS = (Claims(STUDY, 'score', 'points', also={'b': ('a', 'b')}), 3)\n")
    taken = "from helpers.chapters import chapter\nTAKEN = chapter('01_toy').CLAIMS\nTHEIRS = chapter('01_toy').STUDY\n"
    module = chapter(taken + "OWN = AGAIN = Claims(THEIRS, 'score', 'points', also={'b': ('a', 'b')})\n", "02_other")
    first = chapters.chapter("01_toy")
    assert chapters.declared(Claims) == [("01_toy", first.CLAIMS[0]), ("02_other", module.OWN)]
    assert chapters.declared(Claims, "02_other") == [("02_other", module.OWN)]
    assert [one.stem for _, one in chapters.declared(Study, "02_other")] == ["02_other", "02_other_more"]
    assert set(claims.family("01_toy")) == set()
    with pytest.raises(ValueError, match="no chapter '03_new'"):
        chapters.declared(Claims, "03_new")

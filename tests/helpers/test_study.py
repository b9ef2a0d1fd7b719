import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from helpers import chapters, settings, study

CHAPTER = '''\
# %% [markdown]
# Some text.

# %% tags=["model"]
import os
from types import SimpleNamespace

from helpers.study import Study

OFFSET = 1
TABLE, EMPTY = {{"a": 1}}, {{}}
TABLE["b"] = 2


def more(x):
    """What is added."""
    return x + OFFSET


def unused(x):
    return x


def train_once(data, *, seed, width, kernel=(3, 3)):
    """One run."""
    with open({log!r}, "a") as log:
        print(width, seed, os.getpid(), file=log)
    if os.path.exists({log!r} + ".fail"):
        interrupt(width, seed)
    assert type(kernel) is tuple
    return {{"score": more(10 * width + seed * (width - 1)), "width": width, "table": TABLE["a"]}}


def interrupt(width, seed):
    kind, at = open({log!r} + ".fail").read().split()
    if len(open({log!r}).readlines()) == int(at):
        raise {{"error": RuntimeError, "key": KeyboardInterrupt}}[kind]("stop")


def data():
    return SimpleNamespace(provenance=os.environ.get("TOY_DATA", "toy data"))


STUDY = Study(
    "01_toy",
    run=train_once,
    arms={{"one": {{"width": 1}}, "two": {{"width": 2, "kernel": (3, 3)}}}},
    data=data,
)

# %%
raise RuntimeError("not a model cell")
'''


class Toy:
    """A chapter with a study, in a folder of its own; edits count from the next `study`."""

    def __init__(self, folder):
        self.script, self.log = folder / "chapters" / "01_toy.py", folder / "log"
        self.results = folder / "results" / "01_toy.json"
        self.script.parent.mkdir()
        self.script.write_text(CHAPTER.format(log=str(self.log)))

    def edit(self, old, new):
        text = self.script.read_text()
        assert text.count(old) == 1, old
        self.script.write_text(text.replace(old, new))
        chapters.chapter.cache_clear()

    @property
    def study(self):
        chapters.chapter.cache_clear()
        return study.studies("01_toy")["01_toy"]

    def runs(self):
        """(width, seed) of each run so far, in the order in which they started."""
        if not self.log.exists():
            return []
        return [tuple(map(int, line.split()[:2])) for line in self.log.read_text().splitlines()]

    def fail(self, kind, at):
        """Make run number `at` fail, counted from the first of all."""
        self.log.with_suffix(".fail").write_text(f"{kind} {at}")

    def stored(self):
        return [(run["arm"], run["seed"]) for run in json.loads(self.results.read_text())["runs"]]


ALL = [("one", 0), ("one", 1), ("one", 2), ("two", 0), ("two", 1), ("two", 2)]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "FOLDER", tmp_path / "chapters")
    monkeypatch.setattr(study, "FOLDER", tmp_path / "results")
    monkeypatch.setenv("COURSE_SILENT", "1")
    monkeypatch.delenv("TOY_DATA", raising=False)
    yield Toy(tmp_path)
    chapters.chapter.cache_clear()
    sys.modules.pop("chapter_01_toy", None)


# ---------------------------------------------------------------------------------------------- measuring


def test_measures_every_arm_with_every_seed_in_pairs(toy):
    measured = toy.study.measure()
    assert toy.runs() == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]  # whole pairs first
    assert toy.stored() == ALL
    assert measured.values("two", "score") == [21, 22, 23] and measured.values("one", "score") == [11, 11, 11]
    run = measured.runs()[0]
    assert run["config"] == {"width": 1} and run["data"] == "toy data" and run["seconds"] >= 0
    assert set(run["made_with"]) == {"date", "torch", "python", "machine"}
    assert study.stale("01_toy") == []


def test_a_second_measure_has_nothing_to_do(toy):
    toy.study.measure()
    before = toy.results.read_bytes()
    toy.study.measure()
    assert len(toy.runs()) == 6 and toy.results.read_bytes() == before


def test_the_file_is_written_after_every_run_and_whole(toy, monkeypatch):
    written, write = [], study.Study._write

    def note(self, content):
        write(self, content)
        written.append(len(json.loads(toy.results.read_text())["runs"]))
        assert [path.name for path in toy.results.parent.iterdir()] == ["01_toy.json"]

    monkeypatch.setattr(study.Study, "_write", note)
    toy.study.measure()
    assert written == [1, 2, 3, 4, 5, 6]


def test_a_write_that_fails_keeps_what_was_there(toy):
    measured = toy.study.measure()
    before = toy.results.read_bytes()
    with pytest.raises(TypeError):
        measured._write({"runs": [object()]})
    assert toy.results.read_bytes() == before


def test_a_write_that_is_cut_off_keeps_what_was_there(toy, monkeypatch):
    measured = toy.study.measure()
    before = toy.results.read_bytes()

    def cut_off(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        measured._write({"runs": []})
    assert toy.results.read_bytes() == before


@pytest.mark.parametrize(("kind", "error"), [("error", RuntimeError), ("key", KeyboardInterrupt)])
def test_a_killed_study_goes_on_where_it_was(toy, kind, error):
    toy.fail(kind, 3)
    with pytest.raises(error):
        toy.study.measure()
    assert toy.stored() == [("one", 0), ("two", 0)]
    assert study.stale("01_toy") == ["results/01_toy.json lacks 4 of 6 runs"]
    toy.study.measure()  # the failing condition was the third run; this is the fourth
    assert toy.runs() == [(1, 0), (2, 0), (1, 1), (1, 1), (2, 1), (1, 2), (2, 2)]
    assert toy.stored() == ALL


def test_an_interrupted_training_does_not_enter(toy, capsys):
    """`fit` hands back a history when it is interrupted by a reader, but not within a study."""
    toy.edit(
        'return {"score"',
        """from toys import red_or_blue, small_network

    from helpers import train

    def loss(model, images, targets):
        if seed == 1:
            raise KeyboardInterrupt
        return model(images).square().mean()

    train.fit(small_network(), red_or_blue(16), epochs=1, batch_size=16, loss=loss)
    return {"score\"""",
    )
    with pytest.raises(KeyboardInterrupt):
        toy.study.measure()
    assert toy.stored() == [("one", 0), ("two", 0)]
    with pytest.raises(SystemExit, match="What was measured is kept"):
        study.main(["01_toy"])


def test_a_changed_arm_is_measured_again_and_a_new_seed_added(toy):
    toy.study.measure()
    toy.edit('{"width": 2, "kernel": (3, 3)}', '{"width": 4}')
    assert study.stale("01_toy") == ["results/01_toy.json lacks 3 of 6 runs"]
    assert toy.study.measure().values("two", "score") == [41, 44, 47]
    assert toy.runs()[6:] == [(4, 0), (4, 1), (4, 2)]
    toy.edit("    data=data,", "    data=data,\n    seeds=(0, 1, 2, 3),")
    toy.study.measure()
    assert toy.runs()[9:] == [(1, 3), (4, 3)]


def test_a_removed_arm_is_forgotten(toy):
    toy.study.measure()
    toy.edit(', "two": {"width": 2, "kernel": (3, 3)}', "")
    toy.edit("    data=data,", "    data=data,\n    seeds=(0, 1, 2, 3),")
    toy.study.measure()
    assert toy.stored() == [("one", 0), ("one", 1), ("one", 2), ("one", 3)]


# ---------------------------------------------------------------------------------------------- other code

NO_OTHER_CODE = {
    "text": ("# Some text.", "# Other text."),
    "docstring": ('"""What is added."""', '"""Adds something."""'),
    "no docstring": ('    """One run."""\n', ""),
    "comment": ("return x + OFFSET", "return x + OFFSET  # one"),
    "spacing": ("x + OFFSET", "(x+OFFSET)"),
    "unused function": ("def unused(x):\n    return x", "def unused(x):\n    return 3 * x"),
    "cell that is not a model": ('raise RuntimeError("not a model cell")', "print(1)"),
}
OTHER_CODE = {
    "the run": ("10 * width", "11 * width"),
    "a function it uses": ("return x + OFFSET", "return x - OFFSET"),
    "a constant of that function": ("OFFSET = 1", "OFFSET = 2"),
    "one of two constants": ('{"a": 1}, {}', '{"a": 3}, {}'),
    "an entry added to a constant": ('TABLE["b"] = 2', 'TABLE["b"] = 3'),
    "a default": ("kernel=(3, 3)):", "kernel=(5, 5)):"),
    "a first statement": ('"""What is added."""\n    return', "print(x)\n    return"),
}


@pytest.mark.parametrize("change", NO_OTHER_CODE)
def test_what_is_not_other_code(toy, change):
    toy.study.measure()
    toy.edit(*NO_OTHER_CODE[change])
    assert study.stale("01_toy") == []
    toy.study.measure()
    assert len(toy.runs()) == 6


@pytest.mark.parametrize("change", OTHER_CODE)
def test_what_is_other_code(toy, change):
    toy.study.measure()
    toy.edit(*OTHER_CODE[change])
    assert study.stale("01_toy") == [
        "results/01_toy.json was measured with other code (./course study 01_toy --restart)"
    ]
    with pytest.raises(ValueError, match="01_toy.json was measured with other code.*--restart"):
        toy.study.measure()
    assert len(toy.runs()) == 6
    toy.study.measure(restart=True)
    assert len(toy.runs()) == 12 and study.stale("01_toy") == []


def test_a_first_statement_that_is_no_docstring_counts(toy):
    toy.edit('    """What is added."""\n', "    print(x)\n")
    first = study.code_of("01_toy", "train_once")
    toy.edit("    print(x)\n", "    print(2 * x)\n")
    assert study.code_of("01_toy", "train_once") != first


def test_the_hash_is_the_same_in_every_python(toy):
    """The expected text was read off Python 3.11, 3.12 and 3.13, which print different trees."""
    source = '''
@decorate
def f(x: int = 1, *, key=None, **more) -> str:
    """Gone."""
    return f"{x!r:>{key}} {more['a']}" if x else lambda: [None, (), 1.5, b"b"]
'''
    assert hashlib.sha256(chapters.skeleton(ast.parse(source)).encode()).hexdigest()[:16] == "f0aee716b917bb61"


# ---------------------------------------------------------------------------------------------- data


def test_other_data_do_not_mix(toy, monkeypatch):
    toy.fail("error", 3)
    with pytest.raises(RuntimeError):
        toy.study.measure()
    monkeypatch.setenv("TOY_DATA", "drawn stand-in for toy")
    with pytest.raises(ValueError, match="measured on toy data; the data here are drawn stand-in for toy"):
        toy.study.measure()
    assert len(toy.runs()) == 3
    toy.study.measure(restart=True)
    assert toy.study.provenance() == "drawn stand-in for toy"
    assert study.stale("01_toy") == ["results/01_toy.json was measured on the stand-in"]


def test_a_file_of_mixed_data_is_refused(toy):
    measured = toy.study.measure()
    content = json.loads(toy.results.read_text())
    content["runs"][2]["data"] = "other data"
    toy.results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="different data: other data; toy data"):
        measured.provenance()


# ---------------------------------------------------------------------------------------------- reading


def test_numbers(toy):
    measured = toy.study.measure()
    assert measured.mean("two", "score") == (22.0, 1.0)
    effect = measured.effect("one", "two", "score", scale=100)
    assert (effect.mean, effect.sd, effect.n) == (1100, 100, 3) and effect.verdict == "seen"
    table = measured.summary({"score in %": ("score", 100), "width": "width"})
    assert table["arm"] == ["one", "two"]
    assert table["score in %"] == [1100, "2200.00 ± 100.00"] and table["width"] == [1, 2]
    assert measured.rehearse("few")["two"]["score"] == 21


def test_claims_are_a_table_of_paired_differences(toy):
    measured = toy.study.measure()
    assert measured.text("two", "score", scale=2, decimals=1) == "44.0 ± 2.0"
    rows = measured.claims([("two is more", "one", "two"), ("two is less", "two", "one")], "score", "points", 2).rows
    assert [row["verdict"] for row in rows] == ["seen", "reversed at this scale"]
    effect = measured.effect("one", "two", "score", 2)
    assert rows[0]["claim"] == "two is more" and rows[0]["points"] == f"{effect.mean:+.2f} ± {effect.sd:.2f}"
    assert rows[0]["95 % interval"] == f"{effect.low:+.2f} to {effect.high:+.2f}"


def test_unknown_names_list_what_there_is(toy):
    with pytest.raises(FileNotFoundError, match="results/01_toy.json is not there.*course study 01_toy"):
        toy.study.values("one", "score")
    assert study.stale("01_toy") == ["results/01_toy.json is missing (./course study 01_toy)"]
    toy.fail("error", 4)
    with pytest.raises(RuntimeError):
        toy.study.measure()
    with pytest.raises(KeyError, match="no arm 'three'. Its arms are: one, two"):
        toy.study.values("three", "score")
    with pytest.raises(KeyError, match="no metric 'accuracy'. There are: score, width, table"):
        toy.study.values("one", "accuracy")
    with pytest.raises(ValueError, match=r"'two' lacks seeds \[1\]. Measure on: ./course study 01_toy"):
        toy.study.values("two", "score", [0, 1])


def test_names_of_files(toy):
    assert study.Study("01_toy", None, {}, None).path == toy.results
    assert study.Study("01_toy", None, {}, None, name="scale").path.name == "01_toy_scale.json"


# ---------------------------------------------------------------------------------------------- the command


def test_command(toy, capsys):
    study.main(["01_toy"])
    assert "results/01_toy.json: 6 runs on toy data" in capsys.readouterr().out
    toy.edit("10 * width", "11 * width")
    with pytest.raises(SystemExit, match="measured with other code"):
        study.main(["01_toy"])
    study.main(["01_toy", "--restart"])
    assert len(toy.runs()) == 12
    with pytest.raises(SystemExit, match="no chapter '99_none'. The chapters are: 01_toy"):
        study.main(["99_none"])
    toy.edit("STUDY = Study(", "ARGUMENTS = dict(chapter=")
    study.main(["01_toy"])
    assert "01_toy defines no study" in capsys.readouterr().out


def test_two_processes(tmp_path):
    """In a copy of the project, as processes of joblib's own have to find it."""
    shutil.copytree(
        settings.ROOT / "helpers", tmp_path / "helpers", ignore=shutil.ignore_patterns("art", "__pycache__")
    )
    toy = Toy(tmp_path)
    toy.edit("    assert type(kernel)", "    import time\n\n    time.sleep(0.5)\n    assert type(kernel)")
    command = "import joblib; from helpers import study\nwith joblib.parallel_config(n_jobs=2): study.main(['01_toy'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COURSE_SILENT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "6 runs on toy data" in done.stdout, done.stderr
    assert toy.stored() == ALL and sorted(toy.runs()) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    processes = {line.split()[2] for line in toy.log.read_text().splitlines()}
    assert len(processes) == 2

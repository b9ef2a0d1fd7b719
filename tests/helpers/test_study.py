import argparse
import ast
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from helpers import chapters, settings, study, train

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
        self.processes = []
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

    def runs(self, log=None):
        """(width, seed) of each run so far, in the order in which they started."""
        log = log or self.log
        if not log.exists():
            return []
        return [tuple(map(int, line.split()[:2])) for line in log.read_text().splitlines()]

    def steps(self):
        """(width, seed) of each step of `train`'s trainings so far."""
        return self.runs(self.log.with_suffix(".steps"))

    def train(self):
        """Let a run be a training of 12 steps; the sixth of seed 1 waits as long as there is a file `log.hold`."""
        self.edit(
            '    return {"score": more(10 * width + seed * (width - 1)), "width": width, "table": TABLE["a"]}\n',
            TRAINING,
        )
        self.edit("    data=data,", "    data=data,\n    seeds=(0, 1),")

    def fail(self, kind, at):
        """Make run number `at` fail, counted from the first of all."""
        self.log.with_suffix(".fail").write_text(f"{kind} {at}")

    def content(self):
        return json.loads(self.results.read_text())

    def spoil(self, edit, sealed=True):
        """Let a function edit what the file holds."""
        content = self.content()
        edit(content)
        if sealed:
            content["seal"] = study.seal(content["runs"])
        self.results.write_text(json.dumps(content))

    def stored(self):
        return [(run["arm"], run["seed"]) for run in json.loads(self.results.read_text())["runs"]]


TRAINING = """
    import time

    from torch.nn import functional

    from helpers import train
    from toys import red_or_blue, small_network

    steps = []

    def loss(model, images, targets):
        steps.append(targets)
        with open(log.name + ".steps", "a") as file:
            print(width, seed, file=file)
        while seed and len(steps) == 6 and os.path.exists(log.name + ".hold"):
            time.sleep(0.05)
        return functional.cross_entropy(model(images), targets)

    train.set_seed(seed)
    model = small_network()
    history = train.fit(model, red_or_blue(64), epochs=3, batch_size=16, lr=0.01 * width, loss=loss, seed=seed)
    weight = sum(float(p.double().abs().sum()) for p in model.parameters())
    return {"loss": history.last("train_loss"), "weight": weight}
"""
ALL = [("one", 0), ("one", 1), ("one", 2), ("two", 0), ("two", 1), ("two", 2)]


def command(*arguments, jobs="1"):
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    return study.command(parser.parse_args([*arguments, *(["--jobs", jobs] if jobs else [])]))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "FOLDER", tmp_path / "chapters")
    monkeypatch.setattr(study, "FOLDER", tmp_path / "results")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOY_DATA", raising=False)
    yield Toy(tmp_path)
    chapters.chapter.cache_clear()
    sys.modules.pop("chapter_01_toy", None)


@pytest.fixture
def asked(monkeypatch):
    """The jobs and the threads that studies ask for; their runs stay in this process."""
    found, place = SimpleNamespace(jobs=[], threads=[]), study._place
    monkeypatch.setattr(study, "_place", lambda jobs, dask: found.jobs.append(jobs) or place(1, dask))
    monkeypatch.setattr(torch, "set_num_threads", found.threads.append)
    return found


# ---------------------------------------------------------------------------------------------- measuring


def test_measures_every_arm_with_every_seed_in_pairs(toy):
    measured = toy.study.measure(jobs=1)
    assert toy.runs() == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]  # whole pairs first
    assert toy.stored() == ALL
    assert measured.values("two", "score") == [21, 22, 23] and measured.values("one", "score") == [11, 11, 11]
    run = measured.runs()[0]
    assert run["config"] == {"width": 1} and run["data"] == "toy data" and run["seconds"] >= 0
    assert set(run["made_with"]) == {"date", "torch", "python", "machine"}
    assert study.stale("01_toy") == []


def test_a_second_measure_has_nothing_to_do(toy):
    toy.study.measure(jobs=1)
    before = toy.results.read_bytes()
    toy.study.measure(jobs=1)
    assert len(toy.runs()) == 6 and toy.results.read_bytes() == before


def test_the_file_is_written_after_every_run_and_whole(toy, monkeypatch):
    written, write = [], study.Study._write

    def note(self, content):
        write(self, content)
        written.append(len(json.loads(toy.results.read_text())["runs"]))
        assert {path.name for path in toy.results.parent.iterdir()} == {"01_toy.json", ".01_toy.lock"}

    monkeypatch.setattr(study.Study, "_write", note)
    toy.study.measure(jobs=1)
    assert written == [1, 2, 3, 4, 5, 6]


def test_a_write_that_fails_keeps_what_was_there(toy):
    measured = toy.study.measure(jobs=1)
    before = toy.results.read_bytes()
    with pytest.raises(TypeError):
        measured._write({"runs": [object()]})
    assert toy.results.read_bytes() == before


def test_a_write_that_is_cut_off_keeps_what_was_there(toy, monkeypatch):
    measured = toy.study.measure(jobs=1)
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
        toy.study.measure(jobs=1)
    assert toy.stored() == [("one", 0), ("two", 0)]
    assert study.stale("01_toy") == []
    assert study.unfinished("01_toy") == ["results/01_toy.json is unfinished: 2 of 6 runs"]
    assert toy.study.values("two", "score") == [21]  # of the seeds with which every arm is measured
    assert toy.study.text("two", "score") == "21.00 (one seed)"
    toy.study.measure(jobs=1)  # the failing condition was the third run; this is the fourth
    assert toy.runs() == [(1, 0), (2, 0), (1, 1), (1, 1), (2, 1), (1, 2), (2, 2)]
    assert toy.stored() == ALL


def test_an_interrupted_training_does_not_enter(toy, capsys):
    """`fit` keeps the history of a training that a reader interrupts, but not within a study."""
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
        toy.study.measure(jobs=1)
    assert toy.stored() == [("one", 0), ("two", 0)]
    assert command("01_toy") == 130
    assert "What was measured is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        ("# Some text.", "# Other text.", 7),
        ('"loss": history', '"loss": 2 * history', 12),
        ('"one": {"width": 1}', '"one": {"width": 1, "kernel": (1, 1)}', 12),
    ],
    ids=["its own", "other code", "another arm"],
)
def test_a_checkpoint_serves_its_own_code_and_arm_alone(toy, monkeypatch, old, new, steps):
    """In the recipe, of which a checkpoint knows, nothing is other."""
    toy.train()
    monkeypatch.setattr(train, "checkpoints", functools.partial(train.checkpoints, every=0))
    hold = toy.log.with_suffix(".hold")
    hold.touch()
    with monkeypatch.context() as held, pytest.raises(KeyboardInterrupt):
        held.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
        toy.study.measure(jobs=1, seeds=(1,))
    assert toy.steps() == [(1, 1)] * 6
    hold.unlink()
    toy.edit(old, new)
    run = toy.study.measure(jobs=1, seeds=(1,)).runs()[0]
    assert toy.steps()[6:].count((1, 1)) == steps and run.get("resumed", False) == (steps == 7)


def test_a_new_seed_is_added_and_nothing_repeated(toy):
    toy.study.measure(jobs=1)
    toy.edit("    data=data,", "    data=data,\n    seeds=(0, 1, 2, 3),")
    assert study.unfinished("01_toy") == ["results/01_toy.json is unfinished: 6 of 8 runs"]
    toy.study.measure(jobs=1)
    assert toy.runs()[6:] == [(1, 3), (2, 3)]


def test_a_changed_arm_is_measured_again_and_its_runs_are_set_aside(toy, capsys):
    toy.study.measure(jobs=1)
    old, new = '"two": {"width": 2, "kernel": (3, 3)}', '"two": {"width": 4}'
    toy.edit(old, new)
    (problem,) = study.stale("01_toy")
    assert "has runs of arms that have changed or are gone: two (./course study 01_toy sets" in problem
    assert toy.study.measured_seeds() == []  # old runs are not taken for those of the new arm
    assert toy.study.measure(jobs=1).values("two", "score") == [41, 44, 47]
    assert "their runs are set aside (3 of 'two') until --drop" in capsys.readouterr().out
    assert toy.runs()[6:] == [(4, 0), (4, 1), (4, 2)] and study.stale("01_toy") == []
    toy.edit(new, old)  # back again: nothing is measured twice
    assert toy.study.measure(jobs=1).values("two", "score") == [21, 22, 23]
    assert len(toy.runs()) == 9 and len(toy.content()["set_aside"]) == 3
    assert command("01_toy", "--drop") == 0
    assert "set_aside" not in toy.content() and toy.stored() == ALL


def test_runs_of_a_removed_or_renamed_arm_are_kept(toy):
    toy.study.measure(jobs=1)
    toy.edit('"two": {"width": 2, "kernel": (3, 3)}', '"zwei": {"width": 2}')
    toy.study.measure(jobs=1)
    assert [run["arm"] for run in toy.content()["set_aside"]] == ["two"] * 3
    assert toy.stored() == ALL[:3] + [("zwei", 0), ("zwei", 1), ("zwei", 2)]


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
    toy.study.measure(jobs=1)
    toy.edit(*NO_OTHER_CODE[change])
    assert study.stale("01_toy") == []
    toy.study.measure(jobs=1)
    assert len(toy.runs()) == 6


@pytest.mark.parametrize("change", OTHER_CODE)
def test_what_is_other_code(toy, change):
    toy.study.measure(jobs=1)
    toy.edit(*OTHER_CODE[change])
    assert study.stale("01_toy") == [
        "results/01_toy.json was measured with other code (./course study 01_toy --restart)"
    ]
    with pytest.raises(ValueError, match="01_toy.json was measured with other code.*--restart"):
        toy.study.measure(jobs=1)
    assert len(toy.runs()) == 6
    toy.study.measure(restart=True, jobs=1)
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
        toy.study.measure(jobs=1)
    monkeypatch.setenv("TOY_DATA", "drawn stand-in for toy")
    with pytest.raises(ValueError, match="measured on toy data; the data here are drawn stand-in for toy"):
        toy.study.measure(jobs=1)
    assert len(toy.runs()) == 3
    before = toy.results.read_bytes()
    with pytest.raises(ValueError, match="holds runs on real data.*nothing was thrown away"):
        toy.study.measure(restart=True, jobs=1)
    assert toy.results.read_bytes() == before and len(toy.runs()) == 3
    toy.results.unlink()
    toy.study.measure(jobs=1)
    assert toy.study.provenance() == "drawn stand-in for toy"
    assert study.stale("01_toy") == ["results/01_toy.json was measured on the stand-in"]
    monkeypatch.delenv("TOY_DATA")
    assert toy.study.measure(restart=True, jobs=1).provenance() == "toy data"


def test_a_file_of_mixed_data_is_named(toy):
    measured = toy.study.measure(jobs=1)
    toy.spoil(lambda content: content["runs"][2].update(data="other data"))
    with pytest.raises(ValueError, match="different data: other data; toy data"):
        measured.provenance()
    assert study.stale("01_toy") == ["results/01_toy.json mixes data: other data; toy data"]


# ---------------------------------------------------------------------------------------------- damaged files

DAMAGE = {
    "nan": (
        lambda c: c["runs"][1]["metrics"].update(score=float("nan")),
        "no number for 'score' of arm 'one' with seed 1",
    ),
    "twice": (lambda c: c["runs"].append(dict(c["runs"][5])), "more than one run of arm 'two' with seed 2"),
    "no arms": (lambda c: c.pop("arms"), "cannot be read .KeyError: 'arms'"),
    "no runs": (lambda c: c.update(runs=3), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_and_kept(toy, kind):
    edit, message = DAMAGE[kind]
    measured = toy.study.measure(jobs=1)
    content = toy.content()
    edit(content)
    if isinstance(content["runs"], list):
        content["seal"] = study.seal(content["runs"])
    toy.results.write_text(json.dumps(content))
    refuses(toy, measured, message)


def test_a_file_that_is_cut_off(toy):
    measured = toy.study.measure(jobs=1)
    toy.results.write_text(toy.results.read_text()[:900])
    refuses(toy, measured, "cannot be read .JSONDecodeError")


def test_a_number_that_was_edited(toy):
    measured = toy.study.measure(jobs=1)
    toy.results.write_text(toy.results.read_text().replace('"score": 23', '"score": 29'))
    refuses(toy, measured, "was edited: its runs do not match their seal")


def refuses(toy, measured, message):
    before = toy.results.read_bytes()
    for do in (measured.runs, lambda: measured.measure(jobs=1), lambda: measured.measure(restart=True, jobs=1)):
        with pytest.raises(ValueError, match=f"results/01_toy.json .*{message}.*Take it back from git") as caught:
            do()
        assert "\n" not in str(caught.value)
    assert len(study.stale("01_toy")) == 1
    assert toy.results.read_bytes() == before and len(toy.runs()) == 6


def test_a_seed_too_many_and_a_file_without_seal(toy):
    toy.study.measure(jobs=1)
    toy.spoil(lambda content: content["runs"].append(content["runs"][0] | {"seed": 9}))
    assert study.stale("01_toy") == ["results/01_toy.json has runs with seeds that the study does not name: 9"]
    assert toy.study.values("one", "score") == [11, 11, 11]
    toy.spoil(lambda content: (content["runs"].pop(), content.pop("seal")), sealed=False)
    assert ["no seal" in problem for problem in study.stale("01_toy")] == [True]
    toy.study.measure(jobs=1)
    assert study.stale("01_toy") == [] and len(toy.runs()) == 6


def test_a_run_that_gives_no_number_does_not_enter(toy):
    toy.edit('"table": TABLE["a"]', '"table": float("inf") if seed else 1.0')
    with pytest.raises(ValueError, match=r"01_toy: arm 'one' with seed 1 gave no number for 'table' \(inf\)"):
        toy.study.measure(jobs=1)
    assert toy.stored() == [("one", 0), ("two", 0)]


# ---------------------------------------------------------------------------------------------- reading


def test_numbers(toy):
    measured = toy.study.measure(jobs=1)
    assert measured.mean("two", "score") == (22.0, 1.0)
    effect = measured.effect("one", "two", "score", scale=100)
    assert (effect.mean, effect.sd, effect.n) == (1100, 100, 3) and effect.low > 0
    table = measured.summary({"score in %": ("score", 100), "width": "width"})
    assert table["arm"] == ["one", "two"]
    assert table["score in %"] == [1100, "2200.00 ± 100.00"] and table["width"] == [1, 2]
    assert measured.rehearse("few")["two"]["score"] == 21
    assert measured.text("two", "score", decimals=1, to=lambda score: 100 - score) == "78.0 ± 1.0"
    assert measured.constant("two", "width") == 2
    with pytest.raises(ValueError, match="'score' of arm 'two' is not one value: 21, 22, 23"):
        measured.constant("two", "score")


def test_text_and_effect_are_scaled(toy):
    measured = toy.study.measure(jobs=1)
    assert measured.text("two", "score", scale=2, decimals=1) == "44.0 ± 2.0"
    once, twice = measured.effect("one", "two", "score"), measured.effect("one", "two", "score", 2)
    assert (twice.mean, twice.low) == pytest.approx((2 * once.mean, 2 * once.low)) and once.mean > 0


def test_unknown_names_list_what_there_is(toy):
    with pytest.raises(FileNotFoundError, match="results/01_toy.json is not there.*course study 01_toy"):
        toy.study.values("one", "score")
    assert study.stale("01_toy") == []
    assert study.unfinished("01_toy") == ["results/01_toy.json is unfinished: 0 of 6 runs"]
    assert toy.study.text("one", "score") == "not measured yet"
    toy.fail("error", 4)
    with pytest.raises(RuntimeError):
        toy.study.measure(jobs=1)
    with pytest.raises(KeyError, match="no arm 'three'. Its arms are: one, two"):
        toy.study.values("three", "score")
    with pytest.raises(ValueError, match="no metric 'accuracy', only score, width, table.*--restart"):
        toy.study.values("one", "accuracy")
    with pytest.raises(ValueError, match=r"'two' lacks seeds \[1\]. Measure on: ./course study 01_toy"):
        toy.study.values("two", "score", [0, 1])


def test_names_of_files(toy):
    assert study.Study("01_toy", None, {}, None).path == toy.results
    assert study.Study("01_toy", None, {}, None, name="scale").path.name == "01_toy_scale.json"


# ---------------------------------------------------------------------------------------------- the command


def test_command(toy, capsys):
    assert command("01_toy") == 0
    out = capsys.readouterr().out
    assert "results/01_toy.json: 6 runs on toy data" in out
    assert "01_toy: two, seed 2: score 23, width 2, table 1 (0 s); 6 measured, 0 to go" in out
    toy.edit("10 * width", "11 * width")
    with pytest.raises(ValueError, match="measured with other code"):
        command("01_toy")
    command("01_toy", "--restart")
    assert len(toy.runs()) == 12
    with pytest.raises(ValueError, match="no chapter '99_none'. The chapters are: 01_toy"):
        command("99_none")
    with pytest.raises(ValueError, match="no study '01_toy_long'. Those of the chapter are: 01_toy"):
        command("01_toy_long")
    with pytest.raises(ValueError, match="--jobs is the number of runs at a time, at least 1; got 0"):
        command("01_toy", jobs="0")
    toy.edit("STUDY = Study(", "ARGUMENTS = dict(chapter=")
    command("01_toy")
    assert "01_toy defines no study" in capsys.readouterr().out


def test_two_studies_of_one_name(toy):
    toy.edit("# %%\nraise", "AGAIN = Study('01_toy', train_once, {}, data)\n\n# %%\nraise")
    with pytest.raises(ValueError, match="01_toy has two studies called 01_toy"):
        study.studies("01_toy")
    toy.edit("AGAIN = Study('01_toy'", "AGAIN = Study('02_toy'")
    with pytest.raises(ValueError, match="01_toy has a study that says it is of '02_toy'"):
        study.studies("01_toy")


CLAIMS = """
from helpers.claims import Claims

CLAIMS = Claims(STUDY, "score", "score, points", matters=0.5,
    main={"two is more": ("one", "two"), "one is hardly less": ("two", "one", "Table 1", 12)},
    also={"more or less": ("two", "one")})

# %%
raise"""


def test_plan_and_pilot(toy, capsys):
    toy.edit("\n# %%\nraise", CLAIMS)
    toy.edit("    data=data,", "    data=data,\n    minutes={'one': 30, 'two': 90},\n    limit=8,")
    command("01_toy", "--plan", jobs="2")
    out = capsys.readouterr().out
    assert "01_toy: 6 runs, 6 to go; about 6.0 h of one thread, 3.0 h with 2 at a time" in out
    assert "arms: one; two" in out and "seeds: 0, 1, 2 (at most 8)" in out
    assert re.search(r"two is more +two +one +score, points +second > first +0.5", out)
    assert re.search(r"one is hardly less +one +two +score, points +second > first - 12 +0.5", out)
    assert "more or less" not in out and not toy.runs()
    command("01_toy", "--pilot")
    out = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert toy.runs() == [(1, 0), (2, 0), (1, 1), (2, 1)]  # the first two seeds
    # the differences are 10 and 11: sd 0.707, and 34 is the first n with t(n - 1) sd / sqrt(n) <= 0.25
    assert re.search(r"two is more .*\+10.50 ± 0.71 \(2 seeds.* ± 0.25 +34 +8: ± 0.59", out)
    command("01_toy", "--plan")
    assert "6 runs, 2 to go; about 0 s of one thread" in capsys.readouterr().out  # measured, no longer guessed


def test_time_left(toy, capsys):
    """By what finished runs took, per arm, and where an arm has none by what the study says."""
    toy.edit("    data=data,", "    data=data,\n    minutes={'one': 30, 'two': 90},")
    toy.study.measure(jobs=1, seeds=(0,))
    toy.spoil(lambda content: [run.update(seconds=60 * run["config"]["width"]) for run in content["runs"]])
    assert study.expected_minutes(toy.study, [("one", 1), ("two", 1), ("two", 2)]) == 5
    toy.spoil(lambda content: content["runs"].pop())
    assert study.expected_minutes(toy.study, [("one", 1), ("two", 1)]) == 91
    toy.spoil(lambda content: content["runs"][0].update(resumed=True))  # its seconds are those of the last part
    assert study.expected_minutes(toy.study, [("one", 1), ("two", 1)]) == 120


def test_the_time_left_is_said(toy, asked, monkeypatch, capsys):
    toy.edit("    data=data,", "    data=data,\n    minutes={'two': 10},")
    monkeypatch.setattr(time, "perf_counter", itertools.count(step=60).__next__)  # every run takes a minute
    toy.study.measure(jobs=2)
    ends = [line.split(" measured, ")[1] for line in capsys.readouterr().out.splitlines()]
    assert ends == [
        "5 to go, about 16.0 min left",
        "4 to go, about 2.0 min left",  # now the other arm's time is known too
        "3 to go, about 1.5 min left",
        "2 to go, about 1.0 min left",
        "1 to go, about 30 s left",
        "0 to go",
    ]


@pytest.mark.parametrize(("cores", "jobs"), [(3, 3), (100, 6)])
def test_one_job_for_each_core_unless_told_otherwise(toy, asked, monkeypatch, capsys, cores, jobs):
    toy.edit("    data=data,", "    data=data,\n    minutes=50,")
    monkeypatch.setattr(study.joblib, "cpu_count", lambda: cores)
    command("01_toy", "--plan", jobs=None)
    assert f"with {cores} at a time" in capsys.readouterr().out
    command("01_toy", jobs=None)
    assert (asked.jobs, asked.threads) == ([jobs], [1] * 6) and toy.stored() == ALL


# ---------------------------------------------------------------------------------------------- processes


@pytest.fixture
def copy(tmp_path):
    """A Toy in a copy of the project, as processes of joblib's own have to find it."""
    left_out = shutil.ignore_patterns("art", "__pycache__")
    shutil.copytree(settings.ROOT / "helpers", tmp_path / "helpers", ignore=left_out)
    shutil.copy(settings.ROOT / "tests" / "toys.py", tmp_path / "toys.py")
    toy = Toy(tmp_path)
    yield toy
    for started in toy.processes:
        started.kill()  # one that a failed test left waiting


MEASURE = "from helpers import study; study.studies('01_toy')['01_toy'].measure(jobs={jobs})"


def process(toy, command, **more):
    folder = toy.script.parents[1]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COURSE_SILENT": "1", "COURSE_CACHE": str(folder / "cache")}
    started = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=folder,
        env=environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    toy.processes.append(started)
    return started


def slow(toy, seconds):
    toy.edit("    assert type(kernel)", f"    import time\n\n    time.sleep({seconds})\n    assert type(kernel)")


def test_two_processes(copy):
    slow(copy, 0.5)
    done = process(copy, MEASURE.format(jobs=2))
    out, _ = done.communicate(timeout=300)
    assert done.returncode == 0 and "6 measured, 0 to go" in out, out
    assert copy.stored() == ALL and sorted(copy.runs()) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    processes = {line.split()[2] for line in copy.log.read_text().splitlines()}
    assert len(processes) == 2
    assert {run["made_with"]["machine"].split(", ")[1] for run in copy.content()["runs"]} == {"1 threads"}


def test_a_second_process_does_not_measure_the_same_study(copy):
    # the first run waits for a second one or for the file
    wait = "while not os.path.exists('go') and len(open(log.name).readlines()) == 1:\n        time.sleep(0.05)"
    copy.edit("    assert type(kernel)", f"    import time\n\n    {wait}\n    assert type(kernel)")
    first = process(copy, MEASURE.format(jobs=1))
    wait_for(copy.runs, first)
    out, _ = process(copy, MEASURE.format(jobs=1)).communicate(timeout=300)
    assert "ValueError: another process is measuring 01_toy; wait for it, or stop it." in out
    assert copy.runs() == [(1, 0)]
    (copy.script.parents[1] / "go").touch()
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert copy.stored() == ALL and len(copy.runs()) == 6


@pytest.mark.parametrize(("jobs", "kill"), [(1, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_kill_in_the_middle_changes_no_number(copy, jobs, kill):
    """The process is ended within a training, after a checkpoint; resumed, it gives what an uninterrupted one gives."""
    copy.train()
    # in the package itself, so that joblib's processes have it too
    often = "from helpers import train\nkeep = train.checkpoints\ntrain.checkpoints = lambda folder: keep(folder, 0)"
    folder = copy.script.parents[1]
    (folder / "helpers" / "__init__.py").write_text(often)
    hold = copy.log.with_suffix(".hold")
    hold.touch()
    running = process(copy, MEASURE.format(jobs=jobs))
    wait_for(lambda: len(copy.steps()) == 24 + 6 * jobs and copy.results.exists() and len(copy.stored()) == 2, running)
    os.kill(running.pid, kill)
    running.communicate(timeout=300)
    assert running.returncode != 0 and copy.stored() == [("one", 0), ("two", 0)]
    started = len(copy.steps())
    hold.unlink()
    anew = f"; import os; os.rename({str(copy.results)!r}, 'resumed.json'); "
    done = process(copy, MEASURE.format(jobs=jobs) + anew + MEASURE.format(jobs=jobs))
    out, _ = done.communicate(timeout=300)
    assert done.returncode == 0, out
    resumed, whole = json.loads((folder / "resumed.json").read_text())["runs"], copy.content()["runs"]
    assert [run["metrics"] for run in whole] == [run["metrics"] for run in resumed]
    assert sum(run.get("resumed", False) for run in resumed) == jobs and not any(run.get("resumed") for run in whole)
    # seven of twelve steps are left where a run was cut off, none where it was stored, and twelve are measured anew
    left = {(1, 0): 12, (2, 0): 12, (1, 1): 7 + 12, (2, 1): (7 if jobs == 2 else 12) + 12}
    assert Counter(copy.steps()[started:]) == left
    assert not list((folder / "cache").rglob("*.checkpoint"))


def wait_for(condition, running, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None and time.monotonic() < end, running.communicate(timeout=5)[0]
        time.sleep(0.05)


DASK = """
import os, signal, threading, time
from distributed import LocalCluster
from helpers import study

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        def kill_one():
            while not os.path.exists("log"):
                time.sleep(0.05)
            os.kill(int(open("log").read().split()[2]), signal.SIGKILL)

        threading.Thread(target=kill_one, daemon=True).start()
        study.studies("01_toy")["01_toy"].measure(dask=cluster.scheduler_address)
"""


def test_on_dask_a_lost_workers_runs_are_done_again(copy):
    slow(copy, 0.5)
    script = copy.script.parents[1] / "on_dask.py"
    script.write_text(DASK)
    done = process(copy, f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    out, _ = done.communicate(timeout=300)
    assert done.returncode == 0, out
    assert copy.stored() == ALL
    runs = copy.runs()
    assert sorted(set(runs)) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert 7 <= len(runs) <= 8  # those that the killed worker had, and no other
    assert [run["metrics"]["score"] for run in copy.content()["runs"]] == [11, 11, 11, 21, 22, 23]


def test_a_worker_with_other_code_is_refused(toy):
    with pytest.raises(ValueError, match="has other code of 01_toy; give it the same checkout"):
        study._one_run("01_toy", "01_toy", "0" * 16, None, 0, "one", 0)


# ---------------------------------------------------------------------------------------------- other chapters

OTHER = {"02_other": "OFFSET = 1\nUNUSED = 2\ndef more(x):\n    return x + OFFSET\ndef rest(x):\n    return x\n"}
WAYS = {
    "directly": "def f(x):\n    return chapter('02_other').more(x)\n",
    "by an alias": "other = chapter('02_other')\ndef f(x):\n    return other.more(x)\n",
    "by one of two": "a, b = chapter('01_a'), chapters.chapter('02_other')\ndef f(x):\n    return b.more(x)\n",
    "by a name": "take = chapter('02_other').more\ndef f(x):\n    return take(x)\n",
    "within the function": "def f(x):\n    other = chapter('02_other')\n    return other.more(x)\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_the_hash_follows_into_other_chapters(way):
    def code(old="", new=""):
        return study.code_in(WAYS[way], "f", lambda name: OTHER[name].replace(old, new))

    assert code("OFFSET = 1", "OFFSET = 2") != code() and code("x + OFFSET", "x - OFFSET") != code()
    assert code("UNUSED = 2", "UNUSED = 3") == code() and code("    return x\n", "    return 2 * x\n") == code()


def test_a_change_in_another_chapter_makes_a_study_stale(toy):
    other = toy.script.with_name("02_other.py")
    other.write_text('# %% tags=["model"]\ndef grow(x):\n    return 10 * x\n')
    toy.edit("more(10 * width", "more(chapter('02_other').grow(width)")
    toy.edit("import os\n", "import os\n\nfrom helpers.chapters import chapter\n")
    toy.study.measure(jobs=1)
    assert study.stale("01_toy") == []
    other.write_text(other.read_text().replace("10 * x", "11 * x"))
    chapters.chapter.cache_clear()
    assert ["other code" in problem for problem in study.stale("01_toy")] == [True]

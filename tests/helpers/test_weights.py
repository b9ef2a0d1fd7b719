"""Weights that are trained once: what the file holds, what is refused, and what makes it stale."""

import argparse
import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toys import weights as vector

from helpers import chapters, train, weights

CHAPTER = """\
# %% tags=["model"]
import os
from dataclasses import replace

from toys import red_or_blue, small_network

from helpers import train
from helpers.weights import Weights

STEPS = 20


def build():
    return small_network(width=4)


def data():
    toy = red_or_blue()
    return replace(toy, provenance=replace(toy.provenance, real=not os.environ.get("TOY_STANDIN")))


def learn(model, data):
    if os.environ.get("TOY_FAIL"):
        raise KeyboardInterrupt
    history = train.fit(model, data, epochs=STEPS, batch_size=32, lr=0.05, augment=train.no_augment)
    return {"test_accuracy": history.last("test_accuracy")}


TEACHER = Weights("01_toy", name="teacher", build=build, train=learn, data=data)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "FOLDER", tmp_path / "chapters")
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    monkeypatch.setenv("COURSE_SILENT", "1")
    for variable in ("TOY_STANDIN", "TOY_FAIL"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "chapters/01_toy.py"
    path.parent.mkdir()
    path.write_text(CHAPTER)
    yield path
    chapters.chapter.cache_clear()
    sys.modules.pop("chapter_01_toy", None)


def command(*more):
    parser = argparse.ArgumentParser()
    weights.add_arguments(parser)
    weights.command(parser.parse_args(["01_toy", *more]))


def teacher():
    chapters.chapter.cache_clear()
    return chapters.chapter("01_toy").TEACHER


def test_what_was_trained_can_be_loaded(script):
    made = teacher().make()
    model = teacher().load()
    assert not model.training and next(model.parameters()).dtype == torch.float32
    accuracy = train.evaluate(model, chapters.chapter("01_toy").data())["test_accuracy"]
    assert accuracy == made.record["metrics"]["test_accuracy"] > 0.9
    untrained = chapters.chapter("01_toy").build()
    assert not torch.allclose(vector(model), vector(untrained), atol=1e-2)
    assert {tensor.dtype for tensor in load_file(made.path).values()} == {torch.float16, torch.int64}
    assert made.record["data"].startswith("toy")
    assert set(made.record["made_with"]) == {"date", "torch", "python", "machine"}
    assert weights.stale("01_toy") == []


def test_the_same_code_gives_the_same_weights(script):
    first = vector(teacher().make().load())
    assert torch.equal(vector(teacher().make().load()), first)


def test_the_standin_is_refused(script, monkeypatch):
    monkeypatch.setenv("TOY_STANDIN", "1")
    with pytest.raises(ValueError, match="must be trained on real data"):
        teacher().make()
    assert not teacher().path.exists()


def test_a_large_file_is_refused_and_nothing_is_left(script, monkeypatch):
    monkeypatch.setattr(weights, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 0.0001 MB"):
        teacher().make()
    assert list(weights.FOLDER.iterdir()) == []


def test_an_interrupted_training_keeps_the_old_file(script, monkeypatch, capsys):
    before = teacher().make().path.read_bytes()
    monkeypatch.setenv("TOY_FAIL", "1")
    with pytest.raises(KeyboardInterrupt):
        command("--restart")
    assert teacher().path.read_bytes() == before


def test_what_is_missing_says_how_to_make_it(script):
    for use in (lambda: teacher().load(), lambda: teacher().record):
        with pytest.raises(FileNotFoundError, match="./course weights 01_toy"):
            use()
    assert weights.stale("01_toy") == ["weights/01_toy_teacher.safetensors is missing (./course weights 01_toy)"]


@pytest.mark.parametrize("change", [("STEPS = 20", "STEPS = 21"), ("width=4", "width=5"), ("lr=0.05", "lr=0.04")])
def test_other_code_is_stale(script, change):
    teacher().make()
    script.write_text(CHAPTER.replace(*change))
    chapters.chapter.cache_clear()
    assert weights.stale("01_toy") == [
        "weights/01_toy_teacher.safetensors was trained with other code (./course weights 01_toy --restart)"
    ]


def test_comments_and_data_functions_are_not_other_code(script):
    teacher().make()
    script.write_text(CHAPTER.replace("STEPS = 20", "STEPS = 20  # enough"))
    chapters.chapter.cache_clear()
    assert weights.stale("01_toy") == []


def test_command(script, capsys):
    command()
    assert "weights/01_toy_teacher.safetensors: test_accuracy" in capsys.readouterr().out
    before = teacher().path.stat().st_mtime_ns
    command()
    assert teacher().path.stat().st_mtime_ns == before, "what is there is not trained again"
    script.write_text(CHAPTER.split("TEACHER")[0])
    chapters.chapter.cache_clear()
    command()
    assert "01_toy declares no weights" in capsys.readouterr().out


def test_the_record_is_plain_json_in_the_file(script):
    with safe_open(teacher().make().path, "pt") as file:
        assert json.loads(file.metadata()["course"])["weights"] == "01_toy_teacher"


def test_one_of_several_networks(script, capsys):
    script.write_text(f'{CHAPTER}\nSTUDENT = Weights("01_toy", name="student", build=build, train=learn, data=data)\n')
    chapters.chapter.cache_clear()
    command("student")
    assert [path.name for path in weights.FOLDER.iterdir()] == ["01_toy_student.safetensors"]
    with pytest.raises(ValueError, match="has no weights named 'pupil'. Use one of teacher, student"):
        command("pupil")

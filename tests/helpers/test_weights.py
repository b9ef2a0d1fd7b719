"""Weights that are trained once: what the file holds, what is refused, and what makes it stale."""

import argparse
import json
import resource
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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
    assert not weights.FOLDER.exists()


def test_a_full_disk_keeps_the_old_file_and_names_it(script):
    path = teacher().make().path
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            teacher().make()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and list(weights.FOLDER.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(script):
    weights.FOLDER.write_text("a file in its place")
    with pytest.raises(OSError, match="exists") as caught:
        teacher().make()
    assert caught.value.filename == str(teacher().path)


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


def truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def rewritten(path, tensors, **change):
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["course"]) | change
    save_file(tensors, path, metadata={"course": json.dumps({k: v for k, v in record.items() if v is not None})})


def renamed(path):
    tensors = load_file(path)
    tensors["0.weight"], tensors["6.weight"] = tensors["6.weight"], tensors["0.weight"]
    rewritten(path, tensors)


def unsealed(path):
    rewritten(path, load_file(path), checksum=None)


def by_another_program(path):
    save_file(load_file(path), path)


DAMAGES = {
    truncated: "cannot be read (SafetensorError",
    emptied: "cannot be read (SafetensorError",
    by_another_program: "cannot be read (TypeError",
    flipped: "is damaged: its numbers do not match their checksum",
    renamed: "is damaged: its numbers do not match their checksum",
    unsealed: "has no checksum",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_named_with_its_cure(script, damage):
    script.write_text(f'{CHAPTER}\nSTUDENT = Weights("01_toy", name="student", build=build, train=learn, data=data)\n')
    damage(teacher().make().path)
    first, second = weights.stale("01_toy")
    assert first.startswith(f"weights/01_toy_teacher.safetensors {DAMAGES[damage]}")
    assert "git checkout -- weights/01_toy_teacher.safetensors" in first
    assert "./course weights 01_toy teacher --restart" in first and "student.safetensors is missing" in second
    with pytest.raises(ValueError, match=r"01_toy_teacher.*--restart"):
        teacher().load()
    command("teacher", "--restart")
    assert weights.stale("01_toy") == [second]


def test_the_checksum_is_of_names_types_shapes_and_numbers():
    halves = torch.arange(6).half()
    found = weights.checksum({"a": halves, "b": halves[:1]})
    assert weights.checksum({"b": halves[:1], "a": halves}) == found
    for first in (halves.flip(0), halves.view(2, 3), halves.view(torch.int16)):
        assert weights.checksum({"a": first, "b": halves[:1]}) != found
    assert weights.checksum({"a": halves, "c": halves[:1]}) != found


def test_a_chapter_that_cannot_be_read_leaves_the_weights_of_others_alone(script):
    teacher().make()
    script.with_name("02_broken.py").write_text('# %% tags=["model"]\ndef half(:\n')
    assert weights.stale("01_toy") == [] and [each.name for each in weights.weights("01_toy")] == ["teacher"]
    with pytest.raises(SyntaxError):
        weights.stale("02_broken")


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

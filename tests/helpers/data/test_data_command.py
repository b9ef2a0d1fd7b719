"""`./course data`: what it says is true, and what goes wrong is one line."""

import shutil

import pytest
from PIL import Image

from helpers.data.commands import main


def test_the_command_tells_what_is_here(slices, folder, capsys, tmp_path):
    assert main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("cifar10") and "not here" in said[0] and "./course data fetch cifar10" in said[0]
    assert "2 GB" in said[1]
    assert said[2] == f"isbi2012  ISBI 2012, 25 + 5 images: slices in {folder / 'isbi2012'}"
    assert "COURSE_SOURCE=auto" in said[3] and f"COURSE_DATA={folder};" in said[3]
    assert said[3].endswith(f"downloads and prepared arrays: {tmp_path / 'cache'}")


def test_the_command_counts_without_reading(batches, voc, sheets, capsys, monkeypatch):
    shutil.rmtree(batches / "cifar-10-batches-py")
    for module in ("sheets", "devkit"):
        monkeypatch.setattr(f"helpers.data.{module}.pixels", lambda *_: pytest.fail("decoded"))
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "CIFAR-10, 40 + 10 images: contact sheets" in said and "animals, 1 + 1 images: VOC devkit" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "mnist"], "cifar10, voc2012, isbi2012"),
        (["fetch", "isbi2012"], "isbi2012/image/00.png"),
        (["pack", "carried"], "nothing to pack"),
        (["pack", "carried", "--longer-side", "8"], "at least 32"),
    ],
)
def test_the_command_explains_itself_without_a_traceback(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert words in said.err and said.out == "" and not (tmp_path / "carried").exists()


def empty_batches(folder):
    (folder / "cifar-10-batches-py").mkdir()
    return "cifar10   cannot be used. CIFAR-10: cifar-10-batches-py is incomplete"


def empty_sheets(folder):
    (folder / "cifar10/train").mkdir(parents=True)
    return "cifar10   cannot be used. CIFAR-10: cifar10/train/airplane.webp (or .png) is missing"


def lossy_sheet(folder):
    (folder / "cifar10/train").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "cifar10/train/airplane.webp", quality=50)
    return "cifar10   cannot be used. CIFAR-10: cifar10/train/airplane.webp was compressed with loss"


def empty_devkit(folder):
    (folder / "VOCdevkit/VOC2012").mkdir(parents=True)
    return "voc2012   cannot be used. VOC 2012: ImageSets/Main/train.txt is missing"


@pytest.mark.parametrize("damage", [empty_batches, empty_sheets, lossy_sheet, empty_devkit])
def test_a_damaged_set_is_not_counted_and_hides_no_other(slices, folder, capsys, damage):
    words = damage(folder)
    assert main([]) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 4 and words in said and "ISBI 2012, 25 + 5 images: slices" in said


def test_missing_photographs_and_masks_are_not_counted(voc, slices, capsys):
    (voc.root / "JPEGImages/val_dog.jpg").unlink()
    (slices / "label/07.png").unlink()
    assert main([]) == 1
    said = capsys.readouterr().out
    assert "JPEGImages/val_dog.jpg is missing" in said and "isbi2012/label/07.png is missing" in said


def test_batches_are_counted_when_their_checksums_are_right(batches, capsys, monkeypatch):
    assert main([]) == 0 and "CIFAR-10, 50,000 + 10,000 images: official batches" in capsys.readouterr().out
    (batches / "cifar-10-batches-py/data_batch_2").unlink()
    assert main([]) == 1 and "incomplete" in capsys.readouterr().out


def test_fetch_does_not_call_a_damaged_set_present(folder, capsys):
    empty_batches(folder)
    assert main(["fetch", "cifar10"]) == 1
    said = capsys.readouterr()
    assert "incomplete" in said.err and said.out == ""


def test_the_folder_to_pack_into_is_the_callers(slices, tmp_path, monkeypatch):
    (tmp_path / "caller").mkdir()
    monkeypatch.setenv("COURSE_CALLER", str(tmp_path / "caller"))
    assert main(["pack", "carried"]) == 0
    assert (tmp_path / "caller/carried/isbi2012/image/00.png").exists()
    assert main(["pack", "~nobody-of-that-name/x"]) == 1

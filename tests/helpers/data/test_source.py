"""Where data come from: the reader's folder, downloads, the stand-in, and what each says."""

import sys

import pytest
from datafiles import TinyVOC

from helpers import data
from helpers.data import download, standin
from helpers.data.commands import SOURCES
from helpers.data.sheets import Sheets


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_):
        raise AssertionError("a download nobody asked for")

    monkeypatch.setattr(download, "fetch", refuse)


def test_auto_draws_and_says_so_once(no_download, capsys, tmp_path):
    dataset = data.cifar10(train=20, test=10)
    said = capsys.readouterr().out
    assert said.startswith("Drawn stand-in, not CIFAR-10.") and "./course data fetch cifar10" in said
    assert str(tmp_path) not in said and said.count("\n") == 1
    assert str(dataset.provenance) == "drawn stand-in for CIFAR-10, seed 0, 20 + 10 images"
    assert not dataset.provenance.real
    data.cifar10(train=20, test=10)
    assert capsys.readouterr().out == ""
    data.voc_animals(32, train=2, test=2)
    assert "fetch voc2012" in capsys.readouterr().out


def test_the_banner_says_when_the_readers_folder_lacks_them(no_download, folder, capsys):
    data.cifar10(train=10, test=10)
    assert "not in the folder of COURSE_DATA either" in capsys.readouterr().out


def test_the_banner_is_html_in_a_notebook(no_download, monkeypatch, capsys):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda *bundles, raw: shown.extend(bundles))
    data.cifar10(train=10, test=10)
    assert "<strong>Drawn stand-in, not CIFAR-10.</strong>" in shown[0]["text/html"]
    assert "fetch cifar10" in shown[0]["text/plain"] and capsys.readouterr().out == ""


def test_standin_draws_even_where_real_data_are(batches, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    dataset = data.cifar10(train=20, test=10)
    assert not dataset.provenance.real
    assert "COURSE_SOURCE=standin" in capsys.readouterr().out
    train, labels, test, _ = standin.cifar10(20, 10)
    assert (dataset.train.images.numpy() == train).all() and (dataset.train.targets.numpy() == labels).all()
    assert (dataset.test.images.numpy() == test).all()


def test_drawn_animals_have_the_layout_of_the_real_ones(voc, monkeypatch):
    real = data.voc_animals(32)
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    drawn = data.voc_animals(32, train=3, test=2)
    assert str(drawn.provenance) == "drawn stand-in for PASCAL VOC 2012 animals, seed 0, 3 + 2 images at 32 px"
    assert drawn.classes == real.classes
    for key, value in real.train.targets.items():
        assert drawn.train.targets[key].dtype == value.dtype and drawn.train.targets[key].ndim == value.ndim


def test_drawn_cells_stand_in_for_the_slices(capsys):
    dataset = data.isbi2012(size=32)
    assert str(dataset.provenance) == "drawn stand-in for ISBI 2012, seed 0, 25 + 5 images"
    assert "isbi2012/image/00.png" in capsys.readouterr().out
    assert dataset.train.images.shape == (25, 1, 32, 32)


def test_the_standin_has_default_numbers_and_a_limit(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    monkeypatch.setattr(sys.modules["helpers.data.cifar10"], "DRAWN", (30, 20))
    dataset = data.cifar10()
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    with pytest.raises(ValueError, match="train=50,001 .* draws: 50,000"):
        data.cifar10(train=50_001)


def test_real_downloads_what_is_missing_and_says_when_it_cannot(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "real")
    asked = []
    monkeypatch.setattr(download, "fetch", lambda archive, folder: asked.append(archive.file))
    monkeypatch.setattr(Sheets, "read", lambda self: pytest.fail("nothing is here"))
    SOURCES["cifar10"].real()
    SOURCES["voc2012"].real()
    assert asked == ["cifar-10-python.tar.gz", "VOCtrainval_11-May-2012.tar"]
    with pytest.raises(FileNotFoundError, match="isbi2012/image/00.png.*COURSE_DATA"):
        data.isbi2012()


def test_unknown_names_list_the_valid_ones():
    for ask in (data.fetch, data.find):
        with pytest.raises(ValueError, match="'mnist'. Use one of: cifar10, voc2012, isbi2012"):
            ask("mnist")


def test_a_missing_folder_is_not_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="COURSE_DATA"):
        data.cifar10()


def test_an_unknown_source_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "reel")
    with pytest.raises(ValueError, match="auto, real, standin"):
        data.cifar10()


def snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


def test_nothing_is_written_into_the_readers_folder(batches, slices):
    TinyVOC(batches)
    before = snapshot(batches)
    for path in [*batches.rglob("*"), batches]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert all(d.provenance.real for d in (data.cifar10(), data.voc_animals(32), data.isbi2012()))
        data.status()
    finally:
        for path in [batches, *batches.rglob("*")]:
            path.chmod(0o755)
    assert snapshot(batches) == before


def moved(folder, monkeypatch, place):
    monkeypatch.setenv("COURSE_DATA", str(folder / place))


CIFAR_KAGGLE = "Kaggle, one picture a file, is not read: cifar-10-batches-py/ is"


@pytest.mark.parametrize(
    ("name", "here", "root", "words"),
    [
        ("voc2012", "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012", "holds VOCdevkit/, 2 up"),
        ("voc2012", "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit", "holds VOCdevkit/, 1 up"),
        ("cifar10", "cifar-10-batches-py", "cifar-10-batches-py", "holds cifar-10-batches-py/, 1 up"),
        ("isbi2012", "isbi2012/image", "isbi2012/image", "holds isbi2012/, 2 up"),
        ("voc2012", "VOCtrainval/VOCdevkit/VOC2012", "", "one level deeper, in VOCtrainval/: set COURSE_DATA"),
        ("voc2012", "archive/VOC2012_train_val/VOC2012_train_val/JPEGImages", "", "must be called VOCdevkit/VOC2012"),
        ("voc2012", "VOC2012/JPEGImages", "", "must be called VOCdevkit/VOC2012"),
        ("cifar10", "train.7z", "", CIFAR_KAGGLE),
        ("cifar10", "cifar-10/trainLabels.csv", "", CIFAR_KAGGLE),
        ("cifar10", "pictures/train/airplane/", "", CIFAR_KAGGLE),
        ("cifar10", "data_batch_1", "", "must be called cifar-10-batches-py, and COURSE_DATA holds it"),
        ("cifar10", "cifar-10-python.tar.gz", "", r"still packed: unpack it there \(tar -xf cifar-10-python.tar.gz"),
        ("voc2012", "VOCtrainval_11-May-2012.tar", "", "still packed"),
        ("isbi2012", "train-volume.tif", "", "save each of its pages"),
        ("cifar10", "other", "", None),
        ("voc2012", "VOCdevkit/VOC2012", "", None),
    ],
)  # fmt: skip
def test_a_folder_that_almost_holds_the_data_gets_a_hint(folder, monkeypatch, name, here, root, words):
    import re

    path = folder / here
    if path.suffix or name == "cifar10" and path.name == "data_batch_1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    else:
        path.mkdir(parents=True)
    monkeypatch.setenv("COURSE_DATA", str(folder / root))
    hint = SOURCES[name].hint()
    assert re.search(words, hint) if words else hint == ""
    assert str(folder) not in hint


def test_the_banner_and_a_download_begin_with_the_hint(no_download, folder, monkeypatch, capsys):
    (folder / "train.7z").write_bytes(b"")
    data.cifar10(train=10, test=10)
    assert "with the paper. The layout of Kaggle" in capsys.readouterr().out
    monkeypatch.setattr(download, "fetch", lambda *_: None)
    data.fetch("cifar10")
    assert capsys.readouterr().out.startswith("The layout of Kaggle")


def test_without_a_home_the_drawn_data_are_drawn_all_the_same(monkeypatch, folder):
    monkeypatch.setenv("COURSE_CACHE", "~nobody-of-that-name/cache")
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    assert len(data.cifar10(train=10, test=10).train) == 10
    monkeypatch.setenv("COURSE_SOURCE", "auto")
    with pytest.raises(FileNotFoundError, match="COURSE_CACHE='~nobody-of-that-name/cache'.*Write the whole path"):
        data.cifar10(train=10, test=10)

"""The drawn stand-in: deterministic, exact in its labels, boxes and masks, readable by the real data sets' readers."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, VOCDetection, VOCSegmentation

from helpers.data import classes, standin
from helpers.data.standin import draw, rng, scenes, sprites
from helpers.settings import ROOT


def digest(*arrays):
    code = hashlib.sha256()
    for array in arrays:
        code.update(np.ascontiguousarray(array))
    return code.hexdigest()[:16]


@pytest.fixture(scope="module")
def small_cifar():
    return standin.cifar10(400, 200, seed=0)


@pytest.fixture(scope="module")
def small_voc():
    return standin.voc_animals(24, 12, size=96, seed=0)


@pytest.fixture(scope="module")
def drawn_scenes():
    return list(scenes.scenes(60, "train", size=96))


# Labels, boxes and masks are compared exactly; images with a tolerance, because a processor may round sines, powers
# and sums of products differently in the last bit, which moves a value by one level here and there.


def test_cifar_is_the_same_everywhere(small_cifar):
    train_images, train_labels, test_images, test_labels = small_cifar
    assert digest(train_labels, test_labels) == "bced4480a09d1c6a"
    assert train_images.mean((0, 2, 3)) == pytest.approx([130.387, 131.323, 126.992], abs=0.02)
    assert test_images.std((0, 2, 3)) == pytest.approx([56.050, 52.869, 59.291], abs=0.02)
    pixels = [[31, 37, 24, 31], [21, 25, 31, 40], [22, 44, 106, 74], [23, 67, 167, 36]]
    np.testing.assert_allclose(train_images[7, 0, ::8, ::8].astype(int), pixels, atol=2)


def test_voc_is_the_same_everywhere(small_voc):
    train, val = small_voc
    assert digest(train["labels"], val["labels"]) == "39b275dd5f25d0ac"
    assert digest(train["boxes"], val["boxes"]) == "78dbeae0a14a08eb"
    assert digest(train["masks"], val["masks"]) == "9941bad78988acf5"
    assert train["images"].mean((0, 2, 3)) == pytest.approx([151.503, 145.726, 152.074], abs=0.02)
    assert val["images"].std((0, 2, 3)) == pytest.approx([61.434, 52.667, 51.670], abs=0.02)


def test_two_calls_agree(small_cifar, small_voc):
    for first, second in zip(small_cifar, standin.cifar10(400, 200, seed=0), strict=True):
        np.testing.assert_array_equal(first, second)
    for first, second in zip(small_voc, standin.voc_animals(24, 12, size=96, seed=0), strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_an_image_depends_neither_on_the_batch_nor_on_the_number_of_images(monkeypatch, small_cifar, small_voc):
    monkeypatch.setattr(draw, "BATCH", 7)
    monkeypatch.setattr(scenes, "BATCH", 5)
    for whole, part in zip(small_cifar, standin.cifar10(33, 16, seed=0), strict=True):
        np.testing.assert_array_equal(whole[: len(part)], part)
    for whole, part in zip(small_cifar, standin.cifar10(1, 0, seed=0), strict=True):
        np.testing.assert_array_equal(whole[: len(part)], part)
    for whole, part in zip(small_voc, standin.voc_animals(9, 7, size=96, seed=0), strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key][: len(part[key])], part[key])


def test_seeds_splits_and_styles_differ(small_cifar, small_voc):
    other = standin.cifar10(400, 200, seed=1)
    assert (small_cifar[1] != other[1]).mean() > 0.8
    assert abs(small_cifar[0].astype(int) - other[0]).mean() > 20
    assert abs(small_cifar[0][:200].astype(int) - small_cifar[2]).mean() > 20
    for style in ("fluent", "openclipart"):
        train, _, held_out, _ = standin.cifar10(10, 200, seed=0, test_style=style)
        np.testing.assert_array_equal(train, small_cifar[0][:10])
        assert abs(held_out.astype(int) - small_cifar[2]).mean() > 20
    train, val = standin.voc_animals(12, 12, size=96, seed=1)
    assert digest(train["masks"]) != digest(small_voc[0]["masks"][:12])
    assert digest(small_voc[0]["masks"][:12]) != digest(small_voc[1]["masks"])
    assert digest(val["masks"]) != digest(standin.voc_animals(0, 12, 96, 1, test_style="fluent")[1]["masks"])


def test_cifar_shapes_types_and_balance(small_cifar):
    train_images, train_labels, test_images, test_labels = small_cifar
    assert train_images.shape == (400, 3, 32, 32) and test_images.shape == (200, 3, 32, 32)
    assert train_images.dtype == test_images.dtype == np.uint8
    assert train_labels.dtype == test_labels.dtype == np.int64
    for labels in (train_labels, test_labels):
        blocks = labels.reshape(-1, 10)
        np.testing.assert_array_equal(np.sort(blocks), np.tile(np.arange(10), (len(blocks), 1)))
        assert len({tuple(block) for block in blocks}) > 0.9 * len(blocks)  # not one order for all
    assert train_images.min() == 0 and train_images.max() == 255
    assert train_images.std((1, 2, 3)).min() > 3  # no empty picture
    assert 35 < train_images.std() < 75


def test_the_label_is_that_of_the_drawing():
    labels = np.arange(10).repeat(50)
    for styles in standin.STYLES.values():
        random = rng.Random(0, "test", range(500))
        chosen = sprites.choose(random, labels, classes.CIFAR10_CLASSES, styles)
        rows = [sprites.manifest()["sprites"][i] for i in chosen]
        assert [row[0] for row in rows] == [classes.CIFAR10_CLASSES[label] for label in labels]
        assert {row[1] for row in rows} == set(styles)


def test_scenes_have_the_shapes_and_types_of_voc_animals(small_voc):
    for part, n in zip(small_voc, (24, 12), strict=True):
        assert {key: (value.shape, value.dtype) for key, value in part.items()} == {
            "images": ((n, 3, 96, 96), np.uint8),
            "boxes": ((n, 4, 4), np.float32),
            "labels": ((n, 4), np.int64),
            "masks": ((n, 96, 96), np.uint8),
            "has_mask": ((n,), bool),
            "has_person": ((n,), bool),
        }
        assert part["has_mask"].all()
        assert set(np.unique(part["masks"])) == {0, 1, 2, 3, 4, 5, 255}
        assert part["images"].std((1, 2, 3)).min() > 3
        labels, boxes = part["labels"], part["boxes"]
        there = labels >= 0
        assert there[:, 0].all() and not (there[:, 1:] & ~there[:, :-1]).any()  # at least one; padding comes last
        assert set(np.unique(labels)) == {-1, 0, 1, 2, 3, 4}
        assert (boxes[~there] == 0).all()
        assert (boxes[there] >= 0).all() and (boxes[there] <= 96).all()
        assert (boxes[there][:, 2:] > boxes[there][:, :2]).all()


def test_a_single_animal_fills_its_box(small_voc):
    """Seen from the arrays alone: the box is the extent of the mask, but for the void border one pixel wide."""
    train, _ = small_voc
    alone = [i for i in range(24) if (train["labels"][i] >= 0).sum() == 1]
    assert len(alone) >= 4
    for i in alone:
        x0, y0, x1, y1 = train["boxes"][i, 0]
        rows, columns = np.nonzero(train["masks"][i] == 1 + train["labels"][i, 0])
        assert x0 <= columns.min() <= x0 + 3 and x1 - 3 <= columns.max() + 1 <= x1
        assert y0 <= rows.min() <= y0 + 3 and y1 - 3 <= rows.max() + 1 <= y1


def test_boxes_are_the_extents_of_what_is_visible(drawn_scenes, small_voc):
    for scene in drawn_scenes:
        assert set(np.unique(scene.instances)) - {0} == set(range(1, len(scene.things) + 1))
        for number, thing in enumerate(scene.things, 1):
            rows, columns = np.nonzero(scene.instances == number)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for scene, boxes, labels in zip(drawn_scenes, small_voc[0]["boxes"], small_voc[0]["labels"], strict=False):
        animals = [thing for thing in scene.things if thing.name in classes.VOC_ANIMALS]
        assert [classes.VOC_ANIMALS[label] for label in labels if label >= 0] == [thing.name for thing in animals]
        np.testing.assert_array_equal(boxes[: len(animals)], [thing.box for thing in animals])


def test_masks_are_void_exactly_where_instances_meet(drawn_scenes):
    share = []
    for scene in drawn_scenes:
        wide = np.pad(scene.instances, 1, mode="edge")
        neighbours = (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:])
        meets = np.any([neighbour != scene.instances for neighbour in neighbours], axis=0)
        np.testing.assert_array_equal(scene.mask == 255, meets)
        names = ["", *(thing.name for thing in scene.things)]
        for number in range(len(names)):
            expected = 0 if number == 0 else 1 + classes.VOC_CLASSES.index(names[number])
            assert (scene.mask[(scene.instances == number) & ~meets] == expected).all()
        share.append(meets.mean())
    assert 0.02 < np.mean(share) < 0.1


def test_scenes_are_crowded_truncated_and_occluded(drawn_scenes):
    animals = [[thing for thing in scene.things if thing.name in classes.VOC_ANIMALS] for scene in drawn_scenes]
    assert {len(group) for group in animals} == {1, 2, 3, 4}
    things = [thing for scene in drawn_scenes for thing in scene.things]
    for flag in ("truncated", "occluded", "difficult"):
        assert 0 < sum(getattr(thing, flag) for thing in things) < 0.6 * len(things)
    assert not any(thing.difficult for group in animals for thing in group)
    assert len({thing.name for thing in things} - set(classes.VOC_ANIMALS)) >= 3
    # What touches the rim may be cut off; what does not touch it cannot be.
    assert all(min(thing.box[:2]) == 0 or max(thing.box[2:]) == 96 for thing in things if thing.truncated)


@pytest.mark.parametrize("size", [32, 160, 320])
def test_scenes_of_other_sizes(size):
    train, val = standin.voc_animals(6, 0, size=size)
    assert train["images"].shape == (6, 3, size, size) and val["images"].shape == (0, 3, size, size)
    assert (train["labels"] >= 0).any(1).all()
    assert train["boxes"].max() <= size


def test_an_animal_that_fits_nowhere_else_is_put_at_the_centre(monkeypatch):
    monkeypatch.setattr(scenes, "TRIES", 1)  # the last resort alone
    for scene in scenes.scenes(30, "train", size=64):
        animals = [thing.box for thing in scene.things if thing.name in classes.VOC_ANIMALS]
        assert animals
        x0, y0, x1, y1 = animals[0]
        assert abs((x0 + x1) / 2 - 32) < 10 and abs((y0 + y1) / 2 - 32) < 10


def border_colour_explained_by_class(images, labels):
    """Share of the variance of the mean colour along the rim that the class explains; 9 / (N - 1) by chance."""
    rim = np.concatenate([images[:, :, :2].mean((2, 3)), images[:, :, -2:].mean((2, 3))], 1)
    between = sum((labels == c).mean() * (rim[labels == c].mean(0) - rim.mean(0)) ** 2 for c in range(10))
    return (between / rim.var(0)).max()


def test_the_background_tells_the_class_only_with_context():
    plain = standin.cifar10(1500, 0)
    betrayed = standin.cifar10(1500, 1500, context=0.5, test_context=0.0)
    assert border_colour_explained_by_class(*plain[:2]) < 0.025
    assert border_colour_explained_by_class(*betrayed[:2]) > 0.06
    assert border_colour_explained_by_class(*betrayed[2:]) < 0.025
    np.testing.assert_array_equal(plain[1], betrayed[1])


class DrawnCIFAR10(CIFAR10):
    """torchvision's reader without the checksums of the official files."""

    train_list = [(name, None) for name, _ in CIFAR10.train_list]
    test_list = [(name, None) for name, _ in CIFAR10.test_list]
    meta = {**CIFAR10.meta, "md5": None}


def test_torchvision_reads_the_written_cifar(tmp_path, small_cifar):
    folder = standin.write_cifar10(tmp_path, 53, 20, seed=0)
    assert folder == tmp_path / "cifar-10-batches-py"
    for train, images, labels in ((True, *small_cifar[:2]), (False, *small_cifar[2:])):
        read = DrawnCIFAR10(tmp_path, train=train)
        n = 53 if train else 20
        assert tuple(read.classes) == classes.CIFAR10_CLASSES
        np.testing.assert_array_equal(read.data, images[:n].transpose(0, 2, 3, 1))
        assert read.targets == labels[:n].tolist()


def test_torchvision_reads_the_written_voc(tmp_path, small_voc):
    folder = standin.write_voc(tmp_path, 6, 4, size=96, seed=0, mask_every=2)
    assert folder == tmp_path / "VOCdevkit" / "VOC2012"
    for split, n, arrays in (("train", 6, small_voc[0]), ("val", 4, small_voc[1])):
        expected = list(scenes.scenes(n, split, size=96))
        detection = VOCDetection(tmp_path, "2012", split, download=False)
        assert len(detection) == n
        for i, scene in enumerate(expected):
            image, annotation = detection[i]
            assert abs(np.asarray(image).astype(int) - scene.image).mean() < 10  # JPEG softens the noise
            annotation = annotation["annotation"]
            assert annotation["size"] == {"width": "96", "height": "96", "depth": "3"}
            assert len(annotation["object"]) == len(scene.things)
            animals = []
            for entry, thing in zip(annotation["object"], scene.things, strict=True):
                first, last = ("xmin", "ymin"), ("xmax", "ymax")
                corners = [int(entry["bndbox"][key]) - 1 for key in first] + [int(entry["bndbox"][k]) for k in last]
                assert entry["name"] == thing.name and tuple(corners) == thing.box
                assert entry["truncated"] == str(int(thing.truncated))
                assert entry["occluded"] == str(int(thing.occluded))
                assert entry["difficult"] == str(int(thing.difficult))
                if thing.name in classes.VOC_ANIMALS:
                    animals.append(corners)
            np.testing.assert_array_equal(arrays["boxes"][i, : len(animals)], animals)
        segmentation = VOCSegmentation(tmp_path, "2012", split, download=False)
        assert len(segmentation) == n // 2
        for i, scene in enumerate(expected[::2]):
            mask = segmentation[i][1]
            assert mask.mode == "P"
            assert mask.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
            assert mask.getpalette()[-3:] == [224, 224, 192]
            np.testing.assert_array_equal(np.asarray(mask), scene.mask)
    assert len(VOCDetection(tmp_path, "2012", "trainval", download=False)) == 10
    assert len(VOCSegmentation(tmp_path, "2012", "trainval", download=False)) == 5


def test_random_numbers():
    first, second = rng.splitmix64(np.array([0, 0x9E3779B97F4A7C15], np.uint64))
    assert (first, second) == (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)  # the published sequence for seed 0
    random = rng.Random(3, "test", range(20_000))
    value = random.uniform(-1, 3, (2,))
    assert value.shape == (20_000, 2) and value.dtype == np.float32
    assert value.min() >= -1 and value.max() < 3
    assert value.mean(0) == pytest.approx([1, 1], abs=0.05)
    assert abs(np.corrcoef(value.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(random.uniform(), random.uniform())[0, 1]) < 0.03
    assert abs(np.corrcoef(value[1:, 0], value[:-1, 0])[0, 1]) < 0.03
    assert random.normal(2.0).std() == pytest.approx(2, abs=0.05)
    assert np.bincount(random.integers(5)) == pytest.approx(np.full(5, 4000), abs=250)
    assert random.chance(0.2).mean() == pytest.approx(0.2, abs=0.02)
    rows = np.array([5, 17])
    np.testing.assert_array_equal(random.fork("part").uniform()[rows], random.fork("part", rows).uniform())
    assert (random.fork("part").uniform() != random.fork("other").uniform()).mean() > 0.99


def test_sampling_at_the_centres_of_texels_gives_the_texels():
    level = sprites._level(30)
    centre = (np.arange(level.shape[1], dtype=np.float32) + 0.5 - level.shape[1] / 2) / 30
    n = np.array([0, 100, 700])
    u, v = np.broadcast_arrays(centre, centre[:, None])
    out = sprites.sample(n, np.stack([u] * 3), np.stack([v] * 3), np.full(3, 30.0))
    texels = level[n][..., None].view(np.uint8)
    np.testing.assert_allclose(255 * out, texels, atol=0.1)
    assert texels[..., 3].max() == 255


def test_the_art_is_small_and_every_style_has_its_licence():
    files = [path for path in sprites.ART.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    first_words = {
        "Apache-2.0": "Apache License",
        "CC-BY-4.0": "Attribution 4.0 International",
        "CC0-1.0": "CC0 1.0 Universal",
        "MIT": "Copyright (c) Microsoft Corporation",
        "public domain": "public domain",
    }
    third_party = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    styles = sprites.manifest()["styles"]
    assert set(styles) == {row[1] for row in sprites.manifest()["sprites"]}
    assert set(styles) == {path.stem for path in sprites.ART.glob("*.png")}
    assert sorted(styles) == sorted(style for group in standin.STYLES.values() for style in group)
    for style, entry in styles.items():
        text = (sprites.ART / entry["text"]).read_text(encoding="utf-8")
        assert first_words[entry["licence"]] in text
        count = sum(row[1] == style for row in sprites.manifest()["sprites"])
        assert f"| `{style}` | {count} |" in third_party
        assert entry["text"] in third_party and entry["source"] in third_party
        assert entry["credit"] in standin.credits()


def test_the_sheets_hold_the_listed_drawings_and_nothing_else():
    for style in sprites.manifest()["styles"]:
        with Image.open(sprites.ART / f"{style}.png") as sheet:
            alpha = np.asarray(sheet.convert("RGBA"))[..., 3].copy()
        for _, _, name, x, y, width, height in (r for r in sprites.manifest()["sprites"] if r[1] == style):
            drawing = alpha[y : y + height, x : x + width]
            assert drawing.shape == (height, width) and drawing.max() > 250, name
            drawing[:] = 0
        assert alpha.max() == 0, style


def test_nothing_is_drawn_or_read_at_import():
    code = (
        "from helpers.data import standin; from helpers.data.standin import backgrounds, draw, sprites\n"
        "parts = sprites.manifest, sprites._drawings, sprites._level, backgrounds.textures, draw._white\n"
        "assert not any(part.cache_info().currsize for part in parts)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standin.cifar10(-1, 0), "n_train=-1 is negative"),
        (lambda: standin.cifar10(1, 0, seed=-3), "seed=-3 is negative"),
        (lambda: standin.cifar10(1, 1, test_style="noto"), "test_style='noto' is unknown. Use one of: train, fluent"),
        (lambda: standin.voc_animals(1, 1, test_style="x"), "Use one of: train, fluent, openclipart"),
        (lambda: standin.voc_animals(1, 1, size=8), "size=8 is too small"),
        (lambda: standin.cifar10(10, 0, context=1.5), "context=1.5 is no probability"),
        (lambda: sprites.choose(rng.Random(0, "x", [0]), np.array([0]), ("unicorn",), ("noto",)), "unicorn"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        call()

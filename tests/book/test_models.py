"""The page of all models: what it says is what the chapters' networks give, and what the papers print is explained."""

import json
import re

import pytest
import torch
from torch import nn
from toys import small_network

from book import models as page
from helpers import inspect
from helpers.chapters import chapter, names
from helpers.variants import UNITS, Variant, Variants, agrees

GROUPS = page.groups()


def table(title):
    """The Variants under a heading; a chapter's may be named by its number."""
    (heading,) = (heading for heading in GROUPS if title in (heading, heading.split()[0]))
    return GROUPS[heading][0]


def fact(title, name, what="parameters"):
    (heading,) = (heading for heading in GROUPS if title in (heading, heading.split()[0]))
    return page.counted(heading)[name][what]


def on_meta(build):
    with torch.device("meta"):
        return build()


def neck():
    return on_meta(lambda: chapter("13_fpn").FeaturePyramid((256, 512, 1024, 2048)))


def test_committed_page_is_what_the_code_gives():
    assert page.PAGE.read_text("utf-8") == page.text(), "run: ./course pages"


def test_the_kept_counts_are_those_of_the_code():
    """All of them would take minutes; code that has changed is counted again by itself."""
    kept = json.loads(page.COUNTS.read_text("utf-8"))
    assert {heading: found["code"] for heading, found in kept.items()} == {
        heading: page.code(heading) for heading in GROUPS
    }
    for heading, (variants, _) in GROUPS.items():
        smallest = min(variants, key=lambda variant: variant.shape[1])
        assert page.counted(heading)[variants.label(smallest)] == smallest.counts


def test_other_code_is_counted_again(monkeypatch, tmp_path):
    toy = Variant("toy", small_network, (3, 8, 8))
    monkeypatch.setattr(page, "groups", lambda: {"toys": (Variants("", "", [toy]), {})})
    monkeypatch.setattr(page, "code", lambda heading: "now")
    monkeypatch.setattr(page, "COUNTS", tmp_path / "counts.json")
    for code, found in (("now", {}), ("before", {"toy": toy.counts})):
        page.COUNTS.write_text(json.dumps({"toys": {"code": code, "counts": {}}}))
        assert page.counted.__wrapped__("toys") == found


# The counts of single networks stand in tests/chapters/; here is what lies between chapters, or in none of their tests.


def test_a_network_of_two_chapters_has_one_count():
    for what in ("parameters", "multiply-adds", "receptive field"):
        by_chapter = [("2", "ResNet-50 v1.5, 224 px"), ("9", "ResNet-50, 224 px"), ("10", "pixels")]
        assert len({fact(title, name, what) for title, name in by_chapter}) == 1


def test_a_neck_is_counted_beside_a_backbone_without_its_linear_layer():
    backbone = fact("2", "ResNet-50 v1.5, 224 px") - (2048 + 1) * 1000
    assert fact("13", "ResNet-50, neck") == backbone + inspect.count_parameters(neck())


def test_every_six_layers_cost_the_same():
    """A ResNet for CIFAR-10 has 6 n + 2 layers: one block more at each of three widths."""
    shallow, deeper, longest = (fact("2", f"ResNet-{6 * n + 2}, 32 px") for n in (3, 5, 200))
    assert longest - shallow == (200 - 3) * (deeper - shallow) // 2


def test_every_chapter_has_a_table():
    text = page.PAGE.read_text("utf-8")
    for name in names()[:14]:
        section = text.split(f"](../chapters/{name})\n", 1)[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")][2:]
        assert len(rows) == len(table(str(int(name[:2]))).rows) > 0
        assert all(2 < row.count("|") <= 8 for row in rows)


@pytest.mark.parametrize("title", GROUPS)
def test_every_figure_that_differs_is_explained(title):
    assert list(table(title).problems(page.counted(title))) == []


@pytest.mark.parametrize("title", GROUPS)
def test_no_figure_of_a_paper_is_far_from_the_count(title):
    for variant in table(title):
        for what, figure in (("parameters", variant.parameters), ("multiply-adds", variant.macs)):
            counted = page.counted(title)[table(title).label(variant)][what]
            if figure and not agrees(counted, figure):
                digits, unit = figure.split()
                assert abs(float(digits) * UNITS[unit] / counted - 1) < 0.05


# ------------------------------------------------------------------------------------------- what the remarks say


def test_remark_on_mobilenet_without_batch_normalisation():
    model = on_meta(lambda: chapter("05_mobilenet").MobileNet(alpha=0.5))
    norms = sum(inspect.count_parameters(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert agrees(inspect.count_parameters(model) - norms, "1.32 M")


def test_remark_on_mobilenets_twin_without_its_linear_layer():
    macs = fact("5", "full convolutions, 224 px", "multiply-adds")
    assert agrees(macs - 1024 * 1000, "4866 M")


def test_remark_on_the_plain_network_of_34_layers():
    plain, option_a = (fact("2", f"{name}, 224 px", "multiply-adds") for name in ("plain-34", "ResNet-34, option A"))
    assert plain == option_a and agrees(plain, "3.6 G")


def test_remark_on_ten_classes():
    assert agrees(
        inspect.count_parameters(on_meta(lambda: chapter("08_feature_distillation").WideResNet(28, 2))), "1.47 M"
    )


def test_remark_on_1001_classes():
    ours = chapter("09_assembled_cnn")
    model = on_meta(lambda: ours.AssembleResNet50(1001, d=True, attention="SK", blur=True))
    assert f"{inspect.count_parameters(model):,} for Assemble-ResNet-50 with 1001 classes" in table("9").remark


def test_remark_on_fcn_without_its_enlargement():
    variant = table("12").rows[0]
    model = on_meta(variant.build)
    weights = inspect.count_parameters(model.up)
    assert agrees(weights, "1.8 M")
    assert agrees(inspect.count_parameters(model) - weights, "134 M")


def test_remark_on_the_neck():
    assert f"alone has {inspect.count_parameters(neck()):,} parameters" in table("13").remark


# ------------------------------------------------------------------------------------------------ receptive fields


@pytest.mark.parametrize("name", ["A", "A-LRN", "B", "C", "D (VGG-16)", "E (VGG-19)"])
def test_fields_of_vgg_are_those_of_its_chapter(name):
    ours = chapter("01_vgg")
    assert fact("1", name, "receptive field") == ours.receptive_field(ours.CONFIGS[name.split()[0]])[-1][1]


def test_fields_of_efficientnet_are_those_of_its_chapter():
    ours = chapter("04_efficientnet")
    for name, (_, d, side) in ours.RELEASED.items():
        assert fact("4", f"{name}, {side} px", "receptive field") == ours.receptive_field(d)


@pytest.mark.parametrize(
    ("title", "name", "field"),
    [
        ("2", "ResNet-50, 224 px", 483),
        ("2", "ResNet-50 v1.5, 224 px", 427),
        (
            "10",
            "24 channels",
            8 + 2 * 8 * 3 + 2 * (8 + 16 * 3) + 2 * (16 + 32 * 5) + 2 * (32 + 64 * 2),
        ),
        ("11", "U-Net, 572 px", 140),
        ("12", "FCN-32s", 404),
        ("12", "FCN-8s", 404),
        ("13", "ResNet-50, neck", 427 + 2 * 32),
        ("9", "Assemble-ResNet-50, 256 px", None),
        ("The small networks", "YOLO, 128 px", 191),  # C5 of the backbone; enlarged maps have no field
    ],
)
def test_fields_known_from_elsewhere(title, name, field):
    assert fact(title, name, "receptive field") == field


# ------------------------------------------------------------------------------------------------- how it is printed


@pytest.mark.parametrize(
    ("number", "shown"),
    [(138_357_544, "138.4 M"), (7_978_856, "7.979 M"), (769_162, "769.2 k"), (15_470_264_320, "15.47 G"), (98, "98")],
)
def test_amounts(number, shown):
    assert page.amount(number) == shown.replace(" ", "\u00a0")


def test_every_network_was_timed():
    stored = json.loads(page.TIMES.read_text("utf-8"))
    assert {title: set(found) for title, found in stored["milliseconds"].items()} == {
        title: {variants.label(variant) for variant in variants} for title, (variants, _) in GROUPS.items()
    }
    assert all(value > 0 for found in stored["milliseconds"].values() for value in found.values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", stored["date"]) and stored["threads"] == page.THREADS


def test_a_network_can_be_timed():
    threads = torch.get_num_threads()
    assert page.milliseconds(Variant("toy", small_network, (3, 8, 8)), seconds=0.01) > 0
    assert torch.get_num_threads() == threads

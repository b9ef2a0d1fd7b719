"""The page of all models: what it says is what the chapters' networks give, and what the papers print is explained."""

import json
import re

import pytest
import torch
from torch import nn
from toys import small_network

from helpers import inspect
from helpers import page_models as page
from helpers.chapters import chapter, names

GROUPS = {group.title: group for group in page.groups()}


def fact(title, name, what="parameters"):
    return page.facts()[title][name][what]


def on_meta(build):
    with torch.device("meta"):
        return build()


def test_committed_page_is_what_the_code_gives():
    assert page.PAGE.read_text("utf-8") == page.text(), "run: ./course pages"


KNOWN = {  # of public implementations, or of the chapters' own checks
    ("1 VGG", "D (VGG-16)"): 138_357_544,
    ("1 VGG", "E (VGG-19)"): 143_667_240,
    ("2 ResNet", "ResNet-50, 224 px"): 25_557_032,
    ("2 ResNet", "ResNet-152 v1.5, 224 px"): 60_192_808,
    ("2 ResNet", "ResNet-1202, 32 px"): 19_421_274,
    ("3 DenseNet", "DenseNet-121, 224 px"): 7_978_856,
    ("3 DenseNet", "DenseNet-BC (100, 12), 32 px"): 769_162,
    ("4 EfficientNet", "B0, 224 px"): 5_288_548,
    ("4 EfficientNet", "B7, 600 px"): 66_347_960,
    ("5 MobileNet", "α = 1, 224 px"): 4_231_976,
    ("6 SENet", "SE-ResNet-50, r = 16"): 28_088_024,
    ("7 CBAM", "CBAM-ResNet-50"): 28_089_624,
    ("8 Feature distillation", "WRN-28-10"): 36_536_884,
    ("9 Assembled-CNN", "+ D, 224 px"): 25_576_264,
    ("9 Assembled-CNN", "Assemble-ResNet-50, 256 px"): 41_846_440,
    ("10 Frequency domain", "192 channels"): 25_588_456,
    ("11 U-Net", "U-Net, 572 px"): 31_030_658,
    ("12 FCN", "FCN-8s"): 134_489_759,
    ("13 FPN", "ResNet-50, neck"): 26_852_416,
    ("14 YOLO", "YOLO"): 271_703_550,
}


@pytest.mark.parametrize(("title", "name"), KNOWN)
def test_parameters_known_from_elsewhere(title, name):
    assert fact(title, name) == KNOWN[title, name]


@pytest.mark.parametrize(
    ("title", "name", "macs"),
    [
        ("1 VGG", "D (VGG-16)", 15_470_264_320),
        ("2 ResNet", "ResNet-50 v1.5, 224 px", 4_089_184_256),
        ("5 MobileNet", "α = 0.25, 128 px", 13_570_048),
    ],
)
def test_multiply_adds_known_from_elsewhere(title, name, macs):
    assert fact(title, name, "multiply-adds") == macs


def test_every_chapter_has_a_table():
    text = page.PAGE.read_text("utf-8")
    for name in names()[:14]:
        section = text.split(f"](../chapters/{name})\n", 1)[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")][2:]
        (group,) = (group for group in GROUPS.values() if group.chapter == name)
        assert len(rows) == len(group.variants) > 0
        assert all(2 < row.count("|") <= 8 for row in rows)


def test_names_are_unique_in_a_table():
    for group in GROUPS.values():
        labels = [group.label(variant) for variant in group.variants]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("title", GROUPS)
def test_every_figure_that_differs_is_explained_and_no_other(title):
    group = GROUPS[title]
    explained = {label for labels, _ in group.remarks for label in labels}
    assert explained == page.differing(group)


@pytest.mark.parametrize("title", GROUPS)
def test_no_figure_of_a_paper_is_far_from_the_count(title):
    group = GROUPS[title]
    for variant in group.variants:
        counted = page.facts()[title][group.label(variant)]
        for what, figure in (("parameters", variant.parameters), ("multiply-adds", variant.macs)):
            if figure and not page.agrees(counted[what], figure):
                digits, unit = figure.split()
                assert abs(float(digits) * page.UNITS[unit] / counted[what] - 1) < 0.05


# ------------------------------------------------------------------------------------------- what the remarks say


def test_remark_on_mobilenet_without_batch_normalisation():
    model = on_meta(lambda: chapter("05_mobilenet").MobileNet(alpha=0.5))
    norms = sum(inspect.count_parameters(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert page.agrees(inspect.count_parameters(model) - norms, "1.32 M")


def test_remark_on_mobilenets_twin_without_its_linear_layer():
    macs = fact("5 MobileNet", "full convolutions, 224 px", "multiply-adds")
    assert page.agrees(macs - 1024 * 1000, "4866 M")


def test_remark_on_the_plain_network_of_34_layers():
    plain, option_a = (
        fact("2 ResNet", f"{name}, 224 px", "multiply-adds") for name in ("plain-34", "ResNet-34, option A")
    )
    assert plain == option_a and page.agrees(plain, "3.6 G")


def test_remark_on_ten_classes():
    assert page.agrees(
        inspect.count_parameters(on_meta(lambda: chapter("08_feature_distillation").WideResNet(28, 2))), "1.47 M"
    )


def test_remark_on_1001_classes():
    ours = chapter("09_assembled_cnn")
    model = on_meta(lambda: ours.AssembleResNet50(1001, d=True, attention="SK", blur=True))
    assert inspect.count_parameters(model) == 41_848_489


def test_remark_on_fcn_without_its_enlargement():
    (variant, *_) = GROUPS["12 FCN"].variants
    model = on_meta(variant.build)
    weights = inspect.count_parameters(model.up)
    assert page.agrees(weights, "1.8 M")
    assert page.agrees(inspect.count_parameters(model) - weights, "134 M")


def test_remark_on_the_neck():
    model = on_meta(lambda: chapter("13_fpn").FeaturePyramid((256, 512, 1024, 2048)))
    assert inspect.count_parameters(model) == 3_344_384


# ------------------------------------------------------------------------------------------------ receptive fields


@pytest.mark.parametrize("name", ["A", "A-LRN", "B", "C", "D (VGG-16)", "E (VGG-19)"])
def test_fields_of_vgg_are_those_of_its_chapter(name):
    ours = chapter("01_vgg")
    assert fact("1 VGG", name, "receptive field") == ours.receptive_field(ours.CONFIGS[name.split()[0]])[-1][1]


def test_fields_of_efficientnet_are_those_of_its_chapter():
    ours = chapter("04_efficientnet")
    for name, (_, d, side) in ours.RELEASED.items():
        assert fact("4 EfficientNet", f"{name}, {side} px", "receptive field") == ours.receptive_field(d)


@pytest.mark.parametrize(
    ("title", "name", "field"),
    [
        ("2 ResNet", "ResNet-50, 224 px", 483),
        ("2 ResNet", "ResNet-50 v1.5, 224 px", 427),
        (
            "10 Frequency domain",
            "24 channels",
            8 + 2 * 8 * 3 + 2 * (8 + 16 * 3) + 2 * (16 + 32 * 5) + 2 * (32 + 64 * 2),
        ),
        ("11 U-Net", "U-Net, 572 px", 140),
        ("12 FCN", "FCN-32s", 404),
        ("12 FCN", "FCN-8s", 404),
        ("13 FPN", "ResNet-50, neck", 427 + 2 * 32),
        ("9 Assembled-CNN", "Assemble-ResNet-50, 256 px", None),
        ("The small networks", "YOLO, 128 px", 191),  # C5 of the backbone; enlarged maps have no field
    ],
)
def test_fields_known_from_elsewhere(title, name, field):
    assert fact(title, name, "receptive field") == field


class Paths(nn.Module):
    """Everything that a map of the chapters goes through: strides, dilation, pooling, slices, gates, two paths."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = nn.functional.avg_pool2d(self.first(x), 3, 2, padding=1)[:, :, ::2, ::2]
        x = torch.cat([self.wide(x), self.narrow(x)], 1)
        return self.last(x * x.mean((2, 3), keepdim=True).detach())  # the gate sees all, and is left out


def test_field_is_where_the_gradient_is():
    network = Paths()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    images = torch.ones(1, 1, 160, 160, requires_grad=True)
    made = network(images)
    made[0, 0, 10, 10].backward()
    seen = (images.grad[0, 0].sum(0) != 0).nonzero()
    with torch.device("meta"):
        assert page.macs_and_field(Paths(), (1, 160, 160))[1] == int(seen.max() - seen.min()) + 1


# ------------------------------------------------------------------------------------------------- how it is printed


@pytest.mark.parametrize(
    ("number", "shown"),
    [(138_357_544, "138.4 M"), (7_978_856, "7.979 M"), (769_162, "769.2 k"), (15_470_264_320, "15.47 G"), (98, "98")],
)
def test_amounts(number, shown):
    assert page.amount(number) == shown.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("counted", "figure", "equal"),
    [(138_357_544, "138 M", True), (769_162, "0.8 M", True), (3_664_000_000, "3.6 G", False),
     (9_109_994, "9.2 M", False), (994e6, "1.0 G", True)],
)  # fmt: skip
def test_a_figure_agrees_when_it_is_the_count_rounded(counted, figure, equal):
    assert page.agrees(counted, figure) == equal


def test_every_network_was_timed():
    stored = json.loads(page.TIMES.read_text("utf-8"))
    assert {title: set(found) for title, found in stored["milliseconds"].items()} == {
        title: set(found) for title, found in page.facts().items()
    }
    assert all(value > 0 for found in stored["milliseconds"].values() for value in found.values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", stored["date"]) and stored["threads"] == page.THREADS


def test_a_network_can_be_timed():
    threads = torch.get_num_threads()
    assert page.milliseconds(page.Variant("toy", small_network, (3, 8, 8)), seconds=0.01) > 0
    assert torch.get_num_threads() == threads

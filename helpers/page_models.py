"""The page "All models in one place": what every named network of chapters 1 to 14 costs, beside the papers' figures.

`text` is the page, from the counts and the stored times; `measure` takes the times again. `./course pages` calls them.
The networks are those of the chapters; nothing is defined here but how they are put together.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from tabulate import tabulate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import inspect, settings
from helpers.chapters import chapter
from helpers.zoo import ZOO

PAGE = settings.ROOT / "pages" / "models.md"
TIMES = settings.ROOT / "pages" / "models_times.json"
THREADS = 2
ROUNDS = 2
UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}


@dataclass(frozen=True)
class Variant:
    """A row: a network and what its paper prints about it.

    build: a function without arguments that gives the untrained network. shape: (C, H, W) of its input.
    parameters, macs: figures of the paper as printed, such as "138 M"; None where it prints none.
    pixel: receptive field and jump of one position of the input, in pixels; None where no field is given.
    meta: whether it can be built without numbers. chapter: linked in its row, in a table of several chapters.
    """

    name: str
    build: Callable
    shape: tuple
    parameters: str | None = None
    macs: str | None = None
    pixel: tuple | None = (1, 1)
    meta: bool = True
    chapter: str = ""


@dataclass(frozen=True)
class Group:
    """A table: the variants of one chapter.

    about: what goes in, and whose figures stand beside ours. printed: headings of the two columns with those figures.
    sized: whether labels have the side of the input.
    remarks: pairs of the labels that a remark is about, and its text; a figure that differs must have one.
    """

    title: str
    chapter: str
    about: str
    variants: tuple
    printed: tuple = ("paper", "paper")
    remarks: tuple = ()
    sized: bool = False

    def label(self, variant):
        """What the variant is called in the table."""
        return f"{variant.name}, {variant.shape[1]} px" if self.sized else variant.name


# ------------------------------------------------------------------------------------------------- the networks


@cache
def groups():
    """All tables, in the order of the page."""
    return (
        _vgg(), _resnet(), _densenet(), _efficientnet(), _mobilenet(), _senet(), _cbam(), _wide_resnet(), _assembled(),
        _frequency(), _unet(), _fcn(), _fpn(), _yolo(), _zoo(),
    )  # fmt: skip


IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def _vgg():
    ours = chapter("01_vgg")
    parameters = {"A": "133 M", "A-LRN": "133 M", "B": "133 M", "C": "134 M", "D": "138 M", "E": "144 M"}
    macs = {"D": "15.3 G", "E": "19.6 G"}
    names = {"D": "D (VGG-16)", "E": "E (VGG-19)"}
    variants = tuple(
        Variant(names.get(k, k), lambda c=config: ours.VGG(c), IMAGENET, parameters[k], macs.get(k))
        for k, config in ours.CONFIGS.items()
    )
    return Group(
        "1 VGG",
        "01_vgg",
        "Images of 224x224 pixels. The paper prints parameters; the ResNet paper gives multiply-adds for two of them.",
        variants,
        ("paper, Table 2", "ResNet paper"),
        ((("D (VGG-16)",), "the 15.3 G are 1 % below the count, while those of E agree. We do not know why."),),
    )


def _resnet():
    ours = chapter("02_resnet")
    printed = {18: "1.8 G", 34: "3.6 G", 50: "3.8 G", 101: "7.6 G", 152: "11.3 G"}
    cifar = {20: "0.27 M", 32: "0.46 M", 44: "0.66 M", 56: "0.85 M", 110: "1.7 M", 1202: "19.4 M"}

    def imagenet(depth, **settings):
        return lambda: ours.ResNet(*ours.RESNETS[depth], **settings)

    variants = [
        Variant("plain-34", imagenet(34, option=None), IMAGENET, None, "3.6 G"),
        Variant("ResNet-34, option A", imagenet(34, option="A"), IMAGENET),
        Variant("ResNet-34, option C", imagenet(34, option="C"), IMAGENET),
    ]
    variants += [Variant(f"ResNet-{depth}", imagenet(depth), IMAGENET, None, macs) for depth, macs in printed.items()]
    variants += [
        Variant(f"ResNet-{depth} v1.5", imagenet(depth, placement="v1.5"), IMAGENET) for depth in (50, 101, 152)
    ]
    variants += [
        Variant(f"ResNet-{depth}", lambda d=depth: ours.CifarResNet(d), CIFAR, millions)
        for depth, millions in cifar.items()
    ]
    return Group(
        "2 ResNet",
        "02_resnet",
        "Shortcuts of option B at 224 pixels and of option A at 32, unless the name says otherwise.",
        tuple(variants),
        ("paper, Table 6", "paper, Table 1"),
        (
            (
                ("ResNet-34, 224 px",),
                "3.6 G is the count without projections, that of the plain network and of option A.",
            ),
            (
                ("ResNet-50, 224 px",),
                "3.8 G is the count cut off and not rounded, unlike those of the deeper networks. Its figures are "
                "those of v1, with the stride in the first 1x1 convolution; most networks that one can download are "
                "v1.5.",
            ),
        ),
        sized=True,
    )


def _densenet():
    ours = chapter("03_densenet")
    basic = {"bottleneck": False, "compression": 1.0}
    cifar = ((40, 12, basic, "1.0 M"), (100, 12, basic, "7.0 M"), (100, 24, basic, "27.2 M"),
             (100, 12, {}, "0.8 M"), (250, 24, {}, "15.3 M"), (190, 40, {}, "25.6 M"))  # fmt: skip
    variants = [Variant(f"DenseNet-{name}", lambda n=name: ours.densenet(n), IMAGENET) for name in ours.DENSENETS]
    variants += [
        Variant(
            f"DenseNet{'' if form else '-BC'} ({depth}, {growth})",
            lambda d=depth, g=growth, f=form: ours.cifar_densenet(d, g, **f),
            CIFAR,
            millions,
        )
        for depth, growth, form, millions in cifar
    ]
    return Group(
        "3 DenseNet",
        "03_densenet",
        "In brackets: layers and growth rate. DenseNet-161 is from the authors' repository, not from the paper.",
        tuple(variants),
        ("paper, Table 2", ""),
        sized=True,
    )


def _efficientnet():
    ours = chapter("04_efficientnet")
    printed = {
        "B0": ("5.3 M", "0.39 G"), "B1": ("7.8 M", "0.70 G"), "B2": ("9.2 M", "1.0 G"), "B3": ("12 M", "1.8 G"),
        "B4": ("19 M", "4.2 G"), "B5": ("30 M", "9.9 G"), "B6": ("43 M", "19 G"), "B7": ("66 M", "37 G"),
    }  # fmt: skip
    variants = tuple(
        Variant(name, lambda d=d, w=w: ours.EfficientNet(d, w), (3, r, r), *printed[name])
        for name, (w, d, r) in ours.RELEASED.items()
    )
    return Group(
        "4 EfficientNet",
        "04_efficientnet",
        "The paper's figures are those of its first version.",
        variants,
        ("paper, Table 2", "paper, Table 2"),
        (
            (("B2, 260 px",), "9.1 million parameters, where the paper prints 9.2."),
            (
                ("B1, 240 px", "B4, 380 px", "B5, 456 px", "B7, 600 px"),
                "the multiply-adds differ by 2 to 5 %. All counts agree with torchvision's to the last digit; we do "
                "not know how the paper's were made.",
            ),
        ),
        sized=True,
    )


def _mobilenet():
    ours = chapter("05_mobilenet")
    parameters = {(1.0, 224): "4.2 M", (0.75, 224): "2.6 M", (0.5, 160): "1.32 M"}
    macs = {(1.0, 224): "569 M", (0.75, 224): "325 M", (0.5, 224): "149 M", (0.25, 224): "41 M",
            (1.0, 192): "418 M", (1.0, 160): "290 M", (1.0, 128): "186 M", (0.5, 160): "76 M"}  # fmt: skip
    variants = [
        Variant(
            f"α = {alpha:g}",
            lambda a=alpha: ours.MobileNet(alpha=a),
            (3, side, side),
            parameters.get((alpha, side)),
            macs.get((alpha, side)),
        )
        for alpha in (1.0, 0.75, 0.5, 0.25)
        for side in (224, 192, 160, 128)
    ]
    variants += [
        Variant("full convolutions", lambda: ours.MobileNet(block=ours.Full), IMAGENET, "29.3 M", "4866 M"),
        Variant("shallow", lambda: ours.MobileNet(ours.SHALLOW), IMAGENET, "2.9 M", "307 M"),
    ]
    return Group(
        "5 MobileNet",
        "05_mobilenet",
        "Four widths α by four resolutions, and the two networks that the paper compares with.",
        tuple(variants),
        ("paper, Tables 4 to 9", "paper, Tables 4 to 9"),
        (
            (
                ("α = 1, 160 px", "α = 0.5, 160 px"),
                "the paper cuts off the decimals of these multiply-adds; its 569 M are rounded.",
            ),
            (
                ("α = 0.5, 160 px",),
                "1.32 million parameters are those without the scales and shifts of batch normalisation.",
            ),
            (("full convolutions, 224 px",), "4,866 million is the count without the fully connected layer."),
        ),
        sized=True,
    )


def _senet():
    ours = chapter("06_senet")
    printed = {2: None, 4: "35.7 M", 8: "30.7 M", 16: "28.1 M", 32: "26.9 M"}
    variants = [
        Variant(f"SE-ResNet-50, r = {r}", lambda r=r: ours.se_resnet(50, r=r), IMAGENET, millions,
                "3.87 G" if r == 16 else None)
        for r, millions in printed.items()
    ]  # fmt: skip
    variants += [
        Variant(f"SE-ResNet-{depth}", lambda d=depth: ours.se_resnet(d), IMAGENET) for depth in (18, 34, 101, 152)
    ]
    variants += [Variant("50 layers, no squeeze", lambda: ours.se_resnet(50, unit=ours.NoSqueeze), IMAGENET)]
    return Group(
        "6 SENet",
        "06_senet",
        "Images of 224x224 pixels, stride as in ResNet v1; r = 16 unless the name says otherwise.",
        tuple(variants),
        ("paper, Table 10", "paper"),
        (
            (
                ("SE-ResNet-50, r = 4", "SE-ResNet-50, r = 8", "SE-ResNet-50, r = 32"),
                "the paper's parameters agree when they are read as rounded up.",
            ),
            (
                ("SE-ResNet-50, r = 16",),
                "the paper's 3.87 G include the averages and the products of the gates, which have no weights and are "
                "not in our count.",
            ),
        ),
    )


def _cbam():
    ours = chapter("07_cbam")
    printed = {18: "11.8 M", 34: "22.0 M", 50: "28.1 M", 101: "49.3 M"}
    return Group(
        "7 CBAM",
        "07_cbam",
        "Images of 224x224 pixels, stride as in v1. The receptive field includes the 7x7 filters of the gates.",
        tuple(
            Variant(f"CBAM-ResNet-{depth}", lambda d=depth: ours.cbam_resnet(d), IMAGENET, millions)
            for depth, millions in printed.items()
        ),
        ("paper, Table 4, about", ""),
        (
            (
                (),
                "The paper's Table 1 has about 25.9 M for CBAM-ResNet-50. Its architecture and its code give 28.1 M.",
            ),
        ),
    )


def _wide_resnet():
    ours, resnet = chapter("08_feature_distillation"), chapter("02_resnet")
    printed = {(28, 4): "5.87 M", (16, 4): "2.77 M", (28, 2): "1.47 M", (16, 2): "0.70 M"}
    variants = [
        Variant(f"WRN-{depth}-{k}", lambda d=depth, k=k: ours.WideResNet(d, k, classes=100), CIFAR,
                printed.get((depth, k)))
        for depth, k in (*printed, (40, 4), (16, 8), (28, 10), (28, 12))
    ]  # fmt: skip
    variants.append(
        Variant("ResNet-56, option B", lambda: resnet.CifarResNet(56, option="B", classes=100), CIFAR, "0.86 M")
    )
    return Group(
        "8 Feature distillation",
        "08_feature_distillation",
        "Teachers and students for images of 32x32 pixels and 100 classes; the names have depth and widening factor.",
        tuple(variants),
        ("authors' repository", ""),
        ((("WRN-28-2",), "1.47 M is the count with 10 classes."),),
    )


def _assembled():
    ours = chapter("09_assembled_cnn")
    ladder = {
        "ResNet-50": {}, "+ D": {"d": True}, "+ D, SE": {"d": True, "attention": "SE"},
        "+ D, SK": {"d": True, "attention": "SK"}, "+ SK alone": {"attention": "SK"},
        "+ anti-aliasing alone": {"blur": True},
    }  # fmt: skip
    variants = [
        Variant(name, lambda t=tweaks: ours.AssembledResNet(50, **t), IMAGENET) for name, tweaks in ladder.items()
    ]

    def final(**tweaks):
        return lambda: ours.AssembleResNet50(d=True, blur=True, **tweaks)

    variants += [
        Variant("Big-Little, D, anti-aliasing", final(), IMAGENET, pixel=None),
        Variant("Assemble-ResNet-50", final(attention="SK"), (3, 256, 256), "41.85 M", pixel=None),
    ]
    return Group(
        "9 Assembled-CNN",
        "09_assembled_cnn",
        "ResNet-50 is v1.5 here. The paper prints no counts. Blurring filters count as convolutions.",
        tuple(variants),
        ("authors' code", ""),
        (
            (
                (),
                "The authors' code says 41,848,489 for Assemble-ResNet-50 with 1001 classes. With as many, ours has "
                "exactly that number.",
            ),
        ),
        sized=True,
    )


def _frequency():
    ours, resnet = chapter("10_frequency_domain"), chapter("02_resnet")
    variants = [Variant("pixels", lambda: resnet.ResNet(*resnet.RESNETS[50], placement="v1.5"), IMAGENET)]
    variants += [
        Variant(f"{channels} channels", lambda c=channels: ours.frequency_resnet50(c), (channels, 56, 56), pixel=(8, 8))
        for channels in (24, 48, 64, 192)
    ]
    return Group(
        "10 Frequency domain",
        "10_frequency_domain",
        "ResNet-50 v1.5 for 224x224 pixels, and for coefficients: maps of 56x56 positions, each an 8x8 block of an "
        "image of 448x448 pixels. The receptive field is in pixels of that image. The paper prints no counts.",
        tuple(variants),
    )


def _unet():
    ours = chapter("11_unet")
    return Group(
        "11 U-Net",
        "11_unet",
        "Grey images, two classes. The paper prints no counts, only 23 convolutional layers.",
        (
            Variant("U-Net", ours.UNet, (1, 572, 572)),
            Variant("without skips", lambda: ours.UNet(skips=False), (1, 572, 572)),
            Variant("for the cells, width 8, depth 3", ours.cell_network, (1, 348, 348)),
        ),
        sized=True,
    )


def _fcn():
    vgg, ours = chapter("01_vgg"), chapter("12_fcn")
    variants = tuple(
        Variant(
            f"FCN-{stride}s",
            lambda s=stride: ours.FCN(vgg.VGG(vgg.CONFIGS["D"]), stride=s),
            (3, 500, 500),
            "134 M" if stride == 32 else None,
        )
        for stride in (32, 16, 8)
    )
    return Group(
        "12 FCN",
        "12_fcn",
        "On VGG-16, photographs of 500x500 pixels, 21 classes. The receptive field is that of conv7; the paper's "
        "Table 1 has 404 pixels, too.",
        variants,
        ("paper, Table 1", ""),
        (
            (
                ("FCN-32s",),
                "134 M is the count without the learnable enlargement, whose 1.8 M weights are nearly all zero.",
            ),
        ),
    )


class _WithPyramid(nn.Module):
    """Chapter 2's ResNet-50 with chapter 13's pyramid and, if wanted, its proposal head."""

    def __init__(self, head):
        super().__init__()
        resnet, ours = chapter("02_resnet"), chapter("13_fpn")
        self.body = resnet.ResNet(*resnet.RESNETS[50], placement="v1.5")
        self.body.fc = nn.Identity()
        self.neck = ours.FeaturePyramid((256, 512, 1024, 2048), extra=True)
        self.head = ours.ProposalHead() if head else nn.Identity()

    def forward(self, images):
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        maps = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            maps.append(x := stage(x))
        return self.head(self.neck(maps))


def _fpn():
    return Group(
        "13 FPN",
        "13_fpn",
        "On ResNet-50 v1.5 without its last layer, photographs of 800x1000 pixels. The receptive field is that of P5, "
        "and of the head on P6. The paper prints no counts.",
        (
            Variant("ResNet-50, neck", lambda: _WithPyramid(head=False), (3, 800, 1000)),
            Variant("ResNet-50, neck, proposal head", lambda: _WithPyramid(head=True), (3, 800, 1000)),
        ),
        remarks=(((), "The neck alone has 3,344,384 parameters."),),
    )


def _yolo():
    return Group(
        "14 YOLO",
        "14_yolo",
        "The network of the paper's Figure 3, for photographs of 448x448 pixels. The paper prints no counts.",
        (Variant("YOLO", chapter("14_yolo").paper_yolo, (3, 448, 448)),),
        remarks=(
            (
                (),
                "The network that the authors released under the same name is another one, and so are its counts. The "
                "two linear layers let every cell see the whole photograph; the field is that of the last convolution.",
            ),
        ),
    )


def _zoo():
    variants = []
    for name, member in ZOO.items():
        classifier = member.chapter < "11"  # these were trained on pictures of 32 px
        side = 32 if classifier else member.size
        variants.append(Variant(name, member.weights.build, (3, side, side), meta=False, chapter=member.chapter))
    return Group(
        "The small networks",
        "",
        "One of each chapter, as `helpers/zoo.py` lists them. They are ours, so no paper has figures for them.",
        tuple(variants),
        sized=True,
    )


# --------------------------------------------------------------------------------------------------- the counts


class FieldMode(TorchDispatchMode):
    """Follows the receptive field and the jump, in pixels, of every map through a pass; `widest` is the largest field.

    The map that the first convolution takes is the input; `pixel` is its field and jump. Of several paths the widest
    counts. A number that the whole map went into, such as a gate, has no field, and a map that was enlarged has none
    either: there the field would depend on the position.
    """

    def __init__(self, pixel=(1, 1)):
        super().__init__()
        self.pixel, self.widest = pixel, 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        made = function(*arguments, **(settings or {}))
        if not self.widest and function.overloadpacket is torch.ops.aten.convolution:
            arguments[0].seen = self.pixel
        inputs = [each for each in _flat(arguments) if hasattr(each, "seen")]
        if not inputs:
            return made
        given = max(inputs, key=lambda each: each.seen)
        (field, jump), moves = given.seen, True
        match function.overloadpacket:
            case torch.ops.aten.convolution:
                weight, (_, stride, _, dilation, enlarges) = arguments[1], arguments[2:7]
                if enlarges:
                    return made
                field += (weight.shape[-1] - 1) * dilation[-1] * jump
                jump *= stride[-1]
            case torch.ops.aten.max_pool2d_with_indices | torch.ops.aten.avg_pool2d:
                kernel = arguments[1]
                stride = arguments[2] if len(arguments) > 2 and arguments[2] else kernel
                field += (kernel[-1] - 1) * jump
                jump *= stride[-1]
            case torch.ops.aten.slice:
                if arguments[1] in (3, -1) and len(arguments) == 5:
                    jump *= arguments[4]
            case torch.ops.aten.constant_pad_nd | torch.ops.aten.reflection_pad2d | torch.ops.aten.replication_pad2d:
                pass
            case _:
                moves = False
        for each in _flat([made]):
            if each.ndim >= 4 and (moves or each.shape[-1] == given.shape[-1]):
                each.seen = (field, jump)
                self.widest = max(self.widest, field)
        return made


def _flat(values):
    """The tensors among values and in the lists and tuples among them."""
    for value in values:
        yield from (each for each in (value if isinstance(value, (list, tuple)) else [value]) if torch.is_tensor(each))


def macs_and_field(model, input_shape, pixel=(1, 1)):
    """Multiply-adds of one image, and the side in pixels of what one unit of the last map sees, in one pass.

    Where maps are enlarged again, it is the side for the coarsest map. pixel: see FieldMode.
    """
    with FieldMode(pixel) as mode:
        return inspect.count_macs(model, input_shape), mode.widest


def count(variant):
    """What needs no clock: a dict with `parameters`, `multiply-adds` and `receptive field` (None where not given)."""
    with torch.device("meta" if variant.meta else "cpu"):
        model = variant.build()
    macs, field = macs_and_field(model, variant.shape, variant.pixel or (1, 1))
    return {
        "parameters": inspect.count_parameters(model),
        "multiply-adds": macs,
        "receptive field": field if variant.pixel else None,
    }


@cache
def facts():
    """All that is the same on every machine: title of the table -> label of the network -> `count`."""
    return {group.title: {group.label(v): count(v) for v in group.variants} for group in groups()}


# ---------------------------------------------------------------------------------------------------- the clock


def milliseconds(variant, seconds=0.5):
    """Median milliseconds per image of the untrained network on the CPU, one image at a time, with THREADS threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return 1000 * inspect.time_per_image(variant.build(), variant.shape, seconds=seconds)
    finally:
        torch.set_num_threads(threads)


def times():
    """Time every network, in some minutes: a dict as it is stored in pages/models_times.json.

    Whatever else the machine does makes a time longer, never shorter. So each network has its turn in ROUNDS rounds,
    some minutes apart, and the smallest median counts.
    """
    best = {group.title: {} for group in groups()}
    for _ in range(ROUNDS):
        for group in groups():
            for v in group.variants:
                label, table = group.label(v), best[group.title]
                table[label] = min(table.get(label, math.inf), milliseconds(v))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{os.cpu_count()} cores, {platform.machine().replace('_', '-')}",
        "threads": THREADS,
        "milliseconds": {
            title: {label: float(f"{fastest:.3g}") for label, fastest in table.items()} for title, table in best.items()
        },
    }


# ----------------------------------------------------------------------------------------------------- the page

INTRODUCTION = """(models)=

# All models in one place

Every network that the chapters name, built by the chapters' own code and counted.

**Parameters** are all learnable numbers, the scales and shifts of batch normalisation included, its running averages
not. **Multiply-adds** are those of convolutions and linear layers for one image. What the papers call FLOPs are
multiply-adds, too. k, M and G are thousands, millions and billions.

**Receptive field** is the side, in pixels, of the square that one unit of the last map can see; it may be larger than
the image. Where there are several paths, the widest counts. Gates that average over the whole map see everything and
are left out, and so are linear layers. Where a network enlarges its maps again, as those for segmentation and
detection do, it is the field at the coarsest map. A dash stands where stages at two resolutions run side by side.

**ms** is the median time of one image, alone, through the untrained network, in milliseconds; of two
rounds the smaller.
{measured}

Beside our counts stand the papers' figures, with their tables; a dash where a paper prints none, and no column where it
prints none at all. **≠** marks a figure that is not our count rounded to as many digits; the reason, where it is
known, is below the table.
"""
MEASURED = """Measured on {machine}, with {threads} threads and PyTorch {torch}, {date}. Compare them with each other,
not with those of your machine, and only where they are far apart: the same network measured twice can differ by a fifth
and more."""


def amount(number):
    """A count to four digits with its unit: 138357544 as "138.4 M"."""
    for unit, size in UNITS.items():
        if number >= size:
            value = number / size
            return f"{value:.{3 - int(math.log10(value))}f}\u00a0{unit}"
    return str(number)


def agrees(counted, figure):
    """Whether a figure such as "138 M" is the count rounded to as many digits."""
    digits, unit = figure.split()
    decimals = len(digits.partition(".")[2])
    return abs(counted / UNITS[unit] - float(digits)) <= 0.5 / 10**decimals


def _figure(counted, figure):
    if figure is None:
        return "—"
    mark = "" if agrees(counted, figure) else "≠\u00a0"
    return mark + figure.replace(" ", "\u00a0")


def _time(value):
    """Milliseconds to three digits; those of a time above a second are all shown."""
    if value is None:
        return "—"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def differing(group):
    """Labels of the networks of which a paper's figure is not our count rounded."""
    found = set()
    for variant in group.variants:
        counted = facts()[group.title][group.label(variant)]
        pairs = ((counted["parameters"], variant.parameters), (counted["multiply-adds"], variant.macs))
        if any(figure and not agrees(number, figure) for number, figure in pairs):
            found.add(group.label(variant))
    return found


def _section(group, stored):
    """A table with its heading and remarks, as Markdown."""
    has_parameters, has_macs = (any(getattr(v, kind) for v in group.variants) for kind in ("parameters", "macs"))
    rows = []
    for variant in group.variants:
        label = group.label(variant)
        counted = facts()[group.title][label]
        name = f"[{int(variant.chapter[:2])} {label}](../chapters/{variant.chapter})" if variant.chapter else label
        name = re.sub(r" (?=px)| (?==)|(?<==) ", "\u00a0", name)
        row = [("network", name), ("parameters", amount(counted["parameters"]))]
        if has_parameters:
            row.append((group.printed[0], _figure(counted["parameters"], variant.parameters)))
        row.append(("multiply-adds", amount(counted["multiply-adds"])))
        if has_macs:
            row.append((group.printed[1], _figure(counted["multiply-adds"], variant.macs)))
        row.append(("receptive field", f"{counted['receptive field'] or '—'}"))
        row.append(("ms", _time(stored.get(group.title, {}).get(label))))
        rows.append(row)
    table = tabulate(
        [[text for _, text in row] for row in rows],
        [heading for heading, _ in rows[0]],
        tablefmt="pipe",
        colalign=["left"] + ["right"] * (len(rows[0]) - 1),
        disable_numparse=True,
    )
    heading = f"[{group.title}](../chapters/{group.chapter})" if group.chapter else group.title
    parts = [f"## {heading}", group.about, table]
    if group.remarks:
        parts.append(
            "\n".join("- " + (f"**{'; '.join(labels)}**: {text}" if labels else text) for labels, text in group.remarks)
        )
    return "\n\n".join(parts)


def text():
    """The page, from `facts` and the stored times, as Markdown; with dashes while no times are stored."""
    stored = json.loads(TIMES.read_text("utf-8")) if TIMES.exists() else {"milliseconds": {}}
    measured = MEASURED.format(**stored) if "date" in stored else "It was not measured yet."
    introduction = INTRODUCTION.format(measured=measured)
    return "\n\n".join([introduction.rstrip(), *(_section(group, stored["milliseconds"]) for group in groups())]) + "\n"


def measure():
    """Measure the times again, in some minutes, and write them beside the page."""
    TIMES.write_text(json.dumps(times(), indent=1, ensure_ascii=False) + "\n", "utf-8")

"""The page "What came out": every paper's claim, our miniature, and what the studies in `results/` say about it.

`./course pages` writes `pages/results.md`. All numbers come from `results/` alone; no chapter is run.
A new chapter is one more entry in PAPERS.
"""

import json
import re
from dataclasses import dataclass, replace
from statistics import fmean
from textwrap import fill
from typing import NamedTuple

from helpers.effects import Effect, paired_effect
from helpers.settings import ROOT
from helpers.study import Study
from helpers.table import Table

PAGE = ROOT / "pages" / "results.md"
VERDICTS = ("seen", "not clear", "reversed at this scale")


# ------------------------------------------------------------------------------------------ what can be claimed


class Mean(NamedTuple):
    """Several arms that count as one: their mean, seed by seed."""

    name: str
    arms: tuple


class Row(NamedTuple):
    """One comparison: the claim predicts that `second` less `first` is positive.

    claim: as the chapter words it. first, second: arms, each a name or a Mean. short: the sentence for the summary;
    without one the row stands in the chapter's table only.
    """

    claim: str
    first: str | Mean
    second: str | Mean
    short: str = ""


@dataclass(frozen=True)
class Group:
    """Comparisons that are measured alike.

    measured: what `metric` times `scale` is. metric: a name, or a function of (study, arm) that gives one value per
    seed. study: the name of the chapter's second study, which may leave arms to the first.
    """

    measured: str
    metric: object
    rows: tuple
    scale: float = 1.0
    study: str = ""


@dataclass(frozen=True)
class Paper:
    """A chapter's claim in one sentence, what the miniature compares and at which equal cost, and the comparisons."""

    chapter: str
    name: str
    claim: str
    miniature: str
    groups: tuple

    @property
    def link(self):
        return f"[{int(self.chapter[:2])} {self.name}](../chapters/{self.chapter})"


def with_short(rows, short):
    """The rows, with a sentence for the summary where `short` (claim -> sentence) has one."""
    return tuple(row._replace(short=short.get(row.claim, "")) for row in rows)


def mini_mce(study, arm):
    """Chapter 9's mean corruption error in %, one per seed; the mean errors of the plain ResNet-8 are 100 %."""
    kinds = ("noise", "blur", "contrast", "JPEG")
    base = {kind: study.mean("ResNet-8", kind)[0] for kind in kinds}
    errors = zip(*(study.values(arm, kind) for kind in kinds), strict=True)
    return [100 * fmean(e / base[kind] for e, kind in zip(found, kinds, strict=True)) for found in errors]


ACCURACY = "test accuracy, points"

VGG = Paper(
    "01_vgg",
    "VGG",
    "Keep everything else fixed and use 3x3 filters only: the deeper network recognises images better (Table 3). "
    "A stack of 3x3 filters beats one large filter that sees as much (section 4.1), local response normalisation "
    "(LRN) does not help, and training at many scales does (Table 3).",
    "The paper's networks A to E, narrow and with batch normalisation, for 4 epochs each. Deeper ones cost more; the "
    "two with large filters have about as many weights as the stacks that they are compared with. The last row is "
    "tested at 40 pixels, the middle of the range, as the paper tests it.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row("depth helps: A (1 layer a stage) to B (2)", "A", "B", "two layers a stage beat one"),
                Row("depth helps: B (2) to D (3)", "B", "D", "three layers a stage beat two"),
                Row("depth helps: D (3) to E (4)", "D", "E", "four layers a stage beat three"),
                Row("a third layer helps even if it is 1x1: B to C", "B", "C"),
                Row("seeing more helps more: C (1x1) to D (3x3)", "C", "D"),
                Row(
                    "two 3x3 beat one 5x5, equal field, about equal weights",
                    "5x5",
                    "B",
                    "two 3x3 filters beat one of 5x5",
                ),
                Row(
                    "three 3x3 beat one 7x7, equal field, about equal weights",
                    "7x7",
                    "D",
                    "three 3x3 filters beat one of 7x7",
                ),
                Row("LRN helps (the paper says it does not)", "A", "A-LRN"),
                Row("depth helps without batch normalisation: A to E", "A without BN", "E without BN"),
            ),
            100,
        ),
        Group(
            "test accuracy at 40 pixels, points",
            "accuracy_at_40",
            (Row("many scales beat the middle one", "S = 40", "S in [32, 48]"),),
            100,
            "scale",
        ),
    ),
)

RESNET = Paper(
    "02_resnet",
    "ResNet",
    "Without shortcuts, more layers make a network worse, on its training images, too; with them the deeper one is the "
    "better one (Figure 1, Tables 2 and 6).",
    "20 and 56 layers, with and without shortcuts, equally long. At equal depth both have the same parameters and "
    "multiply-adds.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row(
                    "plain: 56 layers are worse than 20",
                    "plain-56",
                    "plain-20",
                    "without shortcuts, 56 layers are worse than 20",
                ),
                Row(
                    "residual: 56 layers are better than 20",
                    "ResNet-20",
                    "ResNet-56",
                    "with shortcuts, 56 layers are better than 20",
                ),
                Row("shortcuts help at 56 layers", "plain-56", "ResNet-56", "shortcuts help at 56 layers"),
                Row("shortcuts help at 20 layers", "plain-20", "ResNet-20"),
            ),
            100,
        ),
        Group(
            "training loss",
            "train_loss",
            (
                Row("plain: 56 layers are worse than 20", "plain-20", "plain-56"),
                Row("residual: 56 layers are better than 20", "ResNet-56", "ResNet-20"),
                Row("shortcuts help at 56 layers", "ResNet-56", "plain-56"),
                Row("shortcuts help at 20 layers", "ResNet-20", "plain-20"),
            ),
        ),
    ),
)

EQUAL = ("parameters", "multiply-adds", "seconds")
DENSENET = Paper(
    "03_densenet",
    "DenseNet",
    "A network whose layers read all maps before them is as accurate as a ResNet with far more parameters: on CIFAR-10 "
    "a third of them is enough (Figure 4).",
    "A DenseNet-BC against three ResNets: one of equal parameters, one of equal multiply-adds, one of equal seconds.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            tuple(
                Row(
                    f"better than a ResNet of equal {cost}",
                    f"ResNet, equal {cost}",
                    "DenseNet-BC",
                    f"a DenseNet beats a ResNet of equal {cost}",
                )
                for cost in EQUAL
            ),
            100,
        ),
        Group(
            "test loss",
            "test_loss",
            tuple(
                Row(f"better than a ResNet of equal {cost}", "DenseNet-BC", f"ResNet, equal {cost}") for cost in EQUAL
            ),
        ),
    ),
)

DIMENSIONS = ("depth", "width", "resolution")
EFFICIENTNET = Paper(
    "04_efficientnet",
    "EfficientNet",
    "Depth, width and resolution each help, and less and less (Figure 3); growing all three together beats growing any "
    "one of them (Table 7).",
    "A tiny network made about three times as expensive in four ways, at about equal multiply-adds, for one pass. The "
    "last rows turn one knob at a time, up to the size of the base and beyond it; the chapter divides these gains by "
    "what they cost.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            tuple(
                Row(f"compound beats {one} alone", one, "compound", f"growing all three beats {one} alone")
                for one in DIMENSIONS
            ),
            100,
        ),
        Group(
            "training loss",
            "train_loss",
            tuple(Row(f"compound beats {one} alone", "compound", one) for one in DIMENSIONS),
        ),
        Group(
            ACCURACY,
            "test_accuracy",
            tuple(Row(f"{one} helps, up to the base", f"half the {one}", "base") for one in DIMENSIONS)
            + tuple(Row(f"{one} helps, beyond the base", "base", one) for one in DIMENSIONS),
            100,
        ),
    ),
)

ALPHA = {
    a: Mean(f"alpha {a}, all sizes", tuple(f"alpha {a}, {s} px" for s in (32, 24, 16))) for a in ("1", "0.5", "0.25")
}
SIDE = {s: Mean(f"{s} px, all widths", tuple(f"alpha {a}, {s} px" for a in ALPHA)) for s in (32, 24, 16)}
EQUAL_COST = "equal cost: separable beats full"
THIN = "equal multiply-adds: thin beats shallow"
MOBILENET = Paper(
    "05_mobilenet",
    "MobileNet",
    "Depthwise separable convolutions cost a ninth to an eighth, and accuracy hardly suffers (Table 4). A thin network "
    "is better than a shallow one of the same cost (Table 5); width and resolution trade accuracy for cost (Tables 6 "
    "and 7).",
    "*Full, thin* has the multiply-adds and the parameters of the separable network with alpha 1; *thin* has the "
    "multiply-adds of *shallow*. The first study makes one pass over its images, the second makes three. In the first "
    "row the paper agrees: the full network is 1.1 points better, for 8.6 times the multiply-adds.",
    (
        Group(
            f"{ACCURACY}, one pass",
            "test_accuracy",
            (
                Row("same plan: full beats separable", "alpha 1, 32 px", "full"),
                Row(EQUAL_COST, "full, thin", "alpha 1, 32 px", "separable beats full at equal cost"),
                Row("width: 1 beats 0.5", ALPHA["0.5"], ALPHA["1"]),
                Row("width: 0.5 beats 0.25", ALPHA["0.25"], ALPHA["0.5"]),
                Row("resolution: 32 beats 24 px", SIDE[24], SIDE[32]),
                Row("resolution: 24 beats 16 px", SIDE[16], SIDE[24]),
                Row(THIN, "shallow", "thin", "thin beats shallow at equal multiply-adds"),
            ),
            100,
        ),
        Group(
            f"{ACCURACY}, three passes",
            "test_accuracy",
            (
                Row(EQUAL_COST, "full, thin", "alpha 1, 32 px", "separable beats full at equal cost"),
                Row(THIN, "shallow", "thin", "thin beats shallow at equal multiply-adds"),
            ),
            100,
            "longer",
        ),
    ),
)

SENET = Paper(
    "06_senet",
    "SENet",
    "A gate for every channel, computed from the whole image, makes networks more accurate for almost no multiply-adds "
    "(Tables 2 and 4), and it is the view of the whole image that helps (section 7.1).",
    "ResNet-20 with 8 to 32 channels, with and without units, for two epochs. The unit without a squeeze has the same "
    "parameters as the one with it.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row("units help (r = 2)", "no gates", "SE, r = 2", "units help, with reduction 2"),
                Row("units help (r = 8)", "no gates", "SE, r = 8", "units help, with reduction 8"),
                Row("units help even without a squeeze (r = 2)", "no gates", "no squeeze, r = 2"),
                Row(
                    "the squeeze is what helps (r = 2)",
                    "no squeeze, r = 2",
                    "SE, r = 2",
                    "the squeeze is what helps",
                ),
                Row("more capacity helps (r = 2 over r = 8)", "SE, r = 8", "SE, r = 2"),
            ),
            100,
        ),
    ),
)

CBAM = Paper(
    "07_cbam",
    "CBAM",
    "Gates for channels and then for positions make networks more accurate for almost no parameters (Table 4), more "
    "than squeeze-and-excitation does, and channel first is slightly better than spatial first (Table 3).",
    "ResNet-20 with 8 to 32 channels, with five kinds of attention and with none, for one epoch. Costs differ by up to "
    "some 5 % in parameters. The last two rows are a control of ours: branches times a fixed 1/4, without any "
    "attention.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row("SE helps", "none", "SE"),
                Row("channel attention helps", "none", "channel only"),
                Row("spatial attention alone helps", "none", "spatial only"),
                Row("CBAM helps", "none", "channel first", "CBAM helps"),
                Row("the maximum adds to the average", "SE", "channel only"),
                Row("the spatial half adds to the channel half", "channel only", "channel first"),
                Row("CBAM is better than SE", "SE", "channel first", "CBAM is better than SE"),
                Row(
                    "channel first is better than spatial first",
                    "spatial first",
                    "channel first",
                    "channel first is better than spatial first",
                ),
            ),
            100,
        ),
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row("a fixed 1/4 costs accuracy as well", "times 1/4", "none"),
                Row("CBAM is better than a fixed 1/4", "times 1/4", "channel first"),
            ),
            100,
            "shrunk",
        ),
    ),
)

DISTILLATION = Paper(
    "08_feature_distillation",
    "Feature distillation",
    "A small network learns better when it also imitates the maps of a large one, taken before the ReLU, with the "
    "useless part of what is negative cut away.",
    "One student, one teacher and eight losses, for 10 epochs of 2,000 images. In use all students cost the same.",
    (
        Group(
            ACCURACY,
            "test_accuracy",
            (
                Row("soft targets help", "scratch", "KD"),
                Row("attention helps", "scratch", "AT"),
                Row("L2 after the ReLU helps", "scratch", "L2 after the ReLU"),
                Row("the overhaul helps", "scratch", "overhaul", "the paper's method helps"),
                Row("the overhaul beats soft targets", "KD", "overhaul", "it beats soft targets"),
                Row(
                    "the overhaul beats L2 after the ReLU",
                    "L2 after the ReLU",
                    "overhaul",
                    "it beats plain squares after the ReLU",
                ),
                Row("before the ReLU, margin 0, beats after", "L2 after the ReLU", "overhaul, margin 0"),
                Row("the margin is better than 0", "overhaul, margin 0", "overhaul"),
                Row("partial L2 is better than L2", "overhaul, plain L2", "overhaul"),
                Row("batch statistics are better", "overhaul, running statistics", "overhaul"),
            ),
            100,
        ),
    ),
)

NONE, ALL = "ResNet-8", "+ AutoAugment"
LADDER = (NONE, "+ D", "+ label smoothing", "+ mixup", "+ SE", "+ DropBlock", "SE to SK", "+ anti-aliasing", ALL)
LADDER += ("+ distillation",)
STEPS = tuple(zip(LADDER, LADDER[1:], strict=False))
LEFT_OUT = ("D", "label smoothing", "mixup", "DropBlock", "SK", "anti-aliasing")
TOGETHER = "all steps together raise top-1"
ASSEMBLED = Paper(
    "09_assembled_cnn",
    "Assembled-CNN",
    "Techniques that each help a little still help when they are put together: every step raises ImageNet accuracy, "
    "and nearly every one lowers the error on corrupted images (Table 7).",
    "The paper's ladder on ResNet-8, for 8 epochs of 2,000 images, each step against the one before it; then the "
    "complete set against the set without one technique, and against the plain network after 24 epochs. *+ "
    "AutoAugment* is the complete set, distillation aside. All arms see the same images equally often; their "
    "multiply-adds differ. *Mini-mCE* is the error on corrupted images in percent of the plain network's, *flips* are "
    "answers that change when the image moves.",
    (
        Group(
            "top-1, points",
            "accuracy",
            tuple(Row(f"{after} raises top-1", before, after) for before, after in STEPS)
            + (Row(TOGETHER, NONE, ALL, "all steps but distillation raise accuracy, 8 epochs"),)
            + tuple(Row(f"{name} is missed in the complete set", f"all but {name}", ALL) for name in LEFT_OUT),
            100,
        ),
        Group(
            "top-1, points, 24 epochs",
            "accuracy",
            (
                Row(
                    TOGETHER,
                    "ResNet-8, 24 epochs",
                    "all, 24 epochs",
                    "all steps but distillation raise accuracy, 24 epochs",
                ),
            ),
            100,
            "length",
        ),
        Group(
            "mini-mCE, points",
            mini_mce,
            tuple(Row(f"{after} lowers mini-mCE", after, before) for before, after in STEPS)
            + (
                Row(
                    "all steps together lower mini-mCE",
                    ALL,
                    NONE,
                    "all steps but distillation lower the error on corrupted images",
                ),
            )
            + tuple(Row(f"{name} is missed in the complete set", ALL, f"all but {name}") for name in LEFT_OUT),
        ),
        Group(
            "flips, points",
            "flips",
            (
                Row("anti-aliasing alone: fewer flips", "anti-aliasing alone", NONE),
                Row("anti-aliasing on the ladder: fewer flips", "+ anti-aliasing", "SE to SK"),
                Row("left out of all: more flips", ALL, "all but anti-aliasing"),
                Row("ResNet-D: fewer flips", "+ D", NONE),
            ),
            100,
        ),
    ),
)

FREQUENCY = Paper(
    "10_frequency_domain",
    "Frequency domain",
    "A network that reads frequencies is more accurate than one that reads a shrunken photograph, at the same number "
    "of input values or half of it (abstract).",
    "Channels of frequencies against pixels, at equal numbers of input values, on photographs and on CIFAR-10. Where "
    "all channels are compared with few of them, the paper's finding predicts no clear gain.",
    (
        Group(
            "VOC: accuracy, points",
            "test_accuracy",
            (
                Row(
                    "12 channels beat 32x32 pixels, 3,072 values each",
                    "32x32 pixels",
                    "12 channels",
                    "12 channels beat 32x32 pixels",
                ),
                Row(
                    "24 channels beat 45x45 pixels, about 6,100 values",
                    "45x45 pixels",
                    "24 channels",
                    "24 channels beat 45x45 pixels",
                ),
                Row("24 channels beat 12", "12 channels", "24 channels"),
                Row("192 channels beat 24", "24 channels", "192 channels"),
            ),
            100,
        ),
        Group(
            "CIFAR-10: accuracy, points",
            "test_accuracy",
            (
                Row(
                    "12 channels beat 16x16 pixels, 768 values each",
                    "16x16 pixels",
                    "12 channels",
                    "12 channels beat 16x16 pixels",
                ),
                Row("48 channels beat 12", "12 channels", "48 channels"),
            ),
            100,
            "cifar",
        ),
    ),
)

CELLS = (
    Row("map over plain, 25 slices", "plain, 25 slices", "map, 25 slices"),
    Row("map over balance, 25 slices", "balance, 25 slices", "map, 25 slices"),
    Row("map over plain, 5 slices", "plain, 5 slices", "map, 5 slices"),
    Row("25 slices over 5, plain", "plain, 5 slices", "plain, 25 slices"),
    Row("25 slices over 5, map", "map, 5 slices", "map, 25 slices"),
    Row("deformed over not, 5 slices", "map, 5 slices, not deformed", "map, 5 slices"),
    Row("skips over none, 25 slices", "map, 25 slices, no skips", "map, 25 slices"),
)
ANIMALS = (
    Row("skips over none", "no skips", "skips"),
    Row("backbone over nothing", "skips, from nothing", "skips"),
)
UNET = Paper(
    "11_unet",
    "U-Net",
    "Handing the early maps across, weighing the walls between cells, and deforming the images make few annotated "
    "images enough to label every pixel.",
    "A small U-Net on slices of cells, 200 steps for each arm; *plain*, *balance* and *map* are the loss without "
    "weights, with class weights and with the paper's weight map. Then a U-Net on photographs, with and without skips "
    "and with and without a pretrained half. All arms take the same steps; those without skips cost a little more.",
    (
        Group(
            "cells apart at threshold 0.5, points",
            "apart",
            with_short(
                CELLS,
                {
                    "map over plain, 25 slices": "the weight map keeps cells apart",
                    "map over balance, 25 slices": "it does so better than class weights",
                    "deformed over not, 5 slices": "deformed images help when there are 5",
                    "skips over none, 25 slices": "skips help on slices of cells",
                },
            ),
            100,
        ),
        Group("cells apart at the best threshold, points", "apart_best", CELLS, 100),
        Group(
            "mean IoU, points",
            "iou",
            with_short(ANIMALS, {"skips over none": "skips help on photographs"}),
            100,
            "voc",
        ),
        Group("mean IoU near boundaries, points", "band", ANIMALS, 100, "voc"),
    ),
)

STRIDES = (
    Row("16s is better than 32s", "32s", "16s"),
    Row("8s is better than 16s", "16s", "8s"),
    Row("8s is better than 32s", "32s", "8s"),
)
FCN = Paper(
    "12_fcn",
    "FCN",
    "Scores of earlier layers, added on the way up, make a segmentation finer: a stride of 16 is better than 32, and 8 "
    "is a little better still. Training all layers is better than training the scores alone (Table 2).",
    "The same backbone with strides of 32, 16 and 8, from the same start and with the same steps. The skips cost a "
    "thousandth of the parameters.",
    (
        Group(
            "mean IoU, points",
            "mean_iou",
            with_short(
                STRIDES,
                {
                    "16s is better than 32s": "a stride of 16 is better than 32",
                    "8s is better than 16s": "a stride of 8 is better than 16",
                },
            )
            + (
                Row(
                    "training all layers is better than the scores alone",
                    "32s, scores only",
                    "32s",
                    "training all layers is better than the scores alone",
                ),
                Row("a trained backbone is better than none", "8s from nothing", "8s"),
            ),
            100,
        ),
        Group("mean IoU within 2 px of a boundary, points", "band_2", STRIDES, 100),
        Group("mean IoU beyond 8 px, points", "outside_8", STRIDES, 100),
    ),
)

PYRAMID = (
    Row("FPN finds more than one map", "one map", "FPN"),
    Row("lateral connections help", "no lateral", "FPN"),
    Row("the top-down pathway helps", "bottom-up", "FPN"),
    Row("pretraining helps", "FPN from nothing", "FPN"),
)
FPN = Paper(
    "13_fpn",
    "FPN",
    "Deep, coarse maps handed down to the fine ones find more objects than a single map; small objects gain most, and "
    "both the lateral connections and the top-down pathway are needed (Table 1).",
    "Four small networks that propose boxes, one of them also from nothing, with the same images and steps. FPN and "
    "bottom-up cost exactly the same, FPN and no lateral nearly so; one map costs less. AR100 is the average recall of "
    "100 proposals.",
    (
        Group(
            "AR100 below 17 pixels, points",
            "AR100 P2",
            with_short(
                PYRAMID,
                {
                    "FPN finds more than one map": "a pyramid finds more small animals than one map",
                    "lateral connections help": "lateral connections help to find them",
                    "the top-down pathway helps": "the top-down pathway helps to find them",
                },
            ),
            100,
        ),
        Group(
            "AR100, points",
            "AR100 all",
            with_short(
                PYRAMID, {"FPN finds more than one map": "a pyramid finds more animals of all sizes than one map"}
            ),
            100,
        ),
        Group("AR100 above 68 pixels, points", "AR100 P5", PYRAMID, 100),
        Group("AR100 on photographs, points", "photographs AR100 all", PYRAMID, 100),
    ),
)

YOLO = Paper(
    "14_yolo",
    "YOLO",
    "One network that looks once says where things are and what they are, fast enough for video (Table 1). Its loss "
    "compares roots of widths and heights and gives empty cells half the weight, and each cell has two boxes (section "
    "2).",
    "One choice of the paper changed at a time, for 4 epochs. All arms cost the same multiply-adds, but for one box "
    "per cell, which costs a little less. The claim of speed is no matter of seeds; the chapter measures it.",
    (
        Group(
            "mAP, points",
            "mAP",
            (
                Row("a pretrained start raises mAP", "from nothing", "YOLO", "a pretrained start raises mAP"),
                Row(
                    "half the weight raises mAP",
                    "empty cells count full",
                    "YOLO",
                    "half the weight for empty cells raises mAP",
                ),
                Row("two boxes raise mAP", "one box per cell", "YOLO", "two boxes per cell raise mAP"),
            ),
            100,
        ),
        Group(
            "overlap of small ones, points",
            "fit_small",
            (
                Row(
                    "roots fit small animals better",
                    "without roots",
                    "YOLO",
                    "roots of width and height help small animals",
                ),
                Row(
                    "two boxes fit better than one",
                    "one box per cell",
                    "YOLO",
                    "two boxes per cell fit small animals better",
                ),
            ),
            100,
        ),
        Group(
            "confidence, points",
            "confidence",
            (
                Row(
                    "half the weight keeps confidence up",
                    "empty cells count full",
                    "YOLO",
                    "half the weight keeps confidence up",
                ),
            ),
            100,
        ),
    ),
)

GRAD_CAM = Paper(
    "15_grad_cam",
    "Grad-CAM",
    "A map of where a network's evidence is can uncover a bias in its training images, and images without the bias "
    "cure it (section 6.3).",
    "Classifiers of cats and dogs, some of which wear a coloured tag: most of the dogs and few of the cats, as many of "
    "both, or none; all trained equally long. The chapter's comparisons of ready-made networks are no study and stand "
    "there alone.",
    (
        Group(
            "Grad-CAM near the tag, points",
            "energy",
            (
                Row(
                    "biased: Grad-CAM is at the tag, more than without tags in training",
                    "no tags",
                    "biased",
                    "Grad-CAM uncovers the bias",
                ),
                Row(
                    "cured by balance: less of it at the tag",
                    "balanced",
                    "biased",
                    "after balanced training it is less at the tag",
                ),
                Row("the cured network ignores the tag as one that never saw any", "balanced", "no tags"),
            ),
            100,
        ),
        Group(
            "accuracy, points",
            "as_trained",
            (Row("the bias flatters: better with the tags as in training", "balanced", "biased"),),
            100,
        ),
        Group(
            "accuracy without tags, points",
            "clean",
            (
                Row(
                    "the cure pays where there are no tags",
                    "biased",
                    "balanced",
                    "balanced training is better where there are no tags",
                ),
                Row("tags on both animals cost nothing against no tags", "no tags", "balanced"),
            ),
            100,
        ),
    ),
)

PAPERS = (
    VGG,
    RESNET,
    DENSENET,
    EFFICIENTNET,
    MOBILENET,
    SENET,
    CBAM,
    DISTILLATION,
    ASSEMBLED,
    FREQUENCY,
    UNET,
    FCN,
    FPN,
    YOLO,
    GRAD_CAM,
)


# ------------------------------------------------------------------------------------------ what was measured


class Found(NamedTuple):
    """A Row with what it is measured in and its Effect."""

    row: Row
    measured: str
    effect: Effect


class NotMeasured(Exception):
    """A study has no file in `results/`, or its file lacks runs."""


def read(chapter, name=""):
    """A study as its file in `results/` describes it, for reading only. Raises NotMeasured."""
    study = Study(chapter, run=None, arms={}, data=None, name=name)
    if not study.path.exists():
        raise NotMeasured(f"results/{study.path.name} is not there.")
    found = json.loads(study.path.read_text("utf-8"))
    if len(found["runs"]) < len(found["arms"]) * len(found["seeds"]):
        raise NotMeasured(f"results/{study.path.name} lacks runs.")
    return replace(study, arms=found["arms"], seeds=tuple(found["seeds"]))


def studies(paper):
    """The studies of a paper as `read` gives them: name -> Study, in the order of its groups. Raises NotMeasured."""
    return {name: read(paper.chapter, name) for name in dict.fromkeys(group.study for group in paper.groups)}


def values(group, found, arm):
    """One value per seed of an arm or a Mean, in the unit of the group."""
    if isinstance(arm, Mean):
        return [fmean(seed) for seed in zip(*(values(group, found, one) for one in arm.arms), strict=True)]
    study = found[group.study]
    if arm not in study.arms:
        study = found.get("", study)
    plain = study.values(arm, group.metric) if isinstance(group.metric, str) else group.metric(study, arm)
    return [group.scale * value for value in plain]


def measured(paper):
    """All comparisons of a paper with their effects, a list of Found. Raises NotMeasured."""
    found = studies(paper)
    return [
        Found(
            row,
            group.measured,
            paired_effect(values(group, found, row.first), values(group, found, row.second)),
        )
        for group in paper.groups
        for row in group.rows
    ]


# ------------------------------------------------------------------------------------------ the page

INTRODUCTION = """\
(results)=

# What came out

Each chapter tests its paper's claim in miniature: two networks that differ in one thing, trained several times each.
This page gathers these comparisons, also those that did not come out as the paper says. Every number is computed
from the files in `results/`, in the same way as in the chapters.

**The difference** is the second arm less the first, for each seed by itself: the mean, ± the standard deviation over
the seeds, and in brackets the 95 % interval of the mean. The arms stand in the order in which the claim predicts a
positive number. So where less is better, as with a loss, the better arm should be the first. Points are percentage
points.

**The verdict** is *seen* when the whole interval lies above zero, *reversed at this scale* when it lies below, and
*not clear* when it contains zero.

**The data** are CIFAR-10, animals of PASCAL VOC, and the cells of ISBI 2012, often a part of them, and often made
smaller. Each section names its own.

**What this cannot show.** The networks are small, the trainings take seconds or minutes, and there are three or four
seeds. *Not clear* does not mean that there is no effect, only that so few short trainings do not show one. *Reversed*
does not mean that the paper is wrong; it trains larger networks on more images for far longer. The interval is about
the choice of the seed alone, not about other data or other settings. And of twenty intervals one should miss the true
mean by chance; among the comparisons on this page there will be some such.
"""

COUNT = (
    "This is no score of the papers: comparisons of one chapter share trainings, some ask the same in another measure, "
    "and some are controls of ours or ask for a gain that the paper itself does not expect."
)

UNMEASURED = "not measured yet"


def text():
    """The whole page as Markdown. A paper whose studies are not all there is listed as not measured yet."""
    results = {}
    for paper in PAPERS:
        try:
            results[paper] = measured(paper)
        except NotMeasured:
            results[paper] = None
    sections = [section(paper, found) for paper, found in results.items()]
    return "\n".join([INTRODUCTION, "## In short\n", summary(results), *sections, "## The count\n", count(results)])


def summary(results):
    """The table of the comparisons closest to each paper's claim, from Paper -> list of Found, or None."""
    columns = ("paper", "claim in miniature", "verdict", "difference", "measured")  # a phone shows the first ones
    rows = []
    for paper, found in results.items():
        link = paper.link
        for one in found or ():
            if one.row.short:
                rows.append((link, one.row.short, one.effect.verdict, spread(one.effect), one.measured))
                link = ""  # once for each paper
        if found is None:
            rows.append((link, "", UNMEASURED, "", ""))
    return markdown(columns, rows)


def section(paper, found):
    """What a paper claims, all its comparisons, and where their numbers come from; `found` as `measured` gives it."""
    lines = [
        f"## {paper.name}\n",
        paragraph(f"**The paper.** {paper.claim}"),
        paragraph(f"**Ours**, in {paper.link}. {paper.miniature}"),
    ]
    if found is None:
        return "\n".join([*lines, f"The study is {UNMEASURED}.\n"])
    columns = ("claim", "verdict", "difference (95\u00a0% interval)", "measured", "first arm", "second arm")
    rows = [
        (
            one.row.claim,
            one.effect.verdict,
            f"{spread(one.effect)} ({interval(one.effect)})",
            one.measured,
            arm_name(one.row.first),
            arm_name(one.row.second),
        )
        for one in found
    ]
    origins = " ".join(origin(study) for study in studies(paper).values())
    return "\n".join([*lines, markdown(columns, rows), paragraph(f"Data: {origins}")])


def origin(study):
    """Data, seeds, number of runs and date of a study in one line. Raises ValueError when its data are mixed."""
    runs = study.runs()
    dates = sorted({run["made_with"]["date"] for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{study.provenance()}; {len(study.seeds)} seeds, {len(runs)} runs, {when} (`results/{study.path.name}`)."


def count(results):
    """How many comparisons have which verdict: of all, and of those in the summary."""
    every = [one for found in results.values() for one in found or ()]
    short = [one for one in every if one.row.short]
    return paragraph(
        f"Of {len(every)} comparisons on this page, {tally(every)}. "
        f"Of the {len(short)} in the summary, {tally(short)}. {COUNT}"
    )


def tally(found):
    verdicts = [one.effect.verdict for one in found]
    seen, unclear, wrong = (f"{verdicts.count(verdict)} are {verdict}" for verdict in VERDICTS)
    return f"{seen}, {unclear} and {wrong}"


def spread(effect):
    return f"{effect.mean:+.2f} ± {effect.sd:.2f}"


def interval(effect):
    return f"{effect.low:+.2f}\u00a0to\u00a0{effect.high:+.2f}"


def arm_name(arm):
    return arm.name if isinstance(arm, Mean) else arm


def paragraph(sentences):
    sentences = re.sub(r"(?<=\+) | (?=[\d+])", "\u00a0", sentences)  # a line that starts with these could be a list
    return fill(sentences, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def markdown(columns, rows):
    return Table(dict(zip(columns, row, strict=True)) for row in rows)._repr_markdown_() + "\n"

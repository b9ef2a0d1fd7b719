# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Assembled CNN: a dozen small techniques in one network
#
# | | |
# |:--|:--|
# | Paper | J. Lee et al., *Compounding the Performance Improvements of Assembled Techniques in a Convolutional Neural Network*, arXiv 2020 [[Lee et al., 2020](../pages/bibliography.md#lee2020assembled)] |
# | Claim | Techniques that each help a little still help when they are put together: ResNet-50 gains about six points of accuracy, its error on corrupted images falls by a third, and it keeps more than half of its speed. |
# | You need | [Chapter 2](02_resnet): residual blocks and where their stride is. [Chapter 6](06_senet): gates on channels. From [chapter 8](08_feature_distillation) only soft targets. |
# | Time | About an hour and a half to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - put a blur before every subsampling, and measure what that does to a network's answers when the image moves;
# - write label smoothing, mixup, DropBlock, selective kernels and a Big-Little stage from memory, in a few lines each;
# - read a table of stacked techniques critically: order, confounds, cost, and what "additive" would mean.
#
# **Before you read on, guess.** You show 100 photographs to a trained ResNet, move each of them by a single pixel, and
# show them again. For how many does it change its answer: none, 2 or more than 10? Write your answer down; the next
# section settles it.

# %% [markdown]
# ## Setup

# %% tags=["model"]
import functools
import io
import math
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from helpers import inspect, metrics, naming, plot, train
from helpers.chapters import chapter
from helpers.claims import Claims
from helpers.data import Split, cifar10
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.modes import evaluating
from helpers.parity import relative_difference
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants, counted
from helpers.weights import Weights

resnet = chapter("02_resnet")
at_16_pixels, he_initialize, stage = resnet.at_16_pixels, resnet.he_initialize, resnet.stage
BasicBlock, Bottleneck = resnet.BasicBlock, resnet.Bottleneck
CifarResNet, ResNet, RESNETS = resnet.CifarResNet, resnet.ResNet, resnet.RESNETS
SqueezeExcitation = chapter("06_senet").SqueezeExcitation

# %% [markdown]
# Everything that trains here is chapter 2's smallest ResNet, with 8 layers, on CIFAR-10 [[Krizhevsky, 2009](../pages/bibliography.md#krizhevsky2009cifar)] at
# half its size. There are many techniques to compare, so each training must be short.

# %%
started = time.perf_counter()
train.set_seed(0)
data = at_16_pixels(
    cifar10(train=pick(full=10_000, quick=640), test=pick(full=2000, quick=300))
)
EPOCHS = pick(full=6, quick=1)

# %% [markdown]
# ## The problem: one number hides two others
#
# So far this book has judged networks by their accuracy on clean test images. Let us ask a trained network two more questions.

# %%
train.set_seed(0)
networks = {"plain": CifarResNet(8, width=8, option="B")}
shift = train.Augment(shift=2)
history = train.fit(
    networks["plain"],
    data,
    train.SHORT,
    epochs=EPOCHS,
    augment=shift,
    eval_every=EPOCHS,
    label="plain",
)

# %% [markdown]
# **Does it give the same answer when the image moves by one pixel?** What comes in at the border is the mirror image
# of what is there, so hardly anything changes in the picture.


# %% tags=["model"]
def moved(images, right, down):
    """Images (N, C, H, W) moved by whole pixels; what comes in is the mirror image of the
    border."""
    reach = max(abs(right), abs(down))
    height, width = images.shape[2:]
    padded = F.pad(images.float(), [reach] * 4, mode="reflect").to(images.dtype)
    top, left = reach - down, reach - right
    return padded[:, :, top : top + height, left : left + width]


def flips(model, data, images=500):
    """The share of test images whose prediction changes when they move by a pixel, to the right
    or down."""
    x = data.test.images[:images]
    still = train.predict(model, data, x).argmax(1)
    steps = [train.predict(model, data, moved(x, *step)).argmax(1) for step in ((1, 0), (0, 1))]
    return float(torch.stack([step != still for step in steps]).float().mean())


# %% [markdown]
# **Does it still work when the image is not perfect?** ImageNet-C [[Hendrycks and Dietterich, 2019](../pages/bibliography.md#hendrycks2019robustness)] is the test set for this: 15 kinds of corruption at five
# severities each. Ours has four kinds at three severities.


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def noisy(images, sd):
    """uint8 images (N, C, H, W) with normal noise of standard deviation sd, for pixels in [0,
    1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * sd * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, sd):
    """Gaussian blur of standard deviation sd in pixels, five taps."""
    return torchvision.transforms.functional.gaussian_blur(images, 5, sd)


def faded(images, factor):
    """Contrast times factor, about the mean of each image."""
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).round().clamp(0, 255).to(torch.uint8)


def as_jpeg(images, quality):
    """Each image written as JPEG and read again."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(found)


CORRUPTIONS = {  # what it is, and three severities
    "noise": (noisy, (0.04, 0.08, 0.16)),
    "blur": (blurred, (0.5, 0.8, 1.2)),
    "contrast": (faded, (0.6, 0.35, 0.2)),
    "JPEG": (as_jpeg, (65, 40, 20)),
}


# %% tags=["model"]
@functools.cache
def corrupted(data, images=500):
    """The first test images in every corruption: kind -> three uint8 tensors. Made once per
    data set."""
    originals = data.test.images[:images]
    return {
        kind: [function(originals, severity) for severity in severities]
        for kind, (function, severities) in CORRUPTIONS.items()
    }


def corruption_errors(model, data):
    """kind -> the error, averaged over the three severities."""
    found = {}
    for kind, versions in corrupted(data).items():
        labels = data.test.targets[: len(versions[0])]
        errors = [1 - metrics.accuracy(train.predict(model, data, x), labels) for x in versions]
        found[kind] = sum(errors) / len(errors)
    return found


def mini_mce(errors, base):
    """Mean corruption error in %: each kind's error over that of the base, averaged over kinds."""
    return 100 * sum(errors[kind] / base[kind] for kind in base) / len(base)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = plot.fixed_images(data)[5].item()  # the first dog


def draw(fig):
    rows = corrupted(data)
    axes = fig.subplots(len(rows), 4)
    for line, (kind, versions) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, [data.test.images, *versions], strict=True):
            ax.imshow(image[shown % len(image)].permute(1, 2, 0))
            ax.set_axis_off()
        line[0].text(-0.1, 0.5, kind, transform=line[0].transAxes, ha="right", va="center")
    for ax, title in zip(axes[0], ("clean", "1", "2", "3"), strict=True):
        ax.set_title(title, loc="center")


plot.show(
    draw,
    alt="One test image of 16x16 pixels, clean and at three severities of noise, blur, loss of contrast and JPEG compression.",
    caption="One test image, clean and in each corruption, from mild (1) to severe (3). "
    f"Data: {data.provenance}.",
    width=4.2,
    height=4.2,
)

# %%
plain_errors = corruption_errors(networks["plain"], data)
clean_error = 1 - history.last("test_accuracy")
Table(
    [
        {"question": "error on clean test images", "%": 100 * clean_error},
        {
            "question": "predictions that change when the image moves by a pixel",
            "%": 100 * flips(networks["plain"], data),
        },
    ]
    + [
        {"question": f"error under {kind}, mean of three severities", "%": 100 * error}
        for kind, error in plain_errors.items()
    ],
    decimals=1,
)

# %% [markdown]
# So the answer to the guess at the top is, for this network, more than 10 of 100. (Its pixels are large: one is a sixteenth of the image's width.) That
# share is not part of its error rate. Under every corruption the error is higher than on clean images, most of all with little contrast.
#
# The paper's ladder of techniques has three measures: **top-1 accuracy** on clean images; **mCE**, the mean corruption error, explained below; and
# **throughput**, images per second, because multiply-adds do not tell how long a network takes (chapters 4 and 5). In our own experiments the *flips*, the
# share of answers that change with a pixel, are a fourth.

# %% [markdown]
# ## The idea: assemble what exists
#
# The paper invents no new layer. It takes techniques that others proposed one by one, and asks which of them still help *together*.
#
# | kind | technique | what it does | cost when the network is used |
# |:--|:--|:--|:--|
# | network tweak | ResNet-D [[He et al., 2019](../pages/bibliography.md#he2019bag)] | looks at all positions where ResNet skips some | little on a GPU |
# | network tweak | SE [[Hu et al., 2018a](../pages/bibliography.md#hu2018senet)], SK [[Li et al., 2019](../pages/bibliography.md#li2019sknet)] | a gate for each channel; a mixture of two branches | SE hardly any multiply-adds, but time; SK more of both |
# | network tweak | anti-aliasing [[Zhang, 2019](../pages/bibliography.md#zhang2019shift)] | a blur before each subsampling | some |
# | network tweak | Big-Little [[Chen et al., 2019](../pages/bibliography.md#chen2019biglittle)] | two branches at two resolutions | less than nothing: it saves |
# | regulariser | label smoothing [[Szegedy et al., 2016](../pages/bibliography.md#szegedy2016rethinking)] | no target is quite 0 or 1 | none |
# | regulariser | mixup [[Zhang et al., 2018c](../pages/bibliography.md#zhang2018mixup)] | images and labels in mixtures | none |
# | regulariser | DropBlock [[Ghiasi et al., 2018](../pages/bibliography.md#ghiasi2018dropblock)] | dropout of whole squares | none |
# | regulariser | AutoAugment [[Cubuk et al., 2019](../pages/bibliography.md#cubuk2019autoaugment)] | distorts images by a learned policy | none |
# | regulariser | distillation [[Hinton et al., 2015](../pages/bibliography.md#hinton2015distilling)] | targets from a larger network | none |
#
# A regulariser changes the training only, so it is free in use. Here is where each one sits in a bottleneck block:


# %% jupyter={"source_hidden": true} tags=["hide-input"]
ADDED = {"DropBlock", "BlurPool", "SE, unless SK", "2x2 average (D)"}
BRANCH = (
    "1x1, BN; DropBlock; ReLU; 3x3, BN, or SK; DropBlock; ReLU; BlurPool; 1x1, BN; DropBlock"
)
BRANCH = [*BRANCH.split("; "), "SE, unless SK", "+", "ReLU"]
SHORTCUT = {1.5: "2x2 average (D)", 4.5: "1x1, BN", 7: "DropBlock"}


def draw(fig):
    ax = fig.subplots()

    def box(x, y, name, rotation=0):
        colours = ("#fdeee0", "C1") if name in ADDED else ("#e8f1f8", "C0")
        look = dict(
            zip(("facecolor", "edgecolor"), colours, strict=True), boxstyle="round,pad=0.3"
        )
        ax.text(x, y, name, rotation=rotation, ha="center", va="center", fontsize=9, bbox=look)

    arrow = {"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0, "shrinkB": 0}
    for x, name in enumerate(BRANCH):
        ax.annotate("", (x - 0.28, 1), (x - 0.72, 1), arrowprops=arrow)
        box(x, 1, name, 0 if name == "+" else 90)
    ax.plot([-0.7, -0.7, 10], [1, -0.35, -0.35], color="#444444", linewidth=1)
    ax.annotate("", (10, 0.85), (10, -0.35), arrowprops=arrow)
    for x, name in SHORTCUT.items():
        box(x, -0.35, name)
    ax.set(xlim=(-1.2, 12), ylim=(-0.8, 2))
    ax.set_axis_off()


plot.show(
    draw,
    alt="A bottleneck block from left to right: 1x1 convolution, DropBlock, ReLU, 3x3 convolution or selective kernels, DropBlock, "
    "ReLU, BlurPool, 1x1 convolution, DropBlock, SE, addition, ReLU. The shortcut below: 2x2 average, 1x1 convolution, DropBlock.",
    caption="A bottleneck that halves the map. Blue: chapter 2's block. Orange: what is added. DropBlock works during training "
    "only, in the last two stages; the blur and the average are there only where the map is halved.",
    height=2.9,
)

# %% [markdown]
# ### The formulas
#
# **Label smoothing** takes a little mass from the true class $y$ and spreads it over all $M$ classes; **mixup** draws
# $\lambda$ from a Beta distribution and mixes two images and their targets:
#
# $$ \begin{gathered} \mathbf{q} = (1 - \varepsilon)\, \mathbf{e}_y + \frac{\varepsilon}{M}, \\
#    \tilde{\mathbf{x}} = \lambda \mathbf{x} + (1 - \lambda) \mathbf{x}', \quad
#    \tilde{\mathbf{q}} = \lambda \mathbf{q} + (1 - \lambda) \mathbf{q}'. \end{gathered} \tag{9.1} $$ <a id="eq-assembled-targets"></a>
#
# **DropBlock** should keep a share $\kappa$ of the positions. It drops squares of side $b$ whose centres it draws with
# probability $\gamma$. A square has $b^2$ positions, and its centre must be far enough from the border:
#
# $$ \gamma = g \cdot \frac{1 - \kappa}{b^2} \cdot \frac{H W}{(H - b + 1)(W - b + 1)}. \tag{9.2} $$ <a id="eq-assembled-gamma"></a>
#
# **mCE** compares the errors $E$ of network $f$, under corruption $c$ at severity $s$, with those of AlexNet
# [[Krizhevsky et al., 2012](../pages/bibliography.md#krizhevsky2012alexnet)], so that hard corruptions do not dominate the mean:
#
# $$ \mathrm{CE}_c = \frac{\sum_s E_{s,c}(f)}{\sum_s E_{s,c}(\text{AlexNet})}, \qquad
#    \mathrm{mCE} = \operatorname{mean}_c \mathrm{CE}_c. \tag{9.3} $$ <a id="eq-assembled-mce"></a>
#
# Our miniature divides by the errors of the plain ResNet-8 instead; it has 100 % by definition.
#
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $\mathbf{e}_y$, $\mathbf{q}$ | label as a vector of 0 and 1; target probabilities | `(N, M)` | `smooth(labels, ...)` |
# | $\varepsilon$ | mass that smoothing spreads, 0.1 | number | `epsilon` |
# | $\lambda$ | share of the first image, from Beta(0.2, 0.2) | `(N,)` | `share` |
# | $\kappa$ | share of positions to keep, falls to 0.9 | number | `keep` |
# | $b$ | side of a dropped square, 7 | number | `size` |
# | $g$ | factor for a stage: 0.25 in the third, 1 in the fourth | number | `scale` |
# | $\gamma$ | chance of a position to be a centre | number | `gamma` |
# | $E_{s,c}$ | error rate under a corruption at a severity | number | `corruption_errors` |
# | $\alpha$, $\beta$ | Big-Little: how much narrower and shallower the little branch is | number | `alpha`, `beta` |
# | $T$ | temperature of distillation | number | `temperature` |

# %% [markdown]
# ## The smallest piece by hand
#
# Why does one pixel matter? Take a row of eight pixels, and the pooling that keeps the larger of each pair. Then move
# the row by one pixel.

# %% tags=["nbval-check-output"]
row = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
moved_row = row.roll(1)


def pooled(row):
    """The larger of each pair."""
    return torch.stack([row[i : i + 2].max() for i in range(0, 8, 2)])


print("pooled:           ", pooled(row).tolist())
print("moved, then pooled:", pooled(moved_row).tolist())

# %% [markdown]
# A pattern of stripes became a constant. This is **aliasing**: a signal that varies faster than the new grid can hold is sampled at arbitrary places. Signal
# processing knows the remedy: blur before you subsample. So we split the pooling in two steps, the maximum at *every* position and the subsampling, and blur
# between them.


# %% tags=["nbval-check-output"]
def pooled_with_blur(row):
    """The larger of each pair at every position (the row goes round), a blur (1, 2, 1) / 4,
    every second."""
    largest = torch.maximum(row, row.roll(-1))
    soft = (largest.roll(1) + 2 * largest + largest.roll(-1)) / 4
    return soft[::2]


print("blurred and pooled:", pooled_with_blur(row).tolist())
print("moved:             ", pooled_with_blur(moved_row).tolist())

# %% [markdown]
# Still not the same, and it cannot be: on the new grid the pattern has moved by half a position. But the two are now close. In two dimensions the filter is
# the outer product of $(1, 2, 1)/4$ with itself. By hand, with the border reflected as in the paper's code, and by PyTorch's convolution:

# %% tags=["nbval-check-output"]
x = torch.tensor([[4.0, 0, 4, 0], [0, 4, 0, 4], [8, 8, 0, 0], [8, 8, 0, 0]])
taps = torch.tensor([1.0, 2, 1]) / 4
kernel = torch.outer(taps, taps)
wide = F.pad(x[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]  # 6 x 6
by_hand = torch.tensor(
    [[(wide[i : i + 3, j : j + 3] * kernel).sum() for j in (0, 2)] for i in (0, 2)]
)
print(by_hand)
by_torch = F.conv2d(wide[None, None], kernel[None, None], stride=2)[0, 0]
print("same as PyTorch:", torch.allclose(by_hand, by_torch))

# %% [markdown]
# In the first row of the result, the checkerboard became its average grey, 2. Subsampling alone would have kept the fours and lost the zeros.

# %% [markdown]
# ## The network tweaks
#
# ### Anti-aliasing
#
# The layer is a fixed depthwise convolution (chapter 5) with a stride.


# %% tags=["model"]
class BlurPool(nn.Module):
    """(N, channels, H, W), blurred and then subsampled: (N, channels, H/stride, W/stride).

    size: taps of the binomial filter, odd. The border is reflected.
    """

    def __init__(self, channels, stride=2, size=3):
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"a filter of {size} taps has no middle; use 3, 5 or 7.")
        self.stride, self.size = stride, size
        taps = torch.tensor([math.comb(size - 1, k) for k in range(size)]) / 2 ** (size - 1)
        kernel = torch.outer(taps, taps).expand(channels, 1, size, size).clone()
        self.register_buffer("kernel", kernel, persistent=False)  # fixed, never trained

    def forward(self, x):
        x = F.pad(x, [self.size // 2] * 4, mode="reflect")
        return F.conv2d(x, self.kernel, stride=self.stride, groups=x.shape[1])


# %% tags=["nbval-check-output"]
print("shape:", tuple(BlurPool(64)(torch.zeros(1, 64, 56, 56)).shape))
print("weights to train:", inspect.count_parameters(BlurPool(64)))
print("same as by hand:", torch.allclose(BlurPool(1)(x[None, None])[0, 0], by_hand))

# %% [markdown]
# Zhang puts it behind every max-pooling and every convolution with a stride. The authors' `sconv` does so for the strided convolutions only: convolution with
# stride 1, batch normalisation, ReLU, and then the blur with stride 2. The convolution now runs on the large map, so it costs four times as much.
#
# Does it help before any training? Take noise that looks like photographs: its amplitude falls with the frequency. Apply a random convolution and a
# subsampling, move the image by one pixel, and measure how far the result is from what it was: $\lVert f(\text{moved } \mathbf{x}) - f(\mathbf{x}) \rVert /
# \lVert f(\mathbf{x}) \rVert$.


# %%
def natural_noise(n, side, seed=0):
    """Random images (n, 3, side, side) whose amplitude falls with the frequency, as in
    photographs."""
    rows, columns = torch.meshgrid(
        torch.fft.fftfreq(side), torch.fft.fftfreq(side), indexing="ij"
    )
    amplitude = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / side)
    white = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    images = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    return (images - images.mean()) / images.std()


def relative_change(layer, images):
    """How much the middle of the layer's map changes when the image moves by a pixel."""
    with torch.inference_mode():
        here, there = (layer(batch)[..., 4:-4, 4:-4] for batch in (images, images.roll(1, -1)))
    return float((there - here).norm() / here.norm())


train.set_seed(0)
every, second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(3, 64, 3, stride=2, padding=1)
second.load_state_dict(every.state_dict())  # the same filters
LAYERS = {
    "max-pooling": nn.Sequential(every, nn.ReLU(), nn.MaxPool2d(2)),
    "max-pooling, blurred": nn.Sequential(
        every, nn.ReLU(), nn.MaxPool2d(2, stride=1), BlurPool(64)
    ),
    "strided convolution": nn.Sequential(second, nn.ReLU()),
    "strided convolution, blurred": nn.Sequential(every, nn.ReLU(), BlurPool(64)),
}
white = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
NOISES = {"natural noise": natural_noise(16, 64), "white noise": white}
changes = {
    name: {kind: relative_change(layer, noise) for kind, noise in NOISES.items()}
    for name, layer in LAYERS.items()
}
Table({"layer": name, **found} for name, found in changes.items())

# %% tags=["nbval-check-output"]
for name in ("max-pooling", "strided convolution"):
    for kind in NOISES:
        less = changes[f"{name}, blurred"][kind] / changes[name][kind]
        print(f"{name}, {kind}: the blur takes away more than a third:", less < 2 / 3)

# %% [markdown]
# The strided convolution suffers most, and gains most. The blur does this by construction, and the finer the pattern, the more there is to lose. How bad is a
# number above 1? Two rectified maps that have nothing to do with each other are at about 1.17 (chapter 2). Half of a position of movement is left in any
# case. Whether the rest is harmful needs trained networks; we come back to it.

# %% [markdown]
# ### ResNet-D
#
# ResNet throws positions away in two places, and its stem (the layers before the first block) begins with one large convolution. He et al.
# [[He et al., 2019](../pages/bibliography.md#he2019bag)] change three things:
#
# 1. **The stride of the bottleneck** moves from the first 1x1 convolution to the 3x3. That is v1.5 of chapter 2.
# 2. **The stem**: three 3x3 convolutions in place of the 7x7, the first with stride 2. Exercise 1 asks what that costs.
# 3. **The shortcut**: a 1x1 projection with stride 2 ignores three of four positions. Average 2x2 positions first, and project without stride. That is a blur
#    before a subsampling, again.


# %% tags=["model"]
def deep_stem(channels=64):
    """ResNet-D's first layers: three 3x3 convolutions, (N, 3, H, W) to (N, channels, H/2, W/2)."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, channels, 3, padding=1, bias=False),
    )


def averaged_shortcut(before, after, stride):
    """ResNet-D's shortcut: the mean of each 2x2 square first, then a projection without stride.

    At the edge of a map of odd size, the mean of what is there. Its convolution and its batch
    normalisation have the names of chapter 2's projection.
    """
    pool = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    convolution = nn.Conv2d(before, after, 1, bias=False)
    parts = {"pool": pool, "0": convolution, "1": nn.BatchNorm2d(after)}
    return nn.Sequential(OrderedDict(parts))


# %% tags=["nbval-check-output"]
print("stem:", tuple(deep_stem()(torch.zeros(1, 3, 224, 224)).shape))
features = torch.randn(1, 64, 8, 8, requires_grad=True)
for name, path in {
    "projection": resnet.shortcut("B", 64, 128, 2),
    "averaged": averaged_shortcut(64, 128, 2),
}.items():
    (gradient,) = torch.autograd.grad(path.eval()(features).square().sum(), features)
    seen = (gradient.abs().sum((0, 1)) > 0).float().mean()
    print(f"{name}: positions of the input that matter: {100 * seen:.0f} %")

# %% [markdown]
# ### SE and SK
#
# Squeeze-and-excitation is chapter 6's: the average of each channel over the map decides by how much the channel is multiplied.
#
# In **selective kernels** two branches look at the map with different kernels, 3x3 and 5x5 in the original. The sum of both is squeezed as in SE, and a softmax
# *between the branches* decides, for each channel, how much to take from each:
#
# $$ \mathbf{v}_c = a_c\, \mathbf{u}^{(1)}_c + (1 - a_c)\, \mathbf{u}^{(2)}_c, \qquad 0 < a_c < 1. \tag{9.4} $$ <a id="eq-assembled-sk"></a>
#
# In the paper both branches are 3x3, computed as one convolution with twice the channels, because that is faster; they differ only in what they have learned.
# Its Table 2 weighs several versions of SE and SK by accuracy *and* throughput, and this is the one it takes on.


# %% tags=["model"]
class SelectiveKernel(nn.Module):
    """Two branches of a 3x3 convolution, mixed by weights that add up to 1 in every channel.

    (N, before, H, W) to (N, channels, H/stride, W/stride), rectified. r and least: the hidden
    layer has max(channels / r, least) units. The paper's version: one convolution with twice
    the channels in place of a 3x3 and a 5x5.
    """

    def __init__(self, before, channels, stride=1, r=2, least=32):
        super().__init__()
        hidden = max(channels // r, least)
        self.conv = nn.Conv2d(before, 2 * channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, 2 * channels, 1, bias=False)
        he_initialize(self)

    def weights(self, first, second):
        """From the branches, each (N, channels, H, W): their weights, each (N, channels, 1, 1)."""
        z = self.squeeze(first + second)
        logits = self.fc2(self.bn1(self.fc1(z)).relu())
        return torch.stack(logits.chunk(2, 1)).softmax(0)  # between the branches

    def forward(self, x):
        first, second = self.bn(self.conv(x)).relu().chunk(2, 1)
        share, rest = self.weights(first, second)
        return share * first + rest * second


# %% tags=["nbval-check-output"]
train.set_seed(0)
unit = SelectiveKernel(16, 24, stride=2)
features = torch.randn(2, 16, 8, 8)
print("shape:", tuple(unit(features).shape))
share, rest = unit.weights(torch.rand(2, 24, 4, 4), torch.rand(2, 24, 4, 4))
print("the two weights add up to 1:", torch.allclose(share + rest, torch.ones_like(share)))

# %% [markdown]
# ### One block with a place for everything
#
# The blocks of chapter 2 stay what they are; a mixin adds the places. Read each `branch` from the inside out, and you read the diagram above.


# %% tags=["model"]
class Assembled:
    """Mixed into a block of chapter 2: a place for every technique; `add_dropblock` fills `drop`.

    d: ResNet-D's shortcut. attention: None, "SE" or "SK". blur: subsample with BlurPool.
    """

    def __init__(
        self,
        before,
        channels,
        stride=1,
        option="B",
        d=False,
        attention=None,
        r=16,
        blur=False,
        last_relu=True,
    ):
        super().__init__(before, channels, stride, option, **self.usual)
        if attention not in (None, "SE", "SK"):
            raise ValueError(f'attention {attention!r} is none of None, "SE", "SK".')
        after, projects = channels * self.expansion, isinstance(self.downsample, nn.Sequential)
        if d and projects:
            self.downsample = averaged_shortcut(before, after, stride)
        convolution = getattr(self, self.strided)  # the 3x3 convolution that has the stride
        step = 1 if blur else stride
        convolution.stride = (step, step)
        if attention == "SK":
            kernels = SelectiveKernel(convolution.in_channels, channels, step)
            setattr(self, self.strided, kernels)
            setattr(self, self.norm, nn.Identity())  # it has its own
        self.blur = BlurPool(channels, stride) if blur and stride > 1 else nn.Identity()
        self.se = SqueezeExcitation(after, r) if attention == "SE" else nn.Identity()
        self.drop, self.last_relu = nn.Identity(), last_relu

    def forward(self, x):
        around = self.downsample(x)
        if isinstance(self.downsample, nn.Sequential):
            around = self.drop(around)
        y = self.branch(x) + around
        return self.relu(y) if self.last_relu else y


# %% tags=["model"]
class AssembledBasicBlock(Assembled, BasicBlock):
    """Two 3x3 convolutions: (N, before, H, W) to (N, channels, H/stride, W/stride)."""

    strided, norm, usual = "conv1", "bn1", {}

    def branch(self, x):
        x = self.blur(self.relu(self.drop(self.bn1(self.conv1(x)))))
        return self.se(self.drop(self.bn2(self.conv2(x))))


class AssembledBottleneck(Assembled, Bottleneck):
    """1x1 down, 3x3, 1x1 up: (N, before, H, W) to (N, 4 channels, H/stride, W/stride)."""

    strided, norm, usual = "conv2", "bn2", {"placement": "v1.5"}

    def branch(self, x):
        x = self.relu(self.drop(self.bn1(self.conv1(x))))
        x = self.blur(self.relu(self.drop(self.bn2(self.conv2(x)))))
        return self.se(self.drop(self.bn3(self.conv3(x))))


# %% [markdown]
# DropBlock differs from stage to stage, so it is added afterwards. (Its class follows among the regularisers.) Then the two
# families of networks, made from chapter 2's:


# %% tags=["model"]
def add_dropblock(model, scales, keep=0.9, size=7):
    """Fill the places for DropBlock in the stages named in `scales`, in place; returns the
    model.

    scales: stage -> factor on gamma, such as {"layer3": 0.25, "layer4": 1.0}.
    """
    for name, scale in scales.items():
        for block in getattr(model, name).modules():
            if isinstance(block, Assembled):
                block.drop = DropBlock(keep, size, scale)
    return model


class AssembledResNet(ResNet):
    """Chapter 2's ResNet-50 to 152 with techniques: (N, 3, H, W) to (N, classes).

    d: ResNet-D's stem and shortcuts. tweaks: attention and blur, as in Assembled.
    """

    def __init__(self, depth=50, classes=1000, d=False, **tweaks):
        super().__init__(AssembledBottleneck, RESNETS[depth][1], classes, d=d, **tweaks)
        if d:
            self.conv1 = deep_stem(64)
            he_initialize(self.conv1)


class AssembledCifarResNet(CifarResNet):
    """Chapter 2's small ResNet with techniques: (N, 3, H, W) to (N, classes).

    After the same seed it has the first weights of the plain one wherever it has the same
    layers.
    """

    def __init__(self, depth, width=16, classes=10, **tweaks):
        super().__init__(depth, width, option="B", classes=classes)
        plain, n = self.state_dict(), len(self.layer1)
        self.layer1 = stage(AssembledBasicBlock, width, width, n, 1, **tweaks)
        self.layer2 = stage(AssembledBasicBlock, width, 2 * width, n, 2, **tweaks)
        self.layer3 = stage(AssembledBasicBlock, 2 * width, 4 * width, n, 2, **tweaks)
        self.load_state_dict(plain, strict=False)


# %% [markdown]
# ### Big-Little
#
# The first stages work on large maps, and that is where the time goes. Big-Little splits a stage in two. The **big** branch has nearly all blocks, but at *half
# the resolution*: a quarter of the multiply-adds. The **little** branch keeps the resolution and has a single block, half as wide ($\alpha = 2$; $\beta = 4$
# divides the number of blocks). The big map is enlarged, the two are added, and a last block merges them. So the network is *faster*.


# %% tags=["model"]
def group(before, channels, count, stride, last_relu=True, **tweaks):
    """`count` bottlenecks, the first with a projection whatever its shape."""
    blocks = [AssembledBottleneck(before, channels, stride, option="C", **tweaks)]
    blocks += [AssembledBottleneck(4 * channels, channels, **tweaks) for _ in range(count - 1)]
    blocks[-1].last_relu = last_relu
    return nn.Sequential(*blocks)


def conv_bn(before, after, kernel, stride=1):
    """A convolution without bias that keeps the size or divides it by the stride, and its BN."""
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class BigLittle(nn.Module):
    """A stage in two branches: (N, before, H, W) to (N, 4 channels, H/stride, W/stride).

    big: all blocks but one at half the resolution. little: fewer (beta) and narrower (alpha)
    blocks at the full resolution. The last block merges both.
    """

    def __init__(self, before, channels, count, stride, alpha=2, beta=4, **tweaks):
        super().__init__()
        wide, few = 4 * channels, max(1, count // beta - 1)
        self.big = group(before, channels, count - 1, 2, last_relu=False, **tweaks)
        self.little = group(before, channels // alpha, few, 1, **tweaks)
        self.widen = conv_bn(wide // alpha, wide, 1)
        self.merge = group(wide, channels, 1, stride, **tweaks)

    def forward(self, x):
        big = F.interpolate(self.big(x), scale_factor=2.0)  # each position becomes 2x2
        return self.merge((big + self.widen(self.little(x))).relu())


# %% [markdown]
# Two details are easy to miss. The big branch ends without a ReLU, which comes after the addition. And the stride moves from the *start* of a stage to the
# merging block at its *end*; so the third stage has stride 1 and leaves the halving to stage 4, which is an ordinary one.


# %% tags=["model"]
class BigLittleStem(nn.Module):
    """In place of the max-pooling: (N, channels, H, W) to (N, channels, H/2, W/2)."""

    def __init__(self, channels, alpha=2):
        super().__init__()
        few = channels // alpha
        self.big = conv_bn(channels, channels, 3, stride=2)
        self.little = nn.Sequential(
            conv_bn(channels, few, 3),
            nn.ReLU(),
            conv_bn(few, few, 3, stride=2),
            nn.ReLU(),
            conv_bn(few, channels, 1),
        )
        self.merge = nn.Sequential(conv_bn(channels, channels, 1), nn.ReLU())

    def forward(self, x):
        return self.merge((self.big(x) + self.little(x)).relu())


# %% tags=["model"]
class AssembleResNet50(nn.Module):
    """Big-Little ResNet-50: (N, 3, H, W) to (N, classes), H and W multiples of 32.

    tweaks: as in Assembled. All of them, d=True, attention="SK" and blur=True, make the paper's
    Assemble-ResNet-50.
    """

    def __init__(self, classes=1000, **tweaks):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 7, stride=2), nn.ReLU())  # 64 x 112 x 112
        self.pool = BigLittleStem(64)  # 64 x 56 x 56
        self.layer1 = BigLittle(64, 64, 3, 2, **tweaks)  # 256 x 28 x 28
        self.layer2 = BigLittle(256, 128, 4, 2, **tweaks)  # 512 x 14 x 14
        self.layer3 = BigLittle(512, 256, 6, 1, **tweaks)  # 1024 x 14 x 14
        self.layer4 = group(1024, 512, 3, 2, **tweaks)  # 2048 x 7 x 7
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)
        he_initialize(self)

    def forward(self, images):
        x = self.pool(self.stem(images))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
with torch.device("meta"):
    model = AssembleResNet50(d=True, attention="SK", blur=True)
rows = {row["layer"]: row["output"] for row in inspect.trace(model, (3, 224, 224)).rows}
parts = {"big, enlarged to": "widen.1", "little": "little.0.relu", "merged": "merge.0.relu"}
Table(
    {"stage": n} | {name: rows[f"layer{n}.{layer}"] for name, layer in parts.items()}
    for n in (1, 2, 3)
)

# %% [markdown]
# ## The regularisers
#
# ### Label smoothing and mixup
#
# Both are equation [(9.1)](#eq-assembled-targets). Cross-entropy with a target of exactly 1 is never satisfied: it pushes the logits apart without end. Smoothing
# gives it a finite goal. Mixup keeps the network from being extreme between its training images.
#
# Where does the partner image come from? The authors' code has two kinds. **Kind 1** mixes the first half of a batch with the second. **Kind 2** mixes a batch
# with itself in reverse order. Their ImageNet recipe uses kind 1. Exercise 2 asks for the catch of each.


# %% tags=["model"]
def smooth(labels, classes, epsilon=0.1):
    """Labels (N,) as probabilities (N, classes): epsilon of the mass is spread over all
    classes."""
    return (1 - epsilon) * F.one_hot(labels, classes).float() + epsilon / classes


def mix(first, second, share):
    """share · first + (1 - share) · second, image by image: tensors (N, ...), share (N,)."""
    share = share.view(-1, *[1] * (first.ndim - 1))
    return share * first + (1 - share) * second


def mixup(images, targets, share, kind=2):
    """Images (N, C, H, W) and each tensor in `targets` (N, M), mixed in pairs.

    kind 1: the first half with the second; N/2 mixed images, share (N/2,).
    kind 2: every image with the one at the other end of the batch; N of them, share (N,).
    """

    def pairs(x):
        if kind == 1:
            return mix(*x.chunk(2), share)
        return mix(x, x.flip(0), share)

    return pairs(images), {name: pairs(x) for name, x in targets.items()}


# %% tags=["model"]
class Mixup:
    """A step of augmentation: mixup with shares from Beta(alpha, alpha).

    The draws come from a generator of their own, so that the batches of `train.fit` stay the
    same.
    """

    def __init__(self, alpha=0.2, kind=2, seed=0):
        self.alpha, self.kind, self.random = alpha, kind, np.random.default_rng(seed)

    def __call__(self, images, targets, generator):
        pairs = len(images) // 2 if self.kind == 1 else len(images)
        share = torch.from_numpy(self.random.beta(self.alpha, self.alpha, pairs)).to(images)
        return mixup(images, targets, share, self.kind)


# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
labels = torch.tensor([3, 5, 8, 0])
logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
targets = smooth(labels, 10)
print(f"true class: {targets[0, 3]:.2f}, every other: {targets[0, 0]:.2f}")
same = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
print(
    "same loss as PyTorch's label smoothing:",
    torch.allclose(F.cross_entropy(logits, targets), same),
)
for kind in (1, 2):
    share = torch.full((2 if kind == 1 else 4,), 0.75)
    pictures, mixed = mixup(torch.rand(4, 3, 8, 8), {"label": targets}, share, kind)
    print(
        f"kind {kind}: {len(pictures)} images from 4, each target adds up to 1:",
        torch.allclose(mixed["label"].sum(1), torch.ones(len(pictures))),
    )

# %% [markdown]
# ### DropBlock
#
# Dropout sets single numbers to zero. In a feature map that hardly matters: the neighbours know nearly the same. So
# DropBlock takes out whole squares. The paper lets $\kappa$ fall from 1 to 0.9 over the training.


# %% tags=["model"]
class DropBlock(nn.Module):
    """While training, (N, C, H, W) with squares of size x size set to zero; the rest is scaled
    up.

    keep: the share of positions that should stay. scale: gamma is multiplied by it
    (0.25 in the third stage of the paper, 1 in the fourth).
    """

    def __init__(self, keep=0.9, size=7, scale=1.0):
        super().__init__()
        if not 0 < keep <= 1 or size % 2 == 0:
            raise ValueError(f"keep={keep}, size={size}: keep is in (0, 1], the size odd.")
        self.keep, self.size, self.scale = keep, size, scale

    def gamma(self, height, width):
        """The chance of a position to be the centre of a square."""
        size = min(self.size, height, width)
        centres = (height - size + 1) * (width - size + 1)
        return self.scale * (1 - self.keep) * height * width / (size**2 * centres)

    def mask(self, x):
        """1 where x stays, 0 where it is dropped."""
        n, channels, height, width = x.shape
        size = min(self.size, height, width)
        centres = x.new_empty(n, channels, height - size + 1, width - size + 1)
        centres.bernoulli_(self.gamma(height, width))
        centres = F.pad(centres, [size - 1] * 4)  # squares stay within the map
        return 1 - F.max_pool2d(centres, size, stride=1)

    def forward(self, x):
        if not self.training or self.keep == 1:
            return x
        mask = self.mask(x)
        return x * mask * (mask.numel() / mask.sum().clamp_min(1))


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    train.set_seed(1)
    for ax, size in zip(fig.subplots(1, 4), (1, 3, 5, 7), strict=True):
        layer = DropBlock(0.7, size)
        ax.imshow(layer.mask(torch.zeros(1, 1, 28, 28))[0, 0], cmap="gray", vmin=0, vmax=1)
        ax.set_title(
            f"size {size}, $\\gamma$ = {layer.gamma(28, 28):.3f}", fontsize=9, loc="center"
        )
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)


plot.show(
    draw,
    alt="Four masks of 28x28 positions with dropped squares of side 1, 3, 5 and 7 in black; the black share is about the same.",
    caption="What DropBlock drops (black) on a map of 28x28 with keep = 0.7. Size 1 is ordinary dropout.",
    height=1.95,
)

# %% [markdown]
# Is the share that is kept the share that was asked for? The formula for $\gamma$ counts every square in full, but squares overlap. The chance to survive is
# that of no centre nearby, about $e^{-(1 - \kappa)}$ far from the border.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
train.set_seed(0)
ones = torch.ones(64, 32, 14, 14)
rows = []
for keep in (0.95, 0.9, 0.8, 0.7, 0.5):
    kept = [float(DropBlock(keep, size).mask(ones).mean()) for size in (1, 3, 7)]
    row = {"keep, asked": keep} | {
        f"kept, size {s}": k for s, k in zip((1, 3, 7), kept, strict=True)
    }
    rows.append(row | {"exp(keep - 1)": math.exp(keep - 1)})
Table(rows, decimals=3)

# %% [markdown]
# With squares, more is kept than asked, and the lower `keep` is, the larger the difference. At the paper's 0.9 it is small. Torchvision has the layer; the same
# random numbers must give the same result.

# %% tags=["nbval-check-output"]
features = torch.randn(4, 8, 14, 14, generator=torch.Generator().manual_seed(0))
train.set_seed(0)
ours = DropBlock(0.8, 7)(features)
train.set_seed(0)
theirs = torchvision.ops.drop_block2d(features, 0.2, 7, training=True)
print("same as torchvision:", torch.allclose(ours, theirs, atol=1e-5))
print(
    "the identity in evaluation mode:",
    torch.equal(DropBlock(0.8, 7).eval()(features), features),
)

# %% [markdown]
# ### AutoAugment
#
# Which distortions of an image help training? AutoAugment let a controller network find out, by reinforcement learning over some 5,000 GPU hours for CIFAR-10
# and 15,000 for ImageNet (Table 1 of its paper). The result is a list of 25 pairs. For every image one pair is drawn; each of its two operations has a chance of
# being applied and a level from 0 to 9.
#
# The fourteen operations are torchvision's, which takes one strength for a whole batch. The cells folded here take one for each image, to be fast enough for a
# study; the tests compare them with torchvision's. (Only *Equalize* differs: exact shares here, whole numbers there, which leave most 16x16 images as they
# are.) The policy is the one for CIFAR-10; the paper takes that for ImageNet. A higher level of *Solarize* and *Posterize* changes more, as in torchvision; in
# the code that the authors used, it changes less.


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def blend(weak, strong, factor):
    """From `weak` (factor 0) to `strong` (1) and beyond, cut to [0, 1]."""
    return (weak + factor * (strong - weak)).clamp(0, 1)


def grey(x):
    """The brightness of (N, 3, H, W) as (N, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def softened(x):
    """The mean of each pixel's 3x3 square, the middle counted five times; the border stays."""
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    weight = (kernel / 13).expand(x.shape[1], 1, 3, 3)
    inner = F.conv2d(x, weight, groups=x.shape[1])
    x = x.clone()
    x[:, :, 1:-1, 1:-1] = inner
    return x


def stretched(x):
    """Each channel of each image stretched to [0, 1]; a channel of one value stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def equalized(x):
    """Each channel's values replaced by the share of its pixels that are not larger."""
    values = (255 * x).round().long().flatten(2)  # (N, C, H W)
    counts = x.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, torch.ones_like(values, dtype=x.dtype))
    shares = (counts.cumsum(2) / values.shape[2]).gather(2, values)
    lowest = shares.amin(2, keepdim=True)
    spread = (shares - lowest) / (1 - lowest).clamp_min(1e-6)
    return torch.where(lowest[..., None] < 1, spread.view(x.shape), x)


def warp(x, rows):
    """Images moved: `rows` are the 2x3 numbers that lead from a place (x, y, 1) in the new
    image to that in the old.

    Places lie in [-1, 1]; each number is one for all images or one for each, (N,).
    """
    entries = [torch.as_tensor(value).to(x).expand(len(x)) for row in rows for value in row]
    matrix = torch.stack(entries, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, x.shape, align_corners=False)
    moved = F.grid_sample(x - 0.5, grid, mode="nearest", align_corners=False)
    return moved + 0.5  # what comes in from outside is grey


def turned(x, m):
    """Rotated by m degrees about the middle, against the clock."""
    cosine, sine = torch.deg2rad(m).cos(), torch.deg2rad(m).sin()
    return warp(x, ((cosine, -sine, 0), (sine, cosine, 0)))


def posterized(x, bits):
    """The highest bits of each value, the others 0."""
    step = 2 ** (8 - column(bits).round())
    return (255 * x).round().div(step, rounding_mode="floor") * step / 255


def column(m):
    """(N,) as (N, 1, 1, 1), to go with images."""
    return m.view(-1, 1, 1, 1)


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
# operation: its strength at level 0 and at level 9, whether its sign is drawn, and what it does
# to images x (N, 3, H, W) in [0, 1] with strengths m (N,); the last three have no strength
OPERATIONS = {
    "ShearX": ((0, 0.3), True, lambda x, m: warp(x, ((1, m, 0), (0, 1, 0)))),
    "ShearY": ((0, 0.3), True, lambda x, m: warp(x, ((1, 0, 0), (m, 1, 0)))),
    "TranslateX": ((0, 150 / 331), True, lambda x, m: warp(x, ((1, 0, -2 * m), (0, 1, 0)))),
    "TranslateY": ((0, 150 / 331), True, lambda x, m: warp(x, ((1, 0, 0), (0, 1, -2 * m)))),
    "Rotate": ((0, 30), True, turned),
    "Brightness": ((0, 0.9), True, lambda x, m: blend(torch.zeros_like(x), x, 1 + column(m))),
    "Color": ((0, 0.9), True, lambda x, m: blend(grey(x), x, 1 + column(m))),
    "Contrast": (
        (0, 0.9),
        True,
        lambda x, m: blend(grey(x).mean((2, 3), keepdim=True), x, 1 + column(m)),
    ),
    "Sharpness": ((0, 0.9), True, lambda x, m: blend(softened(x), x, 1 + column(m))),
    "Posterize": ((8, 4), False, posterized),
    "Solarize": ((1, 0), False, lambda x, m: torch.where(x >= column(m), 1 - x, x)),
    "AutoContrast": ((0, 0), False, lambda x, m: stretched(x)),
    "Equalize": ((0, 0), False, lambda x, m: equalized(x)),
    "Invert": ((0, 0), False, lambda x, m: 1 - x),
}


def operate(name, x, levels, signs):
    """One operation on images (N, 3, H, W) in [0, 1] at levels 0 to 9 (N,), signs -1 or 1 (N,)."""
    (low, high), signed, function = OPERATIONS[name]
    strengths = low + (high - low) * levels / 9
    return function(x, strengths * signs if signed else strengths)


# %% tags=["model"]
KINDS = torchvision.transforms.AutoAugmentPolicy


POLICY = torchvision.transforms.AutoAugment(
    KINDS.CIFAR10
).policies  # 25 pairs (operation, chance, level)


class AutoAugment:
    """A step of augmentation: for each image one of the policy's pairs of operations.

    data: whose normalisation the images have. The draws come from a generator of their own.
    """

    def __init__(self, data, policy=POLICY, seed=0):
        self.data, self.policy, self.random = data, policy, np.random.default_rng(seed)

    def __call__(self, images, targets, generator):
        x = self.data.denormalize(images)
        pairs = [self.policy[k] for k in self.random.integers(len(self.policy), size=len(x))]
        for step in (0, 1):
            draws, signs = self.random.random(len(x)), self.random.choice((-1.0, 1.0), len(x))
            todo = {}  # operation -> the images it is for
            for i, pair in enumerate(pairs):
                name, chance, level = pair[step]
                if draws[i] < chance:
                    todo.setdefault(name, []).append((i, level or 0, signs[i]))
            for name, found in todo.items():
                index, levels, sign = torch.tensor(found, dtype=x.dtype, device=x.device).T
                x[index.long()] = operate(name, x[index.long()], levels, sign)
        return self.data.normalize((255 * x).round().to(torch.uint8)), targets


# %% tags=["model"]
def in_turn(*steps):
    """One augmentation out of several, for `train.fit`."""

    def augment(images, targets, generator):
        for step in steps:
            images, targets = step(images, targets, generator)
        return images, targets

    return augment


# %% tags=["nbval-check-output"]
print("pairs in the policy:", len(POLICY), "- the first two:")
for pair in POLICY[:2]:
    print("  ", pair)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ten = plot.fixed_images(data)
normalised = data.normalize(data.test.images[ten])
distorted, _ = AutoAugment(data, seed=3)(normalised, None, None)
mixed, _ = mixup(normalised, {}, torch.full((10,), 0.7))
sample = {"original": normalised, "mixup, 0.7": mixed, "AutoAugment": distorted}


def draw(fig):
    for line, (name, batch) in zip(fig.subplots(3, 10), sample.items(), strict=True):
        for ax, image in zip(line, data.denormalize(batch), strict=True):
            ax.imshow(image.permute(1, 2, 0))
            ax.set_axis_off()
        line[0].text(
            -0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9
        )


plot.show(
    draw,
    alt="Ten images in three rows: as they are, mixed with one another at 0.7 to 0.3, and distorted by AutoAugment.",
    caption="One image of each class, mixed with its partner from the other end of the row, and distorted by the policy. "
    f"Data: {data.provenance}.",
    height=2.3,
)

# %% [markdown]
# ### Distillation
#
# The last regulariser is Hinton's: a larger network's probabilities as a second target, with chapter 8's loss. The paper sets $T = 1$ (so its script), computes
# the teacher's logits once, before the training, and mixes the teacher's probabilities with the same $\lambda$ as the labels. At $T = 1$ the loss is
# cross-entropy with the teacher's probabilities, less their entropy, which no gradient sees.


# %% tags=["model"]
kd_loss = chapter("08_feature_distillation").kd_loss


class AssembledLoss:
    """Cross-entropy with soft targets, plus distillation where a teacher's probabilities are
    given.

    steps: of the whole training; DropBlock's keep falls from 1 to `keep` over them.
    """

    def __init__(self, steps, keep=0.9):
        self.steps, self.keep, self.step = steps, keep, 0

    def __call__(self, model, images, targets):
        self.step += 1
        for module in model.modules():
            if isinstance(module, DropBlock):
                module.keep = 1 - (1 - self.keep) * min(1, self.step / self.steps)
        logits = model(images).float()
        loss = F.cross_entropy(logits, targets["label"])
        if "teacher" in targets:
            loss = loss + kd_loss(logits, targets["teacher"].log(), temperature=1.0)
        return loss


# %% tags=["nbval-check-output"]
teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)).softmax(1)
student = logits.clone().requires_grad_()
(a,) = torch.autograd.grad(kd_loss(student, teacher.log(), 1.0), student)
(b,) = torch.autograd.grad(F.cross_entropy(student, teacher), student)
print("same gradient as cross-entropy with soft targets:", torch.allclose(a, b, atol=1e-6))

# %% [markdown]
# ## Checks: are these the paper's networks?
#
# The paper prints no parameter counts. A comment in the authors' training script gives 41,848,489 for the final network, with 1001 classes (ImageNet's thousand
# and one for background). For ResNet-50-D the reference is the implementation in timm, with 25,576,264; the tests of this chapter also compare its answers with
# ours, weight for weight, and those of its blur layer.

# %% tags=["model"]
TWEAKS = {
    "ResNet-50": {},
    "+ D": {"d": True},
    "+ D, SE": {"d": True, "attention": "SE"},
    "+ D, SK": {"d": True, "attention": "SK"},
    "+ SK alone": {"attention": "SK"},
    "+ anti-aliasing alone": {"blur": True},
}
FINAL = partial(AssembleResNet50, d=True, attention="SK", blur=True)
WITHOUT_SK = partial(AssembleResNet50, d=True, blur=True)
NETWORKS = Variants(
    "09_assembled_cnn",
    "ResNet-50 is v1.5 here. The paper prints no counts. Blurring filters count as convolutions.",
    [
        *[
            Variant(name, partial(AssembledResNet, 50, **tweaks), (3, 224, 224))
            for name, tweaks in TWEAKS.items()
        ],
        Variant("Big-Little, D, anti-aliasing", WITHOUT_SK, (3, 224, 224), pixel=None),
        Variant("Assemble-ResNet-50", FINAL, (3, 256, 256), "41.85 M", pixel=None),
    ],
    printed=("authors' code", ""),
    remark="The authors' code says 41,848,489 for Assemble-ResNet-50 with 1001 classes. With as many, ours has exactly "
    "that number.",
    sized=True,
)

# %% tags=["nbval-check-output"]
Table(counted(NETWORKS))

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    parameters = inspect.count_parameters(FINAL(1001))
print(
    f"Assemble-ResNet-50 with 1001 classes: {parameters:,}; as the authors' code:",
    parameters == 41_848_489,
)

# %% [markdown]
# **Equality.** Without any technique, our classes must give chapter 2's answers, which are torchvision's. And after the same seed all small networks must start
# with the same weights, wherever they have the same layers.

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
ours = resnet.shake_batch_norms(AssembledResNet(50, classes=10))
theirs = ResNet(*RESNETS[50], 10, placement="v1.5")
theirs.load_state_dict(ours.state_dict())  # the names are the same, too
noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
print("relative difference below 1e-12:", relative_difference(ours, theirs, noise) < 1e-12)

starts = []
for tweaks in ({}, {"d": True, "attention": "SE", "r": 4, "blur": True}):
    train.set_seed(0)
    starts.append(AssembledCifarResNet(8, 8, **tweaks).state_dict())
plain, tweaked = starts
print("same first weights:", all(torch.equal(tweaked[name], plain[name]) for name in plain))

# %% [markdown]
# ### The paper's ladder
#
# This is the table that the paper is about, its Table 7: ImageNet, one technique more in each row, with the epochs of its training and the side of the
# test images. Where no throughput is printed, the network in use is that of the row above.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
PAPER = [  # step, what is new, epochs, px, top-1 in %, mCE in %, images per second: Table 7
    ("E0", "ResNet-50", 120, 224, 76.87, 75.55, 536),
    ("E1", "ResNet-D", 120, 224, 77.37, 75.73, 493),
    ("E2", "label smoothing", 120, 224, 78.35, 74.27, None),
    ("E3", "mixup", 200, 224, 79.10, 68.19, None),
    ("E4", "SE", 200, 224, 79.71, 64.48, 420),
    ("E5", "DropBlock", 270, 224, 80.40, 62.64, None),
    ("E6", "SK in place of SE", 270, 224, 81.40, 58.34, 359),
    ("E7", "distillation", 270, 224, 81.69, 57.08, None),
    ("E8", "600 epochs", 600, 224, 82.10, 56.48, None),
    ("E9", "Big-Little", 600, 256, 82.44, 55.20, 359),
    ("E10", "anti-aliasing", 600, 256, 82.69, 54.12, 312),
    ("E11", "AutoAugment", 600, 256, 82.78, 48.89, 312),
    ("E12", "ResNet-152 in place of 50", 600, 256, 84.19, 43.27, 143),
]
COLUMNS = ("paper's step", "new", "epochs", "px", "top-1 in %", "mCE in %", "images/s")
rows = [dict(zip(COLUMNS, entry, strict=True)) for entry in PAPER]
for before, row in zip([None, *rows], rows, strict=False):
    for gain, of, sign in (("gain", "top-1 in %", 1), ("mCE less by", "mCE in %", -1)):
        row[gain] = f"{sign * (row[of] - before[of]):+.2f}" if before else ""
Table(rows, decimals=2)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subplots(1, 2)
    names = [f"{step} {new}" for step, new, *_ in PAPER]
    for ax, column, colour in ((left, 4, "C0"), (right, 5, "C1")):
        values = [entry[column] for entry in PAPER]
        ax.plot(values, range(len(PAPER)), "o-", color=colour)
        ax.set_ylim(len(PAPER) - 0.5, -0.5)
        ax.set_yticks(range(len(PAPER)), names if ax is left else [""] * len(PAPER), fontsize=8)
    left.set_title("paper: top-1 accuracy in %")
    right.set_title("paper: mCE in %, lower is better")


plot.show(
    draw,
    alt="The paper's thirteen steps from top to bottom: top-1 accuracy rises from 76.9 to 84.2 percent, and mCE falls from 75.6 to 43.3 "
    "percent, with the largest steps at mixup, SK, AutoAugment and ResNet-152.",
    caption="The ladder of the paper (Table 7). Accuracy creeps up in small steps; mCE falls in a few large ones.",
    height=3.6,
)

# %% [markdown]
# How to read such a table:
#
# - **Accuracy and robustness are different things.** AutoAugment (E11) gains 0.09 points of accuracy and 5.23 points of mCE. (For the latter the paper prints
#   4.14; its own two rows give 5.23.) ResNet-D gains accuracy and no mCE at all.
# - **Three steps also train longer.** Mixup came with 200 epochs in place of 120, DropBlock with 270, and E8 is nothing but 600 in place of 270. What 600 epochs
#   would do for E0 is not in the table.
# - **E9 trades at equal throughput.** Big-Little makes the network faster, and images of 256 pixels spend all of that: 359 images per second before and after.
#   The gain belongs to the pair. The authors' script trains at 224 pixels.
# - **From E9 on mCE is measured on other images**: the corruptions were made again at 256 pixels.
# - **E12 changes more than the depth**: another teacher, other $\alpha$ and $\beta$ of Big-Little, another preprocessing.
# - **E11, the final network, has no SE**, which E6 replaced by SK, **and of D the shortcut alone**: with Big-Little, the stem of three convolutions made the
#   training unstable, so the 7x7 is back.
# - **The baseline of the abstract, 76.3 % and an mCE of 76.0 %, is not E0.** 76.30 is C0 of Table 2, with a learning rate that falls in steps. From E0 the gain
#   is 5.9 points, not 6.5. The abstract (version 2) also gives *mFR*, 57.7 % to 32.3 %: how often a prediction flips while a picture is changed little by little.
# - **The order decides.** A technique is credited with what it adds to all before it. And each row is one training.
#
# The paper tries other orders in its Table 6. SK is worth +1.62 points alone and +1.46 on top of D; in place of SE +0.52 without the regularisers and +1.00 with
# them; anti-aliasing +0.12 and +0.25.

# %% [markdown]
# ### Throughput, measured here
#
# What do the tweaks cost *you*? The full-size networks, untrained, on this machine's processor, one image at a time, beside the paper's (on a GPU, in batches),
# each as a multiple of ResNet-50's time.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
PAPER_SPEED = {
    "ResNet-50": 536,
    "+ D": 493,
    "+ D, SE": 420,
    "+ D, SK": 359,
    "Assemble-ResNet-50": 312,
}
BY_NAME = {network.name: network for network in NETWORKS}
rows = []
for name, paper_speed in list(PAPER_SPEED.items())[: pick(full=5, quick=2)]:
    side = pick(full=BY_NAME[name].shape[1], quick=32)
    seconds = inspect.time_per_image(
        BY_NAME[name].build(), (3, side, side), seconds=pick(full=1.0, quick=0.01)
    )
    macs = BY_NAME[name].counts["multiply-adds"]
    rows.append(
        {"network": name, "giga multiply-adds": macs / 1e9, "images/s here": 1 / seconds}
    )
    first = rows[0]
    rows[-1] |= {
        "multiply-adds, times ResNet-50": macs / 1e9 / first["giga multiply-adds"],
        "time here, times ResNet-50": first["images/s here"] * seconds,
        "paper: time, times ResNet-50": 536 / paper_speed,
    }
Table(rows, decimals=2)

# %% [markdown]
# Squeeze-and-excitation is the classic case: hardly any multiply-adds, but on the paper's GPU a good part of the speed (from 493 to 420 images per second). It
# reads each map twice and waits in between. On this processor the step from the row above is about as large; on another it may not be. So measure on the
# machine that you will use.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | network | ResNet-50, bottlenecks | ResNet-8 of width 8, basic blocks | minutes instead of GPU weeks; 20,000 parameters have little to regularise |
# | images | ImageNet; crops of 5 to 100 % of the area, at 224x224 | CIFAR-10 at 16x16; shift by 2 and flip | the same |
# | training images | 1.28 M | 2,000 in the study, 10,000 live | the study has many arms |
# | optimiser | SGD, momentum 0.9, batch 1024, peak learning rate 0.4, cosine, 5 epochs of warm-up, weight decay 1e-4 | Nesterov momentum, batch 64, one cycle with peak 0.1, the same decay; live: the course's recipe for few epochs | small batches give few images more steps |
# | length | 120, 200, 270 and 600 epochs along the ladder | 8 epochs; 24 in two arms | minutes instead of days |
# | ResNet-D | stride, stem and shortcut; with Big-Little no stem | the shortcut alone | basic blocks have no 1x1 with stride, and the small stem is a 3x3 already |
# | SE | ratio 16, no biases | ratio 4, biases, as in chapter 6 | 8 channels cannot be divided by 16 |
# | Big-Little | $\alpha = 2$, $\beta = 4$ | built and counted, not trained | maps of 16x16 are too small |
# | DropBlock | side 7, third and fourth stage, one mask for a batch | side 3, second and third stage, a mask for each image | maps of 8x8 and 4x4 |
# | mixup | kind 1 | kind 2 | the same number of images per step in all arms |
# | distillation | an AmoebaNet's logits | chapter 8's teacher | ours saw all 50,000 training images; the student sees 2,000 |
# | mCE | ImageNet-C, over AlexNet; the authors' script averages 19 kinds | four kinds, three severities, over ResNet-8 | |

# %% [markdown]
# ## The data
#
# Corrupted and augmented images were shown above. A corruption is normalised like a clean image, with the statistics
# of the clean training images:

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
batch = data.normalize(data.train.images[:600])
print("images:", tuple(batch.shape[1:]))
print("mean of each channel within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
print(
    "standard deviation within 0.1 of 1:", bool(((batch.std((0, 2, 3)) - 1).abs() < 0.1).all())
)
pale = data.normalize(corrupted(data)["contrast"][2])
print(
    "the palest images are not stretched again, standard deviation below 0.75:",
    bool((pale.std((0, 2, 3)) < 0.75).all()),
)

# %% [markdown]
# ## Training
#
# The network of all arms, and a training with any of the regularisers. Every arm sees the same images in the same order.


# %% tags=["model"]
def small_network(drop=False, depth=8, width=8, **tweaks):
    """The network of an arm: 16x16 images (N, 3, 16, 16) to logits (N, 10)."""
    model = AssembledCifarResNet(depth, width, r=4, **tweaks)
    return add_dropblock(model, {"layer2": 0.25, "layer3": 1.0}, size=3) if drop else model


def with_soft_targets(data, epsilon=0.0, teacher=None):
    """The same data with training targets as probabilities: of the label, and of a teacher."""
    split, targets = data.train, {}
    targets["label"] = smooth(split.targets, len(data.classes), epsilon)
    if teacher is not None:
        logits = train.predict(teacher, data, split.images)
        targets["teacher"] = logits.softmax(1).clamp_min(1e-6)
    return replace(data, train=Split(split.images, targets))


# %% tags=["model"]
def train_assembled(
    model,
    data,
    *,
    epochs,
    seed=0,
    epsilon=0.0,
    mixing=False,
    policy=False,
    teacher=None,
    label="training",
):
    """Train a network in place with the regularisers asked for; returns the history."""
    steps = [train.Augment(shift=2)]
    steps += [AutoAugment(data, seed=seed)] if policy else []
    steps += [Mixup(seed=seed)] if mixing else []
    batch = 64
    return train.fit(
        model,
        with_soft_targets(data, epsilon, teacher),
        epochs=epochs,
        batch_size=batch,
        weight_decay=1e-4,
        augment=in_turn(*steps),
        loss=AssembledLoss(epochs * max(1, len(data.train) // batch)),
        eval_every=epochs,
        seed=seed,
        label=label,
    )


# %% [markdown]
# Can a network with all tweaks learn one batch by heart?

# %% tags=["nbval-check-output"]
train.set_seed(0)
last = train.overfit(
    small_network(d=True, attention="SK", blur=True), data, images=32, steps=100
)
print("32 images learned by heart, loss below 0.1:", last < 0.1)

# %% [markdown]
# Two more networks, for as many epochs as the plain one and on the same images: one with anti-aliasing alone, one with all the techniques of our ladder but
# distillation: D, SK (in place of SE), DropBlock, anti-aliasing, label smoothing, mixup and AutoAugment.

# %%
train.set_seed(0)
networks["anti-aliased"] = small_network(blur=True)
train.fit(
    networks["anti-aliased"],
    data,
    train.SHORT,
    epochs=EPOCHS,
    augment=shift,
    eval_every=EPOCHS,
    label="anti-aliased",
)

train.set_seed(0)
networks["all"] = small_network(drop=True, d=True, attention="SK", blur=True)
train.fit(
    networks["all"],
    with_soft_targets(data, epsilon=0.1),
    train.SHORT,
    epochs=EPOCHS,
    augment=in_turn(shift, AutoAugment(data), Mixup()),
    loss=AssembledLoss(steps=EPOCHS * (len(data.train) // train.SHORT.batch_size)),
    eval_every=EPOCHS,
    label="all",
)


# %% tags=["model"]
def calibration_error(logits, labels, bins=10):
    """Expected calibration error: |accuracy - confidence| of each bin of confidence, weighted
    by its images."""
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, place, right - confidence)
    return float(gaps.abs().sum() / len(labels))


def scores(model, data):
    """All that the study measures, on test images; and the error on training images as they
    are."""
    logits = train.predict(model, data, data.test.images)
    labels = data.test.targets
    seen = train.predict(model, data, data.train.images[:500])
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "train_accuracy": metrics.accuracy(seen, data.train.targets[:500]),
        "confidence": float(logits.softmax(1).max(1).values.mean()),
        "calibration_error": calibration_error(logits, labels),
        "flips": flips(model, data),
        **corruption_errors(model, data),
    }


# %%
live = {name: scores(network, data) for name, network in networks.items()}
CORRUPTED = {kind: live["plain"][kind] for kind in CORRUPTIONS}
Table(
    [
        {
            "network": name,
            "test accuracy in %": 100 * found["accuracy"],
            "training accuracy in %": 100 * found["train_accuracy"],
            "mini-mCE in %": mini_mce(found, CORRUPTED),
            "flips in %": 100 * found["flips"],
            "mean confidence in %": 100 * found["confidence"],
        }
        for name, found in live.items()
    ],
    decimals=1,
)

# %% [markdown]
# The blur has no parameters, so the first two networks are equally large; compare their *flips*. In the last row, compare training and test accuracy: a
# regulariser works on the distance between them, and where there is little distance, there is little to gain. (Training accuracy is that of 500 images only, so
# it may come out below the test accuracy.)

# %% [markdown]
# ## Results: the paper beside ours
#
# One training of each proves little. So a study trained the steps of the ladder with six seeds, on 2,000 images, in the paper's order, without Big-Little. (Three at first;
# the others were added because too little was clear.)
# Distillation comes last, because its teacher has seen more images than the students.


# %% tags=["model"]
@functools.cache
def part_of_cifar10():
    """2,000 training and 1,000 test images of CIFAR-10, at 16x16 pixels."""
    return at_16_pixels(cifar10(train=2000, test=1000))


def train_arm(data, *, seed, tweaks, recipe, distil=False, epochs=8):
    """One training of the study: tweaks of the network, regularisers of the training."""
    train.set_seed(seed)
    model = small_network(**tweaks)
    teacher = chapter("08_feature_distillation").TEACHER.load() if distil else None
    train_assembled(model, data, epochs=epochs, seed=seed, teacher=teacher, **recipe)
    return scores(model, data)


# %% tags=["model"]
STEPS = {  # what each step adds to the network and to the training, in the paper's order
    "ResNet-8": ({}, {}),
    "+ D": ({"d": True}, {}),
    "+ label smoothing": ({}, {"epsilon": 0.1}),
    "+ mixup": ({}, {"mixing": True}),
    "+ SE": ({"attention": "SE"}, {}),
    "+ DropBlock": ({"drop": True}, {}),
    "SE to SK": ({"attention": "SK"}, {}),
    "+ anti-aliasing": ({"blur": True}, {}),
    "+ AutoAugment": ({}, {"policy": True}),
}


def ladder():
    """An arm for each step, with all steps before it."""
    arms, tweaks, recipe = {}, {}, {}
    for step, (more_tweaks, more_recipe) in STEPS.items():
        tweaks, recipe = tweaks | more_tweaks, recipe | more_recipe
        arms[step] = {"tweaks": tweaks, "recipe": recipe}
    return arms


ARMS = ladder()


ALL = ARMS["+ AutoAugment"]


def without(part, name):
    """The arm with everything but one technique."""
    return ALL | {part: {key: value for key, value in ALL[part].items() if key != name}}


# %% tags=["model"]
LEFT_OUT = {
    "all but D": without("tweaks", "d"),
    "all but label smoothing": without("recipe", "epsilon"),
    "all but mixup": without("recipe", "mixing"),
    "all but DropBlock": without("tweaks", "drop"),
    "all but SK": without("tweaks", "attention"),
    "all but anti-aliasing": without("tweaks", "blur"),
}


ARMS |= LEFT_OUT


ARMS["+ distillation"] = ALL | {"distil": True}


ARMS["anti-aliasing alone"] = {"tweaks": {"blur": True}, "recipe": {}}


STUDY = Study(
    "09_assembled_cnn", run=train_arm, arms=ARMS, data=part_of_cifar10, seeds=range(6)
)
LADDER = [*STEPS, "+ distillation"]


# %% tags=["model"]
def mces(study, arm):
    """mini-mCE of each seed; the mean errors of the study's plain ResNet-8 are 100 %."""
    base = {kind: study.mean("ResNet-8", kind)[0] for kind in CORRUPTIONS}
    errors = zip(*(study.values(arm, kind) for kind in CORRUPTIONS), strict=True)
    return [mini_mce(dict(zip(CORRUPTIONS, seed, strict=True)), base) for seed in errors]


# %% [markdown]
# Parameters and multiply-adds are counted. Images per second are measured here, in batches of 128; a few per cent between them mean nothing.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def cost(tweaks):
    """Parameters, million multiply-adds and images per second of a small network in use."""
    model = small_network(**tweaks)
    seconds = inspect.time_per_image(
        model, (3, 16, 16), 128, seconds=pick(full=0.6, quick=0.05)
    )
    return {
        "parameters": inspect.count_parameters(model),
        "million multiply-adds": inspect.count_macs(model, (3, 16, 16)) / 1e6,
        "images/s": int(1 / seconds),
    }


def spread(values):
    values = torch.tensor(values)
    return f"{values.mean():.1f} ± {values.std():.1f}"


# %% jupyter={"source_hidden": true} tags=["hide-input"]
costs = {}  # networks that are the same in use are measured once
for arm in LADDER:
    key = str({name: v for name, v in ARMS[arm]["tweaks"].items() if name != "drop"})
    costs[arm] = costs.get(key) or cost(ARMS[arm]["tweaks"])
    costs[key] = costs[arm]
Table(
    {
        "step": arm,
        "top-1 in %": STUDY.text(arm, "accuracy", 100, decimals=1),
        "mini-mCE in %": spread(mces(STUDY, arm)),
        "flips in %": STUDY.text(arm, "flips", 100, decimals=1),
        **costs[arm],
    }
    for arm in LADDER
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subplots(1, 2)
    for ax, title, of in (
        (
            left,
            "ours: top-1 accuracy in %",
            lambda arm: [100 * v for v in STUDY.values(arm, "accuracy")],
        ),
        (right, "ours: mini-mCE in %, lower is better", partial(mces, STUDY)),
    ):
        for row, arm in enumerate(LADDER):
            values = of(arm)
            ax.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
            ax.plot(
                [sum(values) / len(values)] * 2,
                [row - 0.3, row + 0.3],
                color="C1",
                linewidth=2.5,
            )
        ax.set_ylim(len(LADDER) - 0.5, -0.5)
        ax.set_yticks(
            range(len(LADDER)), LADDER if ax is left else [""] * len(LADDER), fontsize=8
        )
        ax.set_title(title)


plot.show(
    draw,
    alt="Dot plots of top-1 accuracy and mini-mCE for each step of our ladder, a dot for each seed and a mean each.",
    caption="Our ladder; each row has the techniques of all rows above it. Dots: one training each; orange: mean. "
    f"Data: {STUDY.provenance()}.",
    height=3.3,
)

# %% [markdown]
# The counted costs first. On this small network D adds no parameter, SE 4 %, and SK makes it 1.6 times as large. Anti-aliasing nearly doubles the
# multiply-adds, because two convolutions move to the larger map. The accuracies are those of 20,000 to 32,000 parameters after 8 passes over 2,000 images:
# compare the rows, and look at how far the dots of a row are apart.
#
# Some arms train here for a moment, to check that the code of the study still runs.

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
few = at_16_pixels(cifar10(train=128, test=100))
for arm in ("ResNet-8", "+ DropBlock", "+ distillation"):
    found = train_arm(few, seed=0, **(ARMS[arm] | {"epochs": 1}))
    print(f"{arm}: runs, and gives {len(found)} numbers")

# %% [markdown]
# ## The paper's claim in miniature
#
# The claim: each step helps, and the gains add up. Each difference is taken seed by seed, and signed so that the claim predicts a positive number. "Seen" means
# that the 95 % interval of its mean lies above zero, "reversed" below; an interval within a point of zero is "too small to matter". All steps together are the
# primary claim, corrected (Holm) for the chapter's other primary ones. Single steps, and what is left out, are exploratory: of some forty such intervals in this
# chapter, two would exclude zero by luck alone.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
LAST = "+ AutoAugment"
RUNGS = list(zip(LADDER, LADDER[1:], strict=False))
ABSENT = {name.removeprefix("all but "): name for name in LEFT_OUT}
CLAIMS = Claims(
    STUDY,
    "accuracy",
    "top-1, points",
    scale=100,
    matters=1.0,
    main={"all steps together raise top-1": ("ResNet-8", LAST)},
    also={f"{after} raises top-1": (before, after) for before, after in RUNGS}
    | {f"{name} is missed in the complete set": (arm, LAST) for name, arm in ABSENT.items()},
    about="The paper's ladder on ResNet-8, for 8 epochs of 2,000 images, each step against the one before it; then the "
    "complete set against the set without one technique, and against the plain network after 24 epochs. *+ "
    "AutoAugment* is the complete set, distillation aside. All arms see the same images equally often; their "
    "multiply-adds differ. *Mini-mCE* is the error on corrupted images in percent of the plain network's, *flips* are "
    "answers that change when the image moves.",
)
# a lower error is better, so the arms change places
ROBUST = Claims(
    STUDY,
    mces,
    "mini-mCE, points",
    matters=1.0,
    main={"all steps together lower mini-mCE": (LAST, "ResNet-8")},
    also={f"{after} lowers mini-mCE": (after, before) for before, after in RUNGS}
    | {f"{name} is missed in the complete set": (LAST, arm) for name, arm in ABSENT.items()},
)

# %%
CLAIMS.table()

# %%
ROBUST.table()

# %% [markdown]
# **Top-1.** The primary claim is reversed: with all techniques but distillation the network is clearly *less* accurate than the plain ResNet-8. But the steps are of two
# kinds. Three changes of the *network* are seen to help: D, SK in place of SE, and anti-aliasing. Three *regularisers* are reversed: mixup, DropBlock
# and, most of all, AutoAugment. (SE and label smoothing are not clear.) In the paper every step goes up.
#
# **mini-mCE.** All steps together change nothing that could be seen. Anti-aliasing lowers it, AutoAugment raises it.
#
# Why so different? A guess: the regularisers make the training images harder, and a network that has not even learned its training images has no use for that. The study of longer
# trainings below bears on it, and the one of networks that overfit is for it.
#
# ### Leave one out
#
# The opposite of the ladder's question is at least as useful: take *one* technique out of the complete set; what is lost? If gains were additive, both would
# give the same number. The verdicts stand in the last rows of the two tables above.

# %%
NAMES = {  # technique -> the step that adds it, the step before, and the arm without it
    "D": ("+ D", "ResNet-8", "all but D"),
    "label smoothing": ("+ label smoothing", "+ D", "all but label smoothing"),
    "mixup": ("+ mixup", "+ label smoothing", "all but mixup"),
    "DropBlock": ("+ DropBlock", "+ SE", "all but DropBlock"),
    "SK (on the ladder: in place of SE)": ("SE to SK", "+ DropBlock", "all but SK"),
    "anti-aliasing": ("+ anti-aliasing", "SE to SK", "all but anti-aliasing"),
    "AutoAugment": ("+ AutoAugment", "+ anti-aliasing", "+ anti-aliasing"),
}
rows = []
for name, (step, before, absent) in NAMES.items():
    added = STUDY.effect(before, step, "accuracy", 100)
    missed = STUDY.effect(absent, LAST, "accuracy", 100)
    rows.append({"technique": name, "gain when added": added, "lost when left out": missed})
total = STUDY.effect("ResNet-8", LAST, "accuracy", 100)
lost = sum(row["lost when left out"].mean for row in rows)
print(f"all over none: {total.mean:+.1f} points; the losses, one by one, add up to {lost:+.1f}")
Table(
    {"technique": row["technique"]}
    | {name: f"{row[name].mean:+.1f} ± {row[name].sd:.1f}" for name in list(row)[1:]}
    for row in rows
)

# %% [markdown]
# Leave mixup out of the complete set, and the network gains almost two points; no other loss of top-1 is clear. Where the two columns differ by more than
# their spread, the order may have decided: SK was worth more than a point in place of SE, and in the crowd nothing that we could see.
#
# If all gains were additive, the two numbers of the first line would be equal (SE has no part in it). They are not far apart. But every one of these
# differences contains the same six trainings of the complete network: if those were unlucky, the sum shows it seven times.
#
# ### Does more training change the verdict?
#
# The paper trains for 120 to 600 epochs. So two arms were trained three times as long: none of the techniques, and all of them.


# %% tags=["model"]
LONG_ARMS = {
    "ResNet-8, 24 epochs": ARMS["ResNet-8"] | {"epochs": 24},
    "all, 24 epochs": ALL | {"epochs": 24},
}


LENGTH = Study(
    "09_assembled_cnn",
    run=train_arm,
    arms=LONG_ARMS,
    data=part_of_cifar10,
    seeds=range(6),
    name="length",
)

LONGER = Claims(
    LENGTH,
    "accuracy",
    "top-1, points, 24 epochs",
    scale=100,
    matters=1.0,
    main={"all steps together raise top-1, 24 epochs": tuple(LONG_ARMS)},
)

# %%
LONGER.table()

# %% jupyter={"source_hidden": true} tags=["hide-input"]
BOTH = {"8 epochs": (STUDY, "ResNet-8", LAST), "24 epochs": (LENGTH, *LONG_ARMS)}


def gap(study, arm):
    """Accuracy on training images minus that on test images, in points."""
    return 100 * (study.mean(arm, "train_accuracy")[0] - study.mean(arm, "accuracy")[0])


rows = []
for length, (study, none, everything) in BOTH.items():
    effect = study.effect(none, everything, "accuracy", 100)
    rows.append(
        {
            "length": length,
            "top-1, none": study.text(none, "accuracy", 100, 1),
            "top-1, all": study.text(everything, "accuracy", 100, 1),
            "all minus none": f"{effect.mean:+.1f} ± {effect.sd:.1f}",
            "training minus test, none": gap(study, none),
            "training minus test, all": gap(study, everything),
        }
    )
Table(rows, decimals=1)

# %% [markdown]
# Three times as long, both networks are better, and the complete set is as far behind as before: reversed, too. The last two columns say how much there
# was to gain at all: the distance between training and test accuracy is about three times as large, and still only a few points. So these networks hardly overfit, with or without. Do not judge the
# paper's recipe by such a training, and do not give such a training its recipe.

# %% [markdown]
# ### Where there is something to regularise
#
# So the ladder belongs to networks that overfit. The study for it is designed, and its code runs: the same arms, the mini-network three times as wide, 5,000
# images, 60 epochs, three seeds. Its two primary claims are those of the paper. It is not measured yet (`./course study 09_assembled_cnn_overfit --plan` says how
# long it takes); what follows fills itself when it is.


# %% tags=["model"]
@functools.cache
def images_to_overfit():
    """5,000 training images of CIFAR-10 and all its test images, at 16x16 pixels."""
    return at_16_pixels(cifar10(train=5000))


def train_long(data, *, seed, tweaks, recipe, distil=False, width=24, epochs=60):
    """One training of a network that is wide enough to learn its images by heart, and long."""
    train.set_seed(seed)
    model = small_network(**tweaks, width=width)
    teacher = chapter("08_feature_distillation").TEACHER.load() if distil else None
    train_assembled(model, data, epochs=epochs, seed=seed, teacher=teacher, **recipe)
    return scores(model, data)


OVERFIT = Study(
    "09_assembled_cnn",
    name="overfit",
    run=train_long,
    arms={arm: config for arm, config in ARMS.items() if arm != "anti-aliasing alone"},
    data=images_to_overfit,
    seeds=(0, 1, 2),
    # of one thread, scaled up from trainings on 640 images
    minutes={
        arm: 18 if "blur" in config["tweaks"] else 12 if "attention" in config["tweaks"] else 5
        for arm, config in ARMS.items()
    },
    limit=6,
)

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
OVERFIT_CLAIMS = Claims(
    OVERFIT,
    "accuracy",
    "top-1, points, overfitting networks",
    scale=100,
    matters=1.0,
    main={"all steps together raise top-1 of a network that overfits": ("ResNet-8", LAST)},
    also={
        f"{after} raises top-1 of a network that overfits": (before, after)
        for before, after in RUNGS
    }
    | {
        f"{name} is missed, in networks that overfit": (arm, LAST)
        for name, arm in ABSENT.items()
    },
)
OVERFIT_ROBUST = Claims(
    OVERFIT,
    mces,
    "mini-mCE, points, overfitting networks",
    matters=1.0,
    main={"all steps together lower mini-mCE of a network that overfits": (LAST, "ResNet-8")},
)

# %%
Table(
    {
        "network": arm,
        "top-1 in %": OVERFIT.text(arm, "accuracy", 100, 1),
        "on training images, %": OVERFIT.text(arm, "train_accuracy", 100, 1),
        "flips in %": OVERFIT.text(arm, "flips", 100, 1),
    }
    for arm in ("ResNet-8", LAST)
)

# %%
OVERFIT_ROBUST.table()

# %% [markdown]
# ### Anti-aliasing and movement
#
# On untrained layers the effect of the blur was large. Do trained networks keep their answers when the image moves?

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
FLIPS = Claims(
    STUDY,
    "flips",
    "flips, points",
    scale=100,
    matters=1.0,
    also={
        "anti-aliasing alone: fewer flips": ("anti-aliasing alone", "ResNet-8"),
        "anti-aliasing on the ladder: fewer flips": ("+ anti-aliasing", "SE to SK"),
        "left out of all: more flips": (LAST, "all but anti-aliasing"),
        "ResNet-D: fewer flips": ("+ D", "ResNet-8"),
    },
)

# %%
FLIPS.table()

# %% [markdown]
# The demonstration on untrained layers predicts fewer flips in the first three rows. On the ladder, and left out of the complete set, that is seen. Alone, the
# mean has the predicted sign, but six seeds do not settle it.
#
# The last row is there because ResNet-D, too, averages where it subsamples, on the shortcut only: the sign is the same, and it is not clear.
#
# ### Label smoothing and confidence
#
# A network is **calibrated** if it is right in 70 % of the cases in which it is 70 % sure. The *expected calibration error* (ECE) [[Guo et al., 2017](../pages/bibliography.md#guo2017calibration)] is
# the mean distance between confidence and accuracy, over bins of confidence. Smoothed targets never ask for more than 91 % confidence. What does that do?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
Table(
    {
        "step": arm,
        "mean confidence in %": STUDY.text(arm, "confidence", 100, 1),
        "top-1 in %": STUDY.text(arm, "accuracy", 100, 1),
        "confidence minus top-1": f"{100 * (STUDY.mean(arm, 'confidence')[0] - STUDY.mean(arm, 'accuracy')[0]):+.1f}",
        "ECE in %": STUDY.text(arm, "calibration_error", 100, 1),
    }
    for arm in ("ResNet-8", "+ D", "+ label smoothing", "+ mixup", LAST)
)

# %% [markdown]
# In the fourth column, above zero is overconfident and below zero is too modest. Smoothing and mixup lower the confidence. That cures overconfidence; ours is not
# overconfident without them, so with them its ECE rises.


# %% tags=["model"]
def named_network():
    """The assembled network with an answer for each of the twelve names."""
    tweaks = {"d": True, "attention": "SK", "blur": True}
    return AssembledCifarResNet(8, width=8, classes=len(naming.CLASSES), **tweaks)


TRAINED = Weights(
    "09_assembled_cnn",
    naming.NAMED,
    build=named_network,
    train=naming.learn,
    data=naming.small_pictures,
    title="Assembled-CNN",
    layer="layer3",
    score=naming.logit_of,
)

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# The test images on which the network with everything is most sure of a wrong answer. Grad-CAM
# [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] looks at the second stage, with 8x8 positions.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
logits = train.predict(networks["all"], data, data.test.images)
plot.mistakes(networks["all"], data, logits, "layer2")

# %% [markdown]
# ### Where do they look?
#
# The evidence of each network for its own prediction, on the same ten images. The titles give the prediction of the plain network.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
train.set_seed(0)
plot.evidence(
    networks | {"untrained": CifarResNet(8, width=8, option="B")},
    data,
    "layer2",
    "The evidence at the end of stage 2 in the three networks trained above, and in an untrained one.",
)

# %% [markdown]
# ### What do selective kernels select?
#
# The two branches are of the same size. Do they still divide the work? For each unit, the share that the first branch gets, over all channels and 500 images. A
# unit that does not care sits at 0.5. The last column is the part of the variation that lies between images, and not between channels: it tells whether a unit
# looks at the image. Below each unit stands the same one before any training.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def shares_of(model, images):
    """What the first branch of each selective kernel gets: unit -> (N, channels)."""
    shares = {}

    def keep(name, unit, given, made):
        first, second = unit.bn(unit.conv(given[0])).relu().chunk(2, 1)
        shares[name] = unit.weights(first, second)[0].flatten(1)

    units = {name: m for name, m in model.named_modules() if isinstance(m, SelectiveKernel)}
    handles = [unit.register_forward_hook(partial(keep, name)) for name, unit in units.items()]
    with evaluating(model), torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return shares


sample = data.normalize(data.test.images[:500])
train.set_seed(0)
at_first = shares_of(small_network(drop=True, d=True, attention="SK", blur=True), sample)
trained = shares_of(networks["all"], sample)
Table(
    [
        {
            "unit": name + note,
            "channels": share.shape[1],
            "smallest share": float(share.min()),
            "mean": float(share.mean()),
            "largest": float(share.max()),
            "variance between images, %": 100 * float(share.var(0).mean() / share.var()),
        }
        for name in trained
        for note, share in (("", trained[name]), (", untrained", at_first[name]))
    ],
    decimals=2,
)

# %% [markdown]
# Untrained shares reach 0 and 1, too: reaching them shows nothing. But training raises the part between images from about a tenth, most of all in the last
# unit. At 0 % a unit would be a fixed mixture, and the layers that compute its weights could be thrown away.

# %% [markdown]
# ## Play: move the image
#
# Three test images, moved by up to four pixels to either side. The curves of two networks show the probability of the *true* class. A network that did
# not care about the position would draw a level line. The images are those on which the plain network wavers most, which is unfair to it on purpose; so the
# table first gives the means over many images.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
REACH = 4
count = pick(full=1000, quick=200)
truth = data.test.targets[:count, None]
# name -> (shifts, images, classes)
curves = {
    name: torch.stack(
        [
            train.predict(
                networks[name], data, moved(data.test.images[:count], shift, 0)
            ).softmax(1)
            for shift in range(-REACH, REACH + 1)
        ]
    )
    for name in ("plain", "anti-aliased")
}
of_truth = {
    name: found.gather(2, truth.expand(2 * REACH + 1, -1, 1))[..., 0]
    for name, found in curves.items()
}
Table(
    [
        {
            "network": name,
            "change of the true class from pixel to pixel, points": 100
            * float(values.diff(dim=0).abs().mean()),
            "images whose answer changes somewhere, %": 100
            * float(
                (curves[name].argmax(2) != curves[name].argmax(2)[REACH]).any(0).float().mean()
            ),
        }
        for name, values in of_truth.items()
    ],
    decimals=1,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
wavering = of_truth["plain"].diff(dim=0).abs().mean(0).argsort(descending=True)
chosen = {}  # at most one of each class
for index in wavering.tolist():
    chosen.setdefault(data.classes[data.test.targets[index]], index)
chosen = dict(list(chosen.items())[:3])


def draw_shift(fig, image, shift):
    index = chosen[image]
    left, right = fig.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.9)})
    left.imshow(moved(data.test.images[index][None], shift, 0)[0].permute(1, 2, 0))
    left.set_axis_off()
    said = []
    for colour, (name, values) in zip(("C1", "C0"), of_truth.items(), strict=True):
        right.plot(
            range(-REACH, REACH + 1),
            values[:, index],
            "o-",
            color=colour,
            markersize=4,
            label=name,
        )
        said.append(f"{name}: {data.classes[curves[name][shift + REACH, index].argmax()]}")
    right.axvline(shift, color="#666666", linewidth=1, linestyle="--")
    right.set(ylim=(-0.02, 1.3), yticks=(0, 0.5, 1), xlabel="moved to the right by pixels")
    right.set_title(f"probability of {image}", fontsize=10)
    right.legend(fontsize=8, loc="upper center", ncols=2)
    left.set_title("\n".join(said), fontsize=9, loc="center")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
SHIFTS = tuple(range(-REACH, REACH + 1))
Explorable(
    draw_shift,
    (tuple(chosen), SHIFTS),
    ("image", "pixels to the right"),
    alt=lambda image, shift: (
        f"Test image of class {image}, moved by {shift} pixels: the plain network gives its "
        f"true class {100 * of_truth['plain'][shift + REACH, chosen[image]]:.0f} %, the "
        f"anti-aliased one {100 * of_truth['anti-aliased'][shift + REACH, chosen[image]]:.0f} "
        "%."
    ),
    caption="Left: the image that both networks see, and what they call it. Right: the "
    "probability of its true class at every position. Zigzags with a period of two pixels are "
    "a sign of subsampling.",
    key="assembled-shift",
    start=(next(iter(chosen)), 0),
    size=(5.2, 2.2),
)

# %% [markdown]
# Two strides of 2 lie between the image and the last map, so moving by four pixels moves the last map by a whole position. Between those, the plain network sees
# a picture that is sampled in another way. The blur reduces the aliasing, but does not end it. And do not expect equal values at −4, 0 and 4: at −4 and 4
# a quarter of the image is replaced by a mirror image.

# %% [markdown]
# ## When to use it today, and what came after
#
# - **The recipe is the model.** With a modern training procedure and *none* of the network tweaks, ResNet-50 reaches 80.4 % at 224 pixels
#   [[Wightman et al., 2021](../pages/bibliography.md#wightman2021strikes)]. The paper's ladder points the same way: of the 5.9 points from E0 to E11, the rows of regularisers and longer training, which
#   are free in use, have 3.2.
# - **ResNet-D** costs little on a GPU; `timm` keeps trained ones by the names `resnet18d` to `resnet200d`.
# - **Anti-aliasing** is worth its price when the answer must not flicker: video, tracking, anything that a person watches.
# - **Mixup and strong augmentation** belong to long trainings of networks that can memorise their images. Later recipes add CutMix, which pastes a rectangle of
#   one image into another, and draw augmentations at random instead of searching for a policy.
# - **Label smoothing** changes what the probabilities mean. It also makes a network a worse *teacher* [[Müller et al., 2019](../pages/bibliography.md#muller2019smoothing)].

# %% [markdown]
# ## Exercises
#
# **1. (quick)** ResNet's stem is a 7x7 convolution with stride 2 from 3 to 64 channels, on 224x224 pixels. ResNet-D has three 3x3
# convolutions: 3 to 32 with stride 2, 32 to 32, and 32 to 64. How many multiply-adds has each?
#
# <details><summary>Answer</summary>
#
# All outputs have 112² = 12,544 positions. 7x7: 49 · 3 · 64 · 12,544 = 118.0 million. Deep: (9 · 3 · 32 + 9 · 32 · 32 + 9 · 32 · 64) · 12,544 =
# 28,512 · 12,544 = 357.7 million, three times as much: the whole difference between ResNet-50 and its D version.
#
# </details>
#
# **2. (quick)** Your loader delivers 1,024 decoded images per step and is the slowest part of the training. How many mixed images does the network see per step with
# mixup of kind 1, and of kind 2? What is the catch of each?
#
# <details><summary>Answer</summary>
#
# Kind 1: 512, so the loader must work twice as hard for the same batch. Kind 2: 1,024, but every image appears in two mixtures of the same batch.
#
# </details>
#
# **3. (code)** Max-pooling with anti-aliasing, as Zhang proposes it: the maximum of 2x2 positions at *every* position, then
# `BlurPool`. Take `F.max_pool2d` and keep the size of the map until the blur: pad with zeros on the right and at the
# bottom (`F.pad`), as the maps are not negative.


# %%
def check_blurred_maximum(pool):
    x = torch.rand(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    y = pool(x)
    assert y.shape == (2, 5, 8, 8), f"the map must be halved to 8x8, not {tuple(y.shape[2:])}."
    assert torch.allclose(pool(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 4, 4)), (
        "a constant map must stay constant, also at the border."
    )
    spot = torch.zeros(1, 1, 8, 8)
    spot[0, 0, 4, 4] = 1
    seen = pool(spot)[0, 0]
    assert abs(float(seen.sum()) - 1) < 1e-6, (
        "a single 1 becomes four by the maximum, and adds up to 1 after the blur and stride 2."
    )
    assert torch.allclose(seen[1:3, 1:3], torch.tensor([[1.0, 3], [3, 9]]) / 16), (
        "of a 1 at (4, 4), 9/16 belong to (2, 2) and 1/16 to (1, 1): take the maximum at every "
        "position, looking right and down; blur; only then keep every second position."
    )
    smooth = natural_noise(8, 32).relu()
    ratio = relative_change(pool, smooth) / relative_change(nn.MaxPool2d(2), smooth)
    assert ratio < 0.8, "it should change less than plain max-pooling when the image moves."


def blurred_maximum(x):
    raise NotImplementedError


attempt(check_blurred_maximum, blurred_maximum)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def blurred_maximum_solution(x):
    largest = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)
    return BlurPool(x.shape[1])(largest)


verify(check_blurred_maximum, blurred_maximum_solution)

# %% [markdown]
# **4. (code)** Test additivity. From the accuracy of the base, of all techniques together, and of all but one, compute what each
# technique is worth when it is left out, and what remains: the total gain minus the sum of those. Then try it on the
# study: `STUDY.mean(arm, "accuracy")[0]`. What does it mean if the remainder is positive? If it is negative?


# %%
def check_remainder(remainder):
    additive = {"a": 0.60 + 0.02, "b": 0.60 + 0.05}  # a is worth 5 points, b 2
    worth, rest = remainder(0.60, 0.67, additive)
    assert abs(worth["a"] - 0.05) < 1e-9 and abs(worth["b"] - 0.02) < 1e-9, (
        "without b there is 0.65, so b is worth 0.67 - 0.65."
    )
    assert abs(rest) < 1e-9, "these gains are additive: nothing should remain."
    _, rest = remainder(0.60, 0.65, {"a": 0.65, "b": 0.65})  # either does the whole job
    assert abs(rest - 0.05) < 1e-9, (
        "two techniques that replace each other leave all of the gain."
    )
    _, rest = remainder(0.60, 0.65, {"a": 0.60, "b": 0.60})  # neither works alone
    assert abs(rest + 0.05) < 1e-9, "two techniques that need each other are counted twice."


def remainder(base, everything, left_out):
    raise NotImplementedError


attempt(check_remainder, remainder)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def remainder_solution(base, everything, left_out):
    worth = {name: everything - accuracy for name, accuracy in left_out.items()}
    return worth, everything - base - sum(worth.values())


verify(check_remainder, remainder_solution)

# %% [markdown]
# If the techniques help: a positive remainder means that they overlap, and one can stand in for another; a negative one, that they need each other. In the study
# the single worths are negative and the remainder is positive: left out one by one, the techniques give back more than they cost together.
#
# **5. (open)** E9 of the paper changes the network and the size of the test images at once. Design the arms that tell the two apart, and run them in miniature:
# train at 16x16 pixels, test at 16x16 and at 20x20 (`F.interpolate`), with and without anti-aliasing, three seeds. How would you show that the gain is not just
# the smoothing by the interpolation?

# %% [markdown]
# ## Recap
#
# - Accuracy, robustness and speed are three numbers. A technique can move one and leave the others.
# - Subsampling without a blur aliases. `BlurPool`, and the average in ResNet-D's shortcut, are the same remedy.
# - Most network tweaks cost time in use, not always in proportion to their multiply-adds. Regularisers cost nothing in use, but need a long training and a network
#   that could overfit.
# - The paper's final network is E11: D's shortcut, SK instead of SE, Big-Little and anti-aliasing; label smoothing, mixup, DropBlock, AutoAugment and
#   distillation; 600 epochs; tested at 256 pixels.
# - A stacked table credits each technique with what it adds to those before it, so the order matters. Leave-one-out asks the other question.
#
# **Three questions.** Why does a blur *after* the subsampling not help? Why can ResNet-D's stem cost three times the multiply-adds and still be worth it? A table
# says "+0.3 from Big-Little and 256 pixels": which experiment is missing?

# %%
headline(
    f"{len(STEPS) - 1} steps from ResNet-8: top-1 "
    f"{100 * STUDY.mean('ResNet-8', 'accuracy')[0]:.1f} % without, "
    f"{100 * STUDY.mean(LAST, 'accuracy')[0]:.1f} % with; flips "
    f"{100 * STUDY.mean('ResNet-8', 'flips')[0]:.1f} % and "
    f"{100 * STUDY.mean(LAST, 'flips')[0]:.1f} %",
    part_of_cifar10().provenance,
)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

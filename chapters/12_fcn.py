# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # FCN: a classifier that answers at every pixel
#
# | | |
# |:--|:--|
# | Paper | J. Long, E. Shelhamer and T. Darrell, *Fully Convolutional Networks for Semantic Segmentation*, CVPR 2015 [[Long et al., 2015](../pages/bibliography.md#long2015fcn)] |
# | Claim | A classifier is a segmentation network in disguise: turn its fully connected layers into convolutions, enlarge the scores to the size of the photograph, and train pixels to pixels. Scores of earlier layers, added on the way up, make the edges finer. |
# | You need | [Chapter 1](01_vgg): VGG-16, receptive fields, dense evaluation. [Chapter 2](02_resnet): the blocks of our small backbone. |
# | Time | About an hour to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - turn any classifier into a network that scores every pixel, to the parameter, and say what that saves;
# - compute where each unit of a network sits, and derive the crops and the padding of 100 pixels that others copy;
# - enlarge scores with a transposed convolution, and know where it differs from interpolation;
# - measure a segmentation with four scores, and say what its stride alone costs.
#
# **Before you read on, guess.** VGG-16 decides once per 32 pixels. Suppose that every square of 32x32 pixels gets the class that it
# really has most of. How much of this field's score (1 is perfect) is left?

# %% [markdown]
# ## Setup

# %% tags=["model"]
import copy
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers import cam, inspect, metrics, naming, plot, train
from helpers.chapters import chapter
from helpers.claims import Claims
from helpers.data import clear_examples, voc_animals, with_masks
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.parity import relative_difference
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants
from helpers.weights import Weights

BACKBONE, Backbone = chapter("02_resnet").BACKBONE, chapter("02_resnet").Backbone
vgg = chapter("01_vgg")
VGG, CONFIGS, fully_convolutional = vgg.VGG, vgg.CONFIGS, vgg.fully_convolutional

# %% [markdown]
# The photographs are the animals of PASCAL VOC [[Everingham et al., 2010](../pages/bibliography.md#everingham2010voc)] at 128x128 pixels: cats, cows, dogs, horses and sheep.
# Each has a **mask** that gives every pixel its class, partly from a later and larger annotation [[Hariharan et al., 2011](../pages/bibliography.md#hariharan2011sbd)]. A few photographs
# have none, and we leave them out.

# %%
started = time.perf_counter()
train.set_seed(0)
scenes = voc_animals(size=128, train=pick(full=None, quick=64), test=pick(full=None, quick=48))
data = with_masks(scenes)
names = ("background", *data.classes)
masks = data.test.targets

# %% [markdown]
# ## The problem: a name for the photograph, and no place
#
# The course's small network names objects ([chapter 2](02_resnet) trains it; it is the **backbone** of this and the next
# chapters): ResNet blocks, trained on CIFAR-10 and on animals cut out of VOC's training photographs. It takes a picture and
# says *cat*. It does not say where.
#
# The obvious way to find out: cut a window around each pixel and ask for its name. Here with windows of 64x64 pixels, but only
# at every eighth pixel. The photographs follow a rule: the first of each class with one animal alone, a fifth to half of the
# picture, nothing before it and no person annotated.


# %%
def windows(images, size, stride):
    """All size x size windows of images (N, C, H, W), row by row:
    (N rows columns, C, size, size)."""
    cut = images.unfold(2, size, stride).unfold(3, size, stride)  # (N, C, rows, columns, ...)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


known = scenes.test.targets["has_mask"]
fixed = (known.cumsum(0) - 1)[clear_examples(scenes.test)]
photos = data.normalize(data.test.images[fixed])

namer = BACKBONE.load().eval()
begin = time.perf_counter()
with torch.inference_mode():
    named = namer(windows(photos, 64, 8)).softmax(1)  # 9x9 windows of each photograph
seconds = (time.perf_counter() - begin) / len(photos)
ours = [naming.CLASSES.index(name) for name in data.classes]
where = torch.stack([named.view(5, 81, -1)[i, :, ours[i]] for i in range(5)]).view(5, 9, 9)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    for column, axes in enumerate(fig.subplots(2, 5).T):
        for ax in axes:
            ax.imshow(data.test.images[fixed[column]].permute(1, 2, 0))
            ax.set_axis_off()
        spread = (28, 100, 100, 28)  # the centres of the windows go from 32 to 96
        axes[1].imshow(where[column], cmap="inferno", alpha=0.65, extent=spread, vmin=0, vmax=1)
        axes[1].set(xlim=(-0.5, 127.5), ylim=(127.5, -0.5))
        axes[0].set_title(data.classes[column], fontsize=9, loc="center", pad=3)


plot.show(
    draw,
    alt="Five validation photographs, a cat, a cow, a dog, a horse and a sheep, and below each the same photograph with a coarse grid of 9x9 squares over "
    "its middle: the probability of its animal, window by window.",
    caption="Below: the probability (dark 0, yellow 1) that a window of 64x64 pixels shows the animal, drawn at the centre of the window. "
    f"Near the border there is no room for a window. Data: {data.provenance}.",
    height=3.0,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
of_windows = {"every eighth pixel": 81, "every pixel": 65**2}
Table(
    [
        {
            "windows of 64x64": place,
            "per photograph": count,
            "seconds per photograph": seconds / 81 * count,
            "hours for all validation photographs": seconds
            / 81
            * count
            * len(data.test)
            / 3600,
        }
        for place, count in of_windows.items()
    ],
    decimals=2,
)

# %% [markdown]
# The first row was measured, the second follows from it. Three things are wrong with this:
#
# - **It is slow.** Neighbouring windows share nearly all of their pixels, and everything is computed again.
# - **It is coarse.** The name of a window is not the class of its middle pixel.
# - **It is not trained for the task.** Nobody told the network where an animal ends.
#
# The paper repairs the first with an observation, the second with a small addition, and the third by training the whole.

# %% [markdown]
# ## The idea: three steps from names to pixels
#
# **1. Convolutionalise.** A fully connected layer on a map of 7x7 positions *is* a convolution with a 7x7 kernel, at the one position
# where it fits. On a larger map it fits at many positions, and each answers for its own window. (Many texts say that the fully connected
# layers become 1x1 convolutions. The first becomes **7x7**.)
#
# **2. Enlarge.** The scores come out once per 32 pixels. A transposed convolution (the paper says *deconvolution*) brings them to the size of the photograph,
# so that there is a loss at every pixel, and its gradient goes all the way back.
#
# **3. Skip.** Earlier layers know less about *what*, and more about *where*: their stride is 16 and 8. They get scores of their own, which are
# added on the way up:
#
# $$
# \begin{aligned}
# \mathbf{s}_{32} &= S_5 c_5, \\
# \mathbf{s}_{16} &= U_2\, \mathbf{s}_{32} + S_4 c_4, \\
# \mathbf{s}_8 &= U_2\, \mathbf{s}_{16} + S_3 c_3,
# \end{aligned}
# \tag{12.1} $$ <a id="eq-fcn-skip"></a>
#
# and the scores of the pixels are $U_{32}\, \mathbf{s}_{32}$ (the network **FCN-32s**), $U_{16}\, \mathbf{s}_{16}$ (**FCN-16s**) or $U_8\, \mathbf{s}_8$ (**FCN-8s**).
# The paper calls this hierarchy of features the *deep jet*.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_grid(ax, left, bottom, side, cells, colour):
    for i in range(cells + 1):
        at = i * side / cells
        ax.plot([left + at] * 2, [bottom, bottom + side], color=colour, linewidth=0.8)
        ax.plot([left, left + side], [bottom + at] * 2, color=colour, linewidth=0.8)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    arrow = dict(arrowstyle="-|>", color="#444444", shrinkA=0, shrinkB=0)
    stages = (
        ("photograph", 16),
        ("$c_3$\nstride 8", 8),
        ("$c_4$\nstride 16", 4),
        ("$c_5$\nstride 32", 2),
    )
    for i, (name, cells) in enumerate(stages):
        draw_grid(ax, 1.7 * i, 4.0, 1, cells, "C0")
        ax.text(1.7 * i + 0.5, 5.1, name, ha="center", va="bottom", fontsize=9)
        if i:
            ax.annotate("", (1.7 * i - 0.08, 4.5), (1.7 * i - 0.62, 4.5), arrowprops=arrow)
    rows = (
        (2.6, 3, 2, "32s", "$U_{32}$"),
        (1.3, 2, 4, "16s", "$U_{16}$"),
        (0.0, 1, 8, "8s", "$U_8$"),
    )
    for bottom, stage, cells, name, enlarge in rows:
        x = 1.7 * stage
        draw_grid(ax, x, bottom, 1, cells, "C1")
        ax.annotate("", (x + 0.5, bottom + 1.04), (x + 0.5, 3.95), arrowprops=arrow)
        ax.text(x + 0.56, 3.78, f"$S_{stage + 2}$", fontsize=9, va="center")
        if stage < 3:
            ax.annotate(
                "", (x + 1.08, bottom + 0.6), (x + 1.7, bottom + 1.75), arrowprops=arrow
            )
            ax.text(x + 1.42, bottom + 0.85, "+ $U_2$", fontsize=9, va="center")
        draw_grid(ax, 7.4, bottom, 1, 16, "C2")
        ax.annotate("", (7.32, bottom + 0.35), (x + 1.08, bottom + 0.35), arrowprops=arrow)
        ax.text(6.9, bottom + 0.52, enlarge, fontsize=9, va="center")
        ax.text(8.55, bottom + 0.5, f"FCN-{name}", fontsize=9, va="center")
    ax.set(xlim=(-0.1, 9.6), ylim=(-0.1, 5.95))
    ax.set_axis_off()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.show(
    draw,
    alt="Diagram. Blue grids in a row: the photograph and the feature maps c3, c4 and c5, coarser and coarser. Below c5 an orange grid of scores, enlarged 32 times to "
    "FCN-32s. Below c4 another: its own scores plus those of c5 enlarged twice; enlarged 16 times it is FCN-16s. Below c3 the third: its own scores plus the "
    "second's enlarged twice; enlarged 8 times it is FCN-8s.",
    caption="Feature maps (blue), scores per class (orange), scores per pixel (green). The finer networks take everything over from the coarser ones.",
    height=4.0,
)

# %% [markdown]
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $c_3, c_4, c_5$ | feature maps of stride 8, 16 and 32: in the paper pool3, pool4 and the last hidden layer (conv7) | `(N, C, H/8, W/8)`, ... | `c3`, `c4`, `c5` |
# | $S_l$ | scores of map $l$: a 1x1 convolution to one channel per class | `(classes, C, 1, 1)` | `score3`, `score4`, `score5` |
# | $U_f$ | bilinear enlargement by $f$ | | `upsample(scores, f)`, `Deconvolution` |
# | $\mathbf{s}_{32}, \mathbf{s}_{16}, \mathbf{s}_8$ | scores at that stride | `(N, classes, H/32, W/32)`, ... | `scores` |
# | $f$ | factor of an enlargement | number | `factor` |
# | $(a, b)$ | grid of a map: its unit $i$ sits at pixel $a i + b$ | numbers | `Grid(step, start)` |
# | $n_{ij}$ | number of pixels of class $i$ that are called class $j$ | `(classes, classes)` | `counts` |
# | $t_i$ | number of pixels of class $i$: $\sum_j n_{ij}$ | `(classes,)` | `known` |
# | $w$ | width of the boundary band in pixels | number | `width` |

# %% [markdown]
# ## The smallest piece by hand
#
# ### A fully connected layer that moves
#
# One channel, a layer with one output on a 2x2 map. Its four weights, arranged as a 2x2 kernel, on a 4x4 map:

# %% tags=["nbval-check-output"]
x = torch.tensor(
    [[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 3.0, 1.0], [2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 2.0]]
)
connected = nn.Linear(4, 1)
connected.weight.data = torch.tensor([[1.0, -1.0, 2.0, 0.5]])
connected.bias.data = torch.tensor([0.25])

answers = torch.zeros(3, 3)
for row in range(3):
    for column in range(3):
        window = x[row : row + 2, column : column + 2]
        answers[row, column] = connected(window.flatten()).item()
kernel = connected.weight.view(1, 1, 2, 2)
convolved = F.conv2d(x[None, None], kernel, connected.bias)[0, 0]
print(answers)
print("one convolution gives all nine:", torch.allclose(answers, convolved))

# %% [markdown]
# ### Enlarging as a convolution backwards
#
# A convolution with stride 2 reads a window for each output. Run it backwards: each *input* **writes** a window, two pixels further for
# the next input, and where windows overlap, the values are added. The window that makes this an interpolation falls off linearly from its middle. In one
# dimension and for factor 2, that is ¼, ¾, ¾, ¼:

# %% tags=["nbval-check-output"]
line = torch.tensor([4.0, 8.0, 0.0])
stamp = torch.tensor([0.25, 0.75, 0.75, 0.25])
written = torch.zeros(8)
for position, value in enumerate(line):
    written[2 * position : 2 * position + 4] += value * stamp
print("written:      ", written.tolist())
print("without ends: ", written[1:-1].tolist())
interpolated = F.interpolate(line[None, None], scale_factor=2, mode="linear")[0, 0]
print("interpolated: ", interpolated.tolist())

# %% [markdown]
# Inside, both agree: 5 is three quarters of 4 and one quarter of 8. At the two ends they do not. Interpolation repeats the last value
# beyond the border (4 stays 4); the transposed convolution finds nothing there and adds nothing (3). So in two dimensions it darkens the rim of a map, at factor 2 by a
# quarter at an edge and more in a corner. Here is the rule for any factor, and a layer that starts with it.


# %% tags=["model"]
def bilinear_kernel(factor):
    """Weights (2 factor, 2 factor) with which a transposed convolution of stride `factor`
    interpolates."""
    position = torch.arange(2 * factor) - (factor - 0.5)  # distance from the middle
    line = 1 - position.abs() / factor
    return torch.outer(line, line)


class Deconvolution(nn.ConvTranspose2d):
    """Enlarges scores (N, classes, h, w) by a factor; bilinear at first, each class from itself
    (section 3.3).

    Without padding, as in the paper: the output has side factor (h + 1) and is cropped later.
    """

    def __init__(self, classes, factor, padding=0):
        super().__init__(classes, classes, 2 * factor, factor, padding, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(classes), range(classes)] = bilinear_kernel(factor)


# %% tags=["nbval-check-output"]
print(bilinear_kernel(2))
scores = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
rows = []
for factor in (2, 8, 16, 32):
    with torch.no_grad():
        ours = Deconvolution(3, factor, padding=factor // 2)(scores)
    theirs = F.interpolate(scores, scale_factor=factor, mode="bilinear")
    off, rim = (ours - theirs).abs(), factor // 2
    rows.append(
        {
            "factor": factor,
            "kernel": f"{2 * factor}x{2 * factor}",
            "equal to interpolation inside": bool(off[..., rim:-rim, rim:-rim].max() < 1e-5),
            "equal at the rim": bool(off.max() < 1e-5),
            "width of the rim": rim,
        }
    )
Table(rows)

# %% [markdown]
# ## The network of the paper
#
# ### Where does a unit sit?
#
# Scores of different layers can be added only where they lie on top of each other. Unit $i$ of a map sits at pixel $a i + b$ of
# the photograph: the middle of what it sees. Each layer changes the two numbers in its own way. A convolution or pooling with kernel $k$,
# stride $s$ and padding $p$ gives
#
# $$
# \begin{aligned}
# a' &= a\, s, \\
# b' &= b + a \left( \tfrac{k - 1}{2} - p \right),
# \end{aligned}
# \tag{12.2} $$ <a id="eq-fcn-grid"></a>
#
# and an enlargement by $f$, which is such a layer backwards with $k = 2f$ and $s = f$, gives $a' = a / f$ and $b' = b - a' (f - \tfrac{1}{2})$.
# Follow the two numbers through VGG-16, and where two maps meet, their difference is the number of rows to cut off.


# %% tags=["model"]
@dataclass(frozen=True)
class Grid:
    """Unit i of a map sits at pixel step i + start of the image."""

    step: float = 1.0
    start: float = 0.0

    def convolved(self, kernel, stride=1, padding=0):
        """The grid after a convolution or pooling."""
        return Grid(self.step * stride, self.start + self.step * ((kernel - 1) / 2 - padding))

    def enlarged(self, factor):
        """The grid after a Deconvolution without padding."""
        return Grid(self.step / factor, self.start - self.step / factor * (factor - 0.5))


def vgg_grids(padding=100):
    """The grids of VGG-16's poolings and of conv6, the first fully connected layer as a 7x7
    convolution."""
    grid, grids = Grid().convolved(3, padding=padding), {}  # conv1_1
    for stage in range(1, 6):  # all other 3x3 convolutions have padding 1, which keeps the grid
        grid = grids[f"pool{stage}"] = grid.convolved(2, stride=2)
    return grids | {"conv6": grid.convolved(7)}


def crop_offsets(stride, padding=100):
    """How many rows and columns to cut off at the top and left: of each skip's scores, and of
    the result ("pixels")."""
    grids, offsets = vgg_grids(padding), {}
    grid = grids["conv6"]
    for skip in {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}[stride]:
        grid = grid.enlarged(2)
        offsets[skip] = round((grid.start - grids[skip].start) / grid.step)
    return offsets | {"pixels": round(-grid.enlarged(stride).start)}


# %% tags=["nbval-check-output"]
print({name: (grid.step, grid.start) for name, grid in vgg_grids().items()})
for stride in (32, 16, 8):
    print(f"FCN-{stride}s:", crop_offsets(stride))

# %% [markdown]
# The authors' released networks cut off 19 rows for FCN-32s, and 5, 9 and 31 for FCN-8s. These numbers are copied from program to program, as if they were magic.
# They are two lines of arithmetic. Here are the units on an axis of pixels:


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_units(ax, rows, shown, side=None):
    """A dot with its number for every unit of each grid (a row) between two pixels."""
    ax.axvspan(-0.5, shown[1] if side is None else side - 0.5, color="#e8f1f8")
    for y, grid in enumerate(rows.values()):
        for unit in range(100):
            at = grid.step * unit + grid.start
            if shown[0] <= at <= (shown[1] if side is None else side - 1):
                ax.plot(at, -y, "o", color="C0" if at >= 0 else "#999999", markersize=4)
                ax.text(at, 0.2 - y, str(unit), ha="center", fontsize=6.5)
    ax.set_yticks([-y for y in range(len(rows))], list(rows))
    ax.set(xlim=shown, ylim=(0.6 - len(rows), 0.65), xlabel="pixel")
    ax.grid(False)


def draw(fig):
    theirs, ours = fig.subplots(2, 1)
    grids = vgg_grids()
    conv7 = {"conv7": grids["conv6"], "conv7 enlarged": grids["conv6"].enlarged(2)}
    both = {"pool4 enlarged": grids["pool4"].enlarged(2)}
    draw_units(
        theirs, conv7 | {"pool4": grids["pool4"]} | both | {"pool3": grids["pool3"]}, (-28, 132)
    )
    theirs.set_title(
        "the paper's network, padding 100: the first pixels of a photograph", fontsize=9
    )
    draw_units(ours, {f"C{i}": Grid(2.0**i) for i in (5, 4, 3)}, (-28, 132), side=128)
    for y, last in enumerate((96, 112, 120)):
        ours.plot([last, 127.5], [-y, -y], color="C1", linewidth=3, alpha=0.6)
    ours.set_title(
        "our small network (below): all 128 pixels; orange: no unit on the right", fontsize=9
    )


plot.show(
    draw,
    alt="Two axes of pixels with a row of numbered dots for each map. Above, for the paper's network: unit 0 of conv7 enlarged lies on unit 5 of pool4, and unit 0 of pool4 enlarged on unit 9 of "
    "pool3, at negative pixels. Below, for the small network: unit 0 of every map is at pixel 0, the last unit of C5 at pixel 96 of 128.",
    caption="Where units sit; blue shade: the photograph. Where two maps are added, numbers say what is cut off: unit 0 of the enlarged map lies on unit 5 of pool4, and on unit 9 of pool3.",
    height=3.9,
)

# %% [markdown]
# **Why a padding of 100?** The first convolution pads the photograph with 100 pixels of zeros on every side. conv6 does not
# pad, and its 7x7 kernel eats three units of stride 32 at each side. With an ordinary padding of 1, its first unit would lie at
# pixel 111.5: no scores for the rim of the photograph, and none at all for a small one. Padding moves the grid outwards, and
# the crop cuts off what is too much. Exercise 2 asks how much would have been enough.
#
# ### The whole class
#
# It takes a VGG-16 of chapter 1, its layers as convolutions (also chapter 1), without the last one and its 1000 names. Many
# copies miss two details. Caffe, in which the paper was written, rounds the size of a pooled map **up**; PyTorch rounds down
# unless told otherwise, and then the scores end before the photograph does. And all new scores **start at zero**, so that each
# finer network starts with what the coarser one knew.


# %% tags=["model"]
def zero_scores(channels, classes):
    """A 1x1 convolution to one score per class that starts at zero (sections 4.2 and 4.3)."""
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def cropped(scores, offset, like):
    """The part of scores (N, C, h, w) from `offset` on that is as large as the map `like`."""
    height, width = like.shape[2:]
    return scores[..., offset : offset + height, offset : offset + width]


# %% tags=["model"]
class FCN(nn.Module):
    """The paper's network: images (N, 3, H, W) of any size to scores (N, classes, H, W).

    vgg16: a network of chapter 1 with five poolings; its layers are copied. stride: 32, 16 or
    8.
    """

    def __init__(self, vgg16, classes=21, stride=8, padding=100):
        super().__init__()
        layers = list(fully_convolutional(copy.deepcopy(vgg16)))[:-1]
        layers[0].padding = (padding, padding)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        for i in pools:
            layers[i].ceil_mode = True  # as Caffe does
        self.to_pool3 = nn.Sequential(*layers[: pools[2] + 1])
        self.to_pool4 = nn.Sequential(*layers[pools[2] + 1 : pools[3] + 1])
        self.to_conv7 = nn.Sequential(*layers[pools[3] + 1 :])
        c3, c4, c7 = (
            [m.out_channels for m in part if isinstance(m, nn.Conv2d)][-1]
            for part in (self.to_pool3, self.to_pool4, self.to_conv7)
        )
        self.stride, self.offsets = stride, crop_offsets(stride, padding)
        self.score = zero_scores(c7, classes)
        if stride <= 16:
            self.score_pool4, self.up2 = zero_scores(c4, classes), Deconvolution(classes, 2)
        if stride == 8:
            self.score_pool3, self.up4 = zero_scores(c3, classes), Deconvolution(classes, 2)
        self.up = Deconvolution(classes, stride)

    def forward(self, images):
        pool3 = self.to_pool3(images)
        pool4 = self.to_pool4(pool3)
        scores = self.score(self.to_conv7(pool4))
        if self.stride <= 16:
            scores = self.up2(scores)
            scores = scores + cropped(self.score_pool4(pool4), self.offsets["pool4"], scores)
        if self.stride == 8:
            scores = self.up4(scores)
            scores = scores + cropped(self.score_pool3(pool3), self.offsets["pool3"], scores)
        return cropped(self.up(scores), self.offsets["pixels"], images)


# %% [markdown]
# The probe: a photograph of 500x500 pixels, on the `meta` device, which has shapes and no numbers.

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    fcn = FCN(VGG(CONFIGS["D"]), stride=8)
    photograph = torch.empty(1, 3, 500, 500)
    pool3 = fcn.to_pool3(photograph)
    pool4 = fcn.to_pool4(pool3)
    conv7 = fcn.to_conv7(pool4)
    scores = fcn(photograph)
for name, tensor in {"pool3": pool3, "pool4": pool4, "conv7": conv7, "scores": scores}.items():
    print(f"{name:7}", tuple(tensor.shape))
with torch.device("meta"):
    thin = VGG(CONFIGS["D"], hidden=8)
    same = all(
        FCN(thin, stride=stride)(torch.empty(1, 3, *size)).shape[2:] == size
        for stride in (32, 16, 8)
        for size in ((1, 1), (97, 33), (224, 224), (375, 500))
    )
print("as many scores as pixels at every size tried:", same)

# %% [markdown]
# ### The small one
#
# The same design on the backbone. All of its layers pad by half of their kernel, so unit $i$ of stride 32 sits at pixel
# $32 i$, and no crop is needed. `F.interpolate` assumes another grid by default, with the first unit of stride 32 at 15.5; so we
# tell it where the units are. Enlargements are fixed, as in the authors' later code; they saw no
# difference to learned ones.
#
# The price is in the lower half of the picture. At 128 pixels the last unit of C5 sits at pixel 96, and up to pixel 127 its
# score is only repeated: a quarter of each side (at the study's 96 pixels a third). There, to the right and below, outlines run
# **straight** to the edge.


# %% tags=["model"]
def upsample(scores, factor):
    """Bilinear enlargement, (N, C, h, w) to (N, C, factor h, factor w), in which unit i stays
    at pixel factor i."""
    height, width = (factor * side + 1 for side in scores.shape[2:])
    padded = F.pad(scores, (0, 1, 0, 1), mode="replicate")  # one more unit at the far ends
    large = F.interpolate(padded, (height, width), mode="bilinear", align_corners=True)
    return large[..., :-1, :-1]


class SmallFCN(nn.Module):
    """The paper's design on the course's backbone: images (N, 3, H, W) to scores
    (N, classes, H, W).

    stride: 32 scores C5 alone, 16 adds C4, 8 adds C3. H and W are multiples of 32.
    """

    def __init__(self, backbone, stride=8, classes=6):
        super().__init__()
        if stride not in (32, 16, 8):
            raise ValueError(f"stride {stride} is none of 32, 16, 8.")
        self.backbone, self.stride = backbone, stride
        self.score5 = zero_scores(256, classes)
        self.score4 = zero_scores(128, classes) if stride <= 16 else None
        self.score3 = zero_scores(64, classes) if stride == 8 else None

    def forward(self, images):
        _, c3, c4, c5 = self.backbone.features(images)
        scores = self.score5(c5)  # (N, classes, H/32, W/32)
        if self.score4 is not None:
            scores = upsample(scores, 2) + self.score4(c4)  # H/16
        if self.score3 is not None:
            scores = upsample(scores, 2) + self.score3(c3)  # H/8
        return upsample(scores, self.stride)


# %% tags=["nbval-check-output"]
scores = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
large = upsample(scores, 32)
print("shape:", tuple(SmallFCN(Backbone())(torch.zeros(1, 3, 128, 160)).shape))
print("unit i stays at pixel 32 i:", torch.allclose(large[..., ::32, ::32], scores))
print(
    "twice, then 16 times, is 32 times:",
    torch.allclose(upsample(upsample(scores, 2), 16), large, atol=1e-6),
)

# %% [markdown]
# So an FCN-16s whose new scores are zero gives *exactly* the answers of the FCN-32s that it was made from.
#
# **On a centred grid** no score is repeated. As in the paper, pad all sides alike and crop the scores: with 17 pixels, unit $i$
# of stride 32 sits at $32 i - 17$. The first within the photograph is at 15, the middle of its square to half a pixel, and
# beyond each rim lies one more. A study below compares the two grids.

# %% tags=["model"]
MARGIN = 17


class CentredFCN(SmallFCN):
    """SmallFCN on a centred grid: zeros around the photograph, and the scores cropped."""

    def forward(self, images):
        _, c3, c4, c5 = self.backbone.features(F.pad(images, [MARGIN] * 4))
        scores = self.score5(c5)
        if self.score4 is not None:
            scores = cropped(upsample(scores, 2), 0, c4) + self.score4(c4)
        if self.score3 is not None:
            scores = cropped(upsample(scores, 2), 0, c3) + self.score3(c3)
        return cropped(upsample(scores, self.stride), MARGIN, images)


# %% tags=["nbval-check-output"]
units = Grid(32, -MARGIN)
print("C5 at 96 px, units at", [int(units.step * i + units.start) for i in range(5)])
for network in (SmallFCN, CentredFCN):
    model = network(Backbone(), 32).eval()
    nn.init.normal_(model.score5.weight)
    with torch.inference_mode():
        rim = model(torch.randn(1, 3, 96, 96))[..., 64:]  # the last third
    print(f"{network.__name__}: one score repeated:", bool((rim == rim[..., :1]).all()))

# %% [markdown]
# ## Checks: are these the paper's networks?
#
# **Parameters and multiply-adds.** The paper's Table 1 has FCN-32s: 134 million parameters, a receptive field of 404 pixels, a stride of 32. The learnable enlargements connect every class with every class; the one for 32 has 64 · 64 · 21² weights,
# more than all score layers together, and nearly all of them start at zero.


# %% tags=["model"]
def on_vgg16(stride):
    return FCN(VGG(CONFIGS["D"]), stride=stride)


ENLARGEMENT = "134 M is the count without the learnable enlargement, whose 1.8 M weights are nearly all zero."
NETWORKS = Variants(
    "12_fcn",
    "On VGG-16, photographs of 500x500 pixels, 21 classes. The receptive field is that of conv7; the paper's Table 1 has "
    "404 pixels, too.",
    [
        Variant("FCN-32s", partial(on_vgg16, 32), (3, 500, 500), "134 M", remark=ENLARGEMENT),
        Variant("FCN-16s", partial(on_vgg16, 16), (3, 500, 500)),
        Variant("FCN-8s", partial(on_vgg16, 8), (3, 500, 500)),
    ],
    printed=("paper, Table 1", ""),
)

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
rows = []
for stride in (32, 16, 8):
    with torch.device("meta"):
        fcn = FCN(VGG(CONFIGS["D"]), stride=stride)
    enlarging = sum(
        inspect.count_parameters(m) for m in fcn.modules() if isinstance(m, Deconvolution)
    )
    rows.append(
        {
            "network": f"FCN-{stride}s",
            "parameters without enlargements": inspect.count_parameters(fcn) - enlarging,
            "enlargements": enlarging,
            "all": inspect.count_parameters(fcn),
            "giga multiply-adds, 500x500": inspect.count_macs(fcn, (3, 500, 500)) / 1e9,
        }
    )
with torch.device("meta"):
    whole = VGG(CONFIGS["D"])
seen, jump = vgg.receptive_field(CONFIGS["D"])[-1][1:]
Table(rows, decimals=1)

# %% tags=["nbval-check-output"]
scored, named = rows[0]["parameters without enlargements"], inspect.count_parameters(whole)
last = inspect.count_parameters(whole.classifier[-1])
print(f"VGG-16 {named:,}, without its 1000 names {named - last:,}, with 21 scores {scored:,}")
print("receptive field of conv6 and conv7:", seen + 6 * jump)
fc6 = 7 * 7 * 512 * 4096 + 4096
print(f"of these in the 7x7 convolution: {fc6:,}, {100 * fc6 / scored:.0f} %")

# %% [markdown]
# The skips of FCN-8s cost 16,170 parameters, one in eight thousand, and hardly any arithmetic. What costs is the 7x7 convolution: three quarters of all parameters.
#
# **Not the paper's network.** torchvision has `fcn_resnet50`. It is a ResNet-50 whose last strides were replaced by dilation, so its stride is 8 without any skip, and it enlarges by interpolation:

# %% tags=["nbval-check-output"]
import torchvision

with torch.device("meta"):
    for extra in (False, True):
        reference = torchvision.models.segmentation.fcn_resnet50(
            weights_backbone=None, aux_loss=extra
        )
        count = inspect.count_parameters(reference)
        print(f"fcn_resnet50{', with its second output' if extra else ''}: {count:,}")

# %% [markdown]
# **Equality.** On a photograph of 224x224 with ordinary padding, conv7 has one position, and there it must be the classifier's last hidden layer. With
# the same weights, in a VGG-16 with a sixteenth of its channels:

# %% tags=["nbval-check-output"]
train.set_seed(0)
thin = [entry if entry == "M" else entry // 16 for entry in CONFIGS["D"]]
classifier = VGG(thin, hidden=64, classes=10)
hidden = nn.Sequential(classifier.features, nn.Flatten(), *classifier.classifier[:-1])
fcn = FCN(classifier, classes=6, stride=32, padding=1)
conv7 = nn.Sequential(fcn.to_pool3, fcn.to_pool4, fcn.to_conv7, nn.Flatten())
pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
print("relative difference below 1e-12:", relative_difference(conv7, hidden, pictures) < 1e-12)

# %% [markdown]
# **A finer network starts where the coarser one stands**, with *unmodified predictions*, says the paper. For our small network that is exact. For the paper's it is nearly so: enlarging by 2 and then by 16 is not quite enlarging by 32, because the units of the one do not lie
# on the units of the other.


# %% tags=["nbval-check-output"]
def transferred(coarse, fine):
    """`fine` with all that `coarse` has; its new scores stay zero, its enlargements bilinear."""
    known = {k: v for k, v in coarse.state_dict().items() if not k.startswith("up")}
    fine.load_state_dict(known, strict=False)
    return fine.eval()


pictures = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
pairs = {
    "small": [SmallFCN(Backbone(), stride) for stride in (32, 16)],
    "paper": [FCN(classifier, classes=6, stride=stride) for stride in (32, 16)],
}
for name, (coarse, fine) in pairs.items():
    nn.init.normal_((coarse.score5 if name == "small" else coarse.score).weight)
    with torch.inference_mode():
        a, b = coarse.eval()(pictures), transferred(coarse, fine)(pictures)
    off = float((a - b).abs().max() / a.abs().max())
    print(f"{name}: exactly unmodified: {off < 1e-5}")

# %% [markdown]
# ## Whole photographs or patches
#
# ### The same answers, computed once
#
# A dense network equals a classifier on every window on one condition: nothing may be padded, for a window has zeros at its
# border where the photograph has neighbours. So here is a VGG without padding. Its patches have 52x52 pixels, its stride is 8,
# and a photograph of 124x124 gives 10x10 answers, as many as in the paper's example with AlexNet.


# %% tags=["model"]
def patch_classifier(classes=6):
    """A VGG without padding: patches (N, 3, 52, 52) to logits (N, classes). Its stride is 8."""
    config = [16, 16, "M", 32, 32, "M", 64, 64, "M"]
    model = VGG(config, classes=classes, hidden=64, size=24)  # 24 / 8 = 3 positions at the end
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    return model.eval()


# %% tags=["nbval-check-output"]
train.set_seed(0)
patchwise = patch_classifier().double()
dense = fully_convolutional(patchwise)
photograph = data.normalize(data.test.images[fixed[:1], :, :124, :124]).double()
patches = windows(photograph, 52, 8)  # (100, 3, 52, 52)


def patch_by_patch(images):
    return patchwise(windows(images, 52, 8)).T.reshape(1, 6, 10, 10)


both = torch.cat([photograph, photograph.flip(-1)])
with torch.inference_mode():
    answers = [model(image[None]) for model in (dense, patch_by_patch) for image in both]
off = max(float((a - b).abs().max()) for a, b in zip(answers[:2], answers[2:], strict=True))
print("answers:", tuple(answers[0].shape))
print("equal at all 100 positions:", off < 1e-12 * float(answers[0].abs().max()))
macs = {
    "one photograph": inspect.count_macs(dense, (3, 124, 124)),
    "100 patches": 100 * inspect.count_macs(patchwise, (3, 52, 52)),
}
print({name: f"{count / 1e6:,.1f} million multiply-adds" for name, count in macs.items()})

# %%
patchwise, dense = patchwise.float(), dense.float()
photograph, patches = photograph.float(), patches.float()


@torch.inference_mode()
def milliseconds(run):
    """The median over some repetitions."""
    repeats, times = pick(full=20, quick=3), []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * sorted(times[1:])[repeats // 2]


took = {
    "the photograph at once": milliseconds(lambda: dense(photograph)),
    "100 patches as one batch": milliseconds(lambda: patchwise(patches)),
    "100 patches one by one": milliseconds(
        lambda: [patchwise(patch[None]) for patch in patches]
    ),
}
base = took["the photograph at once"]
theirs = dict(zip(took, ("1", "5", "25"), strict=True))
Table(
    [
        {
            "way": way,
            "milliseconds": value,
            "ratio": value / base,
            "paper, on a GPU": theirs[way],
        }
        for way, value in took.items()
    ],
    decimals=1,
)

# %% [markdown]
# The paper's example: 22 ms for a photograph of 500x500, against 1.2 ms for a patch in a batch and 5.4 ms for a patch alone
# (section 3.1). Our ratios need not be theirs: they depend on the overlap, and a clock differs from run to run. The count of
# multiply-adds above does not.
#
# ### The same training
#
# The loss of a photograph is the sum of the losses at its positions, so one step on a whole photograph *is* one step on a batch
# of all of its patches. Patchwise training, the paper says, is nothing but **sampling the loss**: choose some positions, ignore
# the others.

# %% tags=["nbval-check-output"]
patchwise, dense = patchwise.double(), dense.double()
photograph, patches = photograph.double(), patches.double()
labels = torch.randint(6, (100,), generator=torch.Generator().manual_seed(0))
chosen = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.3


def gradient(loss):
    return torch.autograd.grad(loss, patchwise.features[0].weight)[0]


def loss_map():
    return F.cross_entropy(
        dense(photograph), labels.view(1, 10, 10), reduction="none"
    ).flatten()


whole = gradient(loss_map().mean())
in_patches = gradient(F.cross_entropy(patchwise(patches), labels))
print("gradient of the photograph = of all patches:", torch.allclose(whole, in_patches))
some = gradient(loss_map()[chosen].mean())
in_patches = gradient(F.cross_entropy(patchwise(patches[chosen]), labels[chosen]))
print(
    f"sampled at {int(chosen.sum())} positions = of these patches:",
    torch.allclose(some, in_patches),
)

# %% [markdown]
# Others sampled to see more different photographs in a batch, and to balance the classes. The paper found that sampling does
# not converge in fewer steps, and that balancing is unnecessary, with three quarters of the pixels background (section 4.3).
#
# ### An answer for every pixel: shift and stitch
#
# The dense network answers at every eighth pixel. For all of them, shift the photograph by 0 to 7 pixels in both directions,
# run it 64 times, and interleave the answers. The same answers come out of *one* pass if every stride is set to 1 and every
# later window is spread out by what the strides have been: in place of neighbours it takes every second, fourth, eighth unit.
# This is the *à trous* algorithm (with holes), today called **dilation**.


# %% tags=["model"]
def rarefied(layers):
    """The same layers (a Sequential) with strides 1, their windows spread out instead: an
    answer per pixel (section 3.2)."""
    layers, spread = copy.deepcopy(layers), 1
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            stride, layer.stride, layer.dilation = layer.stride[0], (1, 1), (spread, spread)
            spread *= stride
        elif isinstance(layer, nn.MaxPool2d):
            stride, layer.stride, layer.dilation = layer.stride, 1, spread
            spread *= stride
    return layers


# %% tags=["nbval-check-output"]
with torch.inference_mode():
    every = rarefied(dense)(photograph)
    print("answers:", tuple(every.shape))
    for y, x in ((0, 0), (3, 50), (72, 41)):
        patch = photograph[..., y : y + 52, x : x + 52]
        print(
            f"at ({y}, {x}) equal to the patch's:",
            torch.allclose(every[..., y, x], patchwise(patch)),
        )
plain, holes = (inspect.count_macs(model, (3, 124, 124)) for model in (dense, rarefied(dense)))
print(f"multiply-adds: {plain / 1e6:,.1f} million become {holes / 1e6:,.1f} million")

# %% [markdown]
# The authors dropped the trick: the answers become denser, but the filters see nothing finer, and the skips gained more for
# less (sections 3.2 and 4.2). Their successors came back to dilation, and train with it.

# %% [markdown]
# ## Four scores
#
# How good is a segmentation? Let $n_{ij}$ be the number of pixels of class $i$ that are called $j$, and $t_i = \sum_j n_{ij}$ the number of pixels of class $i$. The paper reports four measures (section 5):
#
# $$
# \begin{aligned}
# \text{pixel accuracy} &= \frac{\sum_i n_{ii}}{\sum_i t_i}, \\
# \text{mean accuracy} &= \frac{1}{M} \sum_i \frac{n_{ii}}{t_i},
# \end{aligned}
# \tag{12.3} $$ <a id="eq-fcn-accuracy"></a>
#
# and with the IoU of one class, $\text{IoU}_i$,
#
# $$
# \begin{aligned}
# \text{IoU}_i &= \frac{n_{ii}}{t_i + \sum_j n_{ji} - n_{ii}}, \\
# \text{mean IoU} &= \frac{1}{M} \sum_i \text{IoU}_i, \\
# \text{weighted IoU} &= \frac{\sum_i t_i\, \text{IoU}_i}{\sum_i t_i}.
# \end{aligned}
# \tag{12.4} $$ <a id="eq-fcn-iou"></a>
#
# The last is the paper's *frequency-weighted* IoU. IoU is short for **intersection over union**: the pixels that are class $i$ *and* called so, over those that are class $i$ *or* called so. $M$ counts the classes, background included.
# **Void** pixels, whose class the annotators left open, most of them in a thin line around an object, are left out of everything. The counts are summed over all photographs first.


# %% tags=["model"]
def segmentation_scores(counts):
    """The four measures of the paper's section 5 from a confusion matrix (classes, classes)."""
    counts = counts.double()
    known, hits = counts.sum(1), counts.diagonal()
    union = metrics.iou(counts)
    return {
        "pixel_accuracy": float(hits.sum() / known.sum()),
        "mean_accuracy": float((hits / known).nanmean()),
        "mean_iou": float(union.nanmean()),
        "weighted_iou": float((known / known.sum() * union.nan_to_num()).sum()),
    }


# %% [markdown]
# Against a loop over pixels, on a truth with some void and a guess of which class 4 occurs nowhere:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
truth = torch.randint(4, (2, 8, 8), generator=generator).to(torch.uint8)
guess = torch.randint(4, (2, 8, 8), generator=generator).to(torch.uint8)
truth[:, :2] = 255
counts = torch.zeros(5, 5, dtype=torch.float64)
for t, g in zip(truth.flatten().tolist(), guess.flatten().tolist(), strict=True):
    if t != 255:
        counts[t, g] += 1
print("same counts:", torch.equal(counts, metrics.pixel_confusion(guess, truth, 5).double()))
by_hand = (
    sum(
        float(counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]))
        for c in range(4)
    )
    / 4
)
found = segmentation_scores(counts)["mean_iou"]
print("mean IoU of the four classes that occur:", abs(found - by_hand) < 1e-12)
print("IoU of the class that does not:", float(metrics.iou(counts)[4]))

# %% [markdown]
# **Beware of absent classes.** A class that is neither in the truth nor in the guess has an IoU of 0/0. We leave it out, and so
# does `torchmetrics.JaccardIndex` with `average="macro"`; with `average=None` it says 0, so an average of your own comes out
# too low. A class that is only *guessed* has an honest 0. The authors' repository warns that its scores on SIFT Flow, three of
# whose classes are missing in the test set, are not quite right.
#
# What do the four say about a network that calls everything background?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
MEASURES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "weighted_iou")
everywhere = torch.zeros_like(masks)
nothing = segmentation_scores(metrics.pixel_confusion(everywhere, masks, 6))
Table(
    [
        {"guess": "background everywhere"}
        | {
            name.replace("_", " ").replace("iou", "IoU"): 100 * value
            for name, value in nothing.items()
        }
    ],
    decimals=1,
)

# %% [markdown]
# Pixel accuracy finds this quite good. Mean IoU does not: five classes with 0 and one with the share of the background. That is why it is the score to look at, and the row to compare with.

# %% [markdown]
# ## The data, and what a stride costs
#
# Photographs, their masks, and the void around some animals (white):

# %% jupyter={"source_hidden": true} tags=["hide-input"]
several = (known.cumsum(0) - 1)[clear_examples(scenes.test, each=2)]
plot.masks(
    data.test.images[several],
    {"truth": masks[several]},
    data.classes,
    alt="Ten validation photographs, two of each class, and below each its mask: the animals in the colour of their class on black, with a thin white line of void around some.",
    caption=f"Photographs and masks; black is background, white is void. Data: {data.provenance}.",
    inches=0.76,
)

# %% tags=["nbval-check-output"]
batch = data.normalize(data.train.images[:500])
print("images:", tuple(batch.shape[1:]), "masks:", tuple(data.train.targets.shape[1:]))
print("mean of each channel within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
print(
    "standard deviation within 0.1 of 1:", bool(((batch.std((0, 2, 3)) - 1).abs() < 0.1).all())
)
print("labels:", sorted(set(data.train.targets[:500].unique().tolist())))

# %% [markdown]
# ### The ceiling of a stride
#
# Now to the guess at the top. Take the true masks, keep one decision per square of $f \times f$ pixels, and enlarge again. Each
# square keeps the class that it has most of; or its *shares* of the classes are enlarged bilinearly before the largest wins,
# which is closer to what a network can do; or the same with the units where our network has them, at pixels $f i$.

# %%
PAPER_CEILING = {4: 98.5, 8: 96.4, 16: 92.8, 32: 86.1}  # appendix A, PASCAL 2011 validation


def mean_iou(predicted):
    return segmentation_scores(metrics.pixel_confusion(predicted, masks, 6))["mean_iou"]


def through_our_grid(masks, factor, classes=6):
    """As `metrics.through_stride`, with the units where our network has them: at pixels
    factor * i."""
    kept = []
    for part in masks.split(100):
        share = torch.stack([part == label for label in range(classes)], 1).float()
        share = F.avg_pool2d(share, factor, padding=factor // 2, count_include_pad=False)
        kept.append(upsample(share[..., :-1, :-1], factor).argmax(1))
    return torch.cat(kept).to(torch.uint8)


rows = [
    {
        "stride": f,
        "decisions per photograph": (128 // f) ** 2,
        "mean IoU in %, whole squares": 100
        * mean_iou(metrics.through_stride(masks, f, 6, smooth=False)),
        "bilinear": 100 * mean_iou(metrics.through_stride(masks, f, 6)),
        "on our grid": 100 * mean_iou(through_our_grid(masks, f)),
        "paper (appendix A, about 500 px)": str(PAPER_CEILING.get(f, "")),
    }
    for f in (2, 4, 8, 16, 32)
]
rows.append(
    dict.fromkeys(rows[0], 100 * nothing["mean_iou"])
    | {"stride": "background everywhere", "decisions per photograph": None}
    | {"paper (appendix A, about 500 px)": ""}
)
Table(rows, decimals=1)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = fixed[[0, 2, 3, 4]]
plot.masks(
    data.test.images[shown],
    {"truth": masks[shown]}
    | {
        f"stride {factor}": metrics.through_stride(masks[shown], factor, 6)
        for factor in (8, 16, 32)
    },
    data.classes,
    alt="Four photographs, their true masks, and the masks that are left after keeping the shares of each square of 8, 16 and 32 pixels: the outlines get rounder, legs and ears disappear.",
    caption=f"The truth through strides of 8, 16 and 32, enlarged bilinearly. Nothing was learned here. Data: {data.provenance}.",
    inches=1.3,
)

# %% [markdown]
# The paper concludes that *mean IoU is not a good measure of fine-scale accuracy*: a perfect decision per 32 pixels gives
# 86.1 % at 500 pixels, far more than any network of its time reached, legs and ears or no.
#
# What counts is the stride beside the size of the photograph: 8 of 128 is about what 32 is of 500. So the ceiling of stride 32
# is far lower here, and there is more for the skips to win. Our grid lowers it further, with no unit at two of the rims. These
# numbers are a guide, not a law: a network may place an edge between two units where it likes.
#
# ### The boundary band
#
# If fine strides help, then at edges. So we also measure the mean IoU in a **band**: the pixels that have another class within
# $w$ pixels to the sides and up and down.


# %% tags=["model"]
def grown(regions, width):
    """Regions bool (N, C, H, W), larger by `width` pixels to the sides and up and down."""
    for axis in (2, 3):
        others = regions.shape[axis] - 1
        for _ in range(width):
            larger = regions.clone()
            larger.narrow(axis, 1, others).logical_or_(regions.narrow(axis, 0, others))
            larger.narrow(axis, 0, others).logical_or_(regions.narrow(axis, 1, others))
            regions = larger
    return regions


def boundary_band(masks, width, classes=6):
    """True for pixels that have another class within `width` pixels, (N, H, W); void is no
    class."""
    bands = []
    for part in masks.split(100):
        present = torch.stack([part == label for label in range(classes)], 1)
        bands.append(grown(present, width).sum(1) > 1)
    return torch.cat(bands)


BANDS = (1, 2, 4, 8, 16)  # widths in pixels


def score_masks(predicted, masks, classes=6):
    """The four measures, and the mean IoU within and outside bands around the true boundaries."""
    scores = segmentation_scores(metrics.pixel_confusion(predicted, masks, classes))
    for width in BANDS:
        band = boundary_band(masks, width, classes)
        for name, region in (("band", band), ("outside", ~band)):
            counts = metrics.pixel_confusion(
                predicted, masks.masked_fill(~region, 255), classes
            )
            scores[f"{name}_{width}"] = float(metrics.iou(counts).nanmean())
    return scores


# %% tags=["nbval-check-output"]
square = torch.zeros(1, 7, 7, dtype=torch.uint8)
square[0, 2:5, 2:5] = 1
print(boundary_band(square, 1)[0].int())

# %% jupyter={"source_hidden": true} tags=["hide-input"]
one = int(fixed[2])


def draw(fig):
    for ax, width in zip(fig.subplots(1, 4), BANDS[1:], strict=True):
        band = boundary_band(masks[one : one + 1], width)[0] & (masks[one] != 255)
        ax.imshow(data.test.images[one].permute(1, 2, 0))
        magenta = torch.where(band, 0.0, torch.nan)
        ax.imshow(magenta, cmap="spring", vmin=0, vmax=1, alpha=0.8)
        share = 100 * float(band.float().mean())
        ax.set_title(
            f"w = {width}: {share:.0f} % of the pixels", fontsize=8, loc="center", pad=3
        )
        ax.set_axis_off()


plot.show(
    draw,
    alt="A photograph of an animal four times, with bands of 2, 4, 8 and 16 pixels around the outline of the animal coloured.",
    caption=f"The boundary band at four widths. Data: {data.provenance}.",
    height=2.0,
)

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | network | VGG-16, 134 M parameters | the course's backbone, 1.2 M; the paper's own is counted and checked | minutes on a laptop |
# | start | VGG-16 trained on ImageNet's 1.28 M photographs | the backbone trained on CIFAR-10 and on VOC's animals | weaker features; the paper calls training from scratch not feasible, we measure what it costs |
# | photographs | some 500x375 pixels, 20 classes and background | 128x128 (96x96 in the study), five animals and background | a coarse stride costs more here |
# | training images | 8,498 with masks of SBD | 2,860 with masks of VOC and SBD | |
# | alignment | padding 100, crops: a centred grid | units on multiples of the stride, no crop; a study centres them | a lower ceiling, straight bands |
# | enlargement | bilinear and fixed at the end, learned in between | bilinear and fixed | no significant difference in the authors' later code |
# | order | FCN-32s for three days; then 16s, at a hundredth of the learning rate, and 8s, about a day each | the same order in minutes; all at once in the study | the authors' later networks are trained at once, too |
# | optimiser | SGD, momentum 0.9, 20 photographs a step, learning rate 1e-4 for VGG-16, fixed; weight decay printed as $5^{-4}$ or $2^{-4}$; biases at twice the rate | SGD with Nesterov momentum, 32 photographs a step, one cycle with peak 0.05; weight decay 5e-4; biases like all | a short training needs larger steps |
# | augmentation | none in the end; mirroring and shifts by up to 32 pixels gave no noticeable improvement | mirroring and random zoom | a third of their photographs |
#
# In training all at once, the authors' later network multiplies pool4 by 0.01 and pool3 by 0.0001 before scoring them. With batch normalisation all maps are of similar size, and we leave that out.
#
# ## Training
#
# The loss is the cross-entropy of a pixel, averaged over all that are not void (`train.pixel_cross_entropy`). Can the network learn a few photographs by heart?

# %% tags=["model"]
LEARNING_RATE = 0.05


def evaluate_masks(model, data):
    """`score_masks` of the model on the validation photographs."""
    predicted = train.predict_masks(model, data, data.test.images)
    return score_masks(predicted, data.test.targets)


def train_masks(model, data, epochs, lr=LEARNING_RATE, seed=0, label="training"):
    """The recipe of this chapter; returns the history."""
    return train.fit(
        model,
        data,
        epochs=epochs,
        batch_size=32,
        lr=lr,
        weight_decay=5e-4,
        augment=train.AugmentScene(zoom=(0.6, 1.1)),
        loss=train.pixel_cross_entropy,
        evaluate=evaluate_masks,
        eval_every=epochs,
        seed=seed,
        label=label,
    )


# %% tags=["nbval-check-output"]
train.set_seed(0)
learned = train.overfit(
    SmallFCN(BACKBONE.load(), 8),
    data,
    images=8,
    steps=60,
    lr=LEARNING_RATE,
    loss=train.pixel_cross_entropy,
)
print("8 photographs learned by heart, loss below 0.4:", learned < 0.4)

# %% [markdown]
# It does not get to zero: the edges of the masks are finer than a stride of 8.
#
# ### From 32s to 16s to 8s
#
# Now as in the paper: train FCN-32s; make an FCN-16s from it, whose new scores are zero, and train that with a lower learning
# rate; the same again for FCN-8s. Once from the trained backbone, and once **from nothing**: the same plan and batches, but
# random first weights.

# %%
PLAN = {
    32: (pick(full=3, quick=1), LEARNING_RATE),
    16: (1, LEARNING_RATE / 4),
    8: (1, LEARNING_RATE / 4),
}


def in_stages(backbone, label):
    """FCN-32s, 16s and 8s, each made from the one before; the networks and their histories."""
    networks, histories, network = {}, {}, None
    for stride, (epochs, lr) in PLAN.items():
        finer = SmallFCN(copy.deepcopy(backbone), stride)
        network = finer if network is None else transferred(network, finer)
        label_now = f"FCN-{stride}s, {label}"
        histories[stride] = train_masks(network, data, epochs, lr, label=label_now)
        networks[stride] = copy.deepcopy(network)
    return networks, histories


trained, histories = {}, {}
for label, backbone in {"pretrained": BACKBONE.load(), "from nothing": Backbone()}.items():
    trained[label], histories[label] = in_stages(backbone, label)
guesses = {
    (label, stride): train.predict_masks(network, data, data.test.images)
    for label, networks in trained.items()
    for stride, network in networks.items()
}

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = [{"network": "background everywhere", "epochs": "0"} | nothing]
for label, stages in histories.items():
    epochs = 0
    for stride, history in stages.items():
        epochs += PLAN[stride][0]
        scores = {name: history.last(name) for name in MEASURES}
        rows.append({"network": f"FCN-{stride}s, {label}", "epochs": str(epochs)} | scores)
rows += [
    {"network": f"truth through stride {factor}", "epochs": ""}
    | segmentation_scores(
        metrics.pixel_confusion(metrics.through_stride(masks, factor, 6), masks, 6)
    )
    for factor in (32, 16, 8)
]
Table(
    [
        {
            name.replace("_", " ").replace("iou", "IoU"): 100 * value
            if isinstance(value, float)
            else value
            for name, value in row.items()
        }
        for row in rows
    ],
    decimals=1,
)

# %% [markdown]
# All in %, on the validation photographs. The first row is what a network gets for saying nothing; the last three are what a
# stride leaves of the truth. Compare the two halves between them: what does it cost to start from nothing? A row further down
# within a half has trained longer, so it does not tell which stride is better; the study does. What a network stays below its
# ceiling is *not* the stride: it is a wrong name, or an animal that was not found.
#
# ### What the three networks say
#
# Eight photographs from the ranking of FCN-8s, by the mean IoU over the classes that a photograph has or is said to have.


# %%
def photograph_scores(predicted, masks):
    """The mean IoU of each photograph over the classes that it has or is said to have, (N,)."""
    return torch.stack(
        [
            metrics.iou(metrics.pixel_confusion(p[None], t[None], 6)).nanmean()
            for p, t in zip(predicted, masks, strict=True)
        ]
    )


each = photograph_scores(guesses["pretrained", 8], masks)
ranks = each.argsort(descending=True)
# two have no animal pixel
ranks = ranks[
    ((masks[ranks] > 0) & (masks[ranks] < 255)).flatten(1).any(1)
]
n = len(ranks)
picked = ranks[[0, 1, n // 4, n // 4 + 1, n // 2, n // 2 + 1, 3 * n // 4, n - 3]]

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.masks(
    data.test.images[picked],
    {"truth": masks[picked]}
    | {f"{stride}s": guesses["pretrained", stride][picked] for stride in (32, 16, 8)}
    | {"8s from\nnothing": guesses["from nothing", 8][picked]},
    data.classes,
    titles=[f"{100 * float(each[i]):.0f} %" for i in picked],
    alt="Eight validation photographs from well to badly segmented, and below each the true mask and the masks that FCN-32s, 16s and 8s and the FCN-8s from nothing predict.",
    caption="Above each photograph the score of FCN-8s on it. From left to right: among its best, at a quarter, the middle and three quarters of the ranking, and one of its worst. "
    f"Data: {data.provenance}.",
)

# %% [markdown]
# Does a finer stride ever change the *name* of an animal? Where one animal has patches of several colours, remember that
# nothing tells neighbouring pixels to agree. And look to the right and to the bottom: there the outlines run straight to the
# rim, where no unit is.

# %% [markdown]
# ## Results: the paper beside ours
#
# In the chain above each finer network has trained longer. So a study trained five arms with five seeds each (three at first), all at once: the
# same start, photographs, batches and number of steps, at 96x96 pixels. The last arm trains the scores alone on a frozen
# backbone, the paper's *FCN-32s-fixed*.

# %% tags=["model"]
ARMS = {
    "32s": {"stride": 32},
    "16s": {"stride": 16},
    "8s": {"stride": 8},
    "8s from nothing": {"stride": 8, "pretrained": False},
    "32s, scores only": {"stride": 32, "scores_only": True},
}


def small_photographs():
    """The photographs with masks at 96x96 pixels."""
    return with_masks(voc_animals(size=96))


def train_arm(data, *, seed, stride, pretrained=True, scores_only=False, epochs=4):
    """One training of the study."""
    train.set_seed(seed)
    backbone = BACKBONE.load() if pretrained else Backbone()
    backbone.requires_grad_(not scores_only)
    history = train_masks(SmallFCN(backbone, stride), data, epochs, seed=seed)
    return {
        name: value for name, value in history.rows[-1].items() if name not in ("epoch", "lr")
    }


STUDY = Study(
    "12_fcn", run=train_arm, arms=ARMS, data=small_photographs, seeds=(0, 1, 2, 3, 4)
)

# %% [markdown]
# A second study compares the grids, with five seeds: both at stride 32 and at 8, and the centred one at 16, too. A centred
# network computes on 130 pixels for 96, so it takes 1.8 times the multiply-adds.

# %% tags=["model"]
GRID_ARMS = {
    "32s, corner": {"stride": 32, "centred": False},
    "32s, centred": {"stride": 32},
    "16s, centred": {"stride": 16},
    "8s, corner": {"stride": 8, "centred": False},
    "8s, centred": {"stride": 8},
}


def train_grid_arm(data, *, seed, stride, centred=True, epochs=4):
    """As `train_arm`, on one of the two grids."""
    train.set_seed(seed)
    network = (CentredFCN if centred else SmallFCN)(BACKBONE.load(), stride)
    history = train_masks(network, data, epochs, seed=seed)
    return {
        name: value for name, value in history.rows[-1].items() if name not in ("epoch", "lr")
    }


GRIDS = Study(
    "12_fcn",
    run=train_grid_arm,
    arms=GRID_ARMS,
    data=small_photographs,
    seeds=(0, 1, 2, 3, 4),
    name="grids",
    minutes=2.0,
)

# %% tags=["nbval-check-output"]
built = {arm: SmallFCN(Backbone(), config["stride"]) for arm, config in ARMS.items()}
for arm in ("32s", "16s", "8s"):
    model = built[arm]
    macs = inspect.count_macs(model, (3, 96, 96))
    print(f"{arm:4} {inspect.count_parameters(model):,} parameters, {macs:,} multiply-adds")

# %% [markdown]
# The skips cost a thousandth of the parameters and two thousandths of the multiply-adds. So the strides are compared at equal
# cost, very nearly.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Table 2: pixel accuracy and mean IoU in % on a part of PASCAL VOC 2011's validation photographs
PAPER = {
    "32s": ("89.1", "59.4"),
    "16s": ("90.0", "62.4"),
    "8s": ("90.3", "62.7"),
    "32s, scores only": ("83.0", "45.4"),
}
validation = with_masks(
    voc_animals(size=96, train=1, test=pick(full=None, quick=48))
).test.targets
bounds = {
    "background everywhere": score_masks(torch.zeros_like(validation), validation),
    "truth, stride 32, our grid": score_masks(through_our_grid(validation, 32), validation),
    "truth, stride 32, centred": score_masks(
        metrics.through_stride(validation, 32, 6), validation
    ),
    "truth, stride 8, our grid": score_masks(through_our_grid(validation, 8), validation),
}

# %% jupyter={"source_hidden": true} tags=["hide-input"]
COLUMNS = {
    "ours: pixel accuracy": "pixel_accuracy",
    "ours: mean IoU": "mean_iou",
    "in a band of 2 px": "band_2",
    "outside a band of 8 px": "outside_8",
}


def in_percent(scores, key):
    return f"{100 * scores[key]:.1f}"


def study_row(name, text):
    accuracy, iou = PAPER.get(name, ("", ""))
    printed = {"paper: pixel accuracy": accuracy, "paper: mean IoU": iou}
    return {"network": name, **printed, **{title: text(key) for title, key in COLUMNS.items()}}


Table(
    [
        study_row(arm, partial(study.text, arm, scale=100, decimals=1))
        for study in (STUDY, GRIDS)
        for arm in study.arms
    ]
    + [study_row(name, partial(in_percent, scores)) for name, scores in bounds.items()]
)

# %% [markdown]
# All in %, ours with mean and standard deviation over the seeds. The two sides are **not comparable**: other classes, photographs,
# sizes and networks, and minutes against days. Compare the rows of a column.
#
# *Background everywhere* is no score of zero. So what a start or a part of the training is worth is measured **above that floor**:


# %%
def above_the_floor(arm, whole):
    """Mean IoU of an arm above background everywhere, in % of that of another arm."""
    floor = bounds["background everywhere"]["mean_iou"]

    def share(value):
        return 100 * (value - floor) / (STUDY.mean(whole, "mean_iou")[0] - floor)

    return STUDY.text(arm, "mean_iou", decimals=0, to=share)


pairs = {"8s from nothing": "8s", "32s, scores only": "32s"}
Table(
    {"network": arm, "compared with": whole, "of its gain, %": above_the_floor(arm, whole)}
    for arm, whole in pairs.items()
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    STUDY,
    list(ARMS),
    "mean_iou",
    "mean IoU on the validation photographs, %",
    scale=100,
    alt="Dot plot of the mean IoU of the five arms of the study, five dots and a mean each.",
    caption="Strides, starting from nothing, and training the scores alone, all at equal numbers of steps.",
)

# %% [markdown]
# The paper's other results, all from its tables:
#
# | data | network | mean IoU in % | | source |
# |:--|:--|--:|:--|:--|
# | VOC 2012, test | FCN-8s | 62.2 | 51.6 for the best system before, in about 50 s a photograph; FCN-8s takes some 175 ms | Table 3 |
# | VOC 2011, validation | FCN-AlexNet, VGG16, GoogLeNet, all at stride 32 | 39.8, 56.0, 42.5 | without SBD's masks | Table 1 |
# | NYUDv2, 40 classes of indoor scenes with depth | FCN-16s, colour and depth | 34.0 | 29.2 for FCN-32s from colour; depth as a fourth channel: 30.5 | Table 4 |
# | SIFT Flow, 33 classes | FCN-16s | 39.5 | with the geometry from the same network, 94.3 % of the pixels | Table 5 |
#
# The networks that the authors released later, trained one photograph at a time with high momentum, reach 63.6, 65.0 and 65.5
# on VOC's validation part, and 67.2 on the test set of 2012: not those of Table 2.

# %% [markdown]
# ## The paper's claim in miniature
#
# Finer strides are better. Each row is a difference of two arms, seed by seed. **Verdicts** rest on the 95 % interval of the
# mean; those of the four primary claims are corrected for being four (Holm), and a difference that lies within one point of
# mean IoU is too small to matter. The others are exploratory.

# %% tags=["model"]
FINER = {
    "16s is better than 32s": ("32s", "16s", "Table 2: 3.0 points"),
    "8s is better than 16s": ("16s", "8s", "Table 2: 0.3 points"),
    "8s is better than 32s": ("32s", "8s", "Table 2: 3.3 points"),
}
SCORES_ALONE = "training all layers is better than the scores alone"
CLAIMS = Claims(
    STUDY,
    "mean_iou",
    "mean IoU, points",
    scale=100,
    matters=1.0,
    main={
        "16s is better than 32s": FINER["16s is better than 32s"],
        "8s is better than 16s": FINER["8s is better than 16s"],
        SCORES_ALONE: ("32s, scores only", "32s"),
    },
    also={
        "8s is better than 32s": FINER["8s is better than 32s"],
        "a trained backbone is better than none": ("8s from nothing", "8s"),
    },
    about="The same backbone with strides of 32, 16 and 8, from the same start and with the same steps. The skips cost a "
    "thousandth of the parameters.",
)
NEAR = Claims(
    STUDY, "band_2", "mean IoU within 2 px of a boundary, points", also=FINER, scale=100
)
FAR = Claims(STUDY, "outside_8", "mean IoU beyond 8 px, points", also=FINER, scale=100)

# %%
CLAIMS.table()

# %% [markdown]
# The three strides near an edge, and far from one:

# %%
NEAR.table()

# %%
FAR.table()

# %% tags=["model"]
GRID_CLAIMS = Claims(
    GRIDS,
    "mean_iou",
    "mean IoU, points",
    scale=100,
    matters=1.0,
    main={"a centred grid is better, 32s": ("32s, corner", "32s, centred")},
    also={
        "a centred grid is better, 8s": ("8s, corner", "8s, centred"),
        "16s is better than 32s, centred": ("32s, centred", "16s, centred"),
        "8s is better than 16s, centred": ("16s, centred", "8s, centred"),
    },
)

# %%
GRID_CLAIMS.table()

# %% [markdown]
# **From 32s to 16s** the gain is large, in all three tables. **From 16s to 8s** it is small; beyond 8 pixels of a boundary nothing
# is clear. That is the paper's own picture, 59.4, 62.4, 62.7, and its reason to stop at 8s.
#
# **The grid** is most of the first step. Centred, stride 32 gains 3.81 points, and stride 8 nothing: 0.02, too small to matter.
# On the corner grid FCN-32s has nine positions for a photograph, and none of them near two of its sides. With that mended, 16s is
# ahead of 32s by 2.06 points instead of 5.84, and 8s ahead of 16s by 0.92 (both exploratory). So before you credit a skip, look
# where the coarse network had no place to be right in.
#
# **Start and depth of training.** From nothing, the same network gets a third of the gain over the floor after the same steps.
# The scores alone get about half of what training all layers gets above the floor, and the pixel accuracy of background
# everywhere. The paper's text says that the last layer alone yields 70 % of the full performance;
# by its Table 2 it is 45.4 of 59.4, that is 76 %. It takes off no floor, and its features are far stronger.

# %% tags=["nbval-check-output"]
few = with_masks(voc_animals(size=64, train=40, test=10))
rehearsed = STUDY.rehearse(few) | GRIDS.rehearse(few)
print("all arms of the studies run:", len(rehearsed) == len(ARMS) + len(GRID_ARMS))


# %% tags=["model"]
def animal_network():
    return SmallFCN(BACKBONE.load(), stride=8)


def masked_128():
    return with_masks(voc_animals(size=128))


def learn_animals(model, data):
    """Train it for the gallery; returns its mean IoU."""
    return {"mean_iou": train_masks(model, data, epochs=4).last("mean_iou")}


TRAINED = Weights(
    "12_fcn",
    "animals",
    build=animal_network,
    train=learn_animals,
    data=masked_128,
    title="FCN",
    layer="backbone.layer3",
    score=chapter("11_unet").animal_logit,
    size=128,
)

# %%
print(
    f"kept for later chapters: {TRAINED.title}, mean IoU {100 * TRAINED.record['metrics']['mean_iou']:.1f} %"
)
with torch.inference_mode():
    before = TRAINED.untrained()(photos)
print("before training all its scores are zero:", not before.any())

# %% [markdown]
# So an untrained control has no evidence to show here: every map of the next section would be black at step 0.
#
# ## Look inside
#
# ### Failures first: which class is called what?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
best_guess = guesses["pretrained", 8]
counts = metrics.pixel_confusion(best_guess, masks, 6)
plot.confusion(
    counts,
    names,
    alt="Confusion matrix of pixels for background and five animals, in percent of each true class.",
    caption=f"Of 100 pixels of each true class (row), how many FCN-8s calls what. Data: {data.provenance}.",
)

# %% [markdown]
# The first column is what the network leaves to the background: animals that it did not find, or edges drawn too narrow. It is
# the largest kind. Entries between two animals are wrong names. In the first row stands what is called an animal and is none.
#
# ### Where is the evidence?
#
# Grad-CAM [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] asks a classifier for the score of a class. Here every pixel has a score. So take those
# of class $c$, summed over the pixels that the network itself calls $c$:
#
# $$
# \begin{aligned}
# y^c &= \sum_{(i, j) \in P_c} s^c_{ij}, \\
# P_c &= \{(i, j) : \arg\max_k s^k_{ij} = c\}.
# \end{aligned}
# \tag{12.5} $$ <a id="eq-fcn-cam"></a>
#
# Below, photographs on which FCN-8s sees many pixels of an animal and mostly gives them the wrong name. First row: the evidence
# for the animal that it mainly sees; second row: for the animal that is there, summed over the pixels of its true mask.


# %%
def called(classes):
    """The target above, for one class per image: scores (N, classes, H, W) to (N,)."""

    def target(scores):
        own = scores[torch.arange(len(scores)), classes]
        return (own * (scores.argmax(1) == classes[:, None, None])).sum((1, 2))

    return target


def within(regions, classes):
    """The scores of one class per image, summed over a region (N, H, W) of each."""
    return lambda scores: (scores[torch.arange(len(scores)), classes] * regions).sum((1, 2))


def animal_in(some):
    """The animal with most pixels in each mask (N, H, W), as a class from 1 to 5."""
    return torch.stack([(some == label).sum((1, 2)) for label in range(1, 6)], 1).argmax(1) + 1


def evidence(network, index, target, layer="backbone.layer3"):
    photographs = data.normalize(data.test.images[index])
    return cam.grad_cam(network, layer, photographs, target, size=(128, 128))


network = trained["pretrained"][8]
seen, true = animal_in(best_guess), animal_in(masks)
sure = ((best_guess > 0).sum((1, 2)) > 800) & (seen != true)
failures = ranks[sure[ranks]].flip(0)[:7]
failures = torch.cat([failures, ranks.flip(0)[: 7 - len(failures)]])

# %% jupyter={"source_hidden": true} tags=["hide-input"]
of_truth = within(masks[failures] == true[failures][:, None, None], true[failures])
plot.cams(
    data.test.images[failures],
    None,
    titles=[f"{names[seen[i]]}\nis {names[true[i]]}" for i in failures],
    rows_of_maps={
        "for what\nit sees": evidence(network, failures, called(seen[failures])),
        "for what\nis there": evidence(network, failures, of_truth),
    },
    alt="Seven photographs in which the network names the wrong animal, and below each two heat maps: the evidence for the animal that it sees and for the one that is there. Seen: "
    + ", ".join(names[seen[i]] for i in failures)
    + ". True: "
    + ", ".join(names[true[i]] for i in failures)
    + ".",
    caption="Photographs with an animal of the wrong name: above each the name of most of the network's animal pixels, and the true one. Grad-CAM at the end of stage 3 (8x8 positions); each map is scaled to its own range. "
    f"Data: {data.provenance}.",
)

# %% [markdown]
# Now photographs that went well, and what changes with the start. The target is [(12.5)](#eq-fcn-cam), for the true animal.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
good = torch.stack(
    [
        next(i for i in ranks if true[i] == label and seen[i] == label)
        if bool(((true == label) & (seen == label)).any())
        else fixed[label - 1]
        for label in range(1, 6)
    ]
)
scratch = trained["from nothing"][8]
plot.cams(
    data.test.images[good],
    None,
    titles=[names[true[i]] for i in good],
    rows_of_maps={
        "pretrained\n16x16": evidence(network, good, called(true[good]), "backbone.layer2"),
        "pretrained\n8x8": evidence(network, good, called(true[good])),
        "from nothing\n8x8": evidence(scratch, good, called(true[good])),
    },
    alt="Five photographs, one of each animal, and below each three heat maps of the evidence for its class: from stage 2 and stage 3 of the network with the trained backbone, and from stage 3 of the one from nothing.",
    caption="The evidence for the animal, for each animal on the photograph that FCN-8s does best. A black map: the network calls no pixel so, or nothing speaks for it. Each map is scaled to its own range. "
    f"Data: {data.provenance}.",
    inches=1.25,
)

# %% [markdown]
# Compare the two stages of the same network: which map follows edges, and which covers parts? Then the two starts. Evidence may
# well lie beside the animal: a unit of the coarse maps sees most of the photograph, so a pixel's name can rest on a head that is
# elsewhere, or on grass.
#
# ### Three streams, one sum
#
# The score of a pixel is a sum, and enlargement is linear. So it can be taken apart exactly: by [(12.1)](#eq-fcn-skip) the FCN-8s
# says $U_{32} S_5 c_5 + U_{16} S_4 c_4 + U_8 S_3 c_3$. What does each stream say about the animal, relative to the background?


# %%
@torch.inference_mode()
def streams(network, images):
    """What C5, C4 and C3 add to the scores of an FCN-8s, each (N, classes, H, W)."""
    _, c3, c4, c5 = network.backbone.features(images)
    parts = network.score5(c5), network.score4(c4), network.score3(c3)
    return [upsample(part, factor) for part, factor in zip(parts, (32, 16, 8), strict=True)]


photographs = data.normalize(data.test.images[good])
parts = streams(network.eval(), photographs)
with torch.inference_mode():
    exact = torch.allclose(sum(parts), network(photographs), atol=1e-4)
print("the three streams add up to the scores:", exact)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
margins = [p[range(5), true[good]] - p[:, 0] for p in (*parts, sum(parts))]


def draw(fig):
    titles = ("C5, stride 32", "C4, stride 16", "C3, stride 8", "sum")
    axes = fig.subplots(5, 5)
    limits = [float(margin.abs().max()) for margin in margins]
    for row, line in enumerate(axes):
        line[0].imshow(data.test.images[good[row]].permute(1, 2, 0))
        for ax, margin, limit in zip(line[1:], margins, limits, strict=True):
            ax.imshow(margin[row], cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.contour(
                masks[good[row]] == true[good[row]],
                levels=[0.5],
                colors="black",
                linewidths=0.8,
            )
        for ax in line:
            ax.set_axis_off()
    for ax, title, limit in zip(axes[0, 1:], titles, limits, strict=True):
        ax.set_title(f"{title}\n±{limit:.1f}", fontsize=9, loc="center", pad=3)


plot.show(
    draw,
    alt="Five photographs and for each four maps in red and blue with the true outline: what stride 32, stride 16 and stride 8 add to the score of the animal over the background, and the sum.",
    caption="What each stream says, as the score of the animal less that of the background: red speaks for the animal, blue for the background. Each column has its own "
    "scale, in its title. The black line is the true outline. "
    f"Data: {data.provenance}.",
    width=6.6,
    height=6.0,
)

# %% [markdown]
# The stream of stride 32 carries the decision between animal and background; the sum looks nearly like it. The paper calls this
# division *what and where*: the coarse stream says what, the finer ones correct where. Here the corrections are small; the
# scores of C4 and C3 trained for two epochs and one, at a quarter of the learning rate.
#
# ## Play: where do strides differ?
#
# In the middle, only the pixels of the boundary band are judged: green where the guess is right, red where it is wrong. On the
# right, the mean IoU within the band over all validation photographs; the lowest grey curve is the FCN-8s from nothing.
#
# Start with the narrowest band and go through the networks. Then widen the band: do the curves come closer, or do they part?

# %%
play, WIDTHS = int(good[2]), BANDS[1:]  # within 1 px most is void
shown_networks = {
    "32s": ("pretrained", 32),
    "16s": ("pretrained", 16),
    "8s": ("pretrained", 8),
    "8s from nothing": ("from nothing", 8),
}
curves = {
    name: [100 * histories[label][stride].last(f"band_{w}") for w in WIDTHS]
    for name, (label, stride) in shown_networks.items()
}
bands = {w: boundary_band(masks[play : play + 1], w)[0] & (masks[play] != 255) for w in WIDTHS}
faded = 0.6 + 0.4 * data.test.images[play].float().mean(0, keepdim=True).expand(3, -1, -1) / 255
GREEN, RED = torch.tensor([0.0, 0.62, 0.45]), torch.tensor([0.84, 0.15, 0.10])


def judged(name, width):
    """The photograph in light grey; in the band, green where the guess is right and red where
    it is wrong, (H, W, 3)."""
    right = guesses[shown_networks[name]][play] == masks[play]
    colours = torch.where(right[..., None], GREEN, RED)
    return torch.where(bands[width][..., None], colours, faded.permute(1, 2, 0)), right


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_band(fig, name, width):
    left, middle, chart = fig.subplots(1, 3, width_ratios=(1, 1, 1.25))
    left.imshow(data.test.images[play].permute(1, 2, 0))
    guess = guesses[shown_networks[name]][play]
    for label in guess.unique().tolist():
        if label:
            colour = plot.MASK_COLOURS[label]
            left.contour(guess == label, levels=[0.5], colors=colour, linewidths=1.5)
    left.set_title("its guess", fontsize=9, loc="center")
    picture, right = judged(name, width)
    middle.imshow(picture)
    share = 100 * float(right[bands[width]].float().mean())
    middle.set_title(f"{share:.0f} % right", fontsize=9, loc="center")
    for other, curve in curves.items():
        chosen = other == name
        chart.plot(
            WIDTHS,
            curve,
            color="C0" if chosen else "#bbbbbb",
            linewidth=2 if chosen else 1,
            zorder=2 + chosen,
        )
        chart.text(
            WIDTHS[-1] * 1.1,
            curve[-1],
            other,
            fontsize=6,
            va="center",
            color="C0" if chosen else "#777777",
        )
    chart.set_xlim(right=WIDTHS[-1] * 4)  # room for the names
    chart.plot(width, curves[name][WIDTHS.index(width)], "o", color="C1", zorder=5)
    chart.set_xscale("log", base=2)
    chart.set_xticks(WIDTHS, WIDTHS)
    chart.set(xlabel="width of the band, px", ylim=(0, None))
    chart.set_title("mean IoU in the band, %", fontsize=9)
    for ax in (left, middle):
        ax.set_axis_off()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
Explorable(
    draw_band,
    (tuple(shown_networks)[:3], WIDTHS),
    ("network", "width of the band"),
    alt=lambda name, width: (
        f"FCN-{name} on a photograph of a {names[true[play]]}: within {width} px of the true "
        f"boundaries {100 * float(judged(name, width)[1][bands[width]].float().mean()):.0f} % "
        "of the pixels are right on it; over all validation photographs the mean IoU there is "
        f"{curves[name][WIDTHS.index(width)]:.1f} %."
    ),
    caption="Left: the outline of the guess. Middle: the pixels of the band, green if right "
    "and red if wrong. Right: the mean IoU within the band on all validation photographs, the "
    "chosen network in blue.",
    key="fcn-band",
    size=(5.2, 1.8),
)

# %% [markdown]
# The curves part. FCN-8s has trained longer here; but in the study, at equal training, it is further above FCN-32s away from the
# boundaries, too: by 5.98 points beyond 8 px, against 3.58 within 2 px. Every curve falls towards the narrow bands, where the
# truth itself is a matter of a pixel. A photograph's own percentage can be high while its curve is low: background rules the
# share of right pixels, and mean IoU counts every class alike.

# %% [markdown]
# The trained FCN-8s paints a picture of your own (it loads 3 MB). Without the scores of C3 it adds what an FCN-16s would add;
# without both, what an FCN-32s would.
#
# *Predict first.* Where will the mask change when the scores of C3 go: inside the animal, or along its outline?
#
# <div class="live" data-figure="masks" data-network="FCN">In the book, the network itself runs here, in your browser.</div>

# %% [markdown]
# ## When to use it today, and what came after
#
# Every segmentation network is fully convolutional today, or applies the same layers to all patches. FCN-8s is a fine first
# baseline where a trained classifier is at hand. Its weakness: fine detail comes late and as a linear correction.
#
# - **U-Net** [[Ronneberger et al., 2015](../pages/bibliography.md#ronneberger2015unet)] (chapter 11) came half a year later. It concatenates features where FCN adds scores, at
#   every stride down to 1, and convolves after each step up.
# - **Dilation instead of strides.** DeepLab [[Chen et al., 2015](../pages/bibliography.md#chen2015deeplab)] and Yu and Koltun [[Yu and Koltun, 2016](../pages/bibliography.md#yu2016dilated)] take the last strides
#   out and spread the kernels, as `rarefied` does, and *train* that. torchvision's `fcn_resnet50` is of this kind.
# - **Context.** DeepLab's later versions look at one map with several dilations side by side; the fourth, v3+
#   [[Chen et al., 2018](../pages/bibliography.md#chen2018deeplabv3plus)], has a skip again.
# - **Feature pyramids** [[Lin et al., 2017a](../pages/bibliography.md#lin2017fpn)] (chapter 13) use the same way up, with features instead of scores, for detection.
# - **Mask R-CNN** [[He et al., 2017](../pages/bibliography.md#he2017maskrcnn)] runs a small FCN in every detected box: which of two touching sheep a pixel belongs to
#   is a question that a class per pixel can't answer.
# - **Transformers** for segmentation [[Xie et al., 2021](../pages/bibliography.md#xie2021segformer)] bring features of coarse and fine maps to one size and score them.

# %% [markdown]
# ## Exercises
#
# **1. (quick)** A unit of pool5 of VGG-16 sees 212 pixels, and the stride there is 32. How many does a unit of conv6 see, whose kernel is 7x7? What if it became a 1x1 convolution?
#
# <details><summary>Answer</summary>
#
# 212 + 6 · 32 = 404. With a 1x1 kernel it would be 212, and the weights of fc6 would not fit: 7 · 7 · 512 numbers per output against 512.
#
# </details>
#
# **2. (quick)** Why 100 pixels of padding? With `crop_offsets(stride, padding)`, find for each network the smallest padding for which no offset is negative. Which asks for
# most, and why?
#
# <details><summary>Answer</summary>
#
# 81 for 32s, 73 for 16s and 69 for 8s: 100 less the offset, since a pixel of padding moves every grid by one. What differs is how
# far beyond the middle of the first unit the enlargements write: 31.5 pixels for 32s, 24 + 15.5 for 16s, 24 + 12 + 7.5 for 8s. The
# shortest reach needs most padding. A single pixel as input needs 97: pool5 must have seven positions for the 7x7 kernel.
#
# </details>
#
# **3. (code)** Write `shift_and_stitch(layers, images, stride)`: run a dense network `stride` · `stride` times on photographs that begin `y` pixels further
# down and `x` further to the right, and interleave its answers so that answer $(i, j)$ belongs to the window that begins at pixel
# $(i, j)$, as `rarefied` does. Cut all maps to the size of the smallest.


# %%
def check_stitch(shift_and_stitch):
    train.set_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 2),
    ).double()
    images = torch.randn(2, 3, 33, 41, dtype=torch.float64)
    with torch.inference_mode():
        found, expected = shift_and_stitch(layers, images, 4), rarefied(layers)(images)
    assert found.shape == (2, 2, 20, 28), (
        f"cut to the smallest map there are 20x28 answers, you give {tuple(found.shape)}."
    )
    expected = expected[..., :20, :28]
    for (y, x), hint in {
        (0, 0): "the pass without a shift gives every fourth answer, beginning at (0, 0).",
        (1, 0): "answer (1, 0) is of the photograph that begins one pixel further down.",
        (0, 1): "answer (0, 1) is of the photograph that begins one pixel further right.",
    }.items():
        assert torch.allclose(found[..., y::4, x::4], expected[..., y::4, x::4]), hint
    assert torch.allclose(found, expected), "some of the shifts are missing or misplaced."


def shift_and_stitch(layers, images, stride):
    raise NotImplementedError


attempt(check_stitch, shift_and_stitch)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def stitch_solution(layers, images, stride):
    maps = [[layers(images[..., y:, x:]) for x in range(stride)] for y in range(stride)]
    n, channels, height, width = maps[-1][-1].shape  # the smallest
    stitched = torch.zeros(n, channels, stride * height, stride * width, dtype=images.dtype)
    for y, line in enumerate(maps):
        for x, part in enumerate(line):
            stitched[..., y::stride, x::stride] = part[..., :height, :width]
    return stitched


verify(check_stitch, stitch_solution)

# %% [markdown]
# **4. (code)** The authors stopped at FCN-8s. Go on: write `FCN4s`, a `SmallFCN` with a fourth stream from C2 (32 channels, stride
# 4), whose `score2` starts at zero. Before any training it must say exactly what the FCN-8s says that it is made from.


# %%
def check_four(FCN4s):
    train.set_seed(0)
    eight = SmallFCN(Backbone(), 8).eval()
    for layer in (eight.score5, eight.score4, eight.score3):
        nn.init.normal_(layer.weight)
    four = transferred(eight, FCN4s(eight.backbone))
    images = torch.randn(2, 3, 64, 96)
    more = inspect.count_parameters(four) - inspect.count_parameters(eight)
    assert more == 6 * 33, f"six scores from 32 channels are 198 parameters more, not {more}."
    with torch.inference_mode():
        assert torch.allclose(four(images), eight(images), atol=1e-4), (
            "it must start as the FCN-8s: score2 at zero, the units at their places."
        )
        nn.init.ones_(four.score2.weight)
        added = four(images) - eight(images)
        expected = upsample(four.backbone.features(images)[0].sum(1, keepdim=True), 4)
    assert torch.allclose(added, expected.expand_as(added), atol=1e-3), (
        "C2's scores are added at stride 4 and enlarged 4 times."
    )


class FCN4s(SmallFCN):
    def __init__(self, backbone):
        raise NotImplementedError


attempt(check_four, FCN4s)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
class FourSolution(SmallFCN):
    def __init__(self, backbone):
        super().__init__(backbone, stride=8)
        self.score2 = zero_scores(32, 6)

    def forward(self, images):
        c2, c3, c4, c5 = self.backbone.features(images)
        scores = upsample(self.score5(c5), 2) + self.score4(c4)
        scores = upsample(scores, 2) + self.score3(c3)
        return upsample(upsample(scores, 2) + self.score2(c2), 4)


verify(check_four, FourSolution)

# %% [markdown]
# **5. (open)** Train `FCN4s` of exercise 4 beside FCN-8s, on both grids, with three seeds. Is its gain as small as the authors
# expected of a finer stride? And does centring matter less, the finer the grid?

# %% [markdown]
# ## Recap
#
# - A fully connected layer is a convolution with the kernel of its whole map: 7x7 for fc6, 1x1 for the two others. Nothing is
#   learned anew, and any size of photograph goes in.
# - Dense answers equal those of all windows, exactly where nothing is padded; and a step on a photograph is a step on all of its
#   windows.
# - Enlarging is a convolution backwards. With a bilinear kernel it is interpolation, except at the rim.
# - Every unit sits at a pixel $a i + b$. The crops 5, 9, 19, 27 and 31 and the padding of 100 follow.
# - Mean IoU rewards large regions. What a stride costs the outline can be computed without any network.
# - New scores start at zero, so a finer network starts as the coarser one.
# - Most of what a skip seemed to gain here was the grid: a coarse network has few places, and they have to be in the right ones.
#
# **Three questions.** Why does FCN-8s have fewer parameters than FCN-32s, with its learnable enlargements counted? A network
# reaches a pixel accuracy of 75 %: what do you ask next? Two networks have the same mean IoU, one of stride 32 and one of stride
# 8: how can that be, and where do you look?

# %%
reached = 100 * histories["pretrained"][8].last("mean_iou")
headline(f"FCN-8s, mean IoU {reached:.1f} %", data.provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Squeeze-and-Excitation: a gate for every channel
#
# | | |
# |:--|:--|
# | Paper | J. Hu, L. Shen and G. Sun, *Squeeze-and-Excitation Networks*, CVPR 2018 [[Hu et al., 2018a](../pages/bibliography.md#hu2018senet)] |
# | Claim | Let every block look at the whole image for a moment, and turn its channels up or down: then a network is more accurate for almost no multiply-adds. |
# | You need | [Chapter 2](02_resnet): residual blocks, and the ResNets that get the gates here. |
# | Time | About an hour to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# Tables, figures and sections of the paper are numbered as in its longer version on arXiv, which has two more
# authors, S. Albanie and E. Wu.
#
# **You will be able to**
#
# - build the block, put it into any network, and say to the parameter what it costs there;
# - show a task that no local network can solve and that one average over the image makes easy;
# - measure what gates do in a trained network: by depth, by class, and when you take them away.
#
# **Before you read on, guess.** The gates add 10 % to the parameters of ResNet-50. What do they add to its
# multiply-adds: 10 %, 1 % or 0.1 %? And to the time that an image takes?

# %% [markdown]
# ## Setup

# %% tags=["model"]
import copy
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers import diagram, inspect, metrics, naming, plot, train
from helpers.chapters import chapter
from helpers.claims import Claims
from helpers.data import Dataset, Provenance, Split, cifar10
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.modes import evaluating
from helpers.parity import copy_in_order, relative_difference
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants, counted
from helpers.weights import Weights

# %% [markdown]
# Blocks, stages and networks come from [chapter 2](02_resnet), and so does CIFAR-10 [[Krizhevsky, 2009](../pages/bibliography.md#krizhevsky2009cifar)] at
# 16x16 pixels.

# %% tags=["model"]
resnet = chapter("02_resnet")
at_16_pixels, with_training_error = resnet.at_16_pixels, resnet.with_training_error
BasicBlock, Bottleneck, stage = resnet.BasicBlock, resnet.Bottleneck, resnet.stage
ResNet, CifarResNet, RESNETS = resnet.ResNet, resnet.CifarResNet, resnet.RESNETS

# %%
started = time.perf_counter()
train.set_seed(0)
data = at_16_pixels(cifar10(train=pick(full=None, quick=640), test=pick(full=None, quick=300)))

# %% [markdown]
# ## The problem: a convolution does not know what is elsewhere
#
# What a convolution computes at a position depends on a window around it and on nothing else. Here is a task in which
# that hurts.
#
# A picture has bright and dark patches, and somewhere in it hangs a lamp. If the lamp is red, mark the bright pixels. If
# it is blue, mark the dark ones. Every picture comes as a pair of twins that differ in the lamp alone.


# %% tags=["model"]
def lamp_pictures(pairs, seed, side=16, lamp=6):
    """A Split: the pictures with a red lamp, then their twins with a blue one.

    images uint8 (2 pairs, 3, side, side); targets: "mark" is 1 where a pixel is to be marked,
    and "far" is 1 where no window of 7x7 pixels touches the lamp, both (2 pairs, side, side).
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(pairs, side + 4, side + 4, generator=generator)
    smooth = F.avg_pool2d(noise, 5, stride=1)
    bright = smooth > smooth.flatten(1).median(1).values[:, None, None]
    grey = 80 + 90 * bright + 20 * torch.randn(pairs, side, side, generator=generator)
    images = grey.clamp(0, 255).to(torch.uint8)[:, None].repeat(2, 3, 1, 1)
    far = torch.ones(2 * pairs, side, side)
    corners = torch.randint(side - lamp + 1, (pairs, 2), generator=generator).tolist()
    for red, (y, x) in enumerate(corners):
        for index, colour in ((red, (255, 40, 40)), (red + pairs, (40, 40, 255))):
            patch = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
            images[index, :, y : y + lamp, x : x + lamp] = patch
            far[index, max(0, y - 3) : y + lamp + 3, max(0, x - 3) : x + lamp + 3] = 0
    return Split(images, {"mark": torch.cat([bright, ~bright]).float(), "far": far})


# %% [markdown]
# The classifier gives one answer for each pixel. It has three 3x3 convolutions, so an answer depends on a window of
# 7x7 pixels. Before the last of them there is room for one more layer, the `unit`, and for now nothing is in it. Only
# pixels whose window does not touch the lamp count.


# %% tags=["model"]
class PixelClassifier(nn.Module):
    """Images (N, 3, H, W) to a logit per pixel (N, H, W); `unit` works on (N, channels, H, W)."""

    def __init__(self, unit, channels=16):
        super().__init__()
        layers = []
        for before in (3, channels):
            layers += [
                nn.Conv2d(before, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.unit = unit
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, images):
        return self.last(self.unit(self.features(images))).squeeze(1)


def lamp_loss(network, images, targets):
    """Binary cross-entropy, averaged over the pixels that are far from the lamp."""
    far = targets["far"].bool()
    return F.binary_cross_entropy_with_logits(network(images)[far], targets["mark"][far])


def lamp_accuracy(network, data):
    """The share of right answers among the far pixels of the test pictures."""
    far, mark = data.test.targets["far"].bool(), data.test.targets["mark"].bool()
    device = next(network.parameters()).device
    with evaluating(network), torch.inference_mode():
        logits = network(data.normalize(data.test.images.to(device))).cpu()
    return {"test_accuracy": float(((logits > 0) == mark)[far].float().mean())}


def train_on_lamps(unit, data, label, seed=0):
    """A trained PixelClassifier with this unit, and its accuracy on the test pictures."""
    network = PixelClassifier(unit)
    recipe = {"epochs": 5, "batch_size": 32, "optimizer": "adamw", "lr": 0.03, "seed": seed}
    task = {"loss": lamp_loss, "augment": train.no_augment, "evaluate": lamp_accuracy}
    history = train.fit(network, data, **recipe, **task, eval_every=5, label=label)
    return network, history.last("test_accuracy")


# %%
lamps = Dataset(
    lamp_pictures(256, seed=0),
    lamp_pictures(64, seed=1),
    ("leave", "mark"),
    Provenance("drawn pictures", True, "256 + 64 pairs of twins"),
)
train.set_seed(0)
answering = {}
answering["no unit"] = train_on_lamps(nn.Identity(), lamps, "no unit")

# %% tags=["nbval-check-output"]
share = answering["no unit"][1]
print(f"right, without a unit: {100 * share:.1f} %")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_answers(fig):
    """A pair of twins, what to mark, and what each network marks; grey where nobody asks."""
    test, half = lamps.test, len(lamps.test) // 2
    pair = int(test.targets["far"].sum((1, 2))[:half].argmax())
    axes = fig.subplots(2, 2 + len(answering), squeeze=False)
    for row, index in enumerate((pair, pair + half)):
        axes[row, 0].imshow(test.images[index].permute(1, 2, 0))
        panels = {"to mark": test.targets["mark"][index]}
        batch = lamps.normalize(test.images[index : index + 1])
        for name, (network, _) in answering.items():
            with torch.inference_mode():
                panels[name] = (network.cpu()(batch)[0] > 0).float()
        for ax, (name, marks) in zip(axes[row, 1:], panels.items(), strict=True):
            shown = torch.where(test.targets["far"][index].bool(), marks, torch.nan)
            ax.set_facecolor("#cccccc")
            ax.imshow(shown, cmap="cividis", vmin=0, vmax=1)
            if row == 0:
                ax.set_title(name, fontsize=9, loc="center")
    axes[0, 0].set_title("picture", fontsize=9, loc="center")
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)


plot.show(
    draw_answers,
    alt="A picture of bright and dark patches with a red lamp and its twin with a blue one, the pixels to mark, and those that the "
    "network marks: the same in both pictures.",
    caption="Twins. What is to be marked (yellow) is inverted from one to the other; what the network marks is not. Grey "
    "pixels are near the lamp and do not count.",
    width=4.2,
    height=3.0,
)

# %% [markdown]
# Exactly half, and no training will help. Far from the lamp, a window looks the same in both twins. So the network gives
# the same answer twice, and one of the two is wrong.
#
# A real network is deeper, and its last layers see the whole image. But its first layers do not. The paper's question:
# **can a layer be told, at little cost, what the image as a whole looks like?**

# %% [markdown]
# ## The idea: squeeze, excite, scale
#
# Take the output $U$ of a layer, $C$ maps of $H \times W$ numbers.
#
# **Squeeze.** Describe each channel by one number, its average over the map:
#
# $$ z_c = \frac{1}{H W} \sum_{i=1}^{H} \sum_{j=1}^{W} u_c(i, j). \tag{6.1} $$ <a id="eq-senet-squeeze"></a>
#
# **Excitation.** Compute a gate between 0 and 1 for each channel from all $C$ averages, with two small fully connected
# layers:
#
# $$ \mathbf{s} = \sigma(W_2\, \delta(W_1 \mathbf{z})). \tag{6.2} $$ <a id="eq-senet-excitation"></a>
#
# **Scale.** Multiply each map by its gate:
#
# $$ \tilde{\mathbf{x}}_c = s_c\, \mathbf{u}_c. \tag{6.3} $$ <a id="eq-senet-scale"></a>


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_column(ax, x, values, label, cell=0.32):
    """One box for each value, from top to bottom, around y = 0."""
    top = 0.5 * len(values) * cell
    for i, value in enumerate(values):
        box = (x, x + cell, top - (i + 1) * cell, top - i * cell)
        ax.imshow([[float(value)]], extent=box, vmin=0, vmax=1, cmap="Blues", zorder=2)
        ax.add_patch(plot.rectangle(box[0], box[2], cell, cell, "#666666"))
    ax.text(x + cell / 2, -1.45, label, ha="center", va="top", fontsize=9)


def draw_stack(ax, x, maps, label):
    """Maps one behind the other."""
    for i in reversed(range(len(maps))):
        box = (x + 0.22 * i, x + 0.22 * i + 1.1, -0.95 + 0.22 * i, 0.15 + 0.22 * i)
        ax.imshow(maps[i], extent=box, vmin=0, vmax=1, cmap="Blues", zorder=5 - i)
    ax.text(x + 0.95, -1.45, label, ha="center", va="top", fontsize=9)


def draw_step(ax, start, end, label):
    ax.annotate("", (end, 0), (start, 0), arrowprops=dict(arrowstyle="-|>", color="#444444"))
    ax.text((start + end) / 2, 0.14, label, ha="center", fontsize=9, color="C1")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    maps = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(4))
    gate = torch.tensor([0.95, 0.15, 0.6, 0.05, 0.8])
    draw_stack(ax, 0, maps, "$U$: C maps")
    draw_step(ax, 2.15, 3.3, "average")
    draw_column(ax, 3.4, maps.mean((1, 2)), "$z$: C")
    draw_step(ax, 3.85, 5.1, "$W_1$, ReLU")
    draw_column(ax, 5.2, [0.3, 0.8], "C / r")
    draw_step(ax, 5.65, 6.9, "$W_2$, sigmoid")
    draw_column(ax, 7.0, gate, "$s$: C gates")
    draw_step(ax, 7.45, 8.75, "times $U$")
    draw_stack(ax, 8.9, gate[:, None, None] * maps, r"$\tilde{X}$: C maps")
    ax.set(xlim=(-0.2, 11.2), ylim=(-1.9, 1.2), aspect="equal")
    ax.set_axis_off()


plot.show(
    draw,
    alt="Diagram from left to right: a stack of five feature maps, a column of their five averages, a column of two hidden units, a "
    "column of five gates, and the stack again, each map as dark or pale as its gate says.",
    caption="The unit for five channels. The way over the averages costs next to nothing, because nothing on it has a height and a "
    "width.",
    width=7.0,
    height=2.4,
)

# %% [markdown]
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $U$ | the maps that come in; $\mathbf{u}_c$ is one of them | `(N, C, H, W)` | `x` |
# | $\mathbf{z}$ | their averages | `(N, C, 1, 1)` | `z`, from `squeeze` |
# | $r$ | reduction ratio: the hidden layer has $C / r$ units; 16 in the paper | number | `r` |
# | $W_1$, $W_2$ | weights of the two fully connected layers | `(C / r, C)` and `(C, C / r)` | `fc1`, `fc2` |
# | $\delta$ | ReLU | | `relu` |
# | $\sigma$ | sigmoid, $1 / (1 + e^{-t})$ | | `sigmoid` |
# | $\mathbf{s}$ | the gates | `(N, C, 1, 1)` | `gate(x)` |
# | $\tilde{X}$ | the maps that go out | `(N, C, H, W)` | `forward(x)` |
#
# Why this form? The paper asks two things of the function from $\mathbf{z}$ to $\mathbf{s}$.
#
# - **It has to be flexible**: a gate may depend on several channels, and not only linearly. So two layers with a ReLU
#   between them. The narrow middle keeps them cheap.
# - **It must not make channels compete**: several may be wanted at once. So a sigmoid for each, not a softmax over all.
#
# ### Where the idea comes from
#
# - **Gates.** Highway networks [[Srivastava et al., 2015](../pages/bibliography.md#srivastava2015highway)] mix a layer and its input with a learned gate. Residual
#   attention networks [[Wang et al., 2017](../pages/bibliography.md#wang2017residual)] multiply with a mask for every position, from a branch with its own
#   convolutions. The gates here are for channels alone, and therefore small.
# - **The average over the map** has stood at the end of networks since Network in Network [[Lin et al., 2014a](../pages/bibliography.md#lin2014nin)].
# - **Search** [[Zoph and Le, 2017](../pages/bibliography.md#zoph2017search)] finds better ways to connect layers. A unit works inside whatever block it finds.

# %% [markdown]
# ## The smallest piece by hand
#
# Two channels of 4x4 numbers, and a hidden layer of one unit.

# %% tags=["nbval-check-output"]
everywhere = [[1, 0, 2, 1], [0, 1, 1, 2], [1, 3, 0, 1], [2, 0, 1, 0]]
two_spots = [[0, 0, 4, 0], [0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]]
u = torch.tensor([everywhere, two_spots]).float()
W1, W2 = torch.tensor([[2.0, -2.0]]), torch.tensor([[3.0], [-3.0]])

z = u.mean((1, 2))
hidden = (W1 @ z).clamp_min(0)
s = 1 / (1 + torch.exp(-W2 @ hidden))
print("averages z:", z.tolist())
print("hidden:", hidden.tolist())
print("gates s:", [round(gate, 3) for gate in s.tolist()])
scaled = s[:, None, None] * u
print("largest value of each map, before:", u.amax((1, 2)).tolist())
print("after:", [round(value, 3) for value in scaled.amax((1, 2)).tolist()])

# %% [markdown]
# The first channel is present all over the map and passes. The second is not, and is shut: this unit was given weights
# that compare the two averages. Nothing inside a map changes but its scale.

# %% [markdown]
# ## The unit
#
# The two fully connected layers are written as 1x1 convolutions. On a map of 1x1 that is the same thing, and you will
# see below what it is good for.


# %% tags=["model"]
class SqueezeExcitation(nn.Module):
    """Feature maps (N, channels, H, W), each multiplied by a gate between 0 and 1.

    r: the reduction ratio; the hidden layer has channels // r units (section 3 of the paper).
    """

    def __init__(self, channels, r=16):
        super().__init__()
        if channels < r:
            raise ValueError(
                f"r={r} leaves no unit of {channels} channels; choose a smaller r."
            )
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // r, 1)  # on 1x1: fully connected
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // r, channels, 1)
        self.sigmoid = nn.Sigmoid()
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # so that the gates start around one half

    def gate(self, x):
        """The gates s, each between 0 and 1: (N, channels, 1, 1)."""
        z = self.squeeze(x)
        return self.sigmoid(self.fc2(self.relu(self.fc1(z))))

    def forward(self, x):
        return x * self.gate(x)


# %% [markdown]
# A probe: our example, and torchvision's unit with the same weights.

# %% tags=["nbval-check-output"]
import torchvision

unit = SqueezeExcitation(2, r=2)
unit.fc1.weight.data, unit.fc2.weight.data = W1[:, :, None, None], W2[:, :, None, None]
print("as by hand:", torch.allclose(unit(u[None])[0], scaled))

ours, theirs = SqueezeExcitation(256, r=16), torchvision.ops.SqueezeExcitation(256, 16)
features = torch.randn(2, 256, 8, 8, generator=torch.Generator().manual_seed(0))
difference = relative_difference(ours, copy_in_order(ours, theirs), features)
print(f"parameters: {inspect.count_parameters(ours):,}")
print("as many in torchvision:", inspect.count_parameters(theirs) == 8464)
print("as torchvision, relative difference below 1e-12:", difference < 1e-12)

# %% [markdown]
# ### The unit without its squeeze
#
# How much of the effect is the view of the whole image? The paper leaves the average out, and nothing else (its section
# 7.1, *NoSqueeze*). The same two layers, with the same parameters, then run at every position and see only that position.
# Because ours are 1x1 convolutions, that is one line.


# %% tags=["model"]
class NoSqueeze(SqueezeExcitation):
    """The same layers without the average: a gate for every channel and position, (N, C, H, W)."""

    def __init__(self, channels, r=16):
        super().__init__(channels, r)
        self.squeeze = nn.Identity()


# %% tags=["nbval-check-output"]
for kind in (SqueezeExcitation, NoSqueeze):
    unit = kind(256)
    print(
        f"{kind.__name__:18s} gates {tuple(unit.gate(features).shape)}, "
        f"{inspect.count_parameters(unit):,} parameters, "
        f"{inspect.count_macs(unit, (256, 56, 56)):,} multiply-adds on 56x56"
    )

# %% [markdown]
# ### The lamp again
#
# Now put a unit into the empty place of the classifier, once with and once without the squeeze. The windows of the
# convolutions stay 7x7.

# %%
for name, unit in {"no squeeze": NoSqueeze(16, r=2), "SE": SqueezeExcitation(16, r=2)}.items():
    train.set_seed(0)
    answering[name] = train_on_lamps(unit, lamps, name)
Table(
    [
        {
            "unit": name,
            "right answers in %": 100 * share,
            "parameters": inspect.count_parameters(network),
            "multiply-adds": inspect.count_macs(network, (3, 16, 16)),
        }
        for name, (network, share) in answering.items()
    ],
    decimals=1,
)

# %% tags=["nbval-check-output"]
for name in ("no unit", "no squeeze"):
    print(f"{name}: half of the answers are right:", abs(answering[name][1] - 0.5) < 0.001)
print("SE: more than 95 % are right:", answering["SE"][1] > 0.95)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.show(
    draw_answers,
    alt="The twins again with the answers of three networks: without a unit and without squeeze both pictures get the same marks; "
    "with the unit the marks are inverted from one twin to the other, as they should be.",
    caption="With one average over the picture the classifier answers by the lamp's colour, wherever the lamp hangs.",
    width=7.0,
    height=3.0,
)


# %% [markdown]
# What has the unit learned? Beside every answer to such a question belongs a control: the same network before its
# training, with batch normalisations that have seen the images once.


# %% tags=["model"]
def settled(network, images):
    """An untrained network in evaluation mode, its running averages those of normalised images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain average
    with torch.inference_mode():
        network.train()(images)
    return network.eval()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
train.set_seed(0)
untrained = settled(
    PixelClassifier(SqueezeExcitation(16, r=2)), lamps.normalize(lamps.train.images)
)


def draw(fig):
    network, half = answering["SE"][0], len(lamps.test) // 2
    with torch.inference_mode():
        maps = network.features(lamps.normalize(lamps.test.images))
        found = network.unit.gate(maps).flatten(1)
        at_first = untrained.unit.gate(untrained.features(lamps.normalize(lamps.test.images)))
    ax = fig.subplots()
    for offset, colour, name, rows in (
        (-0.2, "C1", "red lamp", slice(None, half)),
        (0.2, "C0", "blue lamp", slice(half, None)),
    ):
        places = [channel + offset for channel in range(found.shape[1])]
        ax.bar(places, found[rows].mean(0), 0.38, color=colour, label=name)
        ax.plot(places, at_first.flatten(1)[rows].mean(0), "k_", markersize=7)
    ax.set(xlabel="channel", title="mean gate", ylim=(0, 1.05), xticks=range(16))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


plot.show(
    draw,
    alt="Bar chart of the mean gate of each of 16 channels, for pictures with a red and with a blue lamp, with a line for the gate "
    "before training. Most channels are open for one colour and nearly shut for the other; before training all are around one half.",
    caption="What the unit has learned: channels mostly for one colour of the lamp. Black lines: the same network before training.",
    height=2.2,
)

# %% [markdown]
# The unit opens one set of channels under a red lamp and another under a blue one; hardly any channel is open under
# both. So the last convolution can read the two sets with opposite signs. Without the squeeze, the same parameters
# achieve nothing.
#
# The task was made for this. What do the gates do in a network for photographs?

# %% [markdown]
# ## The block, then the network
#
# In a residual block the unit works on the branch, before the addition: $\mathbf{y} = \mathrm{SE}(F(\mathbf{x})) +
# \mathbf{x}$. In an Inception network [[Szegedy et al., 2015](../pages/bibliography.md#szegedy2015going)] it stands behind each module, in VGG behind the
# ReLU of each convolution. The paper tries three other places in a residual block (section 6.5):


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_design(ax, title, branch, around=(), after=("ReLU",)):
    """Boxes on the branch (left), on the shortcut (right) and behind the addition."""
    boxes = [
        (0, 0.65 if len(branch) == 1 else 0.78 - 0.25 * i, n) for i, n in enumerate(branch)
    ]
    boxes += [(0.9, 0.65, name) for name in around]
    boxes += [(0, (0.1 + 0.05 * len(after)) - 0.17 * i, name) for i, name in enumerate(after)]
    ax.text(0, 1.0, "x", ha="center", va="center", style="italic")
    ax.plot([0.05, 0.9, 0.9, 0.07], [0.95, 0.95, 0.33, 0.33], color=diagram.INK, linewidth=1.3)
    for start, end in (
        ((0.3, 0.33), (0.07, 0.33)),
        ((0, 0.96), (0, 0.37)),
        ((0, 0.29), (0, -0.14)),
    ):
        diagram.arrow(ax, start, end)
    for x, y, name in boxes:
        diagram.box(ax, x, y, name, "added" if name == "SE" else "layer")
    diagram.plus(ax, 0, 0.33)
    ax.text(0, -0.19, "y", ha="center", va="center", style="italic")
    ax.set(xlim=(-0.6, 1.3), ylim=(-0.25, 1.06))
    ax.set_title(title, loc="center", fontsize=10)
    ax.set_axis_off()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    axes = fig.subplots(1, 4)
    draw_design(axes[0], "standard", ("layers F", "SE"))
    draw_design(axes[1], "PRE", ("SE", "layers F"))
    draw_design(axes[2], "POST", ("layers F",), after=("ReLU", "SE"))
    draw_design(axes[3], "Identity", ("layers F",), around=("SE",))


plot.show(
    draw,
    alt="Four diagrams of a residual block. Standard: the unit stands behind the layers of the branch. PRE: before them. POST: behind "
    "the addition and its ReLU. Identity: on the shortcut.",
    caption="Where the unit can stand. The paper's design is the first.",
    height=3.1,
)

# %% [markdown]
# | design | top-1 error in % | top-5 error in % |
# |:--|--:|--:|
# | standard | 22.28 | 6.03 |
# | PRE | 22.23 | 6.00 |
# | POST | 22.78 | 6.35 |
# | Identity | 22.20 | 6.15 |
#
# These are the paper's numbers (Table 14, SE-ResNet-50 on ImageNet). Three designs differ by less than a tenth of a
# point in top-1 error, and only POST is half a point worse. It alone stands behind the addition, so that one gate turns
# down the branch and the shortcut together. Exercise 3 builds all four.
#
# The standard design in code: whatever a block's branch computes, pass it through a unit. We mix that into both blocks
# of chapter 2.


# %% tags=["model"]
class Recalibrated:
    """Mixed into a block of chapter 2: its branch F(x) passes a unit before the addition.

    unit: what is built as unit(channels, r); r and settings as in SqueezeExcitation and the
    block.
    """

    def __init__(self, before, channels, stride=1, r=16, unit=SqueezeExcitation, **settings):
        super().__init__(before, channels, stride, **settings)
        self.se = unit(channels * self.expansion, r)

    def branch(self, x):
        return self.se(super().branch(x))


class SEBasicBlock(Recalibrated, BasicBlock):
    """A basic block with a gate on each channel of F(x); shapes as without."""


class SEBottleneck(Recalibrated, Bottleneck):
    """A bottleneck with a gate on each channel of F(x); shapes as without."""


# %% [markdown]
# A probe. The shape stays; the unit sits on the wide end of a bottleneck; and when all gates are shut, what is left is
# the shortcut and the ReLU.

# %% tags=["nbval-check-output"]
block = SEBottleneck(256, 128, stride=2)
print("shape:", tuple(block(torch.zeros(1, 256, 56, 56)).shape))
print(
    "weights of the unit:", tuple(block.se.fc1.weight.shape), tuple(block.se.fc2.weight.shape)
)

block = SEBasicBlock(64, 64)
nn.init.constant_(block.se.fc2.bias, -1000)  # sigmoid(-1000) is 0
maps = torch.randn(2, 64, 8, 8)
print("all gates shut, the block is a ReLU:", torch.equal(block(maps), maps.relu()))

# %% [markdown]
# The networks. For ImageNet, chapter 2's `ResNet` takes whatever block it is given. For CIFAR-10, the stages are
# replaced, and take over the first weights of the old ones, so that a comparison starts from the same convolutions.


# %% tags=["model"]
def se_resnet(depth, r=16, **settings):
    """SE-ResNet-18 to 152 for ImageNet: the networks of chapter 2 with a unit in every block."""
    block, layers = RESNETS[depth]
    block = {BasicBlock: SEBasicBlock, Bottleneck: SEBottleneck}[block]
    return ResNet(block, layers, r=r, **settings)


class SECifarResNet(CifarResNet):
    """The CIFAR networks of chapter 2 with a unit in every block: (N, 3, H, W) to (N, classes).

    After the same seed it starts with the same convolutions as CifarResNet.
    """

    def __init__(self, depth, width=16, r=16, unit=SqueezeExcitation, option="A", classes=10):
        super().__init__(depth, width, option, classes=classes)
        first_weights = self.state_dict()
        n, settings = len(self.layer1), {"r": r, "unit": unit, "option": option}
        self.layer1 = stage(SEBasicBlock, width, width, n, 1, **settings)
        self.layer2 = stage(SEBasicBlock, width, 2 * width, n, 2, **settings)
        self.layer3 = stage(SEBasicBlock, 2 * width, 4 * width, n, 2, **settings)
        self.load_state_dict(first_weights, strict=False)  # all but the units


def without_units(part):
    """The same network or stage, in place, with nothing where its units were."""
    for module in part.modules():
        if isinstance(module, Recalibrated):
            module.se = nn.Identity()
    return part


# %% [markdown]
# The probe: shapes, gates at the start of a training, and what is left when the units are taken out.

# %% tags=["nbval-check-output"]
train.set_seed(0)
plain = CifarResNet(20)
train.set_seed(0)
gated = SECifarResNet(20, r=4)
batch = data.normalize(data.train.images[:128])
with torch.no_grad():
    maps = BasicBlock.branch(gated.layer1[0], gated.relu(gated.bn1(gated.conv1(batch))))
    first = gated.layer1[0].se.gate(maps)
print("gates of the first block:", tuple(first.shape))
print("their mean is between 0.4 and 0.6:", 0.4 < float(first.mean()) < 0.6)
gated(batch)  # one pass to bring the batch statistics into the normalisations
plain(batch)
print("answers differ:", not torch.allclose(gated.eval()(batch), plain.eval()(batch), atol=0.1))
stripped = without_units(gated)
stripped.load_state_dict(plain.state_dict())
print("without its units it is the ResNet-20:", torch.equal(stripped(batch), plain(batch)))

# %% [markdown]
# At the start, then, each gate is around one half, and every branch counts half as much as without.

# %% [markdown]
# ## Checks: are these the paper's networks?
#
# ### Parameters
#
# A unit has two matrices of $C \cdot C / r$ weights. So a network with $N_s$ blocks of $C_s$ channels in stage $s$ gets
#
# $$ \frac{2}{r} \sum_{s} N_s\, C_s^2 \tag{6.4} $$ <a id="eq-senet-cost"></a>
#
# weights more, and $C + C / r$ biases in each block, which the formula leaves out.


# %% tags=["model"]
def weights_of_units(widths, r=16):
    """Weights of the units on maps with these numbers of channels (equation 5 of the paper)."""
    return sum(2 * width * (width // r) for width in widths)


def biases_of_units(widths, r=16):
    """The biases of the same units."""
    return sum(width + width // r for width in widths)


# %% tags=["nbval-check-output"]
RESNET50_WIDTHS = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3

with torch.device("meta"):
    plain50, se50 = ResNet(*RESNETS[50]), se_resnet(50)
added = inspect.count_parameters(se50) - inspect.count_parameters(plain50)
print(f"ResNet-50 has {inspect.count_parameters(plain50):,} parameters")
print(f"SE-ResNet-50 has {inspect.count_parameters(se50):,}, that is {added:,} more")
print(f"by the formula: {weights_of_units(RESNET50_WIDTHS):,} weights")
print(f"and biases: {biases_of_units(RESNET50_WIDTHS):,}")
total = weights_of_units(RESNET50_WIDTHS) + biases_of_units(RESNET50_WIDTHS)
print("together that is the difference:", total == added)
macs50 = {
    name: inspect.count_macs(network, (3, 224, 224))
    for name, network in (("ResNet-50", plain50), ("SE", se50))
}
print(f"multiply-adds: {100 * (macs50['SE'] / macs50['ResNet-50'] - 1):.3f} % more")

# %% [markdown]
# About 10 % more parameters, as the paper says, and less than 0.1 % more multiply-adds: there is the first answer to the
# question at the top. A weight of a convolution is used at every position of the map, a weight of a unit once per image.
#
# Beside the paper's figures, the networks that its units make of ResNets:

# %% tags=["model"]
ROUNDED_UP = "the paper's parameters agree when they are read as rounded up."
UNCOUNTED = (
    "the paper's 3.87 G include the averages and the products of the gates, which have no weights "
    "and are not in our count."
)


def imagenet_variant(name, *figures, depth=50, **settings):
    """An SE-ResNet for ImageNet beside the paper's parameters, multiply-adds and our remark."""
    return Variant(name, partial(se_resnet, depth, **settings), (3, 224, 224), *figures)


NETWORKS = Variants(
    "06_senet",
    "Images of 224x224 pixels, stride as in ResNet v1; r = 16 unless the name says otherwise.",
    [
        imagenet_variant("SE-ResNet-50, r = 2", "45.7 M", r=2),
        imagenet_variant("SE-ResNet-50, r = 4", "35.7 M", None, ROUNDED_UP, r=4),
        imagenet_variant("SE-ResNet-50, r = 8", "30.7 M", None, ROUNDED_UP, r=8),
        imagenet_variant("SE-ResNet-50, r = 16", "28.1 M", "3.87 G", UNCOUNTED),
        imagenet_variant("SE-ResNet-50, r = 32", "26.9 M", None, ROUNDED_UP, r=32),
        *[imagenet_variant(f"SE-ResNet-{depth}", depth=depth) for depth in (18, 34, 101, 152)],
        imagenet_variant("50 layers, no squeeze", unit=NoSqueeze),
    ],
    printed=("paper, Table 10", "paper"),
)

# %% tags=["nbval-check-output"]
# r: top-1 error in % of SE-ResNet-50 (Table 10)
PAPER_R = {2: 22.29, 4: 22.25, 8: 22.26, 16: 22.28, 32: 22.72}
errors = {f"SE-ResNet-50, r = {r}": error for r, error in PAPER_R.items()}
Table(
    [
        row | {"paper: top-1 error in %": errors.get(row["network"])}
        for row in counted(NETWORKS)
    ],
    decimals=2,
)

# %% [markdown]
# The counts agree with the paper's if all are rounded up. (Its ablations are said to have no biases; but without them
# $r = 8$ would be 30.59 million, which does not fit.) ResNet-50 itself has 23.30 %. The error is nearly the same for $r$
# from 2 to 16 and rises at 32, while the parameters fall with each step. So 16 is a choice for economy.
#
# ### Which stages?
#
# Most of the new parameters are in the last stage, where there are 2048 channels. The paper puts units into one stage
# at a time (Table 13), and it reports that leaving the last stage out costs less than 0.1 points of top-5 error. Its
# "stage 2" is our `layer1`.

# %% tags=["nbval-check-output"]
PAPER_STAGES = {
    "none": ((), 25.6, 23.30),
    "stage 2": ((1,), 25.6, 23.03),
    "stage 3": ((2,), 25.7, 23.04),
    "stage 4": ((3,), 26.4, 22.68),
    "all but the last": ((1, 2, 3), None, None),
    "all": ((1, 2, 3, 4), 28.1, 22.28),
}
rows = []
for name, (kept, millions, error) in PAPER_STAGES.items():
    with torch.device("meta"):
        network = se_resnet(50)
    for number in {1, 2, 3, 4} - set(kept):
        without_units(getattr(network, f"layer{number}"))
    count = inspect.count_parameters(network)
    rows.append(
        {
            "units in": name,
            "parameters": count,
            "more, %": 100 * (count / inspect.count_parameters(plain50) - 1),
            "paper: millions": millions,
            "paper: top-1 error in %": error,
        }
    )
Table(rows, decimals={"more, %": 1, "paper: millions": 1, "paper: top-1 error in %": 2})

# %% [markdown]
# Stage 4 alone brings more than half of the gain for less than a third of the new parameters. Units in all stages but
# the last are an increase of some 4 % instead of 10 %.
#
# ### Other places, other networks
#
# Directly behind the 3x3 convolution of a bottleneck there is a quarter of the channels, and a unit there has a sixteenth
# of the weights (the paper's SE_3x3, Table 15: 22.48 % top-1 error, 25.8 million parameters). And in MobileNet
# ([chapter 5](05_mobilenet)) a unit behind each pointwise convolution lowers the top-1 error from 28.4 to 25.3 %, at 4.7
# million parameters instead of 4.2 (Table 3).

# %% tags=["nbval-check-output"]
narrow = [width // 4 for width in RESNET50_WIDTHS]
inside = weights_of_units(narrow) + biases_of_units(narrow)
print(f"SE_3x3 in ResNet-50: {inspect.count_parameters(plain50) + inside:,} parameters")

MOBILENET_WIDTHS = [64, 128, 128, 256, 256] + [512] * 6 + [1024] * 2  # pointwise convolutions
added = weights_of_units(MOBILENET_WIDTHS) + biases_of_units(MOBILENET_WIDTHS)
print(f"SE-MobileNet: {4_231_976 + added:,} parameters")

# %% [markdown]
# ### Multiply-adds, and seconds
#
# The paper says that SE-ResNet-50 needs 3.87 billion multiply-adds instead of 3.86, an increase of 0.26 %. Our count
# above gave a quarter of that, for the layers that have weights. A unit also reads every value of the map to average it,
# and touches it once more to scale it. Count one operation for each of those:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    values = inspect.watch(
        se50, SqueezeExcitation, torch.empty(1, 3, 224, 224), lambda given, made: given.numel()
    )
layers, touched = macs50["SE"] - macs50["ResNet-50"], 2 * sum(values.values())
print(f"layers with weights: {layers / 1e6:.1f} million more")
print(f"averages and products: {touched / 1e6:.1f} million more")
for name, count in {"ResNet-50": macs50["ResNet-50"], "SE": macs50["SE"] + touched}.items():
    print(f"{name}, all counted: {count / 1e9:.2f} billion")
print(f"that is {100 * (layers + touched) / macs50['ResNet-50']:.2f} % more")
print(f"3.87 over 3.86: {100 * (3.87 / 3.86 - 1):.2f} % more")

# %% [markdown]
# With them we get the paper's 3.87 billion. Its 0.26 % is what its two rounded figures give; the exact increase is 0.35 %.
# And most of a unit's operations are not in its layers: it goes through the whole map twice. How long does that take?
# One image of 224x224 pixels on this machine, and the small network of this chapter on a batch of 64:

# %%
side, seconds = pick(full=(224, 3.0), quick=(64, 0.1))
pairs = {
    f"50 layers, {side}x{side}": (ResNet(*RESNETS[50]), se_resnet(50), (3, side, side), 1),
    "20 layers, 16x16": (CifarResNet(20), SECifarResNet(20, r=4), (3, 16, 16), 64),
}
rows = []
for name, (without, gated, shape, size) in pairs.items():
    macs = [inspect.count_macs(network, shape) for network in (without, gated)]
    took = [
        1000 * inspect.time_per_image(network, shape, size, seconds)
        for network in (without, gated)
    ]
    rows.append(
        {
            "network": name,
            "more multiply-adds, %": 100 * (macs[1] / macs[0] - 1),
            "ms per image": took[0],
            "with units": took[1],
            "more time, %": 100 * (took[1] / took[0] - 1),
        }
    )
Table(rows, decimals={"more multiply-adds, %": 2, "more time, %": 0})

# %% [markdown]
# That is the second answer: hardly any multiply-adds, a tenth of the time for the large network, and more for the small one. On a busy machine it drowns. The paper measured 209 ms instead of 190 for a training step on 8 GPUs, 10 % more, and 167 ms instead
# of 164 for an image on a CPU (section 4). [Chapter 7](07_cbam) times small networks again.
#
# The average saves work, too: without it the same weights run at every position, and need 4.27 billion multiply-adds
# instead of 3.86 (the table of networks above).

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper, ImageNet | here | why, and what it costs |
# |:--|:--|:--|:--|
# | task | 1000 classes, 224x224, 1.28 M images | CIFAR-10 at 16x16, 40,000 or 50,000 images | minutes on a laptop; gains below one point cannot be seen |
# | network | SE-ResNet-50 to 152, SE-ResNeXt, SE-Inception, SENet-154; on CIFAR ResNet-110 and 164, WRN-16-8, Shake-Shake | counts of those ResNets; training of SE-ResNet-20 | the paper's CIFAR networks are five to eight times as deep, or wider |
# | optimiser | SGD, momentum 0.9, batch 1024, rate 0.6, a tenth every 30 of 100 epochs | Nesterov momentum, batch 128, one cycle; in the studies 2 epochs with peak 0.1, or 30 with 0.3; the network on this page by the course's recipe for few epochs | the short ones are far from converged |
# | reduction ratio | 16 | 2, 4 and 8 | 16 leaves 16 channels a single hidden unit, and 8 channels none |
# | fully connected layers | with bias in the released networks, without in the ablations (section 6) | with bias | 16,048 parameters in SE-ResNet-50 |
# | loss | with label smoothing in the ablations | without | |
# | first pooling | 3x3 without padding, rounded up, in the released networks | 3x3 with padding 1, as in chapter 2 | same shapes, values shifted by a pixel |
# | images | random crop and flip; mean subtracted | shift by 2 and flip; mean and standard deviation | |
#
# The library timm has the released network as `legacy_seresnet50`. With the same weights and first pooling, it and ours
# give the same answers to 12 digits; a test checks that.

# %% [markdown]
# ## The data
#
# CIFAR-10 at 16x16 pixels: the first test image of each class.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fixed = plot.fixed_images(data)
plot.images(
    data.test.images[fixed],
    titles=list(data.classes),
    alt="Ten small test images, one of each class.",
    caption=f"Test images at 16x16 pixels. Data: {data.provenance}.",
    inches=0.72,
)

# %% tags=["nbval-check-output"]
batch = data.normalize(data.train.images[:1000])
print("images:", tuple(batch.shape[1:]))
print("mean of each channel within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
spread = batch.std((0, 2, 3))
print("standard deviation within 0.1 of 1:", bool(((spread - 1).abs() < 0.1).all()))

# %% [markdown]
# ## Training
#
# First one batch by heart.

# %% tags=["nbval-check-output"]
train.set_seed(0)
last = train.overfit(SECifarResNet(20, width=8, r=4), data, lr=0.1)
print("64 images learned by heart, loss below 0.1:", last < 0.1)

# %% [markdown]
# Then the network whose gates we look at afterwards: SE-ResNet-20 with the paper's 16, 32 and 64 channels and a
# reduction ratio of 4, trained with the course's recipe for few epochs.

# %%
train.set_seed(0)
model = SECifarResNet(20, r=4)
length, shift = pick(full=3, quick=1), train.Augment(shift=2)
history = train.fit(
    model, data, train.SHORT, epochs=length, augment=shift, label="SE-ResNet-20"
)
model = model.cpu()
logits = train.predict(model, data, data.test.images)
Table(
    [
        {
            "network": "SE-ResNet-20, r = 4",
            "test accuracy in %": 100 * metrics.accuracy(logits, data.test.targets),
            "parameters": inspect.count_parameters(model),
            "million multiply-adds": inspect.count_macs(model, (3, 16, 16)) / 1e6,
            "seconds of training": history.last("seconds"),
            "images per second": history.images_per_second,
            "data": history.data,
        }
    ],
    decimals=1,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.histories(
    {"SE-ResNet-20": history},
    alt="Training loss and test accuracy of SE-ResNet-20 after each epoch of training.",
    caption="SE-ResNet-20 learns.",
)

# %% [markdown]
# One more network is trained once and kept: a small one that names what is on a photograph. The gallery and
# [chapter 15](15_grad_cam) look into it, beside those of the other chapters.


# %% tags=["model"]
def named_network():
    """SE-ResNet-8 for the pictures and classes of `helpers.naming`."""
    return SECifarResNet(8, r=4, classes=len(naming.CLASSES))


TRAINED = Weights(
    "06_senet",
    naming.NAMED,
    build=named_network,
    train=naming.learn,
    data=naming.small_pictures,
    title="SENet",
    layer="layer3",
    score=naming.logit_of,
    size=64,
)

# %% [markdown]
# ## Results: the paper beside ours
#
# The paper's errors in %: top-1 of a single crop on ImageNet, with both networks trained by the authors (Table 2), and on
# CIFAR-10 and CIFAR-100 (Tables 4 and 5):
#
# | network | images | without | with units |
# |:--|:--|--:|--:|
# | ResNet-50 | ImageNet | 24.80 | 23.29 |
# | ResNet-101 | ImageNet | 23.17 | 22.38 |
# | ResNet-110 | CIFAR-10 | 6.37 | 5.21 |
# | ResNet-164 | CIFAR-10 | 5.46 | 4.39 |
# | ResNet-110 | CIFAR-100 | 26.88 | 23.85 |
# | ResNet-164 | CIFAR-100 | 24.33 | 21.31 |
#
# The largest gains are on CIFAR-100: three points. On ImageNet, 50 layers with units come close to 101 without, at half the
# multiply-adds. SENet-154, with 115 million parameters, reached 18.68 % top-1 error (Table 8), and a small ensemble of
# SENets won the ILSVRC 2017 classification with 2.251 % top-5 error on the test set. The ablations, from 23.30 to 22.28 %,
# are trained longer, with label smoothing and without biases (section 6); for a fixed 270 epochs a footnote gives 23.21
# and 22.20 %. The unit without a squeeze has 22.93 % (Table 16): it brings 0.37 of the 1.02 points.
#
# Ours is a study of ResNet-20 with half the channels (8, 16 and 32) on CIFAR-10 at 16x16 pixels: without units, with
# units at two reduction ratios, and with the unit that does not squeeze, at equal parameters. Every arm with the same
# seed starts from the same convolutions and sees the same batches.


# %% tags=["model"]
ARMS = {
    "no gates": {"unit": None},
    "SE, r = 2": {"unit": "SE", "r": 2},
    "SE, r = 8": {"unit": "SE", "r": 8},
    "no squeeze, r = 2": {"unit": "no squeeze", "r": 2},
}
UNITS = {"SE": SqueezeExcitation, "no squeeze": NoSqueeze}
MEASURED = ("train_loss", "train_error", "test_loss", "test_accuracy", "seconds")


def build(unit, r=16, width=8):
    """The ResNet-20 of an arm."""
    if unit is None:
        return CifarResNet(20, width)
    return SECifarResNet(20, width, r, UNITS[unit])


def train_arm(data, *, seed, epochs=2, **config):
    """One training of the study."""
    train.set_seed(seed)
    model = build(**config)
    history = train.fit(
        model,
        data,
        epochs=epochs,
        weight_decay=1e-4,
        augment=train.Augment(shift=2),
        evaluate=with_training_error,
        eval_every=epochs,
        seed=seed,
    )
    return {name: history.last(name) for name in MEASURED}


def most_of_cifar10():
    """40,000 training images and all test images of CIFAR-10, at 16x16 pixels."""
    return at_16_pixels(cifar10(train=40_000))


STUDY = Study("06_senet", run=train_arm, arms=ARMS, data=most_of_cifar10, seeds=(0, 1, 2, 3))

# %% tags=["nbval-check-output"]
built = {arm: build(**config) for arm, config in ARMS.items()}
cost = {arm: inspect.count_parameters(network) for arm, network in built.items()}
macs = {arm: inspect.count_macs(network, (3, 16, 16)) for arm, network in built.items()}
for arm in ARMS:
    print(f"{arm:18s} {cost[arm]:,} parameters, {macs[arm]:,} multiply-adds")
print(
    "with and without squeeze, equal parameters:",
    cost["SE, r = 2"] == cost["no squeeze, r = 2"],
)

# %%
Table(
    {
        "network": arm,
        "test accuracy in %": STUDY.text(arm, "test_accuracy", 100),
        "training error in %": STUDY.text(arm, "train_error", 100),
        "training loss": STUDY.text(arm, "train_loss", decimals=3),
        "parameters": cost[arm],
        "multiply-adds": macs[arm],
    }
    for arm in ARMS
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    STUDY,
    list(ARMS),
    "test_accuracy",
    "test accuracy in %",
    scale=100,
    alt="Dot plot of the test accuracy of the four arms of the study, a dot for each seed and a mean each.",
    caption="ResNet-20 without and with units, two epochs of training.",
)

# %% [markdown]
# ## The paper's claim in miniature
#
# Differences of test accuracy, seed by seed, signed so that the paper predicts a positive number. The verdict comes from the 95 % interval of the mean difference: *seen* above zero, *reversed* below, *too small to matter* if it
# lies within half a point of zero, and else *not clear*. Half a point is the smallest effect that would matter here; the
# paper's are one to three. Claims named before the runs are primary and carry Holm's correction for their number; all
# others are marked exploratory.

# %% tags=["model"]
CLAIMS = Claims(
    STUDY,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    also={
        "units help (r = 2)": ("no gates", "SE, r = 2"),
        "units help (r = 8)": ("no gates", "SE, r = 8"),
        "units help even without a squeeze (r = 2)": ("no gates", "no squeeze, r = 2"),
        "the squeeze is what helps (r = 2)": ("no squeeze, r = 2", "SE, r = 2"),
        "more capacity helps (r = 2 over r = 8)": ("SE, r = 8", "SE, r = 2"),
    },
    about="ResNet-20 with 8 to 32 channels, with and without units, for two epochs. The unit without a squeeze has the "
    "same parameters as the one with it.",
)

# %%
CLAIMS.table()

# %% [markdown]
# **Units.** Not clear, and if anything the wrong way round: on average the arms with units are about a point or more
# *less* accurate. Their training loss in the table above is higher, too. So the larger networks do not overfit; in some
# 600 steps they have not come as far.
#
# **The squeeze.** Gates without a squeeze are worse than no gates. Gates with it are half a point better than those, on
# average, and that is not clear.
#
# **Capacity.** Not clear either, as in the paper, which found hardly any difference between 2 and 16.
#
# This cannot contradict the paper: its gain is a point after a hundred epochs, and our intervals are wider than that after
# two. The paper's reduction ratios and ours beside each other:


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subplots(1, 2)
    for variant, (r, error) in zip(NETWORKS, PAPER_R.items(), strict=False):
        millions = variant.counts["parameters"] / 1e6
        left.plot(millions, error, "o", color="C0")
        left.annotate(
            f"r = {r}", (millions, error), (6, 5), textcoords="offset points", fontsize=9
        )
    left.plot(inspect.count_parameters(plain50) / 1e6, 23.30, "o", color="C1")
    left.annotate("no units", (25.56, 23.30), (8, -3), textcoords="offset points", fontsize=9)
    left.set(
        title="paper: top-1 error in %",
        xlabel="million parameters",
        ylim=(22, 23.6),
        xlim=(24.5, 49.5),
    )
    shown = {  # arm -> label, where it stands beside the dot, how far the dot is moved aside
        "no gates": ("no units", (-22, 26), 0.0),
        "SE, r = 8": ("r = 8", (7, 4), 0.0),
        "SE, r = 2": ("r = 2", (-36, 4), -0.1),
        "no squeeze, r = 2": ("no squeeze", (7, 4), 0.1),
    }
    for arm, (name, offset, aside) in shown.items():
        mean, sd = STUDY.mean(arm, "test_accuracy")
        colour = "C0" if arm.startswith("SE") else "C1"
        x, y = cost[arm] / 1e3 + aside, 100 - 100 * mean
        right.errorbar(x, y, 100 * sd, fmt="o", capsize=3, color=colour)
        right.annotate(name, (x, y), offset, textcoords="offset points", fontsize=9)
    right.set(title="ours: test error in %", xlabel="thousand parameters", xlim=(67, 74.5))


plot.show(
    draw,
    alt="Two scatter plots of error against parameters. Left, the paper's SE-ResNet-50: the error is lower with units at every "
    "reduction ratio, and flat from 2 to 16. Right, ours: the four arms with their spread over seeds.",
    caption="Left: the paper's Table 10 over our exact counts. Right: our study, mean and standard deviation over "
    f"{len(STUDY.seeds)} seeds. Data, right: {STUDY.provenance()}.",
)

# %% [markdown]
# ## A fair start for the gates
#
# Gates that start at one half start every branch at half its strength, and two epochs leave little time to make up for
# it. So a second study starts them near one and trains for thirty epochs. The bias of the second layer decides where
# gates start, on average: $\sigma(2) = 0.88$. A larger bias would leave the branch more of its strength, and the gates
# less to learn with: the slope of the sigmoid, $s (1 - s)$, is 0.25 at one half, 0.10 at 0.88 and 0.05 at 0.95.


# %% tags=["model"]
STARTS_ARMS = {
    "no gates": {"unit": None},
    "SE from 0.5": {"unit": "SE", "r": 2, "bias": 0.0},
    "SE from 0.88": {"unit": "SE", "r": 2, "bias": 2.0},
    "no squeeze from 0.88": {"unit": "no squeeze", "r": 2, "bias": 2.0},
}


def start_gates(network, bias):
    """Let all gates of a network start around sigmoid(bias), in place; returns the network."""
    for module in network.modules():
        if isinstance(module, SqueezeExcitation):
            nn.init.constant_(module.fc2.bias, bias)
    return network


def train_start(data, *, seed, bias=0.0, epochs=30, **config):
    """One training of the study of starts."""
    train.set_seed(seed)
    model = start_gates(build(**config), bias)
    history = train.fit(
        model,
        data,
        epochs=epochs,
        lr=0.3,
        weight_decay=5e-4,
        augment=train.Augment(shift=2),
        evaluate=with_training_error,
        eval_every=epochs,
        seed=seed,
    )
    return {name: history.last(name) for name in MEASURED}


def all_of_cifar10():
    """All images of CIFAR-10, at 16x16 pixels."""
    return at_16_pixels(cifar10())


STARTS = Study(
    "06_senet", train_start, STARTS_ARMS, all_of_cifar10, seeds=(0, 1, 2, 3, 4), name="starts"
)

# %% [markdown]
# Two claims are the paper's, and were named before the first run: with gates that start near one, units help, and the
# squeeze is what helps. The column of seeds says how much of the study is measured.

# %% tags=["model"]
START_CLAIMS = Claims(
    STARTS,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    main={
        "units help, from gates near one": ("no gates", "SE from 0.88", "Table 4: 1.16 points"),
        "the squeeze is what helps, from gates near one": (
            "no squeeze from 0.88",
            "SE from 0.88",
            "Table 16: 0.65 points",
        ),
    },
    also={
        "units help, from gates at one half": ("no gates", "SE from 0.5"),
        "a start near one helps": ("SE from 0.5", "SE from 0.88"),
        "gates without a squeeze help, from gates near one": (
            "no gates",
            "no squeeze from 0.88",
        ),
    },
    about="The same ResNet-20 for 30 epochs, with gates that start around one half or around 0.88.",
)

# %%
START_CLAIMS.table()

# %% [markdown]
# Until both claims have a verdict, this chapter does not say whether units help at this scale.

# %% [markdown]
# The studies were measured once. To be sure that their code still runs, each arm trains here for a moment on 128 images,
# and the result is thrown away.

# %% tags=["nbval-check-output"]
few = at_16_pixels(cifar10(train=128, test=100))
print("all arms of the study run:", len(STUDY.rehearse(few)) == len(ARMS))
shortened = {
    arm: train_start(few, seed=0, epochs=1, **start) for arm, start in STARTS_ARMS.items()
}
print("all arms of the study of starts run:", shortened.keys() == STARTS.arms.keys())

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# The test images on which SE-ResNet-20 is most sure of a wrong answer.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.mistakes(model, data, logits, "layer2")

# %% [markdown]
# ### Where does it look?
#
# The ten images of every chapter, with Grad-CAM [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] at the end of the first stage (16x16
# positions) and of the second (8x8), and the control: the second stage before training.

# %%
train.set_seed(0)
fresh = settled(SECifarResNet(20, r=4), data.normalize(data.train.images[:1000]))

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.evidence(
    {"stage 1": model, "stage 2": model, "stage 2,\nuntrained": fresh},
    data,
    {"stage 1": "layer1", "stage 2": "layer2", "stage 2,\nuntrained": "layer2"},
    "The evidence for the prediction of SE-ResNet-20 after two of its stages; in the last row for what the untrained network says.",
)

# %% [markdown]
# ### The gates, by depth
#
# Now what this paper makes visible. The network has nine units, three in each stage. Here are all their gates for the
# first 2,000 test images, and those of the same network before its training. Can you guess which units are the busiest?

# %%
sample = data.test.images[:2000]
labels = data.test.targets[:2000]


def gates_of(network, images):
    """Name of each sigmoid -> its gates (N, channels)."""
    return inspect.watch(
        network, nn.Sigmoid, data.normalize(images), lambda given, made: made.flatten(1).clone()
    )


gates, gates_before = gates_of(model, sample), gates_of(fresh, sample)
block_names = {name: f"{name[5]}.{name[7]}" for name in gates}  # layer1.0.se.sigmoid is 1.0


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    axes = fig.subplots(3, 3, sharex=True)
    for ax, (name, found) in zip(axes.flat, gates.items(), strict=True):
        counts, before = (
            torch.histc(some, 40, 0, 1) / some.numel() for some in (found, gates_before[name])
        )
        ax.bar(torch.arange(40) / 40 + 1 / 80, counts, 1 / 40, color="C0")
        ax.stairs(before, torch.arange(41) / 40, color="black", linewidth=0.9)
        ax.set_yticks([])
        ax.set_title(f"block {block_names[name]}, {found.shape[1]} channels", fontsize=9)
        ax.grid(False)
    for ax in axes[2]:
        ax.set_xlabel("gate")


plot.show(
    draw,
    alt="Nine histograms of gate values between 0 and 1, one for each block of the network, each with the outline of the one before "
    "training.",
    caption=f"All gates of {len(sample):,} test images, block by block; block 1.0 is the first of stage 1. Each row is a stage. "
    "Black outline: before training. "
    f"Data: {data.provenance}.",
    height=3.6,
)

# %% [markdown]
# A gate that is the same for every image is just a number by which the layer before could have been scaled. What makes
# it more is that it **varies**: from class to class, or among the images of one class. Its total variance is the sum of
# the two,
#
# $$
# \begin{aligned}
# & \underbrace{\frac{1}{N}\sum_n (s_n - \bar s)^2}_{\text{total}} \\
# & \quad = \underbrace{\sum_k \frac{N_k}{N} (\bar s_k - \bar s)^2}_{\text{between classes}} \\
# & \quad + \underbrace{\frac{1}{N}\sum_n (s_n - \bar s_{k(n)})^2}_{\text{within classes}},
# \end{aligned}
# \tag{6.5} $$ <a id="eq-senet-variance"></a>
#
# with $s_n$ the gate of a channel for image $n$, $\bar s$ its mean, $N_k$ images of class $k$, $\bar s_k$ the mean over
# them, and $k(n)$ the class of image $n$.


# %% tags=["model"]
def split_variance(values, labels):
    """Variance between and within classes of each column of `values` (N, columns): two
    (columns,)."""
    overall = values.mean(0)
    between = torch.zeros_like(overall)
    for label in labels.unique():
        mine = values[labels == label]
        between += len(mine) / len(values) * (mine.mean(0) - overall) ** 2
    return between, values.var(0, unbiased=False) - between


# %%
rows = []
for name, found in gates.items():
    row = {
        "block": block_names[name],
        "mean gate": float(found.mean()),
        "below 0.1, %": 100 * float((found < 0.1).float().mean()),
        "above 0.9, %": 100 * float((found > 0.9).float().mean()),
        "spread over channels": float(found.mean(0).std()),
    }
    for values, when in ((found, ""), (gates_before[name], ", untrained")):
        between, within = split_variance(values, labels)
        row[f"spread over images{when}"] = float((between + within).mean().sqrt())
        row[f"between classes, %{when}"] = 100 * float(between.sum() / (between + within).sum())
    rows.append(row)
percent = (
    "below 0.1, %",
    "above 0.9, %",
    "between classes, %",
    "between classes, %, untrained",
)
by_block = Table(rows, decimals=dict.fromkeys(percent, 0))
by_block


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subplots(1, 2)
    places = range(len(by_block))
    total = [spread**2 for spread in by_block["spread over images"]]
    share = [percent / 100 for percent in by_block["between classes, %"]]
    between = [a * b for a, b in zip(total, share, strict=True)]
    within = [a - b for a, b in zip(total, between, strict=True)]
    left.bar(places, within, color="C0", label="within classes")
    left.bar(places, between, bottom=within, color="C1", label="between classes")
    left.set(title="variance of a gate", xlabel="block")
    left.legend()
    right.plot(places, by_block["between classes, %"], "o-", color="C1", label="trained")
    right.plot(places, by_block["between classes, %, untrained"], "k:", label="untrained")
    right.legend()
    right.set(title="share between classes in %", xlabel="block", ylim=(0, None))
    for ax in (left, right):
        ax.set_xticks(places, by_block["block"])
        ax.grid(axis="x", visible=False)


plot.show(
    draw,
    alt="Left: stacked bars of the variance of gates within and between classes for nine blocks. Right: the share between classes "
    "by block, trained and untrained.",
    caption=f"How much gates vary from image to image, and how much of that goes with the class. Data: {data.provenance}.",
)

# %% [markdown]
# Before training all gates stand around one half. After it, most of stage 1 still do; those of stages 2 and 3 are mostly
# near 0 or near 1. They vary from image to image, and on the whole the more, the deeper: the spread in the last block is more than
# three times that in the first, and nearly four times that of the untrained network. The unit of block 1.1 has become a constant: its gates are one half for every image.
# The share of the variance that goes with
# the class is at most 16 % in the first two blocks and 21 to 48 % in the others; untrained, it is 15 % in the first block
# and 4 to 10 % in the others. So training teaches late gates about the class. Even there, the larger part of the variance
# is within the classes.
#
# ### The gates, by class
#
# The paper's Figure 6 shows the mean gate of each channel for a few classes, at several depths, and Figure 7 its spread
# within a class. For ImageNet it found that the classes share their gates in the early stages, differ later, and that the
# last two blocks go back to nearly the same values for all. Here is the last block of each of our stages.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
SHOWN = {"airplane": "C0", "automobile": "C1", "cat": "C2", "frog": "C3"}


def draw(fig):
    axes = fig.subplots(1, 3, sharey=True)
    for ax, number in zip(axes, (1, 2, 3), strict=True):
        found = gates[f"layer{number}.2.se.sigmoid"]
        found = found[:, found.mean(0).argsort()]
        mean, spread = found.mean(0), found.std(0)
        ax.fill_between(range(len(mean)), mean - spread, mean + spread, color="#dddddd")
        ax.plot(mean, color="black", linewidth=1.8, label="all classes")
        for name, colour in SHOWN.items():
            mine = found[labels == data.classes.index(name)]
            ax.plot(mine.mean(0), color=colour, linewidth=1.2, label=name)
        ax.set(title=f"block {number}.2", xlabel="channel, sorted", ylim=(0, 1))
    axes[0].set_ylabel("mean gate")
    axes[0].legend(fontsize=8)


plot.show(
    draw,
    alt="Three line charts of the mean gate of each channel, for four classes and for all, at the end of each stage, with a band of "
    "one standard deviation over the images. Channels are sorted by their mean.",
    caption="Mean gates of four classes and of all (black), with one standard deviation over all images (grey), after the paper's "
    f"Figures 6 and 7. Data: {data.provenance}.",
    height=2.6,
)

# %% [markdown]
# The deeper, the more the classes part. At the end of stage 1 their lines run inside the grey band, but for the airplane's.
# In stage 2 the two vehicles share most of their gates, shut or open, and the two animals have others, in between; in stage 3 most are open for one class and
# shut for another. That agrees with the paper: shared at first, specific later.
#
# The paper's other finding is missing. There, the last two blocks have nearly the same gates for all classes, and could do
# without a unit. Here, the last block varies most of all. Why is open: our network has 9 blocks instead of 16, 10 classes
# instead of 1000, and three epochs of training.
#
# ### What does the network do with them?
#
# A gate that varies need not matter. So take the trained network, put other numbers where its gates are, train
# nothing, and test again:
#
# - **average**: each gate is its mean over training images, the same for every image;
# - **same class**: the gates of another test image of the same class;
# - **any image**: those of another test image, whatever it shows;
# - **all one**: no gates at all.


# %% tags=["model"]
def logits_with(network, images, gates):
    """Logits (N, classes) of a network when some of its gates are replaced.

    gates: name of a sigmoid, such as "layer1.0.se.sigmoid", to its gates: (channels,) or
    (N, channels).
    """

    def replacement(values):
        return lambda module, given, made: values.reshape(-1, made.shape[1], 1, 1).expand_as(
            made
        )

    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(replacement(values))
        for name, values in gates.items()
    ]
    try:
        with evaluating(network), torch.inference_mode():
            return network(images)
    finally:
        for handle in handles:
            handle.remove()


# %%
def others(labels, same_class, generator):
    """For each image the position of another one, drawn at random; of its class, or of any."""
    partner = torch.empty_like(labels)
    groups = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    for mine in groups if same_class else [torch.arange(len(labels))]:
        order = mine[torch.randperm(len(mine), generator=generator)]
        partner[order] = order.roll(1)
    return partner


generator = torch.Generator().manual_seed(0)
of_training = gates_of(model, data.train.images[:2000])
average = {name: found.mean(0) for name, found in of_training.items()}
same, random_other = (others(labels, flag, generator) for flag in (True, False))
REPLACED = {
    "average": average,
    "same class": {name: found[same] for name, found in gates.items()},
    "any image": {name: found[random_other] for name, found in gates.items()},
    "all one": {name: torch.ones(found.shape[1]) for name, found in gates.items()},
}

# %%
PARTS = {"stage 1": "layer1", "stage 2": "layer2", "stage 3": "layer3", "all stages": "layer"}
batch = data.normalize(sample)
untouched = 100 * metrics.accuracy(logits_with(model, batch, {}), labels)
effects = {}
for kind, values in REPLACED.items():
    for part, prefix in PARTS.items():
        chosen = {name: found for name, found in values.items() if name.startswith(prefix)}
        effects[kind, part] = 100 * metrics.accuracy(logits_with(model, batch, chosen), labels)
print(f"test accuracy with its own gates: {untouched:.1f} %")
Table(
    [
        {"gates": kind} | {f"{part}, %": effects[kind, part] for part in PARTS}
        for kind in REPLACED
    ],
    decimals=1,
)

# %% [markdown]
# - **Average.** Without any reaction to the image, the network loses less than two points, about as much as in stage 2 alone. So most of
#   what it does with its gates is a fixed scale for each channel, which the layer before could have had without a unit.
# - **Any image.** In all stages together the gates of a stranger are worse than the average: a wrong reaction is worse
#   than none. In stage 1 alone there is hardly a difference.
# - **Same class.** In stage 3 the accuracy is *higher* than with its own gates. Do not rejoice: we chose the other image
#   by its true label, and its gates carry some of that label into an image that the network had misread. As a method it
#   would be cheating. In stages 1 and 2 the gates of the same class are not clearly better than those of any image.
# - **All one.** Worst in stages 1 and 2 and in all together, and by far the most in stage 1. That is not because of what
#   gates know: every branch is suddenly stronger than in training, in stage 1 about twice.

# %% [markdown]
# ## Play: swap the gates
#
# Choose an image, and what to do with its gates: leave them, replace those of one stage or of all by those of another
# image (the small one), by the average over training images, or by ones. In the middle, the gates of the last block of
# the stage in question; right, the logits; grey before, blue after.
#
# Which stage's gates can you exchange without changing the answer? Is there an image that becomes what its donor shows?


# %%
CHANGES = {
    "its own": None,
    "stage 1 of the other": "layer1",
    "stage 2 of the other": "layer2",
    "stage 3 of the other": "layer3",
    "all of the other": "layer",
    "all average": average,
    "all one": REPLACED["all one"],
}
PLAYED = {
    data.classes[label]: int(fixed[label]) for label in pick(full=(0, 1, 3, 6), quick=(0, 3))
}
names = list(PLAYED)
played = data.normalize(data.test.images[list(PLAYED.values())])
own_gates = gates_of(model, data.test.images[list(PLAYED.values())])
own_logits = logits_with(model, played, {})


def swapped(position, change):
    """The gates that replace those of the image at this position, by name."""
    kind = CHANGES[change]
    if kind is None:
        return {}
    if isinstance(kind, dict):
        return kind
    donor = (position + 1) % len(names)
    return {n: found[donor] for n, found in own_gates.items() if n.startswith(kind)}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
outcomes = {
    (name, change): logits_with(model, played[i : i + 1], swapped(i, change))[0]
    for i, name in enumerate(names)
    for change in CHANGES
}


def draw_swap(fig, name, change):
    position, kind = names.index(name), CHANGES[change]
    pictures, left, right = fig.subplots(1, 3, width_ratios=(0.8, 2, 2))
    pictures.imshow(data.test.images[PLAYED[name]].permute(1, 2, 0))
    pictures.set_axis_off()
    pictures.set_title(name, fontsize=9, loc="center")
    if isinstance(kind, str):
        donor = names[(position + 1) % len(names)]
        inset = pictures.inset_axes((0.2, -0.85, 0.6, 0.6))
        inset.imshow(data.test.images[PLAYED[donor]].permute(1, 2, 0))
        inset.set_axis_off()
        inset.set_title(f"gates: {donor}", fontsize=8, loc="center", pad=2)
    number = kind[5:] if isinstance(kind, str) and kind[5:] else "3"
    block = f"layer{number}.2.se.sigmoid"
    before = own_gates[block][position]
    now = swapped(position, change).get(block, before)
    order = before.argsort()
    left.bar(range(len(before)), before[order], 1.0, color="#cccccc")
    left.plot(range(len(now)), now[order], "o", color="C0", markersize=3)
    left.set(ylim=(0, 1.05), xlabel="channel, sorted")
    left.set_title(f"gates of block {number}.2", fontsize=9)
    places = torch.arange(10)
    right.barh(places - 0.2, own_logits[position], 0.38, color="#cccccc")
    right.barh(places + 0.2, outcomes[name, change], 0.38, color="C0")
    right.set_yticks(range(10), data.classes, fontsize=7)
    right.set(ylim=(9.6, -0.6))
    right.set_title(f"says {data.classes[int(outcomes[name, change].argmax())]}", fontsize=9)


# %%
Explorable(
    draw_swap,
    (names, tuple(CHANGES)),
    ("image", "gates"),
    alt=lambda name, change: (
        f"Image of class {name}, gates: {change}. The network says "
        f"{data.classes[int(outcomes[name, change].argmax())]}; with its own gates it says "
        f"{data.classes[int(own_logits[names.index(name)].argmax())]}."
    ),
    caption="Left: the image, and the one whose gates it gets. Middle: gates before (grey) "
    f"and now (blue). Right: logits before and now. Data: {data.provenance}.",
    key="senet-swap",
    size=(6.0, 2.3),
)

# %% [markdown]
# Now with a picture of your own. The small network has one gate unit in each of three stages.
#
# *Predict first.* What changes the answer most: the gates of another picture, the mean gates of several pictures, all gates open, or its own
# gates in reverse order? If the mean gates change nothing, what do gates do here?
#
# <div class="live" data-figure="gates" data-network="SENet">In the book, the network itself runs here, in your browser.</div>

# %% [markdown]
# ## When to use it today, and what came after
#
# MobileNetV3 [[Howard et al., 2019](../pages/bibliography.md#howard2019mobilenetv3)] and EfficientNet [[Tan and Le, 2019](../pages/bibliography.md#tan2019efficientnet)] ([chapter 4](04_efficientnet))
# have a unit in their blocks. Use it when multiply-adds are scarce. Where seconds are, measure first: an operation that
# reads the whole map before anything else can go on costs more time than its count says.
#
# - **GENet** [[Hu et al., 2018b](../pages/bibliography.md#hu2018genet)], from the same group, asks how far a unit has to look, and how to spread what it saw.
# - **CBAM** [[Woo et al., 2018](../pages/bibliography.md#woo2018cbam)] ([chapter 7](07_cbam)) squeezes with the maximum as well as the average, and adds a gate
#   for every position.
# - **ECA** [[Wang et al., 2020a](../pages/bibliography.md#wang2020eca)] replaces the two layers by one small convolution over the channels: no reduction, hardly
#   any parameters.
# - **Selective kernels** [[Li et al., 2019](../pages/bibliography.md#li2019sknet)] let the same kind of gate choose between branches with small and large
#   filters; [chapter 9](09_assembled_cnn) uses them.
# - Average or maximum matters little: the maximum gives 22.57 % instead of 22.28 % top-1 error (the paper's Table 11).
#   The sigmoid matters more: with tanh it is 23.00 %, and with a ReLU 23.47 %, worse than the 23.30 % without any unit
#   (Table 12).
#
# The paper's other uses: the gain is similar for ResNeXt [[Xie et al., 2017](../pages/bibliography.md#xie2017aggregated)], Inception-ResNet, VGG-16 and BN-Inception
# (Table 2), for scenes (Places365, Table 6) and for detection on COCO (Table 7).

# %% [markdown]
# ## Exercises
#
# **1. (quick)** Derive the 2.5 million by hand: ResNet-50 has 3, 4, 6 and 3 blocks with 256, 512, 1024 and 2048
# channels. Which share is in the last stage?
#
# <details><summary>Answer</summary>
#
# A unit has $2 C^2 / 16 = C^2 / 8$ weights: 8,192, 32,768, 131,072 and 524,288 for the four widths. Times the blocks:
# 24,576 + 131,072 + 786,432 + 1,572,864 = 2,514,944. The last stage has 1,572,864 / 2,514,944 = 63 % of them, in 3 of
# 16 blocks. With biases, $C + C / 16$ for each block, it is 2,530,992.
#
# </details>
#
# **2. (quick)** Somebody replaces the sigmoid by a softmax over the 256 channels. What happens to the size of the maps,
# and which of the paper's two conditions is broken?
#
# <details><summary>Answer</summary>
#
# The gates now add up to one, so they are 1/256 on average and the branch nearly vanishes beside the shortcut. And
# opening one channel shuts others: the channels compete, which the second condition rules out.
#
# </details>
#
# **3. (code)** The four designs. Write `forward(block, unit, x, design)` for a block of chapter 2: its branch is
# `block.branch(x)`, its shortcut `block.downsample(x)`, and the ReLU at the end `F.relu`. Designs are "standard",
# "PRE", "POST" and "Identity". In "POST" the unit comes after the addition and its ReLU. (For fixed gates before or behind
# would be the same, since a positive factor passes through a ReLU; but a unit averages what it is given.)


# %% jupyter={"source_hidden": true} tags=["hide-cell"]
def check_designs(forward):
    torch.manual_seed(0)

    def unit(maps):
        return maps * torch.sigmoid(4 * maps.mean((2, 3), keepdim=True))

    for block in (BasicBlock(4, 4), BasicBlock(4, 8, stride=2)):
        resnet.shake_batch_norms(block.eval())
        x = torch.randn(2, 4, 6, 8)
        with torch.no_grad():
            plain, around = block.branch(x), block.downsample(x)
            right = {
                "standard": F.relu(unit(plain) + around),
                "PRE": F.relu(block.branch(unit(x)) + around),
                "POST": unit(F.relu(plain + around)),
                "Identity": F.relu(plain + unit(around)),
            }
            wrong = {
                "no unit at all": F.relu(plain + around),
                "the unit before the last ReLU": F.relu(unit(plain + around)),
                "a unit on both ways": F.relu(unit(plain) + unit(around)),
                "the unit before the whole block": F.relu(
                    block.branch(unit(x)) + block.downsample(unit(x))
                ),
            }
            for design, target in right.items():
                try:
                    got = forward(block, unit, x.clone(), design)
                except NotImplementedError:
                    raise
                except RuntimeError as error:
                    raise AssertionError(
                        f"{design}: {error}. Is the shortcut block.downsample(x)?"
                    ) from None
                assert got is not None, f"{design}: nothing came back."
                assert got.shape == target.shape, f"{design}: its shape is {tuple(got.shape)}."
                for name, other in (right | wrong).items():
                    is_other = torch.allclose(got, other, atol=1e-6)
                    assert name == design or not is_other, f"{design}: what you have is {name}."
                assert torch.allclose(got, target, atol=1e-6), (
                    f"{design}: look at the diagram again."
                )


# %%
def forward_by_design(block, unit, x, design):
    raise NotImplementedError


attempt(check_designs, forward_by_design)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def designs_solution(block, unit, x, design):
    branch = block.branch(unit(x) if design == "PRE" else x)
    if design == "standard":
        branch = unit(branch)
    around = block.downsample(x)
    if design == "Identity":
        around = unit(around)
    y = F.relu(branch + around)
    return unit(y) if design == "POST" else y


verify(check_designs, designs_solution)

# %% [markdown]
# **4. (code)** Prune. Where a gate is nearly the same for all images, it can be a constant, and a constant can move into
# the batch normalisation before it: the unit disappears. Write `prune(block, gates)` that does this to an
# `SEBasicBlock` in place, with `gates` of shape `(channels,)`. Batch normalisation ends with
# $\gamma \hat{x} + \beta$; what becomes of $\gamma$ and $\beta$?


# %% jupyter={"source_hidden": true} tags=["hide-cell"]
def check_prune(prune):
    torch.manual_seed(0)
    block = SEBasicBlock(8, 8, r=2).eval()
    resnet.shake_batch_norms(block)
    x, values = torch.randn(2, 8, 6, 6), torch.rand(8)
    with torch.no_grad():
        branch = BasicBlock.branch(block, x)
        expected = F.relu(values[:, None, None] * branch + x)
        prune(block, values)
        assert not any(isinstance(m, SqueezeExcitation) for m in block.modules()), (
            "the unit is still there; put nn.Identity() in its place."
        )
        assert inspect.count_parameters(block) == inspect.count_parameters(BasicBlock(8, 8)), (
            "a pruned block has the parameters of a block without a unit."
        )
        assert torch.allclose(block(x), expected, atol=1e-5), (
            "the block must do what constant gates did: scale both weight and bias of bn2."
        )


# %%
def prune_by_hand(block, gates):
    raise NotImplementedError


attempt(check_prune, prune_by_hand)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def prune_solution(block, gates):
    block.bn2.weight.data *= gates
    block.bn2.bias.data *= gates
    block.se = nn.Identity()


verify(check_prune, prune_solution)

# %% [markdown]
# On the trained network: prune the block whose gates vary least, then the next, and so on. How far can you go before
# the test accuracy falls by a point?

# %% jupyter={"source_hidden": true} tags=["hide-cell"]
pruned, rows = copy.deepcopy(model), []
spreads = {name: float(found.std(0).mean()) for name, found in of_training.items()}
for name in ["", *sorted(spreads, key=spreads.get)]:
    if name:
        prune_solution(pruned.get_submodule(name.removesuffix(".se.sigmoid")), average[name])
    answers = train.predict(pruned, data, sample)
    rows.append(
        {
            "pruned": f"and block {block_names[name]}" if name else "nothing",
            "spread of its gates": spreads.get(name),
            "test loss": float(F.cross_entropy(answers, labels)),
            "test accuracy in %": 100 * metrics.accuracy(answers, labels),
            "parameters": inspect.count_parameters(pruned),
        }
    )
Table(rows, decimals={"test accuracy in %": 1})

# %% [markdown]
# The first two blocks cost nothing, and all nine less than two points. That leaves exactly the
# 269,722 parameters of a ResNet-20: a network without units that has been trained with them.
#
# **5. (open)** Where should gates start? Set `fc2.bias` of every unit to 0, 1, 2 and 3, and train each start with
# `train_start` for five epochs and three seeds. Decide before you look what you would count as a gain. Is the best start
# still the best after thirty epochs?

# %% [markdown]
# ## Recap
#
# - Squeeze: the average of each channel. Excitation: two small layers and a sigmoid give a gate for each. Scale.
# - In ResNet-50 that is 10 % more parameters and less than 0.1 % more multiply-adds in layers with weights. In time it
#   can be more: a unit is several small operations, and two of them go through the whole map.
# - A convolution cannot use what lies outside its window. The lamps show it: half right without, nearly all right with one
#   average.
# - The unit belongs before the addition; the paper puts it at the end of the branch.
# - A gate is worth its cost where it varies from image to image. In our network gates vary more, and more with the
#   class, the deeper they are, on the whole. Where they do not vary, they can be folded away.
#
# **Three questions.** Why is a 1x1 convolution with a sigmoid, at equal parameters, no substitute for the unit? Why is
# most of the unit's cost in the last stage, and why is it the least needed there according to the paper? A colleague
# finds the network 20 % slower at equal multiply-adds and suspects a mistake. What do you answer?

# %%
best = 100 * metrics.accuracy(logits, data.test.targets)
headline(f"SE-ResNet-20 at 16x16 pixels, test accuracy {best:.1f} %", data.provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

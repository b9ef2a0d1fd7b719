# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CBAM: what to look at, and where
#
# | | |
# |:--|:--|
# | Paper | S. Woo, J. Park, J.-Y. Lee and I. S. Kweon, *CBAM: Convolutional Block Attention Module*, ECCV 2018 [[Woo et al., 2018](../pages/bibliography.md#woo2018cbam)] |
# | Claim | Multiply a feature map first by a weight for every channel, then by a weight for every position: for almost no parameters, networks of all kinds become more accurate. |
# | You need | [Chapter 2](02_resnet): residual blocks. [Chapter 6](06_senet): squeeze-and-excitation, which is half of this chapter's module. |
# | Time | About an hour to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - build channel and spatial attention, and count CBAM-ResNet-18 to 101 to the parameter;
# - say what a maximum tells a gate that an average does not, and the other way round;
# - measure whether an attention map looks at the object, and against which baselines.
#
# **Before you read on, guess.** A network learns to name the animal in a photograph. No one ever shows it where the
# animal is. One of its layers weighs positions: a number between 0 and 1 for each, computed from the features there.
# After training, does that map light up on the animal, on the background, or on neither? We will measure it with masks
# that people have drawn.

# %% [markdown]
# ## Setup

# %% tags=["model"]
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers import cam, diagram, inspect, metrics, naming, plot, train
from helpers.chapters import chapter
from helpers.claims import Claims
from helpers.data import cifar10, largest_animal, voc_animals
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.modes import evaluating
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants, counted
from helpers.weights import Weights

# %% [markdown]
# Blocks and networks are those of chapter 2, and the gate for channels builds on that of chapter 6.

# %% tags=["model"]
resnet = chapter("02_resnet")
SqueezeExcitation = chapter("06_senet").SqueezeExcitation
settled = chapter("06_senet").settled

# %%
started = time.perf_counter()
train.set_seed(0)
small = resnet.at_16_pixels(
    cifar10(train=pick(full=None, quick=640), test=pick(full=None, quick=300))
)
voc = voc_animals(size=64, train=pick(full=None, quick=128), test=pick(full=None, quick=60))

# %% [markdown]
# ## The problem: an average cannot see a needle
#
# Networks had been improved along three axes: more layers, more channels per layer (wide ResNets
# [[Zagoruyko and Komodakis, 2016](../pages/bibliography.md#zagoruyko2016wide)]), more groups of channels (ResNeXt [[Xie et al., 2017](../pages/bibliography.md#xie2017aggregated)]). The paper calls them depth,
# width and cardinality, and asks for a fourth: **attention**, to strengthen what matters and to weaken the rest.
# Squeeze-and-excitation (chapter 6) gives each channel a gate. But all that the gate knows of a channel is one number,
# the average over the map. What does an average miss?
#
# Take maps of 16x16 numbers, all of them noise. In some we hide a **needle**: one single position is brighter. In
# others a **haze**: every position is brighter by a little.


# %%
def hide(kind, count, seed, channels=8, side=16):
    """Noise (count, channels, side, side) with a needle or a haze in one channel of each; and
    which one."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, channels, side, side, generator=generator)
    where = torch.randint(channels, (count,), generator=generator)
    row, column = torch.randint(side, (2, count), generator=generator)
    needle = (
        torch.rand(count, generator=generator) < {"needle": 1, "haze": 0, "either": 0.5}[kind]
    )
    every = torch.arange(count)
    maps[every, where, row, column] += 8.0 * needle
    maps[every, where] += 0.4 * (~needle)[:, None, None]
    return maps, where


plain_maps = torch.randn(200, 16, 16, generator=torch.Generator().manual_seed(2))
with_needle = hide("needle", 200, seed=3, channels=1)[0][:, 0]
with_haze = hide("haze", 200, seed=4, channels=1)[0][:, 0]


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subfigures(1, 2, width_ratios=(1.25, 1))
    groups = {"noise": plain_maps, "needle": with_needle, "haze": with_haze}
    for ax, (name, maps) in zip(left.subplots(1, 3), groups.items(), strict=True):
        ax.imshow(maps[4], cmap="gray", vmin=-3, vmax=8)
        ax.set_title(name, loc="center", fontsize=10)
        ax.set_axis_off()
    ax = right.subplots()
    for (name, maps), colour, mark in zip(
        groups.items(), ("#888888", "C1", "C0"), "sox", strict=True
    ):
        ax.plot(
            maps.mean((1, 2)),
            maps.amax((1, 2)),
            mark,
            color=colour,
            markersize=3,
            alpha=0.6,
            label=name,
        )
    ax.set(xlabel="average of the map", ylabel="maximum of the map")
    ax.legend(markerscale=2)


plot.show(
    draw,
    alt="Three maps of noise: as it is, with one bright dot, and slightly brighter everywhere. Beside them a scatter plot of maximum "
    "against average for 200 maps of each kind: needles differ from noise in the maximum only, hazes in the average only.",
    caption="Each dot on the right is one map. A needle hardly moves the average; a haze hardly moves the maximum.",
    height=2.7,
)


# %% [markdown]
# How well does a threshold on one number tell a map with something in it from a map of noise? Guessing gives 0.5.


# %%
def best_threshold(noise, signal):
    """The share of maps that the best threshold between two sets of numbers puts on the right
    side."""
    cuts = torch.cat([noise, signal])[:, None]
    return float(((noise < cuts).float().mean(1) + (signal >= cuts).float().mean(1)).max() / 2)


MEASURES = {
    "average": lambda maps: maps.mean((1, 2)),
    "maximum": lambda maps: maps.amax((1, 2)),
}
found = {
    (name, kind): best_threshold(measure(plain_maps), measure(maps))
    for name, measure in MEASURES.items()
    for kind, maps in (("needle", with_needle), ("haze", with_haze))
}
rows = [
    {f"{kind} against noise": found[name, kind] for kind in ("needle", "haze")}
    for name in MEASURES
]
Table([{"number": name} | row for name, row in zip(MEASURES, rows, strict=True)], decimals=2)

# %% tags=["nbval-check-output"]
print("maximum finds the needle:", found["maximum", "needle"] > 0.98)
print("average loses it:", found["average", "needle"] < 0.7)
print("average finds the haze:", found["average", "haze"] > 0.98)
print("maximum is not sure of it:", found["maximum", "haze"] < 0.8)

# %% [markdown]
# So a gate should be told both numbers. That is the first half of the paper. The second half: a gate of
# squeeze-and-excitation is the same at every position. It can say *what* matters, but not *where*.

# %% [markdown]
# ## The idea: what, then where
#
# Let $\mathbf{F}$ be a feature map with $C$ channels. CBAM computes two sets of gates, one after the other, and
# multiplies by them:
#
# $$
# \begin{aligned}
# \mathbf{F}' &= \mathbf{M}_c(\mathbf{F}) \otimes \mathbf{F}, \\
# \mathbf{F}'' &= \mathbf{M}_s(\mathbf{F}') \otimes \mathbf{F}'.
# \end{aligned}
# \tag{7.1} $$ <a id="eq-cbam"></a>
#
# **Channel attention**, the "what": describe each channel by its average and by its maximum over all positions. Send
# both descriptions through the *same* two small layers, and add the results:
#
# $$
# \begin{aligned}
# \mathbf{M}_c(\mathbf{F}) = \sigma\big( & W_1 \delta(W_0 \mathbf{F}^c_\text{avg}) \\
# & + W_1 \delta(W_0 \mathbf{F}^c_\text{max}) \big).
# \end{aligned}
# \tag{7.2} $$ <a id="eq-cbam-channel"></a>
#
# **Spatial attention**, the "where": describe each position by the average and by the maximum over all channels. That
# is a picture of two channels. One convolution of 7x7 turns it into a picture of one:
#
# $$ \mathbf{M}_s(\mathbf{F}) = \sigma\big( f^{7 \times 7}([\mathbf{F}^s_\text{avg}; \mathbf{F}^s_\text{max}]) \big). \tag{7.3} $$ <a id="eq-cbam-spatial"></a>


# %% jupyter={"source_hidden": true} tags=["hide-input"]
CHAINS = {
    "what": [
        ("F\nC x H x W", 1.0, "data"),
        ("average and maximum\nover positions", 2.2, "layer"),
        ("the same two layers\nfor both, then add", 2.0, "layer"),
        ("sigmoid", 0.8, "layer"),
        ("$M_c$\nC x 1 x 1", 0.9, "added"),
    ],
    "where": [
        ("F'\nC x H x W", 1.0, "data"),
        ("average and maximum\nover channels", 2.2, "layer"),
        ("7x7 convolution,\n2 channels to 1", 2.0, "layer"),
        ("sigmoid", 0.8, "layer"),
        ("$M_s$\n1 x H x W", 0.9, "added"),
    ],
    "in a block": [
        ("x", 0.6, "data"),
        ("convolutions of\na residual block", 2.0, "layer"),
        ("times $M_c$", 1.0, "added"),
        ("times $M_s$", 1.0, "added"),
        ("add x,\nReLU", 0.9, "layer"),
        ("y", 0.6, "data"),
    ],
}


def draw(fig):
    ax = fig.subplots()
    for y, (name, items) in zip((2, 1, 0), CHAINS.items(), strict=True):
        diagram.chain(ax, y, items, start=0.1 * (y == 0))
        ax.text(-0.25, y, name, ha="right", va="center", fontsize=10, weight="bold")
    ax.set(xlim=(-1.5, 8.6), ylim=(-0.55, 2.5))
    ax.set_axis_off()


plot.show(
    draw,
    alt="Three chains of boxes. What: average and maximum over positions, two shared layers, sum, sigmoid, one gate for each channel. "
    "Where: average and maximum over channels, a 7x7 convolution, sigmoid, one gate for each position. In a block: the "
    "convolutions, times the channel gates, times the position gates, then the shortcut is added.",
    caption="The two gates, and their place: at the end of the branch, before the addition.",
    height=3.2,
)

# %% [markdown]
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $\mathbf{F}$ | feature map that comes in | `(N, C, H, W)` | `x` |
# | $\mathbf{F}'$, $\mathbf{F}''$ | after the channel gates, after both | `(N, C, H, W)` | |
# | $\mathbf{F}^c_\text{avg}$, $\mathbf{F}^c_\text{max}$ | average, maximum over positions | `(N, C, 1, 1)` | `DESCRIPTORS["avg"](x)`, `["max"]` |
# | $\mathbf{F}^s_\text{avg}$, $\mathbf{F}^s_\text{max}$ | average, maximum over channels | `(N, 1, H, W)` | `describe(x)` |
# | $W_0$, $W_1$ | the shared layers, to $C/r$ units and back | `(C/r, C)`, `(C, C/r)` | `fc1`, `fc2` |
# | $r$ | reduction ratio, 16 in the paper | number | `r` |
# | $f^{7 \times 7}$ | convolution, 2 channels to 1 | `(1, 2, 7, 7)` | `conv` |
# | $\delta$, $\sigma$ | ReLU, sigmoid | | `relu`, `sigmoid` |
# | $\mathbf{M}_c$, $\mathbf{M}_s$ | the gates, between 0 and 1 | `(N, C, 1, 1)`, `(N, 1, H, W)` | `gate(x)` |
# | $\otimes$ | product at each position, repeated over the axes that the gate lacks | | `*` |
#
# **Where the idea comes from.** Squeeze-and-excitation [[Hu et al., 2018a](../pages/bibliography.md#hu2018senet)] is equation [(7.2)](#eq-cbam-channel) with the
# average alone. The residual attention network [[Wang et al., 2017](../pages/bibliography.md#wang2017residual)] computes a gate for every channel *and*
# position at once, with a small encoder and decoder. The authors of CBAM showed at the same time, in BAM
# [[Park et al., 2018](../pages/bibliography.md#park2018bam)], that the two can be computed apart; BAM sits between the stages of a network, CBAM in each block.

# %% [markdown]
# ## The smallest piece by hand
#
# Two channels of 4x4 numbers. The first has one large number, the second has the same small number everywhere: a needle
# and a haze. One hidden unit, and a spatial filter that takes the two descriptions of a position as they are.

# %% tags=["nbval-check-output"]
needle = [[0, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
haze = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
x = torch.tensor([needle, haze]).float()
w0 = torch.tensor([[1.0, -0.5]])  # one hidden unit: first channel less half the second
w1 = torch.tensor([[1.0], [-1.0]])  # it opens the first gate and closes the second


def channel_by_hand(x):
    average, largest = x.mean((1, 2)), x.amax((1, 2))  # (2,) each
    hidden = [(w0 @ descriptor).clamp_min(0) for descriptor in (average, largest)]
    return 1 / (1 + torch.exp(-(w1 @ hidden[0] + w1 @ hidden[1])))


def spatial_by_hand(x):
    average, largest = x.mean(0), x.amax(0)  # (4, 4) each
    return 1 / (1 + torch.exp(-(largest - average)))


print("averages", x.mean((1, 2)).tolist(), " maxima", x.amax((1, 2)).tolist())
print("gates of the channels:", [round(value, 3) for value in channel_by_hand(x).tolist()])
refined = channel_by_hand(x)[:, None, None] * x
print("gates of the positions:")
print((1000 * spatial_by_hand(refined)).round() / 1000)

# %% [markdown]
# The average of the first channel is a quarter, less than half of the second's; so the hidden unit stays at zero for the
# averages. The maximum is what opens the first gate. And the needle's position stands out, because there the maximum is
# far from the average.

# %% [markdown]
# ## The first half: channel attention
#
# The class of chapter 6 has the two layers already. What is new fits into a few lines.

# %% tags=["model"]
DESCRIPTORS = {
    "avg": lambda x: F.adaptive_avg_pool2d(x, 1),
    "max": lambda x: F.adaptive_max_pool2d(x, 1),
}


class ChannelAttention(SqueezeExcitation):
    """Feature maps (N, channels, H, W), each multiplied by a gate from its average and its
    maximum (section 3).

    r: the reduction ratio of the hidden layer. pools: which descriptors it is told, of "avg"
    and "max".
    """

    def __init__(self, channels, r=16, pools=("avg", "max")):
        super().__init__(channels, r)  # fc1, relu, fc2, sigmoid
        if not pools or set(pools) - set(DESCRIPTORS):
            raise ValueError(f"pools={pools!r}: choose from {', '.join(DESCRIPTORS)}.")
        self.pools = tuple(pools)

    def mlp(self, descriptor):
        """Two layers, the same ones for every descriptor: (N, channels, 1, 1) to the same."""
        return self.fc2(self.relu(self.fc1(descriptor)))

    def gate(self, x):
        """The gates M_c: (N, channels, 1, 1)."""
        return self.sigmoid(sum(self.mlp(DESCRIPTORS[pool](x)) for pool in self.pools))


# %% [markdown]
# Probes: the shape of the gates; with the average alone it is squeeze-and-excitation, weight for weight; and the two
# layers are shared, so that the maximum costs no parameters. The last line checks our calculation by hand.

# %% tags=["nbval-check-output"]
train.set_seed(0)
features = torch.randn(2, 64, 14, 14)
both = ChannelAttention(64)
print("gates:", tuple(both.gate(features).shape))

average_only, squeeze = ChannelAttention(64, pools=("avg",)), SqueezeExcitation(64)
squeeze.load_state_dict(average_only.state_dict())
print("average only is SE:", torch.equal(average_only(features), squeeze(features)))

counts = {inspect.count_parameters(unit) for unit in (both, average_only, squeeze)}
print("parameters of all three:", counts)

small_gate = ChannelAttention(2, r=2)
small_gate.fc1.weight.data, small_gate.fc2.weight.data = (
    w0[..., None, None],
    w1[..., None, None],
)
by_torch = small_gate.gate(x[None])[0, :, 0, 0]
print("as by hand:", torch.allclose(by_torch, channel_by_hand(x)))

# %% [markdown]
# ### Needle or haze?
#
# Now let the module learn. Eight channels, and in one of them there is a needle; the gate of that channel shall open
# and all others shall close. The same with a haze, and with either of the two at random. The three modules differ in
# what they are told; they have the same parameters.


# %%
def learn_to_find(kind, pools, steps=150):
    """Train eight gates to open where something is hidden; the share of new maps where the
    right one opens most."""
    train.set_seed(0)
    attention = ChannelAttention(8, r=1, pools=pools)
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.02)
    maps, where = hide(kind, 2000, seed=0)
    wanted = F.one_hot(where, 8).float()
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(maps), (32,), generator=order)
        loss = F.binary_cross_entropy(attention.gate(maps[index]).flatten(1), wanted[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps, where = hide(kind, 1000, seed=1)
    with torch.inference_mode():
        return metrics.accuracy(attention.gate(maps).flatten(1), where)


TOLD = {"average (SE)": ("avg",), "maximum": ("max",), "both (CBAM)": ("avg", "max")}
opened = {
    (name, kind): learn_to_find(kind, pools)
    for name, pools in TOLD.items()
    for kind in ("needle", "haze", "either")
}
hidden = ("needle", "haze", "either")
rows = [
    {f"{kind}: right gate in %": 100 * opened[name, kind] for kind in hidden} for name in TOLD
]
Table(
    [{"the gate is told the": name} | row for name, row in zip(TOLD, rows, strict=True)],
    decimals=1,
)

# %% tags=["nbval-check-output"]
needle, either = ({name: opened[name, kind] for name in TOLD} for kind in ("needle", "either"))
print("needle: SE stays below 40 %:", needle["average (SE)"] < 0.4)
print(
    "needle: maximum, and both, above 95 %:",
    min(needle["maximum"], needle["both (CBAM)"]) > 0.95,
)
print("haze: SE above 95 %:", opened["average (SE)", "haze"] > 0.95)
print("haze: the maximum alone below 40 %:", opened["maximum", "haze"] < 0.4)
alone = max(either["average (SE)"], either["maximum"])
print("either: both beat each one alone by 10 points:", either["both (CBAM)"] > alone + 0.1)

# %% [markdown]
# Guessing would open the right one of eight gates in 12.5 % of the cases. Each descriptor alone solves the task that is
# made for it and is little better than a guess in the other. Together they solve both, though not perfectly: the shared
# layers are not told which number is the average and which the maximum. An average of 0.4 must open the gate, a maximum
# of 3, which is mere noise, must not, and a maximum of 8 must.
#
# The paper's own comparison with ResNet-50 on ImageNet (its Table 1, top-1 error, to a tenth): no gates about 24.6 %,
# average about 23.1, maximum about 23.2, both about 22.8.

# %% [markdown]
# ## The second half: spatial attention
#
# Equation [(7.3)](#eq-cbam-spatial) has no batch normalisation. The authors' code has one between the convolution and the
# sigmoid, and its scale starts at **zero**. So at first all gates are $\sigma(0) = 1/2$, whatever the image: the module
# multiplies by a constant and has to earn every difference between positions. We follow the code, the
# nearest thing to what the paper's numbers were measured with.


# %% tags=["model"]
class SpatialAttention(nn.Module):
    """Feature maps (N, C, H, W), multiplied by one gate for every position
    (section 3 of the paper)."""

    def __init__(self, kernel_size=7):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} has no middle; use 3 or 7.")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)
        self.sigmoid = nn.Sigmoid()
        # as in the authors' code: at first every gate is one half
        nn.init.zeros_(self.bn.weight)

    def describe(self, x):
        """The mean and the maximum over the channels at each position: (N, 2, H, W)."""
        return torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)

    def gate(self, x):
        """The gates M_s: (N, 1, H, W)."""
        return self.sigmoid(self.bn(self.conv(self.describe(x))))

    def forward(self, x):
        return x * self.gate(x)


# %% [markdown]
# Probes: shapes; one half everywhere at first; and without the batch normalisation it is our calculation by hand. Then
# the cost: **98 weights and the two numbers of the batch normalisation**, for 16 channels as for 2048.

# %% tags=["nbval-check-output"]
spatial = SpatialAttention()
print("descriptions:", tuple(spatial.describe(features).shape))
print("gates:", tuple(spatial.gate(features).shape))
print("one half everywhere at first:", bool((spatial.gate(features) == 0.5).all()))

as_equation = SpatialAttention()
as_equation.bn = nn.Identity()
as_equation.conv.weight.data.zero_()
as_equation.conv.weight.data[0, :, 3, 3] = torch.tensor([-1.0, 1.0])  # maximum less average
by_torch = as_equation.gate(refined[None])[0, 0]
print("as by hand:", torch.allclose(by_torch, spatial_by_hand(refined)))

for name, parameter in spatial.named_parameters():
    print(f"{name:<12} {parameter.numel():>3} parameters")

# %% [markdown]
# The paper tried two other designs (its Table 2): instead of the two descriptions a learned 1x1 convolution over the
# channels, and 3x3 instead of 7x7. Both are a little worse. With the two descriptions and 7x7, the top-1 error of
# ResNet-50 goes from about 22.8 % (channel attention alone) to about 22.7 %: the spatial half brings a tenth of a point.
#
# Why a large filter? To know whether a position matters, it helps to see its surroundings, and with two channels in and
# one out a large filter has few weights.

# %% [markdown]
# ## The module: three orders
#
# One after the other, and in which order? Or both from the same input?


# %% tags=["model"]
class CBAM(nn.Module):
    """Channel and spatial attention for (N, channels, H, W).

    order: "channel first" (the paper), "spatial first", or "parallel": both gates from the same
    input.
    """

    def __init__(self, channels, r=16, kernel_size=7, order="channel first"):
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order {order!r} is none of {', '.join(ORDERS)}.")
        self.order = order
        self.channel = ChannelAttention(channels, r)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, x):
        if self.order == "channel first":
            return self.spatial(self.channel(x))
        if self.order == "spatial first":
            return self.channel(self.spatial(x))
        return x * self.channel.gate(x) * self.spatial.gate(x)


ORDERS = ("channel first", "spatial first", "parallel")


# %% [markdown]
# Three different functions with the same parameters. In the parallel one both gates describe the same input, and both
# multiply it; the paper names this arrangement without a formula, so this is our reading.

# %% tags=["nbval-check-output"]
modules = {order: CBAM(64, order=order) for order in ORDERS}
shaken = resnet.shake_batch_norms(CBAM(64)).eval()
outputs = {}
for order, module in modules.items():
    module.load_state_dict(shaken.state_dict())
    outputs[order] = module.eval()(features)
    print(
        f"{order}: {inspect.count_parameters(module)} parameters, {tuple(outputs[order].shape)}"
    )
first, second, third = outputs.values()
different = [
    bool((a - b).abs().max() > 1e-3)
    for a, b in ((first, second), (first, third), (second, third))
]
print("all three differ:", all(different))

# %% [markdown]
# **Which order is best?** In the paper's Table 3, channel first is *slightly
# better* than spatial first: about 22.66 % top-1 error against about 22.78 %; in parallel, about 22.95 %. The first
# two are a tenth of a point apart, and the paper gives no spread over trainings.

# %% [markdown]
# ## The network
#
# The module goes into every residual block, at the end of its branch: after the last batch normalisation, before the
# addition. So a gate weakens what a block *adds*; the shortcut stays as it is, and what a closed gate keeps out is not
# lost.


# %% tags=["model"]
def attend(model, attention):
    """Put `attention(channels)` at the end of the branch of every residual block, in place;
    returns `model`."""
    for block in list(model.modules()):
        if isinstance(block, resnet.Block):
            last = "bn3" if isinstance(block, resnet.Bottleneck) else "bn2"
            norm = getattr(block, last)
            setattr(block, last, nn.Sequential(norm, attention(norm.num_features)))
    return model


def cbam_resnet(depth, attention=CBAM, **settings):
    """The paper's networks for ImageNet: CBAM-ResNet-18, 34, 50, 101."""
    return attend(resnet.ResNet(*resnet.RESNETS[depth], **settings), attention)


# %% [markdown]
# The first block of CBAM-ResNet-18 in the order in which its layers run:

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    model = cbam_resnet(18)
rows = inspect.trace(model, (3, 224, 224)).rows
Table(row for row in rows if row["layer"].startswith("layer1.0"))

# %% [markdown]
# `bn2.0` is the batch normalisation, `bn2.1` the module behind it. In the channel gate, `fc1` and `fc2` run twice, once for
# the average and once for the maximum; their parameters are counted where they run first.

# %% [markdown]
# ## Checks: are these the paper's networks?
#
# Our counts beside the parameters of the paper's Table 4. We give its figures to a tenth of a million and of a percent,
# hence "about".

# %% tags=["model"]
NETWORKS = Variants(
    "07_cbam",
    "Images of 224x224 pixels, stride as in v1. The receptive field includes the 7x7 filters of the gates.",
    [
        Variant(f"CBAM-ResNet-{depth}", partial(cbam_resnet, depth), (3, 224, 224), millions)
        for depth, millions in {18: "11.8 M", 34: "22.0 M", 50: "28.1 M", 101: "49.3 M"}.items()
    ],
    printed=("paper, Table 4, about", ""),
    remark="The paper's Table 1 has about 25.9 M for CBAM-ResNet-50. Its architecture and its code give 28.1 M.",
)

# %% tags=["nbval-check-output"]
# about: the paper's top-1 error in % of the plain network, with SE, with CBAM (Table 4)
ERRORS = ((29.6, 29.4, 29.3), (26.7, 26.1, 26.0), (24.6, 23.1, 22.7), (23.4, 22.4, 21.5))
columns = ("paper: error, plain", "with SE", "with CBAM")
Table(
    [
        row | dict(zip(columns, errors, strict=True))
        for row, errors in zip(counted(NETWORKS), ERRORS, strict=True)
    ],
    decimals=1,
)

# %% [markdown]
# The paper gives ResNet-50 with CBAM about 28.1 million parameters here and about 25.9 million in its Table 1. The
# former is what its architecture and its code give.
#
# **What does it cost?** For each depth, what the two halves add to the plain network.

# %% tags=["nbval-check-output"]
rows = []
for depth, variant in zip((18, 34, 50, 101), NETWORKS, strict=True):
    model = variant.make()
    with torch.device("meta"):
        plain = resnet.ResNet(*resnet.RESNETS[depth])
    halves = {
        kind: sum(inspect.count_parameters(m) for m in model.modules() if isinstance(m, kind))
        for kind in (ChannelAttention, SpatialAttention)
    }
    macs = [inspect.count_macs(m, (3, 224, 224)) for m in (plain, model)]
    rows.append(
        {
            "network": f"ResNet-{depth}",
            "blocks": sum(resnet.RESNETS[depth][1]),
            "channel: parameters": halves[ChannelAttention],
            "in %": 100 * halves[ChannelAttention] / inspect.count_parameters(plain),
            "spatial: parameters": halves[SpatialAttention],
            "both: multiply-adds in %": 100 * (macs[1] / macs[0] - 1),
        }
    )
Table(rows, decimals=2)

# %% [markdown]
# The spatial half is nearly free in parameters; the channel half costs what squeeze-and-excitation costs. In
# multiply-adds both together stay below a fifth of a percent. But means and maxima are not counted, and every gate reads
# and writes the whole feature map. So we also take the time, for the small networks that we train below:

# %% tags=["model"]
ARMS = {
    "none": {"kind": "none"},
    "SE": {"kind": "SE"},
    "channel only": {"kind": "channel only"},
    "spatial only": {"kind": "spatial only"},
    "channel first": {"kind": "channel first"},
    "spatial first": {"kind": "spatial first"},
}


def unit(kind, r=4):
    """The attention of an arm: a function from the number of channels to a module."""
    if kind in ORDERS:
        return lambda channels: CBAM(channels, r, order=kind)
    return {
        "none": lambda channels: nn.Identity(),
        "SE": lambda channels: SqueezeExcitation(channels, r),
        "channel only": lambda channels: ChannelAttention(channels, r),
        "spatial only": lambda channels: SpatialAttention(),
    }[kind]


def small_network(kind):
    """ResNet-20 with 8, 16 and 32 channels, and the attention of an arm in each of its nine
    blocks."""
    return attend(resnet.CifarResNet(20, width=8), unit(kind))


# %%
SECONDS = pick(full=0.7, quick=0.03)
timed = {
    kind: 1e6 * inspect.time_per_image(small_network(kind), (3, 16, 16), 64, SECONDS)
    for kind in ("none", "SE", "channel only", "spatial only", "channel first")
}
Table(
    [
        {
            "ResNet-20 with": kind,
            "parameters": inspect.count_parameters(small_network(kind)),
            "multiply-adds": inspect.count_macs(small_network(kind), (3, 16, 16)),
            "microseconds per image": microseconds,
            "times the plain network": microseconds / timed["none"],
        }
        for kind, microseconds in timed.items()
    ],
    decimals={"microseconds per image": 0, "times the plain network": 1},
)

# %% [markdown]
# At most 4 % more multiply-adds, but far more time: CBAM more than doubles it in this table. On your machine the factor is
# another one. "Negligible overhead" is a statement about parameters.
#
# **MobileNet.** The paper reports about 5.07 million parameters for MobileNet (chapter 5) with CBAM, and the paper of
# squeeze-and-excitation about 4.7 million with SE. One block of MobileNet has two convolutions. Where do the modules go?

# %% tags=["nbval-check-output"]
# channels behind the thirteen 3x3 convolutions, and behind the thirteen 1x1 convolutions
DEPTHWISE = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]
POINTWISE = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
MOBILENET = 4_231_976  # parameters of the plain network


def added(channels):
    return sum(inspect.count_parameters(CBAM(c)) for c in channels)


print(f"one module per block:  {MOBILENET + added(POINTWISE):>9,}")
print(f"one per convolution:   {MOBILENET + added(DEPTHWISE) + added(POINTWISE):>9,}")

# %% [markdown]
# The counts fit different places: one module per block in the one paper, two in the other.
#
# **The same function.** The tests of this chapter compare the module and all of CBAM-ResNet-50 with those of timm, a
# public library, weight by weight: no difference. One pitfall is worth a look. The paper writes the average first and
# the maximum second, and so do we. The authors' code stacks them the other way round. A checkpoint moves from one to
# the other only if the two input channels of each 7x7 filter are swapped; a test checks that, too.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | images | ImageNet, 1.28 M, 224x224 | CIFAR-10 at 16x16; animals of PASCAL VOC at 64x64 | minutes instead of days; everything is less accurate, and a 7x7 filter sees most of a small map |
# | network | ResNet-18 to 101, wide ResNet, ResNeXt, MobileNet | ResNet-20 with 8 to 32 channels; ResNet-8 with 16 to 64 for the animals | a fraction of the cost |
# | reduction ratio $r$ | 16 | 4 | 16 leaves 16 channels a single hidden unit, and 8 channels none |
# | batch normalisation before the sigmoid | not in the equation; in the code, scale 0 at first, running averages move by 0.01 per step | as in the code, but by 0.1 per step | at 0.01, the averages of a training of 230 steps would still remember the start |
# | training | the authors' script: 100 epochs, SGD, learning rate 0.1, batch 256 | one cycle, batch 128; in the studies 1 epoch of 30,000 images with peak 0.1, or 30 epochs of all with 0.3 | in the short ones the gates have little time to learn |
# | first weights of the shared layers | not given; in the code PyTorch's default, biases zero | He's, biases zero, as in chapter 6; in the study of starts zero in the second layer | measured below |

# %% [markdown]
# ## The data
#
# CIFAR-10 [[Krizhevsky, 2009](../pages/bibliography.md#krizhevsky2009cifar)] at 16x16 pixels is chapter 2's, for the comparison of designs. To ask whether
# attention finds the object: PASCAL VOC [[Everingham et al., 2010](../pages/bibliography.md#everingham2010voc)], photographs with a cat, cow, dog, horse or sheep, a box
# around each animal and a mask of its pixels (some masks are from [[Hariharan et al., 2011](../pages/bibliography.md#hariharan2011sbd)]). The networks never see a box
# or a mask, only the class of the largest animal.

# %%
animals = largest_animal(voc)
masks = voc.test.targets["masks"]
seen = voc.test.targets["has_mask"].nonzero()[:, 0]  # test images with a mask
shown = torch.cat([seen[animals.test.targets[seen] == label][:2] for label in range(5)])


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def outline(ax, mask, colour="white"):
    """The border of the animals in a mask, on a dark line, so that it shows on every photograph."""
    animal = ((mask > 0) & (mask < 255)).float()
    for width, shade in ((2.4, "black"), (1.1, colour)):
        ax.contour(animal, levels=[0.5], colors=[shade], linewidths=width, antialiased=False)


def photograph(ax, index, title="", boxes=False):
    """A test image with the outline of its animals, and their boxes if wanted."""
    ax.imshow(voc.test.images[index].permute(1, 2, 0), interpolation="nearest")
    outline(ax, masks[index])
    ax.set_axis_off()
    ax.set_title(title, fontsize=8, loc="center", pad=3)
    if boxes:
        for left, top, right, bottom in voc.test.targets["boxes"][index].tolist():
            if right > left:
                ax.add_patch(
                    plot.rectangle(left - 0.5, top - 0.5, right - left, bottom - top, "#ffd500")
                )


def draw(fig):
    for ax, index in zip(fig.subplots(1, 5), shown[::2].tolist(), strict=True):
        photograph(ax, index, animals.classes[animals.test.targets[index]], boxes=True)


plot.show(
    draw,
    alt="Five photographs of 64x64 pixels, one for each of cat, cow, dog, horse and sheep. A white line runs around the animals, a yellow "
    "box encloses each.",
    caption=f"Test images with the masks (white outline) and boxes (yellow) of their animals. Data: {voc.provenance}.",
    height=1.7,
)

# %% tags=["nbval-check-output"]
for name, data in (("CIFAR-10", small), ("animals", animals)):
    batch = data.normalize(data.train.images[:1000])
    print(name, "images:", tuple(batch.shape[1:]))
    print("  mean within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
    print("  deviation within 0.1 of 1:", bool(((batch.std((0, 2, 3)) - 1).abs() < 0.1).all()))

# %% [markdown]
# ## Training
#
# First the test that every network must pass: one batch by heart.

# %% tags=["nbval-check-output"]
train.set_seed(0)
last = train.overfit(small_network("channel first"), small, images=32, lr=0.1)
print("32 images learned by heart, loss below 0.1:", last < 0.1)

# %% [markdown]
# Then ResNet-20 with CBAM in each of its nine blocks, on CIFAR-10 at 16x16 pixels, by the course's recipe for few epochs.

# %%
train.set_seed(0)
model = small_network("channel first")
length, shift = pick(full=2, quick=1), train.Augment(shift=2)
history = train.fit(
    model, small, train.SHORT, epochs=length, augment=shift, label="CBAM-ResNet-20"
)
logits = train.predict(model, small, small.test.images)
Table(
    [
        {
            "network": "CBAM-ResNet-20",
            "test accuracy in %": 100 * metrics.accuracy(logits, small.test.targets),
            "parameters": inspect.count_parameters(model),
            "million multiply-adds": inspect.count_macs(model, (3, 16, 16)) / 1e6,
            "seconds of training": history.last("seconds"),
            "data": history.data,
        }
    ],
    decimals=1,
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    ax.plot(*zip(*history.losses, strict=True), "o-", markersize=3)
    ax.set(xlabel="step", title="training loss")


plot.show(
    draw,
    alt="Training loss of CBAM-ResNet-20 over the steps of its training.",
    caption=f"CBAM-ResNet-20 learns. Each dot averages 10 steps. Data: {history.data}.",
    height=2.4,
)

# %% [markdown]
# One more network is trained once and kept: a small one that names what is on a photograph. The gallery and
# [chapter 15](15_grad_cam) look into it, beside those of the other chapters.


# %% tags=["model"]
def named_network():
    """ResNet-8 with CBAM for the pictures and classes of `helpers.naming`."""
    return attend(resnet.CifarResNet(8, classes=len(naming.CLASSES)), unit("channel first"))


TRAINED = Weights(
    "07_cbam",
    naming.NAMED,
    build=named_network,
    train=naming.learn,
    data=naming.small_pictures,
    title="CBAM",
    layer="layer3",
    score=naming.logit_of,
    size=64,
)

# %% [markdown]
# ## Results: the paper beside ours
#
# What does each half contribute, and does the order matter? A study trained the same ResNet-20 without attention and
# with five kinds of it, four times each, with the same first weights of the network and the same batches.

# %% tags=["model"]
MEASURED = ("train_loss", "train_error", "test_loss", "test_accuracy")


def train_arm(data, *, seed, kind, epochs=1):
    """One training of the study, by the recipe of chapter 2."""
    train.set_seed(seed)
    history = resnet.train_small(small_network(kind), data, epochs, seed, label=kind)
    return {name: history.last(name) for name in MEASURED}


def part_of_cifar10():
    """30,000 training images and all test images of CIFAR-10 at 16x16 pixels."""
    return resnet.at_16_pixels(cifar10(train=30_000))


STUDY = Study("07_cbam", run=train_arm, arms=ARMS, data=part_of_cifar10, seeds=(0, 1, 2, 3))


# %% jupyter={"source_hidden": true} tags=["hide-input"]
built = {kind: small_network(kind) for kind in ARMS}
PAPER_R50 = {
    "none": 24.6,
    "SE": 23.1,
    "channel only": 22.8,
    "channel first": 22.7,
    "spatial first": 22.8,
}
Table(
    {
        "attention": kind,
        "paper, ResNet-50: error in %, about": f"{PAPER_R50[kind]}"
        if kind in PAPER_R50
        else "",
        "ours, ResNet-20: error in %": STUDY.text(
            kind, "test_accuracy", to=lambda accuracy: 100 * (1 - accuracy)
        ),
        "training loss": STUDY.text(kind, "train_loss", decimals=3),
        "parameters": inspect.count_parameters(built[kind]),
        "multiply-adds": inspect.count_macs(built[kind], (3, 16, 16)),
    }
    for kind in ARMS
)

# %% [markdown]
# The paper's column is from its Tables 1 and 3, on ImageNet; ours is from small images, after one epoch. **The costs** are
# not equal, and cannot be: SE and "channel only" have exactly the same parameters, and the two orders as well; the others
# differ by up to some 5 % in parameters and 4 % in multiply-adds, and by much more in seconds.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    STUDY,
    list(ARMS),
    "test_accuracy",
    "test accuracy in %",
    scale=100,
    alt="Dot plot of the test accuracy of ResNet-20 without attention and with five kinds of it, four dots and a mean each.",
    caption="The same network and batches, without attention and with five kinds of it.",
)

# %% [markdown]
# ## The paper's claim in miniature
#
# Differences between two arms, seed by seed, signed so that the paper predicts a positive number. The verdict comes from the
# 95 % interval of the mean difference: *seen* above zero, *reversed* below, *too small to matter* if it lies within half a
# point of zero, and else *not clear*. Half a point, about the lead of CBAM over SE in the paper's Table 4, is the smallest
# effect that would matter here. Claims named before the runs are primary and carry Holm's correction for their number; all
# others are marked exploratory.

# %% tags=["model"]
CLAIMS = Claims(
    STUDY,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    also={
        "SE helps": ("none", "SE"),
        "channel attention helps": ("none", "channel only"),
        "spatial attention alone helps": ("none", "spatial only"),
        "CBAM helps": ("none", "channel first"),
        "the maximum adds to the average": ("SE", "channel only"),
        "the spatial half adds to the channel half": ("channel only", "channel first"),
        "CBAM is better than SE": ("SE", "channel first"),
        "channel first is better than spatial first": ("spatial first", "channel first"),
    },
    about="ResNet-20 with 8 to 32 channels, with five kinds of attention and with none, for one epoch. Costs differ by up "
    "to some 5 % in parameters.",
)

# %%
CLAIMS.table()

# %% [markdown]
# **Here the claim is not just unclear, it is reversed.** With CBAM, in either order, ResNet-20 loses almost three
# points on average, and some at every seed. Its training loss is higher as well: it learns more slowly. One kind of
# gate alone costs less than a point on average. The maximum adds nothing that we could see, and the order makes no
# difference that we could see.
#
# Is the paper wrong? Look at how a training starts, with fresh networks that have seen their images once. The last row has
# the first weights of the authors' code: PyTorch's default, which is smaller than He's, and biases of zero.


# %% tags=["model"]
def gates(model, kind, images):
    """The gates of every attention module of a kind, for normalised images: name -> tensor."""
    modules = dict(model.named_modules())
    inputs = inspect.watch(model, kind, images, lambda given, _: given)
    with evaluating(model), torch.inference_mode():
        return {name: modules[name].gate(given) for name, given in inputs.items()}


def weights_of_the_authors(model):
    """First weights of channel attention as in the authors' code, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, ChannelAttention):
            for layer in (module.fc1, module.fc2):
                layer.reset_parameters()
                nn.init.zeros_(layer.bias)
    return model


# %%
first_images = small.normalize(small.train.images[:500])
starts = {
    "SE": small_network("SE"),
    "channel only": small_network("channel only"),
    "CBAM": small_network("channel first"),
    "CBAM, first weights of the authors": weights_of_the_authors(
        small_network("channel first")
    ),
}
rows = []
for name, fresh in starts.items():
    found = gates(settled(fresh, first_images), SqueezeExcitation, first_images)
    found = torch.cat([gate.flatten(1) for gate in found.values()], 1)
    rows.append(
        {
            "channel gates at step 0": name,
            "mean": float(found.mean()),
            "below 0.1, %": 100 * float((found < 0.1).float().mean()),
            "above 0.9, %": 100 * float((found > 0.9).float().mean()),
        }
    )
Table(rows, decimals={"mean": 2, "below 0.1, %": 0, "above 0.9, %": 0})

# %% [markdown]
# Two things happen at step 0. The spatial gates are one half and the channel gates one half on average, so that a block
# adds about a quarter of what it would. And where the gate is told a maximum and has He's weights, more than a third of
# the gates are nearly open or nearly shut before anything was learned: the maximum of a normalised channel is a large
# number and goes through the same layers as the average, which is near zero. The authors' weights do not do that. The
# choice was ours.
#
# Our training has 234 steps to make up for its start; 100 epochs of ImageNet in batches of 256 have 500,000. If the
# strength of the branch is the reason, then branches that are multiplied by a *fixed* 1/4, without any attention, must
# lose as much. A second study trained that network with the same seeds.


# %% tags=["model"]
class Times(nn.Module):
    """The input times a fixed number: a gate that knows nothing and learns nothing."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def train_shrunk(data, *, seed, factor, epochs=1):
    """One training of ResNet-20 whose branches are multiplied by `factor`."""
    train.set_seed(seed)
    model = attend(resnet.CifarResNet(20, width=8), lambda channels: Times(factor))
    history = resnet.train_small(model, data, epochs, seed, label=f"times {factor}")
    return {name: history.last(name) for name in MEASURED}


SHRUNK = Study(
    "07_cbam",
    run=train_shrunk,
    arms={"times 1/4": {"factor": 0.25}},
    data=part_of_cifar10,
    seeds=STUDY.seeds,
    name="shrunk",
)
SHRUNK_CLAIMS = Claims(
    (SHRUNK, STUDY),
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    also={
        "a fixed 1/4 costs accuracy as well": ("times 1/4", "none"),
        "CBAM is better than a fixed 1/4": ("times 1/4", "channel first"),
    },
    about="A control of ours: branches times a fixed 1/4, without any attention.",
)

# %%
SHRUNK_CLAIMS.table()

# %% [markdown]
# They lose even more than CBAM does, or as much: the interval of the second row includes zero. So the first study
# measures the price of a late start, not the worth of attention; CBAM cannot be told from a constant in it.
#
# ### A fair start
#
# A third study gives all gates the same chance, and time. Their second layers start with weights of zero, and with biases by
# which a branch has 0.88 of its strength, whatever the image: one gate of 0.88 with SE, two of 0.94 with CBAM. Beside them
# stands CBAM with two gates of one half. Every arm is trained for thirty epochs with the recipe of
# [chapter 6](06_senet)'s study of starts. Two claims are the paper's, and were named before the first run.


# %% tags=["model"]
STARTS_ARMS = {
    "none": {"kind": "none", "each": 0.5},
    "SE from 0.88": {"kind": "SE", "each": 0.88},
    "CBAM from 0.25": {"kind": "channel first", "each": 0.5},
    "CBAM from 0.88": {"kind": "channel first", "each": 0.94},
}


def start_gates(model, each):
    """Let every gate start at `each`, whatever the image, in place; returns the model."""
    logit = float(torch.tensor(each).logit())
    for module in model.modules():
        if isinstance(module, SqueezeExcitation):  # channel attention, too
            nn.init.zeros_(module.fc2.weight)
            # the bias counts once for each descriptor
            nn.init.constant_(module.fc2.bias, logit / len(getattr(module, "pools", ("avg",))))
        if isinstance(module, SpatialAttention):
            nn.init.constant_(module.bn.bias, logit)
    return model


def train_start(data, *, seed, kind, each, epochs=30):
    """One training of the study of starts."""
    train.set_seed(seed)
    history = train.fit(
        start_gates(small_network(kind), each),
        data,
        epochs=epochs,
        lr=0.3,
        weight_decay=5e-4,
        augment=train.Augment(shift=2),
        evaluate=resnet.with_training_error,
        eval_every=epochs,
        seed=seed,
    )
    return {name: history.last(name) for name in MEASURED}


def all_of_cifar10():
    """All images of CIFAR-10 at 16x16 pixels."""
    return resnet.at_16_pixels(cifar10())


# %% tags=["model"]
STARTS = Study(
    "07_cbam", train_start, STARTS_ARMS, all_of_cifar10, seeds=(0, 1, 2, 3, 4), name="starts"
)
START_CLAIMS = Claims(
    STARTS,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    main={
        "CBAM helps, from a start near one": (
            "none",
            "CBAM from 0.88",
            "Table 4: about 1.9 points",
        ),
        "CBAM is better than SE, from a start near one": (
            "SE from 0.88",
            "CBAM from 0.88",
            "Table 4: about 0.4 points",
        ),
    },
    also={
        "SE helps, from a start near one": ("none", "SE from 0.88"),
        "CBAM helps, from two gates of one half": ("none", "CBAM from 0.25"),
        "a start near one helps CBAM": ("CBAM from 0.25", "CBAM from 0.88"),
    },
    about="The same ResNet-20 for 30 epochs, with branches that start at a quarter of their strength or near one.",
)

# %%
START_CLAIMS.table()

# %% [markdown]
# The column of seeds says how much of this study is measured. Until both claims have a verdict, the chapter does not say
# whether CBAM helps at this scale.
#
# The studies were measured once. To be sure that their code still runs, each arm trains here for a moment on 128 images,
# and the result is thrown away.

# %% tags=["nbval-check-output"]
few = resnet.at_16_pixels(cifar10(train=128, test=100))
rehearsed = {**STUDY.rehearse(few), **SHRUNK.rehearse(few)}
print("all arms of the studies run:", len(rehearsed) == len(ARMS) + 1)
shortened = {
    arm: train_start(few, seed=0, epochs=1, **start) for arm, start in STARTS_ARMS.items()
}
print("all arms of the study of starts run:", shortened.keys() == STARTS.arms.keys())

# %% [markdown]
# ## Does it look at the animal?
#
# The paper's second claim is about *where*. It shows Grad-CAM pictures (chapter 15) in which networks with CBAM cover
# the object better than networks without. It also asks people: for 50 images, they see the regions in which the Grad-CAM
# of two networks exceeds 0.6 of its range, and prefer the one with CBAM.
#
# With masks we can measure instead. Three networks learn to name the largest animal
# of a photograph from its label alone: ResNet-8 as it is, with SE, and with CBAM.


# %% tags=["model"]
def animal_network(kind, width=16):
    """ResNet-8 for (N, 3, 64, 64). With stride 2 in its first convolution, its stages have 32,
    16, 8 positions a side."""
    model = resnet.CifarResNet(8, width=width, classes=5)
    model.conv1.stride = (2, 2)
    return attend(model, unit(kind))


# %%
KINDS = {"ResNet-8": "none", "with SE": "SE", "with CBAM": "channel first"}
networks, animal_histories = {}, {}
for name, kind in KINDS.items():
    train.set_seed(0)
    networks[name] = animal_network(kind)
    animal_histories[name] = train.fit(
        networks[name],
        animals,
        epochs=pick(full=10, quick=1),
        batch_size=32,
        lr=0.05,
        augment=train.Augment(shift=6),
        eval_every=pick(full=2, quick=1),
        label=name,
    )
frequent = animals.test.targets.bincount().max() / len(animals.test)
print(f"always the most frequent class: {100 * frequent:.1f} % right")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.histories(
    animal_histories,
    alt="Training loss and test accuracy of ResNet-8, with SE and with CBAM, over the epochs of training on animals.",
    caption="Three networks learn to name an animal.",
)

# %% [markdown]
# ### Energy inside the mask
#
# Take a map of gates, subtract its minimum, and ask: which share of what is left lies on animals? A map that knows
# nothing spreads evenly. Its share is the **area** of the animals, so area is the first baseline. But photographers put
# animals in the middle, so any map that is bright in the middle beats the area. Hence a second baseline: the map of
# **another image** of the test set. Only what lies above both has been seen in this image.


# %% tags=["model"]
def share_inside(maps, masks):
    """The share of each map (N, H, W) that lies on animals, (N,); void pixels (255) do not
    count."""
    animal = (masks > 0) & (masks < 255)
    inside, everywhere = (maps * animal).sum((1, 2)), (maps * (masks < 255)).sum((1, 2))
    return inside / everywhere  # nan for a map that is zero everywhere


def filled(boxes, side=64):
    """Boxes (N, M, 4) as masks (N, side, side): 1 where the middle of a pixel is inside one of
    them."""
    middle = torch.arange(side) + 0.5
    columns = (boxes[..., 0:1] <= middle) & (middle < boxes[..., 2:3])  # (N, M, side)
    rows = (boxes[..., 1:2] <= middle) & (middle < boxes[..., 3:4])
    return (rows[..., :, None] & columns[..., None, :]).any(1).to(torch.uint8)


def region(maps, threshold=0.6):
    """Where maps (N, H, W) exceed a threshold of their own range, as 0 and 1: what the paper's
    user study showed."""
    return (cam.unit_range(maps) > threshold).float()


def enlarged(maps, side=64):
    """Maps (N, 1, h, w) in the size of the photographs: (N, side, side)."""
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)[:, 0]


# %% [markdown]
# A check with maps whose answer we know, before we trust it:

# %% tags=["nbval-check-output"]
toy_mask = torch.zeros(1, 8, 8)
toy_mask[0, :4, :4] = 3  # a dog in the upper left quarter
toy_mask[0, 4] = 255  # void
even, on_it = torch.ones(1, 8, 8), (toy_mask == 3).float()
print("even map: the area, 16 of 56:", bool(share_inside(even, toy_mask) == 16 / 56))
print("map on the dog:", share_inside(on_it, toy_mask).item())
ramp = torch.linspace(5, 6, 11).view(1, 1, 11)
print("above 0.6 of the range:", region(ramp)[0, 0].int().tolist())

# %% [markdown]
# And the third baseline, untrained networks. As they are, all spatial gates are one half. So their scales are set to one.

# %%
untrained = {}
for name, kind in KINDS.items():
    train.set_seed(0)
    untrained[name] = animal_network(kind)
    for module in untrained[name].modules():
        if isinstance(module, SpatialAttention):
            nn.init.ones_(module.bn.weight)
    settled(untrained[name], animals.normalize(animals.train.images[:500]))
photos = animals.normalize(animals.test.images[seen])
area = share_inside(torch.ones_like(photos[:, 0]), masks[seen])
BLOCKS = {"block 1, 32x32": "layer1", "block 2, 16x16": "layer2", "block 3, 8x8": "layer3"}


def block_gates(model):
    """The spatial gates of the three blocks: label -> (N, 1, h, w)."""
    return dict(zip(BLOCKS, gates(model, SpatialAttention, photos).values(), strict=True))


# %%
def mean_and_error(values):
    """Mean over images and its standard error, in percent, as text; maps that are zero
    everywhere left out."""
    values = 100 * values[~values.isnan()]
    return f"{values.mean():.1f} ± {values.std() / len(values) ** 0.5:.1f}"


where_it_looks = block_gates(networks["with CBAM"])
at_random = block_gates(untrained["with CBAM"])
rows = []
for block, found in where_it_looks.items():
    maps, random_maps = enlarged(found), enlarged(at_random[block])
    own, other = (share_inside(cam.unit_range(m), masks[seen]) for m in (maps, maps.roll(1, 0)))
    rows.append(
        {
            "spatial gates of": block,
            "inside animals, %": mean_and_error(own),
            "above the area": mean_and_error(own - area),
            "above another image's map": mean_and_error(own - other),
            "untrained, above the area": mean_and_error(
                share_inside(cam.unit_range(random_maps), masks[seen]) - area
            ),
            "smallest, largest gate": f"{maps.min():.2f}, {maps.max():.2f}",
        }
    )
print(f"area of the animals: {mean_and_error(area)} % of the image, {len(seen)} test images")
Table(rows)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
FULL = (-0.5, 63.5, 63.5, -0.5)  # a map of any resolution over the whole photograph
five = shown[1::2]
places = [(seen == index).nonzero().item() for index in five.tolist()]


def draw_maps(fig, rows_of_maps):
    """Five photographs above one row of maps (N, 1, h, w) for each label, with outlines."""
    axes = fig.subplots(1 + len(rows_of_maps), len(five))
    for column, index in enumerate(five.tolist()):
        photograph(axes[0, column], index, animals.classes[animals.test.targets[index]])
        for ax, (label, maps) in zip(axes[1:, column], rows_of_maps.items(), strict=True):
            ax.imshow(
                maps[places[column], 0], cmap="inferno", interpolation="nearest", extent=FULL
            )
            outline(ax, masks[index])
            ax.set_axis_off()
            if column == 0:
                place = dict(transform=ax.transAxes, rotation=90, ha="right", va="center")
                ax.text(-0.08, 0.5, label.replace(", ", "\n"), fontsize=8, **place)


plot.show(
    lambda fig: draw_maps(fig, where_it_looks),
    alt="Five photographs with the outlines of their animals, and below each the spatial gates of the three blocks as heat maps with the "
    "same outlines.",
    caption="The spatial gates of the network with CBAM. Bright: large gate; each map has its own range. White: outline of the animals. "
    f"Data: {voc.provenance}.",
    width=5.2,
    height=4.2,
)

# %% [markdown]
# Read the table from left to right; the ± is the standard error over the images. The gates' energy on animals is within
# four points of the area, above it or below. And the map of *another* photograph fits just as well (the next column): these
# gates have not found the animal in this image. And in blocks 2 and 3 the **untrained** network has more energy on the
# animals than the trained one.
#
# So for your guess at the beginning, the answer of this small network is: neither. It is also a weak classifier, not far
# above the share of the most frequent class. A network of 100 epochs on a million images may do better. The measure is
# here for you to find out; a heat map on one well-chosen photograph is not.

# %% [markdown]
# ### Grad-CAM with and without attention
#
# The gates are a part of the network; Grad-CAM [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] asks what its answer rests on. Here is the
# paper's comparison as a measurement: Grad-CAM for the true class at the last stage (8x8 positions), its share inside
# the masks and inside the boxes of the animals, and the share of the region above 0.6 of its range, the one that was shown to people.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
truth = animals.test.targets[seen]
boxes = filled(voc.test.targets["boxes"][seen])
evidence = {
    name: cam.grad_cam(network, "layer3", photos, truth)[:, None]  # (N, 1, 8, 8)
    for name, network in networks.items()
}
rows = []
for name, found in evidence.items():
    maps = enlarged(found)
    energy = share_inside(maps, masks[seen])
    at_first = cam.grad_cam(untrained[name], "layer3", photos, truth)[:, None]
    rows.append(
        {
            "network": name,
            "test accuracy in %": 100 * animal_histories[name].last("test_accuracy"),
            "energy inside masks, %": mean_and_error(energy),
            "above the area": mean_and_error(energy - area),
            "untrained, above the area": mean_and_error(
                share_inside(enlarged(at_first), masks[seen]) - area
            ),
            "inside boxes, %": mean_and_error(share_inside(maps, boxes)),
            "region > 0.6 inside masks, %": mean_and_error(
                share_inside(region(maps), masks[seen])
            ),
            "parameters": inspect.count_parameters(networks[name]),
        }
    )
box_area = share_inside(torch.ones_like(photos[:, 0]), boxes)
print(f"area of masks: {mean_and_error(area)} %, of boxes: {mean_and_error(box_area)} %")
Table(rows, decimals=1)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.show(
    lambda fig: draw_maps(fig, evidence),
    alt="Five photographs with the outlines of their animals, and below each the Grad-CAM of ResNet-8, with SE and with CBAM as heat "
    "maps with the same outlines.",
    caption="Grad-CAM for the true class at the last stage. White: outline of the animals. Each map has its own range; a black one holds no "
    "evidence. "
    f"Data: {voc.provenance}.",
    width=5.2,
    height=4.2,
)

# %% [markdown]
# The energy of all three is within a few points of the area. The shares are larger with gates than without, as the paper
# would have it. But the **untrained** networks are two to three points above the area, too; SE, which cannot weigh
# positions at all, gains about as much as CBAM; and this is one training of each network, while the ± is over images. So
# this is no evidence that attention looks at the object. (A Grad-CAM that is zero everywhere has no share and is left out.)

# %% [markdown]
# ### Detection
#
# The paper also replaces the network inside detectors: Faster R-CNN on MS COCO, and a single-shot detector on VOC 2007. It
# reports a higher average precision with CBAM on both. Chapters 13 and 14 explain detectors; we did not repeat this.

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# Back to CIFAR-10, and the network of the training section.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.mistakes(model, small, logits, "layer2", count=7)

# %% [markdown]
# ### What the answer rests on
#
# The ten images of every chapter, with Grad-CAM at the end of stage 2, and the control: the same network before training.

# %%
train.set_seed(0)
fresh = settled(small_network("channel first"), first_images)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.evidence(
    {"trained": model, "untrained": fresh},
    small,
    "layer2",
    "Grad-CAM at the end of stage 2 (8x8 positions) for the class that each network predicts.",
)

# %% [markdown]
# ### The gates over depth
#
# The gates of the positions all start at one half, those of the channels wherever random weights put them. Where has
# training moved them? For each of the nine blocks, before and after training: the mean gate, and how much the gates differ
# within an image, from channel to channel or from position to position. And the question that matters for *attention*: do
# they depend on the image, or has the network just learned a constant? For that, the spread of one and the same gate from
# image to image.

# %%
sample = small.normalize(small.test.images[:500])
rows = []
for when, network in (("trained", model), ("untrained", fresh)):
    for kind, name in ((ChannelAttention, "channel"), (SpatialAttention, "position")):
        for module, found in gates(network, kind, sample).items():
            stage, block = module.split(".")[:2]
            found = found.flatten(1)  # images x gates
            rows.append(
                {
                    "network": f"{when}, per {name}",
                    "block": f"{stage[-1]}.{block}",
                    "mean": float(found.mean()),
                    "within": float(found.std(1).mean()),
                    "between": float(found.std(0).mean()),
                }
            )

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.panels(
    rows,
    "block",
    {
        "mean": "mean gate",
        "within": "spread within an image",
        "between": "spread between images",
    },
    label="network",
    alt="Three line charts over the nine blocks of CBAM-ResNet-20: mean gate, spread within an image, and spread of one gate from "
    "image to image; a line each for channel gates and position gates, trained and untrained.",
    caption="The gates of CBAM-ResNet-20, trained and untrained, 500 test images: one gate per channel, or one per position. "
    f"Data: {small.provenance}.",
)

# %% [markdown]
# Channels (blue, before training green): within an image the trained gates differ as much as they can, but in most
# blocks one and the same gate does not change from image to image at all. They are open or shut, a constant; the untrained
# gates, which random weights drive, react more to the image. So a spread between channels is no sign of attention.
# Positions (orange, before training pink): the gates have left one half, and vary most in the first block.

# %% [markdown]
# ### Are the two descriptors different in a trained network?
#
# In the first section, needle and haze were made to differ. Here are the average and the maximum of real channels: the
# inputs of the channel gates in the first and the last block, one dot for each channel of 40 images.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    trained, before = (
        list(inspect.watch(network, ChannelAttention, sample[:40], lambda x, _: x).values())
        for network in (model, fresh)
    )
    for ax, name, place in zip(
        fig.subplots(1, 2), ("block 1.0", "block 3.2"), (0, -1), strict=True
    ):
        pairs = [
            torch.stack([DESCRIPTORS[pool](found[place]).flatten() for pool in ("avg", "max")])
            for found in (trained, before)
        ]
        together, at_first = (float(torch.corrcoef(pair)[0, 1]) for pair in pairs)
        ax.plot(*pairs[0], ".", markersize=3, alpha=0.5)
        ax.set(
            xlabel="average",
            title=f"{name}: r = {together:.2f} (untrained {at_first:.2f})",
        )
    fig.axes[0].set_ylabel("maximum")


plot.show(
    draw,
    alt="Two scatter plots of the maximum of a channel against its average, in the first and in the last block of CBAM-ResNet-20; the "
    "correlation stands above each, with that of the untrained network.",
    caption=f"What the channel gates are told. r is the correlation over all channels and 40 images. Data: {small.provenance}.",
)

# %% [markdown]
# In the first block, where a map has 16x16 positions, the two say different things. In the last, on 4x4 positions, they say
# much the same. Small maps alone do not explain that: before training the correlation is about 0.4 in both blocks.

# %% [markdown]
# ## Play: what the gates see, and what they do
#
# Choose a photograph and a block of the network with CBAM. Above: the photograph, the two pictures that the spatial half
# gets, and the gates that it makes of them. Below: the gate of each channel, sorted, and what it would be if the two
# layers were told the average alone or the maximum alone.
#
# Look for a case in which the average or the maximum shows the animal and the gates do not. Then compare the orange
# and grey marks: which of the two descriptors moves the gates? The table below the figure answers.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def explain(network, index):
    """All that one frame shows, for each block: pictures, gates, and gates by descriptor."""
    image = animals.normalize(animals.test.images[index : index + 1])
    told = inspect.watch(
        network, (ChannelAttention, SpatialAttention), image, lambda given, _: given
    )
    modules, found = dict(network.named_modules()), {}
    with torch.inference_mode():
        answer = network(image).softmax(1)[0]
        for block, stage in BLOCKS.items():
            channel, spatial = f"{stage}.0.bn2.1.channel", f"{stage}.0.bn2.1.spatial"
            mlp = modules[channel].mlp
            logits_of = {
                pool: mlp(DESCRIPTORS[pool](told[channel])).flatten() for pool in DESCRIPTORS
            }
            found[block] = {
                "pictures": modules[spatial].describe(told[spatial])[0],
                "gates": modules[spatial].gate(told[spatial])[0, 0],
                "channels": {pool: value.sigmoid() for pool, value in logits_of.items()}
                | {"both": sum(logits_of.values()).sigmoid()},
                "answer": answer,
            }
    return found


chosen = {animals.classes[animals.test.targets[i]]: i for i in shown[[1, 5, 7]].tolist()}
explained = {name: explain(networks["with CBAM"], index) for name, index in chosen.items()}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_channel_gates(ax, found):
    """Bars for the gates from both descriptors, sorted, and marks for each descriptor alone."""
    order = found["both"].argsort(descending=True)
    places = range(len(order))
    ax.bar(places, found["both"][order], color="C0", alpha=0.7, label="both")
    ax.plot(places, found["max"][order], "o", color="C1", markersize=3, label="maximum alone")
    ax.plot(
        places, found["avg"][order], "x", color="#555555", markersize=3, label="average alone"
    )
    ax.set(ylim=(0, 1), xlim=(-1, len(order)))
    ax.set_xticks([])
    ax.set_title("gates of the channels", fontsize=8)
    ax.legend(ncols=3, fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.96))


def draw_attention(fig, name, block):
    found, index = explained[name][block], chosen[name]
    above, below = fig.subfigures(2, 1, height_ratios=(1.5, 1))
    axes = above.subplots(1, 4)
    confidence, said = found["answer"].max(0)
    photograph(axes[0], index, f"says {animals.classes[said]}, {100 * confidence:.0f} %")
    pictures = {
        "average": found["pictures"][0],
        "maximum": found["pictures"][1],
        "gates": found["gates"],
    }
    for ax, (title, picture) in zip(axes[1:], pictures.items(), strict=True):
        ax.imshow(picture, cmap="inferno", interpolation="nearest", extent=FULL)
        outline(ax, masks[index])
        ax.set_title(title, fontsize=8, loc="center", pad=3)
        ax.set_axis_off()
    axes[3].set_title(
        f"gates, {found['gates'].min():.2f} to {found['gates'].max():.2f}",
        fontsize=8,
        loc="center",
        pad=3,
    )
    draw_channel_gates(below.subplots(), found["channels"])


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def describe_attention(name, block):
    found = explained[name][block]
    inside = share_inside(
        cam.unit_range(enlarged(found["gates"][None, None])), masks[chosen[name]][None]
    )
    own_area = share_inside(torch.ones(1, 64, 64), masks[chosen[name]][None])
    return (
        f"Photograph of a {name}, {block}: photograph, average and maximum over the channels, "
        f"spatial gates, and channel gates. {100 * inside.item():.0f} % of the gates' energy "
        f"lies on animals, which fill {100 * own_area.item():.0f} % of the image."
    )


# %%
Explorable(
    draw_attention,
    (tuple(chosen), tuple(BLOCKS)),
    ("photograph", "block"),
    alt=describe_attention,
    caption="Above: a photograph with the outline of its animals, what the spatial half is "
    "told, and the gates it makes. Below: the channel gates (bars), and what they would be "
    "with the maximum or the average alone.",
    key="cbam-attention",
    size=(5.0, 2.7),
)


# %%
def pull_of_descriptors(network, images):
    """Mean size of what the two layers make of the average and of the maximum, over all gates."""
    modules, sizes = dict(network.named_modules()), {pool: [] for pool in DESCRIPTORS}
    for name, given in inspect.watch(network, ChannelAttention, images, lambda x, _: x).items():
        for pool, describe in DESCRIPTORS.items():
            with torch.inference_mode():
                sizes[pool].append(modules[name].mlp(describe(given)).abs().flatten())
    return {pool: float(torch.cat(values).mean()) for pool, values in sizes.items()}


sizes = {
    "animals, untrained": pull_of_descriptors(untrained["with CBAM"], photos),
    "animals, trained": pull_of_descriptors(networks["with CBAM"], photos),
    "CIFAR-10, untrained": pull_of_descriptors(fresh, sample),
    "CIFAR-10, trained": pull_of_descriptors(model, sample),
}
Table({"network with CBAM": name} | pull for name, pull in sizes.items())

# %% [markdown]
# The maximum does, before training and after it: a normalised channel has an average near zero and a maximum of one to
# six (the figure above), and both go through the same weights.
#
# In the network for CIFAR-10 both have grown until a gate can only be open or shut. Its recipe for few epochs moves the
# small layers of a gate as fast as large ones; the network for animals has another recipe, and its gates have not grown.
# Whether the recipe is the cause, we have not tested.

# %% [markdown]
# Swap the gates yourself, those of the channels and those of the places apart.
#
# *Predict first.* Give the picture the *places* of another one, where the animal stands elsewhere. Then the *channels* of another one. Which
# does the network mind more?
#
# <div class="live" data-figure="gates" data-network="CBAM">In the book, the network itself runs here, in your browser.</div>

# %% [markdown]
# ## When to use it today, and what came after
#
# CBAM is a few lines and fits behind any convolution. Four cautions before you add it:
#
# - **Measure it with several seeds.** Gains of a few tenths of a point are smaller than the difference between two
#   trainings of the same network.
# - **Look at its start.** Gates that shrink what they multiply, or are shut before anything is learned, cost time.
# - **Measure seconds, not parameters.** The table of costs above shows why.
# - **Do not read its maps as explanations** unless you have measured that they find what you think they find. We did.
#
# What came after:
#
# - **Cheaper gates.** ECA [[Wang et al., 2020a](../pages/bibliography.md#wang2020eca)] replaces the two layers by a small convolution over the channels.
#   **Coordinate attention** [[Hou et al., 2021](../pages/bibliography.md#hou2021coordinate)] averages over rows and over columns, so that a channel gate knows
#   where.
# - **YOLOv4** [[Bochkovskiy et al., 2020](../pages/bibliography.md#bochkovskiy2020yolov4)] uses a spatial gate that is computed at each position, without pooling.
# - **Self-attention** [[Vaswani et al., 2017](../pages/bibliography.md#vaswani2017attention)]. Here a gate weighs what is already at a position; there a position
#   fetches from all the others. The name is the same, the operation is not.

# %% [markdown]
# ## Exercises
#
# **1. (quick)** How many parameters does CBAM add to a block with 256 channels, for $r = 16$?
#
# <details><summary>Answer</summary>
#
# Two layers: 256 · 16 + 16 · 256 = 8,192 weights, 16 + 256 = 272 biases. The spatial half: 98 weights and 2 numbers of
# the batch normalisation. Together 8,564.
#
# </details>
#
# **2. (quick)** A colleague shows you a spatial map whose energy lies on the dog to 55 %. What do you ask?
#
# <details><summary>Answer</summary>
#
# How large is the dog? If it fills half of the image, 55 % is next to nothing. Then: what does the map of another image
# give on this mask, and what does an untrained network give? And how many images is it?
#
# </details>
#
# **3. (code)** Count the parameters of CBAM-ResNet-50 without building CBAM: start from the 25,557,032 of ResNet-50 and
# add what each of its blocks gets. A block of stage $i$ has $4 \cdot 64 \cdot 2^{i-1}$ channels at the end.


# %% jupyter={"source_hidden": true} tags=["hide-cell"]
def check_cbam_count(count):
    for r, parameters in {16: 28_089_624, 8: 30_605_512}.items():
        with torch.device("meta"):
            built = cbam_resnet(50, lambda channels, r=r: CBAM(channels, r))
        assert inspect.count_parameters(built) == parameters
        got = count((3, 4, 6, 3), r)
        assert got == parameters, f"r = {r}: it has {parameters:,}, you counted {got:,}."


# %%
def count_by_hand(blocks, r):
    raise NotImplementedError


attempt(check_cbam_count, count_by_hand)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def cbam_count_solution(blocks, r):
    total = 25_557_032
    for stage, number in enumerate(blocks):
        channels = 256 * 2**stage
        hidden = channels // r
        layers = 2 * channels * hidden + hidden + channels
        total += number * (layers + 2 * 7 * 7 + 2)
    return total


verify(check_cbam_count, cbam_count_solution)

# %% [markdown]
# **4. (code)** Turn the user study into a number that needs no people: the **pointing game** [[Zhang et al., 2018a](../pages/bibliography.md#zhang2018excitation)].
# A map scores a hit when its largest value lies on an animal. Return the share of hits over the images. Void pixels
# count neither way: take the largest value among the others.


# %% jupyter={"source_hidden": true} tags=["hide-cell"]
def check_pointing(pointing_game):
    maps, masks = torch.zeros(5, 8, 10), torch.zeros(5, 8, 10, dtype=torch.uint8)
    masks[:, 2:6, 2:6] = torch.tensor([1, 5, 3, 1, 1], dtype=torch.uint8)[:, None, None]
    masks[:, 1] = 255
    # on animals, but one
    spots = (
        (0, 3, 3, 1.0),
        (1, 4, 2, 1.0),
        (2, 1, 9, 1.0),
        (2, 4, 4, 0.5),
    )
    for image, row, column, value in (*spots, (3, 7, 7, 1.0), (4, 1, 0, 1.0), (4, 0, 0, 0.5)):
        maps[image, row, column] = value
    given = maps.clone()
    alone = [float(pointing_game(maps[i : i + 1], masks[i : i + 1])) for i in range(5)]
    assert alone[0] == 1 and alone[3] == 0, "a hit is 1, a miss is 0."
    assert alone[1] == 1, (
        "masks hold the class of the animal, 1 to 5; each of them is an animal."
    )
    assert alone[2] == 1 and alone[4] == 0, "void pixels (255) do not take part."
    assert abs(float(pointing_game(maps, masks)) - 0.6) < 1e-6, "return the share of hits."
    assert abs(float(pointing_game(maps - 2, masks)) - 0.6) < 1e-6, "maps may be negative."
    assert torch.equal(maps, given), "leave the maps as they are."


# %%
def pointing_game(maps, masks):
    raise NotImplementedError


attempt(check_pointing, pointing_game)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def pointing_solution(maps, masks):
    void = masks == 255
    largest = maps.masked_fill(void, float("-inf")).flatten(1).argmax(1, keepdim=True)
    animal = ((masks > 0) & ~void).flatten(1)
    return animal.gather(1, largest).float().mean()


verify(check_pointing, pointing_solution)

# %% [markdown]
# With it, the three networks and the gates of the three blocks:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
Table(
    [
        {"map": name, "hits in %": 100 * float(pointing_solution(enlarged(maps), masks[seen]))}
        for name, maps in (
            *((f"Grad-CAM, {name}", maps) for name, maps in evidence.items()),
            *((f"gates, {name}", maps) for name, maps in where_it_looks.items()),
        )
    ],
    decimals=1,
)

# %% [markdown]
# Compare with the share of hits of a random position, which is the mean area, printed above the table of the gates'
# energy. And score the map of another image on the same masks as well.
#
# **5. (open)** Is sequential better than parallel? `small_network("parallel")` builds the third order. Train it and
# "channel first" with `train_start` for five epochs and four seeds, and compare. How many seeds would you need?

# %% [markdown]
# ## Recap
#
# - Channel attention is squeeze-and-excitation that is told the maximum as well: the average sees the haze, the maximum
#   the needle. The two descriptors share two layers, so this costs no parameters.
# - Spatial attention gives each position a gate, from the average and the maximum over the channels and one 7x7 filter:
#   98 weights and a batch normalisation, whatever the number of channels.
# - CBAM applies the one, then the other, at the end of a residual branch. The paper finds this order slightly better
#   than the reverse.
# - Look at step 0: two gates of one half leave a quarter of each branch, and with large first weights a gate that is told
#   a maximum is often shut or open. After a few hundred steps CBAM was worse than no attention; so was a fixed quarter.
# - Few parameters do not mean few seconds.
# - An attention map is a claim about where. Test it against the area, against another image's map and against an
#   untrained network.
#
# **Three questions.** Why is what a gate of the branch shuts out not lost? Why can a 7x7 filter be afforded here? Which
# baseline does a map beat that is simply bright in the middle, and which not?

# %%
best = 100 * metrics.accuracy(logits, small.test.targets)
headline(f"CBAM-ResNet-20 at 16x16, test accuracy {best:.1f} %", small.provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VGG: depth from small filters
#
# | | |
# |:--|:--|
# | Paper | K. Simonyan and A. Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, ICLR 2015 [[Simonyan and Zisserman, 2015](../pages/bibliography.md#simonyan2015vgg)] |
# | Claim | Keep everything else fixed and use 3x3 filters only: the deeper network recognises images better. |
# | You need | Convolution, ReLU, cross-entropy and backpropagation. Batch normalisation is a tool here; [a page of chapter 2](02_resnet) explains it. No earlier chapter. |
# | Time | About an hour to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - draw the paper's networks A to E from memory, with every shape and every parameter;
# - say what a stack of 3x3 filters sees, what it costs, and what it gains over one large filter;
# - turn a classifier into a network that accepts an image of any size.
#
# **Before you read on, guess.** VGG-16 has 138 million parameters. What share of them sits in its thirteen
# convolutions: 10 %, 50 % or 90 %? Write your answer down; a cell below settles it.

# %% [markdown]
# ## Setup

# %% tags=["model"]
import time
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers import inspect, metrics, naming, plot, train
from helpers.claims import Claims
from helpers.data import cifar10
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants
from helpers.weights import Weights

# %% [markdown]
# This chapter trains small networks on CIFAR-10 [[Krizhevsky, 2009](../pages/bibliography.md#krizhevsky2009cifar)]: 60,000 photographs of 32x32 pixels in
# ten classes. In the `quick` profile ([how to run it](../pages/how-to-run.md)), and when the photographs are not on your
# machine, it says so and makes do with less.

# %%
started = time.perf_counter()
train.set_seed(0)
data = cifar10(train=pick(full=None, quick=2000), test=pick(full=None, quick=500))

# %% [markdown]
# ## The problem: to recognise a thing, you have to see it
#
# A unit of a convolutional layer sees a window of the image, its **receptive field**. A 3x3 filter on the pixels
# sees 3x3 pixels. Is that enough to tell a cat from a dog?
#
# Let us feel it. The networks below look at the image through a single layer of $k \times k$ filters. What follows
# is a small classifier at each position, and the average of its verdicts. Nothing after the first layer sees any
# further, so $k$ is all that changes.


# %%
def one_look(k, channels=32):
    """A classifier of k x k patches, averaged over the image."""
    return nn.Sequential(
        nn.Conv2d(3, channels, k, padding=k // 2),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


looks = []
for k in (1, 3, 5, 7, 11):
    train.set_seed(0)
    model = one_look(k)
    history = train.fit(model, data, train.SHORT, epochs=1, label=f"{k}x{k} patches")
    macs = inspect.count_macs(model[0], (3, 32, 32))
    accuracy = 100 * history.last("test_accuracy")
    looks.append({"k": k, "test accuracy in %": accuracy, "million multiply-adds": macs / 1e6})
Table(looks, decimals=1)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.panels(
    looks,
    "k",
    ("test accuracy in %", "million multiply-adds"),
    xlabel="side k of the patch that is seen",
    alt="Two line charts against the side k of the patch, 1 to 11. Left, test accuracy rises steeply at first and then "
    "flattens. Right, multiply-adds of the first layer grow with the square of k.",
    caption="What a single layer of large filters buys, and what it costs. One pass over the training images each. "
    f"Data: {data.provenance}.",
)

# %% [markdown]
# Seeing more helps, here up to 5x5 pixels, and it is expensive: the cost of a layer grows with $k^2$. The networks that led in 2012 and 2013
# paid that price with first layers of 11x11 [[Krizhevsky et al., 2012](../pages/bibliography.md#krizhevsky2012alexnet)] and 7x7 filters
# [[Zeiler and Fergus, 2014](../pages/bibliography.md#zeiler2014visualizing)]. Is there a cheaper way to see far?

# %% [markdown]
# ## The idea: see far in small steps
#
# Stack 3x3 layers. A unit of the second layer sees 3x3 units of the first, each of which sees 3x3 pixels. Together
# that is 5x5 pixels. Three layers see 7x7.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    for layer in range(4):
        for x in range(-4, 5):
            seen = abs(x) <= 3 - layer
            ax.plot(x, layer, "s", markersize=17, color="C0" if seen else "#dddddd")
            for step in (-1, 0, 1) if layer and seen else ():
                ends = [x, x + step], [layer - 0.14, layer - 0.86]
                ax.plot(*ends, color="C1", linewidth=1, zorder=0)
        side = 2 * layer + 1
        ax.text(4.6, layer, f"sees {side}x{side} pixels" if layer else "pixels", va="center")
    ax.set_yticks(range(4), ["input", "layer 1", "layer 2", "layer 3"])
    ax.set_xticks([])
    ax.set(xlim=(-4.6, 7.4), ylim=(-0.5, 3.5))
    ax.grid(False)
    ax.spines[:].set_visible(False)


plot.show(
    draw,
    alt="Cross-section of three stacked 3-wide layers. One unit of layer 3 is connected to three units of layer 2, "
    "five of layer 1 and seven input pixels.",
    caption="A cut through three 3x3 layers: the one blue unit on top depends on 3, then 5, then 7 positions below it.",
    height=2.6,
)

# %% [markdown]
# The general rule, with pooling in it, needs two numbers per layer. The **jump** $j_l$ is the distance in input
# pixels between two neighbouring units, and the receptive field $r_l$ is what one unit sees:
#
# $$
# \begin{aligned}
# r_l &= r_{l-1} + (k_l - 1)\, j_{l-1}, \\
# j_l &= j_{l-1}\, s_l, \qquad r_0 = j_0 = 1.
# \end{aligned}
# \tag{1.1} $$ <a id="eq-vgg-rf"></a>
#
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $C$ | channels of a layer's input and output | number | `channels` |
# | $k_l$ | side of the filter or pooling window of layer $l$ | number | `kernel` |
# | $s_l$ | stride of layer $l$: 1 for our convolutions, 2 for pooling | number | 2 where the entry is `"M"` |
# | $r_l$ | receptive field of a unit of layer $l$, in pixels | number | `r` |
# | $j_l$ | input pixels between neighbouring units of layer $l$ | number | `j` |
# | $S$ | side to which a training image is rescaled before a crop is cut | number | `S` |
# | $Q$ | side to which a test image is rescaled | number | `Q` |
#
# Now the price. With $C$ channels in and out, three 3x3 layers have $3 \cdot 3^2 C^2 = 27\,C^2$ weights. One 7x7 layer,
# which sees just as far, has $7^2 C^2 = 49\,C^2$. And the stack has three ReLUs where the single layer has one.

# %% tags=["nbval-check-output"]
rows = []
for layers in (1, 2, 3, 4, 5):
    k, C = 2 * layers + 1, 64
    stack = nn.Sequential(*[nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(layers)])
    single = nn.Conv2d(C, C, k, padding=k // 2, bias=False)
    a, b = inspect.count_parameters(stack), inspect.count_parameters(single)
    sees = f"{k}x{k}"
    rows.append(
        {
            "3x3 layers": layers,
            "sees": sees,
            "weights": a,
            "of one k x k layer": b,
            "ratio": a / b,
        }
    )
Table(rows)

# %% [markdown]
# Two layers already save more than a quarter of the weights, three save 45 %: the ratio in the row "7x7" is 27/49. On a
# convolution that keeps the size, every weight is used once per position, so multiply-adds shrink by the same factor.

# %% [markdown]
# ## The smallest piece by hand
#
# A 4x4 image, one 3x3 filter, a border of zeros. The output at a position is the sum of the nine products under the
# filter. That is all that a convolution does (deep learning calls it convolution and does not flip the filter).

# %% tags=["nbval-check-output"]
image = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 1], [2, 0, 1, 0], [1, 1, 0, 2]])
# each pixel's neighbours minus four times itself
kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])

padded = F.pad(image, (1, 1, 1, 1))
by_hand = torch.zeros(4, 4)
for y in range(4):
    for x in range(4):
        by_hand[y, x] = (padded[y : y + 3, x : x + 3] * kernel).sum()
by_torch = F.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
print(by_hand)
print("same as F.conv2d:", torch.equal(by_hand, by_torch))

# %% [markdown]
# ### Why not just use the large filter?
#
# Without a ReLU between them, two 3x3 layers *are* one 5x5 layer. Its filter is the first filter run over the second.
# So the stack can say nothing that a 5x5 filter cannot. It is restricted to 5x5 filters that are made of two 3x3
# filters: 18 numbers instead of 25. The paper calls this a regularisation.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
pixels = torch.randn(1, 1, 12, 12, generator=generator, dtype=torch.float64)
first = torch.randn(1, 1, 3, 3, generator=generator, dtype=torch.float64)
second = torch.randn(1, 1, 3, 3, generator=generator, dtype=torch.float64)

# 5x5: every tap of the second filter leaves a copy of the first
composed = F.conv_transpose2d(second, first)
one_layer = F.conv2d(pixels, composed)
two_layers = F.conv2d(F.conv2d(pixels, first), second)
with_relu = F.conv2d(F.conv2d(pixels, first).relu(), second)
print("one filter of", tuple(composed.shape[2:]))
print("same output as two 3x3 layers:", torch.allclose(two_layers, one_layer))
print("still the same with a ReLU between them:", torch.allclose(with_relu, one_layer))

# %% [markdown]
# The ReLU is what turns the saving into a gain: with it, the stack computes functions that no single layer can.

# %% [markdown]
# ## The networks
#
# The paper's Table 1 is a list of layers, so ours is too. A number is a 3x3 convolution with that many output
# channels, a pair `(channels, kernel)` another filter size, `"M"` a 2x2 max-pooling with stride 2, `"LRN"` the local
# response normalisation explained below. Each convolution has stride 1, keeps the size (padding 1 for 3x3) and is followed by
# a ReLU. From A over B and D to E only the depth grows. C is D with 1x1 filters in three places.

# %% tags=["model"]
CONFIGS = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, (256, 1), "M", *2 * [512, 512, (512, 1), "M"]],
    "D": [64, 64, "M", 128, 128, "M", *3 * [256], "M", *3 * [512], "M", *3 * [512], "M"],
    "E": [64, 64, "M", 128, 128, "M", *4 * [256], "M", *4 * [512], "M", *4 * [512], "M"],
}

# %% [markdown]
# **Local response normalisation** comes from AlexNet [[Krizhevsky et al., 2012](../pages/bibliography.md#krizhevsky2012alexnet)]. It divides each activation by the
# strength of its $n$ neighbouring channels at the same position ($n/2$ is rounded down):
#
# $$ b_i = a_i \Big/ \Big(\kappa + \alpha \sum_{j = i - n/2}^{i + n/2} a_j^2\Big)^{\beta}. $$
#
# AlexNet takes $\kappa = 2$, $n = 5$, $\alpha = 10^{-4}$ and $\beta = 0.75$. The VGG paper tries it once, in A-LRN, and
# drops it.


# %% tags=["model"]
class LocalResponseNorm(nn.Module):
    """AlexNet's normalisation across `n` neighbouring channels of a map (N, C, H, W)."""

    def __init__(self, n=5, kappa=2.0, alpha=1e-4, beta=0.75):
        super().__init__()
        self.n, self.kappa, self.alpha, self.beta = n, kappa, alpha, beta

    def forward(self, a):
        channels = a.shape[1]
        # zeros beyond the first and the last channel
        squares = F.pad(a.square(), (0, 0, 0, 0, self.n // 2, self.n // 2))
        neighbours = sum(squares[:, shift : shift + channels] for shift in range(self.n))
        return a / (self.kappa + self.alpha * neighbours) ** self.beta


# %% [markdown]
# PyTorch has this layer too, and a trap with it: `F.local_response_norm` divides `alpha` by the window size. AlexNet's
# $10^{-4}$ is PyTorch's $5 \cdot 10^{-4}$.

# %% tags=["nbval-check-output"]
a = 30 * torch.randn(2, 8, 4, 4, generator=generator, dtype=torch.float64)
ours = LocalResponseNorm()(a)
for name, alpha in (("alpha x n", 5e-4), ("alpha as printed", 1e-4)):
    theirs = F.local_response_norm(a, 5, alpha=alpha, beta=0.75, k=2.0)
    print(f"equal with {name}:", torch.allclose(ours, theirs))

# %% [markdown]
# The network itself: the convolutions of a configuration, then three fully connected layers. The paper's networks and
# the small ones that we train come from this one class. `batch_norm` was not in the paper; batch normalisation (BN)
# [[Ioffe and Szegedy, 2015](../pages/bibliography.md#ioffe2015batchnorm)] appeared a few months later.


# %% tags=["model"]
class VGG(nn.Module):
    """A configuration as in CONFIGS as a network: images (N, 3, size, size) to logits (N, classes)."""

    def __init__(
        self, config, classes=1000, hidden=4096, size=224, dropout=0.5, batch_norm=False
    ):
        super().__init__()
        layers, channels = [], 3
        for entry in config:
            if entry == "M":
                layers.append(nn.MaxPool2d(2))
                size //= 2
            elif entry == "LRN":
                layers.append(LocalResponseNorm())
            else:
                out, kernel = entry if isinstance(entry, tuple) else (entry, 3)
                layers.append(nn.Conv2d(channels, out, kernel, padding=kernel // 2))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(out))
                layers.append(nn.ReLU(inplace=True))
                channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * size * size, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images):
        maps = self.features(images)
        return self.classifier(maps.flatten(1))


# %% [markdown]
# A shape probe. Building the network on PyTorch's `meta` device costs no memory: it has shapes and no numbers. Follow
# the second column: the map halves at each pooling, the channels double until 512.

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    vgg16 = VGG(CONFIGS["D"])
trace = inspect.trace(vgg16, (3, 224, 224))
Table([row for row in trace.rows if row["kind"] not in ("ReLU", "Dropout")])

# %% [markdown]
# ## Checks: is this the paper's network?
#
# **Parameters.** The paper's Table 2 gives them in millions; the ResNet paper [[He et al., 2016a](../pages/bibliography.md#he2016resnet)] quotes multiply-adds
# of two of these networks. Both stand beside the networks, declared once. So is this the paper's network? We build each,
# and count.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
TABLE_2 = {
    "A": "133 M",
    "A-LRN": "133 M",
    "B": "133 M",
    "C": "134 M",
    "D": "138 M",
    "E": "144 M",
}
# of the ResNet paper
MACS = {"D": "15.3 G", "E": "19.6 G"}
NAMES = {"D": "D (VGG-16)", "E": "E (VGG-19)"}
REMARKS = {
    "D": "the 15.3 G are 1 % below the count, while those of E agree. We do not know why."
}

NETWORKS = Variants(
    "01_vgg",
    "Images of 224x224 pixels. The paper prints parameters; the ResNet paper gives multiply-adds for two of them.",
    [
        Variant(
            NAMES.get(name, name),
            partial(VGG, config),
            (3, 224, 224),
            parameters=TABLE_2[name],
            macs=MACS.get(name),
            remark=REMARKS.get(name, ""),
        )
        for name, config in CONFIGS.items()
    ],
    printed=("paper, Table 2", "ResNet paper"),
)

# %% tags=["nbval-check-output"]
rows = []
for variant in NETWORKS:
    model = variant.make()
    layers = [
        module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    rows.append(
        {
            "network": variant.name,
            "weight layers": len(layers),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "paper, Table 2": variant.parameters,
            "multiply-adds": inspect.count_macs(model, variant.shape),
            "ResNet paper": variant.macs,
        }
    )
Table(rows)

# %% [markdown]
# Every count rounds to the paper's figure. Only the ResNet paper's 15.3 billion multiply-adds of D are 1 % below the
# count, while its figure of E agrees. We do not know why.

# %% [markdown]
# **Where are they?** Here is the answer to the question at the top.

# %% tags=["nbval-check-output"]
convolutions = inspect.count_parameters(vgg16.features)
everything = inspect.count_parameters(vgg16)
fc6 = inspect.count_parameters(vgg16.classifier[0])
share = convolutions / everything
print(f"convolutions: {convolutions:,} of {everything:,} parameters = {100 * share:.1f} %")
print(f"the first fully connected layer alone: {fc6:,} = {100 * fc6 / everything:.1f} %")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    rows = [row for row in trace.rows if row["parameters"]]
    names = [f"conv {i + 1}" for i in range(13)] + ["fc 1", "fc 2", "fc 3"]
    for row in rows:
        row["activations"] = torch.Size(map(int, row["output"].split("x"))).numel()
    columns = ("parameters", "multiply-adds", "activations")
    for ax, column in zip(fig.subplots(1, 3, sharey=True), columns, strict=True):
        ax.barh(names, [row[column] / 1e6 for row in rows], color=["C0"] * 13 + ["C1"] * 3)
        ax.set(title=f"million {column}")
        ax.grid(axis="y", visible=False)
    fig.axes[0].invert_yaxis()


plot.show(
    draw,
    alt="Three bar charts over the sixteen layers of VGG-16. Parameters: three quarters in the first fully connected layer. "
    "Multiply-adds: spread over the convolutions, least in the first and in the fully connected layers. Activations: most "
    "in the first four convolutions.",
    caption="VGG-16 layer by layer: parameters sit at the end (orange: fully connected), multiply-adds in the middle, "
    "activations, and so the memory that training needs, at the start.",
    height=3.8,
)

# %% [markdown]
# **Equality.** Counts can agree by accident. So we give our network and torchvision's the same weights and compare
# their answers in double precision. The layers come in the same order, so the weights can be handed over one by one.

# %% tags=["nbval-check-output"]
import torchvision

ours = VGG(CONFIGS["A"]).double().eval()
with torch.device("meta"):
    theirs = torchvision.models.vgg11().eval()
weights = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
# both networks share the memory
theirs.load_state_dict(weights, assign=True)

images = torch.randn(1, 3, 224, 224, generator=generator, dtype=torch.float64)
with torch.inference_mode():
    a, b = ours(images), theirs(images)
print("the logits differ from class to class:", bool(a.std() > 1e-3))
difference = (a - b).abs().max() / a.abs().max()
print("largest relative difference below 1e-12:", bool(difference < 1e-12))
del ours, theirs

# %% [markdown]
# **Receptive field.** Equation [(1.1)](#eq-vgg-rf) as a function, and what a unit of VGG-16 sees after each stage.


# %% tags=["model"]
def receptive_field(config):
    """(entry, r, j) after each convolution and pooling: what a unit sees, and the jump, in pixels."""
    r, j, seen = 1, 1, []
    for entry in config:
        if entry == "LRN":
            continue
        if entry == "M":
            kernel, stride = 2, 2
        else:
            kernel, stride = entry[1] if isinstance(entry, tuple) else 3, 1
        r, j = r + (kernel - 1) * j, j * stride
        seen.append((entry, r, j))
    return seen


# %% tags=["nbval-check-output"]
rows, stage = {}, 1
for entry, r, j in receptive_field(CONFIGS["D"]):
    after = f"pool{stage}" if entry == "M" else f"last convolution of stage {stage}"
    rows[after] = {"after": after, "receptive field": r, "jump": j}
    stage += entry == "M"
after = "fully connected 1, a 7x7 filter on pool5"
rows[after] = {"after": after, "receptive field": r + 6 * j, "jump": j}
Table(rows.values())

# %% [markdown]
# The last convolution of VGG-16 sees 196 of 224 pixels. One more look at the table: a 3x3 layer adds 2 pixels in stage 1
# and 32 in stage 5. Pooling is what makes small filters see far; the stack alone would need 98 layers for 196 pixels.

# %% [markdown]
# ## What stopped people from going deep: the first weights
#
# In 2014 a network of 19 layers did not simply train. Network A learns from random weights. The deeper networks did not
# start there: their first four convolutions and their fully connected layers were copied from the trained A. Only after
# the submission did the authors find that the initialisation of Glorot and Bengio [[Glorot and Bengio, 2010](../pages/bibliography.md#glorot2010)] makes the detour
# unnecessary.
#
# How large were the random weights? The paper says: a normal distribution with zero mean and $10^{-2}$ *variance*. Taken
# at its word, that is a standard deviation of 0.1. A standard deviation of 0.01 is what AlexNet
# [[Krizhevsky et al., 2012](../pages/bibliography.md#krizhevsky2012alexnet)] uses, and what He et al. [[He et al., 2015](../pages/bibliography.md#he2015prelu)] assume in their example of a VGG-like network.
# The paper leaves no way to tell whether its word is a slip, so we try both. No training is needed: send images
# through the 16 convolutions of network E and look at the size of the signal after each.

# %%
SCALES = {
    "normal, variance 0.01 (as printed)": partial(nn.init.normal_, std=0.1),
    "normal, standard deviation 0.01": partial(nn.init.normal_, std=0.01),
    "Glorot": nn.init.xavier_normal_,
    "He": nn.init.kaiming_normal_,
}
signals = {}
for name, draw_weights in SCALES.items():
    train.set_seed(0)
    signal, signals[name] = data.normalize(data.test.images[:16]), []
    for layer in VGG(CONFIGS["E"], size=32, hidden=16).features.requires_grad_(False):
        if isinstance(layer, nn.Conv2d):
            draw_weights(layer.weight)
        signal = layer(signal)
        if isinstance(layer, nn.Conv2d):
            signals[name].append(float(signal.std()))


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    for name, values in signals.items():
        ax.semilogy(range(1, 17), values, "o-", label=name)
    ax.set(xlabel="convolution", title="standard deviation of the signal", xticks=range(1, 17))
    ax.legend()


plot.show(
    draw,
    alt="Log-scale line chart of signal size over 16 convolutions. With weights of standard deviation 0.1 it grows and "
    "with 0.01 it falls, both by many orders of magnitude; with Glorot's it falls slowly, with He's it stays near one.",
    caption="The signal through the 16 convolutions of network E before any training, for 16 test images. "
    f"Data: {data.provenance}.",
)

# %%
Table(
    {"initial weights": name, "signal after 16 convolutions": f"{values[-1]:.1e}"}
    for name, values in signals.items()
)

# %% [markdown]
# Each layer multiplies the signal by about $\sqrt{9\,C/2}$ times the standard deviation of its weights. With 0.1 that
# is 1.7 for 64 channels and 4.8 for 512; with 0.01 it is a tenth of that. It happens sixteen times, so one reading
# explodes and the other dies out, and a gradient on its way back fares likewise. Neither is a start for a deep network.
#
# Glorot's initialisation takes no account of the ReLU, which removes half of the signal's power. He's
# [[He et al., 2015](../pages/bibliography.md#he2015prelu)] (2015) chooses the standard deviation so that the factor is 1. It is what our class uses. Its line
# sinks at the end all the same: the last maps have 2x2 positions, and five of the nine weights fall on the border of
# zeros. With batch normalisation the question nearly disappears, because each layer's output is brought back to standard
# deviation 1 whatever the size of the weights.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | data | ILSVRC-2012, 1.3 M images, 1000 classes | CIFAR-10, 50,000 images, 10 classes | a laptop; numbers are not comparable, only directions |
# | crop | 224x224 | 32x32 | three poolings instead of five, or nothing would be left |
# | width | 64 to 512, hidden 4096 | 16 to 64, hidden 128 | D has 1/900 of the multiply-adds of VGG-16 |
# | normalisation | none | batch normalisation | trains in minutes and from any start; arms without it are in the study |
# | first weights | normal, then copied from A | He | the section above |
# | augmentation | flip, crop, colour shift, scale jitter with a scale for each image | flip, shift by up to 4 pixels | scale jitter has its own study below, with a scale for each batch |
# | test | dense, scores averaged over positions, probabilities averaged with those of the mirrored image | the image as it is; in the study of scales dense, probabilities averaged over positions | compared below |
# | optimiser | SGD, momentum 0.9, weight decay 5e-4, batch 256, rate 0.01 cut to a tenth three times, 74 epochs | SGD, Nesterov momentum 0.9, weight decay 5e-4, batch 128, one cycle with peak 0.1, a few epochs, in the studies; Muon for the networks trained on this page | time |
# | dropout | 0.5 on the first two fully connected layers | none | a few epochs do not overfit |
# | hardware | four Titan Black GPUs, 2 to 3 weeks for a network | two CPU cores, minutes | |
#
# The paper normalises its input by subtracting the mean RGB value of the training set. We also divide by the standard
# deviation, channel by channel.
#
# **Four GPUs, one gradient.** The paper splits each batch over its GPUs, lets each compute a gradient, and
# averages. It reports a speed-up of 3.75. Is the result that of a single GPU? For a network without batch normalisation it is, exactly.

# %% tags=["model"]
SMALL = {
    "A": [16, "M", 32, "M", 64, "M"],
    "A-LRN": [16, "LRN", "M", 32, "M", 64, "M"],
    "B": [16, 16, "M", 32, 32, "M", 64, 64, "M"],
    "C": [16, 16, (16, 1), "M", 32, 32, (32, 1), "M", 64, 64, (64, 1), "M"],
    "D": [*[16] * 3, "M", *[32] * 3, "M", *[64] * 3, "M"],
    "E": [*[16] * 4, "M", *[32] * 4, "M", *[64] * 4, "M"],
}


def small_vgg(config, batch_norm=True):
    """A network of the same class for 32x32 images and ten classes."""
    return VGG(config, classes=10, hidden=128, size=32, dropout=0, batch_norm=batch_norm)


# %% tags=["nbval-check-output"]
train.set_seed(0)
model = small_vgg(SMALL["B"], batch_norm=False).double()
images = data.normalize(data.train.images[:64]).double()
labels = data.train.targets[:64]


def gradient(images, labels):
    loss = F.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


whole = gradient(images, labels)
quarters = zip(images.split(16), labels.split(16), strict=True)
parts = torch.stack([gradient(*quarter) for quarter in quarters])
same = torch.allclose(whole, parts.mean(0))
print("the average of four gradients is the gradient of the batch:", same)

# %% [markdown]
# ## The data
#
# The first twenty training images: the classes come in turn. The training set is balanced, and after normalisation each
# channel should have mean 0 and standard deviation 1.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.images(
    data.train.images[:20],
    titles=[data.classes[label] for label in data.train.targets[:20]],
    alt="Twenty training images of 32x32 pixels in two rows, two of each of the ten classes.",
    caption=f"Training images. Data: {data.provenance}.",
)

# %% tags=["nbval-check-output"]
batch = data.normalize(data.train.images[:1000])
mean, deviation = batch.mean((0, 2, 3)), batch.std((0, 2, 3))
print("mean of each channel within 0.1 of 0:", bool((mean.abs() < 0.1).all()))
print("standard deviation within 0.1 of 1:", bool(((deviation - 1).abs() < 0.1).all()))
print(
    "images of each class among the first 1000:",
    set(data.train.targets[:1000].bincount().tolist()),
)

# %% [markdown]
# ## Training, in the open
#
# This is the whole loop. Every later chapter calls `train.fit`, which is this loop with a learning-rate schedule, augmentation,
# a progress bar and a stop button.


# %%
def train_by_hand(model, images, labels, epochs, lr, batch_size=128):
    """Plain stochastic gradient descent with momentum; returns the loss of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    losses = []
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(batch_size):
            loss = F.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


# %% [markdown]
# First a test that costs seconds and finds most mistakes: **can the network learn one batch by heart?** If it cannot, a
# long training is a waste.

# %% tags=["nbval-check-output"]
train.set_seed(0)
model = small_vgg(SMALL["D"])
images, labels = data.normalize(data.train.images[:64]), data.train.targets[:64]
losses = train_by_hand(model, images, labels, epochs=40, lr=0.02)
print("guessing costs ln 10 = 2.303; learned by heart, loss below 0.1:", losses[-1] < 0.1)

# %% [markdown]
# Now the small network D, three 3x3 layers per stage, on all training images. `train.SHORT` is the course's recipe for few
# epochs: the loop above with Muon, an optimiser that gets further in little time, for the convolutions. The studies below keep
# plain SGD.

# %%
train.set_seed(0)
model = small_vgg(SMALL["D"])
history = train.fit(model, data, train.SHORT, epochs=pick(full=6, quick=4), label="small VGG-D")
plot.histories(
    {"small VGG-D": history},
    alt="Training loss falls and test accuracy rises over the epochs of training.",
    caption="The small VGG-D learns.",
)

# %%
logits = train.predict(model, data, data.test.images)
labels = data.test.targets
row = {
    "test accuracy in %": 100 * metrics.accuracy(logits, labels),
    "top-1 error in %": 100 * metrics.top_k_error(logits, labels, 1),
    "top-5 error in %": 100 * metrics.top_k_error(logits, labels, 5),
    "seconds of training": history.last("seconds"),
    "images per second": history.images_per_second,
    "data": history.data,
}
Table([row], decimals=1)

# %% [markdown]
# The paper reports two errors, and so does this table. **Top-1**: the first guess is wrong. **Top-5**: the truth is not
# among the first five guesses. With ten classes top-5 says little; with a thousand it forgives calling a husky a malamute.
#
# ## Results: the paper beside ours
#
# One training proves little: another seed gives another number. So a study trained every arm three times, with the same
# seeds, batches and number of epochs for each arm. Its results are kept in `results/`, and the tables below read them. What
# stands behind a ± is the standard deviation of the three.
#
# The arms are the paper's Table 3 in miniature, two arms with large filters, and two without batch normalisation.

# %% tags=["model"]
ARMS = {name: {"config": config} for name, config in SMALL.items()}

# these see as far as B and as D, with about as many weights
ARMS["5x5"] = {"config": [(17, 5), "M", (34, 5), "M", (68, 5), "M"]}
ARMS["7x7"] = {"config": [(16, 7), "M", (32, 7), "M", (64, 7), "M"]}

# without batch normalisation the learning rate of the others is too high
ARMS["A without BN"] = {"config": SMALL["A"], "batch_norm": False, "lr": 0.02}
ARMS["E without BN"] = {"config": SMALL["E"], "batch_norm": False, "lr": 0.02}


def train_arm(data, *, seed, config, batch_norm=True, lr=0.1, epochs=4):
    """One training of the depth study."""
    train.set_seed(seed)
    model = small_vgg(
        [tuple(entry) if isinstance(entry, list) else entry for entry in config], batch_norm
    )
    history = train.fit(model, data, epochs=epochs, lr=lr, seed=seed, eval_every=epochs)
    return {
        "test_accuracy": history.last("test_accuracy"),
        "train_loss": history.last("train_loss"),
        "parameters": inspect.count_parameters(model),
        "conv_weights": sum(
            m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)
        ),
        "macs": inspect.count_macs(model, (3, 32, 32)),
    }


DEPTH = Study("01_vgg", run=train_arm, arms=ARMS, data=cifar10)

# %%
# top-1 error at S = Q = 256, Table 3
PAPER = {"A": 29.6, "A-LRN": 29.7, "B": 28.7, "C": 28.1, "D": 27.0, "E": 27.3}


def error(accuracy):
    return 100 * (1 - accuracy)


Table(
    {
        "network": arm,
        "paper: top-1 error": str(PAPER.get(arm, "")),
        "ours: error in %": DEPTH.text(arm, "test_accuracy", to=error),
        "train loss": DEPTH.text(arm, "train_loss"),
        "parameters": DEPTH.constant(arm, "parameters"),
        "in convolutions": DEPTH.constant(arm, "conv_weights"),
        "multiply-adds": DEPTH.constant(arm, "macs"),
    }
    for arm in ARMS
)

# %% [markdown]
# The two error columns are **not comparable** with each other: other data, other scale, other training. What can be
# compared is how each column changes from row to row.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    DEPTH,
    list(ARMS),
    "test_accuracy",
    "test accuracy in %",
    scale=100,
    alt="Dot plot of test accuracy for the ten arms of the study, three dots and a mean each.",
    caption="Ten small networks, four epochs each. Read A, B, D, E for depth; B against 5x5 and D against 7x7 for filter "
    "size.",
)

# %% [markdown]
# ## The paper's claims in miniature
#
# Each claim is a difference between two arms in points of test accuracy, seed by seed, put such that a positive number
# speaks for it. The verdict comes from the 95 % interval of the mean difference. *Seen*: it lies above zero. *Reversed*: below.
# *Not clear*: it holds both. *Too small to matter*: all of it is within half a point of zero, the smallest effect on CIFAR-10
# that we care about.
#
# Claims are **primary** when they were chosen before their runs. Those of a chapter stand together: with many tests one succeeds
# by chance, and Holm's correction allows for that. The results of this study were known when the claims were written down, so
# all of them are **exploratory**, and marked. The chapter's primary claims follow below.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
DEPTH_CLAIMS = Claims(
    DEPTH,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    also={
        "two layers a stage beat one": ("A", "B", "Table 3: +0.9"),
        "three layers a stage beat two": ("B", "D", "Table 3: +1.7"),
        "four layers a stage beat three": ("D", "E", "Table 3: -0.3"),
        "a third layer helps even if it is 1x1": ("B", "C", "Table 3: +0.6"),
        "as a third layer, 3x3 beats 1x1": ("C", "D", "Table 3: +1.1"),
        "two 3x3 filters beat one of 5x5": ("5x5", "B", "Section 4.1: +7"),
        "three 3x3 filters beat one of 7x7": ("7x7", "D"),
        "LRN helps (the paper says it does not)": ("A", "A-LRN", "Table 3: -0.1"),
        "depth helps without BN": ("A without BN", "E without BN", "Table 3: +2.3"),
    },
    about="The paper's networks A to E, narrow and with batch normalisation, for 4 epochs each. Deeper ones cost more; the "
    "two with large filters have about as many weights as the stacks that they are compared with.",
)

# %%
DEPTH_CLAIMS.table()

# %% [markdown]
# **Depth.** The step from one layer a stage to two is worth several points, at every seed. After that the gain stops,
# and the fourth layer loses. Before you call that overfitting, look at the column "train loss": E has a *higher training
# loss* than D. After four epochs it has not learned too much, it has learned less. The paper's own column stops improving at
# E as well, after far longer training. Chapter 2 is about deeper networks that fit their training images less well.
#
# **1x1 against 3x3.** D beats C, as in the paper. But C does not beat B here, and in the paper it does. Our C has three
# more layers than B, sees no further, and its training loss is higher, too.
#
# **Small filters against large ones.** Both comparisons come out as the paper says. At the same receptive field and
# about the same number of weights, the stacks of 3x3 win by several points. The paper compares B with a
# twin whose pairs of 3x3 layers are replaced by one 5x5 layer, and finds the twin's top-1 error 7 points higher (Section
# 4.1). In both comparisons the winner is deeper, too: which of the two it is, this study cannot say.
#
# **LRN.** No gain, as in the paper.
#
# **Without batch normalisation** the claim itself turns around: E falls far behind A, and has the higher training loss. In the
# paper depth wins without normalisation. It trained for 74 epochs, and helped the deep networks with their first weights; which
# of these our E lacks is open.
#
# ## What a longer study will decide
#
# Four epochs show who learns fast. The paper asks who is better in the end, so its claims need a longer training. That
# study is designed before its runs, with the claims that count: twenty epochs and five seeds. And two arms tell filter size from
# depth: `5x5, 1x1` and `7x7, 1x1, 1x1` have as many layers as B and D and see as far, but only their first layer of a stage
# sees anything new. Where the table says "not measured yet", `./course study 01_vgg` measures it.


# %% tags=["model"]
def with_pixel_filters(config, count):
    """The configuration with `count` layers of 1x1 behind each convolution."""
    pairs = [[entry] if entry == "M" else [entry, *count * [(entry[0], 1)]] for entry in config]
    return [layer for pair in pairs for layer in pair]


LONG_ARMS = {arm: ARMS[arm] | {"epochs": 20} for arm in ("A", "B", "D", "E", "5x5", "7x7")}
for arm, twin, count in (("5x5, 1x1", "5x5", 1), ("7x7, 1x1, 1x1", "7x7", 2)):
    config = with_pixel_filters(ARMS[twin]["config"], count)
    LONG_ARMS[arm] = {"config": config, "epochs": 20}
LONG_ARMS |= {arm: ARMS[arm] | {"epochs": 30} for arm in ("A without BN", "E without BN")}

SEEDS = (0, 1, 2, 3, 4)
LONG = Study("01_vgg", name="long", run=train_arm, arms=LONG_ARMS, data=cifar10, seeds=SEEDS)

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
LONG_CLAIMS = Claims(
    LONG,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    main={
        "20 epochs: three layers a stage beat one": ("A", "D", "Table 3: +2.6"),
        # a bound on how far D is behind E
        "20 epochs: depth saturates, E gains at most 0.5": ("E", "D", "Table 3: -0.3", 0.5),
        "20 epochs: two 3x3 filters beat one of 5x5": ("5x5", "B", "Section 4.1: +7"),
    },
    also={
        "20 epochs: three layers a stage beat two": ("B", "D", "Table 3: +1.7"),
        "20 epochs: three 3x3 filters beat one of 7x7": ("7x7", "D"),
        "20 epochs, equal depth: 3x3 filters beat 5x5 and 1x1": ("5x5, 1x1", "B"),
        "20 epochs, equal depth: 3x3 filters beat 7x7 and 1x1": ("7x7, 1x1, 1x1", "D"),
        "30 epochs: depth helps without BN": ("A without BN", "E without BN", "Table 3: +2.3"),
    },
    about="The same networks for 20 epochs; for 30 where there is no batch normalisation.",
)

# %%
LONG_CLAIMS.table()

# %% [markdown]
# ## Any image size: fully connected layers are convolutions
#
# A fully connected layer on a 7x7 map computes, for each output, the sum of 7x7x512 products. So does a 7x7 convolution
# at a position where it fits exactly once. Reshape the weights, and the classifier becomes convolutional: it accepts a
# larger image and answers at every position. The paper calls this **dense evaluation**, and chapter 12 builds
# segmentation on it.


# %% tags=["model"]
def fully_convolutional(model):
    """The same VGG with its linear layers as convolutions: images of any size to logits (N, classes, h, w)."""
    layers = list(model.features)
    channels = next(m.out_channels for m in reversed(layers) if isinstance(m, nn.Conv2d))
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            # 7 for the paper's first, then 1
            side = round((layer.in_features / channels) ** 0.5)
            conv = nn.Conv2d(channels, layer.out_features, side)
            conv.weight = nn.Parameter(
                layer.weight.view(layer.out_features, channels, side, side)
            )
            conv.bias = layer.bias
            channels = layer.out_features
            layer = conv
        layers.append(layer)
    return nn.Sequential(*layers).train(model.training)


# %% tags=["nbval-check-output"]
dense = fully_convolutional(model)
images = data.normalize(data.test.images[:8])
with torch.inference_mode():
    same_size, larger = dense(images), dense(F.interpolate(images, size=48))
    equal = torch.allclose(same_size[..., 0, 0], model(images), rtol=1e-4, atol=1e-4)
print("logits of a 32x32 image:", tuple(same_size.shape[1:]))
print("logits of a 48x48 image:", tuple(larger.shape[1:]))
print("equal to the classifier's:", equal)

# %% [markdown]
# That also frees a network from the size that it was trained for. Chapter 15 and the gallery put one photograph to a network of every
# chapter, all trained on the same small pictures. Chapter 1's is the small D.


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def named_vgg():
    """The small D for the twelve names of `helpers.naming`, at 32 pixels."""
    return VGG(SMALL["D"], len(naming.CLASSES), hidden=128, size=32, dropout=0, batch_norm=True)


def of_any_size(model):
    """Dense evaluation as one network: images of any size to the mean scores (N, classes)."""
    return nn.Sequential(*fully_convolutional(model), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# what later chapters and the gallery look into
TRAINED = Weights(
    "01_vgg",
    naming.NAMED,
    build=named_vgg,
    train=naming.learn,
    data=naming.small_pictures,
    title="VGG",
    layer="28",
    score=naming.logit_of,
    size=64,
    any_size=of_any_size,
)

# %% [markdown]
# One verdict per image is wanted. The paper averages the map of scores over its positions, takes the softmax, and averages
# that with the softmax of the mirrored image. One could also take the softmax first and average over positions; our study below
# does that, and mirrors nothing. Does it matter? Both, with and without the mirrored image, on the network that we trained:


# %% tags=["model"]
def paper_verdict(dense, images):
    """Probabilities (N, classes): softmax of the mean scores, averaged with that of the mirrored images."""
    views = images, images.flip(-1)
    return sum(dense(view).mean((2, 3)).softmax(1) for view in views) / len(views)


def verdict_accuracy(verdict, data, Q):
    """Test accuracy at scale Q of `verdict`, a function of images (N, 3, Q, Q) to (N, classes)."""
    right = []
    batches = zip(data.test.images.split(500), data.test.targets.split(500), strict=True)
    with torch.inference_mode():
        for images, labels in batches:
            images = F.interpolate(
                data.normalize(images), size=Q, mode="bilinear", antialias=True
            )
            right.append(verdict(images).argmax(1) == labels)
    return float(torch.cat(right).float().mean())


# %%
VERDICTS = {
    "softmax, then positions (our study)": lambda images: dense(images).softmax(1).mean((2, 3)),
    "positions, then softmax": lambda images: dense(images).mean((2, 3)).softmax(1),
    "the paper's: with the mirrored image": partial(paper_verdict, dense),
}
Table(
    {"average over": name}
    | {f"accuracy in % at {Q} px": 100 * verdict_accuracy(verdict, data, Q) for Q in (32, 40)}
    for name, verdict in VERDICTS.items()
)

# %% [markdown]
# At the size of the training there is one position, so the order is all the same. At 40 pixels softmax first is less than a point
# ahead. The mirrored image is worth more than a point at either size: it is a second look, and costs a second pass.
#
# The alternative is to cut many crops and average their verdicts. They differ at the borders: a crop is padded with zeros,
# while inside a dense map the neighbours are real pixels. Dense evaluation computes shared positions once, so it is also
# much cheaper. The paper measures 24.8 % top-1 error for E with dense evaluation, 24.6 % with 150 crops, 24.4 % with both
# averaged (its Table 5).
#
# ### Training scale S and test scale Q
#
# ImageNet photographs have objects of all sizes. The paper rescales a training image so that its shorter side is $S$
# and cuts a 224x224 crop. Either $S$ is fixed, or it is drawn anew from $[256, 512]$ for each image: **scale jittering**.
# At test time the image is rescaled to $Q$ and evaluated densely. What does jittering buy?
#
# Our miniature: crops of 32x32 from images rescaled to $S$, three seeds, network B, with one $S$ for all images of a batch.
# Each trained network is then tested densely at five scales $Q$.


# %% tags=["model"]
class RescaleAndCrop:
    """Rescale a batch to a side drawn from [low, high], cut one crop of `size` at random, flip half of the images."""

    def __init__(self, low, high, size=32):
        self.low, self.high, self.size = low, high, size

    def __call__(self, images, targets, generator):
        S = int(torch.randint(self.low, self.high + 1, (), generator=generator))
        if images.shape[-1] != S:
            images = F.interpolate(images, size=S, mode="bilinear", antialias=True)
        y, x = torch.randint(S - self.size + 1, (2,), generator=generator).tolist()
        return train.Augment(flip=True, shift=0)(
            images[:, :, y : y + self.size, x : x + self.size], targets, generator
        )


# %% tags=["model"]
def accuracy_at(model, data, Q):
    """Test accuracy of dense evaluation at scale Q, softmax averaged over positions."""
    dense, right = fully_convolutional(model).eval(), 0
    with torch.inference_mode():
        for images, labels in zip(
            data.test.images.split(500), data.test.targets.split(500), strict=True
        ):
            images = F.interpolate(
                data.normalize(images), size=Q, mode="bilinear", antialias=True
            )
            verdicts = (
                dense(images.contiguous(memory_format=torch.channels_last))
                .softmax(1)
                .mean((2, 3))
            )
            right += int((verdicts.argmax(1) == labels).sum())
    return right / len(data.test.targets)


# %% tags=["model"]
SCALES_TESTED = (32, 36, 40, 44, 48)


def train_at_scale(data, *, seed, low, high, epochs=4):
    """One training of the scale study: S drawn from [low, high], tested at every scale."""
    train.set_seed(seed)
    model = small_vgg(SMALL["B"])
    train.fit(
        model,
        data,
        epochs=epochs,
        seed=seed,
        augment=RescaleAndCrop(low, high),
        eval_every=epochs,
    )
    return {f"accuracy_at_{Q}": accuracy_at(model, data, Q) for Q in SCALES_TESTED}


SCALE = Study(
    "01_vgg",
    name="scale",
    run=train_at_scale,
    arms={
        "S = 32": {"low": 32, "high": 32},
        "S = 40": {"low": 40, "high": 40},
        "S in [32, 48]": {"low": 32, "high": 48},
    },
    data=cifar10,
)
SCALE_CLAIMS = Claims(
    SCALE,
    "accuracy_at_40",
    "test accuracy at 40 pixels, points",
    scale=100,
    matters=0.5,
    also={"many scales beat the middle one": ("S = 40", "S in [32, 48]", "Table 3, D: +1.2")},
    about="Network B for 4 epochs on crops of 32 pixels, one scale for each batch. Tested at 40 pixels, the middle of the "
    "range, as the paper tests it.",
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    for arm in SCALE.arms:
        found = [SCALE.mean(arm, f"accuracy_at_{Q}") for Q in SCALES_TESTED]
        means, spreads = zip(
            *[(100 * mean, 100 * spread) for mean, spread in found], strict=True
        )
        ax.errorbar(SCALES_TESTED, means, spreads, marker="o", capsize=3, label=arm)
    ax.set(xlabel="test scale Q", title="test accuracy in %", xticks=SCALES_TESTED)
    ax.legend(title="training scale")


plot.show(
    draw,
    alt="Line chart of test accuracy against test scale Q for three training scales: fixed 32, fixed 40, and jittered "
    "between 32 and 48.",
    caption="Each network is at its best near the scale that it was trained at. Mean and standard deviation of three "
    f"seeds. Data: {SCALE.provenance()}.",
)

# %%
SCALE_CLAIMS.table()

# %% [markdown]
# Every network is at its best near the scale that it was trained at, and the fixed $S = 32$ falls apart on large
# images: its filters have never seen large objects. But jittering buys little here. Its curve lies close to that of
# the fixed $S = 40$, the middle of its range: a little higher below, a little lower above.
#
# In the paper jittering is worth more: D has 27.0 % top-1 error with $S = 256$, 26.8 % with $S = 384$, and 25.6 % with $S$
# from $[256, 512]$ (Table 3). Which difference matters is open: our photographs have less detail, their objects are centred,
# the training is short, and a batch has one scale. And the best number of all is that of $S = 32$ at its own scale:
# here, rescaling costs more than it gives.
#
# The longer study removes two of these differences. It draws $S$ for every image, as the paper does, tests as the paper does,
# and trains D for twenty epochs. The same crop can be had in one step: a window of $32/S$ of the image's side, enlarged to 32.


# %% tags=["model"]
class RescaleEach:
    """Rescale every image to its own side from [low, high], cut one crop of `size` at random, flip half of them."""

    def __init__(self, low, high, size=32):
        self.low, self.high, self.size = low, high, size

    def __call__(self, images, targets, generator):
        n = len(images)
        S = torch.randint(self.low, self.high + 1, (n,), generator=generator)
        # the crop's share of the image's side, and its centre between -1 and 1
        share = self.size / S
        x, y = (1 - share) * (2 * torch.rand(2, n, generator=generator) - 1)
        mirror = 1 - 2 * torch.randint(2, (n,), generator=generator)
        zero = torch.zeros(n)
        windows = torch.stack([share * mirror, zero, x, zero, share, y], 1).view(n, 2, 3)
        shape = (n, images.shape[1], self.size, self.size)
        grid = F.affine_grid(windows.to(images), shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False), targets


def train_with_scales(data, *, seed, low, high, epochs=20):
    """One training of the longer study of scales: S for every image, tested as the paper tests."""
    train.set_seed(seed)
    model = small_vgg(SMALL["D"])
    train.fit(
        model, data, epochs=epochs, seed=seed, augment=RescaleEach(low, high), eval_every=epochs
    )
    verdict = partial(paper_verdict, fully_convolutional(model).eval())
    return {f"accuracy_at_{Q}": verdict_accuracy(verdict, data, Q) for Q in SCALES_TESTED}


LONG_SCALE = replace(SCALE, name="long_scale", run=train_with_scales, seeds=SEEDS)
LONG_SCALE_CLAIMS = replace(
    SCALE_CLAIMS,
    study=LONG_SCALE,
    main={
        "one scale an image beats the middle one": (
            "S = 40",
            "S in [32, 48]",
            "Table 3, D: +1.2",
        )
    },
    also={},
    about="Network D for 20 epochs on crops of 32 pixels, with a scale for every image. Tested at 40 pixels, the middle of "
    "the range, as the paper tests it, with the mirrored image.",
)

# %%
LONG_SCALE_CLAIMS.table()

# %% [markdown]
# Results are read from files. To be sure that the code of all four studies still runs, each arm trains here for a moment
# on 128 images, and the result is thrown away.

# %% tags=["nbval-check-output"]
few = cifar10(train=128, test=100)
for study in (DEPTH, LONG, SCALE, LONG_SCALE):
    arms = {arm: config | {"epochs": 1} for arm, config in study.arms.items()}
    ran = replace(study, arms=arms).rehearse(few)
    print(f"all arms of {study.stem} run:", ran.keys() == study.arms.keys())

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# These are the test images on which the small VGG-D is most sure of a wrong answer. Look at each and decide: who is
# wrong? Below each image stands what Grad-CAM [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] says: it marks the places of a feature map that
# raise the score of a class. Chapter 15 derives it; here it is a tool. We take the last convolution, whose map has 8x8
# positions. Two questions to each image: what spoke for the wrong class, and what spoke for the right one?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
plot.mistakes(model, data, logits, convolutions[-1])

# %% [markdown]
# ### Where does it look, and did it learn to?
#
# The first test image of each class, whatever the network says about it. These ten images come back in later chapters. A map
# of evidence looks meaningful quickly, so beside it stands a control: the same network before its training.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
untrained = train.untrained(model)
plot.evidence(
    {"trained": model, "untrained": untrained},
    data,
    convolutions[-1],
    "Grad-CAM at the last convolution for the class that each network predicts.",
)

# %% [markdown]
# The lower row shows what such a map looks like when nothing has been learned. Only where the two rows differ does the upper
# one say something about learning.

# %% [markdown]
# ### What a unit could see, and what it does see
#
# The receptive field is what a unit *could* see. How much each pixel really moves the unit can be measured: by the
# gradient of the unit with respect to the image. Luo et al. [[Luo et al., 2016](../pages/bibliography.md#luo2016erf)] found that the **effective receptive
# field** is a bump, much smaller than the theoretical one. Paths through the middle are many; to the corner there is one.
# Is the bump learned? Again the untrained network is the control. To compare sizes, we count the pixels that hold 90 % of
# the gradient.


# %%
def side_of_most(field, share=0.9):
    """Side of a square with as many pixels as the fewest that hold `share` of the gradient."""
    largest_first = field.flatten().sort(descending=True).values
    return int((largest_first.cumsum(0) < share * field.sum()).sum()) ** 0.5


sample = data.normalize(data.test.images[: pick(full=500, quick=50)])
could_see = [r for entry, r, j in receptive_field(SMALL["D"]) if entry != "M"][2::3]
# the last of the three convolutions of each stage
ends = convolutions[2:9:3]
fields = {
    kind: [inspect.input_gradient(network, layer, sample).mean(0) for layer in ends]
    for kind, network in (("untrained", untrained), ("trained", model))
}
Table(
    (
        {
            "stage": stage + 1,
            "could see": f"{r}x{r}",
            "side of 90 %, untrained": side_of_most(fields["untrained"][stage]),
            "side of 90 %, trained": side_of_most(fields["trained"][stage]),
        }
        for stage, r in enumerate(could_see)
    ),
    decimals=1,
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    for axes, (kind, found) in zip(fig.subplots(2, 3), fields.items(), strict=True):
        for stage, (ax, field, r) in enumerate(zip(axes, found, could_see, strict=True), 1):
            ax.imshow(field / field.max(), cmap="inferno", vmin=0, vmax=1)
            side, centre = min(r, 32), 16 if r < 32 else 15.5
            ax.add_patch(plot.rectangle(centre - side / 2, centre - side / 2, side, side))
            ax.set_title(f"stage {stage}, {kind}", fontsize=9)
            ax.set_axis_off()


plot.show(
    draw,
    alt="Two rows of three heat maps of input gradients for the centre unit of the three stages, untrained above trained. Each "
    "is bright around the middle and darker towards the edges of a square that marks the theoretical receptive field.",
    caption="Mean size of the gradient with respect to each pixel. Square: the theoretical receptive field; that of stage 3 "
    f"is larger than the image. Data: {data.provenance}.",
    height=4.4,
)

# %% [markdown]
# The bump is there before any training: many paths lead through the middle of the field, few to its edge. Training makes it
# somewhat narrower in each stage.

# %% [markdown]
# ## Play: build a stack
#
# Choose a filter size and a number of layers. The picture shows what the top unit sees, in theory (square) and in effect
# (brightness), for random weights of He's scale with ReLUs between. Try to find two settings with the same square. Which has fewer weights?
# Which has the narrower bump?


# %%
def effective_field(kernel, layers, side=33, channels=8, samples=8):
    """Mean input gradient of the centre unit of a random stack, (side, side)."""
    torch.manual_seed(0)
    stack, inputs = [], 3
    for _ in range(layers):
        convolution = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(convolution.weight)
        stack += [convolution, nn.ReLU()]
        inputs = channels
    # the convolution before the last ReLU
    last = stack[-2]
    images = torch.randn(samples, 3, side, side)
    return inspect.input_gradient(nn.Sequential(*stack), last, images).mean(0)


KERNELS, LAYERS = (3, 5, 7), (1, 2, 3, 4, 5, 6)
stacks = {(k, n): effective_field(k, n) for k in KERNELS for n in LAYERS}


def draw_stack(fig, kernel, layers):
    r = 1 + layers * (kernel - 1)
    field = stacks[kernel, layers]
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.15))
    left.imshow(field / field.max(), cmap="inferno", vmin=0, vmax=1)
    side = min(r, 33)
    left.add_patch(plot.rectangle(16 - side / 2, 16 - side / 2, side, side))
    left.set_title(f"sees {r}x{r} of 33x33 pixels", fontsize=11)
    left.set_axis_off()
    counts = layers * kernel**2, r**2
    right.barh(["this stack", "one layer that\nsees as far"], counts, color=["C0", "C1"])
    right.set(title="weights, in units of C²", xlim=(0, 1.25 * r**2))
    for y, count in enumerate(counts):
        right.text(count + 0.02 * r**2, y, f"{count}", va="center")
    right.grid(axis="y", visible=False)
    right.invert_yaxis()


# %%
def describe(k, n):
    r = 1 + n * (k - 1)
    return (
        f"A stack of {n} layers of {k}x{k} filters sees {r}x{r} pixels and has {n * k * k} C² "
        f"weights. One layer that sees as far has {r * r} C²."
    )


Explorable(
    draw_stack,
    (KERNELS, LAYERS),
    ("filter size", "layers"),
    alt=describe,
    caption="Left: the theoretical receptive field (square) and the measured effect of each "
    "pixel on the top unit. Right: what the stack costs, and what a single layer with the same "
    "receptive field would cost.",
    key="vgg-stack",
    start=(3, 3),
)

# %% [markdown]
# The same in the trained network. Point at a place of the picture, or move it with the arrow keys: the figure shows which pixels move the unit
# that answers there, and the square that the unit could see.
#
# *Predict first.* At the fifth convolution, how much of the square holds nine tenths of the effect? Does that share rise or fall with depth?
#
# <div class="live" data-figure="receptive-field">In the book, the network itself runs here, in your browser.</div>

# %% [markdown]
# ## When to use it today, and what came after
#
# VGG-16 was a standard feature extractor for years: perceptual losses and style transfer still use its layers, because they are simple
# and their features transfer well. As a classifier it is outdated: a ResNet-50 has a fifth of its parameters, a quarter
# of its multiply-adds and a lower error. What stayed is the design: 3x3 filters, equal layers in stages, halve the map and double the
# channels.
#
# In the ILSVRC-2014 challenge the paper's entry came second in classification with 7.3 % top-5 test error (seven
# networks averaged), behind GoogLeNet, and first in localisation. Two networks averaged reached 6.8 % after the
# deadline (Table 7). The figures are the paper's.
#
# What it left open: at 19 layers the gain from depth had run out. Chapter 2 is about why, and about what to do.

# %% [markdown]
# ## Exercises
#
# **1. (quick)** Two 3x3 convolutions with stride 2 follow each other. What do they see, and what is the jump?
#
# <details><summary>Answer</summary>
#
# First layer: r = 3, j = 2. Second: r = 3 + 2·2 = 7, j = 4. They see as far as three layers of stride 1.
#
# </details>
#
# **2. (quick)** Network C adds 1x1 convolutions to B. They see nothing new. What can they do, then?
#
# <details><summary>Answer</summary>
#
# A 1x1 convolution mixes the channels at each position, and a ReLU follows. So C has three more non-linear steps than B at
# the same receptive field. The paper finds C better than B, and D (3x3 instead of 1x1) better than C: the extra
# non-linearity helps, and seeing more helps more.
#
# </details>
#
# **3. (code)** Count the parameters of any configuration without building it: weights and biases of every convolution
# (no batch normalisation), then of the three fully connected layers. Start on paper with E: 143,667,240.


# %%
def check_count(count):
    tiny = 3 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10
    assert count(["M"], 10, 4, 2) == tiny, "no convolution: 3 channels on a 1x1 map."
    expected = {"A": 132_863_336, "A-LRN": 132_863_336, "C": 133_638_952, "E": 143_667_240}
    for name, parameters in expected.items():
        try:
            got = count(CONFIGS[name], 1000, 4096, 224)
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"network {name} stops with {error!r}; LRN has no parameters."
            ) from error
        assert got == parameters, (
            f"network {name} has {parameters:,} parameters, you counted {got:,}."
        )


def count_by_hand(config, classes, hidden, size):
    raise NotImplementedError


attempt(check_count, count_by_hand)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def count_solution(config, classes, hidden, size):
    total, channels = 0, 3
    for entry in config:
        if entry == "M":
            size //= 2
        elif entry != "LRN":
            out, kernel = entry if isinstance(entry, tuple) else (entry, 3)
            total += channels * out * kernel**2 + out
            channels = out
    flat = channels * size**2
    return total + (flat + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * classes


verify(check_count, count_solution)

# %% [markdown]
# **4. (code)** Multi-crop evaluation: cut the four corners and the centre, each of `size` x `size` pixels, mirror all five, and
# average the ten softmax outputs. `images` are normalised, (N, 3, H, W), where H and W may differ; return (N, classes). Then compare with the dense
# evaluation of the same images rescaled to 40 pixels. When do they disagree, and why?


# %%
def check_crops(ten_crops):
    images = 10 * torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    seen = []

    def spy(crops):
        seen.append(crops)
        return crops.mean((2, 3))

    got = ten_crops(spy, images, 4)
    crops = torch.cat(seen)
    assert crops.shape == (20, 3, 4, 4), (
        f"ten crops of two images are (20, 3, 4, 4) in all, not {tuple(crops.shape)}."
    )
    places = {
        "upper left": (0, 0),
        "upper right": (0, 4),
        "lower left": (2, 0),
        "lower right": (2, 4),
        "middle": (1, 2),
    }
    probabilities = torch.zeros(2, 3)
    for name, (y, x) in places.items():
        crop = images[:, :, y : y + 4, x : x + 4]
        for kind, view in ((name, crop), (f"mirrored {name}", crop.flip(-1))):
            for wanted in view:
                assert any(torch.equal(wanted, one) for one in crops), (
                    f"the {kind} crop is missing."
                )
            probabilities += view.mean((2, 3)).softmax(1) / 10
    assert got.shape == (2, 3), (
        f"return one row for each image, (2, 3), not {tuple(got.shape)}."
    )
    assert torch.allclose(got, probabilities, atol=1e-5), (
        "take the softmax of each crop's logits first, then the average over an image's ten crops."
    )


def ten_crops(model, images, size):
    raise NotImplementedError


attempt(check_crops, ten_crops)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def ten_crops_solution(model, images, size):
    low, right = images.shape[-2] - size, images.shape[-1] - size
    verdicts = []
    for y, x in ((0, 0), (0, right), (low, 0), (low, right), (low // 2, right // 2)):
        crop = images[:, :, y : y + size, x : x + size]
        verdicts += [model(crop).softmax(1), model(crop.flip(-1)).softmax(1)]
    return torch.stack(verdicts).mean(0)


verify(check_crops, ten_crops_solution)

# %% [markdown]
# **5. (open)** The arms with large filters have as many weights as the stacks of 3x3, but not as many multiply-adds. Choose
# widths for `7x7` at which it costs what D costs, in multiply-adds or in seconds, add the arm to `ARMS`, and measure it with
# `./course study 01_vgg`. Does D still win?

# %% [markdown]
# ## Recap
#
# - Stacked 3x3 filters see as far as one large filter, with fewer weights and more non-linear steps.
# - $r_l = r_{l-1} + (k_l - 1) j_{l-1}$: pooling multiplies the jump, and with it what every later layer adds.
# - Parameters sit in the fully connected layers, multiply-adds in the convolutions, memory in the early maps.
# - Depth needs first weights that keep the signal's size, or normalisation.
# - A fully connected layer is a convolution as large as its input. With that, a classifier runs on any image size.
#
# **Three questions.** Why does C beat B in the paper? Why does doubling the side of the image not change the number of parameters of
# `features`, but change that of `classifier`? Which of the paper's claims did our study not confirm, and what would you
# need to decide it?

# %%
best = 100 * metrics.accuracy(logits, data.test.targets)
headline(f"small VGG-D, test accuracy {best:.1f} %", data.provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

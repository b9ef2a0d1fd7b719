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
# | Paper | K. Simonyan and A. Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, ICLR 2015 {cite}`simonyan2015vgg` |
# | Claim | Keep everything else fixed and use 3x3 filters only: the deeper network recognises images better. |
# | You need | Convolution, ReLU, cross-entropy and backpropagation. No earlier chapter. |
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

import torch
import torch.nn.functional as F
from torch import nn

from helpers import cam, inspect, metrics, plot, train
from helpers.data import cifar10
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table

# %% [markdown]
# This chapter trains small networks on CIFAR-10 {cite}`krizhevsky2009cifar`: 60,000 photographs of 32x32 pixels in
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
        nn.Conv2d(3, channels, k, padding=k // 2), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    )  # fmt: skip


looks = []
for k in (1, 3, 5, 7, 11):
    train.set_seed(0)
    model = one_look(k)
    history = train.fit(model, data, epochs=1, lr=0.05, label=f"{k}x{k} patches")
    looks.append(
        {
            "k": k,
            "test accuracy in %": 100 * history.last("test_accuracy"),
            "weights of the first layer": model[0].weight.numel(),
            "multiply-adds of the first layer": inspect.count_macs(model[0], (3, 32, 32)),
        }
    )
Table(looks, decimals=1)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    left, right = fig.subplots(1, 2)
    sizes = [row["k"] for row in looks]
    left.plot(sizes, [row["test accuracy in %"] for row in looks], "o-")
    left.set(
        title="test accuracy in %", xlabel="side k of the patch that is seen", xticks=sizes
    )
    right.plot(
        sizes,
        [row["multiply-adds of the first layer"] / 1e6 for row in looks],
        "o-",
        color="C1",
    )
    right.set(
        title="million multiply-adds of the first layer",
        xlabel="side k of the patch that is seen",
        xticks=sizes,
    )


plot.show(
    draw,
    alt="Two line charts against the side k of the patch, 1 to 11. Left, test accuracy rises steeply at first and then "
    "flattens. Right, multiply-adds grow with the square of k.",
    caption="What a single layer of large filters buys, and what it costs. One pass over the training images each. "
    f"Data: {data.provenance}.",
)

# %% [markdown]
# Seeing more helps, and it is expensive: the cost of a layer grows with $k^2$. The networks that led in 2012 and 2013 paid
# that price with first layers of 11x11 and 7x7 filters {cite}`krizhevsky2012alexnet`. Is there a cheaper way to see
# far?

# %% [markdown]
# ## The idea: see far in small steps
#
# Stack 3x3 layers. A unit of the second layer sees 3x3 units of the first, each of which sees 3x3 pixels. Together
# that is 5x5 pixels. Three layers see 7x7.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    rows = ["input", "layer 1", "layer 2", "layer 3"]
    for layer in range(4):
        reach = 3 - layer
        for x in range(-4, 5):
            seen = abs(x) <= reach
            ax.plot(x, layer, "s", markersize=17, color="C0" if seen else "#dddddd")
            if layer and seen:
                for step in (-1, 0, 1):
                    ax.plot(
                        [x, x + step],
                        [layer - 0.14, layer - 0.86],
                        color="C1",
                        linewidth=1,
                        zorder=0,
                    )
        ax.text(
            4.6,
            layer,
            f"sees {2 * layer + 1}x{2 * layer + 1} pixels" if layer else "pixels",
            va="center",
        )
    ax.set_yticks(range(4), rows)
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
# $$ (eq-vgg-rf)
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
    rows.append(
        {
            "3x3 layers": layers,
            "sees": f"{k}x{k}",
            "weights": a,
            f"of one {'k x k'} layer": b,
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
# fmt: off
image = torch.tensor([[1., 2., 0., 1.],
                      [0., 1., 3., 1.],
                      [2., 0., 1., 0.],
                      [1., 1., 0., 2.]])
kernel = torch.tensor([[0.,  1., 0.],
                       [1., -4., 1.],
                       [0.,  1., 0.]])  # each pixel's neighbours minus four times itself
# fmt: on

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

composed = F.conv_transpose2d(
    second, first
)  # 5x5: every tap of the second filter leaves a copy of the first
stack = F.conv2d(F.conv2d(pixels, first), second)
print(
    "one 5x5 filter:",
    tuple(composed.shape[2:]),
    "- same output:",
    torch.allclose(stack, F.conv2d(pixels, composed)),
)

with_relu = F.conv2d(F.conv2d(pixels, first).relu(), second)
print(
    "with a ReLU between them still the same:",
    torch.allclose(with_relu, F.conv2d(pixels, composed)),
)

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
# fmt: off
CONFIGS = {
    "A":     [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B":     [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C":     [64, 64, "M", 128, 128, "M", 256, 256, (256, 1), "M", 512, 512, (512, 1), "M",
              512, 512, (512, 1), "M"],
    "D":     [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "E":     [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
# fmt: on

# %% [markdown]
# **Local response normalisation** comes from AlexNet {cite}`krizhevsky2012alexnet`. It divides each activation by the
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
        squares = F.pad(
            a.square(), (0, 0, 0, 0, self.n // 2, self.n // 2)
        )  # zeros beyond the first and last channel
        neighbours = sum(squares[:, shift : shift + channels] for shift in range(self.n))
        return a / (self.kappa + self.alpha * neighbours) ** self.beta


# %% [markdown]
# PyTorch has this layer too, and a trap with it: `F.local_response_norm` divides `alpha` by the window size. AlexNet's
# $10^{-4}$ is PyTorch's $5 \cdot 10^{-4}$.

# %% tags=["nbval-check-output"]
a = 30 * torch.randn(2, 8, 4, 4, generator=generator, dtype=torch.float64)
ours = LocalResponseNorm()(a)
print(
    "equal with alpha x n:",
    torch.allclose(ours, F.local_response_norm(a, 5, alpha=5e-4, beta=0.75, k=2.0)),
)
print(
    "equal with alpha as printed:",
    torch.allclose(ours, F.local_response_norm(a, 5, alpha=1e-4, beta=0.75, k=2.0)),
)

# %% [markdown]
# The network itself: the convolutions of a configuration, then three fully connected layers. The paper's networks and
# the small ones that we train come from this one class. `batch_norm` was not in the paper; batch normalisation (BN)
# {cite}`ioffe2015batchnorm` appeared a few months later. We come back to what it changes.


# %% tags=["model"]
class VGG(nn.Module):
    """A configuration as a network: images (N, 3, size, size) to logits (N, classes).

    config: a list as in CONFIGS. hidden: width of the first two fully connected layers.
    """

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
            nn.Linear(channels * size * size, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(
                    module.weight
                )  # the paper's choice is the subject of a section below
                nn.init.zeros_(module.bias)

    def forward(self, images):
        maps = self.features(images)  # (N, 512, 7, 7) for 224x224 images
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
# **Parameters.** The paper's Table 2 gives them in millions. Ours have to agree, to the parameter where a public
# implementation exists.

# %% tags=["nbval-check-output"]
PAPER_MILLIONS = {
    "A": 133,
    "A-LRN": 133,
    "B": 133,
    "C": 134,
    "D": 138,
    "E": 144,
}  # Table 2 of the paper

rows = []
for name, config in CONFIGS.items():
    with torch.device("meta"):
        model = VGG(config)
    rows.append(
        {
            "network": name,
            "weight layers": sum(
                isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()
            ),
            "parameters": inspect.count_parameters(model),
            "paper, millions (Table 2)": PAPER_MILLIONS[name],
            "multiply-adds": inspect.count_macs(model, (3, 224, 224)),
        }
    )
Table(rows)

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
    activations = [
        torch.tensor([int(n) for n in row["output"].split("x")]).prod().item() for row in rows
    ]
    panels = {
        "million parameters": [row["parameters"] / 1e6 for row in rows],
        "million multiply-adds": [row["multiply-adds"] / 1e6 for row in rows],
        "million activations": [count / 1e6 for count in activations],
    }
    for ax, (title, values) in zip(
        fig.subplots(1, 3, sharey=True), panels.items(), strict=True
    ):
        ax.barh(names, values, color=["C0"] * 13 + ["C1"] * 3)
        ax.set(title=title)
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
theirs.load_state_dict(weights, assign=True)  # both networks share the memory

images = torch.randn(1, 3, 224, 224, generator=generator, dtype=torch.float64)
with torch.inference_mode():
    a, b = ours(images), theirs(images)
print("the logits differ from class to class:", bool(a.std() > 1e-3))
difference = (a - b).abs().max() / a.abs().max()
print("largest relative difference below 1e-12:", bool(difference < 1e-12))
del ours, theirs

# %% [markdown]
# **Receptive field.** Equation {eq}`eq-vgg-rf` as a function, and what a unit of VGG-16 sees after each stage.


# %% tags=["model"]
def receptive_field(config):
    """(entry, r, j) after each convolution and pooling: what a unit sees, and the jump, in
    pixels."""
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
# In 2014 a network of 19 layers did not simply train. The paper draws weights from a normal distribution with standard
# deviation 0.01. Network A still learns from that start. The deeper networks did not start there: their first four
# convolutions and their fully connected layers were copied from the trained A. Only after the submission did the
# authors find that the initialisation of Glorot and Bengio {cite}`glorot2010` makes the detour unnecessary.
#
# We can see why without any training. Send an image through the 16 convolutions of network E and look at the size of the
# signal after each.

# %%
SCALES = {
    "normal, 0.01 (the paper's first choice)": lambda weight: nn.init.normal_(weight, std=0.01),
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
    alt="Log-scale line chart of signal size over 16 convolutions. With weights of standard deviation 0.01 it falls by many "
    "orders of magnitude, with Glorot's it falls slowly, with He's it stays near one.",
    caption="The signal through the 16 convolutions of network E before any training, for 16 test images. With the paper's "
    f"first choice little reaches the end, and as little of a gradient would come back. Data: {data.provenance}.",
)

# %%
ends = {name: f"{values[-1]:.1e}" for name, values in signals.items()}
Table(
    [
        {"initial weights": name, "signal after 16 convolutions": end}
        for name, end in ends.items()
    ]
)

# %% [markdown]
# Each layer multiplies the signal by about $\sqrt{9\,C/2}$ times the standard deviation of its weights. With 0.01 that is
# 0.17 for 64 channels and 0.48 for 512, and it happens sixteen times. Glorot's initialisation takes no account of the
# ReLU, which removes half of the signal's power. He's initialisation {cite}`he2015prelu` (2015)
# chooses the standard deviation so that the factor is 1. It is what our class uses. In the figure its line sinks at
# the end all the same: the last maps have 2x2 positions, and five of the nine weights fall on the border of zeros. With
# batch normalisation the question nearly disappears, because each layer's output is brought back to standard deviation 1 whatever the weights are.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | data | ILSVRC-2012, 1.3 M images, 1000 classes | CIFAR-10, 50,000 images, 10 classes | a laptop; numbers are not comparable, only directions |
# | crop | 224x224 | 32x32 | three poolings instead of five, or nothing would be left |
# | width | 64 to 512, hidden 4096 | 16 to 64, hidden 128 | D has 1/900 of the multiply-adds of VGG-16 |
# | normalisation | none | batch normalisation | trains in minutes and from any start; arms without it are in the study |
# | first weights | normal, 0.01, then copied from A | He | the section above |
# | augmentation | flip, crop, colour shift, scale jitter | flip, shift by up to 4 pixels | scale jitter has its own study below |
# | optimiser | SGD, momentum 0.9, weight decay 5e-4, batch 256, rate 0.01 cut to a tenth three times, 74 epochs | SGD, Nesterov momentum 0.9, weight decay 5e-4, batch 128, one cycle with peak 0.1, a few epochs | time |
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
parts = torch.stack(
    [gradient(*part) for part in zip(images.split(16), labels.split(16), strict=True)]
)
print(
    "the average of four gradients is the gradient of the batch:",
    torch.allclose(whole, parts.mean(0)),
)

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
print("mean of each channel within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
print(
    "standard deviation within 0.1 of 1:", bool(((batch.std((0, 2, 3)) - 1).abs() < 0.1).all())
)
print(
    "images of each class among the first 1000:",
    sorted(set(data.train.targets[:1000].bincount().tolist())),
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
losses = train_by_hand(
    model, data.normalize(data.train.images[:64]), data.train.targets[:64], epochs=40, lr=0.02
)
print(
    "guessing costs ln 10 = 2.303; 64 images learned by heart, loss below 0.1:",
    losses[-1] < 0.1,
)

# %% [markdown]
# Now the small network D, three 3x3 layers per stage, on all training images.

# %%
train.set_seed(0)
model = small_vgg(SMALL["D"])
history = train.fit(model, data, epochs=pick(full=6, quick=4), label="small VGG-D")
plot.histories(
    {"small VGG-D": history},
    alt="Training loss falls and test accuracy rises over the epochs of training.",
    caption="The small VGG-D learns.",
)

# %%
logits = train.predict(model, data, data.test.images)
labels = data.test.targets
Table(
    [
        {
            "test accuracy in %": 100 * metrics.accuracy(logits, labels),
            "top-1 error in %": 100 * metrics.top_k_error(logits, labels, 1),
            "top-5 error in %": 100 * metrics.top_k_error(logits, labels, 5),
            "seconds of training": history.last("seconds"),
            "images per second": history.images_per_second,
            "data": history.data,
        }
    ],
    decimals=1,
)

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
# The arms are the paper's Table 3 in miniature, two arms with large filters, and two without batch
# normalisation.

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
PAPER = {"A": 29.6, "A-LRN": 29.7, "B": 28.7, "C": 28.1, "D": 27.0, "E": 27.3}  # S = Q = 256

rows = []
for arm, settings in ARMS.items():
    accuracy, spread = DEPTH.mean(arm, "test_accuracy")
    network = small_vgg(settings["config"], settings.get("batch_norm", True))
    seconds = inspect.time_per_image(network, (3, 32, 32), batch_size=32, seconds=0.2)
    rows.append(
        {
            "network": arm,
            "paper: top-1 error": str(PAPER.get(arm, "")),
            "ours: error in %": f"{100 * (1 - accuracy):.2f} ± {100 * spread:.2f}",
            "train loss": DEPTH.mean(arm, "train_loss")[0],
            "parameters": int(DEPTH.mean(arm, "parameters")[0]),
            "in convolutions": int(DEPTH.mean(arm, "conv_weights")[0]),
            "million multiply-adds": DEPTH.mean(arm, "macs")[0] / 1e6,
            "ms per image": 1000 * seconds,
        }
    )
Table(rows, decimals={"million multiply-adds": 1, "ms per image": 2})

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
# Each claim is a difference between two arms in points of test accuracy, seed by seed. "Seen" means that the 95 % interval
# of the mean difference lies on the claim's side of zero, "reversed" that it lies on the other side. Three seeds make
# wide intervals, so small effects end as "not clear".

# %%
CLAIMS = [
    ("depth helps: A (1 layer a stage) to B (2)", "A", "B"),
    ("depth helps: B (2) to D (3)", "B", "D"),
    ("depth helps: D (3) to E (4)", "D", "E"),
    ("a third layer helps even if it is 1x1: B to C", "B", "C"),
    ("seeing more helps more: C (1x1) to D (3x3)", "C", "D"),
    ("two 3x3 beat one 5x5, equal field, about equal weights", "5x5", "B"),
    ("three 3x3 beat one 7x7, equal field, about equal weights", "7x7", "D"),
    ("LRN helps (the paper says it does not)", "A", "A-LRN"),
    ("depth helps without batch normalisation: A to E", "A without BN", "E without BN"),
]
rows = []
for claim, first, second in CLAIMS:
    effect = DEPTH.effect(first, second, "test_accuracy", scale=100)
    interval = f"{effect.low:+.2f} to {effect.high:+.2f}"
    points = f"{effect.mean:+.2f} ± {effect.sd:.2f}"
    rows.append(
        {"claim": claim, "points": points, "95 % interval": interval, "verdict": effect.verdict}
    )
Table(rows)

# %% [markdown]
# How to read this, claim by claim.
#
# **Depth.** The step from one layer a stage to two is worth several points, at every seed. After that the gain stops,
# and the fourth layer loses. Before you call that overfitting, look at the column "train loss": E has a *higher training
# loss* than D. It does not learn too much, it learns too little. The paper's own column stops improving at E as well,
# after far longer training. A deeper network that cannot even fit its training images as well: chapter 2 is about
# exactly that.
#
# **1x1 against 3x3.** D beats C, as in the paper. But C does not beat B here, and in the paper it does. Our C has three
# more layers and sees no further, and its training loss is higher than B's: it too learns too little in four epochs.
#
# **Small filters against large ones.** Both comparisons come out as the paper says. At the same receptive field and
# about the same number of weights, the stacks of 3x3 win by several points. The paper compares B with a
# twin whose pairs of 3x3 layers are replaced by one 5x5 layer, and finds the twin's top-1 error 7 points higher (Section
# 4.1).
#
# **LRN.** No gain, as in the paper, and it costs time.
#
# **Without batch normalisation** the claim itself turns around: E falls far behind A. In a few epochs the deep
# network without normalisation learns far less than the shallow one: look at "train loss" again. In the paper depth wins
# without normalisation. It trained for 74 epochs, and helped the deep networks with their first weights.

# %% [markdown]
# ## Any image size: fully connected layers are convolutions
#
# A fully connected layer on a 7x7 map computes, for each output, the sum of 7x7x512 products. So does a 7x7 convolution
# at a position where it fits exactly once. Reshape the weights, and the classifier becomes convolutional: it accepts a
# larger image and answers at every position. The paper calls this **dense evaluation**, and chapter 12 builds
# segmentation on it.


# %% tags=["model"]
def fully_convolutional(model):
    """The same VGG with its linear layers as convolutions: images of any size to logits
    (N, classes, h, w)."""
    layers = list(model.features)
    channels = next(m.out_channels for m in reversed(layers) if isinstance(m, nn.Conv2d))
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            side = round(
                (layer.in_features / channels) ** 0.5
            )  # 7 for the paper's first, then 1
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
    print(
        "logits of a 32x32 image:",
        tuple(same_size.shape[1:]),
        "- of a 48x48 image:",
        tuple(larger.shape[1:]),
    )
    print(
        "equal to the classifier's:",
        torch.allclose(same_size[..., 0, 0], model(images), rtol=1e-4, atol=1e-4),
    )

# %% [markdown]
# The map of logits is averaged over its positions to one verdict per image. The alternative is to cut many crops and
# average their verdicts. They differ at the borders: a crop is padded with zeros, while inside a dense map
# the neighbours are real pixels. Dense evaluation computes shared positions once, so it is also much cheaper. The
# paper measures 24.8 % top-1 error for E with dense evaluation, 24.6 % with 150 crops, 24.4 % with both averaged (its Table 5).
#
# ### Training scale S and test scale Q
#
# ImageNet photographs have objects of all sizes. The paper rescales a training image so that its shorter side is $S$
# and cuts a 224x224 crop. Either $S$ is fixed, or it is drawn anew from $[256, 512]$ for each image: **scale jittering**.
# At test time the image is rescaled to $Q$ and evaluated densely. What does jittering buy?
#
# Our miniature: crops of 32x32 from images rescaled to $S$, three seeds, network B. Each trained network is then tested densely at
# five scales $Q$.


# %% tags=["model"]
class RescaleAndCrop:
    """Rescale a batch to a side drawn from [low, high], cut one crop of `size` at random, flip
    half of the images."""

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


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    for arm in SCALE.arms:
        means, spreads = zip(
            *[SCALE.mean(arm, f"accuracy_at_{Q}") for Q in SCALES_TESTED], strict=True
        )
        ax.errorbar(
            SCALES_TESTED,
            [100 * m for m in means],
            [100 * s for s in spreads],
            marker="o",
            capsize=3,
            label=arm,
        )
    ax.set(xlabel="test scale Q", title="test accuracy in %", xticks=SCALES_TESTED)
    ax.legend(title="training scale")


plot.show(
    draw,
    alt="Line chart of test accuracy against test scale Q for three training scales: fixed 32, fixed 40, and jittered "
    "between 32 and 48.",
    caption="Each network is at its best near the scale that it was trained at. Mean and standard deviation of three "
    f"seeds. Data: {SCALE.provenance()}.",
)

# %% [markdown]
# Every network is at its best near the scale that it was trained at, and the fixed $S = 32$ falls apart on large
# images: its filters have never seen large objects. But jittering buys little here. Its curve lies close to that of
# the fixed $S = 40$, the middle of its range: a little higher below, a little lower above.
#
# In the paper jittering is worth more: D has 27.0 % top-1 error with $S = 256$, 26.8 % with $S = 384$, and 25.6 % with $S$
# from $[256, 512]$ (Table 3). Three differences may matter: its photographs hold detail at 512 pixels that ours lack at 48, its objects vary
# more in size than CIFAR's centred ones, and its training is long enough to profit from variety. And the best
# number of all is that of $S = 32$ at its own scale: here, rescaling costs more than it gives.
#
# The studies above were measured once. To be sure that their code still runs, each arm trains here for a moment on
# 128 images, and the result is thrown away.

# %% tags=["nbval-check-output"]
few = cifar10(train=128, test=100)
print("all arms of the depth study run:", len(DEPTH.rehearse(few)) == len(ARMS))
print("all arms of the scale study run:", len(SCALE.rehearse(few)) == len(SCALE.arms))

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# These are the test images on which the small VGG-D is most sure of a wrong answer. Look at each and decide: who is
# wrong? In the run that you see in the book, one of them is a plain green frog that the data set calls a cat.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
confidence, predicted = logits.softmax(1).max(1)
wrong = (predicted != data.test.targets).nonzero().squeeze(1)
worst = wrong[confidence[wrong].argsort(descending=True)][:8]


def names_of(index, classes):
    return [data.classes[label] for label in classes[index]]


pairs = zip(
    names_of(worst, predicted),
    names_of(worst, data.test.targets),
    confidence[worst],
    strict=True,
)
plot.images(
    data.test.images[worst],
    titles=[f"{p}, {100 * c:.1f} %\nis {t}" for p, t, c in pairs],
    columns=8,
    inches=1.0,
    alt=f"Eight misclassified test images. Predicted: {', '.join(names_of(worst, predicted))}. True: "
    f"{', '.join(names_of(worst, data.test.targets))}.",
    caption=f"The most confident mistakes, with the predicted class, its probability and the truth. Data: {data.provenance}.",
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.confusion(
    metrics.confusion(logits, data.test.targets),
    data.classes,
    alt="Confusion matrix of the ten classes in percent of each true class; most of the weight is on the diagonal.",
    caption=f"Who is taken for whom, in percent of each true class. Data: {data.provenance}.",
)

# %% [markdown]
# ### Where does it look?
#
# Grad-CAM {cite}`selvaraju2017gradcam` marks the places of a feature map that raise the score of a class. Chapter 15 derives it;
# here it is a tool. We take the last convolution, whose map has 8x8 positions. One pooling later there would be 4x4, too few to
# point at anything.
#
# The same eight images, and two questions to each: what spoke for the wrong class, and what spoke for the right one?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
last_convolution = [
    name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
][-1]


def maps(index, classes):
    return cam.grad_cam(
        model,
        last_convolution,
        data.normalize(data.test.images[index]),
        classes[index],
        size=(32, 32),
    )


plot.cams(
    data.test.images[worst],
    None,
    titles=[
        f"{p}\nis {t}"
        for p, t in zip(
            names_of(worst, predicted), names_of(worst, data.test.targets), strict=True
        )
    ],
    rows_of_maps={
        "for the\nprediction": maps(worst, predicted),
        "for the\ntruth": maps(worst, data.test.targets),
    },
    alt="The eight mistakes, and below each two heat maps: where the evidence for the predicted and for the true class lies.",
    caption="Grad-CAM on the most confident mistakes; bright means evidence. Each map is scaled to its own range. "
    f"Data: {data.provenance}.",
)

# %% [markdown]
# And the first test image of each class, whatever the network says about it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fixed = torch.tensor([int((data.test.targets == label).nonzero()[0]) for label in range(10)])
plot.cams(
    data.test.images[fixed],
    maps(fixed, predicted),
    titles=[
        f"{p}\nis {t}"
        for p, t in zip(
            names_of(fixed, predicted), names_of(fixed, data.test.targets), strict=True
        )
    ],
    alt="Ten test images, one of each class, and below each a heat map of the evidence for the predicted class.",
    caption="The predicted class above the true one, and the evidence for the prediction. These ten images come back in "
    f"later chapters. Data: {data.provenance}.",
)

# %% [markdown]
# ### What a unit could see, and what it does see
#
# The receptive field is what a unit *could* see. How much each pixel really moves the unit can be measured: by the
# gradient of the unit with respect to the image. Luo et al. {cite}`luo2016erf` found that the **effective receptive
# field** is a bump, much smaller than the theoretical one. Paths through the middle are many; to the corner there is one.

# %%
convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
sample = data.normalize(data.test.images[: pick(full=500, quick=50)])
fields = {}
for stage in (1, 2, 3):
    last = convolutions[3 * stage - 1]  # three convolutions a stage
    fields[f"stage {stage}"] = inspect.input_gradient(model, last, sample).mean(0)
could_see = [r for entry, r, j in receptive_field(SMALL["D"]) if entry != "M"][2::3]


def side_of_most(field, share=0.9):
    """Side of a square with as many pixels as the fewest that hold `share` of the gradient."""
    largest_first = field.flatten().sort(descending=True).values
    return int((largest_first.cumsum(0) < share * field.sum()).sum()) ** 0.5


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    for ax, (stage, field), r in zip(
        fig.subplots(1, 3), fields.items(), could_see, strict=True
    ):
        ax.imshow(field / field.max(), cmap="inferno", vmin=0, vmax=1)
        side, centre = min(r, 32), 16 if r < 32 else 15.5
        ax.add_patch(plot.rectangle(centre - side / 2, centre - side / 2, side, side))
        most = f"{side_of_most(field):.0f}x{side_of_most(field):.0f}"
        ax.set_title(f"{stage}: could see {r}x{r},\n90 % within {most} pixels", fontsize=9)
        ax.set_axis_off()


plot.show(
    draw,
    alt="Three heat maps of input gradients for the centre unit of the three stages. Each is bright around the middle and "
    "darker towards the edges of a square that marks the theoretical receptive field.",
    caption="Mean size of the gradient with respect to each pixel. Square: the theoretical receptive field; that of stage 3 "
    f"is larger than the image. Data: {data.provenance}.",
    height=2.9,
)

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
    last = stack[-2]  # the convolution before the last ReLU
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
    right.barh(
        ["this stack", "one layer that\nsees as far"],
        [layers * kernel**2, r**2],
        color=["C0", "C1"],
    )
    right.set(title="weights, in units of C²", xlim=(0, 1.25 * r**2))
    for y, count in enumerate((layers * kernel**2, r**2)):
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
    assert count(["M"], 10, 4, 2) == 3 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10, (
        "no convolution: 3 channels on a 1x1 map."
    )
    for name, parameters in {"A": 132_863_336, "C": 133_638_952, "E": 143_667_240}.items():
        got = count(CONFIGS[name], 1000, 4096, 224)
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
# average the ten softmax outputs. `images` are normalised, (N, 3, H, W); return (N, classes). Then compare with the dense
# evaluation of the same images rescaled to 40 pixels. When do they disagree, and why?


# %%
def check_crops(ten_crops):
    images = torch.arange(2 * 3 * 6 * 6.0).reshape(2, 3, 6, 6)
    seen = []

    def spy(crops):
        seen.append(crops)
        return crops.mean((2, 3))

    got = ten_crops(spy, images, 4)
    crops = torch.cat(seen)
    assert crops.shape == (20, 3, 4, 4), (
        f"ten crops of two images are (20, 3, 4, 4) in all, not {tuple(crops.shape)}."
    )
    corner = images[:, :, 2:, 2:]
    assert any(torch.equal(crops[i], corner[0]) for i in range(20)), (
        "the lower right corner is missing."
    )
    assert any(torch.equal(crops[i], corner[0].flip(-1)) for i in range(20)), (
        "the mirrored corner is missing."
    )
    assert torch.allclose(got.sum(1), torch.ones(2)), (
        "average probabilities (softmax), not logits."
    )


def ten_crops(model, images, size):
    raise NotImplementedError


attempt(check_crops, ten_crops)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def ten_crops_solution(model, images, size):
    far, middle = images.shape[-1] - size, (images.shape[-1] - size) // 2
    verdicts = []
    for y, x in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
        crop = images[:, :, y : y + size, x : x + size]
        verdicts += [model(crop).softmax(1), model(crop.flip(-1)).softmax(1)]
    return torch.stack(verdicts).mean(0)


verify(check_crops, ten_crops_solution)

# %% [markdown]
# **5. (open)** The `7x7` arm of the depth study has one layer per stage, D has three. So the comparison changes depth and filter size
# at once. Design an arm that separates the two, add it to `ARMS`, and measure it with `./course study 01_vgg`.

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

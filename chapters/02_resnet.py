# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ResNet: layers that add to what they get
#
# | | |
# |:--|:--|
# | Paper | K. He, X. Zhang, S. Ren and J. Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 [[He et al., 2016a](../pages/bibliography.md#he2016resnet)] |
# | Claim | Let layers learn what to add to their input instead of what to replace it with: then networks of a hundred layers train, and the deeper one is the better one. |
# | You need | [Chapter 1](01_vgg): stacks of 3x3 convolutions, He's initialisation, the training loop. |
# | Time | About an hour to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - tell degradation from overfitting and from vanishing gradients, and say which measurement decides;
# - rebuild ResNet-18 to 152 and the CIFAR ResNets 20 to 1202 on paper, to the parameter;
# - choose between shortcuts A, B and C and between two places for the stride, and say what each costs.
#
# **Before you read on, guess.** Into a network of 20 layers with batch normalisation you insert 36 more of the same kind,
# and change nothing else. Does the error *on the training images* fall, stay or rise? Write your answer down.

# %% [markdown]
# ## Setup

# %% tags=["model"]
import time
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from helpers import diagram, inspect, metrics, naming, plot, train
from helpers.claims import Claims
from helpers.data import cifar10, named_pictures
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants
from helpers.weights import Weights

# %% [markdown]
# Deep networks are slow, so our comparisons run on CIFAR-10
# [[Krizhevsky, 2009](../pages/bibliography.md#krizhevsky2009cifar)] at half its size: each 2x2 square of pixels becomes one.


# %% tags=["model"]
def halve(images):
    """uint8 images (N, 3, H, W) at half the size: each 2x2 square becomes its mean, rounded."""
    _, channels, height, width = images.shape
    squares = images.view(-1, channels, height // 2, 2, width // 2, 2)
    sums = [some.sum((3, 5), dtype=torch.int16) for some in squares.split(5000)]
    return torch.cat([((some + 2) // 4).to(torch.uint8) for some in sums])


def at_16_pixels(data):
    """CIFAR-10 with every image halved, and the provenance saying so."""
    note = replace(data.provenance, detail=f"{data.provenance.detail}, at 16x16 pixels")
    halved = {
        name: replace(split, images=halve(split.images))
        for name, split in (("train", data.train), ("test", data.test))
    }
    return replace(data, **halved, provenance=note)


# %%
started = time.perf_counter()
train.set_seed(0)
data = cifar10(train=pick(full=None, quick=640), test=pick(full=None, quick=300))
small = at_16_pixels(
    cifar10(train=pick(full=10_000, quick=640), test=pick(full=2000, quick=300))
)

# %% [markdown]
# ## The problem: deeper is slower, and then?
#
# With batch normalisation [[Ioffe and Szegedy, 2015](../pages/bibliography.md#ioffe2015batchnorm)] and He's initialisation
# [[He et al., 2015](../pages/bibliography.md#he2015prelu)], networks of many more layers than chapter 1's 19 start to learn. Do they learn better, the
# deeper they are?
#
# Here are **plain** networks: 3x3 convolutions, each with batch normalisation and a ReLU, in three stages of 8, 16
# and 32 channels. The map halves from stage to stage.


# %%
def plain(depth, width=8):
    """depth - 1 convolutions one after the other, then one linear layer."""
    per_stage = (depth - 2) // 3
    stages = [width] * (per_stage + 1) + [2 * width] * per_stage + [4 * width] * per_stage
    layers, before = [], 3
    for channels in stages:
        stride = 1 if before in (3, channels) else 2
        convolution = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


# %% [markdown]
# The **test error** is that on new images. The **training error** is that on the images which the network has learned
# from: here the first 2,000 of them, without augmentation.


# %% tags=["model"]
def with_training_error(model, data, images=2000):
    """Test loss and accuracy, and the error on the first training images, not augmented."""
    logits = train.predict(model, data, data.train.images[:images])
    error = 1 - metrics.accuracy(logits, data.train.targets[:images])
    return {**train.evaluate(model, data), "train_error": error}


def train_small(model, data, epochs, seed=0, label="training"):
    """The recipe of all comparisons in this chapter; returns the history."""
    return train.fit(
        model,
        data,
        epochs=epochs,
        weight_decay=1e-4,
        augment=train.Augment(shift=2),
        evaluate=with_training_error,
        eval_every=epochs,
        seed=seed,
        label=label,
    )


# %%
networks, histories = {}, {}
epochs = pick(full=4, quick=1)
for depth in (8, 20, 32, 56):
    name = f"plain-{depth}"
    train.set_seed(0)
    networks[name] = plain(depth)
    histories[name] = train_small(networks[name], small, epochs, label=name)


# %%
def outcome(name):
    """One row of a table: what a network cost and where it ended."""
    history = histories[name]
    return {
        "network": name,
        "parameters": inspect.count_parameters(networks[name]),
        "training loss": history.last("train_loss"),
        "training error in %": 100 * history.last("train_error"),
        "test error in %": 100 * (1 - history.last("test_accuracy")),
    }


DECIMALS = {"training error in %": 1, "test error in %": 1}
Table([outcome(name) for name in histories], decimals=DECIMALS)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_losses(ax, name, **style):
    """The training loss along the way, averaged over 50 steps."""
    steps, losses = zip(*histories[name].losses, strict=True)
    windows = [losses[max(0, i - 4) : i + 1] for i in range(len(losses))]
    smooth = [sum(window) / len(window) for window in windows]
    ax.plot(steps, smooth, "o" if len(steps) == 1 else "-", label=name, **style)


def draw(fig):
    ax = fig.subplots()
    for shade, name in zip((0.3, 0.5, 0.75, 1.0), list(histories)[:4], strict=True):
        draw_losses(ax, name, color="C0", alpha=shade)
    ax.set(xlabel="step", title="training loss")
    ax.legend()


plot.show(
    draw,
    alt="Training loss over the steps of training for plain networks of 8, 20, 32 and 56 layers, one line each.",
    caption="Plain networks that differ in depth alone, with the same batches. The darker the line, the deeper the "
    f"network. Data: {small.provenance}.",
)

# %% [markdown]
# The more layers, the slower the training loss falls, and both errors rise from row to row. This is not yet the
# paper's finding. After some 300 steps even the shallowest network has learned little. We see that deeper is *slower*.
# Does the deeper one catch up?
#
# The paper trains to the end, and the answer is no. On CIFAR-10, after 64,000 steps, a plain network of 56 layers has a
# *higher training error* than one of 20 (Figures 1 and 6); on ImageNet one of 34 than one of 18 (Figure 4). Three times as
# many steps did not cure it (footnote 3). The paper calls this **degradation**. It is
#
# - **not overfitting.** A network that overfits is good on its training images. This one is bad on them;
# - **not a lack of capacity.** The deeper network contains the shallower one, as we show next.
#
# Whether it happens here, too, a longer study further down is designed to find out.

# %% [markdown]
# ### A better solution exists
#
# Take the trained network of 20 layers. Behind each ReLU but the first, insert two layers that copy their input:
# the filter is 1 in the middle and 0 elsewhere, the normalisation does nothing, and the ReLU finds nothing negative.
# These 56 layers have the training error of the 20.


# %%
def copying_layer(channels):
    """Convolution, batch normalisation and ReLU that hand on what is not negative."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight)
    return [convolution, nn.BatchNorm2d(channels, eps=0.0), nn.ReLU()]


layers, channels = [], None
for position, layer in enumerate(networks["plain-20"]):
    channels = getattr(layer, "out_channels", channels)
    layers.append(layer)
    if isinstance(layer, nn.ReLU) and position > 2:
        layers += copying_layer(channels) + copying_layer(channels)
constructed = nn.Sequential(*layers).eval()

# %% tags=["nbval-check-output"]
images = small.normalize(small.test.images[:100])
with torch.inference_mode():
    same = torch.allclose(constructed(images), networks["plain-20"](images), atol=1e-4)
weights = [layer for layer in constructed if isinstance(layer, (nn.Conv2d, nn.Linear))]
print("weight layers:", len(weights))
as_many = inspect.count_parameters(constructed) == inspect.count_parameters(plain(56))
print("as many parameters as the plain network of 56 layers:", as_many)
print("same answers as the network of 20 layers:", same)

# %% [markdown]
# So 56 layers *can* do at least as well as 20. Gradient descent does not get there in our short training. A layer with
# random first weights is far from copying, and a copy is hard to learn: every weight has to come out right. What if
# copying were the default?
#
# ### A page on batch normalisation
#
# For each channel, let $\mu$ and $\sigma^2$ be mean and variance of its values $a$ over all images of the batch and all positions, and $\epsilon$ a
# tiny number. Two numbers per channel, $\gamma$ and $\beta$, are learned:
#
# $$ \hat{a} = \frac{a - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad \mathrm{BN}(a) = \gamma\, \hat{a} + \beta. \tag{2.1} $$ <a id="eq-resnet-bn"></a>
#
# In **training** $\mu$ and $\sigma^2$ are those of the batch, so the answer for an image depends on the others in it.
# In **evaluation** it must not: running averages, collected in training, take their place.


# %% tags=["nbval-check-output"]
def normalise(a, mean, variance, eps=1e-5):
    """The equation above with gamma = 1 and beta = 0, on maps (N, C, H, W); mean and variance are (C,)."""
    return (a - mean[:, None, None]) / (variance[:, None, None] + eps).sqrt()


generator = torch.Generator().manual_seed(0)
a = 2 + 3 * torch.randn(8, 4, 5, 5, generator=generator)
norm = nn.BatchNorm2d(4)
by_hand = normalise(a, a.mean((0, 2, 3)), a.var((0, 2, 3), correction=0))
print("training, the batch's own statistics:", torch.allclose(norm(a), by_hand, atol=1e-5))
norm.eval()
print("evaluation gives the same:", torch.allclose(norm(a), by_hand, atol=1e-5))
by_hand = normalise(a, norm.running_mean, norm.running_var)
print("but what the running averages give:", torch.allclose(norm(a), by_hand, atol=1e-5))

# %% [markdown]
# After a single step the running averages are still near mean 0 and variance 1, where they began. So a network that
# trained too few steps can look worse in evaluation than it is.
#
# Ten times the weights before the normalisation are ten times the mean and the deviation, and the factor is divided out
# again. What still sets the size of the output?

# %%
layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
first_weights, rows = layer[0].weight.detach().clone(), []
for size, gamma in ((1, 1), (0.1, 1), (1, 0.1), (1, 0)):
    layer[0].weight.data = size * first_weights
    layer[1].weight.data.fill_(gamma)
    deviation = float(layer(a).detach().std())
    rows.append({"weights times": size, "gamma": gamma, "deviation of the output": deviation})
Table(rows, decimals=2)

# %% [markdown]
# **The size of the weights does nothing; $\gamma$ does everything.**

# %% [markdown]
# ## The idea: learn the difference
#
# Let $H(\mathbf{x})$ be what a few layers ought to compute. Ask them not for $H$ but for the **residual**
# $F(\mathbf{x}) = H(\mathbf{x}) - \mathbf{x}$, and add the input afterwards:
#
# $$ \mathbf{y} = F(\mathbf{x}, \{W_i\}) + \mathbf{x}. \tag{2.2} $$ <a id="eq-resnet-block"></a>
#
# What the layers can compute stays the same. What changes is their default. The paper's intuition: if a copy is best, it
# is easier to push $F$ to zero than to make several layers copy.
#
# How is $F$ pushed to zero? Not by small weights: batch normalisation undoes them. It takes the $\gamma$ of the last
# normalisation in $F$. With $\gamma = 0$ the block copies, whatever its weights. The paper says nothing of $\gamma$; where it starts at
# 1, as usual, blocks do *not* start as copies; later work [[Goyal et al., 2017](../pages/bibliography.md#goyal2017accurate)] starts with $\gamma = 0$.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_block(ax, title, names, way_around=None):
    """Boxes from top to bottom; `way_around` labels an arrow past all of them into a circle."""
    places = [0.81 - 0.19 * i for i in range(len(names) + (way_around is not None) + 1)]
    ax.text(0, 1.0, "x", ha="center", va="center", style="italic")
    for top, bottom in zip([0.97, *places], [*places, places[-1] - 0.2], strict=True):
        diagram.arrow(ax, (0, top - 0.03), (0, bottom + 0.05))
    for y, name in zip(places, names, strict=False):
        diagram.box(ax, 0, y, name)
    if way_around:
        y = places[-2]
        diagram.plus(ax, 0, y)
        ax.plot([0.05, 0.82, 0.82, 0.2], [0.95, 0.95, y, y], color="C1", linewidth=1.8)
        diagram.arrow(ax, (0.25, y), (0.09, y), colour="C1")
        ax.text(0.87, 0.55, way_around, fontsize=9, color="C1", va="center")
    diagram.box(ax, 0, places[-1], "ReLU")
    ax.text(0.06, places[-1] + 0.095, "y", style="italic", va="center")
    ax.text(0, places[-1] - 0.21, "σ(y)", ha="center", va="center", style="italic")
    ax.set(xlim=(-0.75, 1.6), ylim=(-0.2, 1.06))
    # above the column at 0, not above the middle
    ax.set_title(title, loc="center", x=0.75 / 2.35)
    ax.set_axis_off()


def draw(fig):
    layers = ["3x3 convolution, BN", "ReLU", "3x3 convolution, BN"]
    axes = fig.subplots(1, 3)
    draw_block(axes[0], "plain", layers)
    draw_block(axes[1], "residual", layers, "x itself")
    draw_block(axes[2], "residual, new shape", layers, "$W_s$x, stride 2")


plot.show(
    draw,
    alt="Three diagrams. Plain: two convolutions in a row. Residual: the same, and a line from the input past both of them to "
    "an addition before the last ReLU. Residual with a new shape: the line carries a projection with stride 2.",
    caption="Two layers without a shortcut, with an identity shortcut, and where the shape changes. The sum is y; the last "
    "ReLU comes after it.",
    height=3.7,
)

# %% [markdown]
# The basic block has two layers, $F(\mathbf{x}) = W_2\, \sigma(W_1 \mathbf{x})$, and a second ReLU after the
# addition: it hands on $\sigma(\mathbf{y})$. Batch normalisation (BN) follows each convolution, before the ReLU. With a
# single layer, $W_1\mathbf{x} + \mathbf{x}$ would just be another linear map, and the paper saw no gain from it.
#
# The addition needs equal shapes. Where the shape changes, the shortcut is **projected**:
#
# $$ \mathbf{y} = F(\mathbf{x}, \{W_i\}) + W_s \mathbf{x}. \tag{2.3} $$ <a id="eq-resnet-projection"></a>
#
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $\mathbf{x}$ | input of a block | `(N, before, H, W)` | `x` |
# | $F$ | the residual | `(N, after, H/s, W/s)` | `branch(x)` |
# | $W_i$ | weights of its layers | `(out, in, 3, 3)` | `conv1`, `conv2` |
# | $W_s$ | projection, a 1x1 convolution | `(after, before, 1, 1)` | `downsample` |
# | $\sigma$ | ReLU; in [(2.1)](#eq-resnet-bn) the deviation | | `relu` |
# | $s$ | stride, 1 or 2 | number | `stride` |
# | $\mathbf{y}$ | the sum, before the last ReLU | `(N, after, H/s, W/s)` | `y` |
# | $\gamma$ | scale of a batch normalisation | `(C,)` | `bn2.weight` |
#
# An identity shortcut has no parameters and no multiplications. So a plain and a residual network can be compared
# at equal depth, width, parameters and multiply-adds.
#
# ### Why a copy is the right default
#
# Think of the functions that a network of a given depth can compute as a region, and of the unknown best function as a
# point.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    from matplotlib.patches import Ellipse

    spread = [((0.9, 1.0), 0.9), ((2.0, 1.5), 1.3), ((0.6, 2.6), 1.7)]
    nested = [((1.0, 1.0), 0.9), ((1.25, 1.25), 1.7), ((1.5, 1.5), 2.5)]
    for ax, regions, title in zip(
        fig.subplots(1, 2),
        (spread, nested),
        ("larger, elsewhere", "larger, around"),
        strict=True,
    ):
        for depth, (centre, size) in enumerate(regions, 1):
            style = dict(facecolor="C0", alpha=0.16, edgecolor="C0", linewidth=1.5)
            ax.add_patch(Ellipse(centre, size, 0.8 * size, **style))
            top = centre[1] + 0.4 * size - 0.23
            ax.text(centre[0], top, f"{8 * depth} layers", ha="center", fontsize=8)
        ax.plot(2.55, 2.25, "*", color="C1", markersize=13)
        ax.text(2.65, 2.4, "best", color="C1", fontsize=9)
        ax.set(xlim=(-0.5, 3.3), ylim=(0.3, 3.5), aspect="equal")
        ax.set_title(title, loc="center")
        ax.set_axis_off()


plot.show(
    draw,
    alt="Two drawings of three regions that grow with depth, and a star for the best function. Left, the regions lie apart and the "
    "largest is farther from the star than the middle one. Right, each region contains the one before.",
    caption="Functions that networks of three depths can compute, as a sketch. Only on the right is deeper never farther from the "
    "best.",
    height=2.6,
)

# %% [markdown]
# On the right, each region *contains* the smaller one. Plain networks are of this kind, too: we built 56 layers from 20.
# But those 20 layers are one point in a large region, and training starts somewhere else in it. With shortcuts, the
# shallower network is what remains when the new blocks have $F = 0$. Copying is rarely the answer, but it is a safe start.

# %% [markdown]
# ### Where the idea comes from
#
# - **Residual encodings.** VLAD and Fisher vectors, older image descriptions, hold the *differences* of features to a
#   dictionary of typical ones.
# - **Multigrid.** Solvers of partial differential equations compute corrections between a coarse and a fine grid.
# - **Shortcuts.** Earlier networks had connections from the input to the output, or to additional classifiers.
# - **Highway networks** [[Srivastava et al., 2015](../pages/bibliography.md#srivastava2015highway)] came at the same time. They mix with a learned
#   gate, $\mathbf{y} = T(\mathbf{x})\,H(\mathbf{x}) + (1 - T(\mathbf{x}))\,\mathbf{x}$. The gate costs parameters,
#   and where it opens for $H$, the shortcut closes. That of a ResNet is free and never closes.

# %% [markdown]
# ## The smallest piece by hand
#
# A block with one channel of 4x4 numbers, two filters, no batch normalisation.

# %% tags=["nbval-check-output"]
x = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 1], [2, 0, 1, 0], [1, 1, 0, 2]])
# the left neighbour less the pixel
first = torch.tensor([[0.0, 0, 0], [1, -1, 0], [0, 0, 0]])
# the mean of the pixels above and below
second = torch.tensor([[0, 0.5, 0], [0, 0, 0], [0, 0.5, 0]])


def slide(image, kernel):
    """The sum of the nine products at every position, zeros outside (chapter 1)."""
    # (4, 4, 3, 3)
    windows = F.pad(image, (1, 1, 1, 1)).unfold(0, 3, 1).unfold(1, 3, 1)
    return (windows * kernel).sum((2, 3))


def branch_by_hand(x, first, second):
    return slide(slide(x, first).clamp_min(0), second)


def block_by_hand(x, first, second):
    return (branch_by_hand(x, first, second) + x).clamp_min(0)


def block_by_torch(x, first, second):
    x, first, second = x[None, None], first[None, None], second[None, None]
    hidden = F.relu(F.conv2d(x, first, padding=1))
    return F.relu(F.conv2d(hidden, second, padding=1) + x)[0, 0]


by_hand = block_by_hand(x, first, second)
print(by_hand)
print("same as PyTorch:", torch.equal(by_hand, block_by_torch(x, first, second)))
print("a copy when F is zero:", torch.equal(block_by_hand(x, first, 0 * second), x))

# %% [markdown]
# Now backwards. The derivative of [(2.2)](#eq-resnet-block) is
#
# $$ \frac{\partial \mathbf{y}}{\partial \mathbf{x}} = I + \frac{\partial F}{\partial \mathbf{x}}. \tag{2.4} $$ <a id="eq-resnet-gradient"></a>
#
# Whatever $F$ does, the identity matrix $I$ is there. In the plain network the gradient is multiplied by one matrix
# after the other. Here is the $I$ in the 16x16 matrix of derivatives of our block before its last ReLU.

# %% tags=["nbval-check-output"]
jacobian = torch.autograd.functional.jacobian
of_branch = jacobian(lambda x: branch_by_hand(x, first, second), x)
of_block = jacobian(lambda x: branch_by_hand(x, first, second) + x, x)
difference = (of_block - of_branch).reshape(16, 16)
same = torch.equal(difference, torch.eye(16))
print("derivative of the block less that of F is the identity:", same)

# %% [markdown]
# Through a whole network this holds less purely. Between two blocks stands a ReLU, which stops the gradient where $\mathbf{y}$ is
# negative, and at the start of a stage a projection.

# %% [markdown]
# ## The blocks
#
# ### Three shortcuts
#
# Where the shape stays, the shortcut can be the identity. The paper compares three options:
#
# - **A**: where it changes, take every second pixel in each direction, and fill the new channels with zeros. No parameters.
# - **B**: where it changes, a projection $W_s$: a 1x1 convolution with stride 2, then batch normalisation.
# - **C**: a projection in every block.


# %% tags=["model"]
class ZeroPad(nn.Module):
    """Option A: every `stride`-th pixel of (N, C, H, W), then zeros up to `channels`."""

    def __init__(self, channels, stride):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def shortcut(option, before, after, stride):
    """The way around a block, from `before` to `after` channels. Option None: there is none."""
    if option is None:
        return None
    if option not in ("A", "B", "C"):
        raise ValueError(f"option {option!r} is none of A, B, C, or None for a plain block.")
    same_shape = before == after and stride == 1
    if option == "C" or (option == "B" and not same_shape):
        return nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        )
    return nn.Identity() if same_shape else ZeroPad(after, stride)


# %% [markdown]
# Option A on our 4x4 numbers, to three channels:

# %% tags=["nbval-check-output"]
print(shortcut("A", 1, 3, stride=2)(x[None, None])[0])

# %% [markdown]
# ### The basic block
#
# All blocks share one line, equation [(2.3)](#eq-resnet-projection) with a ReLU around it. They differ in the layers of
# $F$.


# %% tags=["model"]
class Block(nn.Module):
    """relu(F(x) + shortcut(x)), or relu(F(x)) for a plain block. A subclass gives F as `branch`."""

    def forward(self, x):
        y = self.branch(x)
        if self.downsample is not None:
            y = y + self.downsample(x)
        return self.relu(y)


class BasicBlock(Block):
    """Two 3x3 convolutions: (N, before, H, W) to (N, channels, H/stride, W/stride)."""

    # channels of the output over `channels`
    expansion = 1

    def __init__(self, before, channels, stride=1, option="B"):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(option, before, channels, stride)

    def branch(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


# %% [markdown]
# The convolutions have no bias, because the batch normalisation behind each has one. A probe: the shape, and that with
# $\gamma = 0$ in its last normalisation the block hands on its input, less what is negative.

# %% tags=["nbval-check-output"]
block = BasicBlock(64, 128, stride=2)
print("shape:", tuple(block(torch.zeros(1, 64, 56, 56)).shape))

block = BasicBlock(64, 64)
nn.init.zeros_(block.bn2.weight)
features = torch.randn(2, 64, 8, 8)
print("with F = 0 it is a ReLU:", torch.equal(block(features), features.relu()))

# %% [markdown]
# ### The bottleneck
#
# For 50 layers and more the paper uses another block: a 1x1 convolution reduces the channels to a quarter, a 3x3
# convolution works on those, and a 1x1 convolution restores them. The reason is **cost**, not learning: the authors
# could not afford the training time of basic blocks.
#
# Where the map halves, which convolution gets the stride? In the paper it is the first 1x1. Many implementations,
# torchvision's among them, give it to the 3x3 and call the result **v1.5**. A 1x1 filter with stride 2 never looks at
# three of four positions. A 3x3 filter looks at all.


# %% tags=["model"]
class Bottleneck(Block):
    """1x1 down, 3x3, 1x1 up: (N, before, H, W) to (N, 4 channels, H/stride, W/stride).

    placement: where the stride is: "v1" on the first 1x1 (the paper), "v1.5" on the 3x3.
    """

    expansion = 4

    def __init__(self, before, channels, stride=1, option="B", placement="v1"):
        super().__init__()
        if placement not in ("v1", "v1.5"):
            raise ValueError(f'placement {placement!r} is neither "v1" nor "v1.5".')
        first, second = (stride, 1) if placement == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(before, channels, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(option, before, 4 * channels, stride)

    def branch(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


# %% [markdown]
# On a 56x56 map, the bottleneck with 256 channels costs about what a basic block with 64 costs. It stands and falls with
# identity shortcuts: a projection connects the two wide ends and doubles the block.

# %% tags=["nbval-check-output"]
BLOCKS = {
    "basic, 64 channels": (BasicBlock(64, 64), 64),
    "basic, 256 channels": (BasicBlock(256, 256), 256),
    "bottleneck, 256 channels": (Bottleneck(256, 64), 256),
    "bottleneck, 256 channels, option C": (Bottleneck(256, 64, option="C"), 256),
}
Table(
    {
        "block": name,
        "parameters": inspect.count_parameters(block),
        "multiply-adds": inspect.count_macs(block, (channels, 56, 56)),
    }
    for name, (block, channels) in BLOCKS.items()
)

# %% [markdown]
# The convolutions of a block from 256 channels at 56x56 to 512 at 28x28, in both placements:

# %% tags=["nbval-check-output"]
rows = {}
for placement in ("v1", "v1.5"):
    block = Bottleneck(256, 128, stride=2, placement=placement)
    for layer in inspect.trace(block, (256, 56, 56)).rows:
        if layer["kind"].startswith("Conv"):
            row = rows.setdefault(layer["layer"], {"layer": layer["layer"]})
            row |= {
                placement: layer["kind"],
                f"multiply-adds, {placement}": layer["multiply-adds"],
            }
Table(rows.values())

# %% [markdown]
# The parameters are the same. In v1.5 the first 1x1 runs on the large map and costs four times as much.

# %% [markdown]
# ## The networks
#
# On ImageNet: a 7x7 convolution with stride 2, a max-pooling, four stages of blocks, the average over the map, and
# *one* fully connected layer. VGG's two layers of 4096 units are gone, and most of its parameters with them.


# %% tags=["model"]
def stage(block, before, channels, count, stride, **settings):
    """`count` blocks in a row; the first has the stride, and adapts the number of channels."""
    after = channels * block.expansion
    first = block(before, channels, stride, **settings)
    return nn.Sequential(first, *[block(after, channels, **settings) for _ in range(count - 1)])


def he_initialize(model):
    """Normal weights of standard deviation sqrt(2 / fan-in) for every convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class ResNet(nn.Module):
    """The networks for ImageNet: images (N, 3, 224, 224) to logits (N, classes).

    block: BasicBlock or Bottleneck. layers: blocks in each of the four stages.
    settings: what every block takes besides its shape, such as option="A" or placement="v1.5".
    """

    def __init__(self, block, layers, classes=1000, **settings):
        super().__init__()
        wide = block.expansion
        # 64 x 112 x 112, then 64 x 56 x 56
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # 56 x 56, 28 x 28, 14 x 14, 7 x 7
        self.layer1 = stage(block, 64, 64, layers[0], 1, **settings)
        self.layer2 = stage(block, 64 * wide, 128, layers[1], 2, **settings)
        self.layer3 = stage(block, 128 * wide, 256, layers[2], 2, **settings)
        self.layer4 = stage(block, 256 * wide, 512, layers[3], 2, **settings)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * wide, classes)
        he_initialize(self)

    def forward(self, images):
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


# %% tags=["model"]
RESNETS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}

# %% [markdown]
# ResNet-50 has three convolutions in each of $3 + 4 + 6 + 3 = 16$ blocks, one before, one fully connected layer after: 50.
# The projections are not counted. The shapes after each stage (`layer1.2` is the third block of the first stage):


# %% tags=["nbval-check-output"]
def shapes(depth):
    """Layer -> shape of its output, as text."""
    with torch.device("meta"):
        rows = inspect.trace(ResNet(*RESNETS[depth]), (3, 224, 224)).rows
    return {row["layer"]: row["output"] for row in rows}


basic, bottleneck = shapes(34), shapes(50)
rows = []
for part in ("conv1", "maxpool", "layer1.2", "layer2.3", "layer3.5", "layer4.2", "fc"):
    # the last batch normalisation of a block
    ends = [f"{part}.bn{n}" if "layer" in part else part for n in (2, 3)]
    rows.append({"after": part, "ResNet-34": basic[ends[0]], "ResNet-50": bottleneck[ends[1]]})
Table(rows)

# %% [markdown]
# For CIFAR-10 the paper uses a smaller design, and we train it: three stages of 16, 32 and 64 channels at 32x32, 16x16
# and 8x8, with $n$ basic blocks each: $6n + 2$ layers. The shortcuts are of option A, so that plain and residual networks
# have the same parameters.


# %% tags=["model"]
class CifarResNet(nn.Module):
    """The networks for CIFAR-10: images (N, 3, 32, 32) to logits (N, classes).

    depth: 6n + 2 layers. width: channels of the first stage, 16 in the paper.
    residual: False leaves the shortcuts out, and nothing else.
    """

    def __init__(self, depth, width=16, option="A", residual=True, classes=10):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"depth {depth} is not 6n + 2; use 8, 14, 20, 26, 32, ...")
        option = option if residual else None
        # width x 32 x 32, then 16 x 16, then 8 x 8
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(BasicBlock, width, width, n, 1, option=option)
        self.layer2 = stage(BasicBlock, width, 2 * width, n, 2, option=option)
        self.layer3 = stage(BasicBlock, 2 * width, 4 * width, n, 2, option=option)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        he_initialize(self)

    def forward(self, images):
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


# %% [markdown]
# The probe: the shape of each stage, and whether the plain networks of the first section have as many parameters as these
# without shortcuts.

# %% tags=["nbval-check-output"]
trace = inspect.trace(CifarResNet(20), (3, 32, 32))
stages = {row["layer"]: row["output"] for row in trace.rows}
print({name: stages[f"{name}.2.bn2"] for name in ("layer1", "layer2", "layer3")})
for depth in (20, 56):
    ours = inspect.count_parameters(CifarResNet(depth, width=8, residual=False))
    same = ours == inspect.count_parameters(plain(depth))
    print(f"plain-{depth} as in the first section:", same)

# %% [markdown]
# ## Checks: are these the paper's networks?
#
# Our counts stand beside what the paper prints. Its FLOPs are multiply-adds.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
IMAGE, SMALL_IMAGE = (3, 224, 224), (3, 32, 32)
TABLE_1 = {18: "1.8 G", 34: "3.6 G", 50: "3.8 G", 101: "7.6 G", 152: "11.3 G"}
TABLE_6 = {20: "0.27 M", 32: "0.46 M", 44: "0.66 M", 56: "0.85 M", 110: "1.7 M", 1202: "19.4 M"}
REMARKS = {
    34: "3.6 G is the count without projections, that of the plain network and of option A.",
    50: "3.8 G is the count cut off and not rounded, unlike those of the deeper networks. Its figures are those of v1, with the stride in the first 1x1 convolution; most networks that one can download are v1.5.",
}


def imagenet(depth, **settings):
    return partial(ResNet, *RESNETS[depth], **settings)


NETWORKS = Variants(
    "02_resnet",
    "Shortcuts of option B at 224 pixels and of option A at 32, unless the name says otherwise.",
    [
        Variant("plain-34", imagenet(34, option=None), IMAGE, macs="3.6 G"),
        Variant("ResNet-34, option A", imagenet(34, option="A"), IMAGE),
        Variant("ResNet-34, option C", imagenet(34, option="C"), IMAGE),
        *[
            Variant(
                f"ResNet-{depth}",
                imagenet(depth),
                IMAGE,
                macs=macs,
                remark=REMARKS.get(depth, ""),
            )
            for depth, macs in TABLE_1.items()
        ],
        *[
            Variant(f"ResNet-{depth} v1.5", imagenet(depth, placement="v1.5"), IMAGE)
            for depth in (50, 101, 152)
        ],
        *[
            Variant(
                f"ResNet-{depth}", partial(CifarResNet, depth), SMALL_IMAGE, parameters=millions
            )
            for depth, millions in TABLE_6.items()
        ],
    ],
    printed=("paper, Table 6", "paper, Table 1"),
    sized=True,
)

# %% [markdown]
# **ImageNet.** For the bottleneck networks the paper's number is that of v1, not of v1.5, which most people download.


# %% tags=["nbval-check-output"]
def known(label):
    """The network of that label; None where we declared none."""
    return next((variant for variant in NETWORKS if NETWORKS.label(variant) == label), None)


rows = []
for depth, (block, _) in RESNETS.items():
    v1 = known(f"ResNet-{depth}, 224 px")
    # a basic block has no 1x1 convolution, so its stride has one place
    v15 = known(f"ResNet-{depth} v1.5, 224 px") or v1
    rows.append(
        {
            "network": v1.name,
            "block": block.__name__,
            "parameters": v1.counts["parameters"],
            "multiply-adds, v1": v1.counts["multiply-adds"],
            "v1.5": v15.counts["multiply-adds"],
            "paper, Table 1": v1.macs,
        }
    )
Table(rows)

# %% [markdown]
# Two figures are not our counts rounded: 3.6 G is the count without projections, and 3.8 G is cut off. ResNet-152 has fewer
# multiply-adds than VGG-16 (15.5 billion), and the 3.6 billion for 34 layers are 18 % of VGG-19's 19.6 billion.
#
# **Shortcuts.** What the options cost at 34 layers, next to the paper's errors:

# %% tags=["nbval-check-output"]
# 10-crop error on ImageNet
PAPER_TOP1 = {
    "none": ("plain-34", 28.54),
    "A": ("ResNet-34, option A", 25.03),
    "B": ("ResNet-34", 24.52),
    "C": ("ResNet-34, option C", 24.19),
}
rows = []
for option, (name, error) in PAPER_TOP1.items():
    counts = known(f"{name}, 224 px").counts
    rows.append(
        {
            "34 layers, shortcuts": option,
            "parameters": counts["parameters"],
            "multiply-adds": counts["multiply-adds"],
            "paper: top-1 error in % (Tables 2, 3)": error,
        }
    )
Table(rows, decimals=2)

# %% [markdown]
# From plain to A costs nothing and gains 3.5 points. From A to C costs something and gains 0.8. So projections are
# not what solves the problem, and the paper's deeper networks use B. It explains the small advantage of B over A by
# the zeros: a channel filled with zeros has no shortcut.
#
# **CIFAR.** Parameters for both options, and the paper's Table 6.

# %% tags=["nbval-check-output"]
# test error in %, Table 6
PAPER_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}

rows = []
for depth, error in PAPER_ERROR.items():
    with torch.device("meta"):
        option_b = CifarResNet(depth, option="B")
    option_a = known(f"ResNet-{depth}, 32 px")
    rows.append(
        {
            "n": (depth - 2) // 6,
            "layers": depth,
            "parameters, A": option_a.counts["parameters"],
            "parameters, B": inspect.count_parameters(option_b),
            "multiply-adds, A": option_a.counts["multiply-adds"],
            "paper: parameters": option_a.parameters,
            "paper: test error in %": error,
        }
    )
Table(rows, decimals=2)

# %% [markdown]
# For 110 layers, 6.43 % is the best of five runs; their mean is 6.61 ± 0.16. And 1202 layers *train* well, to a
# training error below 0.1 %, but their test error is higher than that of 110. That is not degradation. With 19.4 million
# parameters for 50,000 small images it is, the authors argue, **overfitting**, and they used no strong remedy, such as
# dropout. In the test error the two diseases look the same; the training error tells them apart.
#
# **Equality.** Our modules have the names of torchvision's, so the weights go over by name. First we shake every
# batch normalisation; fresh ones would do next to nothing and hide mistakes.


# %% tags=["model"]
def shake_batch_norms(model, seed=0):
    """Random scale, shift and running statistics, moderate enough to keep the signal alive."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.7, 1.3, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return model


# %% tags=["nbval-check-output"]
import torchvision

REFERENCES = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
for depth, reference in REFERENCES.items():
    settings = {"placement": "v1.5"} if depth == 50 else {}
    ours = shake_batch_norms(ResNet(*RESNETS[depth], **settings)).double().eval()
    with torch.device("meta"):
        theirs = reference().eval()
    # shares the memory
    theirs.load_state_dict(ours.state_dict(), assign=True)
    with torch.inference_mode():
        a, b = ours(images), theirs(images)
    print(f"ResNet-{depth}: the logits differ from class to class:", bool(a.std() > 1e-3))
    same = bool((a - b).abs().max() < 1e-12 * a.abs().max())
    print(f"ResNet-{depth}: relative difference below 1e-12:", same)

# %% [markdown]
# ## Is it the vanishing gradient?
#
# Many texts say that residual connections cure vanishing gradients. The paper does not. Its plain networks have batch
# normalisation, which keeps the signal alive forwards, and it checked that their gradients have healthy norms backwards. So what
# is wrong with them?
#
# We look at the gradient before any training, on 64 images of noise with random labels. That of a layer's *weights* is no
# measure of what arrives there: in a chain of convolutions and ReLUs the sum of weight times gradient is the same in every
# layer, whether the gradient shrinks or grows on its way. So we take the gradient for the **maps** that enter each block,
# and its norm (its length). Four networks with the same first weights: plain or residual, with or without BN.


# %% tags=["model"]
def without_batch_norm(model):
    """The same network, in place, with nothing where its batch normalisations were."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def through_blocks(model, images, labels):
    """What enters each block, first to last: deviations of the maps, and norms of the loss's gradient for them."""
    maps = []
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    handles = [
        block.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
        for block in blocks
    ]
    loss = F.cross_entropy(model(images), labels)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(loss, maps)
    return [float(m.detach().std()) for m in maps], [float(g.norm()) for g in gradients]


def gradient_norms(model, images, labels):
    """The norm of the loss's gradient for the weights of each convolution, first to last."""
    loss = F.cross_entropy(model(images), labels)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [float(gradient.norm()) for gradient in torch.autograd.grad(loss, weights)]


def input_gradients(model, images):
    """How the first logit of each image changes with its pixels: the shape of `images`."""
    images = images.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    return gradients


# %%
# residual, batch normalisation
KINDS = {
    "plain": (False, True),
    "residual": (True, True),
    "plain, no BN": (False, False),
    "residual, no BN": (True, False),
}
DEPTHS = (8, 20, 56, 110)
generator = torch.Generator().manual_seed(0)
noise = torch.randn(64, 3, 16, 16, generator=generator)
nudge = 0.05 * torch.randn(64, 3, 16, 16, generator=generator)
labels = torch.randint(10, (64,), generator=generator)


def untrained(depth, kind):
    residual, batch_norm = KINDS[kind]
    train.set_seed(0)
    model = CifarResNet(depth, width=8, residual=residual)
    return model if batch_norm else without_batch_norm(model)


signals, norms = {}, {}
for depth in DEPTHS:
    for kind in KINDS:
        found = through_blocks(untrained(depth, kind), noise, labels)
        signals[depth, kind], norms[depth, kind] = found

# %%
ratio = {key: values[0] / values[-1] for key, values in norms.items()}
growth = {key: values[-1] / values[0] for key, values in signals.items()}
Table(
    {"network": kind}
    | {f"gradient, first / last, {d} layers": f"{ratio[d, kind]:.1g}" for d in (20, 56, 110)}
    | {"signal, last / first, 110 layers": f"{growth[110, kind]:.1g}"}
    for kind in KINDS
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    for ax, bn in zip(fig.subplots(1, 2, sharey=True), (True, False), strict=True):
        for kind, (residual, batch_norm) in KINDS.items():
            if batch_norm == bn:
                name, colour = ("residual", "C0") if residual else ("plain", "C1")
                ax.semilogy(range(1, 28), norms[56, kind], color=colour, label=name)
        title = f"{'with' if bn else 'without'} batch normalisation"
        ax.set(xlabel="block, first to last", title=title)
        ax.legend()
    fig.axes[0].set_ylabel("norm of the gradient")


plot.show(
    draw,
    alt="Two log-scale line charts with one axis of the gradient's norm at each block of untrained networks of 56 layers. With "
    "batch normalisation, the plain network's norm grows steeply from the last block to the first, the residual one's gently. "
    "Without, the plain network's shrinks and the residual one's grows steeply.",
    caption="Norm of the gradient for what enters each block, 56 layers, before training, for noise and random labels. Read from "
    "right to left: that is the gradient's way.",
)

# %% tags=["nbval-check-output"]
print(
    "plain, 110 layers: the first gradient above a million times the last:",
    ratio[110, "plain"] > 1e6,
)
print("residual, 110 layers: below 200 times:", ratio[110, "residual"] < 200)
print("plain without BN, 110 layers: below a hundredth:", ratio[110, "plain, no BN"] < 0.01)
print(
    "residual without BN, 110 layers: above a million times:",
    ratio[110, "residual, no BN"] > 1e6,
)

# %% [markdown]
# Four fates, and only one of them is the vanishing gradient.
#
# - **Plain, no BN: it vanishes**, forwards and backwards. BN solves this: it brings the signal back to size in every layer.
# - **Plain, with BN: it explodes** on its way back, by a factor of ten million over 110 layers. BN itself is the reason
#   [[Yang et al., 2019](../pages/bibliography.md#yang2019meanfield)].
# - **Residual, no BN: both explode.** Each block adds its branch to its input, and the sum is larger than both.
# - **Residual, with BN: healthy.** The normalised branch adds about the same amount in every block, so it matters less
#   and less beside what has piled up on the shortcut.
#
# So it takes both. The paper is right that nothing vanishes in plain networks with BN; in ours, at the start of the
# training, the opposite happens.
#
# ### Shattered gradients
#
# A norm says how large a gradient is, not whether it means anything. So move the input a little, by noise of 5 % of its
# standard deviation. Does the gradient still point the same way? If not, it is **shattered**
# [[Balduzzi et al., 2017](../pages/bibliography.md#balduzzi2017shattered)], and a step along it is a step into the dark. The table gives the cosine of the
# angle between the two gradients: 1 is the same direction, 0 is nothing in common.

# %%
cosines = {}
for depth in DEPTHS:
    for kind in KINDS:
        model = untrained(depth, kind)
        here, there = input_gradients(model, noise), input_gradients(model, noise + nudge)
        survives = F.cosine_similarity(here.flatten(1), there.flatten(1))
        # the sum turns -0.00 into 0.00
        cosines[depth, kind] = round(float(survives.mean()), 2) + 0.0
Table(
    [{"network": kind} | {f"{d} layers": cosines[d, kind] for d in DEPTHS} for kind in KINDS],
    decimals=2,
)

# %% tags=["nbval-check-output"]
print("plain, 56 layers, nothing is left of the direction:", abs(cosines[56, "plain"]) < 0.1)
print("residual, 56 layers, more than a quarter is:", cosines[56, "residual"] > 0.25)

# %% [markdown]
# In the plain network with BN, the direction is lost at 20 layers already. The residual one has 0.51 at 56 layers and 0.22
# at 110. And up to 56 layers a plain network *without* BN keeps more than one with it: normalisation, which cures the
# vanishing, shatters the gradient.
#
# All this is before training. It makes degradation plausible and does not prove its cause. The paper leaves the reason
# open, and conjectures that plain networks converge exponentially slowly.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper, ImageNet | paper, CIFAR-10 | here |
# |:--|:--|:--|:--|
# | images | shorter side from [256, 480], crop 224x224, flip, colour shift, mean image subtracted | shift by up to 4 pixels, flip; mean image subtracted | as on CIFAR-10; shift by 2 at 16x16; mean and deviation of each channel |
# | training images | 1.28 M | 45,000, with 5,000 held out | 50,000; 10,000 for the comparisons on this page; nothing is tuned |
# | optimiser | SGD, momentum 0.9, weight decay 1e-4, batch 256 | the same, batch 128 | the same with Nesterov momentum; Muon, decay 5e-4 for the network of full size below |
# | learning rate | 0.1, a tenth whenever the error stalls, up to 600,000 steps | 0.1, a tenth at 32,000 and 48,000 of 64,000 steps; 110 layers start at 0.01 | one cycle, 300 to 1,600 steps, far from converged; the long study as the paper |
# | width | 64 to 512 | 16 to 64 | 16 to 64 below, 8 to 32 in comparisons |
# | test | ten crops; at best, fully convolutional at five scales (224 to 640), averaged | the image as it is | the image as it is |
#
# [Chapter 1](01_vgg) builds ten crops and dense evaluation. The paper trains all networks from scratch, without layers
# copied from a shallower one. Like ours, they have He's initialisation and no dropout.
#
# The paper's schedule for CIFAR-10 is `"steps"` of `train.fit`, whatever the number of steps:

# %% tags=["nbval-check-output"]
factor = train.SCHEDULES["steps"]
for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999):
    print(f"step {step:>6,}: learning rate {0.1 * factor(step / 64_000):g}")

# %% [markdown]
# ## The data
#
# The first image of each class at both sizes. Could you still tell them apart?


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    for column, (axes, place) in enumerate(
        zip(fig.subplots(2, 10).T, plot.fixed_images(data), strict=True)
    ):
        image = data.test.images[place]
        for ax, pixels in zip(axes, (image, halve(image[None])[0]), strict=True):
            ax.imshow(pixels.permute(1, 2, 0))
            ax.set_axis_off()
        axes[0].set_title(data.classes[column], fontsize=8, loc="center", pad=3)


plot.show(
    draw,
    alt="Ten test images, one of each class, above the same images at half the size.",
    caption=f"Test images at 32x32 and at 16x16 pixels. Data: {data.provenance}.",
    height=1.75,
)

# %% tags=["nbval-check-output"]
batch = small.normalize(small.train.images[:1000])
mean, deviation = batch.mean((0, 2, 3)), batch.std((0, 2, 3))
print("images:", tuple(batch.shape[1:]))
print("mean of each channel within 0.1 of 0:", bool((mean.abs() < 0.1).all()))
print("standard deviation within 0.1 of 1:", bool(((deviation - 1).abs() < 0.1).all()))

# %% [markdown]
# ## Training
#
# Can the network learn 64 images by heart, in sixty steps of the loop of [chapter 1](01_vgg)?

# %% tags=["nbval-check-output"]
train.set_seed(0)
loss = train.overfit(CifarResNet(20, width=8), small)
print("64 images learned by heart, loss below 0.1:", loss < 0.1)

# %% [markdown]
# ### The problem again, with shortcuts
#
# 20 and 56 layers, with the same images, batches and number of parameters. The only change is the addition.

# %%
for depth in (20, 56):
    name = f"ResNet-{depth}"
    train.set_seed(0)
    networks[name] = CifarResNet(depth, width=8)
    histories[name] = train_small(networks[name], small, epochs, label=name)
compared = [f"{kind}-{depth}" for kind in ("plain", "ResNet") for depth in (20, 56)]
Table([outcome(name) for name in compared], decimals=DECIMALS)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    kinds = ("plain", "plain", "C1"), ("ResNet", "residual", "C0")
    for ax, (kind, title, colour) in zip(fig.subplots(1, 2, sharey=True), kinds, strict=True):
        draw_losses(ax, f"{kind}-20", color=colour, alpha=0.5)
        draw_losses(ax, f"{kind}-56", color=colour)
        ax.set(xlabel="step", title=f"training loss, {title}")
        ax.legend()


plot.show(
    draw,
    alt="Training loss over the steps of training, plain networks on the left, residual ones on the right, 20 and 56 layers each.",
    caption="The same training with and without shortcuts. Compare the gap between 20 and 56 layers on the left with that on the "
    f"right. Data: {small.provenance}.",
)

# %% [markdown]
# With shortcuts both networks learn more, and the deeper one falls less far behind: about five points of training error, where the plain one has almost fifteen. Is the rest of the gap chance? The study below takes three seeds.
#
# ### ResNet-20, as in the paper
#
# Now the paper's smallest CIFAR network with all its channels, on images of full size, by the course's recipe for few
# epochs.

# %%
train.set_seed(0)
model = CifarResNet(20)
history = train.fit(model, data, train.SHORT, epochs=pick(full=4, quick=1), label="ResNet-20")
logits = train.predict(model, data, data.test.images)
row = {
    "network": "ResNet-20",
    "test accuracy in %": 100 * metrics.accuracy(logits, data.test.targets),
    "parameters": inspect.count_parameters(model),
    "million multiply-adds": inspect.count_macs(model, (3, 32, 32)) / 1e6,
    "seconds of training": history.last("seconds"),
    "images per second": history.images_per_second,
    "data": history.data,
}
Table([row], decimals=1)

# %% [markdown]
# ## Results: the paper beside ours
#
# One training proves little. So a study trained four networks with three seeds each, the same batches and number of epochs,
# on all training images. Behind a ± stands the standard deviation of the three.

# %% tags=["model"]
ARMS = {
    "plain-20": {"depth": 20, "residual": False},
    "plain-56": {"depth": 56, "residual": False},
    "ResNet-20": {"depth": 20, "residual": True},
    "ResNet-56": {"depth": 56, "residual": True},
}


def small_cifar10():
    """All of CIFAR-10 at 16x16 pixels."""
    return at_16_pixels(cifar10())


def train_arm(data, *, seed, depth, residual, epochs=2):
    """One training of the study."""
    train.set_seed(seed)
    model = CifarResNet(depth, width=8, residual=residual)
    history = train_small(model, data, epochs, seed)
    return {
        "train_loss": history.last("train_loss"),
        "train_error": history.last("train_error"),
        "test_accuracy": history.last("test_accuracy"),
        "seconds": history.last("seconds"),
    }


STUDY = Study("02_resnet", run=train_arm, arms=ARMS, data=small_cifar10)

# %% tags=["nbval-check-output"]
for depth in (20, 56):
    pair = [CifarResNet(depth, width=8, residual=residual) for residual in (False, True)]
    (parameters, same), (macs, macs_too) = (
        [inspect.count_parameters(network) for network in pair],
        [inspect.count_macs(network, (3, 16, 16)) for network in pair],
    )
    print(f"{depth} layers: {parameters:,} parameters and {macs:,} multiply-adds")
    print("the same with and without shortcuts:", parameters == same and macs == macs_too)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
Table(
    {
        "network": arm,
        "paper: test error in %": PAPER_ERROR[config["depth"]] if config["residual"] else None,
        "ours: test error in %": STUDY.text(
            arm, "test_accuracy", to=lambda accuracy: 100 * (1 - accuracy)
        ),
        "training error in %": STUDY.text(arm, "train_error", 100),
        "training loss": STUDY.text(arm, "train_loss"),
        "seconds of training": STUDY.text(arm, "seconds", decimals=0),
    }
    for arm, config in ARMS.items()
)

# %% [markdown]
# The two columns of test errors are **not comparable**: the paper's networks are twice as wide, see images twice as
# large, and train eighty times as long. Compare the rows.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    STUDY,
    list(ARMS),
    "train_loss",
    "training loss of the last epoch",
    alt="Dot plot of the training loss of the four arms of the study, three dots and a mean each.",
    caption="Plain and residual networks of 20 and 56 layers after two passes. Compare the first step with the last.",
)

# %% [markdown]
# The paper on ImageNet, 10-crop top-1 error in % (Tables 2 to 4):
#
# | layers | plain | residual | |
# |--:|--:|--:|:--|
# | 18 | 27.94 | 27.88 | as accurate; the residual one learns faster |
# | 34 | 28.54 | 25.03 | degradation on the left, gain on the right (option A) |
# | 50 | | 22.85 | bottlenecks from here on, option B |
# | 101 | | 21.75 | |
# | 152 | | 21.43 | at several scales: 19.38, top-5 4.49 |
#
# Six networks of different depth averaged won ILSVRC 2015 with 3.57 % top-5 error on the test set (Table 5).

# %% [markdown]
# ## The paper's claim in miniature
#
# Without shortcuts, more layers make it worse; with them, they make it better. Each row is a difference between two arms,
# seed by seed, signed so that the claim predicts a positive number. The verdict comes from the 95 % interval, as
# [chapter 1](01_vgg) explains; within half a point of accuracy an effect is too small to matter. These claims were written
# down after the runs, so all are exploratory.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
ABOUT = (
    "20 and 56 layers at 16x16 pixels, with and without shortcuts, for two passes. At equal depth both have the same "
    "parameters and multiply-adds."
)
LOSS_CLAIMS = Claims(
    STUDY,
    "train_loss",
    "training loss",
    also={
        "plain: 56 layers are worse than 20": ("plain-20", "plain-56", "Figure 6"),
        "residual: 56 layers are better than 20": ("ResNet-56", "ResNet-20", "Figure 6"),
        "shortcuts help at 56 layers": ("ResNet-56", "plain-56", "Figure 6"),
        "shortcuts help at 20 layers": ("ResNet-20", "plain-20", "Figure 6"),
    },
    about=ABOUT,
)
ACCURACY_CLAIMS = Claims(
    STUDY,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    also={
        "plain: 56 layers are worse than 20": ("plain-56", "plain-20", "Figure 6"),
        "residual: 56 layers are better than 20": ("ResNet-20", "ResNet-56", "Table 6: +1.78"),
        "shortcuts help at 56 layers": ("plain-56", "ResNet-56", "Figure 6"),
        "shortcuts help at 20 layers": ("plain-20", "ResNet-20", "Figure 6"),
    },
    about=ABOUT,
)

# %%
LOSS_CLAIMS.table()

# %%
ACCURACY_CLAIMS.table()

# %% [markdown]
# **Plain.** 36 more layers raise the training loss and cost many points of test accuracy, at every seed. After two passes
# that is slowness; degradation it is only if it lasts.
#
# **Residual.** Between 20 and 56 layers nothing is clear. On average the deeper network is 1.66 points behind; without
# shortcuts it was 19.66. The gain from depth is not there: the paper's step from 8.75 % to 6.97 % error takes 64,000 steps,
# and ours ends after some 800.
#
# **Shortcuts at equal depth** help at 56 layers and also at 20. On ImageNet the paper finds 18 layers equally accurate with
# and without. But it adds that the residual ones get there sooner, and a short training rewards whoever learns fast.
#
# ## What a longer study will decide
#
# Slowness or degradation? That takes a training after which the shallow network no longer improves. Designed before its runs:
# the same four networks with the paper's schedule for 16,000 steps and five seeds, and for the paper's 64,000 steps with one
# seed. Two primary claims are about the *training* error, one about the test; Holm's correction counts all three. Where a
# table says "not measured yet", `./course study 02_resnet` measures it.


# %% tags=["model"]
def train_long(data, *, seed, depth, residual, epochs, every=4):
    """One training with the paper's schedule; its errors on the way are kept every `every` epochs."""
    train.set_seed(seed)
    model = CifarResNet(depth, width=8, residual=residual)
    history = train.fit(
        model,
        data,
        epochs=epochs,
        weight_decay=1e-4,
        schedule="steps",
        augment=train.Augment(shift=2),
        evaluate=with_training_error,
        eval_every=every,
        seed=seed,
    )
    found = {
        name: history.last(name) for name in ("train_loss", "train_error", "test_accuracy")
    }
    for epoch, train_error, accuracy in zip(
        history["epoch"], history["train_error"], history["test_accuracy"], strict=True
    ):
        found |= {f"train_error_{epoch}": train_error, f"test_error_{epoch}": 1 - accuracy}
    return found


def for_epochs(epochs):
    """The four arms, trained for so long. One epoch is 391 steps."""
    return {arm: config | {"epochs": epochs} for arm, config in ARMS.items()}


LONG = Study(
    "02_resnet",
    name="long",
    run=train_long,
    arms=for_epochs(41),
    data=small_cifar10,
    seeds=(0, 1, 2, 3, 4),
)
FIGURE_6 = replace(LONG, name="figure_6", arms=for_epochs(164), seeds=(0,))

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
LONG_CLAIMS = Claims(
    LONG,
    "train_error",
    "training error, points",
    scale=100,
    matters=0.5,
    main={
        "16,000 steps: plain-56 fits worse than plain-20": ("plain-20", "plain-56", "Figure 6"),
        "16,000 steps: ResNet-56 fits better": ("ResNet-56", "ResNet-20", "Figure 6"),
    },
    also={"16,000 steps: shortcuts help at 20 layers": ("ResNet-20", "plain-20", "Figure 6")},
    about="The same networks for 16,000 steps with the paper's schedule, error on training images.",
)
LONG_TEST_CLAIMS = Claims(
    LONG,
    "test_accuracy",
    "test accuracy, points",
    scale=100,
    matters=0.5,
    main={
        "16,000 steps: ResNet-56 beats ResNet-20": ("ResNet-20", "ResNet-56", "Table 6: +1.78")
    },
    about="The same networks for 16,000 steps with the paper's schedule.",
)

# %%
LONG_CLAIMS.table()

# %%
LONG_TEST_CLAIMS.table()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    kinds = ("plain", "plain", "C1"), ("ResNet", "residual", "C0")
    passes = range(4, 165, 4)
    for ax, (kind, title, colour) in zip(fig.subplots(1, 2, sharey=True), kinds, strict=True):
        for depth, width in ((20, 1), (56, 2.2)):
            for where, dash in (("train", "--"), ("test", "-")):
                name, style = f"{kind}-{depth}", {"color": colour, "linewidth": width}
                errors = [100 * FIGURE_6.mean(name, f"{where}_error_{e}")[0] for e in passes]
                steps = [391 * e for e in passes]
                ax.plot(steps, errors, dash, label=f"{depth} layers, {where}", **style)
        ax.set(xlabel="step", title=f"error in %, {title}")
        ax.legend()


if FIGURE_6.measured_seeds():
    figure = plot.show(
        draw,
        alt="Error over 64,000 steps, plain networks on the left, residual ones on the right, 20 and 56 layers each.",
        caption="As the paper's Figure 6, at 16x16 pixels: dashed on training images, solid on test images. One seed.",
    )
else:
    figure = "The 64,000 steps are not measured yet."
figure

# %% [markdown]
# To test the code of the studies, each arm trains here on 128 images.

# %% tags=["nbval-check-output"]
few = at_16_pixels(cifar10(train=128, test=100))
for study in (STUDY, LONG):
    arms = {arm: config | {"epochs": 1} for arm, config in study.arms.items()}
    ran = replace(study, arms=arms).rehearse(few)
    print(f"all arms of {study.stem} run:", ran.keys() == study.arms.keys())

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# The test images on which ResNet-20 is most sure of a wrong answer.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.mistakes(model, data, logits, "layer3")

# %% [markdown]
# ### Where does it look, and did it learn to?
#
# The ten images of chapter 1 again. Grad-CAM [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)] at 8x8 positions, and
# the control: the same network before its training.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.evidence(
    {"trained": model, "untrained": train.untrained(model)},
    data,
    "layer3",
    "Grad-CAM at the last stage of ResNet-20 for the class that each network predicts.",
)

# %% [markdown]
# Only where the two rows differ does the upper one say something about learning.

# %% [markdown]
# ### How much does a block do?
#
# If blocks learn corrections, they should be small. The paper's Figure 7 looks at the standard deviation of each
# layer's **response**: the output of its batch normalisation, before the ReLU and the addition. It finds smaller
# responses in residual networks than in plain ones, and the smaller the deeper. Here are our networks at 16x16 pixels, and
# the control: each before its training, with batch normalisations that know the statistics of one batch.


# %%
def as_blocks(depth):
    """The trained plain network of the first section as a CifarResNet without shortcuts."""
    network = CifarResNet(depth, width=8, residual=False)
    weights = networks[f"plain-{depth}"].state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    return network.eval()


def settled(model, images):
    """The model in evaluation mode, its batch normalisations with the statistics of these images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


sample = small.normalize(small.test.images[:500])
trained, fresh = {}, {}
for name in compared:
    depth = int(name[-2:])
    trained[name] = as_blocks(depth) if "plain" in name else networks[name]
    fresh[name] = settled(untrained(depth, "plain" if "plain" in name else "residual"), sample)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def mean_response(network):
    """The mean over the layers of the standard deviation of their responses."""
    found = inspect.watch(network, nn.BatchNorm2d, sample, lambda _, made: float(made.std()))
    return sum(found.values()) / len(found)


Table(
    (
        {
            "network": name,
            "before": mean_response(fresh[name]),
            "after": mean_response(trained[name]),
        }
        for name in compared
    ),
    decimals=2,
)

# %% [markdown]
# Before training every mean is 1: that is where batch normalisation starts. After it the residual networks stand at 0.98 and 1.00, the
# plain ones at 1.04 and 1.21. Smaller responses with shortcuts are the paper's picture; that they shrink with depth does not
# show after so short a training.
#
# What matters is how large a correction is *beside what it corrects*. For every block that keeps the shape: how far is its
# output from its input, $\lVert \sigma(\mathbf{y}) - \mathbf{x} \rVert / \lVert \mathbf{x} \rVert$? Two unrelated
# maps of rectified noise are at $\sqrt{2 - 2/\pi} = 1.17$.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def relative_change(x, y):
    """How far a block's output is from its input; None where the shape changes."""
    return float((y - x).norm() / x.norm()) if x.shape == y.shape else None


def changes(network):
    """The relative change by every block that keeps the shape, with its place, 0 to 100 % of the way."""
    found = list(inspect.watch(network, BasicBlock, sample, relative_change).values())
    return [
        (100 * i / (len(found) - 1), change)
        for i, change in enumerate(found)
        if change is not None
    ]


def draw(fig):
    panels = ("before training", fresh), ("after training", trained)
    for ax, (title, group) in zip(fig.subplots(1, 2, sharey=True), panels, strict=True):
        for name, network in group.items():
            colour, shade = "C1" if "plain" in name else "C0", 1.0 if "56" in name else 0.5
            ax.plot(
                *zip(*changes(network), strict=True),
                "o-",
                color=colour,
                alpha=shade,
                markersize=3,
                label=name,
            )
        ax.axhline((2 - 2 / torch.pi) ** 0.5, color="#666666", linewidth=1, linestyle="--")
        ax.set(xlabel="position of the block, % of the way", ylim=(0, None))
        ax.set_title(f"change by a block, {title}", fontsize=10)
    fig.axes[0].legend(ncols=2, fontsize=8)


plot.show(
    draw,
    alt="Two line charts of how far each block's output is from its input, by position in the network, before and after training, "
    "for plain and residual networks of 20 and 56 layers.",
    caption="What one block does to its input: 0 is a copy, the dashed line is two unrelated maps. Blocks that change the shape are "
    f"left out. Data: {small.provenance}.",
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def last_change(network):
    return changes(network)[-1][1]


Table(
    (
        {
            "network": name,
            "last block, before": last_change(fresh[name]),
            "after": last_change(trained[name]),
        }
        for name in compared
    ),
    decimals=2,
)

# %% [markdown]
# After training the picture looks like the paper's point: a block of a plain network replaces its input, a residual block
# adjusts it, and the blocks of the deeper network adjust it least. But the left panel shows the same *before* training. So this is not
# what residual networks learn; it is what the architecture does together with BN. Training even lets a block change more: the last one of
# ResNet-56 changes its input by 0.39 of its length, and by 0.26 before. De and Smith
# [[De and Smith, 2020](../pages/bibliography.md#de2020identity)] find in such a start near the identity the reason why very deep residual networks train.
#
# ### Take a block out
#
# A correction can be left out; a link of a chain cannot. So remove one block of a trained network and test again, without
# training. Veit et al. [[Veit et al., 2016](../pages/bibliography.md#veit2016ensembles)] did this to ResNets and saw little
# harm. In the plain network, a block is the two layers in the same place. Blocks that change the shape stay.


# %%
def accuracy_without_blocks(model, data, images=500):
    """Test accuracy of the whole network, and without each block that keeps the shape."""
    split, found = data.test, {}
    labels = split.targets[:images]
    found["whole"] = metrics.accuracy(train.predict(model, data, split.images[:images]), labels)
    for number, blocks in enumerate((model.layer1, model.layer2, model.layer3), 1):
        for position in range(int(number > 1), len(blocks)):
            removed, blocks[position] = blocks[position], nn.Identity()
            logits = train.predict(model, data, split.images[:images])
            blocks[position] = removed
            found[f"{number}.{position}"] = metrics.accuracy(logits, labels)
    return found


removals = {
    name: accuracy_without_blocks(trained[name], small) for name in ("plain-20", "ResNet-20")
}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    bars = zip((-0.2, 0.2), ("C1", "C0"), removals.items(), strict=True)
    for offset, colour, (name, found) in bars:
        places = [i + offset for i in range(len(found))]
        ax.bar(places, [100 * a for a in found.values()], 0.38, color=colour, label=name)
    ax.axhline(10, color="#666666", linewidth=1, linestyle="--")
    ticks = [name if name == "whole" else f"block {name}" for name in found]
    ax.set_xticks(range(len(found)), ticks, fontsize=8)
    ax.set(title="test accuracy in %, one block removed")
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=2, loc="upper right", bbox_to_anchor=(1, 1.16))


plot.show(
    draw,
    alt="Bar chart of test accuracy of plain-20 and ResNet-20: whole, and after removing each block in turn. A dashed line "
    "marks guessing at 10 percent.",
    caption="One block removed, nothing retrained. Block 1.2 is the third of stage 1. Dashed: guessing. "
    f"Data: {small.provenance}; {min(500, len(small.test))} test images.",
)

# %% [markdown]
# Without any one of its blocks the plain network falls towards guessing. The residual network loses far less, and most
# without its first block: about 17 points.

# %% [markdown]
# Take out blocks of a small ResNet (left) and layers of a VGG (right). What is taken out hands on its input. Nothing is
# trained again.
#
# *Predict first.* Which network still knows the animal with one block or layer less? With two? Does it matter which?
#
# <div class="live" data-figure="remove-block">In the book, the network itself runs here, in your browser.</div>

# %% [markdown]
# ## Play: what depth does to a gradient
#
# Untrained networks again. You choose depth and kind. On the right, a smooth curve means that a step of gradient descent
# knows what it will find.
#
# Find the depth at which the plain network's walk turns into noise. Then change to *residual*. Then go deeper.


# %%
def walk(model, start, end, steps=128):
    """The slope of the first logit on the straight line between two images, (steps,)."""
    t = torch.linspace(0, 1, steps)[:, None, None, None]
    slopes = (input_gradients(model, start + t * (end - start)) * (end - start)).sum((1, 2, 3))
    # its shape matters, not its size
    return slopes / slopes.square().mean().sqrt()


walks = {key: walk(untrained(*key), noise[0], noise[1]) for key in norms}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_gradients(fig, depth, kind):
    left, right = fig.subplots(1, 2)
    blocks = range(1, len(norms[depth, kind]) + 1)
    for other in KINDS:
        left.semilogy(blocks, norms[depth, other], color="#cccccc", linewidth=1)
    left.semilogy(blocks, norms[depth, kind], color="C0", linewidth=2.2)
    left.set(xlabel="block, first to last", ylim=(1e-7, 1e9))
    left.set_yticks([1e-6, 1e-3, 1e0, 1e3, 1e6, 1e9])
    left.set_title("norm of the gradient", fontsize=10)
    right.plot(torch.linspace(0, 1, len(walks[depth, kind])), walks[depth, kind], linewidth=1)
    right.set(xlabel="from image to image", ylim=(-4, 4))
    right.set_title(f"slope; cosine {cosines[depth, kind]:.2f}", fontsize=10)


Explorable(
    draw_gradients,
    (DEPTHS, tuple(KINDS)),
    ("layers", "network"),
    alt=lambda depth, kind: (
        f"Untrained network, {kind}, {depth} layers: the gradient at the first block is "
        f"{ratio[depth, kind]:.2g} times that of the last, and after a nudge of 5 % of the "
        f"input the gradient keeps a cosine of {cosines[depth, kind]:.2f} with what it was."
    ),
    caption="Left: gradient norm by block for the chosen network (blue) and the other three "
    "kinds. Right: the slope of one logit along a straight walk between two images, scaled to "
    "the same size; in the title, how well the gradient survives a small nudge.",
    key="resnet-gradients",
    start=(56, "plain"),
    size=(5.2, 2.3),
)

# %% [markdown]
# ## Trained once, for later chapters
#
# Two networks of this kind come back. The first is one of ten classifiers, trained on the same small pictures, to which
# chapter 15 and the gallery put the same photographs.


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def named_resnet():
    """ResNet-8 for the names of `helpers.naming`, at 32 pixels."""
    return CifarResNet(8, classes=len(naming.CLASSES))


TRAINED = Weights(
    "02_resnet",
    naming.NAMED,
    build=named_resnet,
    train=naming.learn,
    data=naming.small_pictures,
    title="ResNet",
    layer="layer3",
    score=naming.logit_of,
    size=64,
)

# %% [markdown]
# The second is the network that chapters 11 to 15 start from, as their papers start from one trained on ImageNet: half as many
# channels as ResNet-18, and one block in each stage. It has learned to name pictures of 64 pixels: CIFAR-10's, and the
# animals of VOC's training photographs, cut out along their boxes. It never saw a validation photograph, a mask, or where on
# a photograph an animal stands.

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
CHANNELS = (32, 64, 128, 256)


class Backbone(nn.Module):
    """Images (N, 3, H, W) to logits (N, 12); `features` gives the maps of the four stages on the way."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(BasicBlock, 32, 32, 1, 1)
        self.layer2 = stage(BasicBlock, 32, 64, 1, 2)
        self.layer3 = stage(BasicBlock, 64, 128, 1, 2)
        self.layer4 = stage(BasicBlock, 128, 256, 1, 2)
        self.fc = nn.Linear(256, len(naming.CLASSES))
        he_initialize(self)

    def features(self, images):
        """[C2, C3, C4, C5]: CHANNELS channels at strides 4, 8, 16 and 32."""
        c2 = self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu()))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]

    def forward(self, images):
        return self.fc(self.features(images)[-1].mean((2, 3)))


def learn_backbone(model, data, epochs=16):
    """Train the backbone to name pictures; returns its `naming.scores`."""
    train.fit(
        model,
        data,
        epochs=epochs,
        augment=train.Augment(shift=8, cutout=24),
        loss=train.CrossEntropy(label_smoothing=0.1),
        eval_every=2,
        label="backbone",
    )
    return naming.scores(model, data)


BACKBONE = Weights(
    "02_resnet", "backbone", build=Backbone, train=learn_backbone, data=named_pictures
)

# %% [markdown]
# ## When to use it today, and what came after
#
# ResNet-50 is still the network that others are compared with, and the backbone of many detectors and segmenters;
# the paper itself won the detection and localisation tracks of 2015, too. Often a better recipe is worth more than a better
# network: the same ResNet-50 trained by two recipes, as torchvision reports it.

# %%
versions = torchvision.models.ResNet50_Weights
rows = []
for name in ("IMAGENET1K_V1", "IMAGENET1K_V2"):
    reported = versions[name].meta["_metrics"]["ImageNet-1K"]
    rows.append({"weights": name, "top-1 accuracy in %": reported["acc@1"]})
Table(rows, decimals=1)

# %% [markdown]
# - **Pre-activation** [[He et al., 2016b](../pages/bibliography.md#he2016identity)], the follow-up paper. The ReLU after the addition clips the signal at
#   every block. Move it, and the batch normalisation, to the start of the branch, and the shortcut is an identity from end
#   to end: a gradient passes from any block to any other *unchanged*, plus something. It trained 1001 layers. Exercise 4
#   builds the block.
# - **Zero initialisation** of the last $\gamma$ of each block is the option `zero_init_residual` in torchvision, off by
#   default.
# - **ResNet-D** [[He et al., 2019](../pages/bibliography.md#he2019bag)] averages 2x2 positions before the 1x1 projection with stride 2, which throws three of four
#   away (chapter 9).
# - **Wide ResNets** [[Zagoruyko and Komodakis, 2016](../pages/bibliography.md#zagoruyko2016wide)] have fewer, wider layers, and use hardware better (chapter 8).
# - **DenseNet** (chapter 3) concatenates where ResNet adds. **SENet** (chapter 6) and **CBAM** (chapter 7) put gates on $F$.
# - Transformers have the same residual connection around each of their parts.

# %% [markdown]
# ## Exercises
#
# **1. (quick)** Count the weights of the convolutions in a basic block with 64 channels, and in a bottleneck from
# 256 to 64 to 256 channels.
#
# <details><summary>Answer</summary>
#
# Basic: 2 · 9 · 64² = 73,728. Bottleneck: 256 · 64 + 9 · 64² + 64 · 256 = 69,632. About the same, with four times
# the channels at its ends.
#
# </details>
#
# **2. (quick)** A colleague trains a network of 60 layers, is less accurate on test images than with 20 layers, and
# adds dropout. Which number should you ask for first, and what does it tell you?
#
# <details><summary>Answer</summary>
#
# The training error. If it is lower than that of the 20 layers, the deeper network overfits, and dropout may help.
# If it is higher, that is degradation, and dropout makes it worse.
#
# </details>
#
# **3. (code)** Count the parameters of any ResNet with bottlenecks without building it: convolutions without bias,
# two numbers per channel for each batch normalisation, projections of option B where the number of channels changes,
# the linear layer with its bias. Start on paper with ResNet-50: 25,557,032.


# %%
def check_count(count):
    one, two = count((1, 0, 0, 0), 1), count((1, 0, 0, 0), 2)
    assert two - one == 2049, (
        f"a class more is 2,049 numbers in the linear layer, not {two - one:,}."
    )
    expected = {50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
    for depth, parameters in expected.items():
        got = count(RESNETS[depth][1], 1000)
        assert got == parameters, f"ResNet-{depth} has {parameters:,}, you counted {got:,}."


def count_by_hand(layers, classes):
    raise NotImplementedError


attempt(check_count, count_by_hand)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def count_solution(layers, classes):
    def convolution(before, after, kernel):
        # with its batch normalisation
        return before * after * kernel**2 + 2 * after

    total, before = convolution(3, 64, 7), 64
    for blocks, channels in zip(layers, (64, 128, 256, 512), strict=True):
        after = 4 * channels
        for position in range(blocks):
            total += convolution(before, channels, 1)
            total += convolution(channels, channels, 3)
            total += convolution(channels, after, 1)
            if position == 0:
                total += convolution(before, after, 1)
            before = after
    return total + (2048 + 1) * classes


verify(check_count, count_solution)

# %% [markdown]
# **4. (code)** Write the pre-activation block for unchanged shapes: batch normalisation, ReLU, convolution, and the same
# again; then add the input, and nothing after that. Name the parts `bn1`, `conv1`, `bn2`, `conv2`. Then think: why can its
# output be negative, and why does that matter over a hundred blocks?


# %%
def check_pre_activation(block_class):
    torch.manual_seed(0)
    block, x = block_class(4), torch.randn(2, 4, 5, 6)
    assert block(x).shape == x.shape, f"the shape must stay {tuple(x.shape)}."
    found = inspect.count_parameters(block)
    assert found == 2 * (9 * 16 + 8), (
        f"304 parameters are needed: two 3x3 convolutions without bias, two BNs. Not {found}."
    )
    first, second = block.conv1.weight, block.conv2.weight.detach().clone()
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x), (
        "with conv2 = 0 the block must copy, also what is negative: add x as it came, and nothing after the addition."
    )
    block.conv2.weight.data = second
    # a fresh normalisation has nothing of its own
    norm = nn.BatchNorm2d(4)
    inner = F.conv2d(F.relu(norm(x)), first, padding=1)
    expected = x + F.conv2d(F.relu(norm(inner)), second, padding=1)
    assert torch.allclose(block(x), expected, atol=1e-5), (
        "each convolution comes after its BN and its ReLU, in this order."
    )


class PreActivationBlock(nn.Module):
    def __init__(self, channels):
        raise NotImplementedError


attempt(check_pre_activation, PreActivationBlock)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
class PreActivationSolution(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(self.bn1(x).relu())
        return x + self.conv2(self.bn2(y).relu())


verify(check_pre_activation, PreActivationSolution)

# %% [markdown]
# **5. (open)** The paper starts 110 layers with a learning rate of 0.01, until the training error falls below 80 %
# (about 400 steps). Is 0.1 too much for a start here? `schedule` of `train.fit` takes a function of progress in [0, 1]. Compare
# `lambda p: 1` and `lambda p: 0.1 if p < 0.2 else 1` for `CifarResNet(110, width=8)`, with three seeds. Repeat with $\gamma$ of
# the last normalisation of each block (`bn2.weight`) set to zero before training.

# %% [markdown]
# ## Recap
#
# - Degradation: a deeper plain network has a higher *training* error, however long it trains. It is neither overfitting nor
#   a lack of capacity. A short training shows slowness only.
# - Batch normalisation undoes the size of weights. What silences a branch is $\gamma = 0$.
# - $\mathbf{y} = F(\mathbf{x}) + \mathbf{x}$: a block whose $F$ is zero copies. With option A the shortcut costs nothing.
# - $\partial \mathbf{y} / \partial \mathbf{x} = I + \partial F / \partial \mathbf{x}$. In a plain network with batch
#   normalisation gradients explode and shatter; they do not vanish.
# - The bottleneck saves multiply-adds. Its stride is on the first 1x1 in the paper (v1), on the 3x3 in most code (v1.5).
#
# **Three questions.** Why does the comparison of plain and residual networks need option A? Why is a bottleneck
# with a projection in every block a bad idea? The 1202 layers are worse than the 110: how do you know that this is
# another problem than that of the plain 56?

# %%
best = 100 * metrics.accuracy(logits, data.test.targets)
headline(f"ResNet-20, test accuracy {best:.1f} %", data.provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

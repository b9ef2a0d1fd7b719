# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grad-CAM: what did the network look at?
#
# | | |
# |:--|:--|
# | Paper | R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh and D. Batra, *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*, ICCV 2017 [[Selvaraju et al., 2017](../pages/bibliography.md#selvaraju2017gradcam)]; longer in *International Journal of Computer Vision* 128(2), 336-359, 2020 [[Selvaraju et al., 2020](../pages/bibliography.md#selvaraju2020gradcam)]. Sections and tables below are those of the longer one |
# | Claim | The gradient of a class's score, averaged over a feature map, says how much each channel matters for that class; the channels weighed like this draw a map of where the evidence is, for any convolutional network and without changing it. |
# | You need | [Chapter 1](01_vgg): convolutions and the training loop; [chapter 2](02_resnet): the network that we question most. The other chapters' networks are questioned, too. |
# | Time | About an hour and a half to read. The last cell prints how long the computations took. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |
#
# **You will be able to**
#
# - derive Grad-CAM in three lines, prove that it contains CAM, and say where the factor *Z* goes;
# - measure whether a heat map finds the object, and against which baselines it has to;
# - find a bias in a data set with a heat map, and name the pictures that look convincing and explain nothing.
#
# **Before you read on, guess.** There is a famous way to colour the pixels that matter: guided backpropagation. For a
# photograph of a dog it paints the outlines of a dog, sharply. Now replace the trained last layer of the network by random
# numbers, so that it knows no dog any more. How much of the picture remains: nothing, about half, or nearly all of it?
# Write your answer down; a section near the end settles it.

# %% [markdown]
# ## Setup

# %% tags=["model"]
import importlib.util
import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import box_iou

from helpers import cam, metrics, naming, plot, train
from helpers.chapters import chapter
from helpers.claims import Claims
from helpers.data import (
    CIFAR10_CLASSES,
    Split,
    cifar10,
    clear_examples,
    largest_animal,
    voc_animals,
)
from helpers.exercise import attempt, verify
from helpers.headline import headline
from helpers.interactive import Explorable
from helpers.modes import evaluating
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table
from helpers.weights import explorable

resnet = chapter("02_resnet")
cbam = chapter("07_cbam")

# %% [markdown]
# Fourteen small networks of this book are loaded: ten that name what is on a picture of 32 pixels, and
# the four of chapters 11 to 14 with their own tasks. They take
# photographs of any size; the ten get 64 pixels here. We ask them about validation photographs of VOC's animals [[Everingham et al., 2010](../pages/bibliography.md#everingham2010voc)], which none of them has seen.

# %%
started = time.perf_counter()
train.set_seed(0)
animals = voc_animals(size=128, train=pick(full=None, quick=200), test=pick(full=400, quick=12))
photos = animals.test.images
known = voc_animals(
    size=64, train=10, test=len(photos)
).test.targets  # maps are judged at 64 pixels
labels = largest_animal(animals).test.targets  # (N,): the animal with the largest box
FIVE = clear_examples(animals.test).tolist()  # photographs to look at, chosen by a rule

TRAINED = {one.title: one for one in explorable()}
model = TRAINED["ResNet"].open()
inputs = TRAINED["ResNet"].to_input(animals, photos)  # (N, 3, 64, 64), normalised
with torch.inference_mode():
    answers = model(inputs)[:, naming.PLACES]  # the five animals' logits
right = answers.argmax(1) == labels
print(
    f"ResNet-8 names the largest animal of {100 * right.float().mean():.0f} % of "
    f"{len(photos)} photographs"
)

# %% [markdown]
# ## The problem: an answer without a reason
#
# A network says *dog*. Did it see the dog? The oldest way to ask is the gradient of the logit with respect to the pixels: a
# pixel matters if the answer changes when it changes. The largest of the three channels' absolute values makes a picture,
# the **saliency map** [[Simonyan et al., 2014](../pages/bibliography.md#simonyan2014saliency)].
#
# Two more methods of the years before the paper give nicer pictures by changing one thing: how the gradient passes a ReLU. With $x$ the input of the
# ReLU and $g$ the gradient that arrives from behind,
#
# | rule | what goes on to the front | |
# |:--|:--|:--|
# | gradient | $g \cdot [x > 0]$ | the derivative |
# | deconvolution [[Zeiler and Fergus, 2014](../pages/bibliography.md#zeiler2014visualizing)] | $g \cdot [g > 0]$ | only what raises the score, wherever the ReLU was off |
# | guided backpropagation [[Springenberg et al., 2015](../pages/bibliography.md#springenberg2015striving)] | $g \cdot [x > 0]\,[g > 0]$ | both conditions |
#
# A ReLU may be a module, a function or a method of a tensor, and it may work in place. Instead of hunting for modules, we
# let PyTorch itself tell us whenever any of these is called.


# %% tags=["model"]
RULES = ("gradient", "deconvolution", "guided")
RELUS = {F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}


class RuledReLU(torch.autograd.Function):
    """A ReLU whose backward pass follows one of RULES."""

    @staticmethod
    def forward(ctx, x, rule):
        ctx.save_for_backward(x > 0)
        ctx.rule = rule
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, gradient):
        (positive,) = ctx.saved_tensors
        if ctx.rule != "deconvolution":
            gradient = gradient * positive
        if ctx.rule != "gradient":
            gradient = gradient.clamp_min(0)
        return gradient, None


class ReLURule(TorchFunctionMode):
    """`with ReLURule("guided"):` makes every ReLU that runs inside follow that rule backwards."""

    def __init__(self, rule):
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is none of {', '.join(RULES)}.")
        self.rule = rule

    def __torch_function__(self, function, types, arguments=(), settings=None):
        if function in RELUS:
            return RuledReLU.apply(arguments[0], self.rule)
        return function(*arguments, **(settings or {}))


# %% [markdown]
# Four numbers arrive at a ReLU from the front, four gradients from behind. Which pass? (`True` at the end: function, method
# and module agree.)

# %% tags=["nbval-check-output"]
x = torch.tensor([2.0, 2.0, -2.0, -2.0], requires_grad=True)
g = torch.tensor([1.0, -1.0, 1.0, -1.0])
for rule in RULES:
    with ReLURule(rule):
        forms = [F.relu(x), x.relu(), nn.ReLU(inplace=True)(x * 1)]
    passed = [torch.autograd.grad(y, x, g)[0] for y in forms]
    print(
        f"{rule:14}", (passed[0] + 0.0).tolist(), all(torch.equal(passed[0], p) for p in passed)
    )


# %% tags=["model"]
def input_gradient(model, images, score, rule="gradient"):
    """How the score of each image changes with its pixels: (N, 3, H, W), like `images`.

    score: a function from the model's outputs to one number per image, (N,).
    """
    images = images.detach().clone().requires_grad_()
    with evaluating(model), torch.enable_grad(), ReLURule(rule):
        total = score(model(images)).sum()
    return torch.autograd.grad(total, images)[0]


def saliency(gradient):
    """(N, 3, H, W) to (N, H, W): the largest absolute value of the channels
    (Simonyan et al., 2014)."""
    return gradient.abs().amax(1)


def logit(names):
    """The score that is explained: the logit of one class, or of one for each image."""

    def score(outputs):
        index = torch.as_tensor(names).expand(len(outputs))
        return outputs.gather(1, index[:, None])[:, 0]

    return score


# %% [markdown]
# Now a photograph with **two** animals, and two questions: which pixels speak for the left animal, which for the right one?
# We put two validation photographs side by side. The ResNet averages over positions before
# it answers, so it takes images of any shape. Each photograph is in one scene only: scenes that share a photograph would
# count its accidents twice.


# %% tags=["model"]
def side_by_side(photos, labels, order):
    """Photographs with different animals side by side, each of `order` in one scene at most:
    images (scenes, 3, H, 2W) and their labels, left and right, (scenes, 2)."""
    waiting, pairs = [], []
    for i in order:
        partner = next((j for j in waiting if labels[j] != labels[i]), None)
        if partner is None:
            waiting.append(i)
        else:
            waiting.remove(partner)
            pairs.append((partner, i))
    pairs = torch.tensor(pairs)
    return torch.cat([photos[pairs[:, 0]], photos[pairs[:, 1]]], 3), labels[pairs]


# %%
one_kind = ((known["labels"] == labels[:, None]) | (known["labels"] < 0)).all(1)
usable = one_kind & pick(full=right, quick=right | True)  # those that the network names right
clear = FIVE + clear_examples(animals.test, 8).tolist()  # these first, one of each class before
order = dict.fromkeys(clear + list(range(len(photos))))
scenes, pair_labels = side_by_side(photos, labels, [i for i in order if usable[i]])
small_scenes = F.interpolate(scenes.float(), (64, 128), mode="bilinear", antialias=True)
scene_inputs = animals.normalize(small_scenes.round().to(torch.uint8))
print("the scenes:", tuple(scene_inputs.shape))
print("animals in them:", dict(Counter(animals.classes[k] for k in pair_labels.flatten())))

# %% jupyter={"source_hidden": true} tags=["hide-input"]
SHOWN = [0, 1]


def draw(fig):
    axes = fig.subplots(len(SHOWN), 5)
    for row, scene in enumerate(SHOWN):
        names = [animals.classes[k] for k in pair_labels[scene].tolist()]
        axes[row, 0].imshow(scenes[scene].permute(1, 2, 0))
        axes[row, 0].set_title(" | ".join(names), fontsize=8, loc="center", pad=3)
        pictures = []
        for rule in ("gradient", "guided"):
            for side in (0, 1):
                score = logit(naming.PLACES[pair_labels[scene, side]])
                pictures.append(
                    input_gradient(model, scene_inputs[scene : scene + 1], score, rule)
                )
        for column, (found, name) in enumerate(zip(pictures, names * 2, strict=True), 1):
            shown = saliency(found)[0]
            axes[row, column].imshow(shown / shown.quantile(0.995), cmap="inferno", vmax=1)
            kind = "gradient" if column < 3 else "guided"
            axes[row, column].set_title(f"{kind}: {name}", fontsize=8, loc="center", pad=3)
    for ax in axes.flat:
        ax.set_axis_off()


plot.show(
    draw,
    alt="Two pairs of photographs side by side with an animal each. Beside each, four heat maps of pixels: the gradient and guided "
    "backpropagation, for the left and for the right animal.",
    caption="Which pixels speak for which animal? Compare the two maps of each method with one another. "
    f"Data: {animals.provenance}.",
    width=6.0,
    height=1.6,
)

# %% [markdown]
# The gradient's picture changes with the question, and stays noise all over the scene. Guided
# backpropagation draws the edges of both animals, whichever is asked about. That is
# the failure which the paper sets out to fix: these methods are sharp, but they are not **class-discriminative**. Let us put
# a number on it. A map's share on the half that shows the animal asked about should be near 100 %; a map that does not know
# what it was asked has 50 %. Here and below, ± is the standard error of the mean over the images.


# %% tags=["model"]
def share_on_its_half(maps, side):
    """The share of each map (N, H, W), not negative, on the left (side 0) or on the right half
    (side 1): (N,)."""
    left, right = (half.sum((1, 2)) for half in maps.chunk(2, 2))
    return (right if side else left) / (left + right)


def discrimination(maps_for):
    """`share_on_its_half`, mean over both animals, (N,). maps_for: a function from 0 or 1 to
    the maps for that animal."""
    return (share_on_its_half(maps_for(0), 0) + share_on_its_half(maps_for(1), 1)) / 2


# %% tags=["model"]
def mean_and_error(values, scale=100, decimals=1):
    """Mean over images (N,) and its standard error, times `scale`, as text; maps that are zero
    everywhere (nan) left out."""
    values = scale * values[~values.isnan()].double()
    return f"{values.mean():.{decimals}f} ± {values.std() / len(values) ** 0.5:.{decimals}f}"


# %%
def by_pixels(rule):
    def maps_for(side):
        return saliency(
            input_gradient(
                model, scene_inputs, logit(naming.PLACES[pair_labels[:, side]]), rule
            )
        )

    return maps_for


halves = {rule: discrimination(by_pixels(rule)) for rule in RULES}
Table(
    {"rule": rule, "on its own half, %": mean_and_error(found)}
    for rule, found in halves.items()
)

# %% [markdown]
# All three are near 50 %. One number should stop you: deconvolution's ± is 0.0. No measurement of photographs is
# that even. What does its picture depend on? Take many photographs and ask one question, in two networks.

# %% tags=["nbval-check-output"]
for name in ("ResNet", "VGG"):
    network = TRAINED[name].open()
    maps = saliency(input_gradient(network, inputs[:10], logit(3), "deconvolution"))
    print(f"{name}: all photographs have the same map:", bool((maps == maps[0]).all()))

# %% [markdown]
# The ResNet gives one picture for all photographs, to the last bit: **deconvolution never looked at them.** Its rule asks for
# $g > 0$ alone, and the rest of the way back is the same for every image: convolutions, normalisation with fixed statistics,
# additions, an average. The networks of Zeiler and Fergus have what VGG has and our ResNet lacks: pooling by the
# maximum. Its backward pass goes to the place where the maximum was, and these *switches* are all that deconvolution knows of the
# image. Distrust a number that is too good for noise.
#
# The other tool of the time, **class activation mapping** (CAM) [[Zhou et al., 2016](../pages/bibliography.md#zhou2016cam)], does
# discriminate. But it needs a network of a certain shape: feature maps, their average over all positions, one linear
# layer. To use CAM, Zhou et al. cut VGG's fully connected layers off and train again, and the new
# network classifies worse: a top-1 error of 30.38 % grows by 2.98 points (section 4.1). An explanation should
# not change what it explains.

# %% [markdown]
# ## The idea: a weight for every channel
#
# The last convolutional layers are where both worlds meet: a channel stands for something with a meaning, and its map still
# says where. Behind them, positions are lost. So let $A^k$ be the map of channel $k$ in such a layer, with $Z = h \cdot w$
# positions, and $y^c$ the score of class $c$, **before** the softmax. Three steps:
#
# 1. How would the score change if channel $k$ grew a little, everywhere? Average its gradient over the positions:
#
# $$ \alpha_k^c = \frac{1}{Z} \sum_i \sum_j \frac{\partial y^c}{\partial A_{ij}^k}. \tag{15.1} $$ <a id="eq-cam-alpha"></a>
#
# 2. Add the maps up, each with its weight.
# 3. Keep what is positive, because what lowers the score of *dog* is usually part of something else:
#
# $$ L^c_\text{Grad-CAM} = \text{ReLU}\Big( \sum_k \alpha_k^c A^k \Big). \tag{15.2} $$ <a id="eq-cam-map"></a>
#
# That is all. It takes one forward pass and one backward pass that stops at the layer.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    ax = fig.subplots()
    box = dict(boxstyle="round,pad=0.4", facecolor="#e8f1f8", edgecolor="C0")
    orange = {**box, "edgecolor": "C1", "facecolor": "#fdf0e0"}
    arrow = dict(arrowstyle="-|>", color="#444444")
    stations = [
        (0.6, "image"),
        (2.5, "convolutions"),
        (4.7, "maps $A^1 \\ldots A^K$"),
        (7.0, "the rest,\nwhatever it is"),
        (9.0, "score $y^c$"),
    ]
    for x, name in stations:
        ax.text(x, 1.5, name, ha="center", va="center", fontsize=9, bbox=box)
    for start, end in ((1.0, 1.7), (3.35, 3.75), (5.7, 6.2), (7.8, 8.4)):
        ax.annotate("", (end, 1.5), (start, 1.5), arrowprops=arrow)
    back = dict(arrowstyle="-|>", color="C1", connectionstyle="arc3,rad=0.25", linewidth=1.8)
    ax.annotate("", (4.9, 1.85), (9.0, 1.85), arrowprops=back)
    gradient = "gradient $\\partial y^c / \\partial A^k_{ij}$"
    ax.text(7.0, 2.62, gradient, color="C1", ha="center", fontsize=9)
    steps = [
        (4.7, "average over $i, j$: $\\alpha_k^c$"),
        (7.3, "$\\sum_k \\alpha_k^c A^k$"),
        (9.0, "ReLU"),
    ]
    for x, name in steps:
        ax.text(x, 0.35, name, ha="center", va="center", fontsize=9, bbox=orange)
    ax.annotate("", (4.7, 0.65), (4.7, 1.2), arrowprops={**arrow, "color": "C1"})
    for start, end in ((5.95, 6.5), (8.1, 8.55)):
        ax.annotate("", (end, 0.35), (start, 0.35), arrowprops={**arrow, "color": "C1"})
    ax.set(xlim=(0, 9.8), ylim=(0, 2.8))
    ax.set_axis_off()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.show(
    draw,
    alt="Diagram. Forwards: image, convolutions, maps A, the rest of the network, score. Backwards: the gradient goes from the score to "
    "the maps; below, it is averaged to a weight per channel, the maps are summed with these weights, and a ReLU ends it.",
    caption="Grad-CAM. Blue: the network as it is. Orange: what is computed on top. What comes behind the maps does not matter, as long as "
    "it has a gradient.",
    height=2.4,
)

# %% [markdown]
# | symbol | meaning | shape | in the code |
# |:--|:--|:--|:--|
# | $A^k$ | map of channel $k$ of the chosen layer | `(N, K, h, w)` | `activation` |
# | $y^c$ | score of class $c$, before the softmax | `(N,)` | `score(outputs)` |
# | $Z$ | number of positions, $h \cdot w$ | number | `h * w` |
# | $\partial y^c / \partial A^k_{ij}$ | its gradient | `(N, K, h, w)` | `gradient` |
# | $\alpha_k^c$ | weight of channel $k$ for class $c$ | `(N, K)` | `alpha` |
# | $L^c$ | the map | `(N, h, w)` | `maps` |
# | $w_k^c$ | weight of the last linear layer, where there is one | `(classes, K)` | `fc.weight` |
#
# The averaging treats the rest of the network as if it were linear in the averages of the maps. Where that is not true, $\alpha$ is a first-order estimate.

# %% [markdown]
# ## The smallest piece by hand
#
# Two channels of 4x4 positions and a score $y = 2 m_1 - m_2$, with $m_k$ the mean of channel $k$. One entry of $A^1$
# changes $m_1$ by a sixteenth of its own change, so its gradient is $2/16$, at every position: $\alpha_1 = 2/16$, and
# $\alpha_2 = -1/16$.

# %% tags=["nbval-check-output"]
A = torch.tensor(
    [
        [
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 4.0, 2.0, 0.0],
            [0.0, 2.0, 2.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
        ],
        [
            [4.0, 4.0, 0.0, 0.0],
            [4.0, 2.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 2.0],
            [0.0, 0.0, 2.0, 4.0],
        ],
    ],
    requires_grad=True,
)
by_hand = (2 * A[0] - A[1]).clamp_min(0) / 16

(gradient,) = torch.autograd.grad(2 * A[0].mean() - A[1].mean(), A)
alpha = gradient.mean((1, 2))
by_torch = (alpha[:, None, None] * A).sum(0).relu()
print("16 alpha:", (16 * alpha).tolist())
print((16 * by_hand).detach())
print("same as with autograd:", torch.equal(by_hand, by_torch))

# %% [markdown]
# Look at the position in the second row and column. Both channels are on there; the second one speaks against the class and
# takes a part away. In the corner only the second is on, and the ReLU leaves nothing.

# %% [markdown]
# ## The method, whole
#
# The one technical task is to get hold of $A$ while the network runs. A **hook** does that: a function that PyTorch calls
# whenever the layer has run, with what the layer gave.


# %% tags=["model"]
class GradCAM:
    """Grad-CAM (equations 1, 2) at the module of `model` named `layer`, with maps (N, K, h, w)."""

    def __init__(self, model, layer):
        self.model, self.layer = model, model.get_submodule(layer)

    def forward(self, images):
        """The layer's maps A, with their graph, and the model's outputs."""
        caught = []

        def hook(module, given, made):
            caught.append(made)
            return made.clone()  # what works in place behind the layer works on the copy

        handle = self.layer.register_forward_hook(hook)
        try:
            with evaluating(self.model), torch.enable_grad():
                outputs = self.model(images.detach().clone().requires_grad_())
        finally:
            handle.remove()
        if len(caught) != 1:
            raise ValueError(f"the layer ran {len(caught)} times; choose one that runs once.")
        return caught[0], outputs

    def alphas(self, images, score):
        """alpha (N, K) and the maps A (N, K, h, w). score: from outputs to a number per image."""
        activation, outputs = self.forward(images)
        (gradient,) = torch.autograd.grad(score(outputs).sum(), activation)
        return gradient.mean((2, 3)), activation.detach()

    def __call__(self, images, score, relu=True):
        """The maps (N, h, w); `relu=False` keeps what speaks against the score, too."""
        alpha, activation = self.alphas(images, score)
        maps = torch.einsum("nk,nkhw->nhw", alpha, activation)
        return maps.relu() if relu else maps

    def counterfactual(self, images, score):
        """Where the evidence against the score is: the maps with negated weights."""
        alpha, activation = self.alphas(images, score)
        return torch.einsum("nk,nkhw->nhw", -alpha, activation).relu()


# %% [markdown]
# The score may be any number that the outputs have a gradient for: a logit, a
# pixel's class, the best box for *dog*, a word of a caption. The sum over a batch is a trick: image $n$'s
# score depends on image $n$ alone, so the gradient of the sum holds all gradients at once. (In training mode batch
# normalisation would mix the images. Hence `eval`.)

# %% tags=["nbval-check-output"]
explain = GradCAM(model, "layer3")
alpha, activation = explain.alphas(inputs[:2], logit(naming.PLACES[labels[:2]]))
print("A:", tuple(activation.shape), " alpha:", tuple(alpha.shape))
print("map:", tuple(explain(inputs[:2], logit(naming.PLACES[labels[:2]])).shape))

# %% [markdown]
# And the pairs of animals from the beginning, asked again:


# %%
def by_layer(layer):
    def maps_for(side):
        return GradCAM(model, layer)(scene_inputs, logit(naming.PLACES[pair_labels[:, side]]))

    return maps_for


halves["Grad-CAM"] = discrimination(by_layer("layer3"))
Table(
    {"map": rule, "on its own half, %": mean_and_error(found)} for rule, found in halves.items()
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def enlarged(maps, size):
    """Maps (N, h, w), bilinearly resized to (N, *size)."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def overlay(ax, image, heat, title=""):
    """A heat map (h, w) over an image uint8 (3, H, W)."""
    ax.imshow(image.permute(1, 2, 0))
    heat = enlarged(cam.unit_range(heat[None]), image.shape[1:])[0]
    ax.imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    ax.set_title(title, fontsize=8, loc="center", pad=3)


def draw(fig):
    axes = fig.subplots(len(SHOWN), 3)
    for row, scene in enumerate(SHOWN):
        axes[row, 0].imshow(scenes[scene].permute(1, 2, 0))
        for side in (0, 1):
            heat = by_layer("layer3")(side)[scene]
            name = animals.classes[pair_labels[scene, side]]
            overlay(axes[row, 1 + side], scenes[scene], heat, f"Grad-CAM: {name}")
    for ax in axes.flat:
        ax.set_axis_off()


plot.show(
    draw,
    alt="The same two pairs of photographs, and for each the Grad-CAM for the left and for the right animal as a heat map.",
    caption="The same scenes and questions as above, answered by Grad-CAM at the last stage (16x32 positions). Each map is scaled to its "
    f"own range. Data: {animals.provenance}.",
    width=5.6,
    height=2.1,
)

# %% [markdown]
# Grad-CAM listens to the question: a good part of the map moves to the photograph of the animal asked about. It is
# coarse, and it is far from 100 %: the network finds some evidence for one animal in the photograph of the other.

# %% [markdown]
# ## The proof that it contains CAM
#
# Take a network as CAM wants it: $A$, the average of each channel, one linear layer.
#
# $$
# \begin{aligned}
# F^k & = \frac{1}{Z} \sum_{ij} A^k_{ij}, \\
# Y^c & = \sum_k w_k^c F^k + b^c.
# \end{aligned}
# $$
#
# CAM pulls the sum over $k$ inside: $Y^c = \frac{1}{Z} \sum_{ij} \sum_k w_k^c A^k_{ij} + b^c$, and calls
# $\sum_k w^c_k A^k$ the map of class $c$. Now differentiate:
#
# $$ \frac{\partial Y^c}{\partial A^k_{ij}} = \frac{\partial Y^c}{\partial F^k} \cdot \frac{\partial F^k}{\partial A^k_{ij}} = \frac{w_k^c}{Z}. $$
#
# It is the same at all positions. Sum over them: $\sum_{ij} \partial Y^c / \partial A^k_{ij} = w^c_k$. So up to the factor
# $1/Z$ in [(15.1)](#eq-cam-alpha), Grad-CAM's weights **are** CAM's:
#
# $$ Z \, \alpha_k^c = w_k^c. \tag{15.3} $$ <a id="eq-cam-identity"></a>
#
# A map is scaled to its own range before anybody looks at it, so the factor never shows. Executed, for four networks of
# this course that end in an average and a linear layer, and for torchvision's ResNet-18 with random weights:

# %% tags=["nbval-check-output"]
import torchvision

train.set_seed(0)
HEADS = {
    name: (TRAINED[name].open(), TRAINED[name].layer, "fc")
    for name in ("ResNet", "SENet", "CBAM")
}
HEADS["shared backbone"] = (resnet.BACKBONE.load(), "layer4", "fc")
HEADS["torchvision, ResNet-18"] = (torchvision.models.resnet18(), "layer4", "fc")
sample = inputs[:3].double()
rows = []
for name, (network, layer, head) in HEADS.items():
    gradcam, weights = GradCAM(network.double(), layer), network.get_submodule(head).weight
    alpha, A = gradcam.alphas(sample, logit(3))
    raw, Z = gradcam(sample, logit(3), relu=False), A.shape[2] * A.shape[3]
    class_map = torch.einsum("k,nkhw->nhw", weights[3].detach(), A)
    gap = float((Z * raw - class_map).abs().max() / class_map.abs().max())
    rows.append({"network": name, "K": A.shape[1], "Z": Z, "Z x Grad-CAM = CAM": gap < 1e-9})
Table(rows)

# %% [markdown]
# Where the head is different, CAM has no answer, and Grad-CAM has. Our VGG has two linear layers with a ReLU between. Is its
# Grad-CAM still a fixed weighting of the channels, the same for every image? In the ResNet it is: $w_k^c / Z$. Compare the
# $\alpha$ of one class for many photographs, each with the next: a cosine of 1 means the same weights.

# %%
vgg = TRAINED["VGG"].open()
rows = []
for name, head in (("ResNet", "average, linear"), ("VGG", "linear, ReLU, linear")):
    gradcam = GradCAM(TRAINED[name].open(), TRAINED[name].layer)
    alpha, _ = gradcam.alphas(inputs[:40], logit(3))
    cosine = F.cosine_similarity(alpha, alpha.roll(1, 0))
    rows.append(
        {
            "network": name,
            "head": head,
            "cosine, mean": float(cosine.mean()),
            "smallest": float(cosine.min()),
        }
    )
Table(rows, decimals=3)

# %% [markdown]
# Behind a ReLU, $\alpha$ is an answer about *this* photograph: the hidden units that are off pass no gradient on.

# %% [markdown]
# ## Checks: is it Grad-CAM?
#
# **Against a loop.** One derivative at a time: for every channel and position, autograd alone, no hook. The layer's maps
# are cut out and what comes behind them is run on its own.

# %% tags=["nbval-check-output"]
network = model.double()


def behind_layer3(A):
    return network.fc(network.avgpool(A).flatten(1))


A, _ = GradCAM(network, "layer3").forward(sample[:1])
jacobian = torch.autograd.functional.jacobian(behind_layer3, A.detach())[0, 3, 0]  # (K, h, w)
slow = torch.zeros(A.shape[2:], dtype=A.dtype)
for k in range(A.shape[1]):
    slow += jacobian[k].mean() * A[0, k].detach()
fast = GradCAM(network, "layer3")(sample[:1], logit(3))[0]
print("as the loop over channels:", bool(torch.allclose(slow.relu(), fast)))
theirs = cam.grad_cam(network, "layer3", sample[:1], 3)[0]
print("as helpers.cam:", bool(torch.allclose(theirs, fast, atol=1e-12)))
model = network.float()

# %% [markdown]
# **Against two public libraries**, captum [[Kokhlikyan et al., 2020](../pages/bibliography.md#kokhlikyan2020captum)] and pytorch-grad-cam. They are installed with the
# tests. Where they are missing, the table says so.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def public_maps(network, layer, images, name):
    """Grad-CAM by captum, raw and as it comes by default, and by pytorch-grad-cam; None where
    it is missing."""
    found = {"captum": None, "pytorch-grad-cam": None}
    module = network.get_submodule(layer)
    if importlib.util.find_spec("captum"):
        from captum.attr import LayerGradCam

        found["captum"] = (
            LayerGradCam(network, module).attribute(images, target=name)[:, 0].detach()
        )
    if importlib.util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM as Theirs
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with Theirs(model=network, target_layers=[module]) as theirs:
            maps = theirs(images, targets=[ClassifierOutputTarget(name)] * len(images))
        found["pytorch-grad-cam"] = torch.from_numpy(maps)
    return found


public = public_maps(model, "layer3", inputs[:4], 3)
raw = explain(inputs[:4], logit(3), relu=False)
scaled = cam.unit_range(enlarged(cam.unit_range(raw.relu()), inputs.shape[2:]))
ours = {"captum": raw, "pytorch-grad-cam": scaled}
rows = []
for name, maps in public.items():
    gap = (
        None
        if maps is None
        else float((maps - ours[name]).abs().max() / ours[name].abs().max())
    )
    rows.append(
        {
            "library": name,
            "compared with": "ours without ReLU"
            if name == "captum"
            else "ours, scaled to [0, 1] twice",
            "equal": "not installed" if gap is None else gap < 1e-4,
        }
    )
Table(rows)

# %% [markdown]
# Three implementations, one map. Three users would have got three different pictures all the same, because the defaults differ:
#
# | | ours, `relu=True` | captum `LayerGradCam` | pytorch-grad-cam `GradCAM` |
# |:--|:--|:--|:--|
# | ReLU | yes, as in the paper | **no**, unless `relu_attributions=True` | yes |
# | size | of the layer | of the layer; `interpolate` takes the *nearest* position unless told otherwise | of the image, bilinear |
# | range | as it is | as it is | scaled to [0, 1] for each layer, averaged over layers, scaled **again** |
#
# Scaling is fine for looking, and it throws two things away: how strong the evidence is, and whether there is any.

# %% [markdown]
# ### Five traps
#
# **A map that is zero everywhere.** If nothing speaks for the class, the ReLU leaves zeros. Scaled carelessly, that is
# 0/0. A black map is a result, and it should not become a crash or a picture.

# %% tags=["nbval-check-output"]
nothing = torch.zeros(1, 4, 4)
careless = (nothing - nothing.min()) / (nothing.max() - nothing.min())
print("carelessly scaled:", careless.isnan().all().item())
print("helpers.cam.unit_range:", cam.unit_range(nothing).abs().sum().item())

# %% [markdown]
# **ReLU in place.** The layer's output is caught, and then the next layer overwrites it. The hook above hands a copy on,
# and keeps the original. Without that, $A$ is not what the layer gave:

# %% tags=["nbval-check-output"]
chain = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
)
nn.init.normal_(chain[0].weight, generator=torch.Generator().manual_seed(0))
caught = []
handle = chain[0].register_forward_hook(lambda module, given, made: caught.append(made))
noise = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
chain(noise)
handle.remove()
safe, _ = GradCAM(chain, "0").forward(noise)
print("negative values left, naive hook:", bool((caught[0] < 0).any()))
print("negative values left, our hook:", bool((safe < 0).any()))

# %% [markdown]
# **A module that runs twice.** The blocks of [chapter 2](02_resnet) use one ReLU module in two places. A hook on it fires
# twice, and which of the two maps is meant? Ours refuses, and so does `helpers.cam`.

# %% tags=["nbval-check-output"]
try:
    GradCAM(model, "layer3.0.relu")(inputs[:1], logit(3))
except ValueError as error:
    print(error)

# %% [markdown]
# **ReLUs that are not modules.** Guided backpropagation by hooks on `nn.ReLU` misses every `F.relu(x)` and `x.relu()`, and
# says nothing. In the shared backbone:


# %% tags=["nbval-check-output"]
class CountReLUs(TorchFunctionMode):
    """Counts the outermost calls of a ReLU, in whatever form."""

    calls = 0

    def __torch_function__(self, function, types, arguments=(), settings=None):
        self.calls += function in RELUS
        return function(*arguments, **(settings or {}))


backbone = resnet.BACKBONE.load()
with CountReLUs() as counter, torch.inference_mode():
    backbone(inputs[:1])
print("ReLU modules:", sum(isinstance(module, nn.ReLU) for module in backbone.modules()))
print("ReLUs that ran:", counter.calls)

# %% [markdown]
# Four blocks with one module each, which runs twice, and one call in the stem that no module stands for. Captum's
# `GuidedBackprop` has the same limits and warns of them. On a network that respects them, our rule gives what captum's gives:


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def captum_guided(network, images, name):
    """Guided backpropagation by captum, or None where it is not installed. It wants one ReLU
    module per use."""
    if not importlib.util.find_spec("captum"):
        return None
    import warnings

    from captum.attr import GuidedBackprop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its hooks
        return (
            GuidedBackprop(network)
            .attribute(images.clone().requires_grad_(), target=name)
            .detach()
        )


reference, ours = (
    captum_guided(vgg, inputs[:2], 3),
    input_gradient(vgg, inputs[:2], logit(3), "guided"),
)
if reference is None:
    print("captum is not installed")
else:
    print(
        "VGG, guided backpropagation as captum's:",
        bool(torch.allclose(reference, ours, atol=1e-6)),
    )

# %% [markdown]
# **The softmax.** The score is the logit. Take the probability instead, and the gradient is multiplied by $p(1-p)$ and
# mixed with those of the other classes: a network that is sure has hardly any gradient left. Here with larger logits:


# %% tags=["nbval-check-output"]
def probability(sharpness):
    def score(outputs):
        return (sharpness * outputs).softmax(1).gather(1, outputs.argmax(1, keepdim=True))[:, 0]

    return score


sizes = [float(explain.alphas(inputs[:1], probability(s))[0].norm()) / s for s in (1.0, 100.0)]
print("the surer, the smaller the gradient of the probability:", sizes[1] < 0.01 * sizes[0])

# %% [markdown]
# ## Guided Grad-CAM, and the counterfactual
#
# **Guided Grad-CAM** multiplies the two kinds of picture, position by position: guided backpropagation for the detail,
# Grad-CAM (enlarged to the size of the image) for the question.


# %% tags=["model"]
def guided_grad_cam(model, layer, images, score):
    """Guided backpropagation times Grad-CAM, which is enlarged to the size of the images:
    (N, 3, H, W)."""
    maps = GradCAM(model, layer)(images, score)[:, None]
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    return input_gradient(model, images, score, "guided") * maps


# %% [markdown]
# **The counterfactual map** asks the opposite: which regions, if they went away, would make the network surer? Negate the
# gradient, $\alpha_k^c = -\frac{1}{Z} \sum_{ij} \partial y^c / \partial A^k_{ij}$, and go on as before. That is Grad-CAM for
# the score $-y^c$, and it is what the ReLU of the ordinary map has cut off:

# %% tags=["nbval-check-output"]
score = logit(naming.PLACES[labels[:4]])
against = explain.counterfactual(inputs[:4], score)
of_negated = explain(inputs[:4], lambda outputs: -score(outputs))
raw = explain(inputs[:4], score, relu=False)
print("Grad-CAM of -y:", torch.equal(against, of_negated))
print(
    "map less counterfactual map = map without ReLU:",
    bool(torch.allclose(raw.relu() - against, raw, atol=1e-7)),
)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def detail(gradient):
    """A gradient (3, H, W) as a picture in [0, 1], grey where it is zero."""
    scale = gradient.abs().flatten().quantile(0.995).clamp_min(1e-12)
    return (0.5 + 0.5 * gradient / scale).clamp(0, 1).permute(1, 2, 0)


def draw(fig):
    axes = fig.subplots(4, 3).reshape(2, 6)  # each question has two rows of three
    one, where = scene_inputs[:1], scenes[0]
    for row, side in enumerate((0, 1)):
        score, name = (
            logit(naming.PLACES[pair_labels[0, side]]),
            animals.classes[pair_labels[0, side]],
        )
        axes[row, 0].imshow(where.permute(1, 2, 0))
        axes[row, 0].set_title(f"asked: {name}", fontsize=8, loc="center", pad=3)
        axes[row, 1].imshow(detail(input_gradient(model, one, score)[0]))
        axes[row, 2].imshow(detail(input_gradient(model, one, score, "guided")[0]))
        overlay(axes[row, 3], where, explain(one, score)[0])
        axes[row, 4].imshow(detail(guided_grad_cam(model, "layer3", one, score)[0]))
        overlay(axes[row, 5], where, explain.counterfactual(one, score)[0])
    titles = ("gradient", "guided", "Grad-CAM", "guided Grad-CAM", "counterfactual")
    for line in axes:
        for ax, title in zip(line[1:], titles, strict=True):
            ax.set_title(title, fontsize=8, loc="center", pad=3)
    for ax in axes.flat:
        ax.set_axis_off()


plot.show(
    draw,
    alt="One pair of photographs, twice, once for each animal asked about. Each time: the scene, gradient, guided backpropagation, Grad-CAM, "
    "guided Grad-CAM, counterfactual map.",
    caption="Five answers to two questions. Guided backpropagation is much the same for both; its product with Grad-CAM is not. "
    f"Data: {animals.provenance}.",
    width=4.5,
    height=3.5,
)


# %%
def by_product(side):
    return (
        guided_grad_cam(
            model, "layer3", scene_inputs, logit(naming.PLACES[pair_labels[:, side]])
        )
        .abs()
        .amax(1)
    )


def by_counterfactual(side):
    return explain.counterfactual(scene_inputs, logit(naming.PLACES[pair_labels[:, side]]))


halves["guided Grad-CAM"] = discrimination(by_product)
halves["counterfactual"] = discrimination(by_counterfactual)
for layer in ("layer2", "layer1", "conv1"):
    halves[f"Grad-CAM at {layer}"] = discrimination(by_layer(layer))
Table(
    {"map": rule, "on its own half, %": mean_and_error(found)} for rule, found in halves.items()
)

# %% [markdown]
# The paper asks people. Workers saw one map for one of the two classes of a VOC photograph and had to say for which: right in
# 44.44 % of cases with guided backpropagation, in 61.23 % with guided Grad-CAM, 53.33 % with deconvolution alone (section
# 5.1 of the paper; 43 workers). Our table, without people, says the same: the pictures of pixels
# are near chance, and guided backpropagation multiplied by Grad-CAM is not. The product is even ahead of Grad-CAM alone.
#
# The counterfactual is clearly *below* 50 %: what speaks against one animal is, more often, the
# other one. And the earlier the layer, the less a map knows what it was asked: edges are the same for all animals. That is
# why the last convolutional layer is the one to take.

# %% [markdown]
# ## Where we differ from the paper
#
# | | paper | here | why, and what it costs |
# |:--|:--|:--|:--|
# | networks | VGG-16, AlexNet, GoogLeNet, ResNet, with ImageNet's classes; networks for captions and questions | fourteen small networks of this course | nothing to download; their answers are often wrong |
# | layer | the last convolution; 14x14 positions for VGG-16 at 224 pixels, 512 channels | the last stage; in the ResNet 16x16 positions at 64 pixels, 64 channels | the same: the last that still has positions |
# | localisation | ILSVRC-15, 1000 classes, predicted class; error if the box overlaps less than half | VOC's five animals; we ask for the class that is there | separates where from what |
# | pointing | maximum within 15 pixels of the object [[Zhang et al., 2018a](../pages/bibliography.md#zhang2018excitation)] | within 2 of 64 pixels | about the same share of a photograph |
# | baselines | CAM, excitation backpropagation, gradient | a random point, the centre, another photograph's map, gradient | a baseline should be cheap and hard to beat |
# | attack | towards a class that is not there, until its probability exceeds 0.9999 | the same, towards *airplane*, in stages | the map is measured on the way |
# | class discrimination, trust | people | share of the map on the half that was asked for; no trust | repeatable, and narrower |
# | faithfulness | rank correlation with occlusion on VOC 2007 | the same idea on VOC 2012 | |
# | bias | doctors and nurses from an image search | a tag on CIFAR-10's dogs | planted, so that we know the truth |

# %% [markdown]
# ## The data
#
# The photographs, with boxes and masks of the animals. Most masks are from [[Hariharan et al., 2011](../pages/bibliography.md#hariharan2011sbd)]. The five to look at are
# chosen by a rule and not by their maps: the first of each class with one animal alone, whose box covers a fifth to half of the
# picture and whose mask is in one piece, and without a person.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def boxes_to_draw(index):
    pairs = zip(2 * known["boxes"][index], known["labels"][index], strict=True)
    return [(box.tolist(), animals.classes[k], "C1") for box, k in pairs if k >= 0]


def draw(fig):
    for ax, index in zip(fig.subplots(1, 5), FIVE, strict=True):
        ax.imshow(photos[index].permute(1, 2, 0))
        mask = animals.test.targets["masks"][index]
        if known["has_mask"][index]:
            ax.contour(
                ((mask > 0) & (mask < 255)).float(), levels=[0.5], colors="white", linewidths=1
            )
        plot.draw_boxes(ax, boxes_to_draw(index))
        ax.set_axis_off()


plot.show(
    draw,
    alt="Five photographs, one for each of cat, cow, dog, horse and sheep, with boxes around the animals and white outlines of their masks.",
    caption=f"One photograph of each animal, with boxes and masks (white). Data: {animals.provenance}.",
    height=1.6,
)

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
batch = animals.normalize(animals.train.images[:600])
print("photographs:", tuple(batch.shape[1:]))
print("mean of each channel within 0.1 of 0:", bool((batch.mean((0, 2, 3)).abs() < 0.1).all()))
print(
    "standard deviation within 0.1 of 1:", bool(((batch.std((0, 2, 3)) - 1).abs() < 0.1).all())
)

# %% [markdown]
# ## A planted bias
#
# The authors train a network to tell doctors from nurses, on pictures
# from an image search. In these, 78 % of the doctors are men and 93 % of the nurses are women. On the validation images
# the network looks fine. On test images that are balanced it is right in 82 % of cases. Grad-CAM shows that it looks at
# faces and hairstyles. With as many images, but balanced ones, another network reaches 90 %, and it looks at coats and
# stethoscopes (section 6.3 of the paper).
#
# We do the same with cats and dogs of CIFAR-10, and plant the bias ourselves, so that we know where it is. A **tag**, a
# chequered square of 6x6 pixels at a random place, is pasted on the images with the paper's shares: on 78 % of the dogs
# and on 7 % of the cats. The cure keeps the number of images and, up to chance, of tags: 42.5 % of each animal has one.


# %% tags=["model"]
TAG = 6  # side in pixels
CAT, DOG = 0, 1
BIAS = {  # share of the cats and of the dogs that have a tag; those of "biased" are the paper's
    "biased": {"cats": 0.07, "dogs": 0.78},
    "balanced": {"cats": 0.425, "dogs": 0.425},
    "no tags": {"cats": 0.0, "dogs": 0.0},
}


def cats_and_dogs(train=None, test=None):
    """CIFAR-10's cats (0) and dogs (1) of the first `train` and `test` images; all of them are
    10,000 and 2,000."""
    data = cifar10(train=train, test=test)
    cat, dog = (CIFAR10_CLASSES.index(name) for name in ("cat", "dog"))

    def only(split):
        chosen = (split.targets == cat) | (split.targets == dog)
        return Split(split.images[chosen], (split.targets[chosen] == dog).long())

    note = replace(data.provenance, detail=f"cats and dogs of {data.provenance.detail}")
    return replace(
        data,
        train=only(data.train),
        test=only(data.test),
        classes=("cat", "dog"),
        provenance=note,
    )


# %% tags=["model"]
def with_tags(images, tagged, seed):
    """A tag at a random place on the images uint8 (N, 3, H, W) where `tagged` (N,) holds.

    Returns the images and where their tags are, bool (N, H, W).
    """
    n, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    top, left = (
        torch.randint(side - TAG + 1, (n, 1), generator=generator) for side in (height, width)
    )
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + TAG)
    in_columns = (columns >= left) & (columns < left + TAG)
    place = in_rows[:, :, None] & in_columns[:, None, :] & tagged[:, None, None]
    chequered = ((rows[:, None] // 2 + columns // 2) % 2).bool()
    yellow, purple = torch.tensor([[255, 220, 0], [200, 0, 160]], dtype=torch.uint8)[
        :, :, None, None
    ]
    return torch.where(place[:, None], torch.where(chequered, yellow, purple), images), place


# %% tags=["model"]
def plant(split, cats, dogs, seed):
    """The split with tags on these shares of its cats and dogs, and where the tags are."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor([cats, dogs])[split.targets]
    tagged = torch.rand(len(split), generator=generator) < share
    images, place = with_tags(split.images, tagged, seed)
    return Split(images, split.targets), place


# %% tags=["model"]
def near(place, margin=4):
    """Regions (N, H, W) with a margin around them, as floats; one position of an 8x8 map is 4
    pixels wide."""
    return F.max_pool2d(place[:, None].float(), 2 * margin + 1, 1, margin)[:, 0]


def energy_near_tags(model, data, seed, count=300):
    """Shares of Grad-CAM and of the saliency map for "dog" near the tag, on test dogs that all
    have one, in a dict."""
    dogs = (data.test.targets == DOG).nonzero()[:count, 0]
    split, place = plant(Split(data.test.images[dogs], data.test.targets[dogs]), 1.0, 1.0, seed)
    device = next(model.parameters()).device
    images, region = data.normalize(split.images).to(device), near(place)

    def dog(outputs):
        return outputs[:, DOG]

    maps = cam.grad_cam(model, "layer3", images, DOG, size=tuple(images.shape[2:])).cpu()
    pixels = saliency(input_gradient(model, images, dog)).cpu()
    return {
        "energy": float(cbam.share_inside(maps, region).nanmean()),
        "saliency_energy": float(cbam.share_inside(pixels, region).mean()),
        "area": float(region.mean()),
    }


# %% tags=["model"]
def train_planted(data, *, seed, cats, dogs, epochs=3):
    """One training of the study: ResNet-8 on cats and dogs with these shares of tags."""
    planted, _ = plant(data.train, cats, dogs, seed)
    data = replace(data, train=planted)  # normalised by what it is trained on
    train.set_seed(seed)
    model = resnet.CifarResNet(8, classes=2)
    train.fit(
        model,
        data,
        epochs=epochs,
        weight_decay=5e-4,
        eval_every=epochs,
        evaluate=lambda model, data: {},
        seed=seed,
        label=f"tags on {100 * cats:.0f} % of cats, {100 * dogs:.0f} % of dogs",
    )
    return model, tag_report(model, data, cats, dogs)


# %% tags=["model"]
def tag_report(model, data, cats, dogs, seed=100):
    """Accuracy with tags as in training, without any, on all cats and no dog; and where
    Grad-CAM looks."""
    shares = {"as_trained": (cats, dogs), "clean": (0.0, 0.0), "swapped": (1.0, 0.0)}
    report = {}
    for name, (on_cats, on_dogs) in shares.items():
        test, _ = plant(data.test, on_cats, on_dogs, seed)
        report[name] = metrics.accuracy(train.predict(model, data, test.images), test.targets)
    return report | energy_near_tags(model, data, seed)


def run_bias(data, *, seed, cats, dogs):
    """What the study measures of one training."""
    return train_planted(data, seed=seed, cats=cats, dogs=dogs)[1]


STUDY = Study(
    "15_grad_cam", run=run_bias, arms=BIAS, data=cats_and_dogs, seeds=range(5)
)

# %% [markdown]
# What the tags look like, and a check: on what share of the animals, how large, and is every other pixel untouched?

# %%
pets = cats_and_dogs(train=pick(full=None, quick=1000), test=pick(full=None, quick=400))

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
planted, place = plant(pets.train, **BIAS["biased"], seed=0)
shares = [
    float(place.flatten(1).any(1)[pets.train.targets == kind].float().mean())
    for kind in (CAT, DOG)
]
print(
    "tags on 7 % of the cats and 78 % of the dogs, within 10 points:",
    abs(shares[0] - 0.07) < 0.1,
    abs(shares[1] - 0.78) < 0.1,
)
print("pixels of a tag:", place.sum((1, 2)).unique().tolist())
print(
    "nothing else changed:",
    torch.equal(planted.images * ~place[:, None], pets.train.images * ~place[:, None]),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
some = torch.cat([(planted.targets == kind).nonzero()[:5, 0] for kind in (CAT, DOG)])
plot.images(
    planted.images[some],
    [pets.classes[k] for k in planted.targets[some]],
    alt="Five cats and five dogs of 32x32 pixels. Most of the dogs have a small chequered square in yellow and purple somewhere.",
    caption=f"The biased training images. Data: {pets.provenance}.",
)

# %% [markdown]
# ## Training
#
# Can the network learn 64 of these images by heart? `train.fit` is the loop of [chapter 1](01_vgg).

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
one_batch = replace(pets, train=Split(planted.images[:64], planted.targets[:64]))
train.set_seed(0)
history = train.fit(
    resnet.CifarResNet(8, width=8, classes=2),
    one_batch,
    epochs=60,
    batch_size=64,
    lr=0.05,
    augment=train.no_augment,
    eval_every=60,
    evaluate=lambda model, data: {},
    label="one batch",
)
print("64 images learned by heart, loss below 0.1:", history.last("train_loss") < 0.1)

# %% [markdown]
# Then two networks, on the biased and on the balanced images. Same photographs, same batches, same first weights.

# %%
judges, reports = {}, {}
for name in ("biased", "balanced"):
    judges[name], reports[name] = train_planted(
        pets, seed=0, **BIAS[name], epochs=pick(full=3, quick=1)
    )
HEADINGS = {
    "as_trained": "tags as in training",
    "clean": "no tags",
    "swapped": "tags on cats only",
}
Table(
    (
        {"trained on": name}
        | {f"accuracy in %, {text}": 100 * report[key] for key, text in HEADINGS.items()}
        for name, report in reports.items()
    ),
    decimals=1,
)

# %% [markdown]
# Read the first column alone, as one would with a validation set that has the same bias: the biased network is the better
# one, and we would ship it. It takes a test set *without* the bias to see otherwise, and who has one? Grad-CAM does not
# need it. It looks at single images:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
dogs = (pets.test.targets == DOG).nonzero()[:8, 0]
tagged_dogs, _ = with_tags(pets.test.images[dogs], torch.arange(8) < 6, seed=5)
judged = {
    f"{name}": cam.grad_cam(
        judge,
        "layer3",
        pets.normalize(tagged_dogs).to(next(judge.parameters()).device),
        DOG,
        size=(32, 32),
    ).cpu()
    for name, judge in judges.items()
}
plot.cams(
    tagged_dogs,
    None,
    titles=["tag"] * 6 + ["no tag"] * 2,
    rows_of_maps=judged,
    alt="Eight dogs, six with a tag. Below each, the Grad-CAM for dog of the network trained on biased images and of the one trained on "
    "balanced ones.",
    caption="Grad-CAM for dog at the last stage (8x8 positions). Where does each network find its dog? "
    f"Data: {pets.provenance}.",
    inches=0.68,
)

# %% [markdown]
# The biased network looks at the tag where there is one; the balanced one looks elsewhere. (Each map has its own range, so those of the two dogs without a tag
# can look as bright.) Eight dogs prove nothing. The study does it five times, with numbers: the **energy** of
# the map near the tag, its share within 4 pixels of it, on 300 test dogs that all have a tag. The region's area is the
# share that an even map would have.


# %%
def percent(arm, metric):
    return STUDY.text(arm, metric, 100, 1)


Table(
    {
        "trained on": arm,
        "accuracy in %, tags as in training": percent(arm, "as_trained"),
        "without tags": percent(arm, "clean"),
        "tags on cats only": percent(arm, "swapped"),
        "Grad-CAM near the tag, %": percent(arm, "energy"),
        "saliency near the tag, %": percent(arm, "saliency_energy"),
        "area, %": percent(arm, "area"),
    }
    for arm in BIAS
)

# %% [markdown]
# With every seed, the biased network is some 18 points better on tests with its own bias, hardly better than a
# coin without tags, and almost always wrong when only cats have one. Its Grad-CAM has more than four fifths of its
# energy near the tag. After the cure it has about what an even map would have.
#
# Is the saliency map so much worse? Its share looks small, but the region has been widened by 4 pixels because Grad-CAM's
# positions are that wide. The gradient has a position for every pixel. So put both maps to both tests, with the biased network
# from above:

# %%
judge, dogs = judges["biased"], pets.test.images[pets.test.targets == DOG][:300]
tagged, place = with_tags(dogs, torch.ones(len(dogs), dtype=torch.bool), seed=100)
tagged = pets.normalize(tagged).to(next(judge.parameters()).device)
at_tags = {
    "Grad-CAM": cam.grad_cam(judge, "layer3", tagged, DOG, size=(32, 32)).cpu(),
    "saliency": saliency(input_gradient(judge, tagged, lambda outputs: outputs[:, DOG])).cpu(),
}
rows = []
for region, where in (("the tag itself", place.float()), ("and 4 pixels around", near(place))):
    area = float(where.mean())
    row = {"region": region, "area, %": 100 * area}
    for name, maps in at_tags.items():
        share = float(cbam.share_inside(maps, where).nanmean())
        row |= {f"{name}, %": 100 * share, f"{name} / area": share / area}
    rows.append(row)
Table(rows, decimals=1)

# %% [markdown]
# On the tag's own pixels the gradient has several times the share that an even map would have: it does see the tag, and the wide
# region hides it. Judge a map at the resolution that it has. Grad-CAM still puts more of itself on the tag, in both regions.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.study(
    STUDY,
    list(BIAS),
    "energy",
    "share of Grad-CAM near the tag, %",
    scale=100,
    alt="Dot plot of the share of Grad-CAM near the tag for networks trained on biased images, on balanced ones, and without tags, three "
    "dots and a mean each.",
    caption="Where Grad-CAM for dog lies on test dogs with a tag. An even map would have the area of the region, some 17 %.",
)

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
few = replace(
    pets,
    train=Split(pets.train.images[:64], pets.train.targets[:64]),
    test=Split(pets.test.images[:60], pets.test.targets[:60]),
)
print("all arms of the study run:", len(STUDY.rehearse(few)) == len(BIAS))

# %% [markdown]
# ## Does it find the object?
#
# Nobody told these classifiers where the animal is. If their maps find it all the same, localisation is free, or **weakly
# supervised**. Three measures, from strict to lenient:
#
# - **box**: keep what exceeds 15 % of the map's maximum, take the largest connected piece, draw a box around it. Right if it
#   overlaps a true box by half (intersection over union, chapter 13). This is the paper's measure for ILSVRC;
# - **pointing game** [[Zhang et al., 2018a](../pages/bibliography.md#zhang2018excitation)]: is the map's maximum on the object? It does not care about extent;
# - **energy**: the share of the map inside the mask, as in [chapter 7](07_cbam).


# %% tags=["model"]
def largest_component(regions):
    """The largest connected part of each region, bool (N, H, W); diagonal neighbours are
    connected.

    Every position starts with a number of its own, and the larger of two neighbours' numbers
    wins until nothing changes.
    """
    height, width = regions.shape[1:]
    marks = torch.arange(1.0, height * width + 1).view(1, height, width) * regions
    while True:
        spread = F.max_pool2d(marks[:, None], 3, 1, 1)[:, 0] * regions
        if torch.equal(spread, marks):
            break
        marks = spread
    most = [int(m[m > 0].mode().values) if m.any() else -1 for m in marks]
    return marks == torch.tensor(most)[:, None, None]


def bounding_box(regions):
    """The box around each region, bool (N, H, W): left, top, right, bottom, (N, 4); zeros for
    an empty one."""
    sides = []
    for line in (regions.any(1), regions.any(2)):  # columns, rows
        first, last = line.int().argmax(1), line.shape[1] - line.flip(1).int().argmax(1)
        sides.append((first, torch.where(line.any(1), last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()


def box_from_map(maps, threshold=0.15):
    """The box around the largest piece of each map (N, H, W) above `threshold` of its maximum,
    (N, 4)."""
    return bounding_box(
        largest_component(maps > threshold * maps.amax((1, 2), keepdim=True).clamp_min(0))
    )


# %% tags=["model"]
def pointing(maps, regions, tolerance=0):
    """Whether the maximum of each map (N, H, W) lies within `tolerance` pixels of its region,
    bool (N,).

    A map that is the same everywhere points nowhere, and misses.
    """
    if tolerance:
        regions = near(regions.bool(), tolerance)
    at = maps.flatten(1).argmax(1, keepdim=True)
    hit = regions.flatten(1).gather(1, at)[:, 0] > 0
    return hit & (maps.amax((1, 2)) > maps.amin((1, 2)))


# %% [markdown]
# A check on a map whose answer we know: a small bright piece and a large dim one, a pointer that misses by two, and a map of
# zeros.

# %% tags=["nbval-check-output"]
toy = torch.zeros(1, 8, 8)
toy[0, 0:2, 0:2], toy[0, 3:7, 4:8], toy[0, 7, 0] = 5.0, 2.0, 0.5
print("box of the largest piece:", box_from_map(toy)[0].tolist())
print("at a threshold of 50 %:", box_from_map(toy, 0.5)[0].tolist())
target = torch.zeros(1, 8, 8)
target[0, 2:5, 2:5] = 1
print("pointing, tolerance 0, 1, 2:", [pointing(toy, target, t).item() for t in (0, 1, 2)])
print("a map of zeros hits:", pointing(0 * toy, torch.ones(1, 8, 8)).item())

# %% [markdown]
# The piece in the lower left corner is at 10 % of the maximum and falls to the threshold, and
# the brightest piece is not the largest: the box and the pointer can disagree.
#
# Now all fourteen networks. Each is asked, by the score that its chapter's task has, about the animal that is there: the
# logit, the mean logit where the segmentation says so, the best box. One backward pass gives both Grad-CAM and the gradient
# for the pixels.


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def both_maps(trained, model, data, images, labels, side=64):
    """Grad-CAM and the smoothed saliency map of a trained network (`Weights`), both
    (N, side, side)."""
    layer, found = model.get_submodule(trained.layer), []
    for start in range(0, len(images), 50):
        part = slice(start, start + 50)
        inputs = trained.to_input(data, images[part]).requires_grad_()
        caught = []
        handle = layer.register_forward_hook(
            lambda module, given, made, caught=caught: caught.append(made) or made.clone()
        )
        with evaluating(model):
            score = trained.score(model(inputs), labels[part]).sum()
        handle.remove()
        gradient, pixels = torch.autograd.grad(score, (caught[0], inputs))
        maps = (gradient.mean((2, 3), keepdim=True) * caught[0].detach()).sum(1).relu()
        # no pixel decides alone
        by_pixel = F.avg_pool2d(saliency(pixels)[:, None], 9, 1, 4, count_include_pad=False)
        sized = [
            F.interpolate(m, (side, side), mode="bilinear", align_corners=False)[:, 0]
            for m in (maps[:, None], by_pixel)
        ]
        found.append(torch.stack(sized))
    return torch.cat(found, 1)


# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
def of_the_asked(targets, labels):
    """Boxes (N, M, 4) of the animals of the class that is asked for; the others' are zero."""
    return targets["boxes"] * (targets["labels"] == labels[:, None])[..., None]


def masks_of_the_asked(targets, labels):
    """The same for masks (N, H, W): 0 where another animal is, which counts as background; void
    stays 255."""
    masks, animal = targets["masks"], (labels + 1)[:, None, None]
    return torch.where((masks == 255) | (masks == animal), masks, 0)


def judge_maps(maps, targets, labels, tolerance=2):
    """Pointing, energy inside the mask (nan without one) and overlap of the box, each (N,), for
    maps (N, side, side)."""
    side, boxes = maps.shape[-1], of_the_asked(targets, labels)
    regions = cbam.filled(boxes, side)
    energy = cbam.share_inside(maps.clamp_min(0), masks_of_the_asked(targets, labels))
    found = box_from_map(maps)
    overlap = torch.stack(
        [box_iou(f[None], b)[0].nan_to_num().max() for f, b in zip(found, boxes, strict=True)]
    )
    return {
        "hit": pointing(maps, regions, tolerance).float(),
        "energy": torch.where(targets["has_mask"], energy, torch.nan),
        "overlap": overlap,
    }


def chance_of_a_hit(targets, labels, side, tolerance=2):
    """The probability that a point drawn at random wins the pointing game, (N,)."""
    regions = cbam.filled(of_the_asked(targets, labels), side)
    return near(regions.bool(), tolerance).mean((1, 2))


# %%
TASKS = {"U-Net": "masks", "FCN": "masks", "FPN": "boxes, any animal", "YOLO": "boxes"}
side = 64
maps_of, accuracy = {}, {}
for name, one in TRAINED.items():
    network = one.open()
    maps_of[name] = dict(
        zip(
            ("Grad-CAM", "saliency"),
            both_maps(one, network, animals, photos, labels),
            strict=True,
        )
    )
    if name not in TASKS:  # the ten classifiers
        with torch.inference_mode():
            said = network(one.to_input(animals, photos))[:, naming.PLACES].argmax(1)
        accuracy[name] = float((said == labels).float().mean())

# %% [markdown]
# The baselines know nothing about what is on a photograph. **Chance**: for the pointing game a point drawn at random, which hits
# with the share of the picture that counts; for the other two measures a map that is even everywhere. (Not a map of random
# numbers: enlarged, its maxima lie at the border too often.)
# **Centre**: a bump in the middle, because that is where photographers put animals. **Another photograph**: the ResNet's own map,
# of the next photograph in the list.

# %%
away = (torch.arange(side) + 0.5) / side - 0.5
bump = torch.exp(-(away[:, None] ** 2 + away**2) / (2 * 0.2**2))
baselines = {
    "chance": torch.ones(len(photos), side, side),
    "centre": bump.expand(len(photos), side, side).clone(),
    "another photograph": maps_of["ResNet"]["Grad-CAM"].roll(1, 0),
}
judged = {name: judge_maps(maps, known, labels) for name, maps in baselines.items()}
judged["chance"]["hit"] = chance_of_a_hit(known, labels, side)
by_saliency = {}
for name, maps in maps_of.items():
    judged[name] = judge_maps(maps["Grad-CAM"], known, labels)
    by_saliency[name] = judge_maps(maps["saliency"], known, labels)


# %%
def row(name, found):
    learned = "" if name in baselines else TASKS.get(name, "names")
    said = f"{100 * accuracy[name]:.0f}" if name in accuracy else ""
    return {
        "maps": name,
        "learned from": learned,
        "right in %": said,
        "pointing, %": mean_and_error(found["hit"]),
        "less centre": mean_and_error(found["hit"] - judged["centre"]["hit"]),
        "energy in mask, %": mean_and_error(found["energy"]),
        "box right, %": mean_and_error((found["overlap"] >= 0.5).float()),
    }


print(f"{len(photos)} photographs; {animals.provenance}")
Table(row(name, found) for name, found in judged.items())

# %% [markdown]
# And the gradient for the pixels, smoothed, by the same measures:

# %%
Table(row(name, by_saliency[name]) for name in ("VGG", "ResNet", "DenseNet", "U-Net", "YOLO"))

# %% [markdown]
# The paper's numbers, for VGG-16 on ILSVRC-15 (its Table 1; localisation errors, lower is better):
#
# | | top-1 localisation error, % | top-5, % |
# |:--|--:|--:|
# | Grad-CAM | 56.51 | 46.41 |
# | CAM (another network, classifies worse) | 57.20 | 45.14 |
# | excitation backpropagation (c-MWP) [[Zhang et al., 2018a](../pages/bibliography.md#zhang2018excitation)] | 70.92 | 63.04 |
#
# **Not comparable** with ours: their network tells a thousand classes apart at 224 pixels, ours twelve at 64. The paper plays a
# pointing game, too, with another network and other rules: GoogLeNet on COCO, maps for the five classes that it finds most
# likely, and a map whose maximum stays below a threshold *rejects* its class, which may be right as well. Grad-CAM wins 70.58 % and
# c-MWP 60.30 % (section 4.3).
#
# ## The paper's claims in miniature
#
# Another ten networks would give other numbers, and
# so would other photographs. The interval has to cover both: draw networks with replacement, draw photographs with
# replacement, take the mean difference, and repeat; 95 % of the means are in the interval. "Seen" means that it lies above zero.
# These comparisons are exploratory; the chapter's primary claims are about the planted bias, below. Grad-CAM and the gradient cost the
# same, one backward pass; the baselines cost nothing.


# %% tags=["model"]
def interval(differences, draws=2000):
    """The 95 % interval of the mean of `differences` (networks, photographs), by drawing both anew;
    nan is left out."""
    generator = torch.Generator().manual_seed(0)
    networks, photographs = differences.shape
    means = []
    for _ in range(draws):
        rows = torch.randint(networks, (networks, 1), generator=generator)
        columns = torch.randint(photographs, (photographs,), generator=generator)
        means.append(differences[rows, columns].nanmean())
    return torch.stack(means).quantile(torch.tensor([0.025, 0.975])).tolist()


# %%
TEN = list(accuracy)
MEASURES = {"hit": "pointing", "energy": "energy in mask"}


def claim(sentence, key, baseline):
    """Grad-CAM less a baseline, which is a function from a network's name to its judgement."""
    differences = torch.stack([judged[name][key] - baseline(name)[key] for name in TEN])
    low, high = interval(100 * differences)
    return {
        "claim, exploratory": sentence,
        "measured in": MEASURES[key],
        "difference in points": f"{100 * float(differences.nanmean()):+.1f}",
        "95 % interval": f"{low:+.1f} to {high:+.1f}",
        "verdict": "seen" if low > 0 else "reversed" if high < 0 else "not clear",
    }


# %%
rivals = {name: lambda _, name=name: judged[name] for name in baselines}
rivals["the gradient for the pixels"] = by_saliency.get
Table(
    claim(f"Grad-CAM finds the animal better than {rival}", key, baseline)
    for rival, baseline in rivals.items()
    for key in MEASURES
)

# %% [markdown]
# **Grad-CAM finds animals**: far better than chance, better than another photograph's map, and better than the gradient for
# the pixels, over ten networks, though not in each. **And a bump in the middle does about as well**, without looking at the
# photograph. VOC's animals are large and central, and
# whoever reports that a map points at the object should report this number with it. The paper does not.
#
# The *box* is a weak test here: 15 % of the maximum keeps most of a coarse map, and the whole
# photograph as a box is right where the animal fills half of it. A network that has learned from masks or boxes need not point
# better: FPN is asked about any object.
#
# And the planted bias, seed by seed:

# %% jupyter={"source_hidden": true} tags=["model", "hide-input"]
CLAIMS = Claims(
    STUDY,
    "energy",
    "Grad-CAM near the tag, points",
    scale=100,
    matters=5.0,
    main={
        "biased: Grad-CAM is at the tag, more than without tags in training": (
            "no tags",
            "biased",
        ),
        "cured by balance: less of it at the tag": ("balanced", "biased"),
    },
    also={
        "the cured network ignores the tag as one that never saw any": ("balanced", "no tags"),
    },
    about="Classifiers of cats and dogs, some of which wear a coloured tag: most of the dogs and few of the cats, as many of "
    "both, or none; all trained equally long. The chapter's comparisons of ready-made networks are no study and stand "
    "there alone.",
)
FLATTERED = Claims(
    STUDY,
    "as_trained",
    "accuracy, points",
    scale=100,
    also={"the bias flatters: better with the tags as in training": ("balanced", "biased")},
)
CLEAN = Claims(
    STUDY,
    "clean",
    "accuracy without tags, points",
    scale=100,
    also={
        "the cure pays where there are no tags": ("biased", "balanced"),
        "tags on both animals cost nothing against no tags": ("no tags", "balanced"),
    },
)

# %%
CLAIMS.table()

# %%
FLATTERED.table()

# %%
CLEAN.table()

# %% [markdown]
# **Verdict.** The bias shows in Grad-CAM, the cure removes it, and both are seen with room to spare. Whether the cured network
# ignores the tag as well as one that never met it is not clear from five seeds, and neither is what the cure costs where there
# are no tags, if anything.

# %% [markdown]
# ## Look inside
#
# ### Failures first
#
# The photographs on which the ResNet is most sure of the wrong animal: where is the evidence for its answer, and where is
# what there is for the truth? The paper looks at the mistakes of VGG-16 like this and finds that many an unreasonable
# answer has a reasonable ground (section 6.1).

# %% jupyter={"source_hidden": true} tags=["hide-input"]
confidence, said = answers.softmax(1).max(1)
worst = (confidence - 2.0 * right).argsort(descending=True)[:7]


def evidence(layer, index, names):
    return cam.grad_cam(
        model, layer, inputs[index], naming.PLACES[names], size=tuple(photos.shape[2:])
    )


plot.cams(
    photos[worst],
    None,
    titles=[
        f"{animals.classes[said[i]]}\nis {animals.classes[labels[i]]}" for i in worst.tolist()
    ],
    rows_of_maps={
        "for the\nanswer": evidence("layer3", worst, said[worst]),
        "for the\ntruth": evidence("layer3", worst, labels[worst]),
    },
    alt="Seven photographs that the network is wrong about, and below each two heat maps: the evidence for its answer and for the true "
    f"animal. Answers: {', '.join(animals.classes[said[i]] for i in worst.tolist())}.",
    caption="The most confident mistakes, and Grad-CAM for the wrong and for the right animal. Each map has its own range: a bright map may "
    f"stand for little evidence. Data: {animals.provenance}.",
    inches=0.68,
)

# %% [markdown]
# ### Four networks, one photograph each of five animals
#
# The [gallery](../pages/gallery) shows ten photographs through all fourteen networks.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
five = torch.tensor(FIVE)
plot.cams(
    photos[five],
    None,
    titles=[animals.classes[k] for k in labels[five].tolist()],
    rows_of_maps={
        name: enlarged(maps_of[name]["Grad-CAM"][five], photos.shape[2:])
        for name in ("VGG", "ResNet", "FCN", "YOLO")
    },
    alt="Five photographs, one of each animal, and below each the Grad-CAM of VGG, ResNet, FCN and YOLO for that animal.",
    caption="Grad-CAM for the animal that is there. FCN has learned from masks and YOLO from boxes; the others from names alone. "
    f"Data: {animals.provenance}.",
    inches=0.68,
)

# %% [markdown]
# ### Which layer?
#
# The same photographs, and the ResNet's layers from front to back.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plot.cams(
    photos[five],
    None,
    titles=[animals.classes[k] for k in labels[five].tolist()],
    rows_of_maps={
        layer: evidence(layer, five, labels[five])
        for layer in ("conv1", "layer1", "layer2", "layer3")
    },
    alt="Five photographs and below each four heat maps, from the first convolution to the last stage of ResNet-8.",
    caption="Grad-CAM for the true animal in four layers. In front it follows edges and surfaces; towards the back it becomes a few "
    f"coarse regions, which need not be the animal. Data: {animals.provenance}.",
    inches=0.68,
)

# %% [markdown]
# ### Is it faithful?
#
# A map is **faithful** if it says what the network does, wherever the object may be. There is a slow way to the truth: cover
# a patch with grey, run the network again, and note how much the score falls. An **occlusion map**
# [[Zeiler and Fergus, 2014](../pages/bibliography.md#zeiler2014visualizing)] does that at every place. The paper ranks the patches by the occlusion map and by an
# explanation and correlates the two: 0.254 for Grad-CAM, 0.261 for guided Grad-CAM, 0.168 for guided backpropagation (about;
# its section 5.3). We do the same.


# %% tags=["model"]
def occlusion_map(model, images, score, patch=16, stride=8):
    """How much the score falls when a grey square covers each place: (N, rows, columns), for
    images (N, 3, H, W)."""
    height, width = images.shape[2:]
    with evaluating(model), torch.inference_mode():
        whole = score(model(images))
        rows = []
        for top in range(0, height - patch + 1, stride):
            row = []
            for left in range(0, width - patch + 1, stride):
                covered = images.clone()
                covered[:, :, top : top + patch, left : left + patch] = 0  # the mean colour
                row.append(whole - score(model(covered)))
            rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def rank_correlation(first, second):
    """Spearman's correlation of each pair of maps (N, h, w), (N,); nan for a map that is the
    same everywhere."""
    centred = []
    for maps in (first, second):
        flat = maps.flatten(1).double()
        # ties share the mean of their ranks
        below = (flat[:, :, None] > flat[:, None, :]).sum(2)
        ties = (flat[:, :, None] == flat[:, None, :]).sum(2)
        ranks = below + (ties + 1) / 2
        centred.append(ranks - ranks.mean(1, keepdim=True))
    a, b = centred
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


# %%
few = slice(0, pick(full=100, quick=4))
asked = logit(naming.PLACES[labels[few]])
fall = occlusion_map(model, inputs[few], asked)


def per_patch(maps, patch=16, stride=8):
    """Mean of maps (N, H, W) over the same places."""
    return F.avg_pool2d(maps[:, None], patch, stride)[:, 0]


at_size = tuple(inputs.shape[2:])
explanations = {
    "Grad-CAM": enlarged(explain(inputs[few], asked), at_size),
    "Grad-CAM without ReLU": enlarged(explain(inputs[few], asked, relu=False), at_size),
    "guided Grad-CAM": guided_grad_cam(model, "layer3", inputs[few], asked).abs().amax(1),
    "guided backpropagation": saliency(input_gradient(model, inputs[few], asked, "guided")),
    "gradient": saliency(input_gradient(model, inputs[few], asked)),
    "centre": F.interpolate(bump[None, None], at_size)[0].expand(len(fall), *at_size),
}
Table(
    {
        "map": name,
        "rank correlation with occlusion": mean_and_error(
            rank_correlation(per_patch(maps), fall), 1, 2
        ),
    }
    for name, maps in explanations.items()
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = [i for i in FIVE if i < len(fall)][:4]


def draw(fig):
    axes = fig.subplots(len(shown), 4, squeeze=False)
    for line, index in zip(axes, shown, strict=True):
        line[0].imshow(photos[index].permute(1, 2, 0))
        scale = fall[index].abs().max()
        line[1].imshow(fall[index], cmap="RdBu_r", vmin=-scale, vmax=scale)
        found = explanations["Grad-CAM without ReLU"][index]
        scale = found.abs().max()
        line[2].imshow(found, cmap="RdBu_r", vmin=-scale, vmax=scale)
        overlay(line[3], photos[index], explanations["Grad-CAM"][index])
        for ax in line:
            ax.set_axis_off()
    for ax, title in zip(
        axes[0], ("photograph", "occlusion", "before the ReLU", "Grad-CAM"), strict=True
    ):
        ax.set_title(title, fontsize=8, loc="center", pad=3)


plot.show(
    draw,
    alt="Four photographs in rows. Beside each: the occlusion map and Grad-CAM before its ReLU, red where they speak for the animal and blue "
    "where against; and Grad-CAM.",
    caption="Red: covering it lowers the score, or Grad-CAM speaks for the animal. Blue: the opposite. One is computed with some fifty passes, the "
    f"other with one. Data: {animals.provenance}.",
    width=3.9,
    height=3.8,
)

# %% [markdown]
# As in the paper, Grad-CAM and guided Grad-CAM agree with occlusion far better than guided backpropagation does. And here the
# centre is no rival. To find the object and to be faithful are two different things.
#
# ### The sanity check: does the picture depend on what was learned?
#
# Now for your guess. Adebayo et al. [[Adebayo et al., 2018](../pages/bibliography.md#adebayo2018sanity)] propose a test for any explanation: replace the
# trained weights by random ones, layer by layer from the top, and look whether the picture changes. If it does not, it never
# showed what the network had learned. The table has the rank correlation with the picture of the trained network.

# %%
PARTS = {
    "fc": ("fc",),
    "layer3": ("layer3",),
    "layer2": ("layer2",),
    "layer1": ("layer1",),
    "conv1": ("conv1", "bn1"),
}
checked = slice(0, pick(full=60, quick=10))
names_asked = logit(naming.PLACES[labels[checked]])


def pictures(network):
    """Every kind of map for the same photographs, at 16x16 positions."""
    found = {"Grad-CAM": GradCAM(network, "layer3")(inputs[checked], names_asked)}
    for rule in ("gradient", "guided"):
        pixels = saliency(input_gradient(network, inputs[checked], names_asked, rule))
        found[rule] = F.avg_pool2d(pixels[:, None], 4)[:, 0]
    return found


train.set_seed(0)
strange, randomised = TRAINED["ResNet"].build(), TRAINED["ResNet"].open()
trained_pictures, agreement, forgetful = pictures(model), {}, {"trained": model}
for part, modules in PARTS.items():
    for module in modules:
        randomised.get_submodule(module).load_state_dict(
            strange.get_submodule(module).state_dict()
        )
    forgetful[f"random to {part}"] = deepcopy(randomised)
    now = pictures(randomised)
    agreement[part] = {
        kind: float(rank_correlation(maps, now[kind]).nanmean())
        for kind, maps in trained_pictures.items()
    }
Table(
    [{"random from the top down to": part} | found for part, found in agreement.items()],
    decimals=2,
)

# %% tags=["nbval-check-output"]
two = agreement["layer3"]
print(
    "last layer and last stage random, Grad-CAM's correlation below 0.3:", two["Grad-CAM"] < 0.3
)
print("guided backpropagation's above 0.5:", two["guided"] > 0.5)
print("last layer random, guided backpropagation's above 0.8:", agreement["fc"]["guided"] > 0.8)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw(fig):
    axes = fig.subplots(4, 3)
    one = photos[FIVE[-1]]
    image = animals.normalize(one[None])
    score = logit(naming.PLACES[labels[FIVE[-1:]]])
    for place, (name, network) in enumerate(forgetful.items()):
        above, below = axes[place // 3 * 2, place % 3], axes[place // 3 * 2 + 1, place % 3]
        overlay(above, one, GradCAM(network, "layer3")(image, score)[0], name)
        below.imshow(detail(input_gradient(network, image, score, "guided")[0]))
    for ax in axes.flat:
        ax.set_axis_off()


plot.show(
    draw,
    alt="One photograph, six times: the trained network, then with random weights in its last layer, down to its first. Each time "
    "Grad-CAM over the photograph, and below it guided backpropagation.",
    caption="One network forgets, from the top down. Grad-CAM at the last stage (32x32 positions), below it guided backpropagation at full size, "
    f"128x128 pixels. Which of the two tells you? Data: {animals.provenance}.",
    width=4.2,
    height=5.6,
)

# %% [markdown]
# The answer to your guess, with only the last layer random, is: nearly all of it. (Grad-CAM keeps a good part, too, because the maps
# $A^k$ are still the trained ones.) With the last stage random as well, Grad-CAM has lost the sheep, as it should. Guided
# backpropagation draws it to the end. It is an edge detector, and it would have convinced you of a network that knows nothing.

# %% [markdown]
# ### Adversarial images
#
# An image can be changed so little that nobody sees it, and the answer flips. The **fast gradient sign method**
# [[Goodfellow et al., 2015](../pages/bibliography.md#goodfellow2015explaining)] moves every pixel by the same $\varepsilon$, in the direction that raises the loss:
# $x' = x + \varepsilon \, \text{sign}(\partial \ell / \partial x)$. With the loss of a class of the attacker's choice and
# $-\varepsilon$, the image moves *towards* that class. The paper (section 6.2) does so until VGG-16 gives a class that is not there a
# probability above 0.9999, and shows on examples that Grad-CAM for what *is* there hardly changes. Ours: small steps towards
# *airplane*, and a look at the map on the way.


# %% tags=["model"]
def fast_gradient_sign(model, images, names, epsilon):
    """Images (N, 3, H, W), each entry moved by its `epsilon` so that the loss of class `names`
    (N,) rises.

    epsilon: (3, 1, 1), in the units of the normalised images.
    """

    def loss(outputs):
        return F.cross_entropy(outputs, names, reduction="none")

    return images + epsilon * input_gradient(model, images, loss).sign()


# %% tags=["model"]
def towards(model, images, names, epsilon, bounds, probability=0.9999, steps=60):
    """Images (N, 3, H, W), each moved by steps of `epsilon` (3, 1, 1) until the model gives class
    `names` (N,) more than `probability`, within `bounds`: the normalised black and white."""
    for _ in range(steps):
        with evaluating(model), torch.no_grad():
            found = model(images).softmax(1).gather(1, names[:, None])[:, 0]
        if (going := found <= probability).sum() == 0:
            break
        moved = fast_gradient_sign(model, images[going], names[going], -epsilon).clamp(*bounds)
        images = images.masked_scatter(going[:, None, None, None], moved)
    return images


# %%
with torch.no_grad():
    own = model(inputs).argmax(1)  # of all twelve names
rightly = pick(full=own == naming.PLACES[labels], quick=own >= 0)
attacked = rightly.nonzero()[: pick(full=60, quick=4), 0]
airplane = torch.full((len(attacked),), naming.CLASSES.index("airplane"))
step = (1 / 255 / animals.std)[:, None, None]
bounds = [animals.normalize(torch.full((1, 3, 1, 1), v, dtype=torch.uint8)) for v in (0, 255)]
changed, stages = inputs[attacked], {"no attack": inputs[attacked]}
for probability in (0.5, 0.9, 0.99, 0.9999):
    changed = towards(model, changed, airplane, step, bounds, probability)
    stages[f"above {probability}"] = changed
with torch.inference_mode():
    reached = model(changed).softmax(1)[:, airplane[0]] > 0.9999
print(
    f"{len(attacked)} photographs that the ResNet names rightly; airplanes in the end: {100 * reached.float().mean():.0f} %"
)

# %%
true = naming.PLACES[labels[attacked]]
evidence_for = {name: explain(x, logit(true)) for name, x in stages.items()}
before, after = evidence_for["no attack"], evidence_for["above 0.9999"]
evidence_for["another photograph"] = before.roll(1, 0)
targets = {key: value[attacked] for key, value in known.items()}
rows = []
for name, maps in evidence_for.items():
    x = stages.get(name)
    moved = (
        None if x is None else animals.denormalize(x) - animals.denormalize(inputs[attacked])
    )
    found = judge_maps(enlarged(maps, (side, side)), targets, labels[attacked])
    rows.append({"probability of airplane": name,
                 "moved by, of 255": "" if x is None else f"{255 * moved.abs().mean():.1f}",
                 "rank correlation with the first": mean_and_error(
                     rank_correlation(before, maps), 1, 2),
                 "pointing, %": mean_and_error(found["hit"]),
                 "energy in mask, %": mean_and_error(found["energy"])})
Table(rows)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def as_pictures(x):
    return (255 * animals.denormalize(x)).round().to(torch.uint8)


shown = [i for i, photo in enumerate(attacked.tolist()) if photo in clear][:6] or [0]
plot.cams(
    as_pictures(changed[shown]),
    None,
    titles=[naming.CLASSES[k] for k in true[shown].tolist()],
    rows_of_maps={
        "before": enlarged(before[shown], at_size),
        "after": enlarged(after[shown], at_size),
        "for\nairplane": enlarged(explain(changed, logit(airplane))[shown], at_size),
    },
    alt="Photographs after the attack; below each three heat maps: Grad-CAM for the true animal before and after the attack, and "
    "for airplane.",
    caption="Airplanes, says the network. Of the attacked photographs, those with one clear animal and no person, as the network gets them, at 64x64 pixels; below, Grad-CAM for the true animal before and "
    f"after the attack, and for the answer. Data: {animals.provenance}.",
    inches=0.68,
)

# %% [markdown]
# Read the table downwards. To make the network certain of an airplane, the values move by some 3 of 255, which nobody sees. But Grad-CAM for the true animal does not stay what it was: as soon as the airplane
# leads, its map is only half like the first (a rank correlation of 0.49), and at the paper's 0.9999 hardly more like it than another photograph's. The paper shows examples; over 60 photographs its claim does **not** hold here.
# And where it holds, it has a limit: if the answer can change without the evidence for the
# truth, a map in the right place is no sign that the answer is right.
#
# ### Words, captions, questions
#
# Where we stop, the paper goes on. The score may also be that of a sentence or of an answer to a question: nothing in
# [(15.1)](#eq-cam-alpha) says that $y$ is a class (section 8). And people who see two networks' maps can tell which is the better
# one (section 5.2); whether they *should* trust a map is the question of the sanity check above.

# %% [markdown]
# ## Play: ask for an animal
#
# Two photographs side by side, five animals to ask for, and four ways to draw the answer. Set *how* to `layer3` and move
# the first slider: the map moves with the question. Then set it to `guided` and move it again. Does `layer1` still listen?
# And where is the counterfactual?


# %% jupyter={"source_hidden": true} tags=["hide-input"]
HOW = ("layer3", "counterfactual", "layer1", "guided")
stage_scene = scene_inputs[:1]
with torch.inference_mode():
    stage_logits = model(stage_scene)[0, naming.PLACES]


def answer(name, how):
    """The map of the scene for one animal (h, w)."""
    score = logit(naming.PLACES[animals.classes.index(name)])
    if how == "guided":
        return saliency(input_gradient(model, stage_scene, score, "guided"))[0]
    if how == "counterfactual":
        return explain.counterfactual(stage_scene, score)[0]
    return GradCAM(model, how)(stage_scene, score)[0]


asked_maps = {(name, how): answer(name, how) for name in animals.classes for how in HOW}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def on_the_left(name, how):
    heat = asked_maps[name, how]
    return 100 * float(share_on_its_half(heat[None], 0).nan_to_num(0.5))


def draw_answer(fig, name, how):
    left, right = fig.subplots(1, 2, width_ratios=(2.6, 1))
    overlay(left, scenes[0], asked_maps[name, how])
    left.set_axis_off()
    left.set_title(f"{how}: {on_the_left(name, how):.0f} % on the left", fontsize=9)
    colours = ["C1" if name == other else "#bbbbbb" for other in animals.classes]
    right.barh(range(5), stage_logits, color=colours)
    right.set_yticks(range(5), animals.classes, fontsize=8)
    right.invert_yaxis()
    right.set_title("logit", fontsize=9)


# %%
Explorable(
    draw_answer,
    (animals.classes, HOW),
    ("animal", "how"),
    alt=lambda name, how: (
        f"Two photographs side by side, {animals.classes[pair_labels[0, 0]]} and "
        f"{animals.classes[pair_labels[0, 1]]}, asked for {name}, drawn by {how}: "
        f"{on_the_left(name, how):.0f} % of what speaks for it is on the left. The logit is "
        f"{stage_logits[animals.classes.index(name)]:.1f}."
    ),
    caption=f"A {animals.classes[pair_labels[0, 0]]} on the left, a "
    f"{animals.classes[pair_labels[0, 1]]} on the right. The bars are what the ResNet says to "
    "the whole scene.",
    key="grad-cam-ask",
    size=(4.0, 1.4),
)

# %% [markdown]
# Ask any of the ten classifiers for any class, at any layer, on a picture of your own.
#
# *Predict first.* Ask for a class that is not on the picture. Does the map go dark, or does it find something? Then go down to the first layer
# and change the class: does the map still listen?
#
# <div class="live" data-figure="grad-cam">In the book, the network itself runs here, in your browser.</div>
#
# All ten at once, with a patch to move, a nudge against one of them, and occlusion maps, are on the page
# [Look through the networks](../pages/live).

# %% [markdown]
# ## When to use it today, and what came after
#
# Grad-CAM is the first thing to try on a convolutional network: one line, one backward pass, no tuning. Use it to look for
# what should *not* matter: tags, borders, watermarks, hospital markers. Do not use it to prove that a network is right.
#
# - **Grad-CAM++** [[Chattopadhay et al., 2018](../pages/bibliography.md#chattopadhay2018gradcampp)] weighs positions by higher derivatives, for several objects of one class.
# - **HiResCAM** [[Draelos and Carin, 2020](../pages/bibliography.md#draelos2020hirescam)] does not average: it multiplies gradient and map position by position. Exercise 3
#   builds it and shows when the two agree.
# - **Score-CAM** [[Wang et al., 2020b](../pages/bibliography.md#wang2020scorecam)] needs no gradient: it masks the image with each channel and looks at the score.
#   **RISE** [[Petsiuk et al., 2018](../pages/bibliography.md#petsiuk2018rise)] masks at random and needs no access to the network at all. Both take many passes.
# - **Integrated gradients** [[Sundararajan et al., 2017](../pages/bibliography.md#sundararajan2017axiomatic)] add up the gradients on the way from a black image to this one; the
#   parts then sum to the difference of the two scores.
# - **Sanity checks** [[Adebayo et al., 2018](../pages/bibliography.md#adebayo2018sanity)] changed how such methods are judged; run one before you show a picture.
# - Transformers have no last convolution. The same formula works on their tokens, put back on the grid.
#

# %% [markdown]
# ## Exercises
#
# **1. (quick)** A network ends in a 16x16 map, its average and a linear layer. The weight from channel 7 to *dog* is 0.64. How
# large is $\alpha_7^\text{dog}$? What happens to it if you feed photographs of twice the side, and to the picture?
#
# <details><summary>Answer</summary>
#
# $0.64 / 256 = 0.0025$. At twice the side, $Z = 1024$ and $\alpha$ is a quarter of that, for every channel alike. The picture is
# scaled to its own range, so the factor does not show.
#
# </details>
#
# **2. (quick)** Grad-CAM for *sheep* is black everywhere. A colleague concludes that the network sees no sheep. Two other reasons?
#
# <details><summary>Answer</summary>
#
# The ReLU removed everything: some channels speak for *sheep*, but others outweigh them at each position; look without
# it. Or the gradient vanished: the score was a probability, and the network is sure.
#
# </details>
#
# **3. (code)** HiResCAM: multiply gradient and activation at each position, and add up over the channels:
# $\text{ReLU}(\sum_k \partial y / \partial A^k_{ij} \cdot A^k_{ij})$. Use `GradCAM.forward`. For which heads must it equal Grad-CAM?


# %%
def check_hires(hires):
    train.set_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    network[4].weight.data[0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = hires(network, "1", images, logit(0))
    assert maps.shape == (2, 6, 6), f"(N, h, w) = (2, 6, 6) is needed, not {tuple(maps.shape)}."
    assert (maps >= 0).all(), "the ReLU is missing."
    same = torch.allclose(maps, GradCAM(network, "1")(images, logit(0)), atol=1e-7)
    assert same, "behind an average and a linear layer it must equal Grad-CAM."
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    A, _ = GradCAM(dense, "1").forward(images)
    expected = (dense[3].weight[1].view(4, 6, 6) * A).sum(1).relu()
    found = hires(dense, "1", images, logit(1))
    assert torch.allclose(found, expected, atol=1e-6), "do not average the gradient."


def hires_cam(model, layer, images, score):
    raise NotImplementedError


attempt(check_hires, hires_cam)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
def hires_solution(model, layer, images, score):
    activation, outputs = GradCAM(model, layer).forward(images)
    (gradient,) = torch.autograd.grad(score(outputs).sum(), activation)
    return (gradient * activation.detach()).sum(1).relu()


verify(check_hires, hires_solution)

# %% [markdown]
# They agree where the gradient is the same at all positions, so behind an average and linear layers. Behind a flattened
# map and a linear layer they do not, and there HiResCAM is the one whose entries, before the ReLU, add up to the score (less
# the bias).
#
# **4. (code)** The **deletion curve** [[Petsiuk et al., 2018](../pages/bibliography.md#petsiuk2018rise)]: set pixels to the mean colour (0 after normalisation), the
# hottest first, and note the score of each image after each of `steps` equal parts, the whole image last. A faithful map
# makes it fall fast. Return (N, steps + 1).


# %%
def check_deletion(deletion):
    class Sum(nn.Module):
        def forward(self, images):
            return images.sum((1, 2, 3))[:, None]

    images = torch.zeros(2, 3, 4, 4)
    images[:, :, 0], images[:, :, 3] = 2.0, -1.0
    heat = images[:, 0].clone()
    heat[1] = heat[1].flip(0)  # the second image's map is the other way round
    before = images.clone()
    curve = deletion(Sum(), images, heat, logit(0), steps=4)
    assert torch.equal(images, before), "leave the caller's images as they are."
    assert curve.shape == (2, 5), (
        f"(N, steps + 1) = (2, 5) is needed, not {tuple(curve.shape)}."
    )
    assert curve[0].tolist() == [12, -12, -12, -12, 0], (
        f"the hottest row goes first, and becomes 0. You have {curve[0].tolist()}."
    )
    assert curve[1].tolist() == [12, 24, 24, 24, 0], (
        f"each image has an order of its own. The second's curve: {curve[1].tolist()}."
    )


def deletion_curve(model, images, heat, score, steps=16):
    raise NotImplementedError


attempt(check_deletion, deletion_curve)


# %% jupyter={"source_hidden": true} tags=["hide-cell", "nbval-check-output"]
@torch.inference_mode()
def deletion_solution(model, images, heat, score, steps=16):
    images, scores = images.clone(), [score(model(images))]
    order = heat.flatten(1).argsort(1, descending=True)
    for part in order.chunk(steps, 1):
        gone = torch.zeros_like(order, dtype=torch.bool).scatter(1, part, True)
        images.masked_fill_(gone.view(len(images), 1, *heat.shape[1:]), 0.0)
        scores.append(score(model(images)))
    return torch.stack(scores, 1)


verify(check_deletion, deletion_solution)

# %% [markdown]
# **5. (open)** Do maps that point well also delete well? For 300 photographs, correlate the mean of the deletion curve with the
# energy inside the mask, within each network of `TRAINED`. A network may look at the background and be faithful about it; then
# the two must come apart. Find photographs where they do.

# %% [markdown]
# ## Recap
#
# - $\alpha_k^c$ is the gradient of the score averaged over a channel's positions; $L^c = \text{ReLU}(\sum_k \alpha_k^c A^k)$.
# - Behind an average and a linear layer $Z \alpha_k^c = w_k^c$: CAM is a special case, and the network need not be changed.
# - Negated weights give the counterfactual. The product with guided backpropagation gives detail; the question is answered
#   mostly by the coarse factor.
# - A heat map needs baselines: a random point, the centre, another photograph's map, random weights.
# - A picture may ignore the photograph (deconvolution without switches) or the weights (guided backpropagation).
# - A biased validation set flatters a biased network. Grad-CAM saw the tag without a clean test set.
#
# **Three questions.** Why must the score be taken before the softmax? Why does guided backpropagation survive random weights in
# the last layers? A map has 90 % of its energy on the animal: what else must you know before you call the network trustworthy?

# %%
mean_hit = 100 * sum(float(judged[name]["hit"].mean()) for name in TEN) / len(TEN)
centre_hit = 100 * float(judged["centre"]["hit"].mean())
headline(
    f"Grad-CAM of ten classifiers points at the animal on {mean_hit:.0f} % of photographs, "
    f"the centre on {centre_hit:.0f} %",
    animals.provenance,
)


# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")

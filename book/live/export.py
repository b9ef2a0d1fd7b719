"""Write the trained networks as files that a page of the book runs: the steps of one pass, and the weights.

    export(folder)    # net-*.js, samples.js, and the scripts that run them

One picture goes through a network while a recorder writes down every operation of PyTorch on the way. What the page
does not know is refused by name. The weights stay the float16 numbers of `weights/`, in base64: a page that was opened
from the disk may load scripts, but no other files.
"""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.weights import explorable

HERE = Path(__file__).parent
SCRIPTS = sorted([*HERE.glob("*.js"), *HERE.glob("*.css"), *HERE.glob("figures/*.js")])
SIDE = 64  # px of a picture that the classifiers get
SHOWN = 128  # px of a picture on the page
# `helpers.data.voc_animals(size=128)`: mean and standard deviation of VOC's training photographs, which need not be
# on the machine that makes the book. A test compares them with the photographs where they are.
MEAN = (0.4640, 0.4377, 0.3839)
STD = (0.2562, 0.2532, 0.2600)
# Of the first 80 drawn validation pictures, for each animal the one that most of the networks name right.
SAMPLES = (56, 12, 2, 9, 6)
PHOTOGRAPHER = "The photograph of a cat is by Stéfan van der Walt, in the public domain (CC0)."


# ------------------------------------------------------------------------------------------------- the networks


@dataclass(frozen=True)
class Network:
    """A trained network for the page.

    name: as readers see it. chapter: such as "07_cbam". load: a function that gives it in evaluation mode.
    layer: whose maps Grad-CAM weighs. size: side of its pictures, in px. file: its weights, which tell its age.
    """

    name: str
    chapter: str
    load: Callable
    layer: str
    size: int
    file: Path

    @property
    def names_pictures(self):
        """Whether it is one of the ten classifiers; the others say where."""
        return self.chapter < "11"

    @property
    def slug(self):
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def networks():
    """Those that chapters declare to be looked into and the page can run, in the order of the chapters.

    FPN stays out: its proposals have no page. A network that is not trained yet is left out, and figures say so.
    """
    return [
        Network(one.title, one.chapter, one.open, one.layer, one.size, one.path)
        for one in explorable()
        if one.title != "FPN" and one.path.exists()
    ]


def normalised(images):
    """Pictures uint8 (N, 3, H, W) as the networks get them."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (images.float() - 255 * mean) / (255 * std)


# ------------------------------------------------------------------------------------------- recording one pass


class Recorder(TorchDispatchMode):
    """Writes down what a network does to one picture, as steps for the page.

    Value 0 is the picture, and step i makes value i + 1. `names` says which value each module gave.
    """

    def __init__(self, model, picture):
        super().__init__()
        self.steps, self.names, self.halves, self.length = [], {}, [], 0
        self.place = {id(picture): 0}
        self.kept = [picture]  # an id means something only while its tensor lives
        self.weights = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        handles = [module.register_forward_hook(self._naming(name)) for name, module in model.named_modules() if name]
        try:
            with torch.no_grad(), self:
                output = model(picture)
        finally:
            for handle in handles:
                handle.remove()
        self.output = self.place[id(output)]

    def _naming(self, name):
        def note(module, inputs, output):
            if id(output) in self.place:
                self.names[name] = self.place[id(output)]

        return note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.").split(".")[0]
        first = result[0] if isinstance(result, (tuple, list)) else result
        self.kept += [result]
        if name in IGNORED:
            return result
        given = [self.place[id(a)] for a in args[:1] if id(a) in self.place]
        if name in UNCHANGED:
            self.place[id(first)] = given[0]
        elif name in VIEWS_OF_WEIGHTS and not given:
            self.weights[id(first)] = self.weights[id(args[0])]
        elif name in OPERATIONS:
            OPERATIONS[name](self, result, *args, **(kwargs or {}))
        else:
            shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
            raise NotImplementedError(f"the page cannot do {function}, here with {shapes}.")
        return result

    def add(self, result, op, *inputs, **more):
        """One more step, whose output is `result`."""
        self.steps.append({"op": op, "in": [i if isinstance(i, int) else self.place[id(i)] for i in inputs], **more})
        self.place[id(result)] = len(self.steps)
        return len(self.steps)

    def stored(self, tensor, name=None):
        """The place of a weight in the file: [offset, length], in numbers. Nothing may be lost."""
        name = name or self.weights[id(tensor)]
        half = tensor.half()
        if not torch.equal(half.float(), tensor):
            raise ValueError(f"{name} does not fit into float16.")
        self.halves.append(half.flatten())
        self.length += half.numel()
        return [self.length - half.numel(), half.numel()]


IGNORED = {"empty"}  # scratch memory
UNCHANGED = {"view", "_unsafe_view", "clone", "alias", "detach", "dropout", "flatten", "lift_fresh"}
VIEWS_OF_WEIGHTS = {"t", "transpose"}
OPERATIONS = {}


def operation(*names):
    return lambda write: OPERATIONS.update(dict.fromkeys(names, write)) or write


def refuse_unless(condition, what):
    if not condition:
        raise NotImplementedError(f"the page cannot do {what}.")


def same(values, what):
    """The one number that a list of two repeats."""
    values = [values] if isinstance(values, int) else list(values)
    refuse_unless(len(set(values)) == 1, f"{what} that differs between rows and columns: {values}")
    return values[0]


@operation("convolution")
def _convolution(self, y, x, weight, bias, stride, padding, dilation, transposed, extra, groups):
    refuse_unless(same(dilation, "dilation") == 1, "dilation")
    refuse_unless(same(extra, "output padding") == 0, "output padding")
    refuse_unless(groups == 1 or not transposed, "a transposed convolution in groups")
    same(weight.shape[2:], "a kernel")
    parts = {"weight": self.stored(weight)} | ({} if bias is None else {"bias": self.stored(bias)})
    self.add(y, "deconv" if transposed else "conv", x, shape=list(weight.shape[:3]), stride=same(stride, "stride"),
             pad=same(padding, "padding"), groups=groups, **parts)  # fmt: skip


@operation("addmm")
def _linear(self, y, bias, x, weight):
    # a matrix is a convolution with a kernel of one pixel; `weight` is the transposed view of what is stored
    shape = [weight.shape[1], weight.shape[0], 1]
    self.add(y, "conv", x, shape=shape, stride=1, pad=0, groups=1,
             weight=self.stored(weight.t(), self.weights[id(weight)]), bias=self.stored(bias))  # fmt: skip


@operation("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")
def _batch_norm(self, y, x, weight, bias, mean, var, *rest):
    parts = {
        name: self.stored(t)
        for name, t in zip(("weight", "bias", "mean", "var"), (weight, bias, mean, var), strict=True)
    }
    self.add(y[0], "norm", x, eps=rest[-1], **parts)


@operation("relu", "relu_")
def _relu(self, y, x):
    self.add(y, "relu", x)


@operation("leaky_relu", "leaky_relu_")
def _leaky_relu(self, y, x, slope=0.01):
    self.add(y, "leaky", x, slope=slope)


@operation("silu", "silu_")
def _silu(self, y, x):
    self.add(y, "silu", x)


@operation("sigmoid", "sigmoid_")
def _sigmoid(self, y, x):
    self.add(y, "sigmoid", x)


@operation("add", "add_")
def _add(self, y, a, b, alpha=1):
    if isinstance(b, (int, float)) and b == 0:  # Python's sum() starts from 0
        self.place[id(y)] = self.place[id(a)]
        return
    refuse_unless(isinstance(b, torch.Tensor) and alpha == 1, f"add with {b!r} and alpha {alpha}")
    self.add(y, "add", a, b)


@operation("mul", "mul_")
def _mul(self, y, a, b):
    refuse_unless(isinstance(b, torch.Tensor), f"mul with {b!r}")
    self.add(y, "mul", a, b)


@operation("cat")
def _cat(self, y, parts, axis=0):
    refuse_unless(axis == 1, f"cat along axis {axis}")
    self.add(y, "cat", *parts)


@operation("split")
def _split(self, parts, x, size, axis=0):
    refuse_unless(axis == 1, f"split along axis {axis}")
    start = 0
    for part in parts:
        self.add(part, "channels", x, range=[start, start + part.shape[1]])
        start += part.shape[1]


@operation("stack")
def _stack(self, y, parts, axis=0):
    refuse_unless(len(parts) == 2 and axis == 0, f"stack of {len(parts)} along axis {axis}")
    self.pair = [self.place[id(part)] for part in parts]
    self.place[id(y)] = None  # only what softmax and unbind make of it has a place


@operation("_softmax")
def _softmax(self, y, x, axis, half):
    refuse_unless(self.place.get(id(x), 0) is None and axis == 0, "softmax other than over a pair that was stacked")
    first, second = self.pair
    halves = []
    for a, b in ((first, second), (second, first)):  # of two, it is a sigmoid of their difference
        self.steps.append({"op": "sub", "in": [a, b]})
        self.steps.append({"op": "sigmoid", "in": [len(self.steps)]})
        halves.append(len(self.steps))
    self.pair = halves
    self.place[id(y)] = None


@operation("unbind")
def _unbind(self, parts, x, axis=0):
    refuse_unless(self.place.get(id(x), 0) is None and axis == 0, "unbind of anything but a pair that was stacked")
    for part, place in zip(parts, self.pair, strict=True):
        self.place[id(part)] = place


@operation("max_pool2d_with_indices")
def _max_pool(self, y, x, kernel, stride=(), padding=0, dilation=1, ceil=False):
    refuse_unless(same(dilation, "dilation") == 1 and not ceil, "max pooling with dilation or ceil_mode")
    k = same(kernel, "a kernel")
    self.add(y[0], "maxpool", x, k=k, stride=same(stride or k, "stride"), pad=same(padding, "padding"))


@operation("avg_pool2d")
def _average_pool(self, y, x, kernel, stride=(), padding=0, ceil=False, *rest):
    k = same(kernel, "a kernel")
    step = same(stride or k, "stride")
    whole = [(side - k) // step + 1 for side in x.shape[2:]]  # ceil_mode may have found more, over the edge
    refuse_unless(
        same(padding, "padding") == 0 and list(y.shape[2:]) == whole and not any(rest),
        "average pooling with padding or over the edge",
    )
    self.add(y, "avgpool", x, k=k, stride=step)


@operation("mean")
def _mean(self, y, x, axes, keep=False):
    axes = sorted(axis % 4 for axis in axes)
    refuse_unless(axes in ([2, 3], [1]), f"mean over axes {axes}")
    self.add(y, "spacemean" if axes == [2, 3] else "channelmean", x)


@operation("adaptive_max_pool2d")
def _space_max(self, y, x, size):
    refuse_unless(same(size, "a size") == 1, f"adaptive pooling to {size}")
    self.add(y[0], "spacemax", x)


@operation("max")
def _max(self, y, x, axis, keep=False):
    refuse_unless(axis == 1, f"max over axis {axis}")
    self.add(y[0], "channelmax", x)


@operation("amax")
def _amax(self, y, x, axes, keep=False):
    refuse_unless(list(axes) == [1], f"amax over axes {axes}")
    self.add(y, "channelmax", x)


@operation("slice")
def _slice(self, y, x, axis=0, start=0, end=None, step=1):
    if y.shape == x.shape:
        self.place[id(y)] = self.place[id(x)]
        return
    refuse_unless(axis in (2, 3) and not start, f"a slice along axis {axis} from {start}")
    self.add(y, "slice", x, axis=axis, size=y.shape[axis], step=step)


@operation("constant_pad_nd")
def _zero_channels(self, y, x, widths, value=0):
    refuse_unless(len(widths) == 6 and not any(widths[:4]) and value == 0, f"padding by {list(widths)} with {value}")
    self.add(y, "morechannels", x, before=widths[4], after=widths[5])


@operation("reflection_pad2d")
def _mirror(self, y, x, widths):
    self.add(y, "mirror", x, widths=list(widths))


@operation("replication_pad2d")
def _repeat(self, y, x, widths):
    self.add(y, "repeat", x, widths=list(widths))


@operation("upsample_bilinear2d")
def _bilinear(self, y, x, size, corners, *scales):
    self.add(y, "bilinear", x, size=list(y.shape[2:]), corners=corners)


@operation("upsample_nearest2d")
def _nearest(self, y, x, *size):
    self.add(y, "nearest", x, size=list(y.shape[2:]))


@operation("permute")
def _permute(self, y, x, axes):
    refuse_unless(list(axes) == [0, 2, 3, 1], f"permute to {list(axes)}")
    self.place[id(y)] = self.place[id(x)]  # channels last, as YOLO's output has them; the page keeps them first


# ---------------------------------------------------------------------------------------------- writing the files


def packed(recorder, **more):
    """A Recorder's findings as the page reads them: a dict for JSON."""
    halves = torch.cat([torch.zeros(0, dtype=torch.float16), *recorder.halves]).numpy().astype("<f2").tobytes()
    weights = base64.b64encode(halves).decode()
    return more | {
        "output": recorder.output,
        "names": recorder.names,
        "steps": recorder.steps,
        "weights": weights,
    }


def record(network):
    """A network as the page reads it, after a pass of a picture at its size."""
    picture = normalised(torch.randint(256, (1, 3, network.size, network.size), dtype=torch.uint8))
    recorder = Recorder(network.load(), picture)
    known = {"name": network.name, "chapter": network.chapter, "side": network.size}
    return packed(recorder, **known, layer=recorder.names[network.layer])


def age(network):
    """A hash of all that `record` depends on: the weights, this file, and the chapters and helpers that build it."""
    root = Path(network.file).parents[1]
    built_by = sorted([HERE / "export.py", *root.glob("chapters/*.py"), *root.glob("helpers/*.py")])
    return sha256(b"".join(path.read_bytes() for path in [network.file, *built_by])).hexdigest()[:16]


def png(image):
    """A picture uint8 (3, H, W) as a data URI, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def drawn(count):
    """The first drawn validation pictures, uint8 (count, 3, SHOWN, SHOWN), and the name of each one's first animal."""
    from helpers.data import VOC_ANIMALS, standin

    _, test = standin.voc_animals(5, count, size=SHOWN, seed=0)
    return torch.from_numpy(test["images"]), [VOC_ANIMALS[labels[0]] for labels in test["labels"]]


def samples():
    """What a reader can choose from, a photograph first: (what it is, picture uint8 (3, SHOWN, SHOWN))."""
    found = []
    for path in sorted((HERE / "photographs").glob("*.png")):
        picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        found.append((f"photograph of a {path.stem}", picture))
    images, names = drawn(max(SAMPLES) + 1)
    return found + [(f"drawn picture {i}: {names[n]}", images[n]) for i, n in enumerate(SAMPLES, 1)]


def beginning():
    """What the page knows before any network arrives: names of classes, statistics, and sample pictures."""
    from helpers.data import VOC_ANIMALS, standin
    from helpers.naming import CLASSES

    return {
        "classes": CLASSES,
        "animals": VOC_ANIMALS,
        "side": SIDE,
        "shown": SHOWN,
        "mean": [255 * m for m in MEAN],
        "std": [255 * s for s in STD],
        "networks": {
            n.name: {"file": f"net-{n.slug}.js", "chapter": n.chapter, "names": n.names_pictures} for n in networks()
        },
        "credits": [PHOTOGRAPHER, *standin.credits().splitlines()],
        "samples": [{"name": name, "uri": png(picture)} for name, picture in samples()],
    }


def call(function, value):
    return f"{function}({json.dumps(value, separators=(',', ':'))});\n"


def export(folder):
    """Write everything that the page loads into `folder`. A network is written again only when it has changed."""
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        shutil.copy(script, folder / script.relative_to(HERE))
    for network in networks():
        path, mark = folder / f"net-{network.slug}.js", f"// {age(network)}\n"
        if not path.exists() or not path.read_text("utf-8").startswith(mark):
            path.write_text(mark + call("live.add", record(network)), "utf-8")
    (folder / "samples.js").write_text(call("live.begin", beginning()), "utf-8")

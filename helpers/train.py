"""Training: the loop of chapter 1, made fast, interruptible and repeatable.

The whole training set lives as uint8 tensors on the device. A batch is one indexing operation, augmentation is
a handful of operations on the whole batch, and nothing is done per image in Python.
"""

import contextvars
import json
import math
import os
import random
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from helpers import settings

# ---------------------------------------------------------------------------------------------- where and how


def set_seed(seed):
    """Seed Python, NumPy and PyTorch: same machine and same versions, same numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def best_device():
    """The fastest device here: CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast_pays(device):
    """Whether bfloat16 is faster than float32 on this device.

    True on CUDA devices with bfloat16 and on CPUs with AVX512-BF16 or AMX instructions. Elsewhere a CPU emulates
    bfloat16 and is slower with it (`benchmarks/` has the measurements).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, hence the fallback
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def _autocast(device, enabled):
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


# ---------------------------------------------------------------------------------------------- one batch


@dataclass(frozen=True)
class Augment:
    """Random flip, shift and cutout of a whole batch, for labels that do not move with the picture.

    flip: mirror half of the images left to right.
    shift: move each image by up to this many pixels in x and y. The gap is filled with 0, the mean colour.
    cutout: side in pixels of a square set to 0 in each image (DeVries and Taylor, 2017), cut off where it leaves the
        image. 0 turns it off.

    Called with `images` (N, C, H, W), normalised, the targets and a CPU generator; returns both.
    """

    flip: bool = True
    shift: int = 4
    cutout: int = 0

    def __call__(self, images, targets, generator):
        n, _, height, width = images.shape
        device = images.device

        def integers(high):
            return torch.randint(high, (n,), generator=generator).to(device)

        if self.flip:
            images = torch.where(integers(2).bool()[:, None, None, None], images.flip(-1), images)
        if self.shift:
            # every window of the padded image is a view; indexing picks one window per image
            padded = F.pad(images, [self.shift] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            rows, columns = integers(2 * self.shift + 1), integers(2 * self.shift + 1)
            images = windows[torch.arange(n, device=device), :, rows, columns]
        if self.cutout:
            y, x = integers(height)[:, None], integers(width)[:, None]
            rows = torch.arange(height, device=device) - y + self.cutout // 2
            columns = torch.arange(width, device=device) - x + self.cutout // 2
            in_rows, in_columns = ((a >= 0) & (a < self.cutout) for a in (rows, columns))
            hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
            images = images.masked_fill(hole, 0.0)
        return images, targets


@dataclass(frozen=True)
class AugmentScene:
    """Random window and flip of a whole batch, for boxes and masks that move with the picture.

    flip: mirror half of the images left to right.
    zoom: range of the window's side, relative to the image's; below 1 enlarges a part of the image, above 1 shrinks
        the image. What lies outside is 0, the mean colour, and void (255) in a mask.
    visible: a box of which a smaller share than this is inside the window is dropped (its label becomes -1).

    Called with `images` (N, C, H, W), normalised, targets and a CPU generator; returns both. Targets are masks
    uint8 (N, H, W), or a dict as `voc_animals` gives it: `masks`, or `boxes` and `labels`, or all three.
    """

    flip: bool = True
    zoom: tuple = (0.6, 1.1)
    visible: float = 0.3

    def __call__(self, images, targets, generator):
        n, _, height, width = images.shape
        device = images.device

        def uniform(low, high):
            return (low + (high - low) * torch.rand(n, generator=generator)).to(device)

        # logarithmic, so that 1/2 and 2 are equally likely
        scale = uniform(*(math.log(side) for side in self.zoom)).exp()
        # a smaller window stays inside the image, and in a larger one the image stays inside: both ±|1 - scale|
        x, y = ((1 - scale).abs() * uniform(-1, 1) for _ in range(2))
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if self.flip else torch.ones(n, device=device)
        zero = torch.zeros_like(x)
        window = torch.stack([torch.stack([mirror * scale, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
        grid = F.affine_grid(window, [n, 1, height, width], align_corners=False)
        images = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", align_corners=False)

        def moved_mask(masks):
            # 255 means void, and so does everything outside, which grid_sample fills with 0
            shifted = (masks.float() - 255)[:, None]
            return (F.grid_sample(shifted, grid, mode="nearest", align_corners=False)[:, 0] + 255).to(masks.dtype)

        if not isinstance(targets, dict):
            return images, moved_mask(targets)
        targets = dict(targets)
        if "masks" in targets:
            targets["masks"] = moved_mask(targets["masks"])
        if "boxes" in targets:
            # from pixels to [-1, 1], then the inverse of `window`
            boxes = targets["boxes"].float()
            centres, scales, signs = torch.stack([x, y], 1), scale[:, None, None], mirror[:, None, None]
            size = torch.tensor([width, height], device=device)
            corners = (2 * boxes.reshape(n, -1, 2) / size - 1 - centres[:, None]) / scales
            corners = torch.cat([corners[..., :1] * signs, corners[..., 1:]], 2)
            corners = ((corners + 1) / 2 * size).reshape(n, -1, 2, 2)
            low, high = corners.amin(2), corners.amax(2)
            area = (high - low).prod(2)
            low, high = (torch.minimum(corner.clamp_min(0), size) for corner in (low, high))
            seen = (high - low).prod(2) >= self.visible * area
            keep = seen & (targets["labels"] >= 0)
            targets["boxes"] = torch.cat([low, high], 2) * keep[..., None]
            targets["labels"] = torch.where(keep, targets["labels"], -1)
        return images, targets


def no_augment(images, targets, generator):
    """The images as they are."""
    return images, targets


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the model's logits (N, classes) against labels (N,) or class probabilities (N, classes)."""

    label_smoothing: float = 0.0

    def __call__(self, model, images, targets):
        return F.cross_entropy(model(images).float(), targets, label_smoothing=self.label_smoothing)


def pixel_cross_entropy(model, images, masks):
    """Cross-entropy of logits (N, classes, H, W) over the pixels of masks uint8 (N, H, W) that are not void (255).

    A loss for `fit`.
    """
    return F.cross_entropy(model(images).float(), masks.long(), ignore_index=255)


def _take(targets, index):
    """Rows `index` of a tensor, or of each tensor in a dict."""
    if isinstance(targets, dict):
        return {name: tensor[index] for name, tensor in targets.items()}
    return targets[index]


def _to(targets, device):
    if isinstance(targets, dict):
        return {name: tensor.to(device) for name, tensor in targets.items()}
    return targets.to(device)


# ---------------------------------------------------------------------------------------------- the recipe

OPTIMIZERS = {
    "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(
        parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    ),
    "adamw": lambda parameters, lr, weight_decay: torch.optim.AdamW(parameters, lr, weight_decay=weight_decay),
}
LEARNING_RATE = {"sgd": 0.1, "adamw": 2e-3}


def _one_cycle(progress, warmup=0.2):
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


SCHEDULES = {
    "one-cycle": _one_cycle,
    "constant": lambda progress: 1.0,
    "steps": lambda progress: 0.1 ** ((progress >= 0.5) + (progress >= 0.75)),
}


def _look_up(value, table, what):
    if callable(value):
        return value
    if value not in table:
        raise ValueError(f"unknown {what} {value!r}. Use one of {', '.join(table)}, or a function.")
    return table[value]


_early_end_raises = contextvars.ContextVar("early_end_raises", default=False)


@contextmanager
def no_early_end():
    """Within this block an interrupted or diverged training raises: half a run must not enter a study."""
    token = _early_end_raises.set(True)
    try:
        yield
    finally:
        _early_end_raises.reset(token)


@dataclass
class History:
    """What a training did: one row per evaluated epoch, the loss along the way, the recipe and the data.

    rows: dicts with `epoch`, `seconds` (training only, since the start), `lr`, `train_loss` and what `evaluate` gave
    (by default `test_loss`, `test_accuracy`).
    losses: (step, training loss averaged over the steps since the last entry).
    stopped: "finished", "interrupted" or "diverged".
    """

    data: str
    recipe: dict
    rows: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    images_per_second: float = math.nan
    stopped: str = "finished"

    def __getitem__(self, column):
        """One column of `rows` as a list."""
        if self.rows and column not in self.rows[0]:
            raise KeyError(f"no column {column!r} in this history. It has {', '.join(self.rows[0])}.")
        return [row[column] for row in self.rows]

    def last(self, column):
        """The value of a column after the last evaluated epoch."""
        values = self[column]
        if not values:
            raise ValueError(f"this training {self.stopped} before its first evaluation, so it has no {column!r}.")
        return values[-1]

    def to_dict(self):
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def save(self, path):
        """Write the history as JSON, whole or not at all."""
        part = f"{path}.part"
        with open(part, "w") as file:
            json.dump(self.to_dict(), file, indent=1)
        os.replace(part, path)

    @classmethod
    def load(cls, path):
        with open(path) as file:
            return cls(**json.load(file))


def fit(
    model,
    data,
    *,
    epochs=None,
    seconds=None,
    batch_size=128,
    optimizer="sgd",
    lr=None,
    weight_decay=5e-4,
    schedule="one-cycle",
    augment=None,
    loss=None,
    evaluate=None,
    eval_every=1,
    ema=None,
    seed=0,
    device=None,
    autocast=None,
    label="training",
):
    """Train `model` in place on `data.train` and return its History.

    data: a `helpers.data.Dataset`, or anything with `train` (images uint8 (N, C, H, W), targets), `test`,
        `normalize` and `provenance`.
    epochs or seconds: how long, in passes over the training images or in seconds of training. Give one.
    optimizer: "sgd" (Nesterov momentum 0.9), "adamw", or a function of (parameters, lr, weight_decay).
    lr: the peak learning rate; 0.1 for SGD and 0.002 for AdamW unless given.
    schedule: "one-cycle" (linear rise over a fifth, cosine to zero), "constant", "steps" (a tenth at 1/2 and at 3/4),
        or a function from progress in [0, 1] to a factor on `lr`.
    augment: a function of (images, targets, generator); flip and shift by 4 pixels unless given.
    loss: a function of (model, images, targets) that gives a scalar; cross-entropy unless given.
    evaluate: a function of (model, data) that gives a dict of floats, run every `eval_every` epochs and at the end;
        test loss and accuracy unless given.
    ema: decay per step of an exponential moving average of the weights, or None. With it, the average is what is
        evaluated and what the model holds at the end.
    seed: batch order and augmentation. Same seed, same batches, whatever the model.
    autocast: run in bfloat16; where it is faster (`autocast_pays`) unless given.

    The stop button or Ctrl-C ends the training early: the history is returned, `stopped` says "interrupted", and the
    model holds the weights of its best evaluated epoch. So does a loss that is not finite ("diverged").
    Raises ValueError on a recipe that makes no sense and on data that does not fit it.
    """
    if (epochs is None) == (seconds is None):
        raise ValueError("say how long to train: either epochs=… or seconds=…, and not both.")
    if (epochs if seconds is None else seconds) <= 0:
        raise ValueError(f"epochs={epochs}, seconds={seconds}: nothing to do. Give a positive number.")
    split = data.train
    n = len(split.images)
    if n == 0:
        raise ValueError("the training split is empty.")
    for tensor in split.targets.values() if isinstance(split.targets, dict) else [split.targets]:
        if len(tensor) != n:
            raise ValueError(f"{n} training images, but {len(tensor)} targets. They go in pairs.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch needs at least one image.")

    device = torch.device(device) if device else best_device()
    autocast = autocast_pays(device) if autocast is None else autocast
    augment = Augment() if augment is None else augment
    loss = CrossEntropy() if loss is None else loss
    evaluate = globals()["evaluate"] if evaluate is None else evaluate
    make_optimizer = _look_up(optimizer, OPTIMIZERS, "optimizer")
    factor = _look_up(schedule, SCHEDULES, "schedule")
    lr = LEARNING_RATE.get(optimizer, 0.1) if lr is None else lr

    model.to(device, memory_format=torch.channels_last)
    model.train()
    stepper = make_optimizer([p for p in model.parameters() if p.requires_grad], lr, weight_decay)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
    images, targets = split.images.to(device), _to(split.targets, device)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, n)
    per_epoch = n // batch_size  # the last, smaller batch is left out: its batch statistics are the noisiest
    total = per_epoch * epochs if epochs else None

    history = History(
        data=str(data.provenance),
        recipe={
            "epochs": epochs, "seconds": seconds, "batch_size": batch_size, "optimizer": _name(optimizer), "lr": lr,
            "weight_decay": weight_decay, "schedule": _name(schedule), "augment": _name(augment),
            "loss": _name(loss), "ema": ema, "seed": seed, "device": device.type,
            "dtype": "bfloat16 autocast" if autocast else "float32",
        },
    )  # fmt: skip
    bar = tqdm(total=total or round(seconds), desc=label, unit="step" if total else "s", disable=settings.silent())
    best = _Best(average.module if average else model)
    trained, step, epoch, evaluated = 0.0, 0, 0, 0  # seconds of training (evaluation not counted), steps, epochs, step
    pending, since, logged = 0.0, 0, math.nan  # summed loss and number of steps not yet logged

    try:
        done = False
        while not done:
            started = time.perf_counter()
            order = torch.randperm(n, generator=generator)[: per_epoch * batch_size].to(device)
            epoch_loss = torch.zeros((), device=device)
            steps_before = step
            for index in order.split(batch_size):
                progress = step / total if total else (trained + time.perf_counter() - started) / seconds
                if progress >= 1:
                    break
                for group in stepper.param_groups:
                    group["lr"] = lr * factor(progress)
                batch = data.normalize(images[index]).contiguous(memory_format=torch.channels_last)
                batch, labels = augment(batch, _take(targets, index), generator)
                with _autocast(device, autocast):
                    value = loss(model, batch, labels)
                stepper.zero_grad(set_to_none=True)
                value.backward()
                stepper.step()
                if average:
                    average.update_parameters(model)
                step += 1
                since += 1
                value = value.detach()
                epoch_loss += value
                pending = pending + value
                if since == 10 or step == total:  # asking a GPU for a number makes it wait, so not at every step
                    logged = float(pending) / since
                    history.losses.append((step, logged))
                    pending, since = 0.0, 0
                    bar.set_postfix_str(f"epoch {epoch + 1}, loss {logged:.3f}", refresh=False)
                    bar.update((step if total else min(round(progress * seconds), bar.total)) - bar.n)
                    if not math.isfinite(logged):
                        raise FloatingPointError(f"loss {logged} at step {step}, learning rate {lr:g}")
            trained += time.perf_counter() - started
            history.images_per_second = step * batch_size / trained
            if step > steps_before:  # time may be up before an epoch's first step
                epoch += 1
                mean_loss = float(epoch_loss) / (step - steps_before)
                if not math.isfinite(mean_loss):
                    raise FloatingPointError(f"mean loss {mean_loss} in epoch {epoch}, learning rate {lr:g}")
            done = step >= total if total else trained >= seconds
            if step > evaluated and (done or epoch % eval_every == 0):
                evaluated = step
                scores = evaluate(average.module if average else model, data)
                model.train()
                history.rows.append(
                    {"epoch": epoch, "seconds": trained, "lr": stepper.param_groups[0]["lr"], "train_loss": mean_loss}
                    | scores
                )
                if math.isfinite(scores.get("test_loss", mean_loss)):  # else the last step broke the weights
                    best.keep(-scores["test_accuracy"] if "test_accuracy" in scores else mean_loss)
    except KeyboardInterrupt:
        if _early_end_raises.get():
            raise
        history.stopped = "interrupted"
        print(f"Interrupted at step {step} (epoch {epoch + 1}). The history is kept; {best.restore(model)}.")
    except FloatingPointError:
        if _early_end_raises.get():
            raise
        history.stopped = "diverged"
        print(
            f"The loss is not a finite number any more at step {step} (learning rate {lr:g}); {best.restore(model)}.\n"
            "Try a learning rate 3 to 10 times smaller, a longer warm-up, batch normalisation, or autocast=False."
        )
    finally:
        bar.close()
    if average and history.stopped == "finished":
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def overfit(model, data, images=64, steps=60, lr=0.05, **settings):
    """Train on the first `images` alone, without augmentation, and return the last loss.

    A network that cannot learn one batch by heart has a mistake, and a long training would be a waste (chapter 1).
    settings: what else `fit` takes.
    """
    split = data.train
    targets = _take(split.targets, slice(images))
    # not a Dataset of its own: that would normalise with the statistics of these few images
    one_batch = SimpleNamespace(
        train=SimpleNamespace(images=split.images[:images], targets=targets),
        test=data.test, normalize=data.normalize, provenance=data.provenance,
    )  # fmt: skip
    usual = {"weight_decay": 0.0, "augment": no_augment, "label": "one batch"}
    history = fit(
        model, one_batch, epochs=steps, batch_size=images, lr=lr, evaluate=lambda model, data: {}, eval_every=steps,
        **(usual | settings),
    )  # fmt: skip
    return history.last("train_loss")


class _Best:
    """The weights of the best evaluated epoch so far, or those of the start."""

    def __init__(self, model):
        self.model, self.score, self.epochs = model, math.inf, 0
        self.keep(math.inf)

    def keep(self, score):
        """Remember the present weights if their `score` (lower is better) is the best yet."""
        if score <= self.score:
            self.score = score
            self.state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.epochs += score < math.inf

    def restore(self, model):
        model.load_state_dict(self.state)
        return "the model holds its best weights so far" if self.epochs else "the model is back at its first weights"


def _name(part):
    return part if isinstance(part, str) else getattr(part, "__name__", None) or repr(part)


# ---------------------------------------------------------------------------------------------- after training


@torch.inference_mode()
def predict(model, data, images, batch_size=500):
    """The model's outputs (N, …) in float32 on the CPU for uint8 `images` (N, C, H, W), in evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    outputs = []
    for batch in images.split(batch_size):
        batch = data.normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        outputs.append(model(batch).float().cpu())
    model.train(was_training)
    return torch.cat(outputs)


def predict_masks(model, data, images):
    """The class with the highest logit at every pixel, uint8 (N, H, W), for uint8 images (N, C, H, W)."""
    parts = [predict(model, data, part).argmax(1).to(torch.uint8) for part in images.split(100)]
    return torch.cat(parts)


def evaluate(model, data):
    """Loss and accuracy of a classifier on `data.test`: `{"test_loss": …, "test_accuracy": …}`."""
    logits = predict(model, data, data.test.images)
    targets = data.test.targets
    return {
        "test_loss": float(F.cross_entropy(logits, targets)),
        "test_accuracy": float((logits.argmax(1) == targets).float().mean()),
    }

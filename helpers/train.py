"""Training: the loop of chapter 1, made fast, interruptible and repeatable.

The whole training set lives as uint8 tensors on the device. A batch is one indexing operation, augmentation is
a handful of operations on the whole batch, and nothing is done per image in Python.
"""

import contextvars
import copy
import json
import math
import os
import random
import re
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from helpers import settings

# some only pass through here: chapters write train.AugmentScene(...) and train.checkpoints(...)
from helpers.augment import Augment, AugmentScene, no_augment  # noqa: F401
from helpers.checkpoint import (  # noqa: F401
    checkpoints,
    digest,
    next_checkpoint,
    no_checkpoints,
    random_state,
    set_random_state,
)
from helpers.modes import evaluating, frozen_parts, set_training
from helpers.muon import Muon

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
    """Whether `fit` trains in bfloat16 on this device unless told: on CUDA devices that have it.

    On a CPU it is float32, which rounds alike on more machines. No classifier of the course was slower in it on a
    processor with AVX512-BF16 (`benchmarks/`); another one may gain by bfloat16, hence `autocast`.
    """
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()


def _autocast(device, enabled):
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


# ---------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the model's logits (N, classes) against labels (N,) or class probabilities (N, classes)."""

    label_smoothing: float = 0.0

    def __call__(self, model, images, targets):
        return F.cross_entropy(model(images).float(), targets, label_smoothing=self.label_smoothing)


def pixel_cross_entropy(model, images, masks):
    """Cross-entropy of logits (N, classes, H, W) over the pixels of masks uint8 (N, H, W) that are not void (255).

    A loss for `fit`. A batch of which every pixel is void costs nothing: 0.
    """
    logits = model(images).float()
    if (masks == 255).all():
        # the mean of no pixels would be 0 / 0; this zero has a graph
        return 0 * logits.sum()
    return F.cross_entropy(logits, masks.long(), ignore_index=255)


def _take(targets, index):
    """Rows `index` of a tensor, or of each tensor in a dict."""
    if isinstance(targets, dict):
        return {name: tensor[index] for name, tensor in targets.items()}
    return targets[index]


def _to(targets, device):
    if isinstance(targets, dict):
        return {name: tensor.to(device) for name, tensor in targets.items()}
    return targets.to(device)


# ---------------------------------------------------------------------------------------------- what a network says


@torch.no_grad()
def predict(model, data, images, batch_size=500):
    """The model's outputs (N, …) in float32 on the CPU for uint8 `images` (N, C, H, W), in evaluation mode."""
    device = next(model.parameters()).device
    outputs = []
    with evaluating(model):
        for batch in images.split(batch_size):
            batch = data.normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
            outputs.append(model(batch).float().cpu())
    return torch.cat(outputs)


def predict_masks(model, data, images):
    """The class with the highest logit at every pixel, uint8 (N, H, W), for uint8 images (N, C, H, W)."""
    parts = [predict(model, data, part).argmax(1).to(torch.uint8) for part in images.split(100)]
    return torch.cat(parts)


def evaluate(model, data):
    """Loss and accuracy of a classifier on `data.test`: `{"test_loss": …, "test_accuracy": …}`.

    Raises ValueError where there is no test image.
    """
    targets = data.test.targets
    if len(targets) == 0:
        raise ValueError("the test split is empty, so there is nothing to evaluate on.")
    logits = predict(model, data, data.test.images)
    return {
        "test_loss": float(F.cross_entropy(logits, targets)),
        "test_accuracy": float((logits.argmax(1) == targets).float().mean()),
    }


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


HOW_LONG = "say how long to train: either epochs=… or seconds=…, and not both."


@dataclass(frozen=True)
class Recipe:
    """How to train: all that decides the numbers, besides the network and the data.

    epochs or seconds: how long, in passes over the training images or in seconds of training. Give one, here or
        to `fit`.
    optimizer: "sgd" (Nesterov momentum 0.9), "adamw", or a function of (parameters, lr, weight_decay). The schedule
        scales the rate that each of its parameter groups begins with.
    lr: the peak learning rate; 0.1 for SGD and 0.002 for AdamW unless given.
    schedule: "one-cycle" (linear rise over a fifth, cosine to zero), "constant", "steps" (a tenth at 1/2 and at 3/4),
        or a function from progress in [0, 1] to a factor on `lr`.
    augment: a function of (images, targets, generator).
    loss: a function of (model, images, targets) that gives a scalar.
    ema: decay per step of an exponential moving average of the weights, or None. With it, the average is what is
        evaluated and what the model holds at the end.
    seed: batch order and augmentation. Same seed, same batches, whatever the model.
    evaluate: a function of (model, data) that gives a dict of floats, run every `eval_every` epochs and at the end.

    Raises ValueError where this makes no sense.
    """

    epochs: int | None = None
    seconds: float | None = None
    batch_size: int = 128
    optimizer: str | Callable = "sgd"
    lr: float | None = None
    weight_decay: float = 5e-4
    schedule: str | Callable = "one-cycle"
    augment: Callable = Augment()
    loss: Callable = CrossEntropy()
    ema: float | None = None
    seed: int = 0
    evaluate: Callable = evaluate
    eval_every: int = 1

    def __post_init__(self):
        given = [length for length in (self.epochs, self.seconds) if length is not None]
        if len(given) > 1:
            raise ValueError(HOW_LONG)
        if given and not given[0] > 0:
            raise ValueError(f"epochs={self.epochs}, seconds={self.seconds}: nothing to do. Give a positive number.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: a batch needs at least one image.")
        if self.eval_every < 1:
            raise ValueError(f"eval_every={self.eval_every}: evaluate every epoch (1) or less often (2, 3, …).")
        _look_up(self.optimizer, OPTIMIZERS, "optimizer")
        _look_up(self.schedule, SCHEDULES, "schedule")

    @property
    def peak(self):
        """The peak learning rate."""
        return LEARNING_RATE.get(self.optimizer, 0.1) if self.lr is None else self.lr

    def record(self):
        """The recipe as plain values: functions by their names."""
        return {part.name: _name(getattr(self, part.name)) for part in fields(self)} | {"lr": self.peak}


# For few epochs, of networks with batch normalisation on images of CIFAR-10's size: `fit(..., SHORT, epochs=6)`.
# What each part gained over the usual recipe, and what was tried and left out, is in benchmarks/README.md.
SHORT = Recipe(optimizer=Muon, lr=0.05)


def _name(part):
    """Numbers and texts as they are, functions by their names, without addresses in memory."""
    if part is None or isinstance(part, (int, float, str)):
        return part
    return getattr(part, "__name__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(part))


# ---------------------------------------------------------------------------------------------- training

_early_end_raises = contextvars.ContextVar("early_end_raises", default=False)


@contextmanager
def no_early_end():
    """Within this block an interrupt or a divergence passes through `fit`: half a run must not enter a study."""
    token = _early_end_raises.set(True)
    try:
        yield
    finally:
        _early_end_raises.reset(token)


class Stopped(KeyboardInterrupt):
    """A training that the stop button or Ctrl-C has ended, with its `history`.

    As an error it ends Run All, too. A notebook shows its one line in place of a traceback.
    """

    def __init__(self, line, history):
        super().__init__(line)
        self.history = history

    def _render_traceback_(self):
        return [str(self)]


# the History of the last training that was stopped
interrupted = None


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
            raise ValueError(
                f"no {column!r}: this training ended ({self.stopped}) before its first evaluation. Train again."
            )
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


def fit(model, data, recipe=None, *, device=None, autocast=None, label="training", **changes):
    """Train `model` in place on `data.train` and return its History.

    data: a `helpers.data.Dataset`, or anything with `train` (images uint8 (N, C, H, W), targets), `test`,
        `normalize` and `provenance`.
    recipe, changes: a Recipe, and what differs from it; without one, what differs from the usual (`epochs=3, lr=0.05`).
    autocast: run in bfloat16; as `autocast_pays` says unless given.

    A loss that is not finite ends the training early: the history is returned, `stopped` says "diverged", and the model
    holds the weights of its best evaluated epoch. So it does after the stop button or Ctrl-C ("interrupted"), but then
    Stopped is raised, so that no later cell runs, and `train.interrupted` is the history.
    Frozen parts (in evaluation mode, and no parameter requires a gradient) stay so, running statistics included.
    Raises TypeError for images that are not uint8; ValueError on a recipe that makes no sense and on data that do not
    fit it or the network.
    """
    run = Run(model, data, _recipe(recipe, changes), device, autocast, label)
    with run.ending_early():
        for images, targets in run.batches():
            with run.autocast():
                loss = run.recipe.loss(model, images, targets)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            run.record(loss.detach())
    return run.finish()


def _recipe(recipe, changes):
    """`recipe` with changes, or the changes alone. None for a function means the usual one."""
    usual = {part.name: part.default for part in fields(Recipe)}
    changes = {name: usual.get(name) if value is None else value for name, value in changes.items()}
    return replace(recipe, **changes) if recipe else Recipe(**changes)


def _check(model, data, recipe):
    """Refuse data that fit neither the recipe nor the network, before anything is changed."""
    if recipe.epochs is None and recipe.seconds is None:
        raise ValueError(HOW_LONG)
    split, test = data.train, getattr(data, "test", None)
    n = len(split.images)
    if n == 0:
        raise ValueError("the training split is empty.")
    for tensor in split.targets.values() if isinstance(split.targets, dict) else [split.targets]:
        if len(tensor) != n:
            raise ValueError(f"{n} training images, but {len(tensor)} targets. They go in pairs.")
    judged = [split]
    if recipe.evaluate is evaluate:
        if len(test.images) == 0:
            raise ValueError("the test split is empty: give test images, or a function `evaluate` that needs none.")
        judged.append(test)
    for part in judged:
        if part.images.dtype != torch.uint8:
            raise TypeError(f"images are uint8, pixels from 0 to 255; these are {part.images.dtype}.")
    if type(recipe.loss) is CrossEntropy or recipe.loss is pixel_cross_entropy:
        void = 255 if recipe.loss is pixel_cross_entropy else -100
        outputs = predict(model, data, split.images[:1])
        if outputs.ndim < 2:
            raise ValueError(f"the network gives {tuple(outputs.shape)} for one image, not logits (N, classes).")
        _check_labels(outputs.shape[1], judged, void)


def _check_labels(classes, splits, void):
    """Whether every label is one of the network's outputs. `void` is what the loss leaves out."""
    for split in splits:
        labels = split.targets
        if isinstance(labels, dict) or labels.is_floating_point():
            continue
        known = labels[labels != void]
        wrong = known[(known < 0) | (known >= classes)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is outside 0..{classes - 1}: the network has {classes} outputs.")


class Run:
    """One training under way: `fit`'s loop asks it for batches, and tells it each loss."""

    # all that changes from step to step, besides what has a state_dict; it goes into a checkpoint
    COUNTERS = ("step", "epoch", "place", "evaluated", "since", "pending", "epoch_loss", "mean_loss", "done")

    def __init__(self, model, data, recipe, device=None, autocast=None, label="training"):
        _check(model, data, recipe)
        self.model, self.data, self.recipe = model, data, recipe
        self.device = torch.device(device) if device else best_device()
        self.bfloat16 = autocast_pays(self.device) if autocast is None else autocast
        self.started = time.perf_counter()
        model.to(self.device, memory_format=torch.channels_last)
        self.frozen = frozen_parts(model)
        set_training(model, self.frozen)
        self.prepare_steps()
        self.prepare_batches()
        self.prepare_history(label)
        self.prepare_checkpoint()

    # ------------------------------------------------------------------------------------------ before the first step

    def prepare_steps(self):
        model, recipe = self.model, self.recipe
        make = _look_up(recipe.optimizer, OPTIMIZERS, "optimizer")
        self.optimizer = make([p for p in model.parameters() if p.requires_grad], recipe.peak, recipe.weight_decay)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.factor = _look_up(recipe.schedule, SCHEDULES, "schedule")
        self.average = None
        if recipe.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.shown = self.average.module if self.average else model
        self.best = _Best(self.shown)
        _first_weights.setdefault(model, self.best.state)

    def prepare_batches(self):
        split, recipe = self.data.train, self.recipe
        self.images, self.targets = split.images.to(self.device), _to(split.targets, self.device)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.batch_size = min(recipe.batch_size, len(self.images))
        # the last, smaller batch is left out: its batch statistics are the noisiest
        self.per_epoch = len(self.images) // self.batch_size
        self.total = self.per_epoch * recipe.epochs if recipe.epochs else None
        self.order, self.done = None, False
        # steps in all and in this epoch, epochs, and the step of the last evaluation
        self.step = self.place = self.epoch = self.evaluated = 0

    def prepare_history(self, label):
        made = {"device": self.device.type, "dtype": "bfloat16 autocast" if self.bfloat16 else "float32"}
        recipe = self.recipe.record() | {"batch_size": self.batch_size} | made
        self.history = History(data=str(self.data.provenance), recipe=recipe)
        # seconds of training (evaluation not counted); the loss summed since it was logged, and over the epoch
        self.trained = self.saved = 0.0
        self.pending, self.since, self.epoch_loss, self.mean_loss = 0.0, 0, 0.0, math.nan
        self.bar = tqdm(
            total=self.total or round(self.recipe.seconds),
            desc=label,
            unit="step" if self.total else "s",
            disable=settings.silent(),
        )

    # ------------------------------------------------------------------------------------------ in the loop

    def autocast(self):
        return _autocast(self.device, self.bfloat16)

    def batches(self):
        """Every batch of the training, augmented; after each epoch its evaluation."""
        while not self.done:
            self.started = time.perf_counter()
            if self.order is None:
                self.begin_epoch()
            for index in self.order.split(self.batch_size)[self.place :]:
                self.progress = self.progress_now()
                if self.progress >= 1:
                    break
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * self.factor(self.progress)
                batch = self.data.normalize(self.images[index]).contiguous(memory_format=torch.channels_last)
                yield self.recipe.augment(batch, _take(self.targets, index), self.generator)
            self.end_epoch()

    def begin_epoch(self):
        order = torch.randperm(len(self.images), generator=self.generator)
        self.order = order[: self.per_epoch * self.batch_size].to(self.device)
        self.epoch_loss = torch.zeros((), device=self.device)
        self.place = 0

    def seconds(self):
        """Seconds of training so far."""
        return self.trained + time.perf_counter() - self.started

    def progress_now(self):
        return self.step / self.total if self.total else self.seconds() / self.recipe.seconds

    def record(self, loss):
        """A step is done, and this was its loss."""
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1
        self.place += 1
        self.since += 1
        self.epoch_loss += loss
        self.pending = self.pending + loss
        # asking a GPU for a number makes it wait, so not at every step
        if self.since == 10 or self.step == self.total:
            self.log()
        if self.checkpoint and self.seconds() - self.saved >= self.checkpoint.every:
            self.save()

    def log(self):
        mean = float(self.pending) / self.since
        self.history.losses.append((self.step, mean))
        self.pending, self.since = 0.0, 0
        self.bar.set_postfix_str(f"epoch {self.epoch + 1}, loss {mean:.3f}", refresh=False)
        self.show_progress()
        self._finite(mean)

    def show_progress(self):
        now = self.step if self.total else min(round(self.progress * self.recipe.seconds), self.bar.total)
        self.bar.update(now - self.bar.n)

    def end_epoch(self):
        self.trained = self.seconds()
        self.history.images_per_second = self.step * self.batch_size / self.trained
        # time may be up before an epoch's first step
        if self.place:
            self.epoch += 1
            self.mean_loss = self._finite(float(self.epoch_loss) / self.place)
        self.order = None
        self.done = self.step >= self.total if self.total else self.trained >= self.recipe.seconds
        if self.step > self.evaluated and (self.done or self.epoch % self.recipe.eval_every == 0):
            self.evaluate()

    def evaluate(self):
        self.evaluated = self.step
        scores = self.recipe.evaluate(self.shown, self.data)
        set_training(self.model, self.frozen)
        lr = self.optimizer.param_groups[0]["lr"]
        row = {"epoch": self.epoch, "seconds": self.trained, "lr": lr, "train_loss": self.mean_loss}
        self.history.rows.append(row | scores)
        # else the last step broke the weights
        if math.isfinite(scores.get("test_loss", self.mean_loss)):
            self.best.keep(-scores["test_accuracy"] if "test_accuracy" in scores else self.mean_loss)

    def _finite(self, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss {loss} at step {self.step}, learning rate {self.recipe.peak:g}")
        return loss

    # ------------------------------------------------------------------------------------------ the end

    @contextmanager
    def ending_early(self):
        """Ctrl-C and a loss that is not finite end the training here, with the best weights so far."""
        global interrupted
        try:
            with no_checkpoints():
                yield
        except (KeyboardInterrupt, FloatingPointError) as error:
            if _early_end_raises.get():
                raise
            self.history.stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "diverged"
            farewell = self.farewell(self.best.restore(self.model))
            if self.history.stopped == "interrupted":
                interrupted = self.finish()
                raise Stopped(farewell, interrupted) from None
            print(farewell)
        finally:
            self.bar.close()

    def farewell(self, kept):
        if self.history.stopped == "interrupted":
            return (
                f"Training stopped at step {self.step} (epoch {self.epoch + 1}): {kept}, and train.interrupted is "
                "the history. To train to the end, run this cell again."
            )
        return (
            f"The loss is not a finite number any more at step {self.step} "
            f"(learning rate {self.recipe.peak:g}); {kept}.\n"
            "Try a learning rate 3 to 10 times smaller, a longer warm-up, batch normalisation, or autocast=False."
        )

    def finish(self):
        """The averaged weights, if there are any; evaluation mode; the History."""
        if self.average and self.history.stopped == "finished":
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        if self.checkpoint and self.history.stopped == "finished":
            self.save()
        return self.history

    # ------------------------------------------------------------------------------------------ checkpoints

    def prepare_checkpoint(self):
        """Go on from the checkpoint of this training, where there is one."""
        self.checkpoint = next_checkpoint()
        if not self.checkpoint:
            return
        about = {"data": self.history.data, "the network's first weights": digest(self.best.state)} | _digests(
            self.data
        )
        # of what a checkpoint must be, else it belongs to another training
        self.identity = self.history.recipe | about
        state = self.checkpoint.load(self.identity)
        if state:
            self.resume(state)

    def parts(self):
        """What has a state_dict and changes while the network learns, by name."""
        found = {"model": self.model, "optimizer": self.optimizer}
        if self.average:
            found["average"] = self.average
        for role in ("loss", "augment", "evaluate"):
            part = getattr(self.recipe, role)
            held = {"itself": part} | getattr(part, "__dict__", {})
            found |= {f"{role}, {name}": value for name, value in held.items() if isinstance(value, nn.Module)}
        return found

    def save(self):
        """Write all that decides the rest of the training."""
        now = time.perf_counter()
        self.saved = self.trained if self.done else self.seconds()
        state = {
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
            "seconds": self.saved,
            "order": self.order,
            "generator": self.generator.get_state(),
            "random": random_state(),
            "parts": {name: part.state_dict() for name, part in self.parts().items()},
            "best": {name: getattr(self.best, name) for name in _Best.KEPT},
            "history": self.history.to_dict() | {"rows": [_plain(row) for row in self.history.rows]},
        }
        self.checkpoint.save(self.identity, state)
        # writing is not training
        self.started += time.perf_counter() - now

    def resume(self, state):
        for name, value in state["counters"].items():
            setattr(self, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)
        self.trained = self.saved = state["seconds"]
        self.order = None if state["order"] is None else state["order"].to(self.device)
        self.generator.set_state(state["generator"])
        for name, part in self.parts().items():
            part.load_state_dict(state["parts"][name])
        for name, value in state["best"].items():
            setattr(self.best, name, value)
        self.history = History(**state["history"])
        set_random_state(state["random"])
        self.progress = self.step / self.total if self.total else self.trained / self.recipe.seconds
        self.show_progress()
        if self.done:
            # it is written already
            self.checkpoint = None


def _digests(data):
    """What stands for the images and targets of both splits."""
    found = {}
    for name in ("train", "test"):
        split = getattr(data, name, None)
        targets = getattr(split, "targets", None)
        tensors = targets if isinstance(targets, dict) else {"targets": targets}
        tensors = {"images": getattr(split, "images", None)} | tensors
        found[f"{name} data"] = digest({key: t for key, t in tensors.items() if isinstance(t, torch.Tensor)})
    return found


def _plain(row):
    """Scores of NumPy's types as Python's, which may be read from a file without running code."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


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


_first_weights = weakref.WeakKeyDictionary()


def untrained(model):
    """A copy of `model` with the weights that `fit` found in it, in evaluation mode: the control of what it learned.

    A network that was trained twice goes back to before the first time. Raises ValueError for one that `fit` has not
    trained since this program began.
    """
    if model not in _first_weights:
        raise ValueError("`fit` has not trained this network here, so its first weights are not known. Build it anew.")
    first = copy.deepcopy(model)
    first.load_state_dict(_first_weights[model])
    return first.eval()


class _Best:
    """The weights of the best evaluated epoch so far, or those of the start."""

    KEPT = ("score", "epochs", "state")

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

"""Trained weights, kept in `weights/` with how they were made.

A chapter declares `TEACHER = Weights(...)` in a cell tagged `model`. `./course weights NAME` trains what chapter NAME
declares on the real data; the chapter, and later ones, only load it. The files are safetensors: they hold numbers, no
code.

What a chapter declares with a `layer` and a `score` is a network that others can look into with Grad-CAM: the gallery,
chapter 15 and the live page gather those.

    x = trained.to_input(data, images)
    heat = grad_cam(trained.open(), trained.layer, x, lambda outputs: trained.score(outputs, labels))
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from helpers import chapters, settings, study, train
from helpers.checkpoint import digest

FOLDER = settings.ROOT / "weights"
MAX_BYTES = 3_200_000


@dataclass(frozen=True)
class Weights:
    """A network that was trained once.

    chapter: the chapter that declares it, such as "08_feature_distillation". name: what it is, such as "teacher".
    build: a function without arguments that gives the untrained network.
    train: a function of (model, data) that trains it in place and returns a dict of numbers, such as its accuracy.
    data: a function without arguments that gives the Dataset.

    For networks that others look into:

    title: what it is called on pages, such as "VGG".
    layer: name of the module whose maps Grad-CAM weighs.
    score: a function (outputs, labels) to the number per image (N,) that is explained; labels (N,) are positions in
        `helpers.data.VOC_ANIMALS`.
    size: side of the photographs that it gets, in px.
    any_size: turns the loaded network into one for images of any size, where it is not one already.
    """

    chapter: str
    name: str
    build: Callable
    train: Callable
    data: Callable
    title: str = ""
    layer: str | None = None
    score: Callable | None = None
    size: int = 64
    any_size: Callable = lambda model: model  # noqa: E731

    @property
    def path(self):
        return FOLDER / f"{self.chapter}_{self.name}.safetensors"

    @property
    def code(self):
        """A hash of the code that builds and trains; text and comments do not count."""
        parts = [study.code_of(self.chapter, part.__name__) for part in (self.build, self.train)]
        return sha256("".join(parts).encode()).hexdigest()[:16]

    def make(self):
        """Train it and write the file, whole or not at all. Floats are stored with 16 bits.

        Raises ValueError on the stand-in, whose weights nobody wants, and when the file would exceed MAX_BYTES;
        OSError, with the path, when it cannot be written.
        """
        data = self.data()
        if not data.provenance.real:
            raise ValueError(f"{self.path.name} must be trained on real data, and these are: {data.provenance}.")
        train.set_seed(0)
        model = self.build()
        start = time.perf_counter()
        with train.no_early_end():
            metrics = self.train(model, data)
        seconds = round(time.perf_counter() - start, 1)
        tensors = {
            key: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
            for key, tensor in model.state_dict().items()
        }
        record = {
            "weights": self.path.stem,
            "code": self.code,
            "data": str(data.provenance),
            "metrics": metrics,
            "seconds": seconds,
            "made_with": study.made_with(),
            "checksum": checksum(tensors),
        }
        self._write(save(tensors, metadata={"course": json.dumps(record)}))
        return self

    def _write(self, content):
        if len(content) > MAX_BYTES:
            raise ValueError(
                f"{self.path.name} would have {len(content) / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:g} MB."
            )
        part = self.path.with_suffix(".safetensors.part")
        try:
            FOLDER.mkdir(exist_ok=True)
            part.write_bytes(content)
            os.replace(part, self.path)
        except OSError as error:  # that of a full disk names no file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            with suppress(OSError):
                part.unlink()

    @property
    def record(self):
        """How the file was made: a dict with `code`, `data`, `metrics`, `seconds`, `made_with` and `checksum`."""
        return self._read()[0]

    def load(self):
        """The trained network in evaluation mode, in float32 on the CPU."""
        model = self.build()
        _, tensors = self._read()
        model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
        return model.eval()

    def open(self):
        """The trained network in evaluation mode, for images of any size."""
        return self.any_size(self.load()).eval()

    def untrained(self, seed=0):
        """The network before its training, in evaluation mode: the control beside every "look what it learned"."""
        train.set_seed(seed)
        return self.build().eval()

    def to_input(self, data, images):
        """Images uint8 (N, 3, H, W) as the network takes them: `size` px, normalised by `data`, float (N, 3, S, S)."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True).round().to(torch.uint8)
        return data.normalize(images)

    def _read(self):
        """(record, tensors). Raises FileNotFoundError without the file, ValueError for one that is damaged."""
        file = f"weights/{self.path.name}"
        if not self.path.exists():
            raise FileNotFoundError(f"{file} is not there. Train it: ./course weights {self.chapter}")
        try:
            with safe_open(self.path, "pt") as opened:
                record = json.loads(opened.metadata()["course"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            fault = "has no checksum" if "checksum" not in record else ""
            if not fault and record["checksum"] != checksum(tensors):
                fault = "is damaged: its numbers do not match their checksum"
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            fault = f"cannot be read ({type(error).__name__}: {error})"
        if fault:
            raise ValueError(
                f"{file} {fault}. Take it back (git checkout -- {file}), "
                f"or train it anew (./course weights {self.chapter} {self.name} --restart)."
            )
        return record, tensors


def checksum(tensors):
    """Sixteen hexadecimal digits that stand for a file's tensors, in whatever order they come."""
    return digest(dict(sorted(tensors.items())))


def weights(chapter_name):
    """The weights that a chapter declares, as a list."""
    return [each for _, each in chapters.declared(Weights, chapter_name)]


def explorable():
    """All networks that can be looked into, in the order of the chapters: a list of Weights."""
    return [each for _, each in chapters.declared(Weights) if each.layer and each.score]


def stale(chapter_name):
    """What is wrong with the committed weights of a chapter, as a list of sentences."""
    problems = []
    for found in weights(chapter_name):
        if not found.path.exists():
            problems.append(f"weights/{found.path.name} is missing (./course weights {chapter_name})")
            continue
        try:
            record = found.record
        except ValueError as error:
            problems.append(str(error))
            continue
        if record["code"] != found.code:
            problems.append(
                f"weights/{found.path.name} was trained with other code (./course weights {chapter_name} --restart)"
            )
    return problems


def add_arguments(parser):
    parser.add_argument("chapter", help="a chapter's name, such as 08_feature_distillation")
    parser.add_argument("name", nargs="?", help="one of the networks that it declares, such as teacher; or all")
    parser.add_argument("--restart", action="store_true", help="train again what is there already")


def command(options):
    """Train what a chapter declares and is not there yet, and print what came out.

    Raises ValueError for a network that the chapter does not declare.
    """
    found = weights(chapters.check_name(options.chapter))
    names = [each.name for each in found]
    if not found:
        print(f"{options.chapter} declares no weights.")
    elif options.name and options.name not in names:
        raise ValueError(f"{options.chapter} has no weights named {options.name!r}. Use one of {', '.join(names)}.")
    for each in found:
        if options.name not in (None, each.name):
            continue
        if options.restart or not each.path.exists():
            each.make()
        scores = ", ".join(f"{name} {value:.4g}" for name, value in each.record["metrics"].items())
        print(f"weights/{each.path.name}: {scores} ({each.record['data']})")

"""Trained weights that chapters start from, kept in `weights/` with how they were made.

A chapter defines `TEACHER = Weights(...)` in a cell tagged `model`. `./course weights NAME` trains it on the real data;
the chapter, and later ones, only load it. What several chapters share is defined in `helpers.backbone` and
`helpers.zoo`; there NAME is "backbone" or "zoo". The files are safetensors: they hold numbers, no code.
"""

import argparse
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import chapters, settings, study, train

SHARED = ("backbone", "zoo")  # modules of helpers whose weights belong to no single chapter
FOLDER = settings.ROOT / "weights"
MAX_BYTES = 3_200_000


@dataclass(frozen=True)
class Weights:
    """A network that was trained once.

    chapter: the chapter that defines it, such as "08_feature_distillation", or one of SHARED. name: what it is, such as
        "teacher".
    build: a function without arguments that gives the untrained network.
    train: a function of (model, data) that trains it in place and returns a dict of numbers, such as its accuracy.
    data: a function without arguments that gives the Dataset.
    """

    chapter: str
    name: str
    build: Callable
    train: Callable
    data: Callable

    @property
    def path(self):
        return FOLDER / f"{self.chapter}_{self.name}.safetensors"

    @property
    def code(self):
        """A hash of the code that builds and trains; text and comments do not count."""
        source = _module(self.chapter)
        source = getattr(source, "__source__", None) or inspect.getsource(source)
        parts = [study.code_in(source, part.__name__) for part in (self.build, self.train)]
        return sha256("".join(parts).encode()).hexdigest()[:16]

    def make(self):
        """Train it and write the file, whole or not at all. Floats are stored with 16 bits.

        Raises ValueError on the stand-in, whose weights nobody wants, and when the file would exceed MAX_BYTES.
        """
        data = self.data()
        if not data.provenance.real:
            raise ValueError(f"{self.path.name} must be trained on real data, and these are: {data.provenance}.")
        train.set_seed(0)
        model = self.build()
        start = time.perf_counter()
        with train.no_early_end():
            metrics = self.train(model, data)
        record = {
            "weights": self.path.stem,
            "code": self.code,
            "data": str(data.provenance),
            "metrics": metrics,
            "seconds": round(time.perf_counter() - start, 1),
            "made_with": study.made_with(),
        }
        tensors = {
            key: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
            for key, tensor in model.state_dict().items()
        }
        FOLDER.mkdir(exist_ok=True)
        part = self.path.with_suffix(".safetensors.part")
        try:
            save_file(tensors, part, metadata={"course": json.dumps(record)})
            if (size := part.stat().st_size) > MAX_BYTES:
                raise ValueError(f"{self.path.name} would have {size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:g} MB.")
            part.chmod(0o644)  # safetensors leaves it to the owner alone
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
        return self

    @property
    def record(self):
        """How the file was made: a dict with `code`, `data`, `metrics`, `seconds` and `made_with`."""
        with safe_open(self._present(), "pt") as file:
            return json.loads(file.metadata()["course"])

    def load(self):
        """The trained network in evaluation mode, in float32 on the CPU."""
        model = self.build()
        tensors = load_file(self._present())
        model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
        return model.eval()

    def _present(self):
        if not self.path.exists():
            raise FileNotFoundError(f"weights/{self.path.name} is not there. Train it: ./course weights {self.chapter}")
        return self.path


def _module(name):
    if name in SHARED:
        return importlib.import_module(f"helpers.{name}")
    return chapters.chapter(name)


def weights(name):
    """The weights that a chapter, or one of SHARED, defines by name or in lists, as a list."""
    found = []
    for value in vars(_module(name)).values():
        found += value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, Weights) and each.chapter == name]


def stale(chapter_name):
    """What is wrong with the committed weights of a chapter, as a list of sentences."""
    problems = []
    for found in weights(chapter_name):
        if not found.path.exists():
            problems.append(f"weights/{found.path.name} is missing (./course weights {chapter_name})")
        elif found.record["code"] != found.code:
            problems.append(
                f"weights/{found.path.name} was trained with other code (./course weights {chapter_name} --restart)"
            )
    return problems


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="course weights", description="Train the weights that a chapter starts from.")
    parser.add_argument(
        "chapter", help=f"a chapter's name, or one of {', '.join(SHARED)} for what several chapters share"
    )
    parser.add_argument("--restart", action="store_true", help="train again what is there already")
    options = parser.parse_args(arguments)
    try:
        found = weights(options.chapter)
        if not found:
            print(f"{options.chapter} defines no weights.")
        for each in found:
            if options.restart or not each.path.exists():
                each.make()
            scores = ", ".join(f"{name} {value:.4g}" for name, value in each.record["metrics"].items())
            print(f"weights/{each.path.name}: {scores} ({each.record['data']})")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"course weights: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. Nothing was overwritten.")


if __name__ == "__main__":
    from helpers import weights as this  # under its own name, so that its Weights is the class that chapters use

    this.main()

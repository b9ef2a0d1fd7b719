"""The parts of the benchmark. Each returns a dict that goes into results.json."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision

from benchmarks import live, loops
from book import gallery
from helpers import settings, train
from helpers.data import NAMED_CLASSES, cifar10
from helpers.muon import Muon

# of the usual loop in `accuracy`
LEARNING_RATE = 0.05


def machine():
    """What a reader needs to judge the numbers, and nothing that tells whose machine it is."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        + (", bfloat16 in hardware" if has_bfloat16() else ""),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def has_bfloat16():
    """Whether the processor has instructions for bfloat16, as far as PyTorch says."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, hence the fallback
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


@contextmanager
def one_thread():
    """PyTorch computes with one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def speed(quick=False):
    """Images per second of `fit`, of the bare step and of the usual loop, taking turns."""
    data = cifar10(train=1024, test=64) if quick else cifar10()
    rounds, steps = (2, 3) if quick else (3, 80)
    contestants = {
        "bare": loops.bare,
        "fit": loops.ours,
        "usual": loops.usual,
        "usual, channels last": loops.usual_channels_last,
    }
    found = {"machine": machine(), "data": str(data.provenance), "rounds": rounds, "steps": steps, "images": {}}
    for autocast in (False, True):
        name = "bfloat16 autocast" if autocast else "float32"
        runs = {contestant: [] for contestant in contestants}
        order = list(contestants)
        for contestant in order:  # to warm up
            contestants[contestant](data, 2, autocast)
        for _ in range(rounds):
            for contestant in order:
                runs[contestant].append(round(contestants[contestant](data, steps, autocast), 1))
            order = order[1:] + order[:1]  # so that nobody always follows the same neighbour
        found["images"][name] = runs
    return found


def formats(quick=False):
    """Images per second in float32 and in bfloat16: a step of each named network, on one thread, taking turns."""
    rounds, steps, batch = (1, 1, 4) if quick else (3, 8, loops.BATCH)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(NAMED_CLASSES), (batch,), generator=generator)
    with one_thread():
        found = {"machine": machine(), "batch": batch, "rounds": rounds, "steps": steps, "networks": {}}
        for trained in gallery.groups()["named"]:
            runs = {"float32": [], "bfloat16": []}
            loop = {
                name: loops.Step(trained.build().to(memory_format=torch.channels_last), name == "bfloat16")
                for name in runs
            }
            for step in loop.values():  # to warm up
                step(images, labels)
            for _ in range(rounds):
                for name, step in loop.items():
                    start = time.perf_counter()
                    for _ in range(steps):
                        step(images, labels)
                    runs[name].append(round(steps * batch / (time.perf_counter() - start), 1))
            found["networks"][trained.title] = runs
    return found


IMPORTS = "from helpers import train, plot, inspect, cam, study; from helpers.data import cifar10"
OPEN_CIFAR = """
from helpers.data import cifar10
import time; start = time.perf_counter()
data = cifar10(); data.normalize(data.train.images[:128])
report(seconds=time.perf_counter() - start, data=str(data.provenance))
"""
OPEN_VOC = """
from helpers.data import voc_animals
import time; start = time.perf_counter()
data = voc_animals(size=128); data.normalize(data.train.images[:32])
report(seconds=time.perf_counter() - start, data=str(data.provenance))
"""
TRAIN = """
from benchmarks.loops import resnet8
from helpers import train
from helpers.data import cifar10
data = cifar10()
train.fit(resnet8(), data, seconds=SECONDS)
import resource, sys
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report(megabytes=peak / (2**20 if sys.platform == "darwin" else 2**10), data=str(data.provenance))
"""
REPORT = "def report(**found):\n    import json; print('\\nREPORT' + json.dumps(found))\n"


def fresh(code, **environment):
    """Run `code` in a process of its own; returns what it hands to `report` and the seconds of it all."""
    start = time.perf_counter()
    environment = {**os.environ, "COURSE_SILENT": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", REPORT + code], cwd=settings.ROOT, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"this failed:\n{code}\n{done.stderr}")
    reports = [line.removeprefix("REPORT") for line in done.stdout.splitlines() if line.startswith("REPORT")]
    return (json.loads(reports[-1]) if reports else {}), seconds


def opening(quick=False):
    """Seconds until one can start, and the memory of a training, each in fresh processes."""
    repeats = 1 if quick else 3

    def median(values):
        return round(statistics.median(values), 2)

    found = {"machine": machine()}
    with tempfile.TemporaryDirectory() as cache:
        for name, code in (("cifar10", OPEN_CIFAR), ("voc", OPEN_VOC)):
            first, _ = fresh(code, COURSE_CACHE=cache)
            later = [fresh(code, COURSE_CACHE=cache)[0]["seconds"] for _ in range(repeats)]
            found[name] = {"first": round(first["seconds"], 2), "later": median(later), "data": first["data"]}
        training, _ = fresh(TRAIN.replace("SECONDS", "1" if quick else "10"), COURSE_CACHE=cache)
    found["training"] = {"megabytes": round(training["megabytes"]), "data": training["data"]}
    found["import"] = median([fresh(IMPORTS)[1] for _ in range(repeats)])
    return found


CALLS = {
    "`./course book`, the first call": "book",
    "`./course run`, the first call": "run",
    "`./course run --again`": "run --again",
}


def calls(quick=False):
    """Seconds of the first calls of `./course` in a new checkout, and bytes of what they have installed by then.

    pip keeps no cache, so every package is fetched. Quick: calls that install nothing.
    """
    found = {"machine": machine(), "calls": []}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COURSE_", "VIRTUAL_ENV"))}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", settings.ROOT, folder], check=True)
        installed = Path(folder, ".venv")
        for name, call in ({"`./course help`": "help"} if quick else CALLS).items():
            began = time.perf_counter()
            subprocess.run(
                [f"{folder}/course", *call.split()],
                check=True,
                stdout=subprocess.DEVNULL,
                env=environment | {"PIP_NO_CACHE_DIR": "1", "COURSE_CACHE": f"{folder}/cache"},
            )
            found["calls"].append(
                {
                    "call": name,
                    "seconds": round(time.perf_counter() - began),
                    "bytes": sum(path.lstat().st_size for path in installed.rglob("*")),
                }
            )
        found["cuda"] = any(installed.glob("lib/python*/site-packages/nvidia"))
    return found


def accuracy(quick=False):
    """Test accuracy after so many seconds of training: the recipe for few epochs, the usual one, the usual loop."""
    data = cifar10(train=1024, test=128) if quick else cifar10()
    budgets, seeds = ((0.3, 0.6), (0,)) if quick else ((30, 60, 120), (0, 1, 2))
    recipes = {"SHORT": train.SHORT, "usual recipe": train.Recipe()}
    networks = {
        "small VGG-D": (loops.vgg_d, data, train.Augment()),
        "ResNet-20 of width 8 at 16x16": (loops.resnet20, loops.halved(data), train.Augment(shift=2)),
    }
    found = {"machine": machine(), "data": str(data.provenance), "seconds": list(budgets), "usual lr": LEARNING_RATE,
             "dtype": "float32", "runs": []}  # fmt: skip

    def keep(network, recipe, seconds, seed, accuracy, **more):
        found["runs"].append(
            {"network": network, "recipe": recipe, "seconds": seconds, "seed": seed, "accuracy": round(accuracy, 4)}
            | more
        )

    for seed in seeds:
        for network, (build, images, augment) in networks.items():
            for name, recipe in recipes.items():
                for seconds in budgets:
                    train.set_seed(seed)
                    history = train.fit(
                        build(), images, recipe, seconds=seconds, augment=augment, seed=seed,
                        eval_every=10_000,
                    )  # fmt: skip
                    speed = round(history.images_per_second)
                    keep(network, name, seconds, seed, history.last("test_accuracy"), images_per_second=speed)
        usual = loops.usual_accuracies(loops.vgg_d, data, budgets, LEARNING_RATE, autocast=False, seed=seed)
        for seconds, value in zip(budgets, usual, strict=True):
            keep("small VGG-D", "usual loop", seconds, seed, value)
    return found


# name: (those it is compared with, how it differs from the usual)
USUAL, SHORT = "usual: SGD, rate 0.1", "SHORT: Muon, rate 0.05"
TRIED = {
    USUAL: ((), {}),
    "SGD, rate 0.3": ((USUAL,), {"lr": 0.3}),
    SHORT: ((USUAL, "SGD, rate 0.3"), {"recipe": train.SHORT}),
    "SHORT, rate 0.1": ((SHORT,), {"recipe": train.SHORT, "lr": 0.1}),
    "SHORT, labels smoothed": ((SHORT,), {"recipe": train.SHORT, "loss": train.CrossEntropy(label_smoothing=0.1)}),
}


def recipe(quick=False):
    """What each part of the recipe for few epochs gains, on two networks; what a step of its optimiser costs."""
    data = loops.halved(cifar10(train=512, test=128) if quick else cifar10(train=25_000, test=5000))
    epochs, seeds = (1, (0,)) if quick else (2, (0, 1, 2))
    networks = {"ResNet-20 of width 8": loops.resnet20, "small VGG-D": loops.vgg_d_at_16}
    found = {"machine": machine(), "data": str(data.provenance), "epochs": epochs, "runs": [], "updates": updates()}
    for seed in seeds:
        for network, build in networks.items():
            for name, (_, changes) in TRIED.items():
                train.set_seed(seed)
                usual = {"epochs": epochs, "eval_every": epochs, "seed": seed, "augment": train.Augment(shift=2)}
                history = train.fit(build(), data, **usual, **changes)
                accuracy = round(history.last("test_accuracy"), 4)
                found["runs"].append({"network": network, "recipe": name, "seed": seed, "accuracy": accuracy})
    return found


def updates():
    """Milliseconds of an update of all convolutions by this Muon and those of two libraries, one thread."""
    import timm.optim

    matrix = lambda p: p.flatten(1)  # noqa: E731
    contestants = {
        "SGD": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), None),
        "this Muon": (lambda p: Muon(p, 0.1), None),
        "timm's Muon": (lambda p: timm.optim.Muon(p, 0.1, nesterov=True, ns_coefficients="original"), None),
    }
    if hasattr(torch.optim, "Muon"):
        contestants["PyTorch's Muon, filters as matrices"] = (lambda p: torch.optim.Muon(p, 0.1), matrix)
    with one_thread():
        return {
            network: {
                name: round(loops.milliseconds_of_an_update(make, build(), *([shaped] if shaped else [])), 1)
                for name, (make, shaped) in contestants.items()
            }
            for network, build in (("ResNet-20 of width 8", loops.resnet20), ("small VGG-D", loops.vgg_d))
        }


PARTS = {
    "speed": speed,
    "formats": formats,
    "opening": opening,
    "calls": calls,
    "accuracy": accuracy,
    "recipe": recipe,
    "live": live.measure,
}

"""The three parts of the benchmark. Each returns a dict that goes into results.json."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torchvision

from benchmarks import loops
from helpers import settings, train
from helpers.data import cifar10

LEARNING_RATE = 0.05  # of the usual loop in `accuracy`


def machine():
    """What a reader needs to judge the numbers, and nothing that tells whose machine it is."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        + (", bfloat16 in hardware" if train.autocast_pays("cpu") else ""),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }


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
    for autocast in sorted({False, train.autocast_pays("cpu")}, reverse=True):
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


def accuracy(quick=False):
    """Test accuracy after so many seconds of training, the course's recipe beside the usual one."""
    data = cifar10(train=1024, test=128) if quick else cifar10()
    moments = (0.3, 0.6) if quick else (60, 120, 240)
    autocast = train.autocast_pays("cpu")
    found = {"machine": machine(), "data": str(data.provenance), "seconds": list(moments), "usual lr": LEARNING_RATE,
             "dtype": "bfloat16 autocast" if autocast else "float32"}  # fmt: skip
    found["fit"] = []
    for seconds in moments:
        history = train.fit(loops.resnet8(), data, seconds=seconds, autocast=autocast, eval_every=10_000)
        found["fit"].append(round(history.last("test_accuracy"), 4))
    usual = loops.usual_accuracies(data, moments, LEARNING_RATE, autocast)
    found["usual"] = [round(value, 4) for value in usual]
    return found


PARTS = {"speed": speed, "opening": opening, "accuracy": accuracy}

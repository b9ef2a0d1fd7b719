"""Studies: arms x seeds of trainings, resumable, kept as JSON in `results/`.

A chapter defines `STUDY = Study(...)` in a cell tagged `model`. `./course study 01_vgg` measures it, writing after
every run; the chapter only reads what was measured. Seeds are paired: the same seed means the same first weights
(where shapes agree) and the same batches in every arm, so arms are compared by their differences.

    ./course study 01_vgg --plan             what would be measured, and the expected hours
    ./course study 01_vgg --pilot            two seeds of every arm, and how many seeds the primary claims need
    ./course study 01_vgg --jobs 4           four runs at a time, each with one thread
    ./course study 01_vgg --dask ADDRESS     on the workers of a Dask scheduler, such as tcp://10.0.0.1:8786

Where a study is stopped or killed, the same command goes on; trainings go on from their last checkpoint. What a worker
of Dask needs stands in pages/how-to-run.md.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import filelock
import joblib
import torch

from helpers import chapters, effects, settings, train
from helpers.effects import paired_effect
from helpers.fingerprint import code_in, code_of  # noqa: F401  code_in for weights
from helpers.table import Table

FOLDER = settings.ROOT / "results"


@dataclass(frozen=True)
class Study:
    """A grid of trainings.

    chapter: its name, such as "01_vgg".
    run: a function of (data, *, seed, **arm) that trains once and returns a dict of numbers.
    arms: name of each arm -> the keyword arguments that make it.
    data: a function without arguments that gives the Dataset.
    seeds: one training per arm and seed. More can be added later; none is repeated.
    name: set it when a chapter has more than one study.
    minutes: what a run is expected to take with one thread, a number or one for each arm; for the plan only.
    limit: the most seeds that anybody would pay for; for the pilot only.
    """

    chapter: str
    run: Callable
    arms: dict
    data: Callable
    seeds: tuple = (0, 1, 2)
    name: str = ""
    minutes: float | dict | None = None
    limit: int | None = None

    @property
    def stem(self):
        return f"{self.chapter}_{self.name}" if self.name else self.chapter

    @property
    def path(self):
        return FOLDER / f"{self.stem}.json"

    @property
    def planned(self):
        """All (arm, seed), seed by seed, so that a study that is cut off has whole pairs."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    # ------------------------------------------------------------------------------------------ measuring

    def measure(self, restart=False, jobs=None, dask=None, seeds=None, drop=False, show=()):
        """Do every run that `results/` does not hold yet, writing the file after each.

        restart: throw away what was measured before.
        jobs: so many runs at a time, each in a process with one thread; by default one for each core. 1: here.
        dask: the address of a Dask scheduler that does them instead.
        seeds: only these of the study's.
        drop: forget the runs that were set aside when their arm changed.
        show: the metrics in the line of a finished run; by default the first three.

        Raises ValueError when the file was measured with other code or other data, when it is damaged, when a run
        gives a number that is none, or when another process measures this study.
        """
        FOLDER.mkdir(exist_ok=True)
        lock = filelock.FileLock(FOLDER / f".{self.stem}.lock", timeout=0)
        try:
            with lock:
                return self._measure(restart, jobs, dask, seeds, drop, show)
        except filelock.Timeout:
            raise ValueError(f"another process is measuring {self.stem}; wait for it, or stop it.") from None

    def _measure(self, restart, jobs, dask, seeds, drop, show):
        code = code_of(self.chapter, self.run.__name__)
        before = self._read()["runs"] if self.path.exists() else []
        kept = {"study": self.stem, "code": code, "arms": self.arms, "seeds": list(self.seeds), "runs": []}
        if before and not restart:
            self._take_over(kept, drop)
        have = {(run["arm"], run["seed"]) for run in kept["runs"]}
        wanted = self.seeds if seeds is None else seeds
        todo = [(arm, seed) for arm, seed in self.planned if seed in wanted and (arm, seed) not in have]
        if not todo:
            return self
        if before and not dask:
            self._check_data(str(self.data().provenance), before, restart)
        jobs = min(jobs or joblib.cpu_count(), len(todo))
        with _place(jobs, dask) as forget:
            at_once = joblib.effective_n_jobs(-1) if dask else jobs
            progress = _Progress(self, kept["runs"], todo, at_once, show)
            one_run = joblib.delayed(_one_run)
            where = (self.chapter, self.stem, code, 1 if jobs > 1 or dask else None, os.getpid())
            calls = (one_run(*where, arm, seed) for arm, seed in todo)
            for run in joblib.Parallel(return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1)(calls):
                checkpoints = run.pop("checkpoints")
                self._check_data(run["data"], before, restart)
                self._check_data(run["data"], kept["runs"], False)
                kept["runs"].append(run)
                self._write(kept)
                forget(checkpoints)
                progress.finished(run)
        return self

    def _take_over(self, kept, drop):
        """Move what the file holds to `kept`; runs whose arm has changed or is gone are set aside, and said so."""
        found = self._read()
        if found["code"] != kept["code"]:
            raise ValueError(f"{self.path.name} was measured with other code. Measure it anew with --restart.")
        aside = []
        for run in found["runs"] + found.get("set_aside", []):
            have = {(run["arm"], run["seed"]) for run in kept["runs"]}
            current = self._is_current(run) and (run["arm"], run["seed"]) not in have
            (kept["runs"] if current else aside).append(run)
        if aside and not drop:
            arms = ", ".join(f"{count} of {arm!r}" for arm, count in Counter(run["arm"] for run in aside).items())
            print(f"{self.path.name}: arms have changed or are gone; their runs are set aside ({arms}) until --drop.")
            kept["set_aside"] = aside
        same = kept["runs"] == found["runs"] and found.get("set_aside") == kept.get("set_aside")
        if not same or "seal" not in found:
            self._write(kept)

    def _check_data(self, now, before, restart):
        """A study stays with its data, and no drawn picture takes the place of a real one."""
        known = {run["data"] for run in before}
        if restart and "stand-in" in now and any("stand-in" not in data for data in known):
            raise ValueError(
                f"{self.path.name} holds runs on real data, and the data here are {now}: nothing was thrown away. "
                "Make the data available (./course data), or delete the file yourself."
            )
        if not restart and known and known != {now}:
            raise ValueError(
                f"{self.path.name} was measured on {'; '.join(sorted(known))}; the data here are {now}. A study has to "
                "stay with its data: make them available (./course data), or measure anew with --restart."
            )

    def rehearse(self, data):
        """Run every arm once on small `data`, writing nothing: shows that the code of the study still runs."""
        return {arm: self.run(data, seed=0, **config) for arm, config in self.arms.items()}

    def minutes_of(self, arm):
        """What a run of `arm` takes: the median of what was measured, else what the study says, else None."""
        runs = self._current_runs() if self.path.exists() else []
        own = [run["seconds"] / 60 for run in runs if run["arm"] == arm and not run.get("resumed")]
        said = self.minutes.get(arm) if isinstance(self.minutes, dict) else self.minutes
        return median(own) if own else said

    def _is_current(self, run):
        """Whether a stored run has the configuration that its arm has now."""
        # through JSON, which knows lists and no tuples
        return run["arm"] in self.arms and run["config"] == json.loads(json.dumps(self.arms[run["arm"]]))

    def _write(self, content):
        order = list(self.arms)
        content["runs"].sort(key=lambda run: (order.index(run["arm"]), run["seed"]))
        part = self.path.with_suffix(".json.part")
        part.write_text(json.dumps(content | {"seal": seal(content["runs"])}, indent=1) + "\n")
        os.replace(part, self.path)

    # ------------------------------------------------------------------------------------------ reading

    def _read(self):
        if not self.path.exists():
            raise FileNotFoundError(f"results/{self.path.name} is not there. Measure it: ./course study {self.chapter}")
        try:
            content = json.loads(self.path.read_text("utf-8"))
            content["code"], content["arms"], content["seeds"]
            faults = list(_damage(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults = [f"cannot be read ({type(error).__name__}: {error})"]
        if faults:
            file = f"results/{self.path.name}"
            raise ValueError(f"{file} {' and '.join(faults)}. Take it back from git, or delete it and measure anew.")
        return content

    def runs(self):
        """All runs as measured: dicts with `arm`, `seed`, `config`, `metrics`, `data`, `seconds`, `made_with`."""
        return self._read()["runs"]

    def _current_runs(self):
        return [run for run in self.runs() if self._is_current(run)]

    def provenance(self):
        """The data of the study, in one line. Raises ValueError when runs were made on different data."""
        found = sorted({run["data"] for run in self.runs()})
        if len(found) != 1:
            raise ValueError(f"the runs of {self.stem} used different data: {'; '.join(found)}.")
        return found[0]

    def measured_seeds(self, *arms):
        """The seeds, in the order of `seeds`, with which all these arms are measured; without arms, all of them."""
        have = {(run["arm"], run["seed"]) for run in self._current_runs()} if self.path.exists() else set()
        return [seed for seed in self.seeds if all((arm, seed) in have for arm in arms or self.arms)]

    def values(self, arm, metric, seeds=None):
        """The metric of one arm, one value per seed.

        seeds: those wanted; else all with which every arm of the study is measured, so that arms always pair.
        Raises KeyError for an unknown arm, ValueError when a seed is missing or the runs lack the metric.
        """
        if arm not in self.arms:
            raise KeyError(f"{self.stem} has no arm {arm!r}. Its arms are: {', '.join(map(str, self.arms))}.")
        seeds = self.measured_seeds() if seeds is None else list(seeds)
        found = {run["seed"]: run["metrics"] for run in self._current_runs() if run["arm"] == arm}
        missing = [seed for seed in seeds if seed not in found]
        if missing or not seeds:
            lacks = f"arm {arm!r} lacks seeds {missing}" if missing else "no seed is measured in every arm yet"
            raise ValueError(f"{self.stem}: {lacks}. Measure on: ./course study {self.chapter}")
        if metric not in found[seeds[0]]:
            raise ValueError(
                f"{self.stem}: the runs have no metric {metric!r}, only {', '.join(found[seeds[0]])}. "
                f"If it is new: ./course study {self.stem} --restart"
            )
        return [found[seed][metric] for seed in seeds]

    def mean(self, arm, metric):
        """Mean and standard deviation over seeds."""
        values = torch.tensor(self.values(arm, metric), dtype=torch.float64)
        return float(values.mean()), float(values.std()) if len(values) > 1 else math.nan

    def constant(self, arm, metric):
        """The value of a metric that does not depend on the seed, such as a count. Raises ValueError if it does."""
        found = {run["metrics"][metric] for run in self._current_runs() if run["arm"] == arm}
        if len(found) != 1:
            values = ", ".join(map(str, sorted(found))) or "no run"
            raise ValueError(f"{self.stem}: {metric!r} of arm {arm!r} is not one value: {values}.")
        return found.pop()

    def effect(self, first, second, metric, scale=1.0):
        """The paired Effect of arm `second` over arm `first` (a `helpers.effects.Effect`), times `scale`."""
        seeds = self.measured_seeds(first, second)
        return paired_effect(*([scale * value for value in self.values(arm, metric, seeds)] for arm in (first, second)))

    def text(self, arm, metric, scale=1.0, decimals=2, to=None):
        """Mean and standard deviation over seeds as text: `81.23 ± 0.45`.

        scale: times this, or `to`: a function of each value, such as accuracy to error in percent.
        Before any seed is measured in every arm: `not measured yet`.
        """
        if arm in self.arms and not self.measured_seeds():
            return effects.NOT_MEASURED
        values = torch.tensor(
            [to(value) if to else scale * value for value in self.values(arm, metric)], dtype=torch.float64
        )
        spread = f" ± {float(values.std()):.{decimals}f}" if len(values) > 1 else " (one seed)"
        return f"{float(values.mean()):.{decimals}f}{spread}"

    def summary(self, columns, decimals=3):
        """A Table of one row per arm; `columns` maps a heading to a metric or (metric, scale), as mean ± sd."""
        rows = []
        for arm in self.arms:
            row = {"arm": arm}
            for heading, metric in columns.items():
                metric, scale = metric if isinstance(metric, tuple) else (metric, 1)
                mean, sd = self.mean(arm, metric)
                constant = sd == 0 and float(mean).is_integer()
                row[heading] = int(mean * scale) if constant else f"{mean * scale:.2f} ± {sd * scale:.2f}"
            rows.append(row)
        return Table(rows, decimals)


def _damage(content):
    """What is wrong with the runs of a file whatever the study is, sentence by sentence."""
    twice = [key for key, n in Counter((run["arm"], run["seed"]) for run in content["runs"]).items() if n > 1]
    for arm, seed in twice:
        yield f"has more than one run of arm {arm!r} with seed {seed}"
    for run in content["runs"]:
        for metric, value in run["metrics"].items():
            if not _is_number(value):
                yield f"has no number for {metric!r} of arm {run['arm']!r} with seed {run['seed']} ({value})"
    if content.get("seal", seal(content["runs"])) != seal(content["runs"]):
        yield "was edited: its runs do not match their seal"


def _is_number(value):
    return not isinstance(value, float) or math.isfinite(value)


def seal(runs):
    """A checksum of the runs of a study, kept beside them: numbers that were edited by hand no longer match it."""
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- one run, somewhere

_one_at_a_time = threading.Lock()  # the random state is the process's, and a Dask worker may have several threads


def _one_run(chapter_name, stem, code, threads, parent, arm, seed):
    """One training, in whatever process joblib chose: the study is found again by its chapter and name."""
    with _one_at_a_time:
        if os.getppid() == parent:
            _end_with(parent)
        if threads:
            torch.set_num_threads(threads)
        study = studies(chapter_name)[stem]
        if code_of(chapter_name, study.run.__name__) != code:
            raise ValueError(f"a worker on {platform.node()} has other code of {stem}; give it the same checkout.")
        data = study.data()
        config, provenance = study.arms[arm], str(data.provenance)
        key = json.dumps([code, arm, config, seed, provenance])
        folder = settings.cache_folder() / "studies" / stem / hashlib.sha256(key.encode()).hexdigest()[:16]
        resumed = folder.exists()
        start = time.perf_counter()
        with train.no_early_end(), train.checkpoints(folder):
            metrics = study.run(data, seed=seed, **config)
        for metric, value in metrics.items():
            if not _is_number(value):
                raise ValueError(f"{stem}: arm {arm!r} with seed {seed} gave no number for {metric!r} ({value}).")
        return {
            "arm": arm,
            "seed": seed,
            "config": config,
            "metrics": metrics,
            "data": provenance,
            "seconds": round(time.perf_counter() - start, 1),
            **({"resumed": True} if resumed else {}),
            "made_with": made_with(),
            "checkpoints": str(folder),
        }


@functools.cache
def _end_with(parent):
    """End this process soon after its parent, so that a study that was killed does not go on unseen beside its next."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _place(jobs, dask):
    """Where runs happen within this block; gives a function that removes a folder of checkpoints there."""
    if dask:
        try:
            from distributed import Client
        except ImportError:
            raise ValueError("Dask is not installed here: pip install 'dask[distributed]'.") from None
        with Client(dask) as client, joblib.parallel_config("dask"):
            # each worker has a disk of its own
            yield lambda folder: client.run(shutil.rmtree, folder, ignore_errors=True)
        return
    place = {"backend": "loky", "inner_max_num_threads": 1} if jobs > 1 else {"backend": "sequential"}
    with joblib.parallel_config(**place, n_jobs=jobs):
        yield functools.partial(shutil.rmtree, ignore_errors=True)


class _Progress:
    """A line for every finished run, with the time that is left."""

    def __init__(self, study, runs, todo, jobs, show):
        self.study, self.runs, self.left, self.jobs, self.show = study, runs, Counter(todo), jobs, show

    def finished(self, run):
        self.left -= Counter([(run["arm"], run["seed"])])
        shown = [name for name in self.show or list(run["metrics"])[:3] if name in run["metrics"]]
        scores = ", ".join(f"{name} {_short(run['metrics'][name])}" for name in shown)
        left = expected_minutes(self.study, self.left)
        rest = f", about {_duration(left / self.jobs)} left" if left else ""
        print(
            f"{self.study.stem}: {run['arm']}, seed {run['seed']}: {scores} ({_duration(run['seconds'] / 60)}); "
            f"{len(self.runs)} measured, {self.left.total()} to go{rest}",
            flush=True,
        )


def expected_minutes(study, runs):
    """Minutes of one thread that these (arm, seed) take, or None where nothing is known."""
    known = {arm: study.minutes_of(arm) for arm in study.arms}
    others = [minutes for minutes in known.values() if minutes is not None]
    if not others:
        return None
    return sum(median(others) if known[arm] is None else known[arm] for arm, _ in runs)


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(minutes):
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def made_with():
    """Date, versions and kind of machine, for the record of a measurement."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {train.best_device().type}",
    }


# ---------------------------------------------------------------------------------------------- a chapter's studies


def studies(chapter_name):
    """The studies of a chapter: stem -> Study. Raises ValueError when two of them share a file."""
    found = {}
    for _, study in chapters.declared(Study, chapter_name):
        if study.chapter != chapter_name:
            raise ValueError(f"{chapter_name} has a study that says it is of {study.chapter!r}; correct its chapter.")
        if study.stem in found:
            raise ValueError(f"{chapter_name} has two studies called {study.stem}; give one a name of its own.")
        found[study.stem] = study
    return found


def find(name):
    """The studies that a name stands for, that of a chapter or of one study: stem -> Study.

    Raises ValueError for an unknown name and lists the names that there are.
    """
    if name in chapters.names():
        return studies(name)
    for chapter_name in chapters.names():
        if name.startswith(chapter_name):
            found = studies(chapter_name)
            if name not in found:
                raise ValueError(f"there is no study {name!r}. Those of the chapter are: {', '.join(found)}.")
            return {name: found[name]}
    chapters.check_name(name)


def stale(chapter_name):
    """What is wrong with the committed results of a chapter, as a list of sentences; for missing runs: `unfinished`."""
    problems = []
    for stem, study in studies(chapter_name).items():
        if not study.path.exists():
            continue
        try:
            found = study._read()
        except ValueError as error:
            problems.append(str(error))
            continue
        file, runs = f"results/{stem}.json", found["runs"]
        if found["code"] != code_of(chapter_name, study.run.__name__):
            problems.append(f"{file} was measured with other code (./course study {chapter_name} --restart)")
        if "seal" not in found:
            problems.append(f"{file} has no seal of its runs (./course study {chapter_name} gives it one)")
        if old := sorted({run["arm"] for run in runs if not study._is_current(run)}):
            problems.append(
                f"{file} has runs of arms that have changed or are gone: {', '.join(old)} "
                f"(./course study {chapter_name} sets them aside)"
            )
        if extra := sorted({run["seed"] for run in runs} - set(study.seeds)):
            problems.append(f"{file} has runs with seeds that the study does not name: {', '.join(map(str, extra))}")
        data = sorted({run["data"] for run in runs})
        if len(data) > 1:
            problems.append(f"{file} mixes data: {'; '.join(data)}")
        if any("stand-in" in one for one in data):
            problems.append(f"{file} was measured on the stand-in")
    return problems


def unfinished(chapter_name):
    """Which studies of a chapter lack runs, as a list of sentences; this is no fault."""
    remarks = []
    for stem, study in studies(chapter_name).items():
        lack = _lacking(study)
        if lack:
            total = len(study.planned)
            remarks.append(f"results/{stem}.json is unfinished: {total - len(lack)} of {total} runs")
    return remarks


def _lacking(study):
    have = {(run["arm"], run["seed"]) for run in study._current_runs()} if study.path.exists() else set()
    return [one for one in study.planned if one not in have]


# ---------------------------------------------------------------------------------------------- the command


def _primary(study):
    """(sentence, Claims, Claim) of the chapter's primary claims that are about a study."""
    from helpers import claims  # it builds on this module

    for sentence, (block, claim) in claims.family(study.chapter).items():
        if any(block.of(arm).stem == study.stem for arm in claim.arms):
            yield sentence, block, claim


def plan(study, jobs):
    """What would be measured, as text: arms, seeds, primary claims and the expected hours."""
    lack = _lacking(study)
    minutes = expected_minutes(study, lack)
    if minutes is None:
        cost = "nobody has said or measured what a run takes"
    else:
        cost = f"about {_duration(minutes)} of one thread, {_duration(minutes / jobs)} with {jobs} at a time"
    lines = [
        f"{study.stem}: {len(study.planned)} runs, {len(lack)} to go; {cost}",
        f"arms: {'; '.join(map(str, study.arms))}",
        f"seeds: {', '.join(map(str, study.seeds))}{f' (at most {study.limit})' if study.limit else ''}",
    ]
    rows = [
        {
            "primary claim": sentence,
            "second arm": _arms(claim.second),
            "first arm": _arms(claim.first),
            "measured": block.measured,
            "predicted": "second > first" if claim.loses is None else f"second > first - {claim.loses:g}",
            "matters": f"{block.matters:g}",
        }
        for sentence, block, claim in _primary(study)
    ]
    return "\n".join([*lines, str(Table(rows)) if rows else "no primary claims"])


def _arms(arms):
    return " and ".join(map(str, arms)) if isinstance(arms, (list, tuple)) else str(arms)


def pilot(study):
    """How many seeds each primary claim needs, as text: until its 95 % interval is ± half of what matters.

    The standard deviation is that over the seeds measured so far; from two of them it is a rough guess.
    """
    rows = []
    for sentence, block, claim in _primary(study):
        effect, half = block.effect(claim), block.matters / 2
        if effect is None:
            continue
        needed = effects.seeds_needed(effect.sd, half)
        rows.append(
            {
                "primary claim": sentence,
                "measured": block.measured,
                "so far": str(effect),
                "wanted": f"± {half:g}",
                "seeds needed": "more than 1000" if needed is None else needed,
            }
            | ({"at most": f"{study.limit}: ± {effects.half_width(effect.sd, study.limit):.2f}"} if study.limit else {})
        )
    return str(Table(rows)) if rows else f"{study.stem} has no primary claims."


def add_arguments(parser):
    parser.description = "Measure the studies of a chapter."
    parser.add_argument("name", metavar="NAME", help="a chapter, such as 01_vgg, or one study, such as 01_vgg_scale")
    parser.add_argument("--plan", action="store_true", help="only say what would be measured, and the expected hours")
    parser.add_argument("--pilot", action="store_true", help="two seeds only, and how many the primary claims need")
    parser.add_argument("--jobs", type=int, metavar="N", help="so many runs at a time, each with one thread")
    parser.add_argument("--dask", metavar="ADDRESS", help="the Dask scheduler whose workers do the runs")
    parser.add_argument("--restart", action="store_true", help="throw away what was measured before")
    parser.add_argument("--drop", action="store_true", help="forget runs of arms that have changed or are gone")


def command(options):
    """`./course study`; returns the exit code."""
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs is the number of runs at a time, at least 1; got {options.jobs}.")
    found = find(options.name)
    if not found:
        print(f"{options.name} defines no study.")
    try:
        for study in found.values():
            if options.plan:
                print(plan(study, options.jobs or joblib.cpu_count()))
                continue
            show = dict.fromkeys(block.metric for _, block, _ in _primary(study) if isinstance(block.metric, str))
            seeds = study.seeds[:2] if options.pilot else None
            study.measure(options.restart, options.jobs, options.dask, seeds, options.drop, tuple(show))
            if options.pilot:
                print(pilot(study))
            else:
                print(f"results/{study.path.name}: {len(study.runs())} runs on {study.provenance()}")
    except KeyboardInterrupt:
        print("Stopped. What was measured is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0

"""Studies: arms x seeds of short trainings, resumable, kept as JSON in `results/`.

A chapter defines `STUDY = Study(...)` in a cell tagged `model`. `./course study 01_vgg` measures it, writing after
every run; the chapter only reads what was measured. Seeds are paired: the same seed means the same first weights
(where shapes agree) and the same batches in every arm, so arms are compared by their differences.
"""

import argparse
import ast
import functools
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import torch
from tqdm.auto import tqdm

from helpers import chapters, settings, train
from helpers.effects import paired_effect
from helpers.table import Table

FOLDER = settings.ROOT / "results"


@dataclass(frozen=True)
class Study:
    """A grid of trainings.

    chapter: its name, such as "01_vgg".
    run: a function of (data, *, seed, **arm) that trains once and returns a dict of numbers.
    arms: name of each arm -> the keyword arguments that make it.
    data: a function without arguments that gives the Dataset.
    seeds: one training per arm and seed.
    name: set it when a chapter has more than one study.
    """

    chapter: str
    run: Callable
    arms: dict
    data: Callable
    seeds: tuple = (0, 1, 2)
    name: str = ""

    @property
    def stem(self):
        return f"{self.chapter}_{self.name}" if self.name else self.chapter

    @property
    def path(self):
        return FOLDER / f"{self.stem}.json"

    # ------------------------------------------------------------------------------------------ measuring

    def measure(self, restart=False):
        """Do every run that `results/` does not hold yet, writing the file after each.

        Raises ValueError when the file was measured with other code, unless `restart` throws it away.
        """
        code = code_of(self.chapter, self.run.__name__)
        kept = {"study": self.stem, "code": code, "arms": self.arms, "seeds": list(self.seeds), "runs": []}
        if self.path.exists() and not restart:
            found = self._read()
            if found["code"] != code:
                raise ValueError(f"{self.path.name} was measured with other code. Measure it anew with --restart.")
            kept["runs"] = [run for run in found["runs"] if self._is_current(run)]
        have = {(run["arm"], run["seed"]) for run in kept["runs"]}
        # seed by seed, so that a study that is cut off has whole pairs
        todo = [(arm, seed) for seed in self.seeds for arm in self.arms if (arm, seed) not in have]
        if todo and kept["runs"]:
            before, now = kept["runs"][0]["data"], str(self.data().provenance)
            if before != now:
                raise ValueError(
                    f"{self.path.name} was measured on {before}; the data here are {now}. A study has to stay with its "
                    "data: make them available (./course data), or measure anew with --restart."
                )
        jobs = (joblib.delayed(_one_run)(self.chapter, self.stem, arm, seed) for arm, seed in todo)
        bar = tqdm(
            total=len(have) + len(todo), initial=len(have), desc=self.stem, unit="run", disable=settings.silent()
        )
        with bar:
            # joblib.parallel_config chooses where this runs; by default one after the other, here
            for run in joblib.Parallel(return_as="generator_unordered")(jobs):
                kept["runs"].append(run)
                order = list(self.arms)
                kept["runs"].sort(key=lambda run: (order.index(run["arm"]), run["seed"]))
                self._write(kept)
                bar.update()
        return self

    def rehearse(self, data):
        """Run every arm once on small `data`, writing nothing: shows that the code of the study still runs."""
        return {arm: self.run(data, seed=0, **config) for arm, config in self.arms.items()}

    def _is_current(self, run):
        """Whether a stored run has the configuration that its arm has now."""
        # through JSON, which knows lists and no tuples
        return run["arm"] in self.arms and run["config"] == json.loads(json.dumps(self.arms[run["arm"]]))

    def _write(self, content):
        FOLDER.mkdir(exist_ok=True)
        part = self.path.with_suffix(".json.part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, self.path)

    # ------------------------------------------------------------------------------------------ reading

    def _read(self):
        if not self.path.exists():
            raise FileNotFoundError(f"results/{self.path.name} is not there. Measure it: ./course study {self.chapter}")
        return json.loads(self.path.read_text())

    def _current_runs(self):
        return [run for run in self.runs() if self._is_current(run)]

    def runs(self):
        """All runs as measured: dicts with `arm`, `seed`, `config`, `metrics`, `data`, `seconds`, `made_with`."""
        return self._read()["runs"]

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
        Raises KeyError for an unknown arm or metric, ValueError when a seed is missing.
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
            raise KeyError(f"no metric {metric!r}. There are: {', '.join(found[seeds[0]])}.")
        return [found[seed][metric] for seed in seeds]

    def mean(self, arm, metric):
        """Mean and standard deviation over seeds."""
        values = torch.tensor(self.values(arm, metric), dtype=torch.float64)
        return float(values.mean()), float(values.std()) if len(values) > 1 else math.nan

    def constant(self, arm, metric):
        """The value of a metric that does not depend on the seed, such as a count. Raises ValueError if it does."""
        found = {run["metrics"][metric] for run in self._current_runs() if run["arm"] == arm}
        if len(found) != 1:
            raise ValueError(f"{metric!r} of arm {arm!r} is not one value: {', '.join(map(str, sorted(found)))}.")
        return found.pop()

    def effect(self, first, second, metric, scale=1.0):
        """The paired Effect of arm `second` over arm `first` (a `helpers.metrics.Effect`), times `scale`."""
        seeds = self.measured_seeds(first, second)
        return paired_effect(*([scale * value for value in self.values(arm, metric, seeds)] for arm in (first, second)))

    def text(self, arm, metric, scale=1.0, decimals=2, to=None):
        """Mean and standard deviation over seeds as text: `81.23 ± 0.45`.

        scale: times this, or `to`: a function of each value, such as accuracy to error in percent.
        """
        values = torch.tensor(
            [to(value) if to else scale * value for value in self.values(arm, metric)], dtype=torch.float64
        )
        spread = f" ± {float(values.std()):.{decimals}f}" if len(values) > 1 else " (one seed)"
        return f"{float(values.mean()):.{decimals}f}{spread}"

    def claims(self, claims, metric, heading, scale=1.0):
        """A Table of claims `(sentence, first arm, second arm)`: how much `second` is over `first`, seed by seed.

        heading: what `metric` times `scale` is. The verdict is "seen" when the 95 % interval of the mean difference
        lies above zero, so put each claim such that it predicts a positive number.
        """
        rows = []
        for claim, first, second in claims:
            effect = self.effect(first, second, metric, scale)
            rows.append(
                {
                    "claim": claim,
                    heading: f"{effect.mean:+.2f} ± {effect.sd:.2f}",
                    "95 % interval": f"{effect.low:+.2f} to {effect.high:+.2f}",
                    "verdict": effect.verdict,
                }
            )
        return Table(rows)

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


def _one_run(chapter_name, stem, arm, seed):
    """One training, in whatever process joblib chose: the study is found again by its chapter and name."""
    study = studies(chapter_name)[stem]
    data = study.data()
    start = time.perf_counter()
    with train.no_early_end():
        metrics = study.run(data, seed=seed, **study.arms[arm])
    return {
        "arm": arm,
        "seed": seed,
        "config": study.arms[arm],
        "metrics": metrics,
        "data": str(data.provenance),
        "seconds": round(time.perf_counter() - start, 1),
        "made_with": made_with(),
    }


def made_with():
    """Date, versions and kind of machine, for the record of a measurement."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {train.best_device().type}",
    }


def studies(chapter_name):
    """The studies of a chapter: stem -> Study."""
    module = chapters.chapter(chapter_name)
    return {value.stem: value for value in vars(module).values() if isinstance(value, Study)}


def code_of(chapter_name, function):
    """A hash of a function in a chapter and of all that it uses there and in other chapters.

    Text and comments do not count, nor does what `helpers` does.
    """
    return code_in(_source(chapter_name), function)


def code_in(source, function, source_of=None):
    """The same for the function of that name in any source text; `source_of` gives the source of a chapter."""
    sources, needed, queue = {"": source}, {}, [("", function)]
    while queue:
        place, name = queue.pop()
        if place not in sources:
            sources[place] = (source_of or _source)(place)
        parts = _definitions(sources[place]).get(name, [])
        if parts and (place, name) not in needed:
            needed[place, name] = parts
            for part in parts:
                queue += [(place, node.id) for node in ast.walk(part) if isinstance(node, ast.Name)]
                queue += _taken_from_chapters(part, sources[place])
    digest = hashlib.sha256()
    for key in sorted(needed):
        for part in needed[key]:
            digest.update(chapters.skeleton(part).encode())
    return digest.hexdigest()[:16]


def _source(chapter_name):
    return chapters.chapter(chapter_name).__source__


@functools.cache
def _definitions(source):
    """What the top level of a source defines: name -> the statements that do."""
    defined = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined[node.name] = [node]
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):  # `A, B = …` defines two names, `TABLE[key] = …` adds to one
                    if isinstance(name, ast.Name):
                        defined.setdefault(name.id, []).append(node)
    return defined


def _taken_from_chapters(part, source):
    """(chapter's name, name in it) of all that a statement takes by `chapter("NN").name`, or by another name of it."""
    known = {name: nodes[-1] for name, nodes in _definitions(source).items()}
    aliases = {}
    for node in [*known.values(), *ast.walk(part)]:
        if isinstance(node, ast.Assign):
            aliases |= _aliases(node)
    for node in ast.walk(part):
        if isinstance(node, ast.Attribute):
            name = node.value.id if isinstance(node.value, ast.Name) else None
            if place := aliases.get(name) or _named_chapter(node.value):
                yield place, node.attr


def _aliases(assignment):
    """What `A = chapter("01_vgg")` or `A, B = chapter("01_vgg"), chapter("02_resnet")` means: name -> chapter's name."""
    found = {}
    for target in assignment.targets:
        pairs = [(target, assignment.value)]
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            pairs = zip(target.elts, assignment.value.elts, strict=False)
        for name, value in pairs:
            if isinstance(name, ast.Name) and (place := _named_chapter(value)):
                found[name.id] = place
    return found


def _named_chapter(node):
    """The name in a call `chapter("01_vgg")` or `chapters.chapter("01_vgg")`, else None."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        function = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        return node.args[0].value if function == "chapter" else None


def seal(runs):
    """A checksum of the runs of a study, kept beside them: numbers that were edited by hand no longer match it."""
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()[:16]


def stale(chapter_name):
    """What is wrong with the committed results of a chapter, as a list of sentences."""
    problems = []
    for stem, study in studies(chapter_name).items():
        if not study.path.exists():
            problems.append(f"results/{stem}.json is missing (./course study {chapter_name})")
            continue
        found = study._read()
        if found["code"] != code_of(chapter_name, study.run.__name__):
            problems.append(
                f"results/{stem}.json was measured with other code (./course study {chapter_name} --restart)"
            )
        want = {(arm, seed) for arm in study.arms for seed in study.seeds}
        have = {(run["arm"], run["seed"]) for run in found["runs"] if study._is_current(run)}
        if want - have:
            problems.append(f"results/{stem}.json lacks {len(want - have)} of {len(want)} runs")
        if any("stand-in" in run["data"] for run in found["runs"]):
            problems.append(f"results/{stem}.json was measured on the stand-in")
    return problems


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="course study", description="Measure the studies of a chapter.")
    parser.add_argument("chapter")
    parser.add_argument("--restart", action="store_true", help="throw away what was measured before")
    options = parser.parse_args(arguments)
    try:
        found = studies(options.chapter)
        if not found:
            print(f"{options.chapter} defines no study.")
        for stem, study in found.items():
            study.measure(restart=options.restart)
            print(f"results/{stem}.json: {len(study.runs())} runs on {study.provenance()}")
    except ValueError as error:
        sys.exit(f"course study: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. What was measured is kept; the same command goes on from there.")


if __name__ == "__main__":
    from helpers import study  # under its own name, so that its Study is the class that chapters use

    study.main()

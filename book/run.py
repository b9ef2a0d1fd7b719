"""Run chapters from top to bottom, each in a kernel of its own.

A quick run cuts trainings to seconds and writes into `_build/run/`. A full run gives the committed notebook outputs.
"""

import asyncio
import hashlib
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress

from book import BUILD, Trouble, check, pairs, shown
from helpers import settings
from helpers.chapters import FOLDER, check_name, model_cells, names

RUNS = BUILD / "run"
JOBS = 2  # chapters at a time: two runs of one thread beat one run of two
MAX_OUTPUT = 2_000_000  # characters that a cell may print or show; a notebook of more cannot be committed

_running = {}  # thread's event loop -> its task


def add_arguments(parser):
    parser.description = "Run chapters from top to bottom."
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="for real: the notebooks get the outputs")
    parser.add_argument("--allow-standin", action="store_true", help="with --full: without real data too")
    parser.add_argument("--again", action="store_true", help="run also what is up to date")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"chapters at a time ({JOBS})")


def command(options):
    from book import build

    scripts = [FOLDER / f"{check_name(name)}.py" for name in options.names or names()]
    if options.full:
        return bool(full(scripts, options.allow_standin))
    if options.jobs < 1:
        raise Trouble(f"--jobs {options.jobs}: at least one chapter at a time.")
    failures = quick(scripts, jobs=options.jobs, again=options.again)
    return bool(build.command()) or bool(failures)


def quick(scripts, out=RUNS, jobs=JOBS, again=False, cell_timeout=600):
    """Run scripts in the quick profile into `out`, a line each; return how many failed. Pairs stay untouched.

    Those whose code, helpers and data are the same as at their last quick run are skipped, unless `again`.
    """
    must_be_writable(out)
    print("Quick profile: trainings are cut to seconds. Its numbers say that everything runs, no more.", flush=True)
    total, failures, standins, start = len(scripts), 0, 0, time.perf_counter()
    around = surroundings()
    state = {script: inputs(script, around) for script in scripts}
    kept = {} if again else {s: nb for s in scripts if (nb := last_run(out / f"{s.stem}.ipynb", state[s]))}
    standins += sum(map(pairs.uses_standin, kept.values()))
    if kept:
        print(f"{len(kept)} of {total} chapters are up to date in {shown(out)}/; --again runs them, too.", flush=True)
    waiting = [script for script in scripts if script not in kept]

    def one(script):
        began = time.perf_counter()
        nb = execute(script, "quick", cell_timeout, threads=threads(min(jobs, len(waiting))))
        nb.metadata["course"]["inputs"] = state[script]
        pairs.write({out / f"{script.stem}.ipynb": pairs.as_notebook(nb)})
        return nb, time.perf_counter() - began

    with closing(at_a_time(one, waiting, jobs)) as results:
        for done, (script, result) in enumerate(results, 1):
            place = f"{len(kept) + done}/{total}"
            if isinstance(result, Trouble):
                failures += 1
                print(f"{place:>6}  {script.stem:<24} FAILED\n{result}\n", flush=True)
                continue
            nb, seconds = result
            found = pairs.headlines(nb) or [{"text": "no headline", "data": "no data named"}]
            standins += pairs.uses_standin(nb)
            left = (time.perf_counter() - start) / done * (len(waiting) - done)
            text = f"{found[-1]['text']}  ({found[-1]['data']})"
            rest = f"  [{minutes(left)} left]" if done < len(waiting) else ""
            print(f"{place:>6}  {script.stem:<24}{seconds:6.1f} s  {text}{rest}", flush=True)
    if standins:
        print(
            f"{standins} of {total} chapters ran on the drawn stand-in, not on real data. "
            "./course data says how to get the real data."
        )
    print(f"Notebooks of this run, {minutes(time.perf_counter() - start)}: {shown(out)}/", flush=True)
    return failures


def full(scripts, allow_standin=False, cell_timeout=3600):
    """Run scripts for real, in place, one after the other; return how many have problems then.

    A failed run changes nothing: script and notebook are written together, at its end.
    """
    for folder in {script.parent for script in scripts}:
        must_be_writable(folder)
    bad = 0
    for number, script in enumerate(scripts, 1):
        print(f"{number}/{len(scripts)}  {script.stem}: full profile, some minutes ...", flush=True)
        start = time.perf_counter()
        ((_, nb),) = at_a_time(lambda script: _full(script, allow_standin, cell_timeout), [script], 1)
        if isinstance(nb, Trouble):
            raise nb
        found = pairs.headlines(nb)
        text = f"{found[-1]['text']}  ({found[-1]['data']})" if found else "no headline"
        print(f"{script.stem}: {time.perf_counter() - start:.0f} s  {text}", flush=True)
        messages = check.problems(script)
        print("".join(f"  {message}\n" for message in messages), end="", flush=True)
        bad += bool(messages)
    return bad


def must_be_writable(folder):
    """Raises Trouble where no file can be written: said before a chapter is computed, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise Trouble(
            f"{shown(folder)}/ cannot be written to: {error.strerror}. The notebooks go there; make room, "
            "or copy the course to a folder of yours."
        ) from None


def _full(script, allow_standin, cell_timeout):
    before = pairs.sound(script).read_bytes()
    tidied = pairs.tidied(script)
    nb = execute(script, "full", cell_timeout, forbid_standin=not allow_standin)
    if not allow_standin and not nb.metadata["course"]["real"]:
        raise Trouble(f"{script.stem} does not show that it ran on real data: end it with headline().")
    files = {script.with_suffix(".ipynb"): pairs.as_notebook(nb)}
    # who edited the script while it ran keeps the edits; `check` then says that they were not run
    if before == script.read_bytes() != tidied.encode():
        files[script] = tidied
    pairs.write(files)
    return nb


# ------------------------------------------------------------------------------------- one chapter


def execute(script, profile, cell_timeout, forbid_standin=False, threads=None):
    """Run a script's cells from top to bottom in a kernel of their own; return the notebook with outputs.

    The same script and the same outputs give the same bytes. Raises Trouble for a failing cell, with its source and
    traceback, and for one that shows more than MAX_OUTPUT characters; with `forbid_standin` also at the first output
    that comes from the stand-in. `threads`: for the kernel's arithmetic; all cores unless given. Call it in a thread
    that `at_a_time` has started: there it can be stopped.
    """
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb = pairs.stamp(pairs.read(script), script)
    pairs.clean(nb, {})

    def on_cell_executed(cell, cell_index, execute_reply):
        cell.outputs = merged(cell.outputs)
        if forbid_standin and any(pairs.STANDIN in pairs.printed(output) for output in cell.outputs):
            raise Trouble(
                "the data are the drawn stand-in, whose results must not replace those of the real data. "
                "Fetch the real data (./course data) or set COURSE_DATA; --allow-standin runs on regardless."
            )

    client = _client_class()(
        nb,
        timeout=cell_timeout,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        store_widget_state=False,
        shutdown_kernel="immediate",
        on_cell_executed=on_cell_executed,
        resources={"metadata": {"path": str(script.parent)}},
    )
    environment = dict(os.environ, COURSE_PROFILE=profile, COURSE_SILENT="1")
    if threads:
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    stopped = f"{script.stem} stopped in the {profile} profile."
    try:
        asyncio.run(_supervised(client, environment))
    except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError) as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        raise Trouble(f"{stopped}\n{client.excess or text}") from None
    except asyncio.CancelledError:
        raise Trouble(stopped) from None

    found = pairs.headlines(nb)
    course = {
        "code_sha": pairs.code_sha(nb),
        "cells_sha": pairs.cells_sha(nb),
        "profile": profile,
        "data": found[-1]["data"] if found else "",
        "real": bool(found) and found[-1]["real"] and not pairs.uses_standin(nb),
    }
    pairs.clean(nb, course)
    nb.metadata["course"]["outputs_sha"] = pairs.outputs_sha(nb)
    return nb


def _client_class():
    from nbclient import NotebookClient

    class Client(NotebookClient):
        """Ends a cell that shows more than MAX_OUTPUT; nbclient itself would take it all."""

        excess, _size = None, (None, 0)

        def output(self, outs, msg, display_id, cell_index):
            content = msg["content"]
            shown = [content.get("text", ""), *map(str, content.get("data", {}).values())]
            before = self._size[1] if self._size[0] == cell_index else 0
            self._size = cell_index, before + sum(map(len, shown))
            if self._size[1] <= MAX_OUTPUT:
                return super().output(outs, msg, display_id, cell_index)
            if not self.excess:
                self.excess = f"Cell {cell_index + 1} prints or shows more than {MAX_OUTPUT / 1e6:g} MB; show less."
                self.task_poll_for_reply.cancel()
            return None

    return Client


async def _supervised(client, environment):
    loop = asyncio.get_running_loop()
    _running[loop] = asyncio.current_task()
    try:
        await client.async_execute(env=environment)
    finally:
        del _running[loop]


def merged(outputs):
    """Outputs of a cell with its streams joined, one each for stdout and stderr, in the order of their first lines.

    Text that a carriage return or a backspace has overwritten is left out, as a terminal does. (nbclient's
    `coalesce_streams` takes time with the square of a line's length.)
    """
    kept, streams = [], {}
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif output.name in streams:
            streams[output.name].append(output.text)
        else:
            streams[output.name] = [output.text]
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = "\n".join(map(_on_screen, "".join(streams[output.name]).split("\n")))
    # the kernel sends them by two roads; who is first is chance
    for n in range(len(kept) - 1):
        if [kept[n].get("name"), kept[n + 1].get("name")] == ["stderr", "stdout"]:
            kept[n], kept[n + 1] = kept[n + 1], kept[n]
    return kept


def _on_screen(line):
    """A printed line as a terminal shows it in the end."""
    line = line.rstrip("\r").rpartition("\r")[2]
    if "\b" not in line:
        return line
    shown = []
    for letter in line:
        if letter != "\b":
            shown.append(letter)
        elif shown:
            shown.pop()
    return "".join(shown)


# ------------------------------------------------------------------------------- several at a time


def at_a_time(work, scripts, jobs):
    """Yield (script, result of `work(script)`, or the Trouble that it raised) as they come, `jobs` at a time.

    When it is interrupted, all kernels are ended before the interrupt goes on.
    """
    pool = ThreadPoolExecutor(max_workers=jobs)
    futures = {pool.submit(work, script): script for script in scripts}
    try:
        for future in as_completed(futures):
            error = future.exception()
            if error and not isinstance(error, Trouble):
                raise error
            yield futures[future], error or future.result()
    finally:  # also for an interrupt, or when nobody wants the rest
        pool.shutdown(wait=False, cancel_futures=True)
        stopped = set()  # once each: a second time would cut the ending of its kernel short
        while not all(future.done() for future in futures):
            for loop, task in list(_running.items()):
                if loop not in stopped:
                    stopped.add(loop)
                    with suppress(RuntimeError):  # it has ended by itself
                        loop.call_soon_threadsafe(task.cancel)
            time.sleep(0.05)


def threads(jobs):
    """How many threads each of `jobs` kernels gets; None for one alone, which may use what it likes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs) if jobs > 1 else None


def minutes(seconds):
    """A duration in words: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# -------------------------------------------------------------------------------------- up to date


def inputs(script, around):
    """A hash of all that decides what a quick run of a script gives."""
    return hashlib.sha256(around + script.read_bytes()).hexdigest()[:16]


def surroundings():
    """A digest of what all chapters rest on: models, helpers, results, weights, settings, and which data there are."""
    digest = hashlib.sha256()
    for name in names():
        digest.update(model_cells(FOLDER / f"{name}.py").encode())
    for folder in ("helpers", "results", "weights"):
        for path in sorted((settings.ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(settings.ROOT)}\0".encode() + path.read_bytes())
    digest.update(repr([settings.source(), *map(_listing, (settings.data_folder(), settings.cache_folder()))]).encode())
    return digest.digest()


def _listing(folder):
    """Names and sizes in a folder of data and one level below; what runs themselves keep there is left out."""
    if folder is None or not folder.is_dir():
        return None
    paths = [path for pattern in ("*", "*/*") for path in folder.glob(pattern)]
    return sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size if path.is_file() else 0)
        for path in paths
        if path.relative_to(folder).parts[0] != "prepared" and path.suffix != ".lock"
    )


def last_run(path, state):
    """The notebook of the last quick run, if it was made from this state; else None."""
    if not path.exists():
        return None
    try:
        nb = pairs.read_notebook(path)
    except Trouble:
        return None
    return nb if nb.metadata.get("course", {}).get("inputs") == state else None

"""Run, check and publish the chapters: `python -m helpers.course run|check|sync|book`.

A chapter is a pair. The script `chapters/NN_name.py` is the source; the notebook beside it holds the same
cells and the outputs of a full run. The notebook's metadata says what those outputs are worth:

    "course": {"code_sha": ..., "profile": "full", "data": "CIFAR-10, ...", "real": true}

Heavy imports are inside the functions: every chapter imports `headline` from here.
"""

import argparse
import ast
import hashlib
import os
import re
import subprocess
import sys
import time
from itertools import zip_longest

from helpers.chapters import FOLDER, check_name, names, skeleton
from helpers.headline import KEY as HEADLINE
from helpers.headline import headline  # noqa: F401
from helpers.settings import ROOT

BUILD = ROOT / "_build"
SHARED = ("tags", "mystnb", "jupyter", "lines_to_next_cell")  # cell_metadata_filter in pyproject.toml
WIDGET = "application/vnd.jupyter.widget-view+json"
STANDIN = "drawn stand-in for"  # how the provenance of drawn data begins

MAX_BYTES = 1_500_000
MAX_LINES = 40


class Trouble(Exception):
    """What a reader can mend; the message says how."""


# --------------------------------------------------------------------------------- reading the pairs


def jupytext_config():
    """The filters in pyproject.toml, wherever the pair lies."""
    from jupytext.config import load_jupytext_config

    return load_jupytext_config(str(FOLDER / "any.py"))


def read(path):
    """A script or notebook as a notebook, with only those settings of its cells that a pair shares."""
    import jupytext

    nb = jupytext.read(path, config=jupytext_config())
    for cell in nb.cells:
        cell.metadata = shared(cell.metadata)
    return nb


def shared(metadata):
    """A cell's settings that a pair shares, in the order in which a notebook keeps them."""
    return {key: metadata[key] for key in sorted(SHARED) if key in metadata}


def as_script(nb):
    """The script that JupyterLab would write from a notebook."""
    import jupytext

    return jupytext.writes(nb, fmt="py:percent", config=jupytext_config())


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def code_sha(nb):
    """A hash of everything that is executed: prose, comments and docstrings do not make outputs stale."""
    code = "\x00".join(_executed(cell.source) for cell in code_cells(nb))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _executed(source):
    try:
        return skeleton(ast.parse(source))
    except SyntaxError:  # a line for IPython alone, such as %timeit
        return source


def bundles(cell):
    """The mime bundles among a code cell's outputs."""
    return [output.data for output in cell.get("outputs", []) if "data" in output]


def headlines(nb):
    outputs = [output for cell in code_cells(nb) for output in cell.get("outputs", [])]
    return [output.metadata[HEADLINE] for output in outputs if HEADLINE in output.get("metadata", {})]


def printed(output):
    """The text that a reader can find in an output; image data left out."""
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [text for mime, text in output.get("data", {}).items() if mime.startswith("text/")]
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", "\n".join(map(str, parts)))


def uses_standin(nb):
    return any(STANDIN in printed(output) for cell in code_cells(nb) for output in cell.get("outputs", []))


# ------------------------------------------------------------------------------------------ running


def execute(script, profile, cell_timeout, forbid_standin=False):
    """Run a script's cells from top to bottom in a kernel of their own; return the notebook with outputs.

    The same script and the same outputs give the same bytes: ids follow from the cells' sources, and time
    stamps, versions and widget ids are left out. A failing cell raises Trouble with its source and traceback.
    With `forbid_standin` the run ends at the first output that comes from the stand-in.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb = read(script)
    nb.nbformat, nb.nbformat_minor = 4, 5
    seen = {}
    for cell in nb.cells:
        key = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[key] = seen.get(key, 0) + 1
        cell.id = key if seen[key] == 1 else f"{key}-{seen[key]}"

    def on_cell_executed(cell, cell_index, execute_reply):
        if forbid_standin and any(STANDIN in printed(output) for output in cell.outputs):
            raise Trouble(
                "the data are the drawn stand-in, whose results must not replace those of the real data. "
                "Fetch the real data (./course data) or set COURSE_DATA; --allow-standin runs on regardless."
            )

    client = NotebookClient(
        nb,
        timeout=cell_timeout,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        store_widget_state=False,
        coalesce_streams=True,
        on_cell_executed=on_cell_executed,
        resources={"metadata": {"path": str(script.parent)}},
    )
    try:
        client.execute(env=dict(os.environ, COURSE_PROFILE=profile, COURSE_SILENT="1"))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        raise Trouble(f"{script.stem} stopped in the {profile} profile.\n{text}") from None

    found = headlines(nb)
    config = jupytext_config()
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "course": {
            "code_sha": code_sha(nb),
            "profile": profile,
            "data": found[-1]["data"] if found else "",
            "real": bool(found) and found[-1]["real"] and not uses_standin(nb),
        },
        # JupyterLab writes these on saving; without them it refuses to open a script older than its notebook
        "jupytext": {
            "cell_metadata_filter": config.cell_metadata_filter,
            "notebook_metadata_filter": config.notebook_metadata_filter,
        },
    }
    for cell in nb.cells:
        cell.metadata = shared(cell.metadata)
        for bundle in bundles(cell):
            if len(bundle) > 1:  # its ids are random and need a kernel; what stands beside it does not
                bundle.pop(WIDGET, None)
    return nb


def save(nb, path):
    """Write a notebook so that a reader sees the old file or the new one, never half of it."""
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        nbformat.write(nbformat.from_dict(nb), part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def run_quick(scripts, out=BUILD / "run", cell_timeout=600):
    """Run scripts in the quick profile into `out`, a line each; return how many failed. Pairs stay untouched."""
    failures = standins = 0
    print("Quick profile: trainings are cut to seconds. Its numbers say that everything runs, no more.")
    for script in scripts:
        print(f"{script.stem:<24}", end="", flush=True)
        start = time.perf_counter()
        try:
            nb = execute(script, "quick", cell_timeout)
        except Trouble as trouble:
            failures += 1
            print(f"{time.perf_counter() - start:6.1f} s  FAILED\n{trouble}\n", flush=True)
            continue
        save(nb, out / f"{script.stem}.ipynb")
        found = headlines(nb) or [{"text": "no headline", "data": "no data named"}]
        standins += uses_standin(nb)
        print(f"{time.perf_counter() - start:6.1f} s  {found[-1]['text']}  ({found[-1]['data']})", flush=True)
    if standins:
        print(
            f"{standins} of {len(scripts)} chapters ran on the drawn stand-in, not on real data. "
            "./course data says how to get the real data."
        )
    print(f"Notebooks of this run: {shown(out)}/", flush=True)
    return failures


def run_full(scripts, allow_standin=False, cell_timeout=3600):
    """Run scripts for real, in place; return how many have problems then. A failed run changes nothing."""
    bad = 0
    for script in scripts:
        print(f"{script.stem}: full profile, some minutes ...", flush=True)
        start = time.perf_counter()
        tidy(script)
        nb = execute(script, "full", cell_timeout, forbid_standin=not allow_standin)
        found = headlines(nb)
        if not allow_standin and not nb.metadata["course"]["real"]:
            raise Trouble(f"{script.stem} does not show that it ran on real data: end it with course.headline().")
        save(nb, script.with_suffix(".ipynb"))
        text = f"{found[-1]['text']}  ({found[-1]['data']})" if found else "no headline"
        print(f"{script.stem}: {time.perf_counter() - start:.0f} s  {text}", flush=True)
        messages = problems(script)
        print("".join(f"  {message}\n" for message in messages), end="", flush=True)
        bad += bool(messages)
    return bad


def tidy(script):
    """Write a script's cell headers as JupyterLab would: it refuses to open a pair whose texts differ."""
    text = as_script(read(script))
    if text != script.read_text("utf-8"):
        script.write_text(text, "utf-8")


def sync(script):
    """Give the notebook the script's cells; outputs of cells that stayed are kept. The script always wins."""
    import nbformat
    from jupytext.combine import combine_inputs_with_outputs

    notebook = script.with_suffix(".ipynb")
    if not notebook.exists():
        raise Trouble(f"{notebook.name} does not exist yet: ./course run {script.stem} --full makes it.")
    tidy(script)
    old = nbformat.read(notebook, as_version=4)
    new = combine_inputs_with_outputs(read(script), old, fmt="py:percent")
    new.metadata, new.nbformat, new.nbformat_minor = old.metadata, 4, 5
    save(new, notebook)


# ----------------------------------------------------------------------------------------- checking


def first_difference(script_nb, notebook_nb):
    """What the two halves of a pair disagree on first, in words; None when they agree."""
    pairs = list(zip(script_nb.cells, notebook_nb.cells, strict=False))
    for number, (ours, theirs) in enumerate(pairs, 1):
        for what, get in {
            "type": lambda cell: cell.cell_type,
            "tags": lambda cell: list(cell.metadata.get("tags", [])),
            "settings": lambda cell: {k: cell.metadata.get(k) for k in ("mystnb", "jupyter")},
            "source": lambda cell: cell.source,
        }.items():
            a, b = get(ours), get(theirs)
            if a == b:
                continue
            if what == "source":  # show the first line that differs
                lines = zip_longest(a.split("\n"), b.split("\n"))
                a, b = next((x, y) for x, y in lines if x != y)
            return f"cell {number} has another {what} in the script ({a!r}) than in the notebook ({b!r})"
    ours, theirs = len(script_nb.cells), len(notebook_nb.cells)
    return None if ours == theirs else f"the script has {ours} cells, the notebook {theirs}"


def figures_without_alt(cell):
    """How many pictures in a cell's outputs have no description."""
    described = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    missing = 0
    for bundle in bundles(cell):
        page = bundle.get("text/html", "")
        missing += sum(not re.search(r'\balt="[^"]+"', tag) for tag in re.findall(r"<img\b[^>]*>", page))
        bare = any(mime.startswith("image/") for mime in bundle) and "<img" not in page
        missing += bare and not described
    return missing


MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])(?:/(?:home|root|Users|tmp|work|usr|opt|var|mnt|content)/|[A-Z]:\\+Users\b)[^\s'\"<]*"
)


def problems(script):
    """Everything that is wrong with a chapter's pair, one sentence each, with what to do about it."""
    import nbformat

    name, notebook = script.stem, script.with_suffix(".ipynb")
    rerun = f"./course run {name} --full"
    if not notebook.exists():
        return [f"{name}: {notebook.name} is missing; {rerun}"]
    source, nb = read(script), nbformat.read(notebook, as_version=4)
    code = code_cells(nb)
    outputs = [(n, output) for n, cell in enumerate(nb.cells, 1) for output in cell.get("outputs", [])]
    course = nb.metadata.get("course", {})
    found = []

    def say(condition, message):
        if condition:
            found.append(f"{name}: {message}")

    difference = first_difference(source, nb)
    say(difference, f"{difference}; ./course sync {name} (the script wins)")
    say(
        not difference and as_script(read(notebook)) != script.read_text("utf-8"),
        f"the layout of the script has changed, and JupyterLab may refuse to open it; ./course sync {name}",
    )
    say(course.get("code_sha") != code_sha(source), f"the outputs are older than the code; {rerun}")
    say(
        [cell.execution_count for cell in code] != list(range(1, len(code) + 1)),
        f"the notebook was not run once from top to bottom; {rerun}",
    )
    say(course.get("profile") != "full", f"the outputs are of the {course.get('profile')} profile; {rerun}")
    say(
        not course.get("real") or uses_standin(nb),
        f"the outputs do not come from the real data ({course.get('data') or 'none named'}); {rerun}",
    )
    say(
        nb.metadata.get("language_info") != {"name": "python"}
        or any(WIDGET in bundle and len(bundle) > 1 for cell in code for bundle in bundles(cell)),
        f"the notebook was saved by an editor after its full run; {rerun}",
    )
    heads = len(headlines(nb))
    say(heads != 1, f"{heads} headlines; the recap calls helpers.course.headline once")
    size = notebook.stat().st_size
    say(size > MAX_BYTES, f"{notebook.name} has {size / 1e6:.2f} MB; at most {MAX_BYTES / 1e6} MB")
    for n, output in outputs:
        expected = "raises-exception" in nb.cells[n - 1].metadata.get("tags", [])
        error = output.output_type == "error"
        say(error and not expected, f"cell {n} ended in an error: {output.get('ename')}")
        text = printed(output)
        path = MACHINE_PATH.search(text)
        say(path and not error, f"cell {n} shows a path of this machine: {path and path[0]}")
        say("Warning:" in text, f"cell {n} shows a warning: {warning_line(text)}")
    for n, cell in enumerate(nb.cells, 1):
        missing = figures_without_alt(cell)
        say(missing, f"cell {n} has {missing} picture(s) without a description (alt text)")
    for n, cell in enumerate(source.cells, 1):
        lines = len(cell.source.splitlines())
        say(
            cell.cell_type == "code" and lines > MAX_LINES,
            f"cell {n} has {lines} lines of code; split it, at most {MAX_LINES} are read in one go",
        )
    return found


def warning_line(text):
    return next((line.strip() for line in text.splitlines() if "Warning:" in line), "")


# --------------------------------------------------------------------------------------- publishing


def book(out=BUILD / "html", source=ROOT):
    """Build the book from the committed notebooks, warnings as errors. Returns Sphinx's exit code."""
    # not in parallel (-j): an extension that cannot warns about it, and that would be an error
    arguments = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(out.parent / ".doctrees")]
    return subprocess.call([sys.executable, "-m", "sphinx", *arguments, str(source), str(out)])


def build_book():
    start, code = time.perf_counter(), book()
    where = shown(BUILD / "html" / "index.html")
    if code == 0:
        print(f"Book ({time.perf_counter() - start:.0f} s): {where}")
    else:
        print(f"The book has the problems above. As far as it got: {where}", file=sys.stderr)
    return code


def shown(path):
    """A path as a reader in the project's folder would type it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main(argv=None):
    parser = argparse.ArgumentParser(prog="course", description="Run, check and publish the chapters.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="run chapters from top to bottom")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verb.add_argument("--full", action="store_true", help="for real: the notebooks get the outputs")
    verb.add_argument("--allow-standin", action="store_true", help="with --full: without real data too")
    verb = verbs.add_parser("check", help="pairs agree, outputs are fresh and fit to print")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verb = verbs.add_parser("sync", help="carry text edits from the scripts to the notebooks")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verbs.add_parser("book", help="build the book")
    arguments = parser.parse_args(argv)
    if arguments.verb == "book":
        return build_book()
    try:
        scripts = [FOLDER / f"{check_name(name)}.py" for name in arguments.names or names()]
        if arguments.verb == "run" and arguments.full:
            return bool(run_full(scripts, arguments.allow_standin))
        if arguments.verb == "run":
            failures = run_quick(scripts)
            return bool(build_book()) or bool(failures)
        if arguments.verb == "sync":
            for script in scripts:
                sync(script)
        from helpers import study, weights

        messages = [message for script in scripts for message in problems(script)]
        for script in scripts:
            name = script.stem
            messages += [f"{name}: {message}" for message in study.stale(name) + weights.stale(name)]
        if not arguments.names:
            messages += [message for name in weights.SHARED for message in weights.stale(name)]
        print("\n".join(messages) or f"{len(scripts)} chapter(s): script and notebook agree, outputs are fresh.")
        return bool(messages)
    except (Trouble, ValueError) as trouble:
        print(f"course: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: stopped; nothing was overwritten.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

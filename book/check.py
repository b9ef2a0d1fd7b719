"""What is wrong with a chapter's pair: one small rule for each fault.

A rule yields messages that say what is wrong and what mends it. Rules of a script get the script alone, rules of a pair
get both halves, so that a damaged notebook does not hide what is wrong with its script.
"""

import ast
import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book import Trouble, links, pairs, setup_cell
from book.pairs import bundles, code_cells, headlines, printed
from helpers.chapters import FOLDER, check_name, names
from helpers.settings import ROOT

MAX_BYTES = 1_500_000
MAX_LINES = 40

MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])(?:/(?:home|root|Users|tmp|work|usr|opt|var|mnt|content)/|[A-Z]:\\+Users\b)[^\s'\"<]*"
)


@dataclass(frozen=True)
class Pair:
    """Both halves of a chapter, read: `source` from the script, `notebook` with everything that is in it."""

    script: Path
    source: Any
    notebook: Any = None

    @property
    def name(self):
        return self.script.stem

    @property
    def course(self):
        return self.notebook.metadata.get("course", {})

    @property
    def rerun(self):
        return f"./course run {self.name} --full"

    @property
    def code(self):
        return code_cells(self.notebook)

    def outputs(self):
        """(number of the cell, cell, output) of every output."""
        for number, cell in enumerate(self.notebook.cells, 1):
            for output in cell.get("outputs", []):
                yield number, cell, output


# ----------------------------------------------------------------------------- rules of the script


def parses(pair):
    for number, cell in enumerate(pair.source.cells, 1):
        if cell.cell_type == "code" and (error := syntax_error(cell.source)):
            yield f"cell {number} is not Python: {error.msg} (its line {error.lineno})"


def syntax_error(source):
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        ast.parse(TransformerManager().transform_cell(source))  # %timeit and !ls are fine
    except SyntaxError as error:
        return error


def short_cells(pair):
    for number, cell in enumerate(pair.source.cells, 1):
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        if cell.cell_type == "code" and lines > MAX_LINES:
            yield f"cell {number} has {lines} lines of code; split it, at most {MAX_LINES} are read in one go"


def stamped(pair):
    if not setup_cell.is_stamped(pair.source):
        yield f"the setup cell is not the one that book/setup_cell.py gives; ./course sync {pair.name}"


def linked(pair):
    written = copy.deepcopy(pair.source)
    try:
        links.stamp(written, int(pair.name[:2]))
    except Trouble as trouble:
        yield str(trouble)
        return
    for number, (ours, theirs) in enumerate(zip(pair.source.cells, written.cells, strict=True), 1):
        if ours.source != theirs.source:
            yield f"cell {number} has a citation or an equation that is no link; ./course sync {pair.name}"


# ------------------------------------------------------------------------------- rules of the pair


def same_cells(pair):
    if difference := pairs.first_difference(pair.source, pair.notebook):
        yield f"{difference}; {cure(pair)}"


def cure(pair):
    """What makes the two halves agree again without losing what was written in one of them."""
    edited = pairs.edited(pair.script, pair.source, pair.notebook)
    by_script, by_notebook = f"./course sync {pair.name}", f"./course sync {pair.name} --from-notebook"
    if edited is None:
        return f"{by_script} (the script wins) or {by_notebook} (the notebook wins)"
    if len(edited) == 2:
        return f"both were edited: carry one's edits over by hand, then {by_script} --force or {by_notebook} --force"
    if edited == [pair.script]:
        return f"{by_script} (the script was edited)"
    return f"{by_notebook} (the notebook was edited)"


def same_layout(pair):
    if pairs.first_difference(pair.source, pair.notebook):
        return  # said by another rule
    written = pairs.as_script(pairs.clean(copy.deepcopy(pair.notebook), {}))  # as JupyterLab would on saving
    if written != pair.script.read_text("utf-8"):
        yield f"the layout of the script has changed, and JupyterLab may refuse to open it; ./course sync {pair.name}"


def fresh(pair):
    if pair.course.get("code_sha") != pairs.code_sha(pair.source):
        yield f"the outputs are older than the code; {pair.rerun}"


def run_in_order(pair):
    if [cell.execution_count for cell in pair.code] != list(range(1, len(pair.code) + 1)):
        yield f"the notebook was not run once from top to bottom; {pair.rerun}"


def full_profile(pair):
    if pair.course.get("profile") != "full":
        yield f"the outputs are of the {pair.course.get('profile')} profile; {pair.rerun}"


def real_data(pair):
    if not pair.course.get("real") or pairs.uses_standin(pair.notebook):
        yield f"the outputs do not come from the real data ({pair.course.get('data') or 'none named'}); {pair.rerun}"


def of_the_full_run(pair):
    if pair.course.get("outputs_sha") != pairs.outputs_sha(pair.notebook):
        yield f"the outputs are not known to be those of the full run; an editor may have run cells; {pair.rerun}"


def untouched(pair):
    kept = pairs.clean(copy.deepcopy(pair.notebook), pair.course)
    if pairs.as_notebook(kept) != pair.script.with_suffix(".ipynb").read_text("utf-8"):
        yield f"the notebook was saved by an editor, which left its own data there; ./course sync {pair.name}"


def one_headline(pair):
    if (found := len(headlines(pair.notebook))) != 1:
        yield f"{found} headlines; the recap calls helpers.headline.headline once"


def small(pair):
    notebook = pair.script.with_suffix(".ipynb")
    if (size := notebook.stat().st_size) > MAX_BYTES:
        yield f"{notebook.name} has {size / 1e6:.2f} MB; at most {MAX_BYTES / 1e6} MB"


def no_errors(pair):
    for number, cell, output in pair.outputs():
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            yield f"cell {number} ended in an error: {output.get('ename')}"


def no_paths(pair):
    for number, _, output in pair.outputs():
        path = MACHINE_PATH.search(printed(output))
        if path and output.output_type != "error":
            yield f"cell {number} shows a path of this machine: {path[0]}"


def no_warnings(pair):
    for number, _, output in pair.outputs():
        if line := next((line.strip() for line in printed(output).splitlines() if "Warning:" in line), None):
            yield f"cell {number} shows a warning: {line}"


def described(pair):
    for number, cell in enumerate(pair.notebook.cells, 1):
        if missing := figures_without_alt(cell):
            yield f"cell {number} has {missing} picture(s) without a description (alt text)"


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


SCRIPT_RULES = (parses, short_cells, stamped, linked)
PAIR_RULES = (
    same_cells,
    same_layout,
    fresh,
    run_in_order,
    full_profile,
    real_data,
    of_the_full_run,
    untouched,
    one_headline,
    small,
    no_errors,
    no_paths,
    no_warnings,
    described,
)


# ------------------------------------------------------------------------------------------- all


def found(script):
    """(rule or None, message) for everything that is wrong with a chapter's pair; None for a file that is damaged."""
    source = notebook = None
    path = script.with_suffix(".ipynb")
    try:
        source = pairs.read(script)
    except Trouble as trouble:
        yield None, str(trouble)
    try:
        notebook = pairs.read_notebook(path)
    except Trouble as trouble:
        yield None, str(trouble) if path.exists() else f"{path.name} is missing; ./course run {script.stem} --full"
    pair = Pair(script, source, notebook)
    rules = SCRIPT_RULES if source else ()
    for rule in rules + (PAIR_RULES if source and notebook else ()):
        yield from ((rule, message) for message in rule(pair))


def problems(script):
    """Everything that is wrong with a chapter's pair, one sentence each, with what to do about it."""
    return [f"{script.stem}: {message}" for _, message in found(script)]


def damaged(root=ROOT):
    """What has happened to committed files outside the pairs: prose, results, weights."""
    patterns = ("*.md", "*.yml", "*.bib", "pages/*.md", "pages/*.json", "results/*.json", "weights/*.safetensors")
    paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return [fault for path in paths if (fault := pairs.damage(path))]


def rests_on(name):
    """(faults, remarks) of the studies and trained weights behind a chapter."""
    from helpers import study, weights

    faults, remarks = [], []
    for kept, ask in [(faults, study.stale), (faults, weights.stale), (remarks, study.unfinished)]:
        try:
            kept += ask(name)
        except Exception as error:  # a damaged file or a chapter that cannot be read must not hide the others
            message = " ".join(str(error).split()) or "no more is known"
            if not any(message in fault for fault in faults):  # all three may come upon the same
                faults.append(f"its studies and weights cannot be checked ({type(error).__name__}: {message})")
    return faults, remarks


def add_arguments(parser):
    parser.description = "Script and notebook agree, outputs are fresh and fit to print."
    parser.add_argument("names", nargs="*", metavar="NAME")


def command(options):
    messages, remarks = [] if options.names else damaged(), []
    chosen = [check_name(name) for name in options.names] or names()
    for name in chosen:
        messages += problems(FOLDER / f"{name}.py")
        faults, notes = rests_on(name)
        messages += [f"{name}: {fault}" for fault in faults]
        remarks += [f"{name}: {note}" for note in notes]
    print("\n".join([*messages, *(f"remark: {remark}" for remark in remarks)]), end="\n" if messages or remarks else "")
    if not messages:
        print(f"{len(chosen)} chapter(s): script and notebook agree, outputs are fresh.")
    return bool(messages)

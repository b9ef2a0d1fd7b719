"""A chapter is a pair: the script `chapters/NN_name.py` is the source, the notebook beside it has the outputs.

The notebook's metadata says what its outputs are worth: `code_sha`, of the code that made them; `outputs_sha`, of
themselves; `profile`, `data` and `real`, whether they are of a full run and of real data. `cells_sha` is of the cells
on which script and notebook last agreed, and tells which of the two was edited since.
"""

import ast
import hashlib
import json
import os
import re
from contextlib import suppress
from itertools import zip_longest

from book import Trouble, links, setup_cell, shown
from helpers import headline
from helpers.chapters import FOLDER, skeleton

SHARED = ("tags", "mystnb", "jupyter", "lines_to_next_cell")  # cell_metadata_filter in pyproject.toml
WIDGET = "application/vnd.jupyter.widget-view+json"
STANDIN = "drawn stand-in for"  # how the provenance of drawn data begins

# A line of seven equal signs can be a heading in Markdown; the other two markers cannot be anything else.
_CONFLICT = re.compile(r'^(?:\s*"|# )?(?:<{7}|>{7})(?: |$)', re.MULTILINE)
_POINTER = b"version https://git-lfs.github.com/spec"


# ---------------------------------------------------------------------------------------- reading


def damage(path):
    """What has happened to a committed file that is not as anyone wrote it, as a sentence; None for a sound one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return f"{shown(path)} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if content.startswith(_POINTER):
        return f"{path.name} is a pointer of Git LFS and not the file itself; git lfs pull"
    if path.suffix == ".safetensors":
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{path.name} is not text in UTF-8 (byte {error.start}); git checkout -- {shown(path)}"
    if found := _CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        return f"{path.name} has the markers of a merge conflict (line {line}); choose one side and remove them"
    if path.suffix == ".json":
        try:
            json.loads(text)
        except ValueError as error:
            return f"{path.name} is not JSON, or only a part of it ({error}); git checkout -- {shown(path)}"
    return None


def sound(path):
    """The same path. Raises Trouble for a file that is damaged."""
    if fault := damage(path):
        raise Trouble(fault)
    return path


def read(path):
    """A script or notebook as a notebook, with only those settings of its cells that a pair shares."""
    nb = read_script(path) if path.suffix == ".py" else read_notebook(path)
    for cell in nb.cells:
        cell.metadata = shared(cell.metadata)
    return nb


def read_script(path):
    import jupytext

    if not sound(path).read_text("utf-8").strip():
        raise Trouble(f"{path.name} is empty; ./course sync {path.stem} --from-notebook makes it from the notebook")
    return jupytext.read(path, config=jupytext_config())


def read_notebook(path):
    """The notebook with everything in it. Raises Trouble for a file that is none."""
    import nbformat

    try:
        return nbformat.read(sound(path), as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise Trouble(
            f"{path.name} is not a notebook, or only a part of one ({first}); git checkout -- {shown(path)}"
        ) from None


def jupytext_config():
    """The filters in pyproject.toml, wherever the pair lies."""
    from jupytext.config import load_jupytext_config

    return load_jupytext_config(str(FOLDER / "any.py"))


def shared(metadata):
    """A cell's settings that a pair shares, in the order in which a notebook keeps them."""
    return {key: metadata[key] for key in sorted(SHARED) if key in metadata}


# ------------------------------------------------------------------------------- what a pair holds


def code_cells(nb):
    """The cells that are executed; the setup cell is not, except on Colab."""
    return [
        cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip() and not setup_cell.is_setup(cell)
    ]


def code_sha(nb):
    """A hash of everything that is executed: prose, comments and docstrings do not make outputs stale."""
    return _sha("\x00".join(_executed(cell.source) for cell in code_cells(nb)))


def outputs_sha(nb):
    """A hash of everything that a reader sees of the outputs: what an editor adds around them does not count."""
    outputs = [[_content(output) for output in _outputs(cell)] for cell in code_cells(nb)]
    return _sha(json.dumps(outputs, sort_keys=True))


def cells_sha(nb):
    """A hash of all that a pair shares: kinds, sources and settings of the cells."""
    cells = [cell for cell in nb.cells if not setup_cell.is_setup(cell)]
    settings = [{k: v for k, v in shared(cell.metadata).items() if k != "lines_to_next_cell"} for cell in cells]
    return _sha(json.dumps([(cell.cell_type, cell.source, kept) for cell, kept in zip(cells, settings, strict=True)]))


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _executed(source):
    try:
        return skeleton(ast.parse(source))
    except SyntaxError:  # a line for IPython alone, such as %timeit
        return source


def _content(output):
    kept = {key: output[key] for key in ("output_type", "name", "text", "ename", "evalue") if key in output}
    data = {mime: content for mime, content in output.get("data", {}).items() if mime != WIDGET}
    return kept | {"data": data, headline.KEY: output.get("metadata", {}).get(headline.KEY)}


def _outputs(cell):
    return cell.get("outputs", [])


def bundles(cell):
    """The mime bundles among a code cell's outputs."""
    return [output.data for output in _outputs(cell) if "data" in output]


def headlines(nb):
    outputs = [output for cell in code_cells(nb) for output in _outputs(cell)]
    return [output.metadata[headline.KEY] for output in outputs if headline.KEY in output.get("metadata", {})]


def printed(output):
    """The text that a reader can find in an output; image data left out."""
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [text for mime, text in output.get("data", {}).items() if mime.startswith("text/")]
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", "\n".join(map(str, parts)))


def uses_standin(nb):
    return any(STANDIN in printed(output) for cell in code_cells(nb) for output in _outputs(cell))


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


# ---------------------------------------------------------------------------------------- writing


def write(files):
    """Write {path: text or bytes} so that a reader sees all old files or all new ones, and never half of one.

    All are written beside their places first; a full disk or a folder that cannot be written to changes nothing.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in files}
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = files[path]
            part.write_bytes(content if isinstance(content, bytes) else content.encode())
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise Trouble(f"{shown(path)} could not be written: {error.strerror}. Nothing was changed.") from None
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()


def as_notebook(nb):
    """The text of a notebook's file."""
    import nbformat

    return nbformat.writes(nbformat.from_dict(nb)) + "\n"


def as_script(nb):
    """The script that JupyterLab would write from a notebook."""
    import jupytext

    return jupytext.writes(nb, fmt="py:percent", config=jupytext_config())


def clean(nb, course):
    """Leave, in place, what the course keeps of a notebook: no trace of an editor, ids that follow from the sources."""
    config = jupytext_config()
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "course": course,
        # JupyterLab writes these on saving; without them it refuses to open a script older than its notebook
        "jupytext": {
            "cell_metadata_filter": config.cell_metadata_filter,
            "notebook_metadata_filter": config.notebook_metadata_filter,
        },
    }
    identify(nb)
    for cell in nb.cells:
        cell.metadata = shared(cell.metadata)
        for output in _outputs(cell):
            if "metadata" in output:  # a mime type's own settings, such as a picture's width, stay
                output.metadata = {k: v for k, v in output.metadata.items() if k == headline.KEY or "/" in k}
        for bundle in bundles(cell):
            if len(bundle) > 1:  # its ids are random and need a kernel; what stands beside it does not
                bundle.pop(WIDGET, None)
    return nb


def identify(nb):
    """Name every cell after its source, so that the same chapter gives the same bytes."""
    seen = {}
    for cell in nb.cells:
        key = _sha(f"{cell.cell_type}\n{cell.source}")[:8]
        seen[key] = seen.get(key, 0) + 1
        cell.id = key if seen[key] == 1 else f"{key}-{seen[key]}"


def tidied(script):
    """A script's text with cell headers as JupyterLab writes them (it refuses to open a pair whose texts differ),
    and with what `stamp` writes."""
    return as_script(stamp(read(script), script))


def stamp(nb, script):
    """Write into a chapter, in place, what `./course sync` writes there: the setup cell, and citations as links."""
    setup_cell.stamp(nb)
    links.stamp(nb, int(script.stem[:2]))
    return nb


# ------------------------------------------------------------------------------------ carrying over


def edited(script, source, nb):
    """Which halves say something else than when they last agreed: a list of paths; None where nobody knows."""
    agreed = nb.metadata.get("course", {}).get("cells_sha")
    if agreed is None:
        return None
    halves = {script: source, script.with_suffix(".ipynb"): nb}
    return [path for path, half in halves.items() if half is None or cells_sha(half) != agreed]


def sync(script, force=False):
    """Give the notebook the script's cells; outputs of cells that stayed are kept.

    Raises Trouble when that would lose what was written in the notebook, unless with `force`.
    """
    notebook = script.with_suffix(".ipynb")
    if not notebook.exists():
        raise Trouble(f"{notebook.name} does not exist yet: ./course run {script.stem} --full makes it.")
    source, old = read(script), read_notebook(notebook)
    lost = cells_sha(source) != cells_sha(old) and notebook in (edited(script, source, old) or [])
    if lost and not force:
        raise Trouble(
            f"{notebook.name} was edited. ./course sync {script.stem} --from-notebook takes its cells into the script; "
            "--force drops them."
        )
    _carry(source, script, old)


def sync_from(origin, script, force=False):
    """Give the script the cells of the notebook `origin`; the committed notebook keeps its outputs.

    Raises Trouble when that would lose what was written in the script since, unless with `force`.
    """
    notebook = script.with_suffix(".ipynb")
    theirs = read_notebook(origin)
    agreed = theirs.metadata.get("course", {}).get("cells_sha")
    try:
        ours = read(script)
    except Trouble:  # damaged or empty: the notebook is the cure
        ours = None
    lost = agreed and ours and cells_sha(ours) not in (agreed, cells_sha(theirs))
    if lost and not force:
        raise Trouble(
            f"{script.name} was edited, too, since the notebook was made from it. Carry those edits over by hand, "
            "then --force lets the notebook win."
        )
    old = theirs if origin == notebook or not notebook.exists() else read_notebook(notebook)
    source = clean(read(origin), {})
    source.metadata = {"kernelspec": source.metadata["kernelspec"]}  # the script's header
    _carry(source, script, old)


def _carry(source, script, old):
    """Write both halves with the cells of `source` and the outputs of `old`, where that changes them."""
    from jupytext.combine import combine_inputs_with_outputs

    stamp(source, script)
    files = {script: as_script(source)}
    new = combine_inputs_with_outputs(source, old, fmt="py:percent")
    course = old.metadata.get("course", {}) | {"cells_sha": cells_sha(source)}
    files[script.with_suffix(".ipynb")] = as_notebook(clean(new, course))
    write({path: text for path, text in files.items() if not path.exists() or path.read_bytes() != text.encode()})

"""`./course lab`: JupyterLab on a copy of the chapters, so that running one never overwrites committed outputs."""

import os
import shutil
import sys

from book import BUILD, Trouble, pairs, shown
from helpers.chapters import FOLDER
from helpers.settings import ROOT

LAB = BUILD / "lab"
CHAPTERS = LAB / "chapters"


def add_arguments(parser):
    parser.description = "JupyterLab on a copy of the chapters. Unknown options go to JupyterLab."
    parser.set_defaults(more=[])


def command(options):
    for line in prepare():
        print(line, flush=True)
    print(f"Your copies: {shown(CHAPTERS)}/. Run and change them as you like; the book stays as it is.")
    print("To carry an edit into the book: ./course sync NAME --from-lab", flush=True)
    arguments = [f"--ServerApp.root_dir={LAB}", "--LabApp.default_url=/lab/tree/chapters", *options.more]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *arguments])


def prepare(lab=LAB, chapters=FOLDER):
    """Copy what is new into `lab`; copies that somebody has edited stay, and are told of, as a list of lines."""
    (lab / "chapters").mkdir(parents=True, exist_ok=True)
    for page in ("pyproject.toml", *(path.relative_to(ROOT) for path in ROOT.glob("pages/*.md"))):  # settings, links
        (lab / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, lab / page)
    told = []
    for notebook in sorted(chapters.glob("[0-9][0-9]_*.ipynb")):
        try:
            told += renew(notebook, lab / "chapters" / notebook.name)
        except Trouble as trouble:  # one that is damaged must not keep a reader from the others
            told.append(str(trouble))
    return told


def renew(notebook, ours):
    """Copy a chapter, unless the copy that is there has its cells or somebody's edits; yields what there is to tell."""
    if ours.exists() and is_edited(ours):
        if not same_cells(notebook, ours) and base(notebook) != base(ours):
            yield f"{ours.name}: the chapter has changed; your edited copy stays. To start anew, remove {shown(ours)}."
    elif not ours.exists() or not same_cells(notebook, ours):
        copy(notebook, ours)


def copy(notebook, ours):
    """The pair, the script first: JupyterLab takes the newer half for the source of the text."""
    for path, place in ((notebook.with_suffix(".py"), ours.with_suffix(".py")), (notebook, ours)):
        shutil.copyfile(path, place)


def base(notebook):
    """The hash of the cells that a copy was made from."""
    return pairs.read_notebook(notebook).metadata.get("course", {}).get("cells_sha")


def is_edited(ours):
    """Whether a copy says something else than the chapter that it was made from; a damaged one counts as edited."""
    try:
        nb = pairs.read_notebook(ours)
    except Trouble:
        return True
    return pairs.cells_sha(nb) != nb.metadata.get("course", {}).get("cells_sha")


def same_cells(notebook, ours):
    return pairs.cells_sha(pairs.read_notebook(notebook)) == pairs.cells_sha(pairs.read_notebook(ours))

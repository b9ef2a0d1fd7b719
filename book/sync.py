"""`./course sync`: carry edits of a chapter's text from one half of its pair to the other, outputs kept."""

from book import Trouble, check, lab, pairs
from helpers.chapters import FOLDER, check_name, names


def add_arguments(parser):
    parser.description = "Carry edits of the text from script to notebook, or the other way. Outputs stay."
    parser.add_argument("names", nargs="*", metavar="NAME")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--from-notebook", action="store_true", help="from the notebook, as an editor has left it")
    origin.add_argument("--from-lab", action="store_true", help="from the copy that ./course lab works on")
    parser.add_argument("--force", action="store_true", help="even if that drops edits of the other half")


def command(options):
    backwards = options.from_notebook or options.from_lab
    if backwards and not options.names:
        raise Trouble(f"say which chapter: ./course sync NAME --from-{'lab' if options.from_lab else 'notebook'}")
    chosen = [check_name(name) for name in options.names] or names()
    messages = []
    for script in (FOLDER / f"{name}.py" for name in chosen):
        try:
            if backwards:
                folder = lab.CHAPTERS if options.from_lab else FOLDER
                pairs.sync_from(folder / f"{script.stem}.ipynb", script, options.force)
            else:
                pairs.sync(script, options.force)
        except Trouble as trouble:  # one chapter's must not keep the others from being done
            messages.append(f"{script.stem}: {trouble}")
        else:
            messages += check.problems(script)
    print("\n".join(messages) or f"{len(chosen)} chapter(s): script and notebook agree, outputs are fresh.")
    return bool(messages)

"""Sphinx's view of _config.yml, the one configuration of the book, so that any Sphinx can build it.

Jupyter Book 1, which reads that file by itself, makes the same pages but holds Sphinx at version 7.
"""

import os
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))

project = html_title = CONFIG["title"]
author = CONFIG["author"]
copyright = CONFIG["copyright"]
exclude_patterns = CONFIG["exclude_patterns"]

extensions = [
    "sphinx_togglebutton",
    "sphinx_copybutton",
    "myst_nb",
    "sphinx_design",
    "sphinx_external_toc",
    "sphinxcontrib.bibtex",
]
for _name, _folder in CONFIG["sphinx"]["local_extensions"].items():
    sys.path.append(str(ROOT / _folder))
    extensions.append(_name)

external_toc_path = "_toc.yml"
external_toc_exclude_missing = CONFIG["only_build_toc_files"]
nb_execution_mode = CONFIG["execute"]["execute_notebooks"]
myst_enable_extensions = CONFIG["parse"]["myst_enable_extensions"]
bibtex_bibfiles = CONFIG["bibtex_bibfiles"]

html_theme = "sphinx_book_theme"
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search already
    **CONFIG["html"],
}

# The public address of the course, such as https://github.com/NAME/PROJECT; `./course book` finds it. Without one, no
# button leads anywhere.
if repository := os.environ.get("COURSE_REPOSITORY"):
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": "bitbucket.org" not in repository,
        "launch_buttons": {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"},
    }
    if repository.startswith("https://github.com/"):
        html_theme_options["launch_buttons"]["colab_url"] = "https://colab.research.google.com"

globals().update(CONFIG["sphinx"]["config"])

"""A small chapter that tests of the pairs run, break and mend."""

import nbformat

from book import pairs

SCRIPT = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small chapter

# %%
import os
from types import SimpleNamespace
from uuid import uuid4

from IPython.display import HTML, display

from helpers.headline import headline


# %% tags=["model"]
def double(x):
    return 2 * x


# %% tags=["nbval-check-output"]
double(21)

# %%
print(os.environ["COURSE_PROFILE"], os.environ["COURSE_SILENT"])
slider = {"application/vnd.jupyter.widget-view+json": {"model_id": uuid4().hex}, "text/html": "<input>"}
display(slider, raw=True)
display(HTML('<figure><img src="data:image/webp;base64,/tmp/abcd" alt="A dot"></figure>'))

# %%
real = os.environ.get("COURSE_SOURCE") != "standin"


class Provenance(SimpleNamespace):
    def __str__(self):
        return "CIFAR-10, 9 images" if self.real else "drawn stand-in for CIFAR-10, seed 0, 9 images"


headline("accuracy 42 %", Provenance(real=real))
"""


def notebook(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def outputs(nb, number):
    return pairs.code_cells(nb)[number].outputs

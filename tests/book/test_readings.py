"""What the text says of an output stands in an output: a number that a new run no longer prints is found here.

Only where a number could be of the paper (the paragraph names it, a table, a figure or a work) does this not look.
"""

import re

import nbformat
import pytest

from helpers import chapters
from helpers.settings import ROOT

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
MEASURED = re.compile(r"(?<![\w.(])\d+(?:,\d{3})*\.\d+(?!\d)(?!\)\])|(?<![\w.])\d+(?= ?%)")
FROM_ELSEWHERE = re.compile(r"paper|author|Table|Figure|[Ss]ection|\[\[")

# Neither in an output nor of the paper: worked out in the sentence itself, or of another chapter or program.
WORKED_OUT = {
    "02_resnet": ["1.17", "19.6"],  # the root of 2 - 2/pi; VGG-19's multiply-adds, of chapter 1
    "03_densenet": ["1.7", "7.2"],  # ResNet-110; 36/5
    "04_efficientnet": [
        "0.001",
        "0.00001",
        "38.4",
        "19.2",
        "17.3",
        "28.8",
        "134.4",
        "230.4",
    ],  # torchvision's eps; an exercise
    "05_mobilenet": ["9.4"],  # 9 * 1024 * 1024
    "06_senet": ["4.27"],  # an exercise's count
    "07_cbam": ["12.5"],  # one of eight
    "08_feature_distillation": ["9.4", "76.55", "78.05", "78.48", "73.5", "74.32"],  # an exercise; MMRazor's, linked
    "09_assembled_cnn": ["1.17", "357.7"],  # of chapter 2; an exercise
    "12_fcn": ["111.5", "15.5", "7.5"],  # middles of units
    "13_fpn": ["23.5"],  # ResNet-50 without its last layer
    "15_grad_cam": ["0.64", "0.0025"],  # 0.64 / 256
}


def without_source(notebook):
    """Numbers of the prose, as written, that no output, code or table of the notebook has (rounded, or in percent)."""
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    texts = [cell.source for cell in code]
    for output in (output for cell in code for output in cell.outputs):
        texts.append(output.get("text", ""))
        texts += ["".join(part) for kind, part in output.get("data", {}).items() if kind.startswith("text/")]
    texts += [line for source in prose for line in source.splitlines() if line.startswith("|")]
    have = {float(number.replace(",", "")) for text in texts for number in re.findall(NUMBER, text)}
    found = []
    for source in prose:
        source = re.sub(r"\$\$.*?\$\$", "", re.sub(r"\]\([^)]*\)", "]", source), flags=re.DOTALL)
        for paragraph in re.split(r"\n\s*\n|\n(?=- )", source):
            if paragraph.startswith("|") or FROM_ELSEWHERE.search(paragraph):
                continue
            for number in (match.group().replace(",", "") for match in MEASURED.finditer(paragraph)):
                decimals = len(number.partition(".")[2])
                if not any(round(scale * value, decimals) == float(number) for value in have for scale in (1, 100)):
                    found.append(number)
    return found


@pytest.mark.parametrize("name", chapters.names())
def test_numbers_of_the_text_are_in_an_output(name):
    notebook = nbformat.read(ROOT / f"chapters/{name}.ipynb", 4)
    assert set(without_source(notebook)) <= set(WORKED_OUT.get(name, []))


def test_what_a_new_run_leaves_behind_is_found():
    cells = nbformat.v4
    table = cells.new_output("execute_result", {"text/markdown": "| network | accuracy |\n|:--|--:|\n| ours | 78.69 |"})
    read = ["It is right for 78.7 %.", "It is right for 78.5 %, 1.25 less.", "The paper has 92.1 % (Table 3)."]
    notebook = cells.new_notebook(
        cells=[cells.new_code_cell("print(0.5)", outputs=[table]), *map(cells.new_markdown_cell, read)]
    )
    assert without_source(notebook) == ["78.5", "1.25"]

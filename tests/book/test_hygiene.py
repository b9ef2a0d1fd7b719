"""What a reader would stumble over in the shipped files."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from book import repository
from book.check import MACHINE_PATH
from helpers.chapters import FOLDER, model_cells, names
from helpers.settings import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

TEXT = {".py", ".md", ".ipynb", ".bib", ".yml", ".yaml", ".toml", ".css", ".js", ".json", ".mplstyle", ".txt", ""}
LEFT_OUT = {".git", ".venv", "_build", "__pycache__", ".ipynb_checkpoints", "cnn_papers.egg-info"}


def shipped():
    """Every text file of the project that is not made by a tool."""
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT)
        made = any(part in LEFT_OUT or part.endswith("_cache") for part in inside.parts)
        if path.is_file() and not made and path.suffix in TEXT:
            yield inside.as_posix(), path.read_text("utf-8")


FILES = dict(shipped())


LARGEST = 4_000_000  # bytes; the largest are trained networks, of some 3 MB


def misplaced(files):
    """Of {name: bytes of a file}, what nobody means to ship: large files, and packages or archives of any size."""
    packed = {".whl", ".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".pt", ".pth", ".pkl", ".log"}
    return [name for name, size in files.items() if size > LARGEST or Path(name).suffix in packed]


def test_nothing_is_shipped_by_accident():
    try:
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no checkout of git")
    files = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    assert misplaced({name: (ROOT / name).stat().st_size for name in files}) == []


def test_an_accident_would_be_found():
    assert misplaced({"a.whl": 10, "results/a.json": 10, "weights/a.safetensors": 5_000_000}) == [
        "a.whl",
        "weights/a.safetensors",
    ]


def machine_paths(text):
    return [match[0] for match in MACHINE_PATH.finditer(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))]


@pytest.mark.parametrize("folder", ["chapters/", "helpers/", "book/", "pages/", "results/", "benchmarks/", ""])
def test_no_file_names_a_place_on_someones_machine(folder):
    inside = [name for name in FILES if (name.startswith(folder) if folder else "/" not in name)]
    assert {name: found for name in inside if (found := machine_paths(FILES[name]))} == {}


@pytest.mark.parametrize("text", ["in /home/me/x", "'/root/.cache'", "(/tmp/a.png)", r"C:\Users\me", "/work/main/x"])
def test_machine_paths_are_recognised(text):
    assert machine_paths(text)


@pytest.mark.parametrize(
    "text", ["https://x.org/home/a", "results/01_vgg.json", "and/or", "~/data", "base64,aa/tmp/b=", r"class P:\n"]
)
def test_other_paths_are_not(text):
    assert not machine_paths(text)


PROMISED = """
README.md CONTRIBUTING.md LICENSE LICENSE-TEXT.md THIRD_PARTY.md environment.yml pyproject.toml course .ci/run
index.md _toc.yml _config.yml conf.py references.bib .pre-commit-config.yaml
"""


@pytest.mark.parametrize("name", PROMISED.split())
def test_what_the_readme_promises_is_there(name):
    assert (ROOT / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["course", ".ci/run"])
def test_scripts_can_be_started(name):
    assert (ROOT / name).stat().st_mode & 0o111
    shell = FILES[name].split("\n", 1)[0].split("/")[-1].split()[-1]
    assert subprocess.run([shell, "-n", ROOT / name]).returncode == 0


def test_links_in_the_files_beside_the_book_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "LICENSE-TEXT.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", FILES[name]):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def addresses(text):
    """Addresses of a repository with this course's name."""
    return set(re.findall(rf"https://(?:[\w-]+\.)+[a-z]+/[\w./-]*\b{PYPROJECT['project']['name']}\b", text))


def test_the_repositorys_address_is_true_or_absent():
    allowed = {repository.setting()} - {""}
    assert {file: found for file, text in FILES.items() if (found := addresses(text) - allowed)} == {}


def test_an_invented_address_would_be_found():
    name = PYPROJECT["project"]["name"]
    assert addresses(f"see https://github.com/someone/{name}/issues") and not addresses(f"~/.cache/{name}")


def test_conda_environment_delegates():
    environment = yaml.safe_load(FILES["environment.yml"])
    assert environment["name"] in FILES["course"], "./course would not recognise the environment"
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[test]"]}
    assert {re.split(r"[<>=]", package)[0] for package in conda} == {"python", "pip"}
    assert f"python{PYPROJECT['project']['requires-python']}" in conda


def imported(name):
    """The top-level modules that a script of the project cannot do without."""
    optional = set(re.findall(r'if (?:not )?importlib\.util\.find_spec\("(\w+)"\)', FILES[name]))
    yield from set(imports(name)) - optional


def imports(name):
    for node in ast.walk(ast.parse(FILES[name])):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def undeclared(files, requirements):
    """Imports of the files that no requirement provides."""
    declared = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in requirements}
    provided = packages_distributions()
    ours = {"helpers", "book", "benchmarks", *(Path(name).stem for name in files), "conftest"}
    return {
        (name, module)
        for name in files
        for module in imported(name)
        if module not in sys.stdlib_module_names | ours
        and not declared & {distribution.lower() for distribution in provided.get(module, [])}
    }


def test_a_readers_installation_has_what_chapters_and_helpers_import():
    shipped = ("chapters/", "helpers/", "book/", "conf")
    files = [name for name in FILES if name.endswith(".py") and name.startswith(shipped)]
    # these come with ipykernel, nbclient and pooch, which would not work without them
    indirect = ["ipython", "nbformat", "requests", "urllib3"]
    indirect += ["distributed"]  # only for ./course study --dask, which says how to install it
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert undeclared(files, extras["book"] + extras["course"] + indirect) == set()


def test_an_undeclared_import_would_be_found():
    assert ("tests/book/test_hygiene.py", "pytest") in undeclared(["tests/book/test_hygiene.py"], ["pyyaml"])


def definitions(source):
    """Top-level functions and classes, with their code in a form that ignores layout and comments."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {ast.dump(node): node.name for node in ast.parse(source).body if isinstance(node, kinds)}


def pasted(sources):
    """Definitions that stand word for word in two of the sources: {name of the definition: (first, second)}."""
    seen, twice = {}, {}
    for file, source in sources.items():
        for code, name in definitions(source).items():
            if code in seen:
                twice[name] = (seen[code], file)
            seen.setdefault(code, file)
    return twice


@pytest.mark.parametrize("name", names())
def test_nothing_in_a_chapter_speaks_to_the_formatter(name):
    assert not re.search(r"#\s*fmt:", (FOLDER / f"{name}.py").read_text())  # pyproject.toml keeps it out of chapters


STRANDED = re.compile(r"^ *[])}]+[,:]? +#.*", re.M)


@pytest.mark.parametrize("name", names())
def test_no_comment_of_a_chapter_hangs_behind_a_bracket(name):
    """One about a statement of several lines stands above it."""
    assert STRANDED.findall((FOLDER / f"{name}.py").read_text()) == []


def test_a_comment_behind_a_bracket_would_be_found():
    assert STRANDED.findall("x = f(\n    1\n)  # why\n") == [")  # why"]
    assert not STRANDED.findall("x = f(1)  # why\n\n# why\n)\n# (that)  # why\n")


# in its studies, which would have to be measured again; `fit` puts every mode back after it
MODES_KNOWN = {"11_unet": ["cell_probability"]}


def owner(node):
    """The name that an expression such as `networks["a"].to(device).eval()` begins with, or None."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "func", None) or getattr(node, "value", None)
        if node is None:
            return None
    return node.id


def changes_mode(call):
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("eval", "train")


def changed_modes(source):
    """Functions that change the mode of a network that they are given and do not hand back."""
    found = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        given = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]} - {"self"}
        parts = list(ast.walk(function))
        changes = [part for part in parts if isinstance(part, ast.Call) and changes_mode(part)]
        back = [part.value for part in parts if isinstance(part, ast.Return)]
        given -= {owner(part) for part in back if part in changes or isinstance(part, ast.Name)}
        if {owner(part) for part in changes} & given and function.name != "__init__":
            found.append(function.name)
    return found


@pytest.mark.parametrize("name", names())
def test_a_chapters_function_leaves_the_mode_of_a_network_as_it_found_it(name):
    assert changed_modes(model_cells(FOLDER / f"{name}.py")) == MODES_KNOWN.get(name, [])


def test_a_changed_mode_would_be_found():
    source = """
def measured(model, images): return float(model.eval()(images).mean())
def answers(model, images):
    model.eval()
    return model(images)
def settled(model): return model.eval()
def trained(model):
    model.train()
    return model
def of_one(networks, name): networks[name].to("cpu").train()
def fresh(build): return build().eval()
def clean(model, images):
    with evaluating(model):
        return model(images)
class Loss:
    def __init__(self, teacher): self.teacher = teacher.eval()
    def __call__(self, *, network): network.train()
"""
    assert changed_modes(source) == ["measured", "answers", "of_one", "__call__"]


def test_no_definition_stands_in_two_chapters():
    found = pasted({name: (FOLDER / f"{name}.py").read_text() for name in names()})
    assert found == {}


def test_a_pasted_definition_would_be_found():
    a = "def f(x):\n    return x + 1  # here\n"
    b = "class A: pass\n\ndef f(x):\n\n    return (x + 1)\n"
    assert pasted({"01": a, "02": b, "03": "def f(x): return x"}) == {"f": ("01", "02")}


def test_table_of_contents_lists_the_chapters_there_are():
    listed = re.findall(r"file: chapters/(\w+)", FILES["_toc.yml"])
    assert listed == names()


def test_preface_links_the_chapters_there_are():
    rows = re.findall(r"^\| *(\d+) \|.*\|(.*)\|$", FILES["index.md"], re.M)
    assert [int(line) for line, _ in rows] == list(range(1, 17))
    assert set(re.findall(r"\]\(chapters/(\w+)\)", FILES["index.md"])) == set(names())
    for _, cell in rows:
        for number in re.findall(r"\b\d\d\b", cell):
            exists = any(name.startswith(number) for name in names())
            assert exists or "to come" in cell, f"chapter {number} does not exist, and the preface does not say so"


def test_ruff_is_content():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "-q", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

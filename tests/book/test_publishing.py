"""What a host of repositories reads: workflows, Binder, the container, forms, the version, and how lines end."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml

from helpers.settings import ROOT


def read(name):
    return (ROOT / name).read_text("utf-8")


def workflow(name):
    """A workflow, and the steps of each of its jobs."""
    found = yaml.safe_load(read(f".github/workflows/{name}.yml"))
    found["on"] = found.pop(True)  # YAML takes the word `on` for a truth value
    return found, {job: settings["steps"] for job, settings in found["jobs"].items()}


def using(steps, action):
    (found,) = (step for step in steps if step.get("uses", "").split("@")[0] == action)
    return found


@pytest.mark.parametrize("name", ["test", "book"])
def test_a_workflow_runs_for_pull_requests_and_for_main(name):
    found, _ = workflow(name)
    assert "pull_request" in found["on"] and found["on"]["push"] == {"branches": ["main"]}


def test_the_tests_run_on_the_oldest_and_on_a_new_python():
    found, steps = workflow("test")
    oldest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    versions = found["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions[0] == oldest and "3.13" in versions
    assert using(steps["test"], "actions/setup-python")["with"]["python-version"] == "${{ matrix.python }}"
    assert steps["test"][-1] == {"run": ".ci/run"}


def test_the_book_is_kept_with_a_pull_request_and_published_from_main():
    found, steps = workflow("book")
    kept = using(steps["build"], "actions/upload-artifact")
    assert "if" not in kept and kept["with"]["path"] == "_build/html"
    assert steps["build"].index({"run": "./course book"}) < steps["build"].index(kept)
    page, publish = using(steps["build"], "actions/upload-pages-artifact"), found["jobs"]["publish"]
    assert page["with"]["path"] == "_build/html"
    assert page["if"] == publish["if"] == "github.ref == 'refs/heads/main'"
    assert using(steps["publish"], "actions/deploy-pages") and publish["needs"] == "build"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert found["permissions"] == {"contents": "read"}


def test_binder_takes_the_pytorch_for_the_cpu_and_no_tests():
    lines = [line for line in read(".binder/requirements.txt").splitlines() if not line.startswith("#")]
    assert lines == ["--extra-index-url https://download.pytorch.org/whl/cpu", "-e .[course]"]
    assert re.fullmatch(r"python-3\.1[1-3]\n", read(".binder/runtime.txt"))


def test_the_container_starts_with_what_is_there():
    found = json.loads(read(".devcontainer/devcontainer.json"))
    command, verb = found["postCreateCommand"].split()
    assert (ROOT / command).stat().st_mode & 0o111 and f"|{verb})" in read(command)
    interpreter = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"$PWD/{interpreter}" in read(command), "./course makes another environment"
    assert re.search(r"/python:3\.1[1-3]$", found["image"])


@pytest.mark.parametrize("name", ["fault", "question"])
def test_a_form_for_issues_has_a_name_and_says_what_it_is_for(name):
    start, front, body = read(f".github/ISSUE_TEMPLATE/{name}.md").split("---\n", 2)
    assert start == "" and set(yaml.safe_load(front)) == {"name", "about"} and "**Where**" in body


def test_the_form_for_pull_requests_asks_for_the_tests():
    text = read(".github/pull_request_template.md")
    assert "`./course test`" in text and "**How it was checked**" in text


def test_one_version_everywhere():
    """The uppermost paragraph of the changes is about the version that is being worked on, or was just released."""
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert re.search(r"^## (\S+?)(?:,|$)", read("CHANGELOG.md"), re.M)[1] == version


@pytest.mark.parametrize(
    "name",
    ["helpers/train.py", "chapters/01_vgg.py", "chapters/01_vgg.ipynb", "README.md", "results/01_vgg.json", "course"]
    + [".ci/run"],
)
def test_lines_end_alike_on_every_system(name):
    assert (ROOT / name).exists()
    done = subprocess.run(["git", "check-attr", "eol", "--", name], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout of git")
    assert done.stdout == f"{name}: eol: lf\n"

"""Where the course is published, if it is.

The one setting is `Repository` under `[project.urls]` in pyproject.toml. Without it, the book that is built takes the
address of the git remote, and committed files name no address at all.
"""

import re
import subprocess
import tomllib

from helpers.settings import ROOT

HOSTS = ("github.com", "gitlab.com", "bitbucket.org")  # those that the theme's buttons can speak to
_REMOTE = re.compile(
    r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)(?P<host>[\w.-]+)[:/](?P<path>[\w.-]+/[\w.-]+?)(?:\.git)?/?"
)


def public(remote):
    """The https address of a git remote on one of HOSTS; "" for any other remote."""
    found = _REMOTE.fullmatch(remote.strip())
    return f"https://{found['host']}/{found['path']}" if found and found["host"] in HOSTS else ""


def setting(folder=ROOT):
    """The address that a maintainer has written into pyproject.toml, or "". Raises ValueError for one that is none."""
    urls = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})
    address = urls.get("Repository", "")
    if address and not public(address):
        raise ValueError(
            f"pyproject.toml: Repository = {address!r} is not the address of a repository on {', '.join(HOSTS)}."
        )
    return public(address)


def remote(folder=ROOT):
    """The public address of the git remote `origin`, or "" without one."""
    command = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    try:
        return public(subprocess.run(command, capture_output=True, text=True).stdout)
    except OSError:  # no git here
        return ""


def address(folder=ROOT):
    """The setting, else the git remote, else ""."""
    return setting(folder) or remote(folder)

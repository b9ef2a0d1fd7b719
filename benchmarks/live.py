"""How fast the networks answer in the page: `python -m benchmarks.live` measures, and writes its tables to README.md.

Needs Chromium and playwright (`./course test` installs the latter). Every number is from the page itself.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from book.live import export
from helpers.table import Table

HERE = Path(__file__).parent
FOUND = HERE / "live.json"
START, END = "<!-- live -->", "<!-- /live -->"
PAGE = """<!doctype html><meta charset="utf-8"><title>live</title>
<div class="live" data-figure="page"></div><script src="start.js"></script>"""
RUN = """(rounds) => [...live.networks.values()].map((network) => {
  const picture = live.normalise(live.page.seen()), times = [];
  for (let i = 0; i < rounds; i++) {
    const start = performance.now(), values = live.forward(network, picture), middle = performance.now();
    live.gradCam(network, values, 0);
    times.push([middle - start, performance.now() - middle]);
  }
  return [network.name, times];
})"""


def measure(rounds=15):
    """Milliseconds per network for a pass and for its map, with the faster loop and without. A dict."""
    found = {"rounds": rounds}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        folder = Path(folder)
        export.export(folder)
        (folder / "page.html").write_text(PAGE)
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        classifiers = sum(network.names_pictures for network in export.networks())
        for loop in ("faster loop", "reference"):
            if loop == "reference":
                (folder / "fast.js").unlink()
            page = browser.new_page()
            page.goto((folder / "page.html").as_uri())
            page.wait_for_function(
                f"typeof live !== 'undefined' && Object.keys(live.page?.results ?? {{}}).length === {classifiers}",
                timeout=300_000,
            )
            passes = page.evaluate(RUN, rounds)
            found[loop] = {
                "first answer": page.evaluate("live.page.first"),
                "networks": {
                    name: {
                        "pass": statistics.median(t[0] for t in times),
                        "map": statistics.median(t[1] for t in times),
                    }
                    for name, times in passes
                },
            }
            page.close()
        found["megabytes"] = sum(path.stat().st_size for path in folder.glob("net-*.js") if _classifier(path)) / 1e6
        found["browser"] = f"Chromium {browser.version}"
        browser.close()
    found["load"] = os.getloadavg()[0]
    return found


def _classifier(path):
    return path.stem.removeprefix("net-") in {n.slug for n in export.networks() if n.names_pictures}


def text(found):
    """The tables as Markdown."""
    names = found["reference"]["networks"]
    rows = [
        {
            "network": name,
            "pass, ms": found["faster loop"]["networks"][name]["pass"],
            "its map, ms": found["faster loop"]["networks"][name]["map"],
            "pass without the faster loop, ms": found["reference"]["networks"][name]["pass"],
        }
        for name in names
    ]
    rows.append({"network": "all"} | {key: sum(row[key] for row in rows) for key in list(rows[0])[1:]})
    first = {loop: found[loop]["first answer"] / 1000 for loop in ("faster loop", "reference")}
    return "\n".join(
        [
            f"Medians of {found['rounds']} passes, {found['browser']}, headless, at a load of {found['load']:.1f}. "
            f"The first answer stood on the page {first['faster loop']:.1f} s after it was opened "
            f"({first['reference']:.1f} s without the faster loop); the ten networks are {found['megabytes']:.1f} MB.",
            "",
            Table(rows, decimals=1)._repr_markdown_(),
        ]
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    found = measure(options.rounds)
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    readme = HERE / "README.md"
    tables = f"{START}\n\n{text(found)}\n\n{END}"
    readme.write_text(re.sub(f"{START}.*{END}", lambda match: tables, readme.read_text(), flags=re.DOTALL))
    print(text(found))


if __name__ == "__main__":
    main()

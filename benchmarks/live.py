"""How fast the networks answer in the page: the benchmark's part `live`, which needs Chromium.

Every number is from the page itself.
"""

import os
import statistics
import tempfile
from pathlib import Path

from book.live import export
from book.live.browser import chromium
from helpers.table import Table

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


def measure(quick=False):
    """Milliseconds per network for a pass and for its map, with the faster loop and without. A dict."""
    rounds = 2 if quick else 15
    found = {"rounds": rounds, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        folder = Path(folder)
        export.export(folder)
        (folder / "page.html").write_text(PAGE)
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
    return found


def _classifier(path):
    return path.stem.removeprefix("net-") in {n.slug for n in export.networks() if n.names_pictures}


def text(found, folder):
    """The tables as Markdown; nothing else goes to `folder`."""
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

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks import measure, report

HERE = Path(__file__).parent


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="course bench", description="Measure speed; see benchmarks/README.md.")
    parser.add_argument("--only", choices=measure.PARTS, help="redo one part, keep the others")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs; keeps nothing")
    parser.add_argument("--folder", type=Path, help="write there instead of here")
    options = parser.parse_args(arguments)
    if options.quick and not options.folder:
        with tempfile.TemporaryDirectory() as folder:
            run(options, Path(folder))
    else:
        run(options, options.folder or HERE)


def run(options, folder):
    load = os.getloadavg()[0]
    if load > 0.5 and not options.quick:
        print(f"The machine is busy (load {load:.1f}); numbers will be worse than on an idle one.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "README.md").exists():
        shutil.copy(HERE / "README.md", folder)
    results_file = folder / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for part in [options.only] if options.only else measure.PARTS:
        print(f"{part} ...", flush=True)
        results[part] = measure.PARTS[part](quick=options.quick)
        # after every part, so that an interrupted run keeps what it has
        results_file.write_text(json.dumps(results, indent=1) + "\n")
        text = (folder / "README.md").read_text()
        (folder / "README.md").write_text(report.fill(text, results, folder))
        print(report.SECTIONS[part](results[part], folder), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

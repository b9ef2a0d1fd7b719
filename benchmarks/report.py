"""results.json as tables and a curve, between the markers in README.md; the prose there is written by hand."""

import re
import statistics

from benchmarks import live
from benchmarks.measure import TRIED
from helpers import plot
from helpers.table import Table


def _machine(found):
    m = found["machine"]
    return (
        f"{m['cores']} cores ({m['cpu']}), {m['threads']} threads, load {m['load before']} before the run, "
        f"Python {m['python']}, PyTorch {m['torch']}, torchvision {m['torchvision']}, {m['date']}"
    )


def _verdict(met):
    return "yes" if met else "**no**"


GOALS = {  # what `fit` is compared with: its name in the table, and how many times as fast `fit` should be
    "bare": ("bare step", 0.9),
    "usual": ("usual loop", 2.0),
    "usual, channels last": ("usual loop in channels-last", None),
}


def _ratio(fast, slow):
    return statistics.median(a / b for a, b in zip(fast, slow, strict=True))


def _remarks(images):
    """What the tables do not say by themselves."""
    remarks = []
    for dtype, runs in images.items():
        bound = _ratio(runs["bare"], runs["usual"])
        if bound < 2:
            remarks.append(
                f"In {dtype} even the bare step is only {bound:.2f} times as fast as the usual loop, so no loop around "
                "this network could be twice as fast here."
            )
    if len(images) > 1:
        ratio = _ratio(images["float32"]["fit"], images["bfloat16 autocast"]["fit"])
        remarks.append(f"`fit` in float32, as it trains on a processor, is {ratio:.2f} times as fast as in bfloat16.")
    return remarks


def speed(found, folder):
    sections = []
    for dtype, runs in found["images"].items():
        rows = []
        for name in [name for name in runs if name != "fit"]:
            label, wanted = GOALS[name]
            ratios = [a / b for a, b in zip(runs["fit"], runs[name], strict=True)]
            middle = statistics.median(ratios)
            rows.append(
                {
                    "": label,
                    "images/s": round(statistics.median(runs[name])),
                    "`fit`, images/s": round(statistics.median(runs["fit"])),
                    "`fit` is so many times as fast": f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    "wanted": f"at least {wanted}" if wanted else "",
                    "met": _verdict(middle >= wanted) if wanted else "",
                }
            )
        sections.append(f"In {dtype}:\n\n{Table(rows)._repr_markdown_()}")
    sections += _remarks(found["images"])
    note = (
        f"Median of {found['rounds']} rounds of {found['steps']} steps each, in brackets the smallest and largest "
        f"ratio of a round. Data: {found['data']}. {_machine(found)}."
    )
    return "\n\n".join([*sections, note])


def formats(found, folder):
    rows = [
        {"network": network}
        | {f"{name}, images/s": round(statistics.median(images)) for name, images in runs.items()}
        | {"float32 is so many times as fast": f"{_ratio(runs['float32'], runs['bfloat16']):.2f}"}
        for network, runs in found["networks"].items()
    ]
    note = (
        f"Forward, backward and update on batches of {found['batch']}, in channels-last. Medians of {found['rounds']} "
        f"rounds of {found['steps']} steps, taking turns. {_machine(found)}."
    )
    return f"{Table(rows)._repr_markdown_()}\n\n{note}"


def opening(found, folder):
    cifar, voc, training = found["cifar10"], found["voc"], found["training"]
    gigabytes = training["megabytes"] / 1024
    rows = [
        (
            "CIFAR-10 from the reader's folder to the first batch",
            f"{cifar['first']:.1f} s",
            "under 5 s",
            cifar["first"] < 5,
        ),
        ("the same from the cache", f"{cifar['later']:.1f} s", "", None),
        ("VOC animals at 128 px, first reading", f"{voc['first']:.1f} s", "", None),
        ("the same from the cache", f"{voc['later']:.1f} s", "under 2 s", voc["later"] < 2),
        ("imports of a chapter, in a new process", f"{found['import']:.1f} s", "under 3 s", found["import"] < 3),
        ("peak memory of a training process", f"{gigabytes:.2f} GB", "under 2 GB", gigabytes < 2),
    ]
    table = Table(
        [
            {"": what, "measured": value, "wanted": wanted, "met": "" if met is None else _verdict(met)}
            for what, value, wanted, met in rows
        ]
    )
    return f"{table._repr_markdown_()}\n\nData: {cifar['data']}; {voc['data']}. {_machine(found)}."


def calls(found, folder):
    rows = [
        {
            "": row["call"],
            "minutes": row["seconds"] / 60,
            "installed by then, GB": row["bytes"] / 1e9,
        }
        for row in found["calls"]
    ]
    build = "PyTorch with CUDA libraries" if found["cuda"] else "PyTorch's build for the CPU"
    return f"{Table(rows, decimals=1)._repr_markdown_()}\n\n{build}; on drawn data. {_machine(found)}."


def _percent(values):
    """Mean of accuracies, and from where to where they go."""
    values = [100 * value for value in values]
    mean = f"{statistics.mean(values):.1f} %"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _by(runs, *keys):
    """Runs that agree in `keys`, in the order of their first."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)
    return groups


def accuracy(found, folder):
    runs, seconds = found["runs"], found["seconds"]
    curves = _by(runs, "network", "recipe")
    networks = [network for (network,) in _by(runs, "network")]
    at = {key: [run["accuracy"] for run in group] for key, group in _by(runs, "network", "recipe", "seconds").items()}

    def draw(fig):
        for ax, network in zip(fig.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True):
            for recipe in [recipe for where, recipe in curves if where == network]:
                values = [[100 * value for value in at[network, recipe, s]] for s in seconds]
                (line,) = ax.plot(seconds, [statistics.mean(some) for some in values], "o-", label=recipe)
                band = [min(some) for some in values], [max(some) for some in values]
                ax.fill_between(seconds, *band, alpha=0.2, color=line.get_color())
            ax.set(xlabel="seconds of training", title=f"{network}: accuracy in %", xticks=seconds)
            ax.legend()

    alt = "Test accuracy against seconds of training. " + " ".join(
        f"{network}, {recipe}: "
        + ", ".join(f"{100 * statistics.mean(at[network, recipe, s]):.1f} % after {s} s" for s in seconds)
        + "."
        for network, recipe in curves
    )
    (folder / "accuracy.webp").write_bytes(plot.show(draw, alt, height=3.2)._webp)
    rows = []
    for (network, recipe), group in curves.items():
        speeds = [run["images_per_second"] for run in group if "images_per_second" in run]
        row = {"network": network, "recipe": recipe, "images/s": round(statistics.median(speeds)) if speeds else ""}
        rows.append(row | {f"after {s} s": _percent(at[network, recipe, s]) for s in seconds})
    seeds = len(_by(runs, "seed"))
    means = "One training each" if seeds == 1 else f"Mean of {seeds} seeds, in brackets the lowest and the highest"
    note = (
        f"{means}, in {found['dtype']}; the usual loop's learning rate is {found['usual lr']}. "
        f"Data: {found['data']}. {_machine(found)}."
    )
    return f"![{alt}](accuracy.webp)\n\n{Table(rows)._repr_markdown_()}\n\n{note}"


def recipe(found, folder):
    """What each part gains, and what a step costs."""
    scores = {
        key: {run["seed"]: run["accuracy"] for run in group}
        for key, group in _by(found["runs"], "network", "recipe").items()
    }
    rows = []
    for (network, name), by_seed in scores.items():
        row = {"network": network, "recipe": name, "test accuracy": _percent(by_seed.values())}
        others = {base: scores[network, base] for base in TRIED[name][0] if (network, base) in scores}
        for base, other in (others or {"": {}}).items():
            gains = [f"{100 * (value - other[seed]):+.1f}" for seed, value in by_seed.items() if seed in other]
            rows.append(row | {"compared with": base, "gain in points, seed by seed": ", ".join(gains)})
    epochs = f"{found['epochs']} epoch" + "s" * (found["epochs"] > 1)
    note = f"{epochs} of batches of 128. Data: {found['data']}. {_machine(found)}."
    steps = [
        {"milliseconds of an update": network} | {name: f"{ms:.1f}" for name, ms in times.items()}
        for network, times in found["updates"].items()
    ]
    steps_note = (
        "Processor time of one update of all convolutions on one thread, without forward and backward. The two "
        "libraries compute in bfloat16."
    )
    tables = [Table(rows)._repr_markdown_(), note, Table(steps)._repr_markdown_(), steps_note]
    return "\n\n".join(tables)


SECTIONS = {
    "speed": speed,
    "formats": formats,
    "opening": opening,
    "calls": calls,
    "accuracy": accuracy,
    "recipe": recipe,
    "live": live.text,
}


def fill(text, results, folder):
    """`text` of README.md with the part between each pair of markers made anew from `results`."""
    for part, section in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the README lacks the markers <!-- {part} --> and <!-- /{part} -->.")
        if part in results:
            made = section(results[part], folder)
            text = pattern.sub(lambda found, made=made: f"{found[1]}\n{made}\n\n{found[2]}", text)
    return text

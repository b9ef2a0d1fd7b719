"""results.json as tables and a curve, between the markers in README.md; the prose there is written by hand."""

import re
import statistics

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
    if len(images) > 1:  # fit chooses bfloat16 by itself where it is faster; the usual loop does not
        ratio = _ratio(images["bfloat16 autocast"]["fit"], images["float32"]["usual"])
        remarks.append(
            f"`fit` as it is called by default here (bfloat16) is {ratio:.2f} times as fast as the usual loop as it is "
            "usually written (float32)."
        )
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


def accuracy(found, folder):
    seconds, fit, usual = found["seconds"], found["fit"], found["usual"]

    def draw(fig):
        ax = fig.subplots()
        for label, values in (("fit, one cycle", fit), ("usual loop, constant learning rate", usual)):
            ax.plot(seconds, [100 * value for value in values], "o-", label=label)
        ax.set(xlabel="seconds of training", title="test accuracy in %", xticks=seconds)
        ax.legend()

    alt = "Test accuracy against seconds of training. " + " ".join(
        f"After {s} s: fit {100 * a:.1f} %, usual loop {100 * b:.1f} %."
        for s, a, b in zip(seconds, fit, usual, strict=True)
    )
    (folder / "accuracy.webp").write_bytes(plot.show(draw, alt, height=3.2)._webp)
    rows = [
        {
            "seconds of training": s,
            "`fit`, one cycle": f"{100 * a:.1f} %",
            "usual loop, constant learning rate": f"{100 * b:.1f} %",
        }
        for s, a, b in zip(seconds, fit, usual, strict=True)
    ]
    note = (
        f"One training each, in {found['dtype']}; the usual loop's learning rate is {found['usual lr']}. "
        f"Data: {found['data']}. {_machine(found)}."
    )
    return f"![{alt}](accuracy.webp)\n\n{Table(rows)._repr_markdown_()}\n\n{note}"


SECTIONS = {"speed": speed, "opening": opening, "accuracy": accuracy}


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

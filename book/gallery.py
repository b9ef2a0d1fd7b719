"""The page "One gallery": the same photographs through every network of the course, and where Grad-CAM says they look.

`measure` asks Grad-CAM about VOC's validation photographs and writes `pages/gallery.json` and the two pictures
`pages/_static/gallery-*.webp`. `text` is the page, from `pages/gallery.json`. `./course pages` calls them.
"""

import json
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F

from book import pairs
from helpers import cam, plot, study
from helpers.chapters import chapter
from helpers.data import clear_examples, largest_animal, voc_animals
from helpers.naming import NAMED
from helpers.settings import ROOT
from helpers.table import Table
from helpers.weights import explorable

PAGE = ROOT / "pages" / "gallery.md"
FOUND = ROOT / "pages" / "gallery.json"
PICTURES = ROOT / "pages" / "_static"
SIDE = 128  # px of the photographs, and of the maps that are measured
NOT_MEASURED = {"energy in box": None, "energy in mask": None, "pointing game": None, "empty maps": 0}
TOLERANCE = 4  # px; the pointing game allows 15 px on photographs of about 500 px


def groups():
    """The networks that chapters declare to be looked into: "named" those that name a picture, "placed" the others."""
    found = {"named": [], "placed": []}
    for trained in explorable():
        found["named" if trained.name == NAMED else "placed"].append(trained)
    return found


# -------------------------------------------------------------------------------------------------- measuring


def heat(trained, data, images, labels):
    """Grad-CAM of a trained network (Weights) for the label of each photograph, (N, SIDE, SIDE)."""
    model = trained.open()

    def maps(some, wanted):
        x = trained.to_input(data, some)
        return cam.grad_cam(model, trained.layer, x, lambda out: trained.score(out, wanted), size=(SIDE, SIDE))

    return torch.cat([maps(*part) for part in zip(images.split(100), labels.split(100), strict=True)])


def scores(maps, targets, labels):
    """Means over the photographs, in percent: energy in boxes and in masks, pointing game. A dict.

    maps: (N, SIDE, SIDE), none below zero. An empty map has no energy to share, and points nowhere.
    """
    cbam, gradcam = chapter("07_cbam"), chapter("15_grad_cam")
    boxes = cbam.filled(gradcam.of_the_asked(targets, labels), SIDE)
    masks = gradcam.masks_of_the_asked(targets, labels)
    percent = {
        "energy in box": cbam.share_inside(maps, boxes),
        "energy in mask": cbam.share_inside(maps, masks)[targets["has_mask"]],
        "pointing game": gradcam.pointing(maps, boxes, TOLERANCE).float(),
    }
    return {name: round(100 * float(values.nanmean()), 1) for name, values in percent.items()} | {
        "empty maps": int((maps.amax((1, 2)) <= 0).sum())
    }


def of_file(path):
    """A hash of a file, to tell whether a network was trained again since."""
    return sha256(Path(path).read_bytes()).hexdigest()[:16]


def measure():
    """Run every network on the validation photographs; write the numbers and the pictures.

    Raises ValueError without real data, FileNotFoundError for weights that are not there.
    """
    data = voc_animals(size=SIDE)
    if not data.provenance.real:
        raise ValueError(f"the gallery needs real photographs, and these are: {data.provenance}.")
    images, targets = data.test.images, data.test.targets
    labels = largest_animal(data).test.targets
    index = clear_examples(data.test, each=2)
    rows, shown = {}, {}
    for trained in explorable():
        maps = heat(trained, data, images, labels)
        rows[trained.title] = scores(maps, targets, labels) | {"weights": of_file(trained.path)}
        shown[trained.title] = maps[index]
    everywhere = torch.ones(len(images), SIDE, SIDE)
    centre = F.pad(torch.ones(len(images), 2, 2), [SIDE // 2 - 1] * 4)
    gradcam = chapter("15_grad_cam")
    boxes = chapter("07_cbam").filled(gradcam.of_the_asked(targets, labels), SIDE)
    by_chance = gradcam.near(boxes, TOLERANCE).mean()  # a point drawn at random
    found = {
        "provenance": f"{data.provenance.name}, {len(images)} validation photographs at {SIDE} px",
        "photographs": [data.classes[label] for label in labels[index].tolist()],
        "networks": rows,
        "everywhere alike": scores(everywhere, targets, labels) | {"pointing game": round(100 * float(by_chance), 1)},
        "the middle": scores(centre, targets, labels),
        "made_with": study.made_with(),
    }
    files = {FOUND: json.dumps(found, indent=1) + "\n"}
    for group, networks in groups().items():
        picture = plot.cams(
            images[index],
            None,
            titles=found["photographs"],
            rows_of_maps={name.replace(" ", "\n").replace("-CNN", "-\nCNN"): shown[name] for name in titles(networks)},
            alt="see the page",
            inches=0.72,
        )
        files[PICTURES / f"gallery-{group}.webp"] = picture._webp
    pairs.write(files)


# ----------------------------------------------------------------------------------------------------- the page


def titles(networks):
    return [trained.title for trained in networks]


def _table(found, networks):
    rows = [
        {"network": f"[{int(trained.chapter[:2])} {trained.title}](../chapters/{trained.chapter})"}
        | _right(trained.record["metrics"])
        | _scores(found["networks"].get(trained.title, NOT_MEASURED))
        for trained in networks
    ]
    nothing = dict.fromkeys(rows[0], None)
    return Table(
        [*rows, nothing | {"network": "everywhere alike"} | _scores(found["everywhere alike"])], decimals=1
    )._repr_markdown_()


def _right(metrics):
    """How long a network that names pictures was trained, and how often it is right in percent; nothing for others."""
    if "cifar10_accuracy" not in metrics:
        return {}
    return {"epochs": f"{metrics['epochs']:g}", "right on CIFAR-10, %": 100 * metrics["cifar10_accuracy"]}


def _scores(result):
    return {f"{kind}, %": value for kind, value in result.items() if kind in NOT_MEASURED and kind != "empty maps"}


def _span(numbers):
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _how_long(epochs):
    if len(epochs) == 1:
        return f"alike, for {min(epochs)} passes"
    return f"for {min(epochs)} passes with SGD or, later, for {max(epochs)} with the recipe for few epochs,"


def _listed(names):
    return f"{', '.join(names[:-1])} and {names[-1]}"


def text():
    """The page as MyST Markdown, from `pages/gallery.json`."""
    found = json.loads(FOUND.read_text())
    animals = ", ".join(found["photographs"])
    named, placed = groups()["named"], groups()["placed"]
    empty = [found["networks"].get(name, NOT_MEASURED)["empty maps"] for name in titles(placed)]
    return TEMPLATE.format(
        animals=animals,
        provenance=found["provenance"],
        named=_listed(titles(named)),
        placed=_listed(titles(placed)),
        table_named=_table(found, named),
        table_placed=_table(found, placed),
        tolerance=TOLERANCE,
        trained=_how_long({round(trained.record["metrics"]["epochs"]) for trained in named}),
        middle=found["the middle"]["pointing game"],
        side=SIDE,
        reading_named=READING_NAMED,
        reading_placed=READING_PLACED.format(empty=_span(empty)),
    )


TEMPLATE = """\
(gallery)=

# One gallery

The same ten photographs through every network of the course. Below each photograph stands where the network finds the
evidence for the animal that is really there, whatever it would have answered: Grad-CAM, as chapter 15 derives it.
Bright is strong. Each map is scaled to its own range, so maps can be compared in shape and not in strength.

The photographs are validation photographs of VOC's animals: {animals}. They are the first two of each class
that show one animal alone, in one piece, on a fifth to half of the picture, and no person. Nobody picked them for
their maps.

## Ten networks that name what they see

{named}: each a small one, built by its chapter's code and trained {trained} over CIFAR-10 and
animals cut out of VOC's training photographs at 32 pixels. They were never told where on a
photograph an animal stands. Here they get whole photographs at 64 pixels, and are asked for the logit of the animal.

```{{figure}} _static/gallery-named.webp
:alt: Ten photographs of animals in a row, and below them ten rows of heat maps, one for each network: {named}.
:width: 100%

Grad-CAM for the true animal, one row per network. Ten of: {provenance}.
```

**Energy in box** is the share of a map that lies in the boxes of that animal, **energy in mask** the share on the
animal itself, where a mask exists; its undecided pixels do not count. In the **pointing game**
{{cite}}`zhang2018excitation` only the map's highest point counts: is it in a box, give or take {tolerance} pixels of
{side}? The means are over all validation photographs.

For comparison, the last row is a map that is the same everywhere (in the pointing game, a point drawn at random). And
a point in the very middle of every photograph, which needs no network either, scores **{middle:.1f} %** in the
pointing game.

{table_named}

{reading_named}

## Four networks that say where

{placed} have the task and the recipe of their chapters, and start from the same pretrained backbone. Each is asked
for its own kind of answer: the mean logit of the animal's pixels (U-Net, FCN), the largest objectness of any anchor,
whatever the animal (FPN), the best detection of the animal (YOLO).

```{{figure}} _static/gallery-placed.webp
:alt: The same ten photographs, and below them four rows of heat maps, one for each network: {placed}.
:width: 100%

Grad-CAM for these four. Ten of: {provenance}.
```

{table_placed}

{reading_placed}

These maps show where the evidence comes from, not what the network marks as the animal: a segmentation network may
need the head to be sure of the tail. [Chapter 15](../chapters/15_grad_cam) has the method, its traps, and how to tell
a good explanation from a nice picture. To ask the ten classifiers about a photograph of yours, see {{ref}}`live`.
"""

READING_NAMED = """\
All ten put more of their evidence on the animal than chance would, and nobody had told them where animals are. But in
the pointing game only ResNet passes the middle of the photograph, and by little: people put their animals there. A
pointing game without that number would have looked like a success. The energies say more, because they look at the
whole map.

The networks differ less than their papers do. The two that come last in the pointing game, MobileNet and the one
that reads frequencies, are those whose maps have 8x8 positions here and not 16x16.

Look along the columns. On the first horse's photograph two networks (VGG, MobileNet) find evidence for
*horse* in the upper left corner, where there is no animal. Such agreement is a hint about the training pictures;
chapter 15 shows how to follow one up.
"""

READING_PLACED = """\
All four were trained with places. Yet only YOLO clearly holds more of its evidence on the animal than the best of the
ten above. FPN's question has no animal in it: its best anchor may well be about something else on the photograph. All
four read a map of 8x8 positions, and in the pointing game they do not beat the best of the ten.

For {empty} photographs the map is empty: at that layer nothing speaks for the answer. An empty map has no energy to
share and is left out of the first two columns; in the pointing game it counts as a miss.
"""


def write():
    """Write the page."""
    pairs.write({PAGE: text()})

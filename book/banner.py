"""The picture of the README and the preface: one photograph, and where each network of the course finds its animal.

`measure` asks Grad-CAM, as the gallery does, and writes `pages/_static/banner.webp`. What it shows stands in
`pages/banner.json`. `./course pages --measure` calls it.
"""

import io
import json

import matplotlib
import numpy as np
import torch
from PIL import Image

from book import gallery, pairs
from helpers.cam import unit_range
from helpers.data import VOC_ANIMALS, clear_examples, voc_animals
from helpers.settings import ROOT
from helpers.weights import explorable

PICTURE = ROOT / "pages/_static/banner.webp"
FOUND = ROOT / "pages/banner.json"
ANIMAL = "sheep"  # an easy photograph: all networks find it
COLUMNS = 7  # of maps, in two rows beside the photograph
GAP = 8  # px, transparent: the picture stands on light and on dark pages


def tiles(photograph, maps):
    """The picture, RGBA: a photograph uint8 (3, H, W) beside its maps (N, H, W), twice as high as they are."""
    side = photograph.shape[-1]
    step, pixels = side + GAP, photograph.permute(1, 2, 0).numpy()
    picture = Image.new("RGBA", ((2 + COLUMNS) * step - GAP, 2 * step - GAP))
    large = Image.fromarray(pixels).resize((2 * step - GAP,) * 2, Image.Resampling.LANCZOS)
    picture.paste(large, (0, 0))
    for n, one in enumerate(unit_range(maps)):
        heat = matplotlib.colormaps["inferno"](one.numpy())[..., :3]
        tile = Image.fromarray((0.4 * pixels + 0.6 * 255 * heat).astype(np.uint8))
        picture.paste(tile, ((2 + n % COLUMNS) * step, n // COLUMNS * step))
    return picture


def measure():
    """Draw the picture. Raises ValueError without real data, FileNotFoundError for weights that are not there."""
    data = voc_animals(size=gallery.SIDE)
    if not data.provenance.real:
        raise ValueError(f"the banner needs a real photograph, and these are: {data.provenance}.")
    label = VOC_ANIMALS.index(ANIMAL)
    one = clear_examples(data.test)[label : label + 1]
    images, labels = data.test.images[one], torch.tensor([label])
    networks = explorable()
    maps = torch.cat([gallery.heat(network, data, images, labels) for network in networks])
    picture = io.BytesIO()
    tiles(images[0], maps).save(picture, "webp", quality=80, method=6)
    shown = {network.title: gallery.of_file(network.path) for network in networks}
    found = json.dumps({"animal": ANIMAL, "networks": shown}, indent=1) + "\n"
    pairs.write({PICTURE: picture.getvalue(), FOUND: found})

"""The networks in the page: equal to PyTorch, faults seen, alone on a disk, and nothing that a reader does breaks it."""

import base64
import functools
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from book.live import export
from helpers import cam

PICTURES = 20
TOLERANCE = 1e-4  # of the logits' size, and of a map's range


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("live")
    export.export(out)
    return out


@pytest.fixture(scope="module")
def pictures():
    """Drawn pictures at the size of each network: {size: uint8 (PICTURES, 3, size, size)}."""
    images, _ = export.drawn(PICTURES)
    small = F.interpolate(images.float(), export.SIDE, mode="bilinear", antialias=True).round().to(torch.uint8)
    return {export.SHOWN: images, export.SIDE: small}


@pytest.fixture(scope="module")
def networks():
    return {network.name: network for network in export.networks()}


NAMES = [network.name for network in export.networks()]


@pytest.fixture(scope="module")
def expected(networks, pictures):
    """`expected(name)`: what PyTorch says to each picture, in float32 and in float64: (outputs, maps) each, and targets.

    A target is a map of the output, whose mean is explained; the pictures ask for one after the other.
    """

    def channels_first(name, outputs):
        outputs = outputs.permute(0, 3, 1, 2) if name == "YOLO" else outputs
        return outputs if outputs.ndim == 4 else outputs[:, :, None, None]

    @functools.cache
    def ask(name):
        network, answers = networks[name], []
        for kind in (torch.float32, torch.float64):
            model, x = network.load().to(kind), export.normalised(pictures[network.size]).to(kind)
            with torch.no_grad():
                outputs = channels_first(name, model(x))
            targets = torch.arange(len(x)) % outputs.shape[1]

            def score(out, targets=targets):
                return channels_first(name, out).mean((2, 3)).gather(1, targets[:, None])[:, 0]

            maps = cam.grad_cam(model, network.layer, x, score, relu=False)
            answers.append((outputs.flatten(1), maps.flatten(1)))
        return *answers, targets

    return ask


OPEN = """
<!doctype html><meta charset="utf-8"><div id="out"></div>
<script src="engine.js"></script>%s<script src="samples.js"></script>
"""
RUN = """([name, pixels, size, target]) => {
  const network = live.networks.get(name), bytes = atob(pixels), x = live.maps(3, size, size);
  for (let i = 0; i < bytes.length; i++) x.d[i] = bytes.charCodeAt(i);
  const values = live.forward(network, live.normalise(x)), y = values[network.output], n = y.h * y.w;
  const seed = y.d.map((_, i) => Math.floor(i / n) === target ? 1 / n : 0);
  const gradient = live.backward(network, values, network.output, seed, network.layer);
  const text = ({ d }) => btoa(Array.from(new Uint8Array(d.buffer), (t) => String.fromCharCode(t)).join(""));
  return [text(y), text(live.weighed(values[network.layer], gradient))];
}"""


@pytest.fixture
def bare(folder, page):
    """`bare(fast)` opens an empty page with the engine alone, or with the faster loop."""
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_page(fast=False):
        (folder / "bare.html").write_text(OPEN % ('<script src="fast.js"></script>' if fast else ""))
        page.goto((folder / "bare.html").as_uri())
        assert errors == []
        return page

    return open_page


def add(page, folder, name):
    page.add_script_tag(path=folder / f"net-{re.sub('[^a-z0-9]+', '-', name.lower())}.js")


def differences(page, network, images, answers):
    """Largest differences from PyTorch: of the output, relative to its size, and of the map, relative to its range.

    Where two numbers are equal but for rounding, the larger one is a matter of precision, and so is where the gradient
    goes: PyTorch's own maps in float32 and in float64 can differ by a thousandth. The nearer one is compared.
    """
    *precisions, targets = answers
    worst = [0.0, 0.0]
    for n, image in enumerate(images):
        pixels = base64.b64encode(image.numpy().tobytes()).decode()
        texts = page.evaluate(RUN, [network.name, pixels, network.size, int(targets[n])])
        found, found_map = (torch.tensor(np.frombuffer(base64.b64decode(text), "<f4")) for text in texts)
        outputs, maps = [], []
        for output, heat in precisions:
            outputs.append((found - output[n]).abs().max() / output[n].abs().max())
            maps.append((found_map - heat[n]).abs().max() / (heat[n].max() - heat[n].min()))
        worst = [max(worst[0], float(min(outputs))), max(worst[1], float(min(maps)))]
    return worst


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_page_and_pytorch_agree(bare, folder, networks, pictures, expected, name):
    page = bare(fast=True)
    assert page.evaluate("live.fast"), "the faster loop is not used here"
    add(page, folder, name)
    output, heat = differences(page, networks[name], pictures[networks[name].size], expected(name))
    assert output < TOLERANCE and heat < TOLERANCE


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_without_the_faster_loop_agrees_as_well(bare, folder, networks, pictures, expected, name):
    page = bare()
    add(page, folder, name)
    output, heat = differences(page, networks[name], pictures[networks[name].size][:3], expected(name))
    assert output < TOLERANCE and heat < TOLERANCE

"""The live figures of the chapters: each does to the network what PyTorch does; without scripts a sentence stays."""

import pytest
import torch
import torch.nn.functional as F

from book.live import export
from helpers import cam
from helpers.cam import find_layer
from helpers.chapters import chapter

FIGURES = {
    "receptive-field": {},
    "remove-block": {},
    "reuse": {},
    "gates": {"network": "SENet"},
    "bands": {},
    "masks": {"network": "U-Net"},
    "boxes": {},
    "grad-cam": {},
}
BY_NAME = {network.name: network for network in export.networks()}


@pytest.fixture(scope="module")
def picture():
    """The drawn picture that figures begin with, uint8 (1, 3, SHOWN, SHOWN)."""
    return export.drawn(max(export.SAMPLES) + 1)[0][export.SAMPLES[0], None]


@pytest.fixture(scope="module")
def samples():
    return export.drawn(max(export.SAMPLES) + 1)[0][list(export.SAMPLES)]


def seen(images, size=export.SIDE):
    """What a network gets to see, normalised."""
    if images.shape[-1] != size:
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).round()
    return export.normalised(images)


def found(page, action=None):
    """What the figure shows, after an action of the reader."""
    before = page.evaluate("Number(document.querySelector('div.live').dataset.shown)")
    if action:
        action()
        page.wait_for_function(f"Number(document.querySelector('div.live').dataset.shown) > {before}", timeout=120_000)
    return page.evaluate("document.querySelector('div.live').live")


def close(ours, theirs, tolerance=2e-3):
    """Halving a photograph leaves some pixels one level off, hence the tolerance; it is a share or a map's range."""
    ours, theirs = torch.tensor(ours).flatten(), theirs.detach().flatten()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)) < tolerance


def replaced(model, changes, x):
    """The answer (classes,) with the outputs of some modules replaced: {name: function of the output}."""
    handles = [
        find_layer(model, name).register_forward_hook(lambda m, i, out, change=change: change(out))
        for name, change in changes.items()
    ]
    try:
        with torch.no_grad():
            return model(x)[0].softmax(0)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.browser
@pytest.mark.parametrize("figure", FIGURES)
def test_nothing_is_loaded_before_the_reader_starts(live_page, page, figure):
    root = live_page(figure, start=False, **FIGURES[figure])
    assert [url.rsplit("/", 1)[1] for url in page.asked] == [f"test-{figure}.html", "live.css", "start.js"]
    assert root.locator("button").inner_text() == "Start the network"


@pytest.mark.browser
def test_without_scripts_the_sentence_stays(live_folder, browser):
    with browser.new_context(java_script_enabled=False) as context:
        name = live_folder / "still.html"
        name.write_text('<div class="live" data-figure="gates">still</div><script src="start.js"></script>')
        page = context.new_page()
        page.goto(name.as_uri())
        assert page.locator("div.live").inner_text() == "still"


@pytest.mark.browser
@pytest.mark.parametrize("figure", FIGURES)
def test_figure_fits_a_phone_and_everything_has_a_name(live_page, page, figure):
    live_page(figure, **FIGURES[figure])
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    unnamed = page.evaluate(
        """[...document.querySelectorAll(".live :is(button, input, select, canvas)")].filter((e) =>
          !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim() || e.querySelector("img[alt]")))
          .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.browser
def test_a_network_that_is_not_trained_gets_one_sentence(live_page, page, live_folder):
    root = live_page("gates", start=False, network="Nobody")
    root.locator("button").click()
    root.get_by_role("alert").filter(has_text="Nobody has no trained weights yet; the figure needs them.").wait_for()


@pytest.mark.browser
def test_receptive_field(live_page, page, picture):
    live_page("receptive-field")
    shown = found(page, lambda: page.get_by_label("convolution", exact=True).fill("3"))
    model, x = BY_NAME["VGG"].load(), seen(picture).requires_grad_()
    convolutions = [
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1
    ]
    maps, _ = cam.feature_map(model, convolutions[2], x)
    place = maps.shape[-1] // 2
    unit = maps[0, :, place, place].argmax()
    (gradient,) = torch.autograd.grad(maps[0, unit, place, place], x)
    effect = gradient[0].square().sum(0)
    assert shown["unit"] == unit and shown["half"] <= shown["sees"]
    rows = effect.sum(1).nonzero()
    assert rows.max() - rows.min() + 1 <= shown["sees"] <= rows.max() - rows.min() + 3, "the square is not the theory's"
    assert close(shown["effect"], effect, 0.02)


@pytest.mark.browser
def test_remove_block(live_page, page, picture):
    live_page("remove-block")
    whole = found(page)
    shown = found(page, lambda: page.get_by_label("without block 2").check())
    x, model = seen(picture), BY_NAME["ResNet"].load()
    assert close(whole[0], replaced(model, {}, x))
    assert close(shown[0], replaced(model, {"layer2.0.bn2": torch.zeros_like}, x))
    assert not close(shown[0], replaced(model, {}, x))
    assert shown[1] == whole[1]
    shown = found(page, lambda: page.get_by_label("without layer 6").check())
    vgg = BY_NAME["VGG"].load()
    modules = [m for m in vgg.modules() if isinstance(m, torch.nn.Conv2d)]
    name = next(n for n, m in vgg.named_modules() if m is modules[5])
    place = list(vgg._modules).index(name)
    skipped = torch.nn.Sequential(*[m for i, m in enumerate(vgg) if not place <= i < place + 3]).eval()
    assert close(shown[1], replaced(skipped, {}, x))


@pytest.mark.browser
def test_reuse(live_page, page, picture):
    live_page("reuse")
    label = "block 2, transition reads x1"
    shown = found(page, lambda: page.get_by_label(label).uncheck())
    x, model = seen(picture), BY_NAME["DenseNet"].load()
    block = model.features.block2
    entering = block.layers[0].norm1.num_features
    growth = block.layers[1].norm1.num_features - entering

    def cut(maps):
        maps = maps.clone()
        maps[:, entering : entering + growth] = 0
        return maps

    assert close(shown, replaced(model, {"features.block2": cut}, x))
    assert not close(shown, replaced(model, {}, x))


@pytest.mark.browser
@pytest.mark.parametrize("name", ["SENet", "CBAM"])
def test_gates_of_another_picture(live_page, page, picture, samples, name):
    live_page("gates", network=name)
    option = page.get_by_label("gates", exact=True).locator("option").nth(3)
    shown = found(page, lambda: page.get_by_label("gates", exact=True).select_option(option.inner_text()))
    model = BY_NAME[name].load()
    gates = [n for n, m in model.named_modules() if n.endswith("sigmoid")]
    kept = {}
    replaced(model, {n: lambda out, n=n: kept.setdefault(n, out) for n in gates}, seen(samples[2:3]))
    assert close(shown, replaced(model, {n: lambda out, n=n: kept[n] for n in gates}, seen(picture)))
    assert not close(shown, replaced(model, {}, seen(picture)))


@pytest.mark.browser
def test_bands(live_page, page, picture):
    live_page("bands")
    x = F.interpolate(picture.float(), export.SIDE, mode="bilinear", antialias=True).round()
    for kept, pixels in ((None, x), ("1", F.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).round())):
        shown = found(page, kept and (lambda: page.get_by_label("frequencies that stay").fill("1")))
        for ours, name in zip(shown, ("Frequency domain", "VGG", "ResNet", "MobileNet"), strict=True):
            assert close(ours, replaced(BY_NAME[name].load(), {}, export.normalised(pixels)), 0.02), (name, kept)


@pytest.mark.browser
@pytest.mark.parametrize("name", ["U-Net", "FCN"])
def test_masks(live_page, page, samples, name):
    live_page("masks", network=name)
    model, x = BY_NAME[name].load(), seen(samples[1:2], BY_NAME[name].size)
    with torch.no_grad():
        theirs = model(x)[0].argmax(0).flatten()
    ours = torch.tensor(found(page, lambda: page.locator(".live-samples button").nth(1).click()))
    assert (ours != theirs).float().mean() < 0.005 and ours.any()
    changed = torch.tensor(found(page, lambda: page.locator(".live-ways input").first.check()))
    if name == "FCN":
        model.score4.register_forward_hook(lambda m, i, out: torch.zeros_like(out))
    else:
        model.merge[0].register_forward_pre_hook(
            lambda m, given: torch.cat([torch.zeros_like(given[0][:, :128]), given[0][:, 128:]], 1)
        )
    with torch.no_grad():
        theirs = model(x)[0].argmax(0).flatten()
    assert (changed != theirs).float().mean() < 0.005 and (changed != ours).any()


@pytest.mark.browser
def test_boxes(live_page, page, picture):
    live_page("boxes")
    page.get_by_label("confidence at least").fill("0.05")
    shown = found(page, lambda: page.get_by_label("suppress above an overlap of").fill("0.5"))
    yolo = chapter("14_yolo")
    model = BY_NAME["YOLO"].load()
    with torch.no_grad():
        read = model.read(model(seen(picture, BY_NAME["YOLO"].size)))
    boxes = yolo.decode(read.box, 128.0).clamp(0, 128).flatten(1, 3)
    scores = (read.confidence[..., None] * read.classes[..., None, :]).flatten(1, 3)
    theirs = yolo.detections(boxes, scores, threshold=0.5, least=0.05)
    assert [one["label"] for one in shown] == theirs.label.tolist() and len(shown) > 0
    assert close([one["score"] for one in shown], theirs.score, 1e-4)
    assert close([one["box"] for one in shown], theirs.box, 1e-4)


@pytest.mark.browser
def test_grad_cam_of_a_class_at_a_layer(live_page, page, picture):
    live_page("grad-cam")
    page.get_by_label("class", exact=True).select_option("horse")
    layer = page.get_by_label("layer", exact=True)
    texts = layer.locator("option").all_inner_texts()
    text = next(text for text in texts if text.startswith("layer2 ("))
    shown = found(page, lambda: layer.select_option(text))
    model = BY_NAME["ResNet"].load()
    theirs = cam.grad_cam(model, "layer2", seen(picture), shown["asked"], relu=False)
    ours = torch.tensor(shown["map"])
    assert (ours - theirs.flatten()).abs().max() < 0.02 * (theirs.max() - theirs.min())

"""The live figures of the chapters: each does to the network what PyTorch does; without scripts a sentence stays."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import axe
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from book.live import export, stills
from helpers import cam
from helpers.cam import find_layer
from helpers.chapters import chapter
from helpers.settings import ROOT

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
    """The picture that figures begin with, uint8 (1, 3, SHOWN, SHOWN)."""
    return export.samples()[0][1][None]


@pytest.fixture(scope="module")
def samples():
    return torch.stack([picture for _, picture in export.samples()])


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


# ------------------------------------------------------------------------------------------------ still pictures


@pytest.fixture(scope="module")
def stored():
    return json.loads(stills.FOUND.read_text("utf-8"))


@pytest.mark.parametrize("name", stills.figures())
def test_the_still_is_small_and_that_of_the_committed_networks(stored, name):
    figure, still, file = stills.figures()[name], stored[name], stills.PICTURES / f"{name}.webp"
    made = {key: still[key] for key in ("of", "script", "networks")}
    assert made == stills.made_from(figure, made["networks"]) and made["networks"], "./course pages --measure"
    assert file.stat().st_size <= 30_000
    with Image.open(file) as picture:
        assert list(picture.size) == still["size"] and picture.width <= stills.WIDTH
    assert still["alt"].endswith(".") and set(stored) == {one.stem for one in stills.PICTURES.iterdir()}


def test_without_a_browser_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="Chromium is missing; on Debian: sudo apt install chromium"):
        stills.measure()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="playwright is not installed; `./course test` installs it."):
        stills.measure()


@pytest.fixture(scope="module")
def in_the_book(live_folder):
    """A page with chapter 6's figure, as the book has it: its address, and the scripts that the page asks for."""
    spec = importlib.util.spec_from_file_location("live_extension", ROOT / "pages/_ext/live.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    scripts = []
    app = SimpleNamespace(srcdir=ROOT, add_css_file=scripts.append, add_js_file=lambda name, **_: scripts.append(name))
    body = f"<p>before</p>{stills.figures()['gates-senet']}still</div><p>after</p>"
    context = {"body": body, "pathto": lambda name, resource: (ROOT / "pages" / name).as_uri()}
    extension.add_scripts(app, "chapters/06_senet", "page.html", context, None)
    plain = {"body": "<p>no figure</p>"}
    extension.add_scripts(app, "index", "page.html", plain, None)
    assert plain == {"body": "<p>no figure</p>"}
    address = live_folder / "in-the-book.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>'
    address.write_text(f'{head}{context["body"]}<script src="start.js"></script>')
    return address.as_uri(), scripts


@pytest.mark.browser
@pytest.mark.parametrize("scripts", [True, False])
def test_the_still_stands_until_the_figure_is_started(in_the_book, stored, browser, scripts):
    address, files = in_the_book
    assert files == ["live/live.css", "live/start.js"]
    with browser.new_context(java_script_enabled=scripts) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        still = page.locator("div.live > img")
        still.scroll_into_view_if_needed()
        assert still.get_attribute("alt") == stored["gates-senet"]["alt"]
        assert still.get_attribute("loading") == "lazy"
        size = [int(still.get_attribute(name)) for name in ("width", "height")]
        box = still.bounding_box()
        assert size == stored["gates-senet"]["size"] and [box["width"], box["height"]] == size
        assert ("still" in page.locator("div.live").inner_text()) != scripts
        if scripts:
            page.wait_for_function("document.querySelector('div.live > img').naturalWidth > 0")
            page.locator("button.live-start").click()
            page.locator(".live-card").wait_for()
            assert still.count() == 0


# ---------------------------------------------------------------------------------------------------- the figures


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
@pytest.mark.parametrize("figure", FIGURES)
def test_figure_works_without_the_faster_loop(live_folder, live_page, page, tmp_path, figure):
    shutil.copytree(live_folder, tmp_path / "live")
    (tmp_path / "live/fast.js").unlink()
    live_page(figure, folder=tmp_path / "live", **FIGURES[figure])
    assert found(page) and not page.evaluate("Boolean(live.fast)")


@pytest.fixture
def themed(live_page, page):
    """`themed(figure)` starts a figure in the book's colours, under the headings of a chapter."""

    def open_figure(figure):
        live_page(figure, **FIGURES[figure])
        for sheet in stills.SHEETS:
            page.add_style_tag(path=sheet)
        page.evaluate(
            """() => {
              const chapter = document.createElement("main");
              chapter.innerHTML = "<h1>A chapter</h1><h2>A part</h2><h3>A figure</h3>";
              chapter.append(document.querySelector("div.live"));
              document.body.prepend(chapter);
            }"""
        )

    return open_figure


@pytest.mark.browser
@pytest.mark.parametrize("figure", FIGURES)
def test_axe_finds_nothing_in_a_started_figure(themed, page, figure):
    themed(figure)
    assert sorted(axe.complaints(page, "div.live")) == []


@pytest.mark.browser
def test_a_fault_of_each_kind_would_be_found(themed, page):
    themed("grad-cam")
    page.evaluate(
        """() => {
          document.querySelector(".live-card canvas").removeAttribute("aria-label");
          document.querySelector(".live-samples img").removeAttribute("alt");
          document.querySelector(".live select").labels[0].remove();
        }"""
    )
    page.add_style_tag(content="html[data-theme=dark] .live .live-note { color: #333 }")
    found = {(rule, theme) for rule, theme, _ in axe.complaints(page, "div.live")}
    faults = {(rule, theme) for rule in ("role-img-alt", "image-alt", "select-name") for theme in ("light", "dark")}
    assert faults | {("color-contrast", "dark")} <= found and ("color-contrast", "light") not in found


SLIDERS = {
    "bands": ("frequencies that stay", "3"),
    "boxes": ("confidence at least", "0.03"),
    "receptive-field": ("convolution", "3"),
}


@pytest.mark.browser
@pytest.mark.parametrize("figure", FIGURES)
def test_only_rest_is_announced(live_page, page, figure):
    root = live_page(figure, **FIGURES[figure])
    page.evaluate(
        """async () => {
          await new Promise((said) => setTimeout(said, 600));
          window.said = [];
          for (const e of document.querySelectorAll(".live [role=status]"))
            new MutationObserver(() => window.said.push(e.textContent)).observe(e, { childList: true, subtree: true });
        }"""
    )
    page.clock.install(time=0)
    page.clock.pause_at(10)  # a slow machine must not look like a reader who rests
    for number in (1, 2, 5):
        found(page, root.locator(".live-samples button").nth(number).click)
    if figure in SLIDERS:  # two pictures may get the same sentence there, and that is not said again
        name, value = SLIDERS[figure]
        found(page, lambda: page.get_by_label(name, exact=True).fill(value))
    assert page.evaluate("window.said") == []
    page.clock.run_for(600)
    (said,) = page.evaluate("window.said")
    assert said.endswith(".")


@pytest.mark.browser
@pytest.mark.parametrize("figure", FIGURES)
def test_a_finger_scrolls_past_a_picture_that_is_not_dragged(live_page, figure):
    photo = live_page(figure, **FIGURES[figure]).locator(".live-photo")
    dragged = figure == "receptive-field"
    assert photo.evaluate("(one) => getComputedStyle(one).touchAction") == ("none" if dragged else "auto")


@pytest.mark.browser
def test_a_network_that_is_not_trained_gets_one_sentence(live_page, page, live_folder):
    root = live_page("gates", start=False, network="Nobody")
    root.locator("button").click()
    root.get_by_role("alert").filter(has_text="Nobody has no trained weights yet; the figure needs them.").wait_for()


def moved_by(picture, number, column, row):
    """Of VGG's convolution: the map that answers most at this place, and the squared gradient of that unit (H, W)."""
    model, x = BY_NAME["VGG"].load(), seen(picture).requires_grad_()
    convolutions = [
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1
    ]
    maps, _ = cam.feature_map(model, convolutions[number - 1], x)
    unit = maps[0, :, row, column].argmax()
    (gradient,) = torch.autograd.grad(maps[0, unit, row, column], x)
    return unit, gradient[0].square().sum(0)


@pytest.mark.browser
def test_receptive_field(live_page, page, picture):
    live_page("receptive-field")
    shown = found(page, lambda: page.get_by_label("convolution", exact=True).fill("3"))
    unit, effect = moved_by(picture, 3, column=32, row=32)
    assert shown["unit"] == unit and shown["half"] <= shown["sees"]
    rows = effect.sum(1).nonzero()
    assert rows.max() - rows.min() + 1 <= shown["sees"] <= rows.max() - rows.min() + 3, "the square is not the theory's"
    assert close(shown["effect"], effect, 0.02)


def hand(column, row):
    """Pixels that a unit of VGG's fourth convolution could see: first and last column, first and last row.

    Three convolutions of 3 see 7 x 7 around their place, the pooling after them 8 x 8 and in steps of 2, and the fourth
    convolution its neighbours in such steps: unit n sees from 2 n - 5 to 2 n + 6.
    """
    ends = [(2 * n - 5, 2 * n + 6) for n in (column, row)]
    return [min(export.SIDE - 1, max(0, end)) for pair in ends for end in pair]


def square(page):
    """The white square that the figure draws over what moves the unit: first and last column, first and last row."""
    pixels = page.get_by_label("What moves unit").evaluate(
        "(one) => Array.from(one.getContext('2d').getImageData(0, 0, 128, 128).data)"
    )
    white = (torch.tensor(pixels).view(128, 128, 4)[..., :3] == 255).all(-1)
    return [int(t) // 2 for axis in (0, 1) for t in white.any(axis).nonzero()[[0, -1], 0]]


@pytest.mark.browser
def test_receptive_field_moves_with_pointer_finger_and_arrow_keys(live_page, page, picture):
    root = live_page("receptive-field")
    found(page, lambda: page.get_by_label("convolution", exact=True).fill("4"))
    photo = root.locator(".live-photo")
    photo.scroll_into_view_if_needed()
    box, scrolled = photo.bounding_box(), page.evaluate("scrollY")

    def at(across, down):
        return {"x": box["x"] + across * box["width"], "y": box["y"] + down * box["height"]}

    def point(x, y):
        page.mouse.click(x, y)

    def finger(kind, *points):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    steps = [  # of 32 x 32 units: column and row
        (lambda: point(**at(8.5 / 32, 20.5 / 32)), 8, 20),
        (lambda: page.keyboard.press("ArrowRight"), 9, 20),
        (lambda: page.keyboard.press("ArrowUp"), 9, 19),
        (lambda: finger("touchStart", at(12.5 / 32, 12.5 / 32)), 12, 12),
        (lambda: finger("touchMove", at(17.5 / 32, 5.5 / 32)), 17, 5),
        (lambda: point(**at(0.5 / 32, 31.5 / 32)), 0, 31),
        (lambda: page.keyboard.press("ArrowLeft"), 0, 31),
    ]
    for action, column, row in steps:
        shown = found(page, action)
        unit, effect = moved_by(picture, 4, column, row)
        assert shown["unit"] == unit and close(shown["effect"], effect, 0.02), (column, row)
        left, right, top, bottom = hand(column, row)
        inside = torch.tensor(shown["effect"]).view(export.SIDE, -1)[top : bottom + 1, left : right + 1]
        assert float(inside.sum()) == pytest.approx(sum(shown["effect"])) and sum(shown["effect"]) > 0
        if 0 < column < 31:  # at the edge half of the square lies outside
            assert square(page) == pytest.approx([left, right, top, bottom], abs=1), (column, row)
        if (column, row) == (17, 5):
            finger("touchEnd")
    assert page.evaluate("scrollY") == scrolled  # the page did not move under the finger


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


GATES = {  # a choice of the menu: what it makes of the gates of a picture, given those of all pictures
    "the mean over the pictures": lambda own, all_of_them: all_of_them.mean(0, keepdim=True),
    "all open": lambda own, all_of_them: torch.ones_like(own),
    "its own, in reverse order": lambda own, all_of_them: own.flatten().flip(0).view_as(own),
}


@pytest.mark.browser
@pytest.mark.parametrize("choice", GATES)
@pytest.mark.parametrize("name", ["SENet", "CBAM"])
def test_gates_of_another_kind(live_page, page, picture, samples, name, choice):
    live_page("gates", network=name)
    shown = found(page, lambda: page.get_by_label("gates", exact=True).select_option(choice))
    model = BY_NAME[name].load()
    gates, kept = [n for n, m in model.named_modules() if n.endswith("sigmoid")], {}
    replaced(model, {n: lambda out, n=n: kept.setdefault(n, out) for n in gates}, seen(samples))
    changes = {n: lambda own, n=n: GATES[choice](own, kept[n]) for n in gates}
    assert close(shown, replaced(model, changes, seen(picture)))
    assert not close(shown, replaced(model, {}, seen(picture)))


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_gates_of_one_kind_stay_open(live_page, page, picture, kind):
    live_page("gates", network="CBAM")
    found(page, lambda: page.get_by_label("gates", exact=True).select_option("all open"))
    text = {"channel": "channels only", "spatial": "places only"}[kind]
    shown = found(page, lambda: page.get_by_label("of", exact=True).select_option(text))
    model = BY_NAME["CBAM"].load()
    gates = {n: torch.ones_like for n, m in model.named_modules() if n.endswith("sigmoid")}
    assert close(shown, replaced(model, {n: f for n, f in gates.items() if kind in n}, seen(picture)))
    assert not close(shown, replaced(model, gates, seen(picture)))


@pytest.mark.browser
def test_gates_that_are_shown_are_those_of_the_block(live_page, page, picture):
    live_page("gates", network="SENet")
    found(page, lambda: page.get_by_label("show", exact=True).select_option("layer1.0.se"))
    kept = []
    replaced(BY_NAME["SENet"].load(), {"layer1.0.se.sigmoid": kept.append}, seen(picture))
    mean = f"{float(kept[0].mean()):.2f}"
    label = f"Gates of layer1.0.se.sigmoid, sorted: before in grey, now in colour; means {mean} and {mean}"
    assert page.locator("canvas.live-chart").get_attribute("aria-label") == label


@pytest.mark.browser
def test_bands(live_page, page, picture):
    live_page("bands")
    x = F.interpolate(picture.float(), export.SIDE, mode="bilinear", antialias=True).round()
    for kept, pixels in ((None, x), ("1", F.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).round())):
        shown = found(page, kept and (lambda: page.get_by_label("frequencies that stay").fill("1")))
        for ours, name in zip(shown, ("Frequency domain", "VGG", "ResNet", "MobileNet"), strict=True):
            assert close(ours, replaced(BY_NAME[name].load(), {}, export.normalised(pixels)), 0.02), (name, kept)


WAYS = {  # a switch: the network, and the module that hears of the way across
    "without the maps across at stride 16": ("U-Net", "merge.0"),
    "without the maps across at stride 8": ("U-Net", "merge.1"),
    "without the scores of C4": ("FCN", "score4"),
    "without the scores of C3": ("FCN", "score3"),
}


@pytest.mark.browser
@pytest.mark.parametrize("way", WAYS)
def test_masks(live_page, page, samples, way):
    name, module = WAYS[way]
    live_page("masks", network=name)
    model, x = BY_NAME[name].load(), seen(samples[2:3], BY_NAME[name].size)
    with torch.no_grad():
        theirs = model(x)[0].argmax(0).flatten()
    ours = torch.tensor(found(page, lambda: page.locator(".live-samples button").nth(2).click()))
    assert (ours != theirs).float().mean() < 0.005 and ours.any()
    changed = torch.tensor(found(page, lambda: page.get_by_label(way, exact=True).check()))
    if name == "FCN":
        model.get_submodule(module).register_forward_hook(lambda m, i, out: torch.zeros_like(out))
    else:
        across = {"merge.0": 128, "merge.1": 64}[module]
        model.get_submodule(module).register_forward_pre_hook(
            lambda m, given: torch.cat([torch.zeros_like(given[0][:, :across]), given[0][:, across:]], 1)
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

"""The networks in the page: equal to PyTorch, faults seen, alone on a disk, and robust against what readers do."""

import base64
import functools
import http.server
import io
import shutil
import threading

import firefox
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from book.live import export
from helpers import cam
from helpers.data import voc_animals
from helpers.naming import CLASSES
from helpers.settings import ROOT

PICTURES = 20
TOLERANCE = 1e-4  # of the logits' size, and of a map's range


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
    """`expected(name)`: what PyTorch says to each picture: (outputs, maps) in float32 and in float64, and targets.

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
def engine(live_folder, live_page):
    """`engine(name, fast=True)`: a page with that network, with or without the faster loop."""

    def open_engine(name, fast=True):
        page = live_page()
        if not fast:
            # another page: in the first one the engine is declared already
            alone = live_folder / "test-reference.html"
            scripts = "".join(f'<script src="{name}"></script>' for name in ("engine.js", "samples.js"))
            alone.write_text(f'<!doctype html><meta charset="utf-8">{scripts}')
            page.goto(alone.as_uri())
        assert page.evaluate("Boolean(live.fast)") == fast
        slug = next(n.slug for n in export.networks() if n.name == name)
        page.add_script_tag(path=live_folder / f"net-{slug}.js")
        return page

    return open_engine


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
            if len(found) != len(output[n]) or len(found_map) != len(heat[n]):
                return [float("inf")] * 2
            outputs.append((found - output[n]).abs().max() / output[n].abs().max())
            maps.append((found_map - heat[n]).abs().max() / (heat[n].max() - heat[n].min()))
        worst = [max(worst[0], float(min(outputs))), max(worst[1], float(min(maps)))]
    return worst


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_page_and_pytorch_agree(engine, networks, pictures, expected, name):
    output, heat = differences(engine(name), networks[name], pictures[networks[name].size], expected(name))
    assert output < TOLERANCE and heat < TOLERANCE


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_without_the_faster_loop_agrees_as_well(engine, networks, pictures, expected, name):
    page = engine(name, fast=False)
    output, heat = differences(page, networks[name], pictures[networks[name].size][:3], expected(name))
    assert output < TOLERANCE and heat < TOLERANCE


@pytest.fixture(scope="module")
def other_browser(tmp_path_factory):
    if not firefox.PROGRAM:
        pytest.skip("Firefox is not installed")
    with firefox.firefox(tmp_path_factory.mktemp("firefox")) as page:
        yield page


@pytest.mark.browser
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_firefox_agrees_as_well(other_browser, live_folder, networks, pictures, expected, name, fast):
    scripts = ["engine.js", *["fast.js"] * fast, "samples.js", f"net-{networks[name].slug}.js"]
    alone = live_folder / "test-firefox.html"
    alone.write_text('<!doctype html><meta charset="utf-8">' + "".join(f'<script src="{s}"></script>' for s in scripts))
    other_browser.goto(alone.as_uri())
    assert other_browser.evaluate("() => Boolean(live.fast)") == fast
    few = pictures[networks[name].size][: 5 if fast else 1]
    output, heat = differences(other_browser, networks[name], few, expected(name))
    assert output < TOLERANCE and heat < TOLERANCE


FAULTS = {
    "padding": "network.steps.find((s) => s.op === 'conv' && s.shape[2] === 3).pad = 0",
    "eps": "network.steps.forEach((s) => { if (s.op === 'norm') s.eps = 1e-3; })",
    "channels of the picture": """const seen = live.normalise;
        live.normalise = (x) => { // red and blue change places
          const y = seen(x), n = y.d.length / 3, red = y.d.slice(0, n);
          y.d.copyWithin(0, 2 * n);
          y.d.set(red, 2 * n);
          return y;
        };""",
    "channels of a weight": "const w = network.steps[0].weight; [w[0], w[9]] = [w[9], w[0]]",
    "Grad-CAM's layer": "network.layer -= 1",
}


@pytest.mark.browser
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_page_is_seen(engine, networks, pictures, expected, fault):
    page = engine("VGG")
    page.evaluate("(fault) => { const network = live.networks.get('VGG'); eval(fault); }", FAULTS[fault])
    assert max(differences(page, networks["VGG"], pictures[64][:2], expected("VGG"))) > TOLERANCE


# ------------------------------------------------------------------------------------- each operation by itself


class Also(nn.Module):
    """A module that is a function of its input; `parts` are modules it uses."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def pair(x):
    """Selective kernels' two branches, weighed by a softmax over the pair."""
    first, second = x.split(2, dim=1)
    a, b = torch.stack([first, second]).softmax(0).unbind(0)
    return a * first + b * second


OPERATIONS = {
    "convolution": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2),
    "one pixel": nn.Conv2d(4, 3, 1, bias=False),
    "transposed": nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1),
    "batch norm": nn.BatchNorm2d(4, eps=1e-3).eval(),
    "in place": nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.SiLU(inplace=True)),
    "leaky": nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid(),
    "linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    "residual": Also(lambda x, f: x + f(x), nn.Conv2d(4, 4, 3, padding=1)),
    "same twice": Also(lambda x: x + x),
    "gate of channels": Also(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "gate of places": Also(lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    "largest": Also(lambda x: F.adaptive_max_pool2d(x, 1) * x.max(1, keepdim=True)[0]),
    "pair": Also(pair),
    "sum from nothing": Also(lambda x: sum([x, x * x])),
    "list": Also(lambda x: torch.cat([x, x.relu()], 1)),
    "shortcut": Also(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))),
    "padded pooling": nn.MaxPool2d(3, stride=2, padding=1),
    "mean pooling": nn.AvgPool2d(2),
    "mirror": nn.ReflectionPad2d((1, 2, 2, 1)),
    "repeat": nn.ReplicationPad2d((0, 1, 0, 1)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear with corners": nn.Upsample(size=(13, 13), mode="bilinear", align_corners=True),
    "nearest": nn.Upsample(scale_factor=2),
    "cut at the end": Also(lambda x: x[..., :-1, :-1]),
}


@pytest.mark.browser
def test_every_operation_and_its_gradient(live_page):
    """Each on a random picture of 4 maps, 8 x 8, weights in float16: the result, and the gradient at the picture."""
    page, wrong = live_page(), {}
    torch.manual_seed(0)
    for name, module in OPERATIONS.items():
        with torch.no_grad():
            for t in [*module.parameters(), *module.buffers()]:
                if t.is_floating_point():
                    t.copy_((t + 0.1 * torch.rand_like(t)).half().float())
        x = torch.randn(1, 4, 8, 8)
        recorder = export.Recorder(module, x)
        x.requires_grad_()
        y = module(x)
        seed = torch.randn_like(y)
        (gradient,) = torch.autograd.grad((y * seed).sum(), x)
        found = page.evaluate(
            """([network, x, seed]) => {
              live.add(network);
              const picture = live.maps(4, 8, 8);
              picture.d.set(x);
              const values = live.forward(network, picture);
              return [Array.from(values[network.output].d),
                Array.from(live.backward(network, values, network.output, seed, 0).d)];
            }""",
            [
                export.packed(recorder, name="one"),
                x.detach().flatten().tolist(),
                seed.flatten().tolist(),
            ],
        )
        for kind, ours, theirs in zip(("result", "gradient"), found, (y, gradient), strict=True):
            ours, theirs = torch.tensor(ours), theirs.detach().flatten()
            if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
                wrong[name, kind] = (ours, theirs)
    assert wrong == {}


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.GELU(), "gelu"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation"),
        (nn.MaxPool2d(3, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(3, ceil_mode=True, count_include_pad=False), "over the edge"),
        (nn.Conv2d(4, 4, (1, 3)), "kernel"),
        (Also(lambda x: 2 * x), "mul"),
        (nn.AdaptiveAvgPool2d(2), "adaptive"),
        (nn.ZeroPad2d(1), "padding"),
    ],
)
def test_what_the_page_cannot_do_is_refused_by_name(module, word):
    with pytest.raises(NotImplementedError, match=f"the page cannot do .*{word}"):
        export.Recorder(module, torch.randn(1, 4, 8, 8))


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="weight does not fit into float16"):
        export.Recorder(nn.Conv2d(4, 4, 1), torch.randn(1, 4, 8, 8))


def test_a_network_is_written_again_only_when_it_has_changed(live_folder, tmp_path, monkeypatch):
    shutil.copytree(live_folder, tmp_path / "live")
    monkeypatch.setattr(export, "record", lambda network: {"name": network.name})
    export.export(tmp_path / "live")
    assert all('"steps"' in path.read_text() for path in (tmp_path / "live").glob("net-*.js"))
    monkeypatch.setattr(export, "age", lambda network: "another")
    export.export(tmp_path / "live")
    assert not any('"steps"' in path.read_text() for path in (tmp_path / "live").glob("net-*.js"))


def test_statistics_are_those_of_the_photographs(monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    data = voc_animals(size=export.SHOWN)
    if not data.provenance.real:
        pytest.skip("VOC is not on this machine")
    assert torch.allclose(torch.tensor([export.MEAN, export.STD]), torch.stack([data.mean, data.std]), atol=1e-4)


# -------------------------------------------------------------------------------------------------------- the page


CLASSIFIERS = [network.name for network in export.networks() if network.names_pictures]


def settle(page, action=None):
    """Do something, and wait until every network has answered to it; returns the page's results."""
    page.wait_for_function("window.live === undefined && typeof live !== 'undefined' && live.page")
    before = page.evaluate("live.page.settled")
    if action:
        action()
    page.wait_for_function(
        f"live.page.settled > {before if action else 0} && Object.keys(live.page.results).length === {len(CLASSIFIERS)}"
        " && live.page.still()",
        timeout=120_000,
    )
    return page.evaluate("structuredClone(live.page.results)")


def by_itself(folder, name):
    """A file of this name with the page and nothing else."""
    body = '<div class="live" data-figure="page">still</div><script src="start.js"></script>'
    (folder / name).write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>{body}')
    return folder / name


@pytest.mark.browser
def test_the_page_answers_in_firefox(other_browser, live_folder):
    other_browser.goto(by_itself(live_folder, "test-firefox-page.html").as_uri())
    answered = other_browser.evaluate("""async () => {
      const ready = () => typeof live !== "undefined" && live.page && live.page.settled > 0 && live.page.still();
      for (let i = 0; i < 1200 && !ready(); i++) await new Promise((go) => setTimeout(go, 100));
      return Object.keys(live.page.results);
    }""")
    assert set(answered) == set(CLASSIFIERS)


def change(before, after):
    """Largest difference of a logit, for each network."""
    return {n: max(abs(a - b) for a, b in zip(before[n]["logits"], after[n]["logits"], strict=True)) for n in before}


@pytest.fixture
def opened(live_page, page):
    live_page("page")
    settle(page)
    return page


def input_of(page):
    """What the networks see, 0 to 255."""
    return torch.tensor(page.evaluate("Array.from(live.page.seen().d)")).float()


def file(name, content, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": content}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def upload(page, *given):
    page.set_input_files("input[type=file]", file(*given))


@pytest.mark.browser
def test_page_opens_from_the_disk_small_and_alone(opened, live_folder):
    asked = [url for url in opened.asked if not url.startswith(("data:", "blob:"))]
    assert all(url.startswith(live_folder.as_uri()) for url in asked)
    assert sum((live_folder / url.rsplit("/", 1)[1]).stat().st_size for url in asked) < 4e6
    assert opened.evaluate("live.page.first") < 60_000


@pytest.fixture
def addresses(live_folder, page):
    """The addresses of the page: on the disk, and from a server on this machine. `page` waits patiently."""
    page.set_default_timeout(120_000)
    name = by_itself(live_folder, "test-served.html")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=live_folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"file": name.as_uri(), "http": f"http://127.0.0.1:{server.server_port}/{name.name}"}
        server.shutdown()


@pytest.mark.browser
def test_page_answers_from_a_server_as_from_the_disk(addresses, page):
    answers = {}
    for way, address in addresses.items():
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(address)
        answers[way] = settle(page)
        start = address.rpartition("/")[0]
        assert len(asked) > len(CLASSIFIERS) and all(url.startswith((start, "data:")) for url in asked), way
    assert max(change(*answers.values()).values()) == 0


@pytest.mark.browser
def test_page_works_without_the_faster_loop(live_folder, live_page, page, tmp_path):
    shutil.copytree(live_folder, tmp_path / "live")
    (tmp_path / "live/fast.js").unlink()
    live_page("page", folder=tmp_path / "live")
    assert set(settle(page)) == set(CLASSIFIERS)
    assert not page.evaluate("Boolean(live.fast)")


@pytest.mark.browser
def test_a_photograph_through_the_page_gets_pytorchs_answer(opened, networks):
    """What is left are exact halves of a grey level, which PyTorch's float32 rounds by chance: one pixel in 4,000."""
    image = export.drawn(3)[0][2]
    small = F.interpolate(image[None].float(), export.SIDE, mode="bilinear", antialias=True).round().to(torch.uint8)
    photograph = Image.fromarray(image.permute(1, 2, 0).numpy())
    results = settle(opened, lambda: upload(opened, "p.png", encoded(photograph)))
    with torch.no_grad():
        for name in CLASSIFIERS:
            theirs = networks[name].load()(export.normalised(small))[0]
            assert (torch.tensor(results[name]["logits"]) - theirs).abs().max() < 0.02, name


@pytest.mark.browser
def test_a_photograph_stays_in_the_page_which_says_so(opened):
    before = len(opened.asked)
    settle(opened, lambda: upload(opened, "p.png", encoded(Image.new("RGB", (90, 60), (200, 120, 40)))))
    settle(opened, lambda: opened.locator(".live-photo").press("ArrowLeft"))
    asked = opened.asked[before:]
    assert asked and all(url.startswith("blob:") for url in asked)
    assert "A photograph never leaves this page: the networks come to it." in opened.locator(".live").inner_text()


@pytest.mark.browser
def test_a_file_dropped_on_the_page_is_taken_like_a_chosen_one(opened):
    image = export.drawn(5)[0][4].permute(1, 2, 0).numpy()
    photograph, other = encoded(Image.fromarray(image)), encoded(Image.fromarray(image[::-1].copy()))
    chosen = settle(opened, lambda: upload(opened, "chosen.png", photograph))
    flipped = settle(opened, lambda: upload(opened, "flipped.png", other))
    carried = opened.evaluate_handle(
        """(text) => {
          const carried = new DataTransfer(), bytes = Uint8Array.from(atob(text), (t) => t.charCodeAt(0));
          carried.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          return carried;
        }""",
        base64.b64encode(photograph).decode(),
    )
    card, live = opened.locator(".live-card").first, opened.locator("div.live")
    card.dispatch_event("dragover", {"dataTransfer": carried})
    assert "live-drop" in live.get_attribute("class")
    dropped = settle(opened, lambda: card.dispatch_event("drop", {"dataTransfer": carried}))
    assert "live-drop" not in live.get_attribute("class")
    assert max(change(chosen, dropped).values()) == 0 < min(change(flipped, dropped).values())
    beside = "new DragEvent('drop', { bubbles: true, cancelable: true })"
    assert opened.evaluate(f"document.body.dispatchEvent({beside})") is False  # else the browser would open the file


@pytest.mark.browser
def test_a_picture_of_the_camera_is_what_the_camera_sees(launch_browser, browser_type_launch_args, addresses, tmp_path):
    """The camera is Chromium's own, which plays a file; colours pass through YUV on the way."""
    image = export.drawn(3)[0][2].permute(1, 2, 0).numpy()
    seen = Image.new("RGB", (640, 480), (90, 140, 60))
    seen.paste(Image.fromarray(image).resize((480, 480)), (80, 0))
    film = tmp_path / "film.mjpeg"
    film.write_bytes(encoded(seen, "JPEG", quality=95))
    camera = ["device-for-media-stream", "ui-for-media-stream"]
    flags = [f"--use-fake-{name}" for name in camera] + [f"--use-file-for-fake-video-capture={film}"]
    browser = launch_browser(args=[*browser_type_launch_args["args"], *flags])
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(addresses["http"])
    settle(page)
    page.get_by_role("button", name="use the camera").click()
    shutter = page.get_by_role("button", name="take this picture")
    shutter.wait_for()
    track = page.evaluate_handle("document.querySelector('.live video').srcObject.getTracks()[0]")
    pictures = [input_of(page)]
    for action in (shutter.click, lambda: upload(page, "seen.png", encoded(seen))):
        settle(page, action)
        pictures.append(input_of(page))
    before, taken, chosen = pictures
    assert (taken - chosen).abs().mean() < 0.2 * (before - chosen).abs().mean()
    assert track.get_property("readyState").json_value() == "ended" and page.locator(".live video").count() == 0
    browser.close()


def test_photographs_are_of_the_pages_size_and_their_makers_are_named():
    files = sorted((export.HERE / "photographs").iterdir())
    pictures = [(name, picture) for name, picture in export.samples() if name.startswith("photograph of a ")]
    assert [file.name for file in files] == [name.removeprefix("photograph of a ") + ".png" for name, _ in pictures]
    terms, said = (ROOT / "THIRD_PARTY.md").read_text("utf-8"), "\n".join(export.beginning()["credits"])
    for file, (name, picture) in zip(files, pictures, strict=True):
        assert picture.shape == (3, export.SHOWN, export.SHOWN)
        assert f"`book/live/photographs/{file.name}`" in terms and name in said


def test_the_first_picture_is_one_that_all_classifiers_name_right(networks):
    name, picture = export.samples()[0]
    x = export.normalised(F.interpolate(picture[None].float(), export.SIDE, mode="bilinear", antialias=True).round())
    for classifier in CLASSIFIERS:
        with torch.no_grad():
            answer = CLASSES[int(networks[classifier].load()(x).argmax())]
        assert name == f"photograph of a {answer}", classifier


@pytest.mark.browser
def test_grad_cam_of_a_chosen_class_is_pytorchs(opened, networks):
    image = export.samples()[1][1][None].float()
    x = export.normalised(F.interpolate(image, export.SIDE, mode="bilinear", antialias=True).round())
    settle(opened, lambda: opened.locator(".live-samples button").nth(1).click())
    results = settle(opened, lambda: opened.get_by_label("Grad-CAM of", exact=True).select_option("ship"))
    for name in CLASSIFIERS:
        asked, ours = results[name]["asked"], torch.tensor(results[name]["map"])
        theirs = cam.grad_cam(networks[name].load(), networks[name].layer, x, asked, relu=False).flatten()
        assert CLASSES[asked] == "ship" != CLASSES[results[name]["best"]], name
        assert (ours - theirs).abs().max() < 0.02 * (theirs.max() - theirs.min()), name


@pytest.mark.browser
def test_the_mouse_drags_the_patch_and_takes_it_along(opened):
    before = settle(opened, lambda: opened.locator(".live-samples button").nth(1).click())
    photo = opened.locator(".live-photo")
    photo.scroll_into_view_if_needed()
    box = photo.bounding_box()

    def to(across, down):
        opened.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])

    def patch():
        """Rows and columns of the patch's colour: first and last."""
        pixels = photo.evaluate("(one) => Array.from(one.getContext('2d').getImageData(0, 0, 128, 128).data)")
        pixels = torch.tensor(pixels).view(128, 128, 4)[..., :3]
        grey = (pixels - 255 * torch.tensor(export.MEAN)).abs().amax(-1) < 1
        return [int(t) for axis in (1, 0) for t in (grey.sum(axis) > 16).nonzero()[[0, -1], 0]]

    covered = settle(opened, lambda: to(0.25, 0.5))
    assert patch() == pytest.approx([48, 79, 16, 47], abs=1)
    opened.mouse.down()
    dragged = settle(opened, lambda: to(0.75, 0.25))
    assert patch() == pytest.approx([16, 47, 80, 111], abs=1)
    assert min(change(before, covered).values()) > 1e-3 and min(change(covered, dragged).values()) > 1e-4
    opened.mouse.up()
    gone = settle(opened, lambda: to(-0.1, 0.25))
    assert max(change(before, gone).values()) == 0


@pytest.mark.browser
def test_the_patch_moves_by_keyboard_and_goes(opened):
    before = settle(opened, lambda: opened.locator(".live-samples button").nth(1).click())
    opened.locator(".live-photo").focus()
    covered = settle(opened, lambda: opened.keyboard.press("ArrowLeft"))
    moved = settle(opened, lambda: opened.keyboard.press("ArrowUp"))
    assert min(change(before, covered).values()) > 1e-3 and min(change(covered, moved).values()) > 1e-4
    gone = settle(opened, lambda: opened.keyboard.press("Escape"))
    assert max(change(before, gone).values()) == 0


@pytest.mark.browser
def test_a_finger_drags_the_patch_which_stays_where_it_was_lifted(opened):
    before = settle(opened, lambda: opened.locator(".live-samples button").nth(1).click())
    photo = opened.locator(".live-photo")
    photo.scroll_into_view_if_needed()
    box, top = photo.bounding_box(), opened.evaluate("scrollY")
    finger = opened.context.new_cdp_session(opened)
    finger.send("Emulation.setTouchEmulationEnabled", {"enabled": True})

    def touch(kind, *place):
        at = [{"x": box["x"] + place[0] * box["width"], "y": box["y"] + place[1] * box["height"]}] if place else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    covered = settle(opened, lambda: touch("touchStart", 0.5, 0.5))
    dragged = settle(opened, lambda: [touch("touchMove", 0.5, 0.5 - step / 20) for step in range(1, 6)])
    assert min(change(before, covered).values()) > 1e-3 and min(change(covered, dragged).values()) > 1e-4
    assert opened.evaluate("scrollY") == top  # the page did not move under the finger
    touch("touchEnd")
    opened.wait_for_timeout(300)
    lifted = settle(opened)
    assert max(change(dragged, lifted).values()) == 0


@pytest.mark.browser
def test_a_nudge_takes_the_answer_down_and_random_signs_do_less(opened):
    before = settle(opened)
    opened.get_by_label("against", exact=True).select_option("ResNet")
    by = opened.get_by_label("by", exact=True)
    nudged = settle(opened, lambda: by.fill("4"))
    random = settle(opened, lambda: opened.get_by_label("random signs").check())
    answer = before["ResNet"]["best"]
    margin = [r["ResNet"]["logits"][answer] - max(v for i, v in enumerate(r["ResNet"]["logits"]) if i != answer)
              for r in (before, nudged, random)]  # fmt: skip
    assert margin[1] < margin[0] - 1 and abs(margin[2] - margin[0]) < abs(margin[1] - margin[0])


@pytest.mark.browser
def test_the_others_see_the_nudge_and_the_control_moves_every_number_as_far(opened):
    before, plain = settle(opened), input_of(opened)
    opened.get_by_label("against", exact=True).select_option("ResNet")
    nudged = settle(opened, lambda: opened.get_by_label("by", exact=True).fill("1"))
    moved = {"gradient": input_of(opened) - plain}
    random = settle(opened, lambda: opened.get_by_label("random signs").check())
    moved["random"] = input_of(opened) - plain
    for name in CLASSIFIERS:
        assert change(before, nudged)[name] > 1e-3 and change(before, random)[name] > 1e-3, name
    within = (plain > 0) & (plain < 255)
    for signs, by in moved.items():
        assert (by[within].abs() == 1).float().mean() > 0.99, signs
        assert 0.3 < (by[within] > 0).float().mean() < 0.7, signs
    assert (moved["gradient"] != moved["random"]).float().mean() > 0.3


@pytest.mark.browser
def test_occlusion_map_is_what_pytorch_loses(opened, networks):
    before = settle(opened)["ResNet"]
    opened.locator(".live-card", has_text="Wide").locator("..").locator("[aria-label=ResNet] button").click()
    opened.wait_for_function("live.page.occluded", timeout=120_000)
    ours = torch.tensor(opened.evaluate("live.page.occluded.map"))
    image = export.samples()[0][1][None].float()
    small = F.interpolate(image, export.SIDE, mode="bilinear", antialias=True).round()
    hidden = small.repeat(64, 1, 1, 1)
    mean = 255 * torch.tensor(export.MEAN)[:, None, None]
    for i in range(64):
        top, left = (8 * (i // 8) - 4, 8 * (i % 8) - 4)
        hidden[i, :, max(0, top) : top + 16, max(0, left) : left + 16] = mean
    with torch.no_grad():
        logits = networks["ResNet"].load()(export.normalised(torch.cat([small, hidden])))[:, before["asked"]]
    assert torch.allclose(ours, logits[0] - logits[1:], atol=0.05)


LARGE = functools.partial(Image.new, "1", (10_000, 10_000))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64"/></svg>'
BAD = {
    "100 megapixels": ("large.png", lambda: encoded(LARGE()), "image/png", "100 million pixels"),
    "SVG": ("shape.svg", lambda: SVG, "image/svg+xml", "An SVG holds shapes"),
    "text": ("notes.jpg", lambda: b"not a picture", "image/jpeg", "notes.jpg is no picture"),
    "empty": ("empty.png", lambda: b"", "image/png", "empty.png is no picture"),
    "one pixel": ("dot.png", lambda: encoded(Image.new("RGB", (1, 1))), "image/png", "1 x 1 pixels"),
}


@pytest.mark.browser
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_gets_one_sentence_and_the_page_goes_on(opened, bad):
    name, content, kind, sentence = BAD[bad]
    upload(opened, name, content(), kind)
    says = opened.locator(".live-chooser .live-says")
    says.filter(has_text=sentence).wait_for(timeout=120_000)
    assert says.inner_text().count(".") <= 3
    settle(opened, lambda: opened.locator(".live-samples button").nth(2).click())
    assert says.inner_text() == ""


@pytest.mark.browser
def test_a_camera_that_is_refused_gets_one_sentence(opened):
    opened.evaluate("() => { (navigator.mediaDevices ?? {}).getUserMedia = async () => { throw new Error(); }; }")
    opened.get_by_role("button", name="use the camera").click()
    opened.locator(".live-says", has_text="There is no camera, or it was refused").wait_for()
    settle(opened, lambda: opened.locator(".live-samples button").nth(2).click())


@pytest.mark.browser
def test_grey_and_turned_photographs_come_in_as_they_look(opened):
    grey = Image.fromarray(np.tile(np.arange(0, 128, dtype=np.uint8), (128, 1)))  # dark left, bright right
    upright = settle(opened, lambda: upload(opened, "grey.png", encoded(grey)))
    turned = Image.fromarray(np.rot90(np.asarray(grey), -1).copy())
    exif = turned.getexif()
    exif[0x0112] = 8  # it must be turned back by 90 degrees
    again = settle(
        opened, lambda: upload(opened, "turned.jpg", encoded(turned, "JPEG", exif=exif, quality=100), "image/jpeg")
    )
    sideways = settle(opened, lambda: upload(opened, "sideways.png", encoded(turned)))
    total = lambda a, b: sum(change(a, b).values())  # noqa: E731
    assert total(upright, again) < 0.2 * total(upright, sideways)


@pytest.mark.browser
def test_nothing_is_announced_before_all_networks_are_there(live_page, page):
    page.add_init_script(  # who waits half a second for a network hears nothing either
        """window.said = [];
        const wait = window.setTimeout;
        window.setTimeout = (work, time, ...given) => wait(work, 0, ...given);
        new MutationObserver((changes) => {
          for (const { target } of changes) if (target.closest?.("p.live-says")) window.said.push(target.textContent);
        }).observe(document, { childList: true, subtree: true });"""
    )
    live_page("page")
    settle(page)
    page.wait_for_function("window.said.length > 0")
    assert page.evaluate("window.said") == [f"The networks say: {len(CLASSIFIERS)} cat."]


@pytest.mark.browser
def test_everything_has_a_name_and_only_rest_is_announced(opened):
    unnamed = opened.evaluate(
        """[...document.querySelectorAll(".live :is(button, input, select, canvas)")].filter((e) =>
          !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim() || e.querySelector("img[alt]")))
          .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    opened.evaluate(
        """async () => {
          await new Promise((said) => setTimeout(said, 600));
          window.said = 0;
          for (const e of document.querySelectorAll(".live [role=status]"))
            new MutationObserver(() => { window.said++; }).observe(e, { childList: true, subtree: true });
        }"""
    )
    opened.clock.install(time=0)
    opened.clock.pause_at(10)  # a slow machine must not look like a reader who rests
    opened.get_by_label("by", exact=True).focus()
    for _ in range(3):
        opened.keyboard.press("ArrowRight")
    settle(opened, lambda: opened.keyboard.press("ArrowRight"))
    assert opened.evaluate("window.said") == 0
    opened.clock.run_for(600)
    assert opened.evaluate("window.said") == 1

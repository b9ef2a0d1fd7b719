"""The book: builds without a warning, asks no network for anything, and its figures move."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading

import axe
import nbformat
import pytest
import yaml

from book import build, minutes, repository
from helpers.chapters import names
from helpers.settings import ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    out = tmp_path_factory.mktemp("book") / "html"
    assert build.build(out) == 0, "Sphinx warned; its messages are above"
    return out


@pytest.fixture
def source(tmp_path):
    """The book's own files without the chapters, to break."""
    for name in ("conf.py", "_config.yml", "references.bib", "index.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "pages", tmp_path / "pages")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters: [{file: pages/bibliography}]\n")
    (tmp_path / "index.md").write_text(
        "# A book\n\n{cite}`simonyan2015vgg` and [a page](pages/bibliography).\n\n```{way-in}\n```\n"
    )
    return tmp_path


def test_every_page_is_there(html):
    assert {f"chapters/{name}" for name in names()} <= set(TOC)
    for page in TOC:
        text = (html / f"{page}.html").read_text()
        assert f"<title>{CONFIG['title']}" in text or f"{CONFIG['title']}</title>" in text


def test_pages_that_nobody_lists_are_not_built(html):
    built = {path.relative_to(html).with_suffix("").as_posix() for path in html.rglob("*.html")}
    assert {page for page in built - set(TOC) if not page.startswith("_static/")} <= {"search", "genindex"}


def test_no_two_papers_are_cited_alike(html):
    """Papers by the same first author of the same year have a letter behind the year in references.bib."""
    papers = {}
    for page in TOC:
        for title, label in re.findall(
            r'href="[^"]*bibliography\.html#\w+" title="([^"]*)">(.*?)</a>', (html / f"{page}.html").read_text()
        ):
            papers.setdefault(label, set()).add(title)
    assert len(papers) > 50
    assert {label: titles for label, titles in papers.items() if len(titles) > 1} == {}


BUTTONS = ["colab.research.google.com", "mybinder.org", "/issues/new", "fa-github"]


def test_buttons_lead_to_the_public_address_or_are_absent(source, tmp_path, monkeypatch):
    monkeypatch.delenv("COURSE_REPOSITORY", raising=False)
    chapter = names()[0]
    (source / "chapters").mkdir()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter")])
    nbformat.write(nb, source / f"chapters/{chapter}.ipynb")
    toc = source / "_toc.yml"
    toc.write_text(toc.read_text().replace("bibliography}", f"bibliography}}, {{file: chapters/{chapter}}}"))
    pages, fronts = [], []
    for address in ("", "https://github.com/someone/papers"):
        monkeypatch.setattr(repository, "address", lambda address=address: address)
        assert build.build(tmp_path / "out/html", source) == 0
        pages.append((tmp_path / f"out/html/chapters/{chapter}.html").read_text())
        fronts.append(re.sub("<[^>]+>", "", (tmp_path / "out/html/index.html").read_text()))
    assert "git clone" not in fronts[0] and "./course lab" in fronts[0]
    assert "git clone https://github.com/someone/papers\ncd papers\n./course lab" in fronts[1]
    absent, present = pages
    assert not [button for button in BUTTONS if button in absent]
    assert f"colab.research.google.com/github/someone/papers/blob/main/chapters/{chapter}.ipynb" in present
    assert f"mybinder.org/v2/gh/someone/papers/main?urlpath=lab/tree/chapters/{chapter}.ipynb" in present
    assert "https://github.com/someone/papers/issues/new" in present


@pytest.mark.parametrize(
    "remote, address",
    [
        ("https://github.com/a/b.git", "https://github.com/a/b"),
        ("https://user:secret@github.com/a/b", "https://github.com/a/b"),
        ("git@github.com:a/b.git\n", "https://github.com/a/b"),
        ("ssh://git@gitlab.com/a/b.c/", "https://gitlab.com/a/b.c"),
        ("https://git.example.org/a/b", ""),
        ("http://localhost:3000/a/b", ""),
        ("../somewhere", ""),
        ("github.com/a/b", ""),
        ("", ""),
    ],
)
def test_only_public_remotes_are_addresses(remote, address):
    assert repository.public(remote) == address


def test_the_setting_comes_before_the_remote(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert repository.address(tmp_path) == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", "git@github.com:a/b.git"], check=True)
    assert (repository.setting(tmp_path), repository.address(tmp_path)) == ("", "https://github.com/a/b")
    with open(tmp_path / "pyproject.toml", "a") as file:
        file.write("urls.Repository = 'https://gitlab.com/c/d'\n")
    assert repository.address(tmp_path) == "https://gitlab.com/c/d"
    (tmp_path / "pyproject.toml").write_text("[project]\nurls.Repository = 'https://example.org'\n")
    with pytest.raises(ValueError, match="'https://example.org' is not the address"):
        repository.address(tmp_path)


def test_a_page_is_built_again_when_its_still_picture_is_another(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("book") / "html"
    (source / "pages/figure.md").write_text('# A figure\n\n<div class="live" data-figure="boxes">still</div>\n')
    toc = source / "_toc.yml"
    toc.write_text(toc.read_text().replace("bibliography}", "bibliography}, {file: pages/figure}"))
    for alt in ("One box.", "Two boxes."):
        (source / "pages/live.json").write_text(json.dumps({"boxes": {"alt": alt, "size": [8, 8]}}))
        assert build.build(out, source) == 0
        assert f'alt="{alt}" width="8"' in (out / "pages/figure.html").read_text()


@pytest.mark.parametrize("name", names())
def test_chapter_links_to_the_glossary_and_the_notation(html, name):
    text = (html / f"chapters/{name}.html").read_text()
    article = text[text.index("<article") : text.index("</article>")]
    assert "../pages/glossary.html" in article and "../pages/notation.html" in article


@pytest.mark.parametrize("name", names())
def test_chapter_shows_its_committed_outputs_and_no_traceback(html, name):
    text = (html / f"chapters/{name}.html").read_text()
    assert "course-headline" in text and "course-figure" in text
    assert "Traceback" not in text
    assert not re.search(r"<p>\s*\|.*\n\s*\|", text), "a table that is shown as text"


def test_the_reading_orders_give_every_chapter_its_minutes():
    page = minutes.PAGE.read_text()
    found = re.findall(r"^\|.*\(\.\./chapters/(\w+)\) \|.*\| [\d.]+ \|$", page, re.MULTILINE)
    assert found == names()
    assert page == minutes.text(), "a chapter was run again: ./course pages"


def test_sound_source_builds(source, tmp_path):
    assert build.build(tmp_path / "out/html", source) == 0


@pytest.mark.parametrize(
    "line",
    [
        "{cite}`nobody1999`",
        "{ref}`nowhere`",
        "[gone](pages/gone)",
        "{eq}`no-equation`",
        "{py:func}`nowhere`",
        "{nosuchrole}`x`",
    ],
)
def test_broken_reference_is_an_error(source, tmp_path, line):
    with open(source / "index.md", "a") as index:
        index.write(f"\n{line}\n")
    assert build.build(tmp_path / "out/html", source) != 0


def test_conf_takes_its_settings_from_config(source):
    settings = CONFIG | {"title": "Another title"}
    (source / "_config.yml").write_text(yaml.safe_dump(settings))
    code = "import conf; print(conf.html_title, conf.numfig)"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.stdout.strip() == "Another title True", done.stderr


@pytest.fixture
def opened(html, page):
    """`open(name)` shows a page of the book from the disk; returns the page and all that it asked the network for."""
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    page.set_default_timeout(120_000)  # the machine may be busy

    def open_page(name):
        page.goto((html / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        return page, asked, complaints

    return open_page


@pytest.mark.browser
@pytest.mark.parametrize("name", TOC)
def test_page_read_from_disk_asks_no_network_and_fits_a_phone(opened, name):
    page, asked, complaints = opened(name)
    assert asked == [] and complaints == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_a_request_to_the_network_would_be_seen(opened, html):
    text = (html / "index.html").read_text()
    (html / "asks.html").write_text(text.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'))
    _, asked, _ = opened("asks")
    (html / "asks.html").unlink()
    assert asked == ["http://127.0.0.1:9/x.png"]


@pytest.mark.browser
def test_equations_are_drawn(opened):
    page, _, _ = opened("pages/notation")
    equations = page.locator("mjx-container mjx-math")
    equations.first.wait_for(timeout=120_000)
    assert equations.count() >= 10
    assert "\\left" not in page.locator("article").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("name", names())
def test_sliders_move_by_keyboard(opened, name):
    page, _, complaints = opened(f"chapters/{name}")
    figures = page.locator("figure.explorable")
    assert figures.count() >= 1, "no interactive figure"
    for figure in figures.all():
        image = figure.locator("img")
        before = image.get_attribute("src"), image.get_attribute("alt")
        for slider in figure.locator("input").all():
            slider.focus()
            at_the_end = slider.input_value() == slider.get_attribute("max")
            page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")
            after = image.get_attribute("src"), image.get_attribute("alt")
            assert before[0] != after[0] and before[1] != after[1], "the slider does not change picture and text"
            assert slider.get_attribute("aria-valuetext") == slider.locator("xpath=../output").inner_text()
            before = after
    assert complaints == []


CHAPTERS = [f"chapters/{name}" for name in names()]
FIRST_SCREEN = 1_500_000  # bytes, as they lie on the disk; many servers send a third of it
ON_SCREEN = """(selector) => [...document.querySelectorAll(selector)].some((one) => {
    const place = one.getBoundingClientRect();
    return place.width > 0 && place.top < innerHeight && place.bottom > 0;
})"""


@pytest.fixture(scope="module")
def server(html):
    """The book on a server that says nothing; returns its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("name", TOC)
def test_first_screen_needs_few_bytes(server, page, name):
    """All that the browser has fetched when the first screen stands, its equations drawn; networks come after it."""
    loaded = []
    page.on("response", lambda response: loaded.append(response))
    page.goto(f"{server}/{name}.html", wait_until="load")
    if page.evaluate(ON_SCREEN, "article .math"):
        page.locator("mjx-container mjx-math").first.wait_for(timeout=120_000)
    sizes = {response.url: int(response.headers.get("content-length", 0)) for response in loaded}
    sizes = {url: size for url, size in sizes.items() if "/live/net-" not in url}
    assert sum(sizes.values()) <= FIRST_SCREEN, sorted(((size, url) for url, size in sizes.items()), reverse=True)[:8]


@pytest.mark.parametrize("name", TOC)
def test_pictures_are_files_that_wait_and_have_a_size(html, name):
    page = html / f"{name}.html"
    text = page.read_text()
    assert not re.search(r"data:image/(?!svg)", text)
    for tag in re.findall(r"<img\b[^>]*>", text[text.index("<article") : text.index("</article>")]):
        assert re.search(r' width="\d+"', tag) and re.search(r' height="\d+"', tag) and 'loading="lazy"' in tag, tag
        assert (page.parent / re.search(r'src="([^"]+)"', tag)[1]).exists(), tag


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_and_tables_have_numbers_and_folds_say_what_is_in_them(html, name):
    text = (html / f"{name}.html").read_text()
    article = text[text.index("<article") : text.index("</article>")]
    chapter = int(name.removeprefix("chapters/")[:2])
    for kind, opening in {"figure": '<figure class="course-figure', "table": "<thead>"}.items():
        numbers = re.findall(
            rf'<span class="caption-number" id="{kind}-{chapter}-(\d+)">{kind.title()} {chapter}', article
        )
        assert [int(number) for number in numbers] == list(range(1, article.count(opening) + 1)), kind
    assert article.count("<caption>") == article.count("<thead>")
    labels = re.findall(r'<p class="collapsed admonition-title">(.*?)</p>', article)
    assert labels and len(labels) == article.count("<summary><p")
    said = r"Show (code of (Figure|Table) \d|code of the output|code: \w|solution: \w|code$)"
    assert [label for label in labels if not re.match(said, label)] == []
    assert "cell source" not in article and "Toggle hidden" not in article


@pytest.mark.parametrize("name", TOC)
def test_no_column_is_headed_by_nothing(html, name):
    text = (html / f"{name}.html").read_text()
    assert not re.search(r"<th\b[^>]*>\s*(<p>\s*</p>)?\s*</th>", text)


@pytest.mark.browser
@pytest.mark.parametrize("name", [CHAPTERS[0], CHAPTERS[12]])
def test_paper_shows_what_is_folded_in_light_colours(opened, name):
    page, _, _ = opened(name)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    folds = page.locator("article details")
    closed = folds.evaluate_all("all => all.filter(one => !one.open).length")
    assert closed == folds.count() > 5
    assert not page.locator(".course-frames").first.is_visible()
    for media, open_folds, theme in [("print", folds.count(), "light"), ("screen", 0, "dark")]:
        page.emulate_media(media=media)
        page.wait_for_function("n => document.querySelectorAll('article details[open]').length === n", arg=open_folds)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        sheet = page.locator(".course-frames").first
        assert sheet.is_visible() == (media == "print")
        assert page.locator(".course-slider").first.is_visible() == (media == "screen")
        if media == "print":
            page.wait_for_function(
                "[...document.querySelectorAll('.course-frames img')].every(one => one.naturalWidth)"
            )
            assert 2 <= sheet.locator("img").count() <= 6


@pytest.mark.browser
def test_without_scripts_there_is_a_notice_and_still_pictures(html, browser):
    page = browser.new_page(java_script_enabled=False)
    page.goto((html / f"{CHAPTERS[12]}.html").as_uri())
    assert page.locator(".course-noscript").is_visible()
    assert page.locator(".course-frames img").first.is_visible()
    assert not page.locator(".course-slider").first.is_visible()
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["pages/gallery", "pages/results", CHAPTERS[0]])
def test_pictures_are_not_dimmed_in_the_dark(opened, name):
    page, _, _ = opened(name)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    looks = page.locator("article figure img").evaluate_all("all => all.map(one => getComputedStyle(one).filter)")
    assert looks and set(looks) == {"none"}


@pytest.mark.browser
@pytest.mark.parametrize("name", ["pages/gallery", CHAPTERS[0]])
def test_pictures_keep_their_shape(opened, name):
    page, _, _ = opened(name)
    for image in page.locator("article figure img:visible").all():
        image.scroll_into_view_if_needed()
        shape = image.evaluate(
            """async (one) => {
                await one.decode();
                const padding = 2 * parseFloat(getComputedStyle(one).paddingLeft);
                const shown = (one.offsetWidth - padding) / (one.offsetHeight - padding);
                return shown / (one.naturalWidth / one.naturalHeight);
            }"""
        )
        assert shape == pytest.approx(1, abs=0.02)


@pytest.mark.browser
@pytest.mark.parametrize(
    "words, explained",
    [("mAP", {"14_yolo"}), ("residual block", {"02_resnet"}), ("IoU", {"12_fcn", "13_fpn"})],  # as the glossary says
)
def test_search_finds_the_chapter_that_explains_a_term(opened, words, explained):
    page, _, _ = opened("search")
    page.goto(page.url + f"?q={words.replace(' ', '+')}")
    hits = page.locator("#search-results li > a")
    chapters = page.locator('#search-results li > a[href^="chapters/"]')
    chapters.first.wait_for(timeout=120_000)
    names = [hit.first.get_attribute("href").partition(".html")[0] for hit in (hits, chapters)]
    assert names[1].removeprefix("chapters/") in explained
    assert names[0] in (names[1], "pages/glossary")


@pytest.mark.browser
def test_what_a_phone_cuts_off_fades_at_the_edge(opened):
    page, _, _ = opened(CHAPTERS[7])
    page.set_viewport_size({"width": 390, "height": 844})
    page.keyboard.press("Shift")  # a reader who moves: the equations are drawn
    page.locator("mjx-container mjx-math").first.wait_for(state="attached", timeout=120_000)
    page.wait_for_timeout(1000)
    ends = {"pre": "one.scrollWidth - one.clientWidth", "mjx-container": "right(one.firstElementChild) - right(one)"}
    for wide, beyond in ends.items():
        found = page.locator(f"article {wide}").evaluate_all(
            f"""(all) => {{
                const right = (one) => one.getBoundingClientRect().right;
                return all.filter(one => one.checkVisibility())
                    .map(one => [{beyond} > 2, getComputedStyle(one).maskImage !== "none"]);
            }}"""
        )
        assert [True, True] in found and [False, False] in found, f"the page has no {wide} for this test"
        assert all(cut == cue for cut, cue in found), wide
    whole = page.locator("article figure.course-cut figcaption").evaluate_all(  # a caption is not cut off
        "(all) => all.map(one => parseFloat(one.parentElement.style.getPropertyValue('--caption')) - one.offsetHeight)"
    )
    assert whole and all(0 <= more < 20 for more in whole)
    cut = page.locator("article pre.course-cut")
    before = cut.count()
    cut.first.evaluate("one => { one.scrollLeft = 10_000 }")
    page.wait_for_function(
        "before => document.querySelectorAll('article pre.course-cut').length === before - 1", arg=before
    )


THEMES_OWN = {
    ("region", ".sidebar-primary-items__start > .sidebar-primary-item:nth-child(1)")
}  # no landmark: the title


@pytest.mark.browser
@pytest.mark.parametrize("name", TOC)
def test_axe_finds_nothing_but_what_is_the_themes(opened, name):
    page, _, _ = opened(name)
    assert sorted({(rule, place) for rule, _, place in axe.complaints(page)} - THEMES_OWN) == []


@pytest.mark.browser
@pytest.mark.parametrize(
    "rule, fault",
    [
        ("color-contrast", "document.querySelector('article p').style.color = '#ccc'"),
        ("color-contrast", "document.querySelectorAll('pre .k')[9].style.backgroundColor = '#777'"),
        ("image-alt", "document.querySelector('article img').removeAttribute('alt')"),
        ("empty-table-header", "document.querySelector('article th').textContent = ''"),
    ],
)
def test_a_fault_of_each_kind_would_be_found(opened, rule, fault):
    page, _, _ = opened("chapters/01_vgg")
    page.evaluate(fault)
    assert rule in {rule for rule, _, _ in axe.complaints(page)}

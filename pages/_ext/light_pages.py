"""Pages that show their first screen soon: pictures are files, and what a page does not use is not loaded.

In the notebooks every picture travels as a data URI. Here each becomes a file that the browser fetches when it comes
into view; its width and height stand in the page, so that nothing jumps.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import imagesize

FOLDER = "_images"
DATA_URI = re.compile(r"data:image/(webp|png|jpeg);base64,([A-Za-z0-9+/=]+)")
IMAGE = re.compile(r"<img\b[^>]*>")
PLAIN = re.compile(r'<span class="(?:n|nn|p|w)">([^<]*)</span>')  # names and brackets: the colour of all text
EXPLORABLE = re.compile(r'<figure class="course-figure explorable".*?</figure>', re.DOTALL)
FRAMES = re.compile(r"\}\)\((\[.*\]), (\[.*\])\);\s*</script>")
ON_PAPER = 6  # frames of an interactive figure

SEARCH = re.compile(r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js"></script>')
ICONS = re.compile(r'<script defer src="([^"]*/fontawesome\.js[^"]*)"></script>')
FROM_DISK = (
    r"""<script>location.protocol === "file:" && """
    r"""document.write('<script defer src="\1"><\\/script>')</script>"""
)
USED_BY = {  # files of Sphinx's extensions, and the elements without which a page does not need them
    r"sphinx-design\.min\.css|design-tabs\.js": r'class="[^"]*\bsd-',
    r"mystnb\.\w+\.css": r'class="cell\b',
    r"copybutton\w*\.(?:css|js)|clipboard\.min\.js": r'class="highlight',
}
ICON_RULE = re.compile(r"\.fa-([\w-]+)\{--fa:[^}]*\}")

# Without scripts the frames stand side by side in place of the sliders.
NO_SCRIPTS = (
    "<noscript><style>.explorable > img, .course-slider { display: none !important; } "
    ".course-frames { display: grid !important; }</style></noscript>"
)
NOTICE = (
    '<noscript><p class="course-noscript">JavaScript is off in this browser. Equations stand here as TeX, '
    "and figures with sliders show some of their frames.</p></noscript>"
)


def pictures_to_files(app, page, template, context, doctree):
    """The page's body with files for pictures; a contact sheet stands before each interactive figure."""
    body = context.get("body")
    if not body or doctree is None:
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    prefix = context["pathto"](FOLDER, 1) + "/"

    def to_file(uri):
        picture = base64.b64decode(uri[2])
        name = f"{hashlib.sha256(picture).hexdigest()[:16]}.{uri[1]}"
        if not (folder / name).exists():
            (folder / name).write_bytes(picture)
        return prefix + name

    named = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}

    def with_size(tag):
        source = re.search(r'\bsrc="([^"]+)"', tag[0])
        if not source or not source[1].startswith(prefix):
            return tag[0]
        name = source[1].removeprefix(prefix)
        width, height = imagesize.get(named.get(name, folder / name))
        given = re.search(r'\bwidth="(\d+)"', tag[0])
        shown = int(given[1]) if given else width
        size = "" if given else f' width="{shown}"'
        return f'{tag[0].rstrip("/> ")}{size} height="{round(shown * height / width)}" loading="lazy">'

    body = DATA_URI.sub(to_file, body)
    body = EXPLORABLE.sub(lambda figure: contact_sheet(figure[0]) + figure[0], body)
    body = PLAIN.sub(r"\1", IMAGE.sub(with_size, body))
    if re.search(r'class="(?:math|live|[^"]*explorable)\b', body):
        context["metatags"] = context.get("metatags", "") + NO_SCRIPTS
        body = NOTICE + body
    context["body"] = body


def contact_sheet(figure):
    """Frames of an interactive figure side by side: for paper, and for a browser that runs no scripts."""
    found = FRAMES.search(figure)
    frames, alts = (json.loads(part) for part in found.groups())
    names = re.findall(r"<label [^>]*>(.*?)</label>", figure)
    values = [html.unescape(texts).split("|") for texts in re.findall(r'data-texts="([^"]*)"', figure)]
    last = len(frames) - 1
    picked = sorted({round(i * last / (ON_PAPER - 1)) for i in range(ON_PAPER)})
    cells = []
    for index in picked:
        rest, state = index, []
        for name, options in reversed(list(zip(names, values, strict=True))):
            rest, place = divmod(rest, len(options))
            state.insert(0, f"{name} {html.escape(options[place])}")
        cells.append(
            f'<div><img src="{frames[index]}" alt="{html.escape(alts[index])}"><p>{", ".join(state)}</p></div>'
        )
    return f'<div class="course-frames">{"".join(cells)}</div>\n'


def lighten(app, exception):
    """Take out of the pages' heads what only the search needs, and what no element of the page uses."""
    if exception or app.builder.format != "html":
        return
    pages = [path for page in app.env.found_docs if (path := Path(app.outdir) / f"{page}.html").exists()]
    for path in pages:
        text = path.read_text("utf-8")
        lighter = SEARCH.sub("", text)
        # the icons are letters of a font; Firefox reads no font for a page that was opened from the disk
        lighter = ICONS.sub(FROM_DISK, lighter)
        for files, element in USED_BY.items():
            if not re.search(element, lighter):
                lighter = re.sub(rf"\s*<(?:link|script)\b[^>]*/(?:{files})[^>]*>(?:</script>)?", "", lighter)
        if lighter != text:
            path.write_text(lighter, "utf-8")
    leave_used_icons(Path(app.outdir), pages)


def leave_used_icons(out, pages):
    """The theme's style sheet has a rule for each of two thousand icons: keep those that a page or a script names."""
    sheet = out / "_static/styles/pydata-sphinx-theme.css"
    scripts = [*out.glob("_static/*.js"), *(out / "_static/scripts").glob("*theme.js")]
    named = {name for path in (*pages, *scripts) for name in re.findall(r"\bfa-([\w-]+)", path.read_text("utf-8"))}
    style = sheet.read_text("utf-8")
    sheet.write_text(ICON_RULE.sub(lambda rule: rule[0] if rule[1] in named else "", style), "utf-8")


def setup(app):
    app.connect("html-page-context", pictures_to_files)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

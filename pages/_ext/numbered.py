"""In a chapter figures and tables have numbers, tables have captions, and a fold says what is in it.

A link `#figure-3-2` or `#table-3-2` leads there. A table's caption is the heading of its section.
"""

import ast
import html
import re

NUMBER = re.compile(
    r"<h[1-6]>(?P<heading>.*?)</h[1-6]>"
    r'|(?P<figure><figure class="course-figure.*?</figure>)'
    r"|(?P<table><table\b.*?</table>)",
    re.DOTALL,
)
NO_COLUMN_NAMES = re.compile(r"<thead>\s*<tr[^>]*>(?:\s*<th[^>]*>(?:<p></p>)?</th>)*\s*</tr>\s*</thead>\s*")
EMPTY_HEADER = re.compile(r"<th\b[^>]*>\s*(?:<p>\s*</p>)?\s*</th>")
CELL = re.compile(r'<div class="cell tag_[^"]*hide-(?:input|cell)[^"]*">')
FOLD = re.compile(
    r'<summary aria-label="Toggle hidden content">\s*<p class="collapsed admonition-title">.*?</summary>', re.DOTALL
)


def text_of(markup):
    """The text of an HTML fragment without section numbers and links to itself."""
    tags = r'<a class="headerlink".*?</a>|<span class="section-number">.*?</span>|<[^>]+>'
    return html.unescape(re.sub(tags, "", markup))


def numbered(body, chapter):
    """The page with a number and an address for each figure and each table that has column names."""
    count, heading = {"figure": 0, "table": 0}, ""

    def address(kind):
        count[kind] += 1
        return f"{kind}-{chapter}-{count[kind]}", f"{kind.title()} {chapter}.{count[kind]}"

    def number(found):
        nonlocal heading
        if found["heading"]:
            heading = text_of(found["heading"]).strip()
        elif found["figure"]:
            identity, name = address("figure")
            figure = found[0]
            if "<figcaption>" not in figure:
                figure = figure.replace("</figure>", "<figcaption></figcaption></figure>")
            return re.sub(
                "<figcaption>(.*?)</figcaption>",
                lambda caption: f"<figcaption>{captioned(identity, name, caption[1])}</figcaption>",
                figure,
                flags=re.DOTALL,
            )
        elif "<thead>" in found[0] and "<caption" not in found[0]:
            identity, name = address("table")
            caption = f"<caption>{captioned(identity, name, html.escape(heading))}</caption>"
            return re.sub(r"<table\b[^>]*>", lambda tag: tag[0] + caption, found[0], count=1)
        return found[0]

    return NUMBER.sub(number, body)


def captioned(identity, name, text):
    """A caption as Sphinx writes it: the number, the words, and a link to itself."""
    return (
        f'<span class="caption-number" id="{identity}">{name} </span><span class="caption-text">{text}</span>'
        f'<a class="headerlink" href="#{identity}" title="Link to this {name.split()[0].lower()}">#</a>'
    )


def labelled(body):
    """Each fold says what its code makes: figures, tables, printed lines, or the names that it defines."""
    parts, end = [], 0
    for cell in CELL.finditer(body):
        close = end_of_div(body, cell.start())
        source = body[cell.start() : close]
        words = summary(label(source))
        parts += [body[end : cell.start()], FOLD.sub(lambda _, words=words: words, source, count=1)]
        end = close
    return "".join(parts) + body[end:]


def end_of_div(body, start):
    depth = 0
    for tag in re.finditer(r"<(/?)div\b", body[start:]):
        depth += -1 if tag[1] else 1
        if depth == 0:
            return start + tag.end() + 1
    raise ValueError("a cell's element has no end")


def label(cell):
    made = re.findall(r'<span class="caption-number"[^>]*>(.*?) </span>', cell)
    names = defined(text_of(cell[cell.index("<pre>") : cell.index("</pre>")]))
    if solution := next((name for name in names if name.lower().endswith("solution")), None):
        return f"solution: {solution}"
    if made:
        return f"code of {' and '.join(made)}"
    if "cell_output" in cell:
        return "code of the output below"
    return "code: " + ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "code"


def defined(source):
    """The names that the code defines at its top level, functions and classes first."""
    names, values = [], []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign):
            parts = (part for target in statement.targets for part in ast.walk(target))
            values += [part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
    return names + values


def summary(label):
    label = html.escape(label)
    return (
        f'<summary><p class="collapsed admonition-title">Show {label}</p>\n'
        f'<p class="expanded admonition-title">Hide {label}</p></summary>'
    )


def improve(app, page, template, context, doctree):
    body = context.get("body")
    if not body or doctree is None:
        return
    body = EMPTY_HEADER.sub("<td></td>", NO_COLUMN_NAMES.sub("", body))
    if chapter := re.fullmatch(r"chapters/(\d+)_\w+", page):
        body = labelled(numbered(body, int(chapter[1])))
    context["body"] = body


def setup(app):
    app.connect("html-page-context", improve, priority=600)  # after pictures have become files: pages are short then
    return {"parallel_read_safe": True, "parallel_write_safe": True}

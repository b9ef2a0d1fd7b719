"""What axe-core, the rules of accessibility, finds on an open page."""

from pathlib import Path

import axe_playwright_python

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
# contrast is most of axe's time and depends on style alone: the first text of each colour, size, weight and ground
FIRST_OF_EACH_STYLE = """(where) => {
  const first = new Map(), texts = document.createTreeWalker(where, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element), style = [color, fontSize, fontWeight];
    for (let ground = element; ground; ground = ground.parentElement) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(ground);
      style.push(backgroundColor, backgroundImage, opacity);
    }
    const key = style.filter((part, i) => i < 3 || !["none", "1", "rgba(0, 0, 0, 0)"].includes(part)).join();
    if (!first.has(key)) first.set(key, element);
  }
  return [...first.values()];
}"""
RUN = f"""async ([theme, where]) => {{
  document.documentElement.dataset.theme = theme;
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const found = await axe.run(where, {{ rules: {{ "color-contrast": {{ enabled: false }} }} }});
  const texts = ({FIRST_OF_EACH_STYLE})(document.querySelector(where));
  const contrast = await axe.run({{ include: texts }}, {{ runOnly: ["color-contrast"] }});
  return [...found.violations, ...contrast.violations];
}}"""


def complaints(page, where="html"):
    """What axe finds within the element `where`, in light and in dark, folds open: {(rule, theme, place)}."""
    # no colour between two themes, no fold that is fading in
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    page.evaluate(AXE)
    return {
        (rule["id"], theme, str(node["target"][0]))
        for theme in ("light", "dark")
        for rule in page.evaluate(RUN, [theme, where])
        for node in rule["nodes"]
    }

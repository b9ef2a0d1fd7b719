// What the pages of the book do besides the theme: paper, frames that are there when a slider moves, and cut-off edges.
"use strict";
(() => {
  // On paper every fold is open, and the colours are those of the light theme.
  const root = document.documentElement;
  let before;
  function paper() {
    if (before) return;
    const folds = document.querySelectorAll("details:not([open])");
    const covered = document.querySelectorAll(".toggle-hidden");
    before = { folds, covered, theme: root.dataset.theme };
    root.dataset.theme = "light";
    for (const fold of folds) fold.open = true;
    for (const part of covered) part.classList.remove("toggle-hidden");
    for (const image of document.images) image.loading = "eager";
  }
  function screen() {
    if (!before) return;
    root.dataset.theme = before.theme;
    for (const fold of before.folds) fold.open = false;
    for (const part of before.covered) part.classList.add("toggle-hidden");
    before = undefined;
  }
  addEventListener("beforeprint", paper);
  addEventListener("afterprint", screen);
  matchMedia("print").addEventListener("change", (media) => (media.matches ? paper() : screen()));

  // The frames of a figure are fetched when a reader comes to its sliders.
  for (const figure of document.querySelectorAll("figure.explorable")) {
    const fetch = () => {
      for (const [, frame] of figure.querySelector("script").textContent.matchAll(/"([^"]+\.webp)"/g)) {
        new Image().src = frame;
      }
    };
    for (const coming of ["pointerenter", "focusin"]) figure.addEventListener(coming, fetch, { once: true });
  }

  // What is wider than the screen fades out at its edge, as long as there is more to scroll to; keys scroll it, too.
  const scrolls = ".bd-article :is(pre, mjx-container, .pst-scrollable-table-container, figure)";
  function mark(part) {
    const drawn = part.querySelector("mjx-math"); // the text for screen readers beside it may be wider
    const end = drawn ? drawn.getBoundingClientRect().right - part.getBoundingClientRect().left : part.scrollWidth;
    const more = end - part.clientWidth - (drawn ? 0 : part.scrollLeft) > 2;
    part.classList.toggle("course-cut", more && getComputedStyle(part).overflowX !== "visible");
    if (more) part.tabIndex = 0;
    const caption = part.querySelector("figcaption");
    if (caption) part.style.setProperty("--caption", `${part.getBoundingClientRect().bottom - caption.getBoundingClientRect().top}px`);
  }
  // an equation gets its mjx-container, and with it another size, when MathJax has drawn it
  const sizes = new ResizeObserver((changes) => {
    for (const { target } of changes) mark(target.matches(".math") ? target.querySelector("mjx-container") ?? target : target);
  });
  for (const part of document.querySelectorAll(`${scrolls}, .bd-article .math`)) sizes.observe(part);
  document.addEventListener("scroll", ({ target }) => target.matches?.(scrolls) && mark(target), { passive: true, capture: true });
})();

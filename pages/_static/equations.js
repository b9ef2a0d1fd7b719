// Loads MathJax as soon as an equation is on the screen or the reader moves, and else after the first screen is done.
"use strict";
(() => {
  const mathjax = document.currentScript.src.replace(/[^/]*$/, "mathjax/startup.js");
  window.MathJax = {
    ...window.MathJax,
    loader: { load: ["input/tex", "output/chtml", "a11y/assistive-mml"] },
  };
  let loaded = false;
  const load = () => {
    if (loaded) return;
    loaded = true;
    document.head.append(Object.assign(document.createElement("script"), { src: mathjax }));
  };
  const watch = new IntersectionObserver((seen) => seen.some((equation) => equation.isIntersecting) && load());
  for (const equation of document.querySelectorAll(".math")) watch.observe(equation);
  for (const move of ["scroll", "keydown", "beforeprint", "hashchange"]) addEventListener(move, load, { once: true });
  addEventListener("load", () => setTimeout(load, 10_000));
})();

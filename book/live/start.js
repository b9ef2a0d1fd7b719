// Finds the live figures on a page of the book, and loads what one needs when it is started; before, nothing.
//
// <div class="live" data-figure="gates">...</div> becomes a button; the page "Look through the networks" starts by itself.
"use strict";
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, ""), loads = new Map();
  // A page that was opened from the disk may load scripts, but neither files nor modules.
  const load = (file) => {
    if (!loads.has(file)) loads.set(file, new Promise((done, fail) => {
      const script = document.createElement("script");
      script.src = here + file;
      script.onload = done;
      script.onerror = () => { loads.delete(file); fail(new Error(`The file ${file} is missing. Build the book again.`)); };
      document.head.append(script);
    }));
    return loads.get(file);
  };
  async function start(root) {
    root.setAttribute("aria-busy", "true");
    try {
      await load("engine.js");
      await load("fast.js").catch(() => {}); // the reference does without
      await load("kit.js");
      await load("samples.js");
      live.load = async (name) => {
        if (!live.info.networks[name]) throw new Error(`${name} has no trained weights yet; the figure needs them.`);
        await load(live.info.networks[name].file);
        return live.networks.get(name);
      };
      const name = root.dataset.figure;
      await load(name === "page" ? "page.js" : `figures/${name}.js`);
      await live.figures[name](root);
    } catch (error) {
      const says = document.createElement("p");
      says.setAttribute("role", "alert");
      says.textContent = error.message;
      root.append(says);
    }
    root.removeAttribute("aria-busy");
  }
  const prepare = () => {
    for (const root of document.querySelectorAll("div.live[data-figure]")) {
      if (root.dataset.figure === "page") { root.replaceChildren(); start(root); continue; }
      const button = document.createElement("button");
      button.className = "live-start";
      button.textContent = "Start the network";
      button.addEventListener("click", () => { root.replaceChildren(); start(root); });
      root.replaceChildren(button, ...root.querySelectorAll(".live-still"));
    }
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", prepare); else prepare();
})();

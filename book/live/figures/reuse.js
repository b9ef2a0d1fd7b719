// Chapter 3: who reads whom in a DenseNet, with a switch on every connection.
"use strict";
live.figures.reuse = async (root) => {
  const network = await live.load("DenseNet"), { make } = live, teller = live.teller();
  const card = live.card("DenseNet"), map = live.canvas(live.info.shown, "Grad-CAM"), off = new Set();
  // Every reader begins with a list of maps side by side: those of the layers of its block before it.
  const readers = network.steps.flatMap((s, i) => s.op === "cat" ? [{ value: i + 1, sources: s.in }] : []);
  const blocks = [];
  for (const reader of readers) {
    if (reader.sources.length === 1) blocks.push([]);
    blocks.at(-1).push(reader);
  }
  const tables = blocks.map((block, b) => {
    const most = block.at(-1).sources.length, head = make("tr", {}, make("th", {}, `block ${b + 1}`), ...Array.from({ length: most }, (_, i) => make("th", { scope: "col" }, `x${i}`)));
    return make("table", { class: "live-grid" }, head, ...block.map((reader, r) => {
      const who = r < block.length - 1 ? `layer ${r + 1} reads` : b < blocks.length - 1 ? "transition reads" : "classifier reads";
      return make("tr", {}, make("th", { scope: "row" }, who), ...Array.from({ length: most }, (_, i) => make("td", {}, ...(i < reader.sources.length ? [make("input", {
        type: "checkbox", checked: true, "aria-label": `block ${b + 1}, ${who} x${i}`,
        onchange: (event) => { const key = `${reader.value},${i}`; if (event.target.checked) off.delete(key); else off.add(key); frame.refresh(); },
      })] : []))));
    }));
  });
  const show = (picture) => {
    const whole = live.ask(network, picture), change = new Map();
    for (const { value, sources } of readers) {
      let at = 0;
      const cuts = sources.map((source, i) => [off.has(`${value},${i}`), at, at += whole.values[source].c]).filter(([cut]) => cut);
      if (cuts.length) change.set(value, (x) => cuts.reduce((y, [, from, to]) => live.without(y, from, to), x));
    }
    const left = live.ask(network, picture, change), name = live.info.classes[whole.best];
    live.heat(map, picture, live.gradCam(network, left.values, whole.best));
    map.setAttribute("aria-label", `Grad-CAM for ${name}`);
    card.bars.show(left.share);
    root.live = Array.from(left.share);
    card.say(`whole, it says ${name}, ${live.percent(whole.share[whole.best])}`);
    teller.say(`${off.size} connections cut: ${name} has ${live.percent(left.share[whole.best])}, and was ${live.percent(whole.share[whole.best])}.`);
  };
  card.section.firstChild.after(map);
  const frame = live.frame(root, [make("div", {}, ...tables)], [card.section, teller.line], show);
};

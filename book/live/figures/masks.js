// Chapters 11 and 12: an animal for every pixel, with a switch on every way across from fine maps to coarse ones.
"use strict";
live.figures.masks = async (root) => {
  const network = await live.load(root.dataset.network ?? "U-Net"), { make, info } = live, teller = live.teller();
  const painted = live.canvas(network.side, "the mask"), COLOURS = [null, "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00"];
  const legend = make("ul", { class: "live-legend" }, ...info.animals.map((name, i) => make("li", {}, make("i", { style: `background: ${COLOURS[i + 1]}` }), name)));
  // U-Net lays the maps that come across beside its own; FCN adds scores that it makes of them.
  const ways = network.name === "FCN"
    ? ["score4", "score3"].filter((name) => network.names[name]).map((name) => ({ value: network.names[name], name: `the scores of ${name.replace("score", "C")}`, cut: live.zeros }))
    : network.steps.flatMap((s, i) => s.op === "cat" ? [{ value: i + 1, across: s.in[0] }] : []);
  for (const way of ways) if (way.across) way.cut = (x) => live.without(x, 0, x.c - way.own);
  const show = (picture) => {
    const small = picture.w === network.side ? picture : live.resize(picture, network.side), whole = live.ask(network, small);
    for (const way of ways) if (way.across) way.own = whole.values[way.value].c - whole.values[way.across].c;
    const change = new Map(ways.filter((way) => way.off).map((way) => [way.value, way.cut]));
    const { values } = live.ask(network, small, change), y = values[network.output], n = y.h * y.w;
    const mixed = { ...small, d: small.d.slice() }, counts = Array(y.c).fill(0), mask = new Uint8Array(n);
    for (let i = 0; i < n; i++) {
      let best = 0;
      for (let c = 1; c < y.c; c++) if (y.d[c * n + i] > y.d[best * n + i]) best = c;
      mask[i] = best;
      counts[best]++;
      if (best) for (let c = 0; c < 3; c++) mixed.d[c * n + i] = 0.4 * small.d[c * n + i] + 0.6 * parseInt(COLOURS[best].slice(1 + 2 * c, 3 + 2 * c), 16);
    }
    live.draw(painted, mixed);
    root.live = Array.from(mask);
    const found = info.animals.map((name, i) => [name, counts[i + 1] / n]).filter(([, share]) => share >= 0.005).map(([name, share]) => `${name} ${live.percent(share)}`);
    const text = found.length ? `On ${found.join(", ")} of the picture` : "No animal anywhere";
    painted.setAttribute("aria-label", `The mask of ${network.name}: ${text}`);
    teller.say(`${text}${ways.some((way) => way.off) ? ", without what was switched off." : "."}`);
  };
  const frame = live.frame(root, [], [painted, legend, make("div", { class: "live-ways" }), teller.line], show);
  const box = root.querySelector(".live-ways"), sizes = network.name === "FCN" ? ways.map((way) => way.name) : ways.map((way, i) => `the maps across at stride ${2 ** (ways.length - i)}`);
  ways.forEach((way, i) => box.append(live.tick(`without ${sizes[i]}`, false, (off) => { way.off = off; frame.refresh(); })));
};

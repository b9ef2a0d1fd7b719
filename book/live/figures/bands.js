// Chapter 10: frequencies taken out of a picture, and what networks on coefficients and on pixels say to the rest.
"use strict";
live.figures.bands = async (root) => {
  const names = ["Frequency domain", "VGG", "ResNet", "MobileNet"], cards = names.map((name) => live.card(name)), { info } = live;
  const networks = [];
  for (const name of names) networks.push(await live.load(name));
  const SIDE = 4, D = Array.from({ length: SIDE }, (_, u) => Array.from({ length: SIDE }, (_, x) => Math.sqrt((u ? 2 : 1) / SIDE) * Math.cos((2 * x + 1) * u * Math.PI / (2 * SIDE))));
  const order = Array.from({ length: SIDE * SIDE }, (_, i) => i).sort((a, b) => Math.floor(a / SIDE) + a % SIDE - Math.floor(b / SIDE) - b % SIDE || a - b); // low to high
  const state = { kept: SIDE * SIDE, end: "low" }, teller = live.teller(), rest = live.canvas(info.side, "what is left of the picture");
  const chosen = () => new Set(state.end === "low" ? order.slice(0, state.kept) : order.slice(SIDE * SIDE - state.kept));
  // Each plane, block by block: to coefficients, some of them to zero, and back. RGB will do, since colours mix linearly.
  const filtered = (x) => {
    const y = { ...x, d: x.d.slice() }, kept = chosen(), block = new Float64Array(SIDE * SIDE);
    for (let c = 0; c < 3; c++) for (let r = 0; r < x.h; r += SIDE) for (let q = 0; q < x.w; q += SIDE) {
      block.fill(0);
      for (const i of kept) {
        const u = Math.floor(i / SIDE), v = i % SIDE;
        let sum = 0;
        for (let a = 0; a < SIDE; a++) for (let b = 0; b < SIDE; b++) sum += D[u][a] * D[v][b] * (x.d[(c * x.h + r + a) * x.w + q + b] - 128);
        for (let a = 0; a < SIDE; a++) for (let b = 0; b < SIDE; b++) block[a * SIDE + b] += sum * D[u][a] * D[v][b];
      }
      for (let a = 0; a < SIDE; a++) for (let b = 0; b < SIDE; b++) y.d[(c * x.h + r + a) * x.w + q + b] = Math.min(255, Math.max(0, Math.round(128 + block[a * SIDE + b])));
    }
    return y;
  };
  const show = (picture) => {
    const small = live.resize(picture, info.side), left = filtered(small);
    live.draw(rest, left);
    const answers = networks.map((network) => [live.ask(network, small), live.ask(network, left)]);
    root.live = answers.map(([, { share }]) => Array.from(share));
    answers.forEach(([before, now], i) => {
      cards[i].bars.show(now.share);
      cards[i].say(`whole: ${info.classes[before.best]}, ${live.percent(before.share[before.best])}`);
    });
    const stay = names.filter((_, i) => answers[i][0].best === answers[i][1].best);
    teller.say(`${state.kept} of ${SIDE * SIDE} frequencies are left. ${stay.length ? `${stay.join(", ")} say the same as before.` : "No network says the same as before."}`);
  };
  const controls = [
    live.slider("frequencies that stay", { min: 1, max: SIDE * SIDE, value: SIDE * SIDE, says: (t) => `${t} of ${SIDE * SIDE}` }, (t) => { state.kept = t; frame.refresh(); }),
    live.menu("which", [["the lowest", "low"], ["the highest", "high"]], (end) => { state.end = end; frame.refresh(); }),
  ];
  const frame = live.frame(root, controls, [rest, live.make("div", { class: "live-row" }, ...cards.map((card) => card.section)), teller.line], show);
};

// Chapters 6 and 7: the gates of a picture, and those of another one in their place.
"use strict";
live.figures.gates = async (root) => {
  const network = await live.load(root.dataset.network ?? "SENet"), { make, info } = live, teller = live.teller();
  const gates = Object.entries(network.names).filter(([name]) => name.endsWith("sigmoid")); // name, value
  const kinds = [...new Set(gates.map(([name]) => /(channel|spatial)\.sigmoid$/.exec(name)?.[1] ?? "channel"))];
  const state = { how: "own", kind: "all", block: gates.length - 1 };
  const chart = make("canvas", { width: 384, height: 160, role: "img", class: "live-chart" }), card = live.card(network.name);
  const others = await Promise.all(info.samples.map((_, i) => live.sample(i)));
  const means = (pictures) => { // the mean gate of each channel or place over pictures
    const all = pictures.map((picture) => live.ask(network, picture).values);
    return (v) => { const x = all[0][v]; return { ...x, d: x.d.map((_, i) => all.reduce((sum, values) => sum + values[v].d[i], 0) / all.length) }; };
  };
  let mean = null;
  const given = (v) => { // the function that replaces gate v
    if (state.how === "own") return (x) => x;
    if (state.how === "open") return (x) => ({ ...x, d: x.d.map(() => 1) });
    if (state.how === "mean") { mean ??= means(others); return () => mean(v); }
    if (state.how === "turned") return (x) => ({ ...x, d: x.d.slice().reverse() });
    const donor = donors[state.how] ??= live.ask(network, others[state.how]).values;
    return () => donor[v];
  };
  const donors = {};
  const draw = (before, now) => {
    const context = chart.getContext("2d"), order = Array.from(before.d.keys()).sort((a, b) => before.d[a] - before.d[b]);
    const width = chart.width / order.length, ink = getComputedStyle(root);
    context.clearRect(0, 0, chart.width, chart.height);
    order.forEach((c, i) => {
      context.fillStyle = "#999";
      context.fillRect(i * width, chart.height * (1 - before.d[c]), Math.max(1, width - 0.5), chart.height * before.d[c]);
      context.fillStyle = ink.getPropertyValue("--pst-color-primary") || "#06c";
      context.fillRect(i * width, chart.height * (1 - now.d[c]) - 2, Math.max(2, width - 0.5), 4);
    });
    chart.setAttribute("aria-label", `Gates of ${gates[state.block][0]}, sorted: before in grey, now in colour; means ${[before, now].map((x) => (x.d.reduce((a, b) => a + b) / x.d.length).toFixed(2)).join(" and ")}`);
  };
  const show = (picture) => {
    const whole = live.ask(network, picture), change = new Map();
    for (const [name, v] of gates) if (state.kind === "all" || name.includes(state.kind)) change.set(v, given(v));
    const now = live.ask(network, picture, change), v = gates[state.block][1];
    draw(whole.values[v], now.values[v]);
    card.bars.show(now.share);
    root.live = Array.from(now.share);
    const name = info.classes[whole.best];
    card.say(`with its own gates: ${name}, ${live.percent(whole.share[whole.best])}`);
    teller.say(`It says ${info.classes[now.best]}. ${name} has ${live.percent(now.share[whole.best])}; with its own gates ${live.percent(whole.share[whole.best])}.`);
  };
  const set = (key) => (value) => { state[key] = value; frame.refresh(); };
  const controls = [
    live.menu("gates", [["its own", "own"], ...info.samples.map((sample, i) => [`those of the ${sample.name}`, i]),
      ["the mean over the pictures", "mean"], ["all open", "open"], ["its own, in reverse order", "turned"]], set("how")),
    ...(kinds.length > 1 ? [live.menu("of", [["channels and places", "all"], ...kinds.map((kind) => [kind === "channel" ? "channels only" : "places only", kind])], set("kind"))] : []),
    live.menu("show", gates.map(([name], i) => [name.replace(/\.?sigmoid$/, ""), i]), set("block"), state.block),
  ];
  const frame = live.frame(root, controls, [chart, card.section, teller.line], show);
};

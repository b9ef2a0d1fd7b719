// Chapter 15: which class is asked for, and at which layer.
"use strict";
live.figures["grad-cam"] = async (root) => {
  const { make, info } = live, names = Object.keys(info.networks).filter((name) => info.networks[name].names), teller = live.teller();
  const state = { network: await live.load("ResNet"), layer: null, asked: null }, card = live.card("ResNet"), map = live.canvas(info.shown, "Grad-CAM");
  const layers = make("div"), cardName = card.section.querySelector("h4");
  const choose = (network) => { // every module that gave maps; where several gave the same value, the outermost
    const { values } = live.ask(network, live.maps(3, network.side, network.side)), by = new Map();
    for (const [name, v] of Object.entries(network.names)) if (v && values[v].h > 1) by.set(v, name);
    const options = [...by].sort(([a], [b]) => a - b).map(([v, name]) => [`${name} (${values[v].h} x ${values[v].w})`, v]);
    Object.assign(state, { network, layer: network.layer });
    layers.replaceChildren(live.menu("layer", options, (v) => { state.layer = v; frame.refresh(); }, network.layer));
    cardName.textContent = network.name;
  };
  const show = (picture) => {
    const { network } = state, { values, share, best } = live.ask(network, picture), asked = state.asked ?? best;
    const heat = live.gradCam(network, values, asked, state.layer), where = live.heat(map, picture, heat);
    root.live = { map: Array.from(heat.d), asked };
    card.bars.show(share);
    map.setAttribute("aria-label", where ? `Grad-CAM for ${info.classes[asked]}, strongest at the ${where}` : `Nothing speaks for ${info.classes[asked]} at this layer`);
    teller.say(where ? `What speaks for ${info.classes[asked]} is strongest at the ${where}, on a map of ${heat.h} x ${heat.w}.` : `At this layer nothing speaks for ${info.classes[asked]}.`);
  };
  card.section.firstChild.after(map);
  const controls = [
    live.menu("network", names.map((name) => [name, name]), async (name) => { choose(await live.load(name)); frame.refresh(); }, "ResNet"),
    live.menu("class", [["its own answer", null], ...info.classes.map((name, i) => [name, i])], (asked) => { state.asked = asked; frame.refresh(); }),
    layers,
  ];
  const frame = live.frame(root, controls, [card.section, teller.line], show);
  choose(state.network);
};

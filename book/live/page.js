// The page "Look through the networks": one picture, ten networks, and what a reader can do to the picture.
"use strict";
live.figures.page = async (root) => {
  const { make, info } = live, SHOWN = info.shown, SIDE = info.side, names = Object.keys(info.networks).filter((name) => info.networks[name].names);
  const state = { picture: null, x: SHOWN / 2, y: SHOWN / 2, covered: false, size: 32, asked: null, against: names[0], by: 0, random: false, round: 0 };
  const cards = new Map(), soon = live.soon(), teller = live.teller(), page = live.page = { settled: 0, complete: false, results: {}, times: {}, still: () => page.complete && page.settled === state.round, seen: () => state.input };

  // ------------------------------------------------------------------------------------ what the networks get to see
  const grey = (x, top, left, side) => { // a patch in the mean colour of the training photographs
    const y = { ...x, d: x.d.slice() }, n = x.h * x.w, from = (t) => Math.max(0, Math.round(t)), to = (t) => Math.min(x.w, Math.round(t + side));
    for (let c = 0; c < 3; c++) for (let r = from(top); r < to(top); r++) y.d.fill(info.mean[c], c * n + r * x.w + from(left), c * n + r * x.w + to(left));
    return y;
  };
  const signs = (length) => { // the same random signs every time
    let seed = 1;
    return Array.from({ length }, () => { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; return seed >>> 31 ? 1 : -1; });
  };
  function nudged(x) { // every number up or down, a grey level at a time: along the sign of a network's gradient, or at random
    const network = live.networks.get(state.against);
    if (!network) return x;
    const random = signs(x.d.length);
    let answer;
    for (let level = 0; level < state.by; level++) {
      let direction = random;
      if (!state.random) { // where it moved to, the gradient is another one
        const { values, share, best } = live.ask(network, x);
        answer ??= best; // its own, before it was nudged
        direction = live.backward(network, values, network.output, share.map((p, i) => p - (i === answer ? 1 : 0)), 0).d;
      }
      x = { ...x, d: x.d.map((t, i) => Math.min(255, Math.max(0, t + Math.sign(direction[i])))) };
    }
    return x;
  }
  function look() {
    state.shown = state.covered && state.size ? grey(state.picture, state.y - state.size / 2, state.x - state.size / 2, state.size) : state.picture;
    state.input = nudged(live.resize(state.shown, SIDE));
    state.lookedAt = state.round;
    live.draw(photo, state.shown);
    live.draw(seen, state.input);
  }

  // ------------------------------------------------------------------------------------------- one card for a network
  function card(name) {
    const canvas = live.canvas(SHOWN, name), bars = live.bars(), time = make("p", { class: "live-note" });
    const more = make("button", { type: "button", onclick: () => occlude(name) }, "occlusion map");
    const title = make("h2", {}, make("a", { href: `../chapters/${info.networks[name].chapter}.html` }, name));
    const section = make("section", { class: "live-card", "aria-label": name }, title, make("div", { class: "live-maps" }, canvas), bars, more, time);
    cards.set(name, { section, canvas, bars, more, time, round: -1 });
    return section;
  }
  function show(name) {
    const ui = cards.get(name), network = live.networks.get(name), start = performance.now();
    const { values, share, best } = live.ask(network, state.input), middle = performance.now(), asked = state.asked ?? best;
    const map = live.gradCam(network, values, asked), end = performance.now();
    const where = live.heat(ui.canvas, state.shown, map);
    ui.canvas.setAttribute("aria-label", where ? `Grad-CAM of ${name}: evidence for ${info.classes[asked]}, strongest at the ${where}` : `Grad-CAM of ${name}: nothing speaks for ${info.classes[asked]}`);
    ui.bars.show(share);
    ui.time.textContent = `${(end - start).toFixed(0)} ms`;
    ui.occlusion?.remove();
    ui.occlusion = null;
    Object.assign(ui, { round: state.round, best, share });
    page.results[name] = { logits: live.logits(network, values), asked, map: Array.from(map.d), best };
    page.times[name] = [middle - start, end - middle];
    page.first ??= performance.now();
  }
  function turn() { // one network at a time
    const next = names.find((name) => live.networks.has(name) && cards.get(name).round !== state.round);
    if (!next) return rest();
    if (state.lookedAt !== state.round) look();
    show(next);
    soon(turn);
  }
  function rest() {
    page.all = performance.now() - state.since;
    page.settled = state.round;
    if (!page.complete) return; // the rest of the networks is on its way
    const votes = new Map();
    for (const [name, { best }] of cards) if (best !== undefined) votes.set(info.classes[best], [...votes.get(info.classes[best]) ?? [], name]);
    const counted = [...votes].sort((a, b) => b[1].length - a[1].length).map(([answer, who]) => `${who.length} ${answer}`);
    teller.say(`The networks say: ${counted.join(", ")}.${state.by ? ` ${state.random ? "Random signs" : `Nudged against ${state.against}`}, by ${state.by} of 255.` : ""}`);
  }
  function refresh() {
    if (!state.picture) return;
    state.round++;
    state.since = performance.now();
    soon(turn);
  }
  // What the answer loses when a patch hides a place, place by place, beside Grad-CAM.
  function occlude(name) {
    const ui = cards.get(name), network = live.networks.get(name), asked = page.results[name].asked, round = state.round;
    const places = 8, side = 16, map = live.maps(1, places, places), whole = page.results[name].logits[asked];
    ui.more.disabled = true;
    let i = 0;
    const bell = live.soon(), next = () => {
      if (round !== state.round) { ui.more.disabled = false; return; }
      for (const end = Math.min(map.d.length, i + places); i < end; i++) {
        const r = Math.floor(i / places), q = i % places, step = SIDE / places, hidden = grey(state.input, (r + 0.5) * step - side / 2, (q + 0.5) * step - side / 2, side);
        map.d[i] = whole - live.logits(network, live.forward(network, live.normalise(hidden)))[asked];
      }
      if (i < map.d.length) return bell(next);
      ui.occlusion?.remove();
      ui.occlusion = live.canvas(SHOWN, "");
      const where = live.heat(ui.occlusion, state.shown, map);
      ui.occlusion.setAttribute("aria-label", where ? `Occlusion map of ${name}: a patch at the ${where} costs ${info.classes[asked]} most` : `Occlusion map of ${name}: no patch costs ${info.classes[asked]} anything`);
      ui.canvas.after(ui.occlusion);
      ui.more.disabled = false;
      page.occluded = { name, map: Array.from(map.d) };
    };
    next();
  }

  // ----------------------------------------------------------------------------------------------------- the controls
  const photo = live.canvas(SHOWN, "the picture. Arrow keys move a grey patch over it, Escape takes it away.");
  photo.tabIndex = 0;
  photo.className = "live-photo";
  photo.setAttribute("role", "application");
  const seen = live.canvas(SIDE, "the picture as the networks get it");
  seen.className = "live-seen";
  const move = (event) => {
    const box = photo.getBoundingClientRect();
    Object.assign(state, { x: (event.clientX - box.left) / box.width * SHOWN, y: (event.clientY - box.top) / box.height * SHOWN, covered: true });
    refresh();
  };
  photo.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse" || event.buttons) move(event); });
  photo.addEventListener("pointerdown", move);
  photo.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { state.covered = false; refresh(); } });
  photo.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (event.key !== "Escape" && !step) return;
    event.preventDefault();
    if (!step) state.covered = false;
    else Object.assign(state, { x: Math.min(SHOWN, Math.max(0, state.x + step[0])), y: Math.min(SHOWN, Math.max(0, state.y + step[1])), covered: true });
    refresh();
  });
  const set = (name) => (value) => { state[name] = value; refresh(); };
  const group = (title, predict, ...controls) => make("fieldset", {}, make("legend", {}, title), make("p", { class: "live-predict" }, predict), ...controls);
  const left = make("div", { class: "live-left" },
    photo,
    live.chooser((picture) => { state.picture = picture; state.covered = false; refresh(); }, { target: root, camera: true }),
    group("Cover", "Predict first: whose answer changes when the head is hidden, and whose when the background is?",
      live.slider("side of the patch", { max: 64, step: 4, value: 32, says: (t) => `${t} of ${SHOWN} px` }, set("size"))),
    group("Ask", "Predict first: ask for an animal that is not there. Which places will speak for it?",
      live.menu("Grad-CAM of", [["each network's own answer", null], ...info.classes.map((name, i) => [name, i])], set("asked"))),
    group("Nudge", "Predict first: every number moves by a few of 255 grey levels against one network. Do the others fall as well? And if the signs are random?",
      live.menu("against", names.map((name) => [name, name]), set("against")),
      live.slider("by", { max: 16, value: 0, says: (t) => `${t} of 255` }, set("by")),
      live.tick("random signs of the same size (the control)", false, set("random"))),
    make("p", { class: "live-note" }, "what the networks see, 64 px"), seen);
  root.append(make("div", { class: "live-bench" }, left, make("div", {}, teller.line, make("div", { class: "live-cards" }, ...names.map(card)))));
  addEventListener("dragover", (event) => event.preventDefault()); // a drop beside the page must not leave it
  addEventListener("drop", (event) => event.preventDefault());
  const goOn = () => { if (state.picture) soon(turn); };
  try { for (const name of names) { await live.load(name); goOn(); } } finally { page.complete = true; goOn(); }
};

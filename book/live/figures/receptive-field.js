// Chapter 1: the pixels that move one unit of VGG, beside the square that it could see.
"use strict";
live.figures["receptive-field"] = async (root) => {
  const network = await live.load("VGG"), SIDE = network.side;
  const layers = network.steps.flatMap((s, i) => s.op === "conv" && s.shape[2] > 1 ? [i + 1] : []);
  const state = { x: 0.5, y: 0.5, layer: 4 }, teller = live.teller();
  const field = live.canvas(live.info.shown, "what moves the unit");
  const slider = live.slider("convolution", { max: layers.length, min: 1, value: state.layer + 1, says: (t) => `${t} of ${layers.length}` },
    (t) => { state.layer = t - 1; frame.refresh(); });
  // What a unit of value v could see: the side of the square, the step from unit to unit, the centre of the first, in px.
  const theory = (v) => {
    let sees = 1, jump = 1, centre = 0.5;
    for (const s of network.steps.slice(0, v)) {
      const k = s.k ?? s.shape?.[2] ?? 1;
      centre += ((k - 1) / 2 - (s.pad ?? 0)) * jump;
      sees += (k - 1) * jump;
      jump *= s.stride ?? 1;
    }
    return { sees, jump, centre };
  };
  // Side of the smallest square around a place that holds a share of the effect.
  const holding = (effect, row, column, share) => {
    const total = effect.d.reduce((a, b) => a + b, 0);
    for (let half = 0; half < SIDE; half++) {
      let inside = 0;
      for (let r = Math.max(0, row - half); r <= Math.min(SIDE - 1, row + half); r++) for (let q = Math.max(0, column - half); q <= Math.min(SIDE - 1, column + half); q++) inside += effect.d[r * SIDE + q];
      if (inside >= share * total) return 2 * half + 1;
    }
    return SIDE;
  };
  const show = (picture) => {
    const v = layers[state.layer], { values } = live.ask(network, picture), y = values[v], n = y.h * y.w;
    const place = Math.floor(state.y * y.h) * y.w + Math.floor(state.x * y.w);
    let unit = 0; // of all maps, the one that answers most here
    for (let c = 1; c < y.c; c++) if (y.d[c * n + place] > y.d[unit * n + place]) unit = c;
    const seed = new Float32Array(y.d.length);
    seed[unit * n + place] = 1;
    const g = live.backward(network, values, v, seed, 0), effect = live.maps(1, SIDE, SIDE);
    for (let i = 0; i < effect.d.length; i++) for (let c = 0; c < 3; c++) effect.d[i] += g.d[c * effect.d.length + i] ** 2;
    live.heat(field, picture, { ...effect, d: effect.d.map(Math.sqrt) });
    const { sees, jump, centre } = theory(v), middle = [centre + Math.floor(state.x * y.w) * jump, centre + Math.floor(state.y * y.h) * jump];
    for (const canvas of [field, frame.canvas]) {
      if (canvas === frame.canvas) live.draw(canvas, picture);
      const context = canvas.getContext("2d"), scale = canvas.width / SIDE;
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(...middle.map((t) => (t - sees / 2) * scale), sees * scale, sees * scale);
    }
    const half = holding(effect, Math.round(middle[1] - 0.5), Math.round(middle[0] - 0.5), 0.9);
    root.live = { sees, half, unit, effect: Array.from(effect.d) };
    field.setAttribute("aria-label", `What moves unit ${unit + 1} of convolution ${state.layer + 1}: the square has ${sees} px a side`);
    teller.say(`Convolution ${state.layer + 1}, map ${unit + 1}: it could see ${sees} x ${sees} of ${SIDE} x ${SIDE} pixels. Nine tenths of the effect (of the squared gradient) lie in ${half} x ${half}.`);
  };
  const frame = live.frame(root, [slider], [field, teller.line], show);
  frame.canvas.setAttribute("aria-label", "the picture. Point at a unit, or move it with the arrow keys.");
  live.point(frame.canvas, (x, y) => { Object.assign(state, { x, y }); frame.refresh(); });
};

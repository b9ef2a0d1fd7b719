// Chapter 14: what YOLO finds, as sure as the reader asks, and with as much overlap as the reader allows.
"use strict";
live.figures.boxes = async (root) => {
  const network = await live.load("YOLO"), { make, info } = live, teller = live.teller(), BOXES = 2, SIDE = network.side;
  const plain = live.canvas(SIDE, ""), state = { confidence: 0.1, overlap: 0.4 }, list = make("ol", { class: "live-note" }), COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00"];
  const sigmoid = (t) => 1 / (1 + Math.exp(-t));
  // Section 2 of the paper: a cell says x, y, w, h and confidence for each box, and one distribution over the animals.
  const read = (y) => {
    const n = y.h * y.w, found = [];
    for (let r = 0; r < y.h; r++) for (let q = 0; q < y.w; q++) {
      const at = (channel) => y.d[channel * n + r * y.w + q], classes = live.softmax(info.animals.map((_, c) => at(5 * BOXES + c)));
      for (let b = 0; b < BOXES; b++) {
        const [x, v, w, h, sure] = [0, 1, 2, 3, 4].map((i) => sigmoid(at(5 * b + i)));
        const middle = [(q + x) / y.w, (r + v) / y.h], clip = (t) => Math.min(1, Math.max(0, t));
        const box = [middle[0] - w / 2, middle[1] - h / 2, middle[0] + w / 2, middle[1] + h / 2].map((t) => SIDE * clip(t));
        classes.forEach((p, label) => found.push({ box, label, score: sure * p }));
      }
    }
    return found.sort((a, b) => b.score - a.score);
  };
  const iou = ([a, b, c, d], [e, f, g, h]) => {
    const shared = Math.max(0, Math.min(c, g) - Math.max(a, e)) * Math.max(0, Math.min(d, h) - Math.max(b, f));
    return shared / Math.max(1e-9, (c - a) * (d - b) + (g - e) * (h - f) - shared);
  };
  const suppress = (found) => { // the surest first; what overlaps a surer one of its class too much is dropped
    const kept = [];
    for (const one of found) if (!kept.some((other) => other.label === one.label && iou(other.box, one.box) > state.overlap)) kept.push(one);
    return kept;
  };
  const show = (picture) => {
    if (picture !== state.of) { state.found = read(live.ask(network, picture).values[network.output]); state.of = picture; }
    const sure = state.found.filter((one) => one.score >= state.confidence), kept = suppress(sure);
    const SCALE = 4, context = frame.canvas.getContext("2d"); // boxes and letters are finer than the picture
    live.draw(plain, picture);
    frame.canvas.width = frame.canvas.height = SCALE * SIDE;
    context.drawImage(plain, 0, 0, SCALE * SIDE, SCALE * SIDE);
    context.lineWidth = 6;
    context.font = "bold 32px sans-serif";
    for (const { box, label, score } of kept) {
      const [a, b, c, d] = box.map((t) => SCALE * t);
      context.strokeStyle = context.fillStyle = COLOURS[label];
      context.strokeRect(a, b, c - a, d - b);
      context.fillText(`${info.animals[label]} ${score.toFixed(2)}`, a + 6, b > 40 ? b - 10 : b + 34);
    }
    list.replaceChildren(...kept.slice(0, 8).map(({ label, score }) => make("li", {}, `${info.animals[label]}, ${score.toFixed(2)}`)));
    root.live = kept;
    teller.say(`${kept.length} ${kept.length === 1 ? "box" : "boxes"}; sure enough: ${sure.length}, suppressed: ${sure.length - kept.length}.`);
  };
  const controls = [
    live.slider("confidence at least", { min: 0.01, max: 0.9, step: 0.01, value: state.confidence, says: (t) => t.toFixed(2) }, (t) => { state.confidence = t; frame.refresh(); }),
    live.slider("suppress above an overlap of", { min: 0.05, max: 1, step: 0.05, value: state.overlap, says: (t) => t.toFixed(2) }, (t) => { state.overlap = t; frame.refresh(); }),
  ];
  const frame = live.frame(root, controls, [teller.line, list], show);
};

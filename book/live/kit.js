// What the page and the figures share: how a picture comes in, and how answers and maps are drawn.
"use strict";
{
live.figures = {};

// make("label", { for: "x" }, "text", child): an element with its attributes, listeners (on...) and children
const make = live.make = (tag, given = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};
let count = 0;
live.unique = (name) => `live-${name}-${++count}`;

// ---------------------------------------------------------------------------------------------------- controls
// A slider and a menu, each with its name; change(value) is called when it moves, and what it returns stands beside it.
live.slider = (name, { min = 0, max, step = 1, value, says = String }, change) => {
  const id = live.unique("slider"), output = make("output", { for: id }, says(value));
  const input = make("input", { type: "range", id, min, max, step, value, autocomplete: "off", "aria-valuetext": says(value), oninput: () => {
    output.textContent = says(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    change(Number(input.value));
  } });
  return make("div", { class: "course-slider" }, make("label", { for: id }, name), input, output);
};
live.menu = (name, options, change, value = options[0][1]) => { // options: pairs of text and value
  const id = live.unique("menu"), select = make("select", { id, onchange: () => change(options[select.selectedIndex][1]) });
  for (const [text, of] of options) select.append(new Option(text, text, of === value, of === value));
  return make("div", { class: "live-menu" }, make("label", { for: id }, name), select);
};
live.tick = (name, checked, change) => {
  const id = live.unique("tick"), input = make("input", { type: "checkbox", id, checked, onchange: () => change(input.checked) });
  return make("div", { class: "live-tick" }, input, make("label", { for: id }, name));
};
// One sentence for those who listen: said when the reader rests, not at every move.
live.teller = () => {
  const line = make("p", { class: "live-says", role: "status" });
  let timer;
  return { line, say: (text) => { clearTimeout(timer); timer = setTimeout(() => { if (line.textContent !== text) line.textContent = text; }, 500); } };
};
// Work in turn, so that the mouse is never blocked: `soon(work)` runs the latest work when the browser has drawn.
live.soon = () => {
  const bell = new MessageChannel(); // unlike a timer it does not wait
  let work = null;
  bell.port1.onmessage = () => { const now = work; work = null; now?.(); };
  return (next) => { if (!work) bell.port2.postMessage(0); work = next; };
};

// ---------------------------------------------------------------------------------------------------- pictures
const LARGEST = 64e6, SMALLEST = 16; // pixels in all, pixels a side
// The middle square of an image, video or canvas as 3 maps of 0..255; what is transparent becomes white.
live.square = (source, width, height, size = live.info.shown) => {
  const side = Math.min(width, height), canvas = make("canvas");
  canvas.width = canvas.height = Math.min(side, 1024);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.width);
  context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.width);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.width), x = live.maps(3, canvas.width, canvas.width), n = x.h * x.w;
  for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) x.d[c * n + i] = data[4 * i + c];
  return live.resize(x, size);
};
live.read = (file) => new Promise((done, fail) => { // a file as a picture, or an error with one sentence
  const refuse = (sentence) => fail(new Error(sentence));
  if (!file) return refuse("That was no file. Drop a photograph, or choose one.");
  if (file.type === "image/svg+xml") return refuse("An SVG holds shapes, not pixels. Save it as PNG or JPEG first.");
  const image = new Image(), url = URL.createObjectURL(file);
  image.onerror = () => { URL.revokeObjectURL(url); refuse(`${file.name} is no picture that this browser can read.`); };
  image.onload = () => { // the size is known before any pixel is unpacked
    const { naturalWidth: width, naturalHeight: height } = image;
    try {
      if (width * height > LARGEST) throw new Error(`${file.name} has ${Math.round(width * height / 1e6)} million pixels, and ${LARGEST / 1e6} are the most. Make it smaller first.`);
      if (Math.min(width, height) < SMALLEST) throw new Error(`${file.name} is ${width} x ${height} pixels; each side needs at least ${SMALLEST}.`);
      done(live.square(image, width, height));
    } catch (error) { refuse(error instanceof DOMException ? `${file.name} could not be unpacked.` : error.message); }
    URL.revokeObjectURL(url);
  };
  image.src = url;
});
live.sample = async (i) => {
  const image = new Image();
  image.src = live.info.samples[i].uri;
  await image.decode();
  return live.square(image, image.naturalWidth, image.naturalHeight);
};

// Samples, a file, a drop on `target`, and the camera; take(picture) gets each new one.
live.chooser = (take, { target, camera = false, start = 0 } = {}) => {
  const id = live.unique("file"), samples = make("div", { class: "live-samples", role: "group", "aria-label": "pictures" });
  const says = make("p", { class: "live-says", role: "status" });
  const press = (chosen) => { for (const other of samples.children) other.setAttribute("aria-pressed", String(other === chosen)); };
  const open = async (file) => {
    try { const picture = await live.read(file); press(null); says.textContent = ""; take(picture); }
    catch (error) { says.textContent = error.message; }
  };
  live.info.samples.forEach((sample, i) => {
    const button = make("button", { type: "button", "aria-pressed": "false", onclick: async () => { press(button); says.textContent = ""; take(await live.sample(i)); } },
      make("img", { src: sample.uri, alt: sample.name, width: 48, height: 48 }));
    samples.append(button);
  });
  const file = make("input", { type: "file", id, accept: "image/*", onchange: () => { if (file.files.length) open(file.files[0]); } });
  const box = make("div", { class: "live-chooser" }, samples, make("label", { for: id }, "or a photograph of yours"), file);
  if (camera) box.append(cameraButton((picture) => { press(null); says.textContent = ""; take(picture); }, says));
  box.append(says, make("p", { class: "live-note" }, "A photograph never leaves this page: the networks come to it."),
    make("details", { class: "live-note" }, make("summary", {}, "Who made the pictures"), ...live.info.credits.map((line) => make("p", {}, line))));
  if (target) {
    target.addEventListener("dragover", (event) => { event.preventDefault(); target.classList.add("live-drop"); });
    target.addEventListener("dragleave", () => target.classList.remove("live-drop"));
    target.addEventListener("drop", (event) => { event.preventDefault(); target.classList.remove("live-drop"); open(event.dataTransfer.files[0]); });
  }
  samples.children[start].click();
  return box;
};
function cameraButton(take, says) {
  let stream = null;
  const video = make("video", { playsinline: true, muted: true, "aria-label": "what the camera sees" });
  const stop = () => { stream?.getTracks().forEach((track) => track.stop()); stream = null; video.remove(); button.textContent = "use the camera"; };
  const button = make("button", { type: "button", onclick: async () => {
    if (stream) { take(live.square(video, video.videoWidth, video.videoHeight)); stop(); return; }
    try {
      if (!navigator.mediaDevices) throw new Error("none");
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 640 } });
      video.srcObject = stream;
      button.after(video);
      await video.play();
      button.textContent = "take this picture";
    } catch { stop(); says.textContent = "There is no camera, or it was refused; a file or one of these pictures works as well."; }
  } }, "use the camera");
  return button;
}

// ----------------------------------------------------------------------------------------------------- drawing
live.canvas = (size, label) => make("canvas", { width: size, height: size, role: "img", "aria-label": label });
live.draw = (canvas, x) => { // 3 maps of 0..255
  const image = new ImageData(x.w, x.h), n = x.h * x.w;
  for (let i = 0; i < n; i++) { for (let c = 0; c < 3; c++) image.data[4 * i + c] = x.d[c * n + i]; image.data[4 * i + 3] = 255; }
  canvas.width = x.w;
  canvas.height = x.h;
  canvas.getContext("2d").putImageData(image, 0, 0);
};
const STOPS = [[12, 8, 60], [110, 20, 120], [215, 60, 80], [252, 150, 40], [252, 250, 170]]; // dark to bright
const COLOURS = Array.from({ length: 256 }, (_, i) => {
  const t = i / 255 * (STOPS.length - 1), k = Math.min(STOPS.length - 2, Math.floor(t));
  return STOPS[k].map((a, c) => a + (t - k) * (STOPS[k + 1][c] - a));
});
// A map over a picture, what is above zero, scaled to its own largest; returns where that is, in words.
live.heat = (canvas, picture, map, share = 0.6) => {
  const large = live.enlarge({ ...map, d: map.d.map((t) => Math.max(0, t)) }, picture.w);
  const top = large.d.reduce((a, b) => Math.max(a, b), 0), n = picture.h * picture.w, mixed = live.maps(3, picture.h, picture.w);
  for (let i = 0; i < n; i++) {
    const tint = COLOURS[top > 0 ? Math.round(255 * large.d[i] / top) : 0];
    for (let c = 0; c < 3; c++) mixed.d[c * n + i] = (1 - share) * picture.d[c * n + i] + share * tint[c];
  }
  live.draw(canvas, mixed);
  if (!(top > 0)) return null;
  const at = large.d.indexOf(top), third = (t) => Math.floor(3 * t / picture.w);
  const row = ["upper", "middle", "lower"][third(Math.floor(at / picture.w))], column = ["left", "centre", "right"][third(at % picture.w)];
  return row === "middle" && column === "centre" ? "middle" : `${row} ${column}`;
};
// Bars for the likeliest classes, or for those that are given.
live.bars = (rows = 3) => {
  const list = make("ul", { class: "live-bars" });
  for (let i = 0; i < rows; i++) list.append(make("li", {}, make("i"), make("span"), make("em")));
  list.show = (share, names = live.info.classes, order = share.map((_, i) => i).sort((a, b) => share[b] - share[a])) => {
    [...list.children].forEach((item, i) => {
      const [bar, name, percent] = item.children, p = share[order[i]];
      bar.style.width = `${100 * p}%`;
      name.textContent = names[order[i]];
      percent.textContent = `${(100 * p).toFixed(0)} %`;
    });
    return order[0];
  };
  return list;
};
// What a network says to a picture of `shown` px: { values, share, best }.
live.ask = (network, picture, change) => {
  const x = live.normalise(picture.w === network.side ? picture : live.resize(picture, network.side));
  const values = live.forward(network, x, change), share = live.softmax(live.logits(network, values));
  return { values, share, best: share.indexOf(share.reduce((a, b) => Math.max(a, b))) };
};
live.percent = (p) => `${(100 * p).toFixed(0)} %`;

// The frame of a chapter's figure: the picture and where it comes from, beside what the networks make of it. Returns
// the canvas of the picture, and `refresh`, which calls show(picture) when the browser has time.
live.frame = (root, controls, results, show, start = 0) => {
  const canvas = live.canvas(live.info.shown, "the picture"), soon = live.soon(), state = { picture: null };
  canvas.classList.add("live-photo");
  const refresh = () => { if (state.picture) soon(() => { show(state.picture); root.dataset.shown = Number(root.dataset.shown ?? 0) + 1; }); };
  const chooser = live.chooser((picture) => { state.picture = picture; live.draw(canvas, picture); refresh(); }, { target: root, start });
  root.append(make("div", { class: "live-bench" }, make("div", { class: "live-left" }, canvas, chooser), make("div", {}, ...controls, ...results)));
  return { canvas, refresh, state };
};
// A point of the canvas that the reader chooses by pointing or with the arrow keys: at(x, y) in parts of its side.
live.point = (canvas, at, step = 1 / 32) => {
  let x = 0.5, y = 0.5;
  const go = (to) => { [x, y] = to.map((t) => Math.min(1 - 1e-6, Math.max(0, t))); at(x, y); };
  const here = (event) => { const box = canvas.getBoundingClientRect(); go([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]); };
  Object.assign(canvas, { tabIndex: 0 });
  canvas.addEventListener("pointerdown", here);
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) here(event); });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (by) { event.preventDefault(); go([x + by[0], y + by[1]]); }
  });
};
// A network with its bars; `say` puts a sentence below.
live.card = (name, ...more) => {
  const bars = live.bars(), says = make("p", { class: "live-note" });
  const section = make("section", { class: "live-card", "aria-label": name }, make("h4", {}, name), ...more, bars, says);
  return { section, bars, say: (text) => { says.textContent = text; } };
};
live.zeros = (x) => live.maps(x.c, x.h, x.w);
live.without = (x, from, to) => { // the same maps, but those from `from` to `to` zero
  const y = { ...x, d: x.d.slice() }, n = x.h * x.w;
  y.d.fill(0, from * n, to * n);
  return y;
};
}

// Runs a trained network of the course in a page: one operation a function, each with its way back for gradients.
//
//   values = live.forward(network, picture)                what every step made; value 0 is the picture
//   live.logits(network, values)                           the answer
//   live.backward(network, values, from, seed, to)         the gradient of sum(seed * value `from`) at value `to`
//
// A value holds maps: c of them, h rows and w columns each, one after the other in d. Number (i, r, q) is
// d[(i * h + r) * w + q]. This is the reference: meant to be read beside the chapters, and fast enough to be used.
"use strict";
const live = { networks: new Map() };
{ // names inside of this block stay inside

function maps(c, h, w) { return { c, h, w, d: new Float32Array(c * h * w) }; }
function alike(x) { return maps(x.c, x.h, x.w); }
function each(x, f) { // y = f(x), number by number
  const y = alike(x);
  for (let i = 0; i < y.d.length; i++) y.d[i] = f(x.d[i]);
  return y;
}
function times(g, x, slope) { // the chain rule for such an f: its slope at x, times what arrives from behind
  const y = alike(x);
  for (let i = 0; i < y.d.length; i++) y.d[i] = slope(x.d[i]) * g.d[i];
  return y;
}

// -------------------------------------------------------------------------------------------------- convolutions
// Chapter 1's sum: y[o, r, q] = bias[o] + the sum over i, u, v of weight[o, i, u, v] * x[i, r * stride + u - pad, q * stride + v - pad].
// Each weight is taken once, and meets all positions of the map. Outside of the picture is zero, so nothing is added there.
live.convolve = (x, { weight, bias, shape: [outputs, inputs, k], stride, pad, groups }) => {
  const reach = (size) => Math.floor((size + 2 * pad - k) / stride) + 1;
  const y = maps(outputs, reach(x.h), reach(x.w));
  for (let o = 0; o < outputs; o++) {
    const first = Math.floor(o * groups / outputs) * inputs; // a group reads its own maps only
    if (bias) y.d.fill(bias[o], o * y.h * y.w, (o + 1) * y.h * y.w);
    for (let i = 0; i < inputs; i++) for (let u = 0; u < k; u++) for (let v = 0; v < k; v++) {
      const w = weight[((o * inputs + i) * k + u) * k + v], [low, high] = inside(x.w, y.w, stride, v - pad);
      for (let r = 0; r < y.h; r++) {
        const row = r * stride + u - pad;
        if (row < 0 || row >= x.h) continue;
        let to = (o * y.h + r) * y.w + low, from = ((first + i) * x.h + row) * x.w + low * stride + v - pad;
        for (let q = low; q < high; q++, to++, from += stride) y.d[to] += w * x.d[from];
      }
    }
  }
  return y;
};
// The way back: what each number of x did to y, over the same weights. x tells only the size of the result.
live.convolveBack = (g, x, { weight, shape: [outputs, inputs, k], stride, pad, groups }) => {
  const y = alike(x);
  for (let o = 0; o < outputs; o++) {
    const first = Math.floor(o * groups / outputs) * inputs;
    for (let i = 0; i < inputs; i++) for (let u = 0; u < k; u++) for (let v = 0; v < k; v++) {
      const w = weight[((o * inputs + i) * k + u) * k + v], [low, high] = inside(x.w, g.w, stride, v - pad);
      for (let r = 0; r < g.h; r++) {
        const row = r * stride + u - pad;
        if (row < 0 || row >= x.h) continue;
        let from = (o * g.h + r) * g.w + low, to = ((first + i) * x.h + row) * x.w + low * stride + v - pad;
        for (let q = low; q < high; q++, from++, to += stride) y.d[to] += w * g.d[from];
      }
    }
  }
  return y;
};
function inside(inputs, outputs, stride, shift) { // the outputs q whose input q * stride + shift exists: from low, below high
  return [Math.max(0, Math.ceil(-shift / stride)), Math.min(outputs, Math.floor((inputs - 1 - shift) / stride) + 1)];
}
// A transposed convolution is that way back, used forwards: each number of x paints a weighted kernel into y.
function deconvolve(x, s) {
  const [, outputs, k] = s.shape, size = (n) => (n - 1) * s.stride - 2 * s.pad + k;
  const y = live.convolveBack(x, maps(outputs, size(x.h), size(x.w)), s);
  if (s.bias) for (let o = 0, i = 0; o < outputs; o++) for (let n = 0; n < y.h * y.w; n++, i++) y.d[i] += s.bias[o];
  return y;
}

// -------------------------------------------------------------------------------------------------- normalisation
// Batch norm in evaluation: a scale and a shift for each map, from the statistics of the training.
function normalise(x, s) {
  const y = alike(x), n = x.h * x.w;
  for (let c = 0, i = 0; c < x.c; c++) {
    const scale = normScale(s, c), shift = s.bias[c] - s.mean[c] * scale;
    for (const end = i + n; i < end; i++) y.d[i] = x.d[i] * scale + shift;
  }
  return y;
}
function normScale(s, c) { return s.weight[c] / Math.sqrt(s.var[c] + s.eps); }
function normaliseBack(g, x, s) {
  const y = alike(x), n = x.h * x.w;
  for (let c = 0, i = 0; c < x.c; c++) for (const scale = normScale(s, c), end = i + n; i < end; i++) y.d[i] = g.d[i] * scale;
  return y;
}

// ---------------------------------------------------------------------------------------- sums, products, lists of maps
// Two values may differ in size where one has a single map or a single position, such as a gate: it is then repeated.
function pairwise(a, b, visit) { // visit(place in the result, place in a, place in b)
  const c = Math.max(a.c, b.c), n = Math.max(a.h * a.w, b.h * b.w), an = a.h * a.w, bn = b.h * b.w;
  for (let i = 0, o = 0; i < c; i++) {
    const p = a.c > 1 ? i * an : 0, q = b.c > 1 ? i * bn : 0;
    for (let j = 0; j < n; j++, o++) visit(o, an > 1 ? p + j : p, bn > 1 ? q + j : q);
  }
}
function both(a, b, f) {
  const y = maps(Math.max(a.c, b.c), Math.max(a.h, b.h), Math.max(a.w, b.w));
  pairwise(a, b, (o, p, q) => { y.d[o] = f(a.d[p], b.d[q]); });
  return y;
}
function bothBack(g, a, b, fa, fb) { // what is repeated gathers the gradients of all its copies
  const da = alike(a), db = alike(b);
  pairwise(a, b, (o, p, q) => { da.d[p] += g.d[o] * fa(a.d[p], b.d[q]); db.d[q] += g.d[o] * fb(a.d[p], b.d[q]); });
  return [da, db];
}
function concatenate(xs) {
  const y = maps(xs.reduce((sum, x) => sum + x.c, 0), xs[0].h, xs[0].w);
  let at = 0;
  for (const x of xs) { y.d.set(x.d, at); at += x.d.length; }
  return y;
}
function channels(x, from, to) { // maps `from` to `to` of x; those that x does not have are zero
  const y = maps(to - from, x.h, x.w), n = x.h * x.w;
  y.d.set(x.d.subarray(Math.max(0, from) * n, Math.min(x.c, to) * n), Math.max(0, -from) * n);
  return y;
}

// -------------------------------------------------------------------------------- positions that move, or are weighed
// Each position of the result is a weighted sum of positions of x, the same in every map: a list of [place, weight].
function resample(x, h, w, sources) {
  const y = maps(x.c, h, w), n = x.h * x.w;
  for (let c = 0, o = 0; c < x.c; c++) for (const list of sources) {
    for (const [place, weight] of list) y.d[o] += weight * x.d[c * n + place];
    o++;
  }
  return y;
}
function resampleBack(g, x, sources) {
  const y = alike(x), n = x.h * x.w;
  for (let c = 0, o = 0; c < x.c; c++) for (const list of sources) {
    for (const [place, weight] of list) y.d[c * n + place] += weight * g.d[o];
    o++;
  }
  return y;
}
// Rows and columns are chosen alike: for each of `size` places along one axis, a list of [index, weight].
const along = {
  slice: (size, n, s) => range(size, (i) => [[i * s.step, 1]]),
  mirror: (size, n, before) => range(size, (i) => [[reflected(i - before, n), 1]]),
  repeat: (size, n, before) => range(size, (i) => [[clamp(i - before, n), 1]]),
  nearest: (size, n) => range(size, (i) => [[Math.floor(i * n / size), 1]]),
  bilinear: (size, n, corners) => range(size, (i) => {
    const t = corners ? (size > 1 ? i * (n - 1) / (size - 1) : 0) : Math.max(0, (i + 0.5) * n / size - 0.5);
    const low = Math.floor(t);
    return [[low, 1 - (t - low)], [clamp(low + 1, n), t - low]];
  }),
};
function range(size, f) { return Array.from({ length: size }, (_, i) => f(i)); }
function clamp(i, n) { return Math.min(Math.max(i, 0), n - 1); }
function reflected(i, n) { return i < 0 ? -i : i < n ? i : 2 * n - 2 - i; }
function crossed(rows, columns, width) { // rows times columns: sources of every position
  return rows.flatMap((row) => columns.map((column) =>
    row.flatMap(([r, a]) => column.map(([q, b]) => [r * width + q, a * b]).filter(([, weight]) => weight))));
}
function sources(x, s) { // [rows, columns, sources] of the result
  const untouched = (n) => range(n, (i) => [[i, 1]]);
  let rows, columns;
  if (s.op === "slice") {
    rows = s.axis === 2 ? along.slice(s.size, x.h, s) : untouched(x.h);
    columns = s.axis === 3 ? along.slice(s.size, x.w, s) : untouched(x.w);
  } else if (s.op === "mirror" || s.op === "repeat") {
    const [left, right, top, bottom] = s.widths;
    rows = along[s.op](x.h + top + bottom, x.h, top);
    columns = along[s.op](x.w + left + right, x.w, left);
  } else {
    rows = along[s.op](s.size[0], x.h, s.corners);
    columns = along[s.op](s.size[1], x.w, s.corners);
  }
  return [rows.length, columns.length, crossed(rows, columns, x.w)];
}
function moved() { // the operations that `along` knows
  const known = (x, s) => { if (s.for !== x.h * 1e4 + x.w) { s.for = x.h * 1e4 + x.w; s.sources = sources(x, s); } return s.sources; };
  return [(x, s) => resample(x, ...known(x, s)), (g, x, s) => resampleBack(g, x, known(x, s)[2])];
}

// -------------------------------------------------------------------------------------------------------- pooling
function windows(x, s, visit) { // visit(place in the result, the places in x under its window)
  const pad = s.pad || 0, reach = (size) => Math.floor((size + 2 * pad - s.k) / s.stride) + 1;
  const h = reach(x.h), w = reach(x.w), places = [];
  for (let c = 0, o = 0; c < x.c; c++) for (let r = 0; r < h; r++) for (let q = 0; q < w; q++, o++) {
    places.length = 0;
    for (let u = 0; u < s.k; u++) for (let v = 0; v < s.k; v++) {
      const row = r * s.stride + u - pad, column = q * s.stride + v - pad;
      if (row >= 0 && row < x.h && column >= 0 && column < x.w) places.push((c * x.h + row) * x.w + column);
    }
    visit(o, places);
  }
  return [h, w];
}
function pooled(x, s, f) {
  const made = [], [h, w] = windows(x, s, (o, places) => made.push(f(places)));
  const y = maps(x.c, h, w);
  y.d.set(made);
  return y;
}
function largest(x, places) { // the first of the largest
  let top = places[0];
  for (const place of places) if (x.d[place] > x.d[top]) top = place;
  return top;
}
function sum(x, places) { let total = 0; for (const place of places) total += x.d[place]; return total; }
// The same over all positions of a map, or over all maps at a position: `count` places from `start`, `step` apart.
const overSpace = { shape: (x) => [x.c, 1, 1], start: (x, o) => o * x.h * x.w, count: (x) => x.h * x.w, step: () => 1 };
const overMaps = { shape: (x) => [1, x.h, x.w], start: (x, o) => o, count: (x) => x.c, step: (x) => x.h * x.w };
function mean(x, over) {
  const y = maps(...over.shape(x)), count = over.count(x), step = over.step(x);
  for (let o = 0; o < y.d.length; o++) {
    let total = 0;
    for (let j = 0, i = over.start(x, o); j < count; j++, i += step) total += x.d[i];
    y.d[o] = total / count;
  }
  return y;
}
function meanBack(g, x, over) {
  const y = alike(x), count = over.count(x), step = over.step(x);
  for (let o = 0; o < g.d.length; o++)
    for (let j = 0, i = over.start(x, o); j < count; j++, i += step) y.d[i] = g.d[o] / count;
  return y;
}
function peak(x, over, o) { // the place of the first of the largest
  const count = over.count(x), step = over.step(x);
  let at = over.start(x, o);
  for (let j = 1, i = at + step; j < count; j++, i += step) if (x.d[i] > x.d[at]) at = i;
  return at;
}
function max(x, over) {
  const y = maps(...over.shape(x));
  for (let o = 0; o < y.d.length; o++) y.d[o] = x.d[peak(x, over, o)];
  return y;
}
function maxBack(g, x, over) {
  const y = alike(x);
  for (let o = 0; o < g.d.length; o++) y.d[peak(x, over, o)] += g.d[o];
  return y;
}

// ------------------------------------------------------------------------------------------------- the operations
const sigmoid = (t) => 1 / (1 + Math.exp(-t));
// name: [forwards(x, step), backwards(gradient, x, step, result) -> the gradient of x]; `many` take a list of values.
const OPERATIONS = {
  conv: [(x, s) => live.convolve(x, s), (g, x, s) => live.convolveBack(g, x, s)],
  deconv: [deconvolve, (g, x, s) => live.convolve(g, { ...s, bias: null })],
  norm: [normalise, normaliseBack],
  relu: [(x) => each(x, (t) => t > 0 ? t : 0), (g, x) => times(g, x, (t) => t > 0 ? 1 : 0)],
  leaky: [(x, s) => each(x, (t) => t > 0 ? t : s.slope * t), (g, x, s) => times(g, x, (t) => t > 0 ? 1 : s.slope)],
  silu: [(x) => each(x, (t) => t * sigmoid(t)), (g, x) => times(g, x, (t) => { const p = sigmoid(t); return p * (1 + t * (1 - p)); })],
  sigmoid: [(x) => each(x, sigmoid), (g, x, s, y) => times(g, y, (p) => p * (1 - p))],
  channels: [(x, s) => channels(x, ...s.range), (g, x, s) => channels(g, -s.range[0], x.c - s.range[0])],
  morechannels: [(x, s) => channels(x, -s.before, x.c + s.after), (g, x, s) => channels(g, s.before, s.before + x.c)],
  slice: moved(), mirror: moved(), repeat: moved(), nearest: moved(), bilinear: moved(),
  maxpool: [(x, s) => pooled(x, s, (places) => x.d[largest(x, places)]), (g, x, s) => {
    const y = alike(x);
    windows(x, s, (o, places) => { y.d[largest(x, places)] += g.d[o]; });
    return y;
  }],
  avgpool: [(x, s) => pooled(x, s, (places) => sum(x, places) / places.length), (g, x, s) => {
    const y = alike(x);
    windows(x, s, (o, places) => { for (const place of places) y.d[place] += g.d[o] / places.length; });
    return y;
  }],
  spacemean: [(x) => mean(x, overSpace), (g, x) => meanBack(g, x, overSpace)],
  spacemax: [(x) => max(x, overSpace), (g, x) => maxBack(g, x, overSpace)],
  channelmean: [(x) => mean(x, overMaps), (g, x) => meanBack(g, x, overMaps)],
  channelmax: [(x) => max(x, overMaps), (g, x) => maxBack(g, x, overMaps)],
};
const MANY = {
  add: [([a, b]) => both(a, b, (p, q) => p + q), (g, [a, b]) => bothBack(g, a, b, () => 1, () => 1)],
  sub: [([a, b]) => both(a, b, (p, q) => p - q), (g, [a, b]) => bothBack(g, a, b, () => 1, () => -1)],
  mul: [([a, b]) => both(a, b, (p, q) => p * q), (g, [a, b]) => bothBack(g, a, b, (p, q) => q, (p) => p)],
  cat: [concatenate, (g, xs) => {
    let at = 0;
    return xs.map((x) => channels(g, at, at += x.c));
  }],
};

// ----------------------------------------------------------------------------------------------------- a network
live.begin = (info) => { live.info = info; };
live.add = (network) => { live.networks.set(network.name, unpacked(network)); };
function unpacked(network) { // each step gets its weights instead of their places in the file
  const all = halves(network.weights), part = ([start, length]) => all.subarray(start, start + length);
  for (const s of network.steps) for (const name of ["weight", "bias", "mean", "var"]) if (s[name]) s[name] = part(s[name]);
  delete network.weights;
  return network;
}
function halves(base64) { // float16: a sign, five bits of exponent, ten of fraction; the lower byte comes first
  const text = atob(base64), out = new Float32Array(text.length / 2);
  for (let i = 0; i < out.length; i++) {
    const bits = text.charCodeAt(2 * i) | text.charCodeAt(2 * i + 1) << 8, e = bits >> 10 & 31, f = bits & 1023;
    out[i] = (bits >> 15 ? -1 : 1) * (e ? (1 + f / 1024) * 2 ** (e - 15) : f * 2 ** -24);
  }
  return out;
}
// picture: a value of 3 maps, normalised. change: a Map from the number of a value to a function of it, and of the values
// before it, that gives another one in its place: for figures that take something away.
live.forward = (network, picture, change = new Map()) => {
  const values = [picture];
  for (const s of network.steps) {
    const made = s.op in MANY ? MANY[s.op][0](s.in.map((i) => values[i])) : OPERATIONS[s.op][0](values[s.in[0]], s);
    values.push(change.get(values.length)?.(made, values) ?? made);
  }
  return values;
};
live.logits = (network, values) => Array.from(values[network.output].d);
live.backward = (network, values, from, seed, to) => {
  const gradients = new Map([[from, { ...values[from], d: Float32Array.from(seed) }]]);
  for (let v = from; v > to; v--) { // a step's inputs come before it, so everything that reaches v has been added up
    const g = gradients.get(v), s = network.steps[v - 1];
    if (!g || s.in.every((i) => i < to)) continue;
    const xs = s.in.map((i) => values[i]);
    const parts = s.op in MANY ? MANY[s.op][1](g, xs) : [OPERATIONS[s.op][1](g, xs[0], s, values[v])];
    parts.forEach((part, j) => {
      const i = s.in[j], before = gradients.get(i);
      if (i >= to) gradients.set(i, before ? both(before, part, (p, q) => p + q) : part);
    });
  }
  return gradients.get(to) ?? alike(values[to]);
};

// ------------------------------------------------------------------------------------------- what the page asks for
// Chapter 15: every map of the layer, weighed by the mean of its gradient. Signed; what speaks for the target is above zero.
live.gradCam = (network, values, target, layer = network.layer) => {
  const seed = values[network.output].d.map((_, i) => i === target ? 1 : 0);
  return live.weighed(values[layer], live.backward(network, values, network.output, seed, layer));
};
live.weighed = (A, g) => {
  const map = maps(1, A.h, A.w), n = A.h * A.w, alpha = mean(g, overSpace).d;
  for (let k = 0; k < A.c; k++) for (let i = 0; i < n; i++) map.d[i] += alpha[k] * A.d[k * n + i];
  return map;
};
live.softmax = (logits) => {
  const top = logits.reduce((a, b) => Math.max(a, b)), powers = logits.map((t) => Math.exp(t - top)), total = powers.reduce((a, b) => a + b);
  return powers.map((t) => t / total);
};
live.normalise = (pixels) => { // 3 maps of 0..255 to what the networks were trained on
  const { mean, std } = live.info, n = pixels.h * pixels.w;
  return { ...pixels, d: pixels.d.map((t, i) => (t - mean[Math.floor(i / n)]) / std[Math.floor(i / n)]) };
};
// A picture made smaller as PyTorch's interpolate(antialias=True) does it: every new pixel is a mean of old ones under a
// triangle as wide as the shrinking needs, first along rows, then along columns, and rounded to whole grey levels.
live.resize = (x, size) => {
  const triangle = (n) => range(size, (i) => {
    const scale = n / size, reach = Math.max(scale, 1), centre = scale * (i + 0.5), taps = [];
    for (let j = Math.max(0, Math.floor(centre - reach + 0.5)); j < Math.min(n, Math.floor(centre + reach + 0.5)); j++)
      taps.push([j, Math.max(0, 1 - Math.abs((j - centre + 0.5) / reach))]);
    const total = taps.reduce((sum, [, weight]) => sum + weight, 0);
    return taps.map(([j, weight]) => [j, weight / total]);
  });
  const across = triangle(x.w), down = triangle(x.h), rows = maps(x.c, x.h, size), y = maps(x.c, size, size);
  for (let r = 0; r < x.c * x.h; r++) across.forEach((taps, q) => {
    rows.d[r * size + q] = taps.reduce((sum, [j, weight]) => sum + weight * x.d[r * x.w + j], 0);
  });
  for (let c = 0; c < x.c; c++) down.forEach((taps, r) => {
    for (let q = 0; q < size; q++)
      y.d[(c * size + r) * size + q] = toEven(taps.reduce((sum, [j, weight]) => sum + weight * rows.d[(c * x.h + j) * size + q], 0));
  });
  return y;
};
// Half a grey level goes to the even neighbour, as in PyTorch; halving a picture makes many of them.
function toEven(t) { const low = Math.floor(t), rest = t - low; return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low; }
live.enlarge = (map, size) => resample(map, size, size, crossed(along.bilinear(size, map.h), along.bilinear(size, map.w), map.w));
Object.assign(live, { maps, operations: OPERATIONS, many: MANY });
}

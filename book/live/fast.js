// A faster convolution, in place of the one in engine.js. Without this file everything works, more slowly.
//
// The inner loop is a WebAssembly module of some 400 bytes, written out below, because it can multiply four numbers at
// once. It makes eight neighbouring positions of four maps: for each map m of the four and each position j of the eight,
//   y[m][j] = bias[m] + the sum over k of a[k][m] * base[offsets[k] + j],
// where k counts all weights of one output. The weights lie in the order in which they are read.
"use strict";
(() => {
  const MEGABYTES = 64, memory = new WebAssembly.Memory({ initial: MEGABYTES * 16 });
  const F = new Float32Array(memory.buffer), I = new Int32Array(memory.buffer);

  // panel(a, offsets, base, y, bias, rows, K, stride): addresses and stride in bytes, rows a multiple of four
  function assemble() {
    const code = [], leb = (v) => { const o = []; do { o.push((v & 127) | (v > 127 ? 128 : 0)); v >>>= 7; } while (v); return o; };
    const put = (...b) => code.push(...b), get = (i) => put(0x20, i), set = (i) => put(0x21, i), tee = (i) => put(0x22, i);
    const constant = (v) => put(0x41, v), add = () => put(0x6a), subtract = () => put(0x6b), loop = () => put(0x03, 0x40);
    const four = (offset) => put(0xfd, 0, 4, offset), one = (offset) => put(0xfd, 9, 2, offset); // load four numbers, or one four times
    const store = (offset) => put(0xfd, 0x0b, 4, offset), times = () => put(0xfd, 0xe6, 1), plus = () => put(0xfd, 0xe4, 1);
    const again = () => put(0x0d, 0, 0x0b); // to the start of the loop, unless zero is on the stack
    const [A, OFFSETS, BASE, Y, BIAS, ROWS, K, STRIDE, k, p, q] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    const sum = (m, half) => 11 + 2 * m + half, left = 19, right = 20, weight = 21;
    loop(); // over the maps, four at a time
    for (let m = 0; m < 4; m++) { get(BIAS); one(4 * m); tee(sum(m, 0)); set(sum(m, 1)); }
    get(OFFSETS); set(p); get(K); set(k);
    loop(); // over k
    get(BASE); get(p); put(0x28, 2, 0); add(); set(q);
    get(q); four(0); set(left); get(q); four(16); set(right);
    for (let m = 0; m < 4; m++) {
      get(A); one(4 * m); set(weight);
      for (const half of [0, 1]) { get(sum(m, half)); get(weight); get(half ? right : left); times(); plus(); set(sum(m, half)); }
    }
    get(A); constant(16); add(); set(A); get(p); constant(4); add(); set(p);
    get(k); constant(1); subtract(); tee(k); again();
    for (let m = 0; m < 4; m++) {
      for (const half of [0, 1]) { get(Y); get(sum(m, half)); store(16 * half); }
      get(Y); get(STRIDE); add(); set(Y);
    }
    get(BIAS); constant(16); add(); set(BIAS);
    get(ROWS); constant(4); subtract(); tee(ROWS); again();
    const section = (id, body) => [id, ...leb(body.length), ...body];
    const body = [2, 3, 0x7f, 11, 0x7b, ...code, 0x0b]; // locals: three addresses, eleven times four numbers
    return new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
      ...section(1, [1, 0x60, 8, ...Array(8).fill(0x7f), 0]), ...section(2, [1, 1, 109, 1, 109, 2, 0, 1]),
      ...section(3, [1, 0]), ...section(7, [1, 1, 112, 0, 0]), ...section(10, [1, ...leb(body.length), ...body])]);
  }
  let panel;
  try {
    panel = new WebAssembly.Instance(new WebAssembly.Module(assemble()), { m: { m: memory } }).exports.p;
  } catch { return; } // no SIMD here: the reference stays

  // Weights stay in the memory once they are packed; behind them each convolution has the rest for itself.
  const packed = new WeakMap();
  let floor = 64, top = 0;
  const take = (length) => { const at = top; top += length + 31 & ~15; return at; }; // in numbers, and eight more to read past the end
  function pack(s) {
    const [outputs, inputs, k] = s.shape, K = inputs * k * k, deep = s.groups > 1;
    // depthwise, each map is alone: it takes four places, of which the first counts
    const rows = deep ? 4 * outputs : outputs + 3 & ~3, place = (o) => deep ? 4 * o : o;
    top = floor;
    const a = take(rows * K), bias = take(rows);
    if (top > F.length / 2) return null;
    F.fill(0, a, top);
    for (let o = 0; o < outputs; o++) {
      const r = place(o);
      for (let i = 0; i < K; i++) F[a + ((r >> 2) * K + i) * 4 + (r & 3)] = s.weight[o * K + i];
      if (s.bias) F[bias + r] = s.bias[o];
    }
    floor = top;
    return { a, bias, rows, K };
  }
  const reference = live.convolve;
  live.convolve = (x, s) => {
    const [outputs, inputs, k] = s.shape, deep = s.groups > 1;
    if (deep && (inputs !== 1 || s.groups !== outputs) || x.h * x.w === 1) return reference(x, s);
    if (!packed.has(s.weight)) packed.set(s.weight, pack(s));
    const p = packed.get(s.weight);
    const reach = (size) => Math.floor((size + 2 * s.pad - k) / s.stride) + 1, h = reach(x.h), w = reach(x.w), n = h * w;
    const H = x.h + 2 * s.pad, W = x.w + 2 * s.pad, up = p && p.rows, eights = Math.ceil(n / 8);
    top = floor;
    if (!p || top + x.c * H * W + (deep ? 4 : up) * 8 * eights + 16 * p.K > F.length - 1024) return reference(x, s);
    const from = take(x.c * H * W), offsets = take(p.K), patch = take(8 * p.K), to = take((deep ? 4 : up) * 8 * eights);
    F.fill(0, from, from + x.c * H * W); // x with zeros around it
    for (let c = 0; c < x.c; c++) for (let r = 0; r < x.h; r++)
      F.set(x.d.subarray((c * x.h + r) * x.w, (c * x.h + r + 1) * x.w), from + (c * H + r + s.pad) * W + s.pad);
    const y = live.maps(outputs, h, w), near = s.stride === 1 && w % 8 === 0, maps = deep ? 1 : x.c;
    for (let c = 0, i = 0; c < maps; c++) for (let u = 0; u < k; u++) for (let v = 0; v < k; v++, i++)
      I[offsets + i] = 4 * (near ? c * H * W + u * W + v : 8 * i);
    const plane = 8 * eights;
    for (let part = 0; part < (deep ? outputs : 1); part++) {
      const start = from + part * H * W, a = p.a + part * 4 * p.K, bias = p.bias + part * 4, rows = deep ? 4 : up;
      for (let e = 0; e < eights; e++) {
        let base = patch;
        if (near) base = start + Math.floor(8 * e / w) * W + 8 * e % w; // eight neighbours lie side by side already
        else for (let j = 0; j < 8 && 8 * e + j < n; j++) { // otherwise they are gathered
          const at = start + Math.floor((8 * e + j) / w) * s.stride * W + (8 * e + j) % w * s.stride;
          for (let c = 0, i = patch + j; c < maps; c++) for (let u = 0; u < k; u++)
            for (let v = 0, q = at + (c * H + u) * W; v < k; v++, i += 8) F[i] = F[q + v];
        }
        panel(4 * a, 4 * offsets, 4 * base, 4 * (to + 8 * e), 4 * bias, rows, p.K, 4 * plane);
      }
      for (let o = 0; o < (deep ? 1 : outputs); o++) y.d.set(F.subarray(to + o * plane, to + o * plane + n), (part + o) * n);
    }
    return y;
  };
  live.fast = true;
})();

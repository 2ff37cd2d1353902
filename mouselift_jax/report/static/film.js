// Reads a film in one file (docs/film_format.md) inside a page: a zip of JSON and numpy arrays.
//
//   const film = mouseliftFilm(bytes);            // Uint8Array of the whole file
//   const {about} = await film.about();           // film.json
//   const frames = await film.part(number);       // [{at, n, means, quats, scales, rgb, alpha}]
"use strict";
const mouseliftFilm = (bytes) => {
const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const members = new Map();

function list() {  // the zip's directory, found from its end
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("not a film: no zip archive");
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [size, name, extra, comment] = [view.getUint32(at + 20, true), view.getUint16(at + 28, true),
      view.getUint16(at + 30, true), view.getUint16(at + 32, true)];
    const text = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + name));
    members.set(text, { method: view.getUint16(at + 10, true), size, at: view.getUint32(at + 42, true) });
    at += 46 + name + extra + comment;
  }
}

async function member(name) {
  const found = members.get(name);
  if (!found) throw new Error(`not a whole film: ${name} is missing`);
  const start = found.at + 30 + view.getUint16(found.at + 26, true) + view.getUint16(found.at + 28, true);
  const data = bytes.subarray(start, start + found.size);
  if (found.method === 0) return data;
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function half(u) {
  const e = (u >> 10) & 31, f = u & 1023, sign = u >> 15 ? -1 : 1;
  if (e === 31) return f ? NaN : sign * Infinity;
  return sign * (e ? (1 + f / 1024) * 2 ** (e - 15) : f * 2 ** -24);
}

async function array(name) {  // numpy's .npy
  const data = await member(`${name}.npy`), v = new DataView(data.buffer, data.byteOffset);
  const wide = data[6] > 1, start = (wide ? 12 : 10) + (wide ? v.getUint32(8, true) : v.getUint16(8, true));
  const head = new TextDecoder().decode(data.subarray(10, start));
  const kind = head.match(/'descr': *'([^']+)'/)[1];
  const shape = head.match(/'shape': *\(([^)]*)\)/)[1].split(",").filter((s) => s.trim()).map(Number);
  const raw = data.slice(start).buffer;
  if (kind === "|u1") return { shape, values: new Uint8Array(raw) };
  if (kind === "<f4") return { shape, values: new Float32Array(raw) };
  if (kind === "<f8") return { shape, values: new Float64Array(raw) };
  if (kind === "<f2") return { shape, values: Float32Array.from(new Uint16Array(raw), half) };
  throw new Error(`${name} holds ${kind}`);
}

// Bytes [B,C,K,N] -> numbers [K][N*C]: planes, zigzag, sums along K.
function numbers({ shape: [B, C, K, N], values }) {
  const out = Array.from({ length: K }, () => new Float32Array(N * C)), plane = C * K * N;
  for (let c = 0; c < C; c++) for (let n = 0; n < N; n++) {
    let sum = 0;
    for (let k = 0; k < K; k++) {
      const at = (c * K + k) * N + n;
      let z = 0;
      for (let b = B - 1; b >= 0; b--) z = z * 256 + values[b * plane + at];
      sum += z % 2 ? -(z + 1) / 2 : z / 2;
      out[k][n * C + c] = sum;
    }
  }
  return out;
}

function times(a, b) {  // Hamilton product, wxyz
  const [w, x, y, z] = a, [W, X, Y, Z] = b;
  return [w * W - x * X - y * Y - z * Z, w * X + x * W + y * Z - z * Y,
          w * Y - x * Z + y * W + z * X, w * Z + x * Y - y * X + z * W];
}

function unit(a, at) {
  const n = Math.hypot(a[at], a[at + 1], a[at + 2], a[at + 3]);
  return n ? [a[at] / n, a[at + 1] / n, a[at + 2] / n, a[at + 3] / n] : [1, 0, 0, 0];
}

function turned([w, x, y, z], [a, b, c]) {  // v + 2 u x (u x v + w v)
  const [d, e, f] = [y * c - z * b + w * a, z * a - x * c + w * b, x * b - y * a + w * c];
  return [a + 2 * (y * f - z * e), b + 2 * (z * d - x * f), c + 2 * (x * e - y * d)];
}

let told = null;
const rests = new Map();

async function about() {
  return (told ??= JSON.parse(new TextDecoder().decode(await member("film.json"))));
}

async function rest(segment) {
  if (!rests.has(segment)) {
    const base = `segment_${String(segment).padStart(3, "0")}`, set = {};
    for (const name of ["means", "quats", "log_scales", "opacity_logits", "sh"]) set[name] = (await array(`${base}/${name}`)).values;
    set.scales = set.log_scales.map(Math.exp);
    set.alpha = set.opacity_logits.map((v) => 1 / (1 + Math.exp(-v)));
    rests.set(segment, set);
  }
  return rests.get(segment);
}

async function part(number) {
  const { parts, step } = await about(), { segment, at } = parts[number];
  const still = await rest(segment), n = still.alpha.length, base = `part_${String(number).padStart(5, "0")}`;
  const pose = (await array(`${base}/pose`)).values, q = {};
  for (const name of ["means", "quats", "sh"]) q[name] = numbers(await array(`${base}/${name}`));
  const C0 = 0.28209479177387814, S3 = q.sh[0].length / n;
  return at.map((frame, k) => {
    const body = unit(pose, 7 * k), origin = pose.subarray(7 * k + 4, 7 * k + 7);
    const means = new Float32Array(3 * n), quats = new Float32Array(4 * n), rgb = new Uint8Array(3 * n);
    for (let i = 0; i < n; i++) {
      const moved = turned(body, [0, 1, 2].map((c) => still.means[3 * i + c] + step.means * q.means[k][3 * i + c]));
      for (let c = 0; c < 3; c++) {
        means[3 * i + c] = moved[c] + origin[c];
        const colour = 0.5 + C0 * (still.sh[S3 * i + c] + step.sh * q.sh[k][S3 * i + c]);
        rgb[3 * i + c] = Math.round(255 * Math.max(0, Math.min(1, colour)));
      }
      quats.set(times(times(body, unit(q.quats[k], 4 * i)), unit(still.quats, 4 * i)), 4 * i);
    }
    return { at: frame, n, means, quats, rgb, scales: still.scales, alpha: still.alpha };
  });
}

list();
return { about, part };
};

// The splat viewer of reports and exported pages: WebGL 2, no dependency, no worker, no network.
//
// A page holds <div class="mouselift-splats"> elements, each with a JSON <script> child:
// {frames: [base64 of gzipped .splat rows], labels, target: [x,y,z], radius,
// angles: [azimuth, elevation] in radians, fps, scene_scale}; a film with identity has no rows but
// {film: base64 of the file that film.js reads, centres: [[x,y,z] of each frame], colour: kind,
// colours: {kind: {legend, table: base64 of rgb [256,3], values: [gzipped bytes [N] of each frame]}},
// tracks: [{at: [frames], colours: [[r,g,b]], paths: base64 of float32 [frames, points, 3]}]}.
// Axes are the project's: z up, OpenCV cameras. What is drawn is the semantics of
// mouselift_jax.render: +0.3 pixel dilation, alpha cut at 1/255 and 0.99, back to front.
"use strict";
(() => {
const FOV_DEG = 50, NEAR = 0.02, TEXELS = 3, TEX_WIDTH = 1023;  // whole Gaussians to a row
const VERTEX = `#version 300 es
precision highp float; precision highp int;
uniform highp sampler2D data; uniform mat4 w2c; uniform vec2 size; uniform float focal;
in uint index; out vec2 at; out vec4 colour;
void main() {
  int i = int(index) * ${TEXELS};
  ivec2 p = ivec2(i % ${TEX_WIDTH}, i / ${TEX_WIDTH});
  vec4 a = texelFetch(data, p, 0), b = texelFetch(data, p + ivec2(1, 0), 0);
  vec4 c = texelFetch(data, p + ivec2(2, 0), 0);
  vec3 t = (w2c * vec4(a.xyz, 1.0)).xyz;
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  if (t.z < ${NEAR}) return;
  mat3 cov = mat3(b.x, b.y, b.z, b.y, b.w, c.x, b.z, c.x, c.y);
  vec2 lim = 1.3 * 0.5 * size / focal;
  vec2 q = clamp(t.xy / t.z, -lim, lim) * t.z;
  mat3 J = mat3(focal / t.z, 0.0, 0.0, 0.0, focal / t.z, 0.0,
                -focal * q.x / (t.z * t.z), -focal * q.y / (t.z * t.z), 0.0);
  mat3 M = J * mat3(w2c), s = M * cov * transpose(M);
  float A = s[0][0] + 0.3, B = s[0][1], C = s[1][1] + 0.3;
  float mid = 0.5 * (A + C), d = length(vec2(0.5 * (A - C), B));
  float l1 = mid + d, l2 = max(mid - d, 1e-6);
  vec2 e = abs(B) > 1e-9 ? normalize(vec2(B, l1 - A)) : (A >= C ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
  float reach = sqrt(max(0.0, 2.0 * log(255.0 * c.w)));
  if (reach == 0.0) return;
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  at = corner * reach;
  vec2 xy = focal * t.xy / t.z + at.x * sqrt(l1) * e + at.y * sqrt(l2) * vec2(-e.y, e.x);
  float packed = c.z;
  colour = vec4(mod(floor(packed / 65536.0), 256.0), mod(floor(packed / 256.0), 256.0),
                mod(packed, 256.0), 255.0 * c.w) / 255.0;
  gl_Position = vec4(2.0 * xy.x / size.x, -2.0 * xy.y / size.y, 0.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float; in vec2 at; in vec4 colour; out vec4 pixel;
void main() {
  float alpha = min(0.99, colour.a * exp(-0.5 * dot(at, at)));
  if (alpha < 1.0 / 255.0) discard;
  pixel = vec4(colour.rgb * alpha, alpha);
}`;

// Tracks: a line from p to q, some pixels wide, drawn over the Gaussians.
const LINE_VERTEX = `#version 300 es
precision highp float;
uniform mat4 w2c; uniform vec2 size; uniform float focal, wide;
in vec3 p, q; in vec4 tint; out vec4 colour;
void main() {
  vec3 a = (w2c * vec4(p, 1.0)).xyz, b = (w2c * vec4(q, 1.0)).xyz;
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  if (a.z < ${NEAR} || b.z < ${NEAR}) return;
  vec2 from = focal * a.xy / a.z, to = focal * b.xy / b.z, way = to - from;
  vec2 along = length(way) > 1e-4 ? normalize(way) : vec2(1.0, 0.0);
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  vec2 at = (corner.x < 0.0 ? from : to) + 0.5 * wide * (corner.x * along + corner.y * vec2(-along.y, along.x));
  colour = vec4(tint.rgb * tint.a, tint.a);
  gl_Position = vec4(2.0 * at.x / size.x, -2.0 * at.y / size.y, 0.0, 1.0);
}`;
const LINE_FRAGMENT = `#version 300 es
precision highp float; in vec4 colour; out vec4 pixel;
void main() { pixel = colour; }`;
const TRAIL = 30, LINE_PX = 1.8;  // frames of the past that tracks show; their width

function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

async function unpack(text) {
  const bytes = fromBase64(text);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// n Gaussians -> texels (mean, - | covariance | ..., packed rgb, alpha), row by row of the texture.
function empty(n) {
  const rows = Math.max(1, Math.ceil(n / (TEX_WIDTH / TEXELS)));
  return { n, rows, out: new Float32Array(rows * TEX_WIDTH * 4), means: new Float32Array(n * 3) };
}

function put(set, i, mean, [w, x, y, z], [a, b, c], rgb, alpha) {
  const k = 1 / (Math.hypot(w, x, y, z) || 1);
  w *= k; x *= k; y *= k; z *= k;
  const R = [
    (1 - 2 * (y * y + z * z)) * a, 2 * (x * y - w * z) * b, 2 * (x * z + w * y) * c,
    2 * (x * y + w * z) * a, (1 - 2 * (x * x + z * z)) * b, 2 * (y * z - w * x) * c,
    2 * (x * z - w * y) * a, 2 * (y * z + w * x) * b, (1 - 2 * (x * x + y * y)) * c];
  const dot = (p, q) => R[p] * R[q] + R[p + 1] * R[q + 1] + R[p + 2] * R[q + 2];
  set.out.set([mean[0], mean[1], mean[2], 0, dot(0, 0), dot(0, 3), dot(0, 6), dot(3, 3),
               dot(3, 6), dot(6, 6), rgb[0] * 65536 + rgb[1] * 256 + rgb[2], alpha], 12 * i);
  set.means.set(mean, 3 * i);
}

// Rows of the .splat format.
function texels(buffer) {
  const f = new Float32Array(buffer), u = new Uint8Array(buffer), set = empty(buffer.byteLength >> 5);
  for (let i = 0; i < set.n; i++) {
    const q = [28, 29, 30, 31].map((k) => u[32 * i + k] - 128);
    put(set, i, f.subarray(8 * i, 8 * i + 3), q, f.subarray(8 * i + 3, 8 * i + 6),
        u.subarray(32 * i + 24, 32 * i + 27), u[32 * i + 27] / 255);
  }
  return set;
}

// A frame of a film.
function posed(frame) {
  const set = empty(frame.n);
  for (let i = 0; i < set.n; i++) {
    put(set, i, frame.means.subarray(3 * i, 3 * i + 3), frame.quats.subarray(4 * i, 4 * i + 4),
        frame.scales.subarray(3 * i, 3 * i + 3), frame.rgb.subarray(3 * i, 3 * i + 3), frame.alpha[i]);
  }
  return set;
}

// Frames of a film, a part at a time.
function playing(data) {
  const film = mouseliftFilm(fromBase64(data.film)), parts = new Map();
  return async (i) => {
    const { parts: told } = await film.about(), number = told.findIndex((p) => p.at.includes(i));
    if (!parts.has(number)) parts.set(number, film.part(number));
    return posed((await parts.get(number)).find((f) => f.at === i));
  };
}

// Tracks up to a frame as lines: two ends and a colour that fades with age, 10 floats each.
function trails(data, i) {
  const rows = [];
  for (const track of data.tracks || []) {
    const last = track.at.indexOf(i), P = track.colours.length;
    track.points ??= new Float32Array(fromBase64(track.paths).buffer);
    for (let k = Math.max(1, last - TRAIL); k <= last; k++) {
      const age = (last - k) / TRAIL;
      for (let p = 0; p < P; p++) {
        const at = 3 * ((k - 1) * P + p), next = at + 3 * P;
        rows.push(...track.points.subarray(at, at + 3), ...track.points.subarray(next, next + 3),
                  ...track.colours[p], 0.9 - 0.75 * age);
      }
    }
  }
  return new Float32Array(rows);
}

// Far to near along `d`: a counting sort over 65536 depths.
function sorted(set, d) {
  const { n, means } = set, depth = new Float32Array(n);
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < n; i++) {
    const z = means[3 * i] * d[0] + means[3 * i + 1] * d[1] + means[3 * i + 2] * d[2];
    depth[i] = z;
    if (z < low) low = z;
    if (z > high) high = z;
  }
  const scale = 65535 / (high - low || 1), start = new Uint32Array(65537);
  const key = new Uint16Array(n), order = new Uint32Array(n);
  for (let i = 0; i < n; i++) start[(key[i] = Math.floor((high - depth[i]) * scale)) + 1]++;
  for (let k = 0; k < 65536; k++) start[k + 1] += start[k];
  for (let i = 0; i < n; i++) order[start[key[i]]++] = i;
  return order;
}

function program(gl, vertex, fragment, inputs) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  inputs.forEach((name, i) => gl.bindAttribLocation(made, i, name));
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}

function element(tag, props, parent) {
  const node = Object.assign(document.createElement(tag), props);
  parent.append(node);
  return node;
}

// Draws lines of `trails` with `draw(count)`; its own vertex array, so nothing of the splats changes.
function liner(gl) {
  const made = program(gl, LINE_VERTEX, LINE_FRAGMENT, ["p", "q", "tint"]);
  const uniforms = Object.fromEntries(["w2c", "size", "focal", "wide"].map((k) => [k, gl.getUniformLocation(made, k)]));
  const state = gl.createVertexArray(), buffer = gl.createBuffer();
  gl.bindVertexArray(state);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  [3, 3, 4].forEach((count, i) => {
    gl.enableVertexAttribArray(i);
    gl.vertexAttribPointer(i, count, gl.FLOAT, false, 40, 12 * i);
    gl.vertexAttribDivisor(i, 1);
  });
  gl.bindVertexArray(null);
  let count = 0;
  return {
    set(lines) {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, lines, gl.DYNAMIC_DRAW);
      count = lines.length / 10;
    },
    draw(w2c, width, height, focal, ratio) {
      gl.useProgram(made);
      gl.bindVertexArray(state);
      gl.uniformMatrix4fv(uniforms.w2c, false, w2c);
      gl.uniform2f(uniforms.size, width, height);
      gl.uniform1f(uniforms.focal, focal);
      gl.uniform1f(uniforms.wide, LINE_PX * ratio);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
      gl.bindVertexArray(null);
    },
  };
}

function pose(view) {
  const ce = Math.cos(view.elevation), se = Math.sin(view.elevation);
  const ca = Math.cos(view.azimuth), sa = Math.sin(view.azimuth);
  const forward = [-ce * ca, -ce * sa, -se], right = [-sa, ca, 0];
  const down = [forward[1] * right[2] - forward[2] * right[1],
                forward[2] * right[0] - forward[0] * right[2],
                forward[0] * right[1] - forward[1] * right[0]];
  const eye = view.target.map((t, k) => t - view.radius * forward[k]);
  const row = (v) => -(v[0] * eye[0] + v[1] * eye[1] + v[2] * eye[2]);
  const w2c = new Float32Array([
    right[0], down[0], forward[0], 0, right[1], down[1], forward[1], 0,
    right[2], down[2], forward[2], 0, row(right), row(down), row(forward), 1]);
  return { w2c, forward, right, down };
}

function listen(canvas, view, redraw) {
  const fingers = new Map();
  let shift = false;
  const limit = (v, low, high) => Math.max(low, Math.min(high, v));
  const zoom = (factor) => {
    view.radius = limit(view.radius * factor, view.start.radius / 20, view.start.radius * 8);
  };
  const pan = (dx, dy) => {
    const { right, down } = pose(view), k = view.radius / canvas.clientHeight;
    view.target = view.target.map((t, i) => t - k * (dx * right[i] + dy * down[i]));
  };
  canvas.oncontextmenu = (e) => e.preventDefault();
  canvas.onpointerdown = (e) => {
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    shift = e.button === 2 || e.shiftKey;
    canvas.focus({ preventScroll: true });
  };
  canvas.onpointermove = (e) => {
    const old = fingers.get(e.pointerId);
    if (!old) return;
    const dx = e.clientX - old[0], dy = e.clientY - old[1];
    if (fingers.size === 2) {
      const [id] = [...fingers.keys()].filter((k) => k !== e.pointerId), other = fingers.get(id);
      const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      zoom(span(old) / span([e.clientX, e.clientY]));
      pan(dx / 2, dy / 2);
    } else if (shift) pan(dx, dy);
    else {
      view.azimuth -= dx * 0.008;
      view.elevation = limit(view.elevation + dy * 0.008, -1.55, 1.55);
    }
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    redraw();
  };
  canvas.onpointerup = canvas.onpointercancel = (e) => fingers.delete(e.pointerId);
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    zoom(Math.exp(limit(e.deltaY, -100, 100) * 0.002));
    redraw();
  }, { passive: false });
  canvas.ondblclick = () => { Object.assign(view, view.start); redraw(); };
  canvas.onkeydown = (e) => {
    const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[e.key];
    if (step) {
      view.azimuth += step[0];
      view.elevation = limit(view.elevation + step[1], -1.55, 1.55);
    } else if (e.key === "+" || e.key === "-") zoom(e.key === "+" ? 0.9 : 1.1);
    else return;
    e.preventDefault();
    redraw();
  };
}

async function start(box) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const stage = element("div", { className: "stage" }, box);
  const canvas = element("canvas", { tabIndex: 0 }, stage);
  canvas.setAttribute("aria-label", "3D view; drag to turn it, scroll or pinch to come nearer");
  const scaleBar = element("div", { className: "scale" }, stage);
  scaleBar.hidden = !data.scene_scale; // a length in an unknown unit says nothing
  const bar = element("div", { className: "bar" }, box);
  const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, alpha: false });
  if (!gl) throw new Error("this browser offers no WebGL 2");
  const made = program(gl, VERTEX, FRAGMENT, ["index"]), where = (name) => gl.getUniformLocation(made, name);
  const uniforms = { w2c: where("w2c"), size: where("size"), focal: where("focal") };
  gl.useProgram(made);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  const order = gl.createBuffer(), lines = data.tracks?.length ? liner(gl) : null;
  gl.bindBuffer(gl.ARRAY_BUFFER, order);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(0, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(1, 1, 1, 1);

  const [azimuth, elevation] = data.angles;
  const start0 = { azimuth, elevation, radius: data.radius, target: data.target };
  const view = { ...start0, start: start0 };
  let set = null, sortedFor = null, waiting = false;
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(stage.clientWidth * ratio));
    const height = Math.max(1, Math.round(stage.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const { w2c, forward } = pose(view);
    const focal = Math.min(width, height) / 2 / Math.tan((FOV_DEG * Math.PI) / 360);
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!set) return;
    if (!sortedFor || sortedFor.reduce((s, v, k) => s + v * forward[k], 0) < 0.9998) {
      gl.bindBuffer(gl.ARRAY_BUFFER, order);
      gl.bufferData(gl.ARRAY_BUFFER, sorted(set, forward), gl.DYNAMIC_DRAW);
      sortedFor = forward;
    }
    gl.useProgram(made);
    gl.uniformMatrix4fv(uniforms.w2c, false, w2c);
    gl.uniform2f(uniforms.size, width, height);
    gl.uniform1f(uniforms.focal, focal);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, set.n);
    if (lines && chosen.tracks.checked) lines.draw(w2c, width, height, focal, ratio);
    if (data.scene_scale) {
      // A length bar at the distance of the point that the view turns round.
      const perMm = (focal / ratio / view.radius) * data.scene_scale;
      const mm = [1, 2, 5, 10, 20, 50, 100, 200].find((v) => v * perMm > 56) || 500;
      scaleBar.style.width = `${mm * perMm}px`;
      scaleBar.textContent = `${mm} mm`;
    }
  }

  const sets = [], frame = data.film ? playing(data) : async (i) => texels(await unpack(data.frames[i]));
  const chosen = {};
  let wanted = -1, shown = -1;
  async function show(i) {
    wanted = i;
    if (!sets[i]) sets[i] = await frame(i);
    await coloured(sets[i], i);
    if (wanted !== i) return;
    set = sets[i];
    sortedFor = null;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, TEX_WIDTH, set.rows, 0, gl.RGBA, gl.FLOAT, set.out);
    if (lines) lines.set(trails(data, i));
    if (shown >= 0) followed(shown, i);
    shown = i;
    label.textContent = data.labels[i];
    redraw();
  }
  function followed(before, i) {  // the view goes along with the animal
    if (!chosen.follow?.checked) return;
    view.target = view.target.map((t, k) => t + data.centres[i][k] - data.centres[before][k]);
    view.start = { ...view.start, target: data.centres[i] };
  }
  async function coloured(one, i) {
    const kind = chosen.colour?.value || "own", { values, table } = data.colours?.[kind] || {};
    if ((one.kind || "own") === kind) return;
    one.own ??= Float32Array.from({ length: one.n }, (_, k) => one.out[12 * k + 10]);
    const bytes = values?.[i] ? new Uint8Array(await unpack(values[i])) : null;
    const rgb = table ? fromBase64(table) : null;
    for (let k = 0; k < one.n; k++) {
      const at = 3 * (bytes ? bytes[k] : 255);
      one.out[12 * k + 10] = rgb ? rgb[at] * 65536 + rgb[at + 1] * 256 + rgb[at + 2] : one.own[k];
    }
    one.kind = kind;
  }
  function choices(bar) {
    const box = (text) => {
      const holder = element("label", {}, bar), made = element("input", { type: "checkbox", checked: true }, holder);
      holder.append(` ${text}`);
      return made;
    };
    if (lines) (chosen.tracks = box("tracks")).onchange = redraw;
    if (data.centres && data.frames.length > 1) chosen.follow = box("follow");
    const kinds = Object.keys(data.colours || {});
    if (!kinds.length) return;
    const holder = element("label", { textContent: "colour " }, bar);
    chosen.colour = element("select", {}, holder);
    for (const kind of ["own", ...kinds]) element("option", { value: kind, textContent: kind }, chosen.colour);
    chosen.colour.value = data.colours[data.colour] ? data.colour : "own";
    const legend = element("span", { className: "soft legend" }, bar);
    const tell = () => { legend.textContent = data.colours[chosen.colour.value]?.legend || ""; };
    chosen.colour.onchange = () => { tell(); show(shown); };
    tell();
  }
  if (data.frames.length > 1) {
    const play = element("button", { textContent: "\u25b6", title: "play" }, bar);
    const slider = element("input", { type: "range", min: 0, max: data.frames.length - 1, value: 0 }, bar);
    slider.setAttribute("aria-label", "frame");
    slider.oninput = () => show(+slider.value);
    let timer = 0;
    play.onclick = () => {
      play.textContent = timer ? "\u25b6" : "\u23f8";
      timer = timer ? void clearInterval(timer) : setInterval(() => {
        slider.value = (+slider.value + 1) % data.frames.length;
        show(+slider.value);
      }, 1000 / data.fps);
    };
  }
  const label = element("span", {}, bar);
  if (data.film) choices(element("div", { className: "bar" }, box));
  element("span", { className: "soft", textContent: "drag to turn \u00b7 scroll or pinch to zoom \u00b7 shift-drag to move \u00b7 double-click to reset" }, bar);
  listen(canvas, view, redraw);
  canvas.addEventListener("webglcontextlost", (e) => { e.preventDefault(); location.reload(); });
  await show(0);
  new ResizeObserver(redraw).observe(stage);
  box.dataset.state = "ready";
}

for (const box of document.querySelectorAll(".mouselift-splats")) {
  start(box).catch((error) => {
    box.dataset.state = "failed";
    element("p", { textContent: `The viewer could not start: ${error.message}` }, box);
    console.error(error.message);
  });
}
})();

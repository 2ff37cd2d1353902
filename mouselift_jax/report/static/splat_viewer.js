// The splat viewer of reports and exported pages: WebGL 2, no dependency, no worker, no network.
//
// A page holds <div class="mouselift-splats"> elements, each with a JSON <script> child:
// {frames: [base64 of gzipped .splat rows], labels, target: [x,y,z], radius,
// angles: [azimuth, elevation] in radians, fps, scene_scale}.
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

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Rows of the .splat format -> texels (mean, - | covariance | ..., packed rgb, alpha).
function texels(buffer) {
  const n = buffer.byteLength >> 5, perRow = TEX_WIDTH / TEXELS;
  const rows = Math.max(1, Math.ceil(n / perRow));
  const out = new Float32Array(rows * TEX_WIDTH * 4), means = new Float32Array(n * 3);
  const f = new Float32Array(buffer), u = new Uint8Array(buffer);
  for (let i = 0; i < n; i++) {
    let w = u[32 * i + 28] - 128, x = u[32 * i + 29] - 128;
    let y = u[32 * i + 30] - 128, z = u[32 * i + 31] - 128;
    const k = 1 / (Math.hypot(w, x, y, z) || 1);
    w *= k; x *= k; y *= k; z *= k;
    const [a, b, c] = [f[8 * i + 3], f[8 * i + 4], f[8 * i + 5]];
    const R = [
      (1 - 2 * (y * y + z * z)) * a, 2 * (x * y - w * z) * b, 2 * (x * z + w * y) * c,
      2 * (x * y + w * z) * a, (1 - 2 * (x * x + z * z)) * b, 2 * (y * z - w * x) * c,
      2 * (x * z - w * y) * a, 2 * (y * z + w * x) * b, (1 - 2 * (x * x + y * y)) * c];
    const dot = (p, q) => R[p] * R[q] + R[p + 1] * R[q + 1] + R[p + 2] * R[q + 2];
    const rgb = u[32 * i + 24] * 65536 + u[32 * i + 25] * 256 + u[32 * i + 26];
    out.set([f[8 * i], f[8 * i + 1], f[8 * i + 2], 0, dot(0, 0), dot(0, 3), dot(0, 6), dot(3, 3),
             dot(3, 6), dot(6, 6), rgb, u[32 * i + 27] / 255], 12 * i);
    means.set(f.subarray(8 * i, 8 * i + 3), 3 * i);
  }
  return { n, rows, out, means };
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

function program(gl) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.bindAttribLocation(made, 0, "index");
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}

function element(tag, props, parent) {
  const node = Object.assign(document.createElement(tag), props);
  parent.append(node);
  return node;
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
  const made = program(gl), where = (name) => gl.getUniformLocation(made, name);
  const uniforms = { w2c: where("w2c"), size: where("size"), focal: where("focal") };
  gl.useProgram(made);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
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
      gl.bufferData(gl.ARRAY_BUFFER, sorted(set, forward), gl.DYNAMIC_DRAW);
      sortedFor = forward;
    }
    gl.uniformMatrix4fv(uniforms.w2c, false, w2c);
    gl.uniform2f(uniforms.size, width, height);
    gl.uniform1f(uniforms.focal, focal);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, set.n);
    if (data.scene_scale) {
      // A length bar at the distance of the point that the view turns round.
      const perMm = (focal / ratio / view.radius) * data.scene_scale;
      const mm = [1, 2, 5, 10, 20, 50, 100, 200].find((v) => v * perMm > 56) || 500;
      scaleBar.style.width = `${mm * perMm}px`;
      scaleBar.textContent = `${mm} mm`;
    }
  }

  const sets = [];
  let wanted = -1;
  async function show(i) {
    wanted = i;
    if (!sets[i]) sets[i] = texels(await unpack(data.frames[i]));
    if (wanted !== i) return;
    set = sets[i];
    sortedFor = null;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, TEX_WIDTH, set.rows, 0, gl.RGBA, gl.FLOAT, set.out);
    label.textContent = data.labels[i];
    redraw();
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

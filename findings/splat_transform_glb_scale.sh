#!/usr/bin/env bash
# Two releases of splat-transform write two different sizes of the same splats into the same glTF.
#
# The likely guess: a .glb that declares KHR_gaussian_splatting says what its numbers mean, so any
# two programs that write or read it agree. And what splat-transform writes, it reads back.
# What happens: the draft of the extension first wanted the logarithm of a splat's size in
# KHR_gaussian_splatting:SCALE, the published text wants the size itself; name, attributes and
# declaration stayed the same. 2.3.1 writes logarithms, 3.7.0 sizes. Nothing in the file tells which:
# only a negative value gives a logarithm away (the published text forbids negative ones).
# And 3.7.0 writes .glb but refuses to read one, its own too.
# Why it matters here: `export --to=glb` had to choose, and a viewer of the other kind draws the
# animal as a cloud of blobs of size 1 and more (exp of a small number), or as nothing.
# Source: github.com/KhronosGroup/glTF/issues/2563, github.com/playcanvas/splat-transform/pull/268
#
# Needs node and npm. Run: bash findings/splat_transform_glb_scale.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat > make.mjs <<'JS'
import { writeFileSync } from 'node:fs';
const names = ['x', 'y', 'z', 'f_dc_0', 'f_dc_1', 'f_dc_2', 'opacity', 'scale_0', 'scale_1', 'scale_2',
  'rot_0', 'rot_1', 'rot_2', 'rot_3'];
const row = [0.1, 0.2, 0.3, 0, 0, 0, 2, -3, -3, -3, 1, 0, 0, 0];   // sizes exp(-3) = 0.0498
const head = 'ply\nformat binary_little_endian 1.0\nelement vertex 1\n' +
  names.map(n => `property float ${n}\n`).join('') + 'end_header\n';
writeFileSync('in.ply', Buffer.concat([Buffer.from(head), Buffer.from(new Float32Array(row).buffer)]));
JS
cat > read.mjs <<'JS'
import { readFileSync } from 'node:fs';
const b = readFileSync(process.argv[2]), n = b.readUInt32LE(12);
const g = JSON.parse(b.toString('utf8', 20, 20 + n)), p = g.meshes[0].primitives[0];
const view = g.bufferViews[g.accessors[p.attributes['KHR_gaussian_splatting:SCALE']].bufferView];
console.log(b.readFloatLE(28 + n + view.byteOffset).toFixed(4), JSON.stringify(p.extensions));
JS
node make.mjs
for v in 2.3.1 3.7.0; do
  mkdir "v$v"; (cd "v$v"; npm init -y > /dev/null; npm i --silent "@playcanvas/splat-transform@$v" > /dev/null 2>&1)
  node "v$v/node_modules/@playcanvas/splat-transform/bin/cli.mjs" in.ply "$v.glb" > /dev/null 2>&1
  echo "$v: SCALE $(node read.mjs "$v.glb")"
done | tee seen
[ "$(cut -d' ' -f3 seen | tr '\n' ' ')" = "-3.0000 0.0498 " ] || { echo "CHANGED: not -3 and 0.0498"; exit 1; }
[ "$(cut -d' ' -f4- seen | sort -u | wc -l)" = 1 ] || { echo "CHANGED: the declarations differ now"; exit 1; }
if node v3.7.0/node_modules/@playcanvas/splat-transform/bin/cli.mjs 3.7.0.glb back.ply > log 2>&1; then
  echo "CHANGED: it reads .glb"; exit 1
fi
echo "3.7.0 asked to read its own 3.7.0.glb: $(grep -i -m1 -E 'unsupported|error' log)"

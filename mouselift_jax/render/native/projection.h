struct Projection : Lanes {
    // --- projection of 16 Gaussians, shared by both directions --------------------------------
    struct Lens {
        float w[3][4], fx, fy, cx, cy, limit_x, limit_y;
        bool ok;
    };

    static inline Lens lens(const u64* t) {
        Lens l;
        const float* w = f(t, W2C);
        const float* k = f(t, INTRINSICS);
        for (int r = 0; r < 3; ++r)
            for (int c = 0; c < 4; ++c) l.w[r][c] = w[4 * r + c];
        l.fx = k[0], l.fy = k[4], l.cx = k[2], l.cy = k[5];
        // A camera that is not finite draws nothing; any numbers in its place keep sums finite.
        l.ok = true;
        for (int r = 0; r < 12; ++r) l.ok = l.ok && is_finite(w[r]);
        for (int r = 0; r < 6; ++r) l.ok = l.ok && is_finite(k[r]);
        if (!l.ok) {
            l.fx = l.fy = l.cx = l.cy = 1.0f;
            for (int r = 0; r < 3; ++r)
                for (int c = 0; c < 4; ++c) l.w[r][c] = 1.0f;
        }
        l.limit_x = FOV_CLAMP * n(t, WIDTH) / 2 / l.fx;
        l.limit_y = FOV_CLAMP * n(t, HEIGHT) / 2 / l.fy;
        return l;
    }

    struct Projected {
        I keep, broken;
        V p[3], q[4], inv_norm, s[3], o, rgb[3];
        V cam[3], inv_z, u, v, ju, jv;
        V cam_x[3], cam_y[3], jx[3], jy[3], r[3][3], ax[3], ay[3], ux[3], uy[3];
        V xx, xy, yy, turn[3], det;
    };

    // 16 rows of `width` floats, one column per vector; lanes beyond `count` repeat the last row.
    static inline void load_rows(const float* source, int first, int count, int width, V* out) {
        const float* from = source + (long)first * width;
        V rows[4];
        if (count < 16) {
            float* to = (float*)rows;
            for (int lane = 0; lane < 16; ++lane)
                for (int c = 0; c < width; ++c)
                    to[lane * width + c] = from[least(lane, count - 1) * width + c];
        } else {
            for (int k = 0; k < width; ++k) rows[k] = ((const Loose*)from)[k].v;
        }
        if (width == 1) out[0] = rows[0];
        if (width == 3) split3(rows[0], rows[1], rows[2], out);
        if (width == 4) split4(rows[0], rows[1], rows[2], rows[3], out);
    }

    static inline void project16(const u64* t, const Lens& l, int first, int count, Projected& g) {
        V p[3], q[4], s[3], o, rgb[3];
        load_rows(f(t, MEANS), first, count, 3, p);
        load_rows(f(t, QUATS), first, count, 4, q);
        load_rows(f(t, SCALES), first, count, 3, s);
        load_rows(f(t, OPACITIES), first, count, 1, &o);
        load_rows(f(t, COLORS), first, count, 3, rgb);
        V zero = splat(0.0f), one = splat(1.0f);
        I ok = finite(o) & (l.ok ? -1 : 0);
        for (int k = 0; k < 3; ++k) ok = ok & finite(p[k]) & finite(s[k]) & finite(rgb[k]);
        for (int k = 0; k < 4; ++k) ok = ok & finite(q[k]);
        g.broken = ~ok;
        for (int k = 0; k < 3; ++k) {
            g.p[k] = pick(ok, p[k], zero);
            s[k] = pick(ok, s[k], zero);
            g.rgb[k] = pick(ok, rgb[k], zero);
        }
        g.o = pick(ok, o, zero);
        for (int k = 0; k < 3; ++k)
            g.cam[k] = l.w[k][0] * g.p[0] + l.w[k][1] * g.p[1] + l.w[k][2] * g.p[2] + l.w[k][3];
        I on_earth = finite(g.cam[0]) & finite(g.cam[1]) & finite(g.cam[2]);
        V bound = g.cam[2] * SLOPE_MAX;
        I inside = on_earth & (g.cam[2] > as_float(n(t, NEAR_BITS)));
        inside = inside & (vabs(g.cam[0]) < bound) & (vabs(g.cam[1]) < bound);
        g.broken = g.broken | ~on_earth;
        g.cam[0] = pick(inside, g.cam[0], zero);
        g.cam[1] = pick(inside, g.cam[1], zero);
        g.cam[2] = pick(inside, g.cam[2], one);
        g.inv_z = 1.0f / g.cam[2];
        g.u = g.cam[0] * g.inv_z;
        g.v = g.cam[1] * g.inv_z;
        g.ju = vmin(vmax(g.u, splat(-l.limit_x)), splat(l.limit_x));
        g.jv = vmin(vmax(g.v, splat(-l.limit_y)), splat(l.limit_y));

        V size = vmax(vmax(vabs(q[0]), vabs(q[1])), vmax(vabs(q[2]), vabs(q[3])));
        I usable = ok & (size > QUAT_MIN);
        size = 1.0f / pick(usable, size, one);
        V square = zero;
        for (int k = 0; k < 4; ++k) {
            g.q[k] = pick(usable, q[k] * size, splat(k == 0 ? 1.0f : 0.0f));
            square += g.q[k] * g.q[k];
        }
        V inv = 1.0f / root(square);
        g.inv_norm = pick(usable, inv * size, zero);
        for (int k = 0; k < 4; ++k) g.q[k] *= inv;
        V w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
        g.r[0][0] = 1.0f - 2.0f * (y * y + z * z);
        g.r[0][1] = 2.0f * (x * y - w * z);
        g.r[0][2] = 2.0f * (x * z + w * y);
        g.r[1][0] = 2.0f * (x * y + w * z);
        g.r[1][1] = 1.0f - 2.0f * (x * x + z * z);
        g.r[1][2] = 2.0f * (y * z - w * x);
        g.r[2][0] = 2.0f * (x * z - w * y);
        g.r[2][1] = 2.0f * (y * z + w * x);
        g.r[2][2] = 1.0f - 2.0f * (x * x + y * y);
        V largest = zero;
        for (int k = 0; k < 3; ++k) {
            g.cam_x[k] = l.w[0][k] - g.ju * l.w[2][k];
            g.cam_y[k] = l.w[1][k] - g.jv * l.w[2][k];
            g.jx[k] = l.fx * g.inv_z * g.cam_x[k];
            g.jy[k] = l.fy * g.inv_z * g.cam_y[k];
        }
        I sized = inside | -1;
        for (int k = 0; k < 3; ++k) {
            g.ax[k] = g.jx[0] * g.r[0][k] + g.jx[1] * g.r[1][k] + g.jx[2] * g.r[2][k];
            g.ay[k] = g.jy[0] * g.r[0][k] + g.jy[1] * g.r[1][k] + g.jy[2] * g.r[2][k];
            g.ux[k] = g.ax[k] * s[k];
            g.uy[k] = g.ay[k] * s[k];
            sized = sized & (vabs(g.ux[k]) < SIGMA_MAX) & (vabs(g.uy[k]) < SIGMA_MAX);
        }
        g.broken = g.broken | (inside & ~sized);
        g.keep = ok & inside & sized;
        g.xx = g.yy = splat(DILATION);
        g.xy = zero;
        for (int k = 0; k < 3; ++k) {
            g.s[k] = pick(g.keep, s[k], zero);
            g.ux[k] = pick(g.keep, g.ux[k], zero);
            g.uy[k] = pick(g.keep, g.uy[k], zero);
            g.xx += g.ux[k] * g.ux[k];
            g.xy += g.ux[k] * g.uy[k];
            g.yy += g.uy[k] * g.uy[k];
        }
        // xx yy - xy^2 as a sum of squares: see projection.py.
        g.det = DILATION * (g.xx + g.yy - DILATION);
        for (int k = 0; k < 3; ++k) {
            int i = (k + 1) % 3, j = (k + 2) % 3;
            g.turn[k] = g.ux[i] * g.uy[j] - g.ux[j] * g.uy[i];
            g.det += g.turn[k] * g.turn[k];
        }
    }

    // Of 4 x 4 squares of `side` px from (left, top): a bit for each whose pixel centres the ellipse
    // may reach; a superset by a hair.
    static inline u32 cells(const float* r, float left, float top, float side) {
        const V column = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
        const V row = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
        V zero = splat(0.0f);
        V x0 = fma(side, column, splat(left + 0.5f - r[X])), x1 = x0 + (side - 1);
        V y0 = fma(side, row, splat(top + 0.5f - r[Y])), y1 = y0 + (side - 1);
        // The greatest power lies on the edges that face the mean, or is 0 where the mean is inside.
        V ex = vmax(x0, vmin(x1, zero)), ey = vmax(y0, vmin(y1, zero));
        V y = vmin(vmax(r[STEEP] * ex, y0), y1), x = vmin(vmax(r[FLAT] * ey, x0), x1);
        V a = splat(r[A]), b = splat(r[B]), c = splat(r[C]);
        V on_x = fma(ex, fma(a, ex, b * y), (c * y) * y);
        V on_y = fma(x, fma(a, x, b * ey), (c * ey) * ey);
        return bits(vmax(on_x, on_y) >= r[FLOOR] * 1.0001f);
    }

    // The same for tiles, of which `wide` x `high` count.
    static inline u32 tiles_touched(const float* r, int col, int row, int wide, int high) {
        u32 columns = (1u << least(wide, 4)) - 1, rows = 0x1111u & ((1u << 4 * least(high, 4)) - 1);
        return cells(r, (float)(SIDE * col), (float)(SIDE * row), SIDE) & columns * rows;
    }

    // Where the tile of each bit of a Rect lies behind its first.
    static inline void offsets_of_bits(int cols, int* out) {
        for (int bit = 0; bit < 64; ++bit) {
            int x = (bit & 3) + (bit >> 2 & 4), y = (bit >> 2 & 3) + (bit >> 3 & 4);
            out[bit] = y * cols + x;
        }
    }

    // Do `DO` for every `tile` of a Gaussian.
#define TILES_OF(rect, record, DO) \
    int corner = rect.y * cols + rect.x; \
    for (u64 left = rect.mask; left; left &= left - 1) { \
        int tile = corner + offset[__builtin_ctzll(left)]; \
        DO; \
    } \
    if (rect.mask == 0) { \
        int wide = (int)record[WIDE], high = (int)record[HIGH]; \
        for (int y = 0; y < high; y += 4) \
            for (int x = 0; x < wide; x += 4) \
                for (u32 left = tiles_touched(record, rect.x + x, rect.y + y, wide - x, high - y); left; \
                     left &= left - 1) { \
                    int tile = corner + y * cols + x + offset[__builtin_ctz(left)]; \
                    DO; \
                } \
    }

    static void project(const u64* t, int worker) {
        int lo, hi, count = n(t, COUNT), workers = n(t, WORKERS);
        int cols = n(t, COLS), rows = n(t, ROWS);
        share(count, worker, workers, 64, &lo, &hi);
        Lens l = lens(t);
        float* records = f(t, RECORDS);
        Rect* rects = (Rect*)t[RECTS];
        // One worker alone counts at once; with several the order says whose a pair is.
        int* counts = workers == 1 ? i(t, TILE_COUNTS) : 0;
        if (counts)
            for (int k = 0; k < cols * rows; ++k) counts[k] = 0;
        int offset[64];
        offsets_of_bits(cols, offset);
        unsigned char* flags = (unsigned char*)t[FLAGS];
        V zero = splat(0.0f);
        for (int first = lo; first < hi; first += 16) {
            int lanes = least(16, hi - first);
            Projected g;
            project16(t, l, first, lanes, g);
            V level = log_positive(vmax(g.o, splat(1e-30f))) + LOG_INV_ALPHA_MIN;
            I drawn = g.keep & (g.o >= ALPHA_MIN);
            level = pick(drawn, vmax(level, zero), zero);
            V inv = 1.0f / g.det;
            V field[16];
            field[X] = l.fx * g.u + l.cx;
            field[Y] = l.fy * g.v + l.cy;
            field[A] = (-0.5f * LOG2_E) * g.yy * inv;
            field[B] = LOG2_E * g.xy * inv;
            field[C] = (-0.5f * LOG2_E) * g.xx * inv;
            field[OPACITY] = g.o;
            for (int k = 0; k < 3; ++k) field[RED + k] = g.rgb[k];
            field[DEPTH] = g.cam[2];
            field[FLOOR] = -LOG2_E * level - 1.5e-3f;
            V half_x = fma(root(2.0f * level * g.xx), splat(1.0001f), splat(1e-3f));
            V half_y = fma(root(2.0f * level * g.yy), splat(1.0001f), splat(1e-3f));
            V edge[4] = {field[X] - half_x, field[Y] - half_y, field[X] + half_x, field[Y] + half_y};
            I tile[4];
            for (int k = 0; k < 4; ++k) {
                V at = (edge[k] - 0.5f) * (1.0f / SIDE) + (k < 2 ? 0.0f : 1.0f);
                at = vmin(vmax(at, zero), splat((float)(k & 1 ? rows : cols)));
                tile[k] = __builtin_convertvector(at, I);
            }
            I wide = tile[2] - tile[0], high = tile[3] - tile[1];
            I listed = drawn & (wide > 0) & (high > 0);
            field[STEEP] = g.xy / g.xx;
            field[FLAT] = g.xy / g.yy;
            field[WIDE] = __builtin_convertvector(wide, V);
            field[HIGH] = __builtin_convertvector(high, V);
            field[15] = zero;
            transpose(field);
            for (int lane = 0; lane < lanes; ++lane) {
                int id = first + lane;
                V* record = (V*)(records + (long)id * RECORD);
                *record = field[lane];
                flags[id] |= g.broken[lane] != 0;
                Rect r = {0, 0, 0, 0};
                if (listed[lane]) {
                    const float* own = (const float*)record;
                    r.x = tile[0][lane], r.y = tile[1][lane];
                    int w = wide[lane], h = high[lane];
                    if (w == 1 && h == 1) r.mask = 1;
                    else if (w <= 8 && h <= 8)
                        for (int y = 0; y < h; y += 4)
                            for (int x = 0; x < w; x += 4)
                                r.mask |= (u64)tiles_touched(own, r.x + x, r.y + y, w - x, h - y) << (8 * y + 4 * x);
                    bool large = w > 8 || h > 8;
                    if (r.mask || large) {
                        r.depth = as_bits(g.cam[2][lane]);
                        if (counts) {
                            TILES_OF(r, own, ++counts[tile])
                        }
                    }
                }
                rects[id] = r;
            }
        }
    }

};

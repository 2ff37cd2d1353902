// The CPU rasterizer's arithmetic, compiled by the clang inside warp-lang for the machine it runs on.
//
// warp_cpu.py pastes this text into the body of a native Warp function, so it can hold nothing but
// local types, and no C library is there: exp and log are written out. The frame `t` is a table of
// addresses and numbers whose slots warp_cpu.py names (MEANS, QUATS, ...), as are the constants.
//
// A call runs in phases; within a phase workers (threads) share no writes:
//   project  each worker its run of Gaussians: records, tile rectangles, counts per tile
//   offsets  one worker: where each worker's part of each tile's list begins
//   fill     each worker its run of Gaussians: (depth, index) pairs into the lists
//   forward  tiles handed out by a counter: sort the list, blend
//   backward each worker its run of tiles: sort the list, walk it from the back, own gradient rows
//   pull     each worker its run of Gaussians: add the workers' rows up, through the projection
// A tile is 16 px wide because one row of it is one vector.

typedef float V __attribute__((ext_vector_type(16)));
typedef int I __attribute__((ext_vector_type(16)));
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

struct Rect {  // tiles touched: columns x0..x1, rows y0..y1 (exclusive); one bit each if at most 32
    u16 x0, y0, x1, y1;
    u32 mask, depth;
};

struct Splat {
    enum { X, Y, A, B, C, OPACITY, RED, GREEN, BLUE, DEPTH, FLOOR, HALF, RECORD = 16 };

    // --- plumbing -----------------------------------------------------------------------------
    static inline float* f(const u64* t, int slot) { return (float*)t[slot]; }
    static inline int* i(const u64* t, int slot) { return (int*)t[slot]; }
    static inline int n(const u64* t, int slot) { return (int)t[slot]; }
    static inline float as_float(u32 x) { return __builtin_bit_cast(float, x); }
    static inline u32 as_bits(float x) { return __builtin_bit_cast(u32, x); }
    static inline int least(int a, int b) { return a < b ? a : b; }
    static inline int most(int a, int b) { return a > b ? a : b; }
    static inline V splat(float x) { return (V)(x); }
    static inline V vmax(V a, V b) { return __builtin_elementwise_max(a, b); }
    static inline V vmin(V a, V b) { return __builtin_elementwise_min(a, b); }
    static inline V vabs(V a) { return __builtin_elementwise_abs(a); }
    static inline V pick(I m, V a, V b) { return m ? a : b; }
    static inline bool any(I m) { return __builtin_reduce_or(m) != 0; }
    static inline I finite(V a) { return (__builtin_bit_cast(I, a) & 0x7f800000) != 0x7f800000; }
    static inline bool is_finite(float x) { return (as_bits(x) & 0x7f800000) != 0x7f800000; }
    static inline V root(V a) { return __builtin_elementwise_sqrt(a); }
    static inline void share(int n, int worker, int workers, int align, int* lo, int* hi) {
        long blocks = ((long)n + align - 1) / align;
        *lo = least(n, (int)(blocks * worker / workers) * align);
        *hi = least(n, (int)(blocks * (worker + 1) / workers) * align);
    }

    // exp for x in [-87, 0], relative error 2e-7: 2^round(x log2 e) times a polynomial.
    static inline V exp_negative(V x) {
        x = vmax(x, splat(-87.0f));
        V shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
        V whole = x * 1.44269504f + shift;
        V n = whole - shift;
        V y = x - n * 0.693359375f;
        y = y + n * 2.12194440e-4f;
        V p = splat(1.9875691500e-4f);
        p = p * y + 1.3981999507e-3f;
        p = p * y + 8.3334519073e-3f;
        p = p * y + 4.1665795894e-2f;
        p = p * y + 1.6666665459e-1f;
        p = p * y + 5.0000001201e-1f;
        p = p * (y * y) + y + 1.0f;
        I scale = __builtin_bit_cast(I, whole) << 23;
        return __builtin_bit_cast(V, __builtin_bit_cast(I, p) + scale);
    }

    // Natural logarithm of x > 0, relative error below 1e-6: enough for extents with slack.
    static inline V log_positive(V x) {
        I bits = __builtin_bit_cast(I, x);
        I exponent = ((bits >> 23) & 255) - 126;
        V m = __builtin_bit_cast(V, (bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
        I small = m < 0.70710678f;
        exponent = exponent + small;  // a true lane is -1
        m = pick(small, m + m, m) - 1.0f;
        V z = m * m;
        V p = splat(7.0376836292e-2f);
        p = p * m - 1.1514610310e-1f;
        p = p * m + 1.1676998740e-1f;
        p = p * m - 1.2420140846e-1f;
        p = p * m + 1.4249322787e-1f;
        p = p * m - 1.6668057665e-1f;
        p = p * m + 2.0000714765e-1f;
        p = p * m - 2.4999993993e-1f;
        p = p * m + 3.3333331174e-1f;
        V e = __builtin_convertvector(exponent, V);
        return m * z * p - 0.5f * z + m + e * 0.69314718f;
    }

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

    // 16 rows of `width` floats, one field per vector; lanes beyond `count` repeat the last row.
    static inline void load_rows(const float* source, int first, int count, int width, V* out) {
        for (int lane = 0; lane < 16; ++lane) {
            const float* row = source + (long)(first + least(lane, count - 1)) * width;
            for (int c = 0; c < width; ++c) out[c][lane] = row[c];
        }
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

    // Whether the ellipse reaches the square of pixel centres of a tile; a superset by a hair.
    static inline bool touches(const float* r, float reach, int col, int row) {
        float left = col * 16 + 0.5f - r[X], top = row * TILE_HEIGHT + 0.5f - r[Y];
        float right = left + 15.0f, bottom = top + (TILE_HEIGHT - 1);
        float ex = left > 0 ? left : right < 0 ? right : 0.0f;
        float ey = top > 0 ? top : bottom < 0 ? bottom : 0.0f;
        if (ex == 0 && ey == 0) return true;
        float nearest = 3e38f;
        if (ex != 0) {
            float y = -r[B] / r[C] * ex;
            y = y < top ? top : y > bottom ? bottom : y;
            nearest = r[A] * ex * ex + 2 * r[B] * ex * y + r[C] * y * y;
        }
        if (ey != 0) {
            float x = -r[B] / r[A] * ey;
            x = x < left ? left : x > right ? right : x;
            float at = r[A] * x * x + 2 * r[B] * x * ey + r[C] * ey * ey;
            nearest = at < nearest ? at : nearest;
        }
        return nearest <= reach;
    }

    static inline float reach(const float* record) { return -2.0f * record[FLOOR] * 1.0001f + 1e-3f; }

    static inline int span(float center, float half, int side, int tiles, u16* first, u16* last) {
        half = half * 1.0001f + 1e-3f;
        float lo = (center - half - 0.5f) / side, hi = (center + half - 0.5f) / side + 1.0f;
        lo = lo < 0 ? 0 : lo > tiles ? tiles : lo;
        hi = hi < 0 ? 0 : hi > tiles ? tiles : hi;
        *first = (u16)lo, *last = (u16)hi;
        return *last > *first ? *last - *first : 0;
    }

    static void project(const u64* t, int worker) {
        int lo, hi, count = n(t, COUNT), workers = n(t, WORKERS);
        int cols = n(t, COLS), rows = n(t, ROWS);
        share(count, worker, workers, 64, &lo, &hi);
        Lens l = lens(t);
        float* records = f(t, RECORDS);
        Rect* rects = (Rect*)t[RECTS];
        unsigned char* flags = (unsigned char*)t[FLAGS];
        int* counts = i(t, TILE_COUNTS) + (long)worker * cols * rows;
        for (int k = 0; k < cols * rows; ++k) counts[k] = 0;
        for (int first = lo; first < hi; first += 16) {
            int lanes = least(16, hi - first);
            Projected g;
            project16(t, l, first, lanes, g);
            V level = log_positive(vmax(g.o, splat(1e-30f))) + LOG_INV_ALPHA_MIN;
            I drawn = g.keep & (g.o >= ALPHA_MIN);
            level = pick(drawn, vmax(level, splat(0.0f)), splat(0.0f));
            V inv = 1.0f / g.det;
            V field[12];
            field[X] = l.fx * g.u + l.cx;
            field[Y] = l.fy * g.v + l.cy;
            field[A] = g.yy * inv;
            field[B] = -g.xy * inv;
            field[C] = g.xx * inv;
            field[OPACITY] = g.o;
            for (int k = 0; k < 3; ++k) field[RED + k] = g.rgb[k];
            field[DEPTH] = g.cam[2];
            field[FLOOR] = -level;
            field[HALF] = root(2.0f * level * g.yy);
            V half_x = root(2.0f * level * g.xx);
            for (int lane = 0; lane < lanes; ++lane) {
                int id = first + lane;
                float* record = records + (long)id * RECORD;
                for (int k = 0; k < 12; ++k) record[k] = field[k][lane];
                flags[id] |= g.broken[lane] != 0;
                Rect& r = rects[id];
                r.x0 = r.x1 = r.y0 = r.y1 = 0, r.mask = 0;
                if (!drawn[lane]) continue;
                int w = span(record[X], half_x[lane], 16, cols, &r.x0, &r.x1);
                int h = span(record[Y], record[HALF], TILE_HEIGHT, rows, &r.y0, &r.y1);
                r.depth = as_bits(record[DEPTH]);
                if (w == 0 || h == 0) {
                    r.x1 = r.x0;
                    continue;
                }
                bool small = w * h <= 32, single = w * h == 1;
                float far = reach(record);
                int bit = 0;
                for (int y = r.y0; y < r.y1; ++y)
                    for (int x = r.x0; x < r.x1; ++x, ++bit)
                        if (single || touches(record, far, x, y)) {
                            ++counts[y * cols + x];
                            if (small) r.mask |= 1u << bit;
                        }
            }
        }
    }

    static void offsets(const u64* t, int) {
        int tiles = n(t, COLS) * n(t, ROWS), workers = n(t, WORKERS);
        int* counts = i(t, TILE_COUNTS);
        long* starts = (long*)t[TILE_STARTS];
        long total = 0;
        for (int tile = 0; tile < tiles; ++tile) {
            starts[tile] = total;
            for (int w = 0; w < workers; ++w) {  // a count becomes the offset within the tile's list
                int here = counts[(long)w * tiles + tile];
                counts[(long)w * tiles + tile] = (int)(total - starts[tile]);
                total += here;
            }
        }
        starts[tiles] = total;
        *i(t, NEXT_TILE) = 0;
    }

    static void fill(const u64* t, int worker) {
        int lo, hi, cols = n(t, COLS), rows = n(t, ROWS);
        share(n(t, COUNT), worker, n(t, WORKERS), 64, &lo, &hi);
        const float* records = f(t, RECORDS);
        const Rect* rects = (const Rect*)t[RECTS];
        int* next = i(t, TILE_COUNTS) + (long)worker * cols * rows;
        const long* starts = (const long*)t[TILE_STARTS];
        u64* pairs = (u64*)t[PAIRS];
        for (int id = lo; id < hi; ++id) {
            const Rect& r = rects[id];
            int w = r.x1 - r.x0, h = r.y1 - r.y0;
            if (w <= 0 || h <= 0) continue;
            u64 pair = (u64)r.depth << 32 | (u32)id;
            bool small = w * h <= 32;
            const float* record = records + (long)id * RECORD;
            float far = small ? 0.0f : reach(record);
            int bit = 0;
            for (int y = r.y0; y < r.y1; ++y)
                for (int x = r.x0; x < r.x1; ++x, ++bit)
                    if (small ? (r.mask >> bit & 1) : touches(record, far, x, y)) {
                        int tile = y * cols + x;
                        pairs[starts[tile] + next[tile]++] = pair;
                    }
        }
    }

    // Sort a tile's pairs by depth; equal depths keep their order, which is that of the indices.
    static void sort(u64* a, u64* b, int count) {
        if (count < 32) {
            for (int k = 1; k < count; ++k) {
                u64 x = a[k];
                int j = k;
                for (; j > 0 && a[j - 1] > x; --j) a[j] = a[j - 1];
                a[j] = x;
            }
            return;
        }
        u32 same = 0;
        for (int k = 0; k < count; ++k) same |= (u32)((a[k] ^ a[0]) >> 32);
        u64* from = a;
        u64* to = b;
        for (int shift = 32; shift < 64; shift += 8) {
            if ((same >> (shift - 32) & 255) == 0) continue;
            int bins[256];
            for (int k = 0; k < 256; ++k) bins[k] = 0;
            for (int k = 0; k < count; ++k) ++bins[from[k] >> shift & 255];
            int sum = 0;
            for (int k = 0; k < 256; ++k) {
                int here = bins[k];
                bins[k] = sum;
                sum += here;
            }
            for (int k = 0; k < count; ++k) to[bins[from[k] >> shift & 255]++] = from[k];
            u64* swap = from;
            from = to;
            to = swap;
        }
        if (from != a)
            for (int k = 0; k < count; ++k) a[k] = b[k];
    }

    static inline V lane_centers() {
        V x;
        for (int k = 0; k < 16; ++k) x[k] = k + 0.5f;
        return x;
    }

    // First and last row of a tile that a Gaussian can reach; a superset by a hair.
    static inline void row_range(const float* r, float top, int height, int* first, int* last) {
        float half = r[HALF] * 1.0001f + 1e-3f, y = r[Y] - top - 0.5f;
        float lo = y - half, hi = y + half;
        *first = lo > 0 ? (int)lo + (lo > (int)lo) : 0;
        *last = hi < height - 1 ? (int)hi : height - 1;
        if (hi < 0) *last = -1;
    }

    static void forward_tile(const u64* t, int tile, u64* pairs, int count) {
        int width = n(t, WIDTH), height = n(t, HEIGHT), cols = n(t, COLS);
        int left = tile % cols * 16, top = tile / cols * TILE_HEIGHT;
        int tall = least(TILE_HEIGHT, height - top), wide = least(16, width - left);
        const float* records = f(t, RECORDS);
        V light[TILE_HEIGHT], red[TILE_HEIGHT], green[TILE_HEIGHT], blue[TILE_HEIGHT];
        V deep[TILE_HEIGHT];
        I last[TILE_HEIGHT];
        V lanes = lane_centers();
        // A finished pixel's light is kept negative, so that it blends nothing more.
        V begin = pick(lanes < (float)wide, splat(1.0f), splat(-1.0f));
        for (int y = 0; y < TILE_HEIGHT; ++y) {
            light[y] = begin;
            red[y] = green[y] = blue[y] = deep[y] = splat(0.0f);
            last[y] = (I)(0);
        }
        u32 alive = (1u << tall) - 1;
        for (int k = 0; k < count && alive; ++k) {
            __builtin_prefetch(records + (pairs[least(k + 6, count - 1)] & 0xffffffffu) * RECORD);
            const float* r = records + (pairs[k] & 0xffffffffu) * RECORD;
            int first, end;
            row_range(r, (float)top, tall, &first, &end);
            V dx = (r[X] - left) - lanes;
            V square = (-0.5f * r[A]) * dx * dx, slope = -r[B] * dx;
            float bend = -0.5f * r[C], floor = r[FLOOR] - 1e-3f, dy = r[Y] - top - first - 0.5f;
            for (int y = first; y <= end; ++y, dy -= 1.0f) {
                V power = square + dy * (slope + bend * dy);
                V before = light[y];
                I seen = (power >= floor) & (before > 0.0f);
                if (!any(seen)) continue;
                V alpha = vmin(r[OPACITY] * exp_negative(vmin(power, splat(0.0f))), splat(ALPHA_MAX));
                seen = seen & (alpha >= ALPHA_MIN);
                V after = before * (1.0f - alpha);
                I blended = seen & (after >= TRANSMITTANCE_MIN);
                V weight = pick(blended, alpha * before, splat(0.0f));
                I stopped = seen & ~blended;
                red[y] += weight * r[RED];
                green[y] += weight * r[GREEN];
                blue[y] += weight * r[BLUE];
                deep[y] += weight * r[DEPTH];
                last[y] = blended ? (I)(k + 1) : last[y];
                before = pick(blended, after, before);
                if (any(stopped)) {
                    before = pick(stopped, -before, before);
                    if (!any(before > 0.0f)) alive &= ~(1u << y);
                }
                light[y] = before;
            }
        }
        for (int y = 0; y < tall; ++y) {
            long at = (long)(top + y) * width + left;
            V final = vabs(light[y]);
            for (int x = 0; x < wide; ++x) {
                float* rgb = f(t, RGB) + 3 * (at + x);
                rgb[0] = red[y][x], rgb[1] = green[y][x], rgb[2] = blue[y][x];
                f(t, LIGHT)[at + x] = final[x];
                f(t, DEPTHS)[at + x] = deep[y][x];
                i(t, LAST)[at + x] = last[y][x];
            }
        }
    }

    static void forward(const u64* t, int worker) {
        int tiles = n(t, COLS) * n(t, ROWS);
        const long* starts = (const long*)t[TILE_STARTS];
        u64* pairs = (u64*)t[PAIRS];
        u64* spare = (u64*)t[SPARE] + (long)worker * n(t, LONGEST);
        for (;;) {
            int tile = __atomic_fetch_add(i(t, NEXT_TILE), 1, __ATOMIC_RELAXED);
            if (tile >= tiles) return;
            int count = (int)(starts[tile + 1] - starts[tile]);
            sort(pairs + starts[tile], spare, count);
            forward_tile(t, tile, pairs + starts[tile], count);
        }
    }

    // Sums of ten vectors as the lanes of one.
    static inline V sums(const V* a) {
#define HALVES(p, q) (__builtin_shufflevector(p, q, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) \
        + __builtin_shufflevector(p, q, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#define QUARTERS(p, q) (__builtin_shufflevector(p, q, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) \
        + __builtin_shufflevector(p, q, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#define EIGHTHS(p, q) (__builtin_shufflevector(p, q, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) \
        + __builtin_shufflevector(p, q, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
#define PAIRWISE(p, q) (__builtin_shufflevector(p, q, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) \
        + __builtin_shufflevector(p, q, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
        V h0 = HALVES(a[0], a[1]), h1 = HALVES(a[2], a[3]), h2 = HALVES(a[4], a[5]);
        V h3 = HALVES(a[6], a[7]), h4 = HALVES(a[8], a[9]), zero = splat(0.0f);
        V q0 = QUARTERS(h0, h1), q1 = QUARTERS(h2, h3), q2 = QUARTERS(h4, zero);
        V e0 = EIGHTHS(q0, q1), e1 = EIGHTHS(q2, zero);
        return PAIRWISE(e0, e1);
    }

    static void backward_tile(const u64* t, int tile, const u64* pairs, int count, float* rows) {
        int width = n(t, WIDTH), height = n(t, HEIGHT), cols = n(t, COLS);
        int left = tile % cols * 16, top = tile / cols * TILE_HEIGHT;
        int tall = least(TILE_HEIGHT, height - top), wide = least(16, width - left);
        const float* records = f(t, RECORDS);
        V light[TILE_HEIGHT], behind[TILE_HEIGHT], g_red[TILE_HEIGHT], g_green[TILE_HEIGHT];
        V g_blue[TILE_HEIGHT], g_deep[TILE_HEIGHT];
        I last[TILE_HEIGHT];
        int final = 0;
        for (int y = 0; y < tall; ++y) {
            long at = (long)(top + y) * width + left;
            light[y] = splat(1.0f);
            last[y] = (I)(0);
            behind[y] = g_red[y] = g_green[y] = g_blue[y] = g_deep[y] = splat(0.0f);
            for (int x = 0; x < wide; ++x) {
                light[y][x] = f(t, LIGHT)[at + x];
                last[y][x] = i(t, LAST)[at + x];
                behind[y][x] = light[y][x] * f(t, G_LIGHT)[at + x];
                const float* g = f(t, G_RGB) + 3 * (at + x);
                g_red[y][x] = g[0], g_green[y][x] = g[1], g_blue[y][x] = g[2];
                g_deep[y][x] = f(t, G_DEPTHS)[at + x];
            }
            final = most(final, __builtin_reduce_max(last[y]));
        }
        V lanes = lane_centers();
        for (int k = least(final, count) - 1; k >= 0; --k) {
            long ahead = (long)(pairs[most(k - 6, 0)] & 0xffffffffu);
            __builtin_prefetch(records + ahead * RECORD);
            __builtin_prefetch(rows + ahead * RECORD, 1);
            long id = (long)(pairs[k] & 0xffffffffu);
            const float* r = records + id * RECORD;
            int first, end;
            row_range(r, (float)top, tall, &first, &end);
            V dx = (r[X] - left) - lanes;
            V square = (-0.5f * r[A]) * dx * dx, slope = -r[B] * dx;
            float bend = -0.5f * r[C], floor = r[FLOOR] - 1e-3f, dy = r[Y] - top - first - 0.5f;
            V zero = splat(0.0f), v0 = zero, v1 = zero, v2 = zero, c0 = zero, c1 = zero, c2 = zero;
            V c3 = zero;
            bool touched = false;
            for (int y = first; y <= end; ++y, dy -= 1.0f) {
                V power = square + dy * (slope + bend * dy);
                I seen = (power >= floor) & (last[y] > k);
                if (!any(seen)) continue;
                V falloff = r[OPACITY] * exp_negative(vmin(power, zero));
                V alpha = vmin(falloff, splat(ALPHA_MAX));
                alpha = pick(seen & (alpha >= ALPHA_MIN), alpha, zero);
                V inverse = 1.0f / (1.0f - alpha);
                V before = light[y] * inverse;
                V weight = alpha * before;
                V s = r[RED] * g_red[y] + r[GREEN] * g_green[y] + r[BLUE] * g_blue[y] + r[DEPTH] * g_deep[y];
                V v = alpha * (before * s - behind[y] * inverse);
                v = pick(falloff <= ALPHA_MAX, v, zero);
                behind[y] += weight * s;
                light[y] = before;
                c0 += weight * g_red[y];
                c1 += weight * g_green[y];
                c2 += weight * g_blue[y];
                c3 += weight * g_deep[y];
                v0 += v;
                V moment = v * dy;
                v1 += moment;
                v2 += moment * dy;
                touched = true;
            }
            if (!touched) continue;
            V tenth[10] = {v0, v0 * dx, v1, v0 * dx * dx, v1 * dx, v2, c0, c1, c2, c3};
            V* row = (V*)(rows + id * RECORD);
            *row += sums(tenth);
        }
    }

    // A fixed run of tiles per worker, equal in pairs: the sums' order does not depend on timing.
    static void backward(const u64* t, int worker) {
        int tiles = n(t, COLS) * n(t, ROWS), workers = n(t, WORKERS);
        const long* starts = (const long*)t[TILE_STARTS];
        u64* pairs = (u64*)t[PAIRS];
        u64* spare = (u64*)t[SPARE] + (long)worker * n(t, LONGEST);
        float* rows = f(t, ROW_GRADIENTS) + (long)worker * n(t, COUNT) * RECORD;
        long total = starts[tiles] + 16L * tiles;  // an empty tile costs something too
        for (int tile = 0; tile < tiles; ++tile) {
            long middle = starts[tile] + 16L * tile;
            if (middle * workers / total != worker) continue;
            int count = (int)(starts[tile + 1] - starts[tile]);
            sort(pairs + starts[tile], spare, count);
            backward_tile(t, tile, pairs + starts[tile], count, rows);
        }
    }

    static inline void add_rows(float* out, int first, int count, int width, const V* a, bool add) {
        for (int lane = 0; lane < count; ++lane) {
            float* row = out + (long)(first + lane) * width;
            for (int c = 0; c < width; ++c) row[c] = a[c][lane] + (add ? row[c] : 0.0f);
        }
    }

    // Workers' rows -> gradients of the inputs, and this worker's part of the camera's.
    static void pull(const u64* t, int worker) {
        int lo, hi, count = n(t, COUNT), workers = n(t, WORKERS);
        bool add = n(t, ACCUMULATE) != 0;
        share(count, worker, workers, 64, &lo, &hi);
        Lens l = lens(t);
        double* camera = (double*)t[CAMERA_SUMS] + 16L * worker;
        for (int k = 0; k < 16; ++k) camera[k] = 0;
        bool of_K = t[G_INTRINSICS] != 0;
        V zero = splat(0.0f);
        V w_sum[16];  // of the rows of w2c, and of fx, fy, cx, cy
        for (int k = 0; k < 16; ++k) w_sum[k] = zero;
        for (int first = lo; first < hi; first += 16) {
            int lanes = least(16, hi - first);
            V m[10];
            for (int k = 0; k < 10; ++k) m[k] = zero;
            for (int lane = 0; lane < lanes; ++lane) {
                V row = zero;
                for (int w = 0; w < workers; ++w) {
                    V* part = (V*)(f(t, ROW_GRADIENTS) + ((long)w * count + first + lane) * RECORD);
                    row += *part;
                    *part = zero;
                }
                for (int k = 0; k < 10; ++k) m[k][lane] = row[k];
            }
            Projected g;
            project16(t, l, first, lanes, g);
            for (int k = 0; k < 10; ++k) m[k] = pick(g.keep, m[k], zero);
            V inv = 1.0f / g.det;
            V a = g.yy * inv, b = -g.xy * inv, c = g.xx * inv;
            V g_x = -(a * m[1] + b * m[2]), g_y = -(b * m[1] + c * m[2]);
            V g_o = m[0] / pick(g.o > 0.0f, g.o, splat(1.0f));
            V g_a = -0.5f * m[3], g_b = -m[4], g_c = -0.5f * m[5];
            // Through the determinant's own form: -Q (sum v d d^T) Q would cancel for needles.
            V g_det = -(g_a * a + g_b * b + g_c * c) * inv;
            V g_xx = g_c * inv + DILATION * g_det, g_yy = g_a * inv + DILATION * g_det;
            V g_xy = -g_b * inv;
            V g_jx[3] = {zero, zero, zero}, g_jy[3] = {zero, zero, zero}, g_r[3][3], g_s[3];
            for (int k = 0; k < 3; ++k) {
                int i = (k + 1) % 3, j = (k + 2) % 3;
                V t_i = 2.0f * g.turn[i] * g_det, t_j = 2.0f * g.turn[j] * g_det;
                V g_ux = 2.0f * g.ux[k] * g_xx + g.uy[k] * g_xy + t_j * g.uy[i] - t_i * g.uy[j];
                V g_uy = 2.0f * g.uy[k] * g_yy + g.ux[k] * g_xy + t_i * g.ux[j] - t_j * g.ux[i];
                g_s[k] = g_ux * g.ax[k] + g_uy * g.ay[k];
                V g_ax = g_ux * g.s[k], g_ay = g_uy * g.s[k];
                for (int i = 0; i < 3; ++i) {
                    g_jx[i] += g_ax * g.r[i][k];
                    g_jy[i] += g_ay * g.r[i][k];
                    g_r[i][k] = g_ax * g.jx[i] + g_ay * g.jy[i];
                }
            }
            V g_ju = zero, g_jv = zero, along_x = zero, along_y = zero, g_w[12];
            V fx = l.fx * g.inv_z, fy = l.fy * g.inv_z;
            for (int k = 0; k < 3; ++k) {
                g_ju -= fx * g_jx[k] * l.w[2][k];
                g_jv -= fy * g_jy[k] * l.w[2][k];
                along_x += g_jx[k] * g.cam_x[k];
                along_y += g_jy[k] * g.cam_y[k];
                g_w[k] = fx * g_jx[k];
                g_w[4 + k] = fy * g_jy[k];
                g_w[8 + k] = -(fx * g.ju * g_jx[k] + fy * g.jv * g_jy[k]);
            }
            I free_u = vabs(g.u) < l.limit_x, free_v = vabs(g.v) < l.limit_y;
            V g_u = l.fx * g_x + pick(free_u, g_ju, zero);
            V g_v = l.fy * g_y + pick(free_v, g_jv, zero);
            V g_inv_z = l.fx * along_x + l.fy * along_y + g_u * g.cam[0] + g_v * g.cam[1];
            if (of_K) {  // a slope that is held at +-limit = const / f moves with f
                V g_fx = g_x * g.u + along_x * g.inv_z - pick(free_u, zero, g_ju * g.ju) / l.fx;
                V g_fy = g_y * g.v + along_y * g.inv_z - pick(free_v, zero, g_jv * g.jv) / l.fy;
                w_sum[12] += pick(g.keep, g_fx, zero);
                w_sum[13] += pick(g.keep, g_fy, zero);
                w_sum[14] += pick(g.keep, g_x, zero);
                w_sum[15] += pick(g.keep, g_y, zero);
            }
            V g_cam[3] = {g_u * g.inv_z, g_v * g.inv_z, m[9] - g_inv_z * g.inv_z * g.inv_z};
            V g_p[3] = {zero, zero, zero};
            for (int i = 0; i < 3; ++i) {
                V here = pick(g.keep, g_cam[i], zero);
                for (int k = 0; k < 3; ++k) {
                    g_p[k] += l.w[i][k] * here;
                    w_sum[4 * i + k] += pick(g.keep, g_w[4 * i + k] + here * g.p[k], zero);
                }
                w_sum[4 * i + 3] += here;
            }
            V w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
            V g_q[4] = {
                x * (g_r[2][1] - g_r[1][2]) + y * (g_r[0][2] - g_r[2][0]) + z * (g_r[1][0] - g_r[0][1]),
                w * (g_r[2][1] - g_r[1][2]) + y * (g_r[0][1] + g_r[1][0]) + z * (g_r[0][2] + g_r[2][0])
                    - 2.0f * x * (g_r[1][1] + g_r[2][2]),
                w * (g_r[0][2] - g_r[2][0]) + x * (g_r[0][1] + g_r[1][0]) + z * (g_r[1][2] + g_r[2][1])
                    - 2.0f * y * (g_r[0][0] + g_r[2][2]),
                w * (g_r[1][0] - g_r[0][1]) + x * (g_r[0][2] + g_r[2][0]) + y * (g_r[1][2] + g_r[2][1])
                    - 2.0f * z * (g_r[0][0] + g_r[1][1])};
            V along = zero;
            for (int k = 0; k < 4; ++k) along += g_q[k] * g.q[k];
            for (int k = 0; k < 4; ++k) {
                g_q[k] = 2.0f * (g_q[k] - along * g.q[k]) * g.inv_norm;
                g_q[k] = pick(g.keep, g_q[k], zero);
            }
            for (int k = 0; k < 3; ++k) g_s[k] = pick(g.keep, g_s[k], zero);
            add_rows(f(t, G_MEANS), first, lanes, 3, g_p, add);
            add_rows(f(t, G_QUATS), first, lanes, 4, g_q, add);
            add_rows(f(t, G_SCALES), first, lanes, 3, g_s, add);
            add_rows(f(t, G_OPACITIES), first, lanes, 1, &g_o, add);
            add_rows(f(t, G_COLORS), first, lanes, 3, m + 6, add);
            if ((first - lo) % 1024 == 1008 || first + 16 >= hi)
                for (int k = 0; k < 16; ++k) {  // short float sums, long double ones
                    for (int lane = 0; lane < 16; ++lane) camera[k] += w_sum[k][lane];
                    w_sum[k] = zero;
                }
        }
    }

    static void pull_camera(const u64* t, int) {
        float total[16];
        for (int k = 0; k < 16; ++k) {
            double sum = 0;
            for (int w = 0; w < n(t, WORKERS); ++w) sum += ((double*)t[CAMERA_SUMS])[16L * w + k];
            total[k] = (float)sum;
        }
        for (int k = 0; k < 16; ++k) f(t, G_W2C)[k] = k < 12 ? total[k] : 0.0f;
        if (!t[G_INTRINSICS]) return;
        float* K = f(t, G_INTRINSICS);
        for (int k = 0; k < 9; ++k) K[k] = 0;
        K[0] = total[12], K[4] = total[13], K[2] = total[14], K[5] = total[15];
    }
};

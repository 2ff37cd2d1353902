// The CPU rasterizer's arithmetic, compiled by the clang inside warp-lang for the machine it runs on.
//
// warp_cpu.py pastes this text into the body of a native Warp function, so it can hold nothing but
// local types, and no C library is there: exp and log are written out. The frame `t` is a table of
// addresses and numbers whose slots warp_cpu.py names (MEANS, QUATS, ...), as are the constants.
//
// A call runs in phases; within a phase workers (threads) share no writes:
//   project  each worker its run of Gaussians: records and tile rectangles
//   order    one worker: those that touch a tile, by depth
//   count    each worker its run of that order: pairs per tile
//   offsets  one worker: where each worker's part of each tile's list begins
//   fill     each worker its run of that order: indices into the lists, which are then in order
//   forward  tiles handed out by a counter
//   backward each worker its run of tiles: walk the lists from the back, own gradient rows
//   pull     each worker its run of Gaussians: add the workers' rows up, through the projection
// A tile is 16 x 16 px, 4 x 4 blocks of 4 x 4 px; a block is one vector: splats of a few px touch
// fewer of them than of rows.

typedef float V __attribute__((ext_vector_type(16)));
typedef int I __attribute__((ext_vector_type(16)));
typedef float F4 __attribute__((ext_vector_type(4)));
typedef int I4 __attribute__((ext_vector_type(4)));
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

struct __attribute__((packed, aligned(4))) Loose {  // a vector anywhere in an array of floats
    V v;
};

struct Rect {  // tiles touched: columns x0..x1, rows y0..y1 (exclusive); one bit each if at most 32
    u16 x0, y0, x1, y1;
    u32 mask, depth;
};

struct Key {  // of a Gaussian that is listed
    u32 depth, id;
};

struct Splat {
    // A record: mean, conic and floor such that alpha = opacity 2^(A dx^2 + B dx dy + C dy^2), skipped
    // below the floor; box of pixel centres that it can reach, from LEFT.
    enum { X, Y, A, B, C, OPACITY, RED, GREEN, BLUE, DEPTH, FLOOR, LEFT = 12, RECORD = 16 };
    enum { SIDE = 16, BLOCKS = 16 };

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

    // Every product that is added to something says so: both directions then round the same.
    static inline V fma(V a, V b, V c) {
#if defined(__FMA__) || defined(__aarch64__)
        return __builtin_elementwise_fma(a, b, c);
#else
        return a * b + c;
#endif
    }
    static inline V fma(float a, V b, V c) { return fma(splat(a), b, c); }

    // 2^x for x in [-126, 0], relative error 1.5e-7, exact at 0: 2^round(x) times a polynomial.
    static inline V exp2_negative(V x) {
        V whole = x + splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
        V y = x - (whole - splat(12582912.0f));
        V p = fma(y, splat(1.326472731e-3f), splat(9.671512991e-3f));
        p = fma(p, y, splat(5.550733581e-2f));
        p = fma(p, y, splat(2.402224243e-1f));
        p = fma(p, y, splat(6.931470037e-1f));
        p = fma(p, y, splat(1.0f));
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

#define MIX(p, q, ...) __builtin_shufflevector(p, q, __VA_ARGS__)
    // Three vectors that hold 16 rows of three floats <-> their columns.
    static inline void split3(V a, V b, V c, V* out) {
        V x = MIX(a, b, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
        V y = MIX(a, b, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
        V z = MIX(a, b, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
        out[0] = MIX(x, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
        out[1] = MIX(y, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
        out[2] = MIX(z, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
    }
    static inline void join3(const V* in, V* out) {
        V a = MIX(in[0], in[1], 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
        V b = MIX(in[0], in[1], 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
        V c = MIX(in[0], in[1], 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
        out[0] = MIX(a, in[2], 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
        out[1] = MIX(b, in[2], 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
        out[2] = MIX(c, in[2], 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
    }
    static inline void split4(V a, V b, V c, V d, V* out) {
        V e = MIX(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        V f = MIX(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        V g = MIX(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
        V h = MIX(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
        out[0] = MIX(e, f, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        out[1] = MIX(e, f, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        out[2] = MIX(g, h, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        out[3] = MIX(g, h, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    static inline void join4(const V* in, V* out) {
        for (int k = 0; k < 2; ++k) {
            V a = k ? MIX(in[0], in[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                    : MIX(in[0], in[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            V b = k ? MIX(in[2], in[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                    : MIX(in[2], in[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            out[2 * k] = MIX(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
            out[2 * k + 1] = MIX(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
        }
    }

    static inline void transpose(V* a) {
#define STAGE(d, ...) \
        for (int i = 0; i < 16; ++i) \
            if (!(i & d)) { \
                V p = a[i], q = a[i + d]; \
                a[i] = MIX(p, q, __VA_ARGS__); \
                a[i + d] = MIX(q, p, TURN_##d); \
            }
#define TURN_8 24, 25, 26, 27, 28, 29, 30, 31, 8, 9, 10, 11, 12, 13, 14, 15
#define TURN_4 20, 21, 22, 23, 4, 5, 6, 7, 28, 29, 30, 31, 12, 13, 14, 15
#define TURN_2 18, 19, 2, 3, 22, 23, 6, 7, 26, 27, 10, 11, 30, 31, 14, 15
#define TURN_1 17, 1, 19, 3, 21, 5, 23, 7, 25, 9, 27, 11, 29, 13, 31, 15
        STAGE(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
        STAGE(4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
        STAGE(2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
        STAGE(1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
    }

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

    // Whether the ellipse reaches the square of pixel centres of a tile; a superset by a hair.
    // `steep`, `flat`: where along a vertical or horizontal edge the power is greatest.
    static inline bool touches(const float* r, float steep, float flat, int col, int row) {
        float left = col * SIDE + 0.5f - r[X], top = row * SIDE + 0.5f - r[Y];
        float right = left + (SIDE - 1), bottom = top + (SIDE - 1);
        float ex = left > 0 ? left : right < 0 ? right : 0.0f;
        float ey = top > 0 ? top : bottom < 0 ? bottom : 0.0f;
        if (ex == 0 && ey == 0) return true;
        float power = -3e38f;
        if (ex != 0) {
            float y = steep * ex;
            y = y < top ? top : y > bottom ? bottom : y;
            power = (r[A] * ex + r[B] * y) * ex + r[C] * y * y;
        }
        if (ey != 0) {
            float x = flat * ey;
            x = x < left ? left : x > right ? right : x;
            float at = (r[A] * x + r[B] * ey) * x + r[C] * ey * ey;
            power = at > power ? at : power;
        }
        return power >= r[FLOOR] * 1.0001f;
    }

    static void project(const u64* t, int worker) {
        int lo, hi, count = n(t, COUNT), workers = n(t, WORKERS);
        int cols = n(t, COLS), rows = n(t, ROWS);
        share(count, worker, workers, 64, &lo, &hi);
        Lens l = lens(t);
        float* records = f(t, RECORDS);
        Rect* rects = (Rect*)t[RECTS];
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
            field[FLOOR + 1] = zero;
            V half_x = fma(root(2.0f * level * g.xx), splat(1.0001f), splat(1e-3f));
            V half_y = fma(root(2.0f * level * g.yy), splat(1.0001f), splat(1e-3f));
            V edge[4] = {field[X] - half_x, field[Y] - half_y, field[X] + half_x, field[Y] + half_y};
            I tile[4];
            for (int k = 0; k < 4; ++k) {
                field[LEFT + k] = edge[k] + (k < 2 ? 0.5f : -0.5f);
                V at = (edge[k] - 0.5f) * (1.0f / SIDE) + (k < 2 ? 0.0f : 1.0f);
                at = vmin(vmax(at, zero), splat((float)(k & 1 ? rows : cols)));
                tile[k] = __builtin_convertvector(at, I);
            }
            I wide = tile[2] - tile[0], high = tile[3] - tile[1];
            I listed = drawn & (wide > 0) & (high > 0);
            V steep = g.xy / g.xx, flat = g.xy / g.yy;
            transpose(field);
            for (int lane = 0; lane < lanes; ++lane) {
                int id = first + lane;
                V* record = (V*)(records + (long)id * RECORD);
                *record = field[lane];
                flags[id] |= g.broken[lane] != 0;
                Rect r = {0, 0, 0, 0, 0, 0};
                if (listed[lane]) {
                    r.x0 = tile[0][lane], r.y0 = tile[1][lane];
                    r.x1 = tile[2][lane], r.y1 = tile[3][lane];
                    r.depth = as_bits(g.cam[2][lane]);
                    int w = wide[lane], h = high[lane];
                    if (w * h == 1) {
                        r.mask = 1;
                    } else if (w * h <= 32) {
                        int bit = 0;
                        for (int y = r.y0; y < r.y1; ++y)
                            for (int x = r.x0; x < r.x1; ++x, ++bit)
                                r.mask |= (u32)touches((float*)record, steep[lane], flat[lane], x, y) << bit;
                        if (r.mask == 0) r.x1 = r.x0;
                    }
                }
                rects[id] = r;
            }
        }
    }

    // Radix sort by depth of what is listed; equal depths keep the order of the indices.
    static void order(const u64* t, int) {
        const Rect* rects = (const Rect*)t[RECTS];
        Key* from = (Key*)t[KEYS];
        Key* to = (Key*)t[SPARE];
        u32 listed = 0, least = 0xffffffffu, most = 0;
        for (int id = 0; id < n(t, COUNT); ++id) {
            u32 depth = rects[id].depth;
            from[listed].depth = depth, from[listed].id = id;
            bool here = rects[id].x1 > rects[id].x0;
            listed += here;
            least = here && depth < least ? depth : least;
            most = here && depth > most ? depth : most;
        }
        // As few digits as the range needs, of equal width; few bins for few keys.
        int bits = 0;
        while (bits < 32 && listed && (most - least) >> bits) ++bits;
        int widest = listed < 4096 ? 8 : 12, passes = (bits + widest - 1) / widest;
        int digit = passes ? (bits + passes - 1) / passes : 0;
        for (int shift = 0; shift < bits; shift += digit) {
            u32 bins[4096];
            for (int k = 0; k < 1 << digit; ++k) bins[k] = 0;
            u32 mask = (1u << digit) - 1;
            for (u32 k = 0; k < listed; ++k) ++bins[(from[k].depth - least) >> shift & mask];
            u32 sum = 0;
            for (int k = 0; k < 1 << digit; ++k) {
                u32 here = bins[k];
                bins[k] = sum;
                sum += here;
            }
            for (u32 k = 0; k < listed; ++k) to[bins[(from[k].depth - least) >> shift & mask]++] = from[k];
            Key* swap = from;
            from = to;
            to = swap;
        }
        ((u64*)t)[SORTED] = (u64)from;
        ((u64*)t)[LISTED] = listed;
    }

    // Do `DO` for every (tile, id) pair of this worker's run of the order.
#define PAIRS_OF_WORKER(DO) \
    int lo, hi, cols = n(t, COLS); \
    share(n(t, LISTED), worker, n(t, WORKERS), 1, &lo, &hi); \
    const Key* keys = (const Key*)t[SORTED]; \
    for (int k = lo; k < hi; ++k) { \
        __builtin_prefetch((const Rect*)t[RECTS] + keys[least(k + 16, hi - 1)].id); \
        u32 id = keys[k].id; \
        const Rect& r = ((const Rect*)t[RECTS])[id]; \
        const float* record = f(t, RECORDS) + (long)id * RECORD; \
        bool small = (r.x1 - r.x0) * (r.y1 - r.y0) <= 32; \
        float steep = small ? 0.0f : -0.5f * record[B] / record[C]; \
        float flat = small ? 0.0f : -0.5f * record[B] / record[A]; \
        int bit = 0; \
        for (int y = r.y0; y < r.y1; ++y) \
            for (int x = r.x0; x < r.x1; ++x, ++bit) \
                if (small ? (r.mask >> bit & 1) : touches(record, steep, flat, x, y)) { \
                    int tile = y * cols + x; \
                    DO; \
                } \
    }
    static void count(const u64* t, int worker) {
        int tiles = n(t, COLS) * n(t, ROWS);
        int* counts = i(t, TILE_COUNTS) + (long)worker * tiles;
        for (int k = 0; k < tiles; ++k) counts[k] = 0;
        PAIRS_OF_WORKER(++counts[tile])
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
        int* next = i(t, TILE_COUNTS) + (long)worker * n(t, COLS) * n(t, ROWS);
        const long* starts = (const long*)t[TILE_STARTS];
        u32* pairs = (u32*)t[PAIRS];
        PAIRS_OF_WORKER(pairs[starts[tile] + next[tile]++] = id)
    }

    // A tile's corner, and the pixel centres of its blocks from there.
    struct Tile {
        int left, top, wide, tall;
        V px[BLOCKS], py[BLOCKS];
    };

    static inline void place(const u64* t, int number, Tile& tile) {
        int cols = n(t, COLS);
        tile.left = number % cols * SIDE, tile.top = number / cols * SIDE;
        tile.tall = least(SIDE, n(t, HEIGHT) - tile.top);
        tile.wide = least(SIDE, n(t, WIDTH) - tile.left);
        V x, y;
        for (int k = 0; k < 16; ++k) x[k] = (k & 3) + 0.5f, y[k] = (k >> 2) + 0.5f;
        for (int b = 0; b < BLOCKS; ++b) {
            tile.px[b] = x + (float)(4 * (b & 3));
            tile.py[b] = y + (float)(4 * (b >> 2));
        }
    }

    // Blocks of a tile, a bit each, that a Gaussian's box reaches.
    static inline u32 reached(const float* r, const F4& corner) {
        F4 at = (*(const F4*)(r + LEFT) - corner) * 0.25f;
        at = __builtin_elementwise_min(__builtin_elementwise_max(at, (F4)(0.0f)), (F4)(3.0f));
        I4 block = __builtin_convertvector(at, I4);
        u32 columns = (2u << block[2]) - (1u << block[0]);
        u32 rows = ((16u << 4 * block[3]) - (1u << 4 * block[1])) & 0x1111u;
        return columns * rows;
    }

    static void forward_tile(const u64* t, int number, const u32* pairs, int count) {
        int width = n(t, WIDTH);
        const float* records = f(t, RECORDS);
        Tile tile;
        place(t, number, tile);
        V light[BLOCKS], sum[BLOCKS][4];
        I last[BLOCKS];
        // A finished pixel's light is kept negative, so that it blends nothing more.
        u32 alive = 0;
        for (int b = 0; b < BLOCKS; ++b) {
            I inside = (tile.px[b] < (float)tile.wide) & (tile.py[b] < (float)tile.tall);
            light[b] = pick(inside, splat(1.0f), splat(-1.0f));
            for (int k = 0; k < 4; ++k) sum[b][k] = splat(0.0f);
            last[b] = (I)(count);
            alive |= (u32)any(inside) << b;
        }
        F4 corner = {(float)tile.left, (float)tile.top, (float)tile.left, (float)tile.top};
        for (int k = 0; k < count && alive; ++k) {
            __builtin_prefetch(records + (long)pairs[least(k + 6, count - 1)] * RECORD);
            const float* r = records + (long)pairs[k] * RECORD;
            V x = splat(r[X] - tile.left), y = splat(r[Y] - tile.top);
            V a = splat(r[A]), b = splat(r[B]), c = splat(r[C]), floor = splat(r[FLOOR]);
            for (u32 bits = reached(r, corner) & alive; bits; bits &= bits - 1) {
                int at = __builtin_ctz(bits);
                V dx = x - tile.px[at], dy = y - tile.py[at];
                V power = fma(dx, fma(a, dx, b * dy), (c * dy) * dy);
                V before = light[at];
                I seen = (power >= floor) & (before > 0.0f);
                if (!any(seen)) continue;
                V alpha = vmin(r[OPACITY] * exp2_negative(vmin(power, splat(0.0f))), splat(ALPHA_MAX));
                seen = seen & (alpha >= ALPHA_MIN);
                V weight = alpha * before;
                V after = before - weight;
                I blended = seen & (after >= TRANSMITTANCE_MIN);
                I stopped = seen & (after < TRANSMITTANCE_MIN);
                weight = pick(blended, weight, splat(0.0f));
                for (int c = 0; c < 4; ++c) sum[at][c] = fma(r[RED + c], weight, sum[at][c]);
                before = pick(blended, after, before);
                if (any(stopped)) {
                    last[at] = stopped ? (I)(k) : last[at];
                    before = pick(stopped, -before, before);
                    if (!any(before > 0.0f)) alive &= ~(1u << at);
                }
                light[at] = before;
            }
        }
        for (int b = 0; b < BLOCKS; ++b) {
            V rgb[3], final = vabs(light[b]);
            join3(sum[b], rgb);
            for (int row = 0; row < 4; ++row) {
                int y = 4 * (b >> 2) + row, x = 4 * (b & 3);
                int here = y < tile.tall ? most(0, least(4, tile.wide - x)) : 0;
                if (here == 0) continue;
                long px = (long)(tile.top + y) * width + tile.left + x;
                put(f(t, RGB) + 3 * px, (float*)rgb + 12 * row, 3 * here);
                put(f(t, LIGHT) + px, (float*)&final + 4 * row, here);
                put(f(t, DEPTHS) + px, (float*)&sum[b][3] + 4 * row, here);
                put(f(t, LAST) + px, (float*)&last[b] + 4 * row, here);
            }
        }
    }

    static inline void put(float* to, const float* from, int count) {
        if (count == 4) __builtin_memcpy(to, from, 16);
        else if (count == 12) __builtin_memcpy(to, from, 48);
        else for (int k = 0; k < count; ++k) to[k] = from[k];
    }

    static void forward(const u64* t, int) {
        int tiles = n(t, COLS) * n(t, ROWS);
        const long* starts = (const long*)t[TILE_STARTS];
        for (;;) {
            int tile = __atomic_fetch_add(i(t, NEXT_TILE), 1, __ATOMIC_RELAXED);
            if (tile >= tiles) return;
            const u32* pairs = (const u32*)t[PAIRS] + starts[tile];
            forward_tile(t, tile, pairs, (int)(starts[tile + 1] - starts[tile]));
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

    // One channel of a picture over a tile: `width` floats a pixel, of which `out` gets the columns.
    static inline void take(const u64* t, const Tile& tile, int slot, int width, int b, V* out) {
        V rows[3] = {splat(0.0f), splat(0.0f), splat(0.0f)};
        for (int row = 0; row < 4; ++row) {
            int y = 4 * (b >> 2) + row, x = 4 * (b & 3);
            int here = y < tile.tall ? most(0, least(4, tile.wide - x)) : 0;
            long px = (long)(tile.top + y) * n(t, WIDTH) + tile.left + x;
            if (here) put((float*)rows + 4 * width * row, f(t, slot) + width * px, width * here);
        }
        if (width == 1) out[0] = rows[0];
        else split3(rows[0], rows[1], rows[2], out);
    }

    static void backward_tile(const u64* t, int number, const u32* pairs, int count, float* rows) {
        const float* records = f(t, RECORDS);
        Tile tile;
        place(t, number, tile);
        V light[BLOCKS], behind[BLOCKS], upstream[BLOCKS][4];
        I last[BLOCKS];
        int final = 0;
        for (int b = 0; b < BLOCKS; ++b) {
            V stop, g_light;
            take(t, tile, LIGHT, 1, b, &light[b]);
            take(t, tile, LAST, 1, b, &stop);
            take(t, tile, G_LIGHT, 1, b, &g_light);
            take(t, tile, G_RGB, 3, b, upstream[b]);
            take(t, tile, G_DEPTHS, 1, b, &upstream[b][3]);
            last[b] = __builtin_bit_cast(I, stop);  // 0 beyond the picture's edge
            behind[b] = light[b] * g_light;
            final = most(final, __builtin_reduce_max(last[b]));
        }
        F4 corner = {(float)tile.left, (float)tile.top, (float)tile.left, (float)tile.top};
        V zero = splat(0.0f);
        for (int k = least(final, count) - 1; k >= 0; --k) {
            long ahead = (long)pairs[most(k - 6, 0)];
            __builtin_prefetch(records + ahead * RECORD);
            __builtin_prefetch(rows + ahead * RECORD, 1);
            long id = (long)pairs[k];
            const float* r = records + id * RECORD;
            V x = splat(r[X] - tile.left), y = splat(r[Y] - tile.top);
            V a = splat(r[A]), b = splat(r[B]), c = splat(r[C]), floor = splat(r[FLOOR]);
            V m[10] = {zero, zero, zero, zero, zero, zero, zero, zero, zero, zero};
            bool touched = false;
            for (u32 bits = reached(r, corner); bits; bits &= bits - 1) {
                int at = __builtin_ctz(bits);
                V dx = x - tile.px[at], dy = y - tile.py[at];
                V power = fma(dx, fma(a, dx, b * dy), (c * dy) * dy);
                I seen = (power >= floor) & (last[at] > k);
                if (!any(seen)) continue;
                V falloff = r[OPACITY] * exp2_negative(vmin(power, zero));
                V alpha = vmin(falloff, splat(ALPHA_MAX));
                alpha = pick(seen & (alpha >= ALPHA_MIN), alpha, zero);
                V inverse = 1.0f / (1.0f - alpha);
                V part = alpha * inverse, weight = part * light[at];
                const V* g = upstream[at];
                V s = fma(r[RED], g[0], fma(r[GREEN], g[1], fma(r[BLUE], g[2], r[DEPTH] * g[3])));
                V v = part * fma(light[at], s, -behind[at]);
                v = pick(falloff <= ALPHA_MAX, v, zero);
                behind[at] = fma(weight, s, behind[at]);
                light[at] *= inverse;
                V vx = v * dx, vy = v * dy;
                m[0] += v;
                m[1] += vx;
                m[2] += vy;
                m[3] = fma(vx, dx, m[3]);
                m[4] = fma(vx, dy, m[4]);
                m[5] = fma(vy, dy, m[5]);
                for (int c = 0; c < 4; ++c) m[6 + c] = fma(weight, g[c], m[6 + c]);
                touched = true;
            }
            if (!touched) continue;
            V* row = (V*)(rows + id * RECORD);
            *row += sums(m);
        }
    }

    // A fixed run of tiles per worker, equal in pairs: the sums' order does not depend on timing.
    static void backward(const u64* t, int worker) {
        int tiles = n(t, COLS) * n(t, ROWS), workers = n(t, WORKERS);
        const long* starts = (const long*)t[TILE_STARTS];
        float* rows = f(t, ROW_GRADIENTS) + (long)worker * n(t, COUNT) * RECORD;
        long total = starts[tiles] + 16L * tiles;  // an empty tile costs something too
        for (int tile = 0; tile < tiles; ++tile) {
            long middle = starts[tile] + 16L * tile;
            if (middle * workers / total != worker) continue;
            const u32* pairs = (const u32*)t[PAIRS] + starts[tile];
            backward_tile(t, tile, pairs, (int)(starts[tile + 1] - starts[tile]), rows);
        }
    }

    static inline void add_rows(float* out, int first, int count, int width, const V* a, bool add) {
        V rows[4] = {a[0]};
        if (width == 3) join3(a, rows);
        if (width == 4) join4(a, rows);
        float* to = out + (long)first * width;
        if (count == 16) {
            for (int k = 0; k < width; ++k) {
                Loose* here = (Loose*)to + k;
                here->v = add ? here->v + rows[k] : rows[k];
            }
            return;
        }
        for (int k = 0; k < count * width; ++k) to[k] = ((float*)rows)[k] + (add ? to[k] : 0.0f);
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
            V m[16];
            for (int lane = 0; lane < 16; ++lane) {
                m[lane] = zero;
                for (int w = 0; w < workers && lane < lanes; ++w) {
                    V* part = (V*)(f(t, ROW_GRADIENTS) + ((long)w * count + first + lane) * RECORD);
                    m[lane] += *part;
                    *part = zero;
                }
            }
            transpose(m);
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

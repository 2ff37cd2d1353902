// The CPU rasterizer's arithmetic, compiled by the clang inside warp-lang for the machine it runs on.
//
// warp_cpu.py pastes these files, each building on the one before (lanes, projection, gradients, lists,
// blending), into the body of a native Warp function, so they can hold nothing but local types, and
// no C library is there: exp and log are written out. The frame `t` is a table of addresses and
// numbers whose slots warp_cpu.py names (MEANS, QUATS, ...), as are the constants.
//
// A call runs in phases; within a phase workers (threads) share no writes:
//   project  each worker its run of Gaussians: records and tile rectangles
//   order    one worker: those that touch a tile, by depth
//   count    each worker its run of that order: pairs per tile
//   offsets  one worker: where each worker's part of each tile's list begins
//   fill     each worker its run of that order: indices into the lists, which are then in order
//   forward  tiles handed out by a counter; notes for each pair the blocks that it changed
//   reach    in place of forward where the lists are made again: the blocks that it may change
//   backward each worker its run of tiles: walk the lists from the back, own gradient rows
//   pull     each worker its run of Gaussians: add the workers' rows up, through the projection
// A tile is 16 x 16 px, 4 x 4 blocks of 4 x 4 px; a block is one vector: splats of a few px touch
// fewer of them than of rows.

typedef float V __attribute__((ext_vector_type(16)));
typedef int I __attribute__((ext_vector_type(16)));
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef bool Bits __attribute__((ext_vector_type(16)));

struct __attribute__((packed, aligned(4))) Loose {  // a vector anywhere in an array of floats
    V v;
};

struct Rect {  // tiles touched, from column x and row y on: bits of four squares of 4 x 4 tiles, in two
    u64 mask;  // rows; 0 if there may be more than these
    u16 x, y;
    u32 depth;  // 0: nothing is listed
};

struct Key {  // of a Gaussian that is listed
    u32 depth, id;
};

struct Lanes {
    // A record: mean, conic and floor such that alpha = opacity 2^(A dx^2 + B dx dy + C dy^2), skipped
    // below the floor; where along a vertical (STEEP) or horizontal (FLAT) line the power is greatest;
    // the rectangle of tiles that its box touches.
    enum { X, Y, A, B, C, OPACITY, RED, GREEN, BLUE, DEPTH, FLOOR, STEEP, FLAT, WIDE, HIGH, RECORD = 16 };
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
    static inline u32 bits(I m) {  // of a comparison: one a lane
        return __builtin_bit_cast(u16, __builtin_convertvector(m, Bits));
    }
    static inline bool any(I m) { return bits(m) != 0; }
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

};

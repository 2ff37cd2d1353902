struct Splat : Lists {
    // A tile's corner, and the pixel centres of its blocks from there.
    struct Tile {
        int left, top, wide, tall;
        V px[BLOCKS], py[BLOCKS];
    };

    static inline void edges(const u64* t, int number, Tile& tile) {
        int cols = n(t, COLS);
        tile.left = number % cols * SIDE, tile.top = number / cols * SIDE;
        tile.tall = least(SIDE, n(t, HEIGHT) - tile.top);
        tile.wide = least(SIDE, n(t, WIDTH) - tile.left);
    }

    static inline void place(const u64* t, int number, Tile& tile) {
        edges(t, number, tile);
        V x, y;
        for (int k = 0; k < 16; ++k) x[k] = (k & 3) + 0.5f, y[k] = (k >> 2) + 0.5f;
        for (int b = 0; b < BLOCKS; ++b) {
            tile.px[b] = x + (float)(4 * (b & 3));
            tile.py[b] = y + (float)(4 * (b >> 2));
        }
    }

    static void empty_tile(const u64* t, int number) {
        Tile tile;
        edges(t, number, tile);
        for (int y = 0; y < tile.tall; ++y) {
            long px = (long)(tile.top + y) * n(t, WIDTH) + tile.left;
            for (int x = 0; x < 3 * tile.wide; ++x) f(t, RGB)[3 * px + x] = 0.0f;
            for (int x = 0; x < tile.wide; ++x) {
                f(t, LIGHT)[px + x] = 1.0f;
                f(t, DEPTHS)[px + x] = 0.0f;
                i(t, LAST)[px + x] = 0;
            }
        }
    }

    static void forward_tile(const u64* t, int number, const u32* pairs, u16* hits, int count) {
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
        for (int k = 0; k < count && alive; ++k) {
            __builtin_prefetch(records + (long)pairs[least(k + 6, count - 1)] * RECORD);
            const float* r = records + (long)pairs[k] * RECORD;
            V x = splat(r[X] - tile.left), y = splat(r[Y] - tile.top);
            V a = splat(r[A]), b = splat(r[B]), c = splat(r[C]), floor = splat(r[FLOOR]);
            u32 hit = 0;
            for (u32 blocks = cells(r, tile.left, tile.top, 4) & alive; blocks; blocks &= blocks - 1) {
                int at = __builtin_ctz(blocks);
                V dx = x - tile.px[at], dy = y - tile.py[at];
                V power = fma(dx, fma(a, dx, b * dy), (c * dy) * dy);
                V before = light[at];
                I seen = (power >= floor) & (before > 0.0f);
                V alpha = vmin(r[OPACITY] * exp2_negative(vmin(power, splat(0.0f))), splat(ALPHA_MAX));
                seen = seen & (alpha >= ALPHA_MIN);
                V weight = alpha * before;
                V after = before - weight;
                I blended = seen & (after >= TRANSMITTANCE_MIN);
                I stopped = seen & (after < TRANSMITTANCE_MIN);
                hit |= (u32)any(blended) << at;
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
            hits[k] = (u16)hit;
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
            u16* hits = (u16*)t[HITS] + starts[tile];
            int count = (int)(starts[tile + 1] - starts[tile]);
            if (count == 0) empty_tile(t, tile);
            else forward_tile(t, tile, pairs, hits, count);
        }
    }

    static void reach(const u64* t, int worker) {
        int lo, hi, cols = n(t, COLS);
        share(cols * n(t, ROWS), worker, n(t, WORKERS), 1, &lo, &hi);
        const long* starts = (const long*)t[TILE_STARTS];
        for (int tile = lo; tile < hi; ++tile)
            for (long k = starts[tile]; k < starts[tile + 1]; ++k) {
                const float* r = f(t, RECORDS) + (long)((const u32*)t[PAIRS])[k] * RECORD;
                float left = (float)(tile % cols * SIDE), top = (float)(tile / cols * SIDE);
                ((u16*)t[HITS])[k] = (u16)cells(r, left, top, 4);
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

    static void backward_tile(const u64* t, int number, const u32* pairs, const u16* hits, int count,
                              float* rows) {
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
        V zero = splat(0.0f);
        for (int k = least(final, count) - 1; k >= 0; --k) {
            long ahead = (long)pairs[most(k - 6, 0)];
            __builtin_prefetch(records + ahead * RECORD);
            __builtin_prefetch(rows + ahead * RECORD, 1);
            u32 blocks = hits[k];
            if (!blocks) continue;
            long id = (long)pairs[k];
            const float* r = records + id * RECORD;
            V x = splat(r[X] - tile.left), y = splat(r[Y] - tile.top);
            V a = splat(r[A]), b = splat(r[B]), c = splat(r[C]), floor = splat(r[FLOOR]);
            V m[10] = {zero, zero, zero, zero, zero, zero, zero, zero, zero, zero};
            for (; blocks; blocks &= blocks - 1) {
                int at = __builtin_ctz(blocks);
                V dx = x - tile.px[at], dy = y - tile.py[at];
                V power = fma(dx, fma(a, dx, b * dy), (c * dy) * dy);
                I seen = (power >= floor) & (last[at] > k);
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
            }
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
            if (middle * workers / total != worker || starts[tile + 1] == starts[tile]) continue;
            const u32* pairs = (const u32*)t[PAIRS] + starts[tile];
            const u16* hits = (const u16*)t[HITS] + starts[tile];
            backward_tile(t, tile, pairs, hits, (int)(starts[tile + 1] - starts[tile]), rows);
        }
    }

};

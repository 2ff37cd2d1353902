struct Lists : Gradients {
    // Radix sort by depth of what is listed; equal depths keep the order of the indices.
    static void order(const u64* t, int) {
        const Rect* rects = (const Rect*)t[RECTS];
        Key* from = (Key*)t[KEYS];
        Key* to = (Key*)t[SPARE];
        u32 listed = 0, least = 0xffffffffu, most = 0;
        for (int id = 0; id < n(t, COUNT); ++id) {
            u32 depth = rects[id].depth;
            from[listed].depth = depth, from[listed].id = id;
            bool here = depth != 0;
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
    int lo, hi, cols = n(t, COLS), offset[64]; \
    offsets_of_bits(cols, offset); \
    share(n(t, LISTED), worker, n(t, WORKERS), 1, &lo, &hi); \
    const Key* keys = (const Key*)t[SORTED]; \
    for (int k = lo; k < hi; ++k) { \
        __builtin_prefetch((const Rect*)t[RECTS] + keys[least(k + 16, hi - 1)].id); \
        u32 id = keys[k].id; \
        const Rect& r = ((const Rect*)t[RECTS])[id]; \
        const float* record = f(t, RECORDS) + (long)id * RECORD; \
        TILES_OF(r, record, DO) \
    }
    static void count(const u64* t, int worker) {
        if (n(t, WORKERS) == 1) return;  // `project` has
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

};

// matmul_amx.h: inner loops on tile registers (AMX); a part of matmul_narrow.c.
//
// In order: the instructions behind small functions, each with a twin in plain C (MATMUL_TWINS, or another processor);
// the configuration; the tile of 32 x 32 for bf16 and of 16 x 32 for int8.
// The compilers' own intrinsics are not used: gcc 12 declares too little of the configuration as read, and drops it.
// "memory" as clobber and volatile keep the statements in order; no compiler uses tile registers by itself.
// See Intel's Architecture Instruction Set Extensions Programming Reference, chapter 3, for what they do.
// Not here: permission to use them (narrow_amx_allowed), conversion of x, packing of w, blocking.
//
// A tile register has 16 rows of 64 bytes. c (m,16) += a (m,16 units) b (16 units,16), a unit being two bf16 or four
// bytes; a is x as it lies there, b a panel of packed weights.

#if defined(__x86_64__) && !defined(MATMUL_TWINS)
typedef struct { char none; } Tiles;
#define TILE_CONFIG(t, c) __asm__ volatile("ldtilecfg %0" :: "m"(*(c)) : "memory")
#define TILE_RELEASE(t) __asm__ volatile("tilerelease" ::: "memory")
#define TILE_ZERO(t, i) __asm__ volatile("tilezero %%tmm" #i ::: "memory")
#define TILE_LOAD(t, i, p, ld) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #i :: "r"((const void *)(p)), "r"((size_t)(ld)) : "memory")
#define TILE_STORE(t, i, p, ld) \
    __asm__ volatile("tilestored %%tmm" #i ", (%0,%1,1)" :: "r"((void *)(p)), "r"((size_t)(ld)) : "memory")
#define TILE_BF16(t, c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define TILE_INT8(t, c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#else
typedef struct { uint8_t row_bytes[8], rows[8], tile[8][16][64]; } Tiles;
#define TILE_CONFIG(t, c) tile_config(t, c)
#define TILE_RELEASE(t) memset(t, 0, sizeof *(t))
#define TILE_ZERO(t, i) memset((t)->tile[i], 0, sizeof (t)->tile[i])
#define TILE_LOAD(t, i, p, ld) tile_load(t, i, (const uint8_t *)(p), ld)
#define TILE_STORE(t, i, p, ld) tile_store(t, i, (uint8_t *)(p), ld)
#define TILE_BF16(t, c, a, b) tile_bf16(t, c, a, b)
#define TILE_INT8(t, c, a, b) tile_int8(t, c, a, b)
#define TILE_TWINS
#endif

// What LDTILECFG reads.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;
_Static_assert(sizeof(TileConfig) == 64, "as the instruction wants it");

#ifdef TILE_TWINS
static void tile_config(Tiles *t, const TileConfig *c) {
    memset(t, 0, sizeof *t);
    for (int i = 0; i < 8; i++) t->row_bytes[i] = (uint8_t)c->row_bytes[i], t->rows[i] = c->rows[i];
}

static void tile_load(Tiles *t, int i, const uint8_t *p, size_t ld) {
    memset(t->tile[i], 0, sizeof t->tile[i]);
    for (size_t r = 0; r < t->rows[i]; r++) memcpy(t->tile[i][r], p + r * ld, t->row_bytes[i]);
}

static void tile_store(const Tiles *t, int i, uint8_t *p, size_t ld) {
    for (size_t r = 0; r < t->rows[i]; r++) memcpy(p + r * ld, t->tile[i][r], t->row_bytes[i]);
}

// The products of two bf16 are added one after the other; the instruction rounds to nearest and flushes subnormals.
static void tile_bf16(Tiles *t, int c, int a, int b) {
    for (int m = 0; m < t->rows[c]; m++) {
        float sums[16];
        memcpy(sums, t->tile[c][m], sizeof sums);
        for (int k = 0; k < t->rows[b]; k++) {
            uint16_t x[2], w[32];
            memcpy(x, t->tile[a][m] + 4 * k, sizeof x);
            memcpy(w, t->tile[b][k], sizeof w);
            for (int n = 0; n < 16; n++)
                for (int e = 0; e < 2; e++)
                    sums[n] += bits_to_float((uint32_t)x[e] << 16) * bits_to_float((uint32_t)w[2 * n + e] << 16);
        }
        memcpy(t->tile[c][m], sums, sizeof sums);
    }
}

static void tile_int8(Tiles *t, int c, int a, int b) {
    for (int m = 0; m < t->rows[c]; m++) {
        int32_t sums[16];
        memcpy(sums, t->tile[c][m], sizeof sums);
        for (int k = 0; k < t->rows[b]; k++)
            for (int n = 0; n < 16; n++)
                for (int e = 0; e < 4; e++)
                    sums[n] += (int8_t)t->tile[a][m][4 * k + e] * (int8_t)t->tile[b][k][4 * n + e];
        memcpy(t->tile[c][m], sums, sizeof sums);
    }
}
#endif

// Tiles 0, 1: sums of the first rows of x; 2, 3: of the second ones (bf16), or of x's low bytes (int8); 4, 5: x;
// 6, 7: w.
// Rows that are not there are not multiplied: 257 = 8 * 32 + 1 costs what 257 rows cost.
static void tile_setup(Tiles *t, int first, int second) {
    const TileConfig c = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {(uint8_t)first, (uint8_t)first, (uint8_t)second, (uint8_t)second, (uint8_t)first, (uint8_t)second, 16,
                 16}
    };
    (void)t;
    TILE_CONFIG(t, &c);
}

enum { PANEL = 32 * 4 };      // bytes between the units of a panel: 32 columns

// x (mr,K) bf16, mr <= 32, w (K/2,32) pairs -> out (mr,n) = base + x w^T. parts 2: x has low parts.
static inline void amx_bf16(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                            Ahead *ahead, int mr, int n, int K, int parts) {
    const int first = min_int(mr, 16), second = mr - first;
    const uint8_t *const packed = w;
    float sums[32][32];
    Tiles tiles;
    tile_setup(&tiles, first, second ? second : 1);
    TILE_ZERO(&tiles, 0);
    TILE_ZERO(&tiles, 1);
    TILE_ZERO(&tiles, 2);
    TILE_ZERO(&tiles, 3);
    for (int k = 0; k < K; k += 32) {
        if (k % (2 * AHEAD_STEPS) == 0) ask_ahead(ahead);
        TILE_LOAD(&tiles, 6, packed + (size_t)k / 2 * PANEL, PANEL);
        TILE_LOAD(&tiles, 7, packed + (size_t)k / 2 * PANEL + 64, PANEL);
        for (int part = 0; part < parts; part++) {
            const uint8_t *const a = x->data + (part ? x->low : 0) + 2 * (size_t)k;
            TILE_LOAD(&tiles, 4, a, x->ld);
            TILE_BF16(&tiles, 0, 4, 6);
            TILE_BF16(&tiles, 1, 4, 7);
            if (!second) continue;
            TILE_LOAD(&tiles, 5, a + 16 * x->ld, x->ld);
            TILE_BF16(&tiles, 2, 5, 6);
            TILE_BF16(&tiles, 3, 5, 7);
        }
    }
    TILE_STORE(&tiles, 0, sums[0], sizeof sums[0]);
    TILE_STORE(&tiles, 1, sums[0] + 16, sizeof sums[0]);
    if (second) {
        TILE_STORE(&tiles, 2, sums[16], sizeof sums[0]);
        TILE_STORE(&tiles, 3, sums[16] + 16, sizeof sums[0]);
    }
    TILE_RELEASE(&tiles);
    for (int r = 0; r < mr; r++)
        for (int j = 0; j < n; j++)
            out[(size_t)r * ldo + (size_t)j] = base[(size_t)r * ldbase + (size_t)j] + sums[r][j];
}

static void tile_amx_bf16(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                          const float *wscale, Ahead *ahead, int mr, int n, int K) {
    (void)wscale;
    amx_bf16(out, ldo, base, ldbase, x, w, ahead, mr, n, K, 1);
}

static void tile_amx_two(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                         const float *wscale, Ahead *ahead, int mr, int n, int K) {
    (void)wscale;
    amx_bf16(out, ldo, base, ldbase, x, w, ahead, mr, n, K, 2);
}

// x (mr,K) as bytes, mr <= 16, w (K/4,32) fours -> out (mr,n) = base + x w^T
static void tile_amx_int8(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                          const float *wscale, Ahead *ahead, int mr, int n, int K) {
    const uint8_t *const packed = w;
    int32_t high[16][32], low[16][32];
    Tiles tiles;
    tile_setup(&tiles, mr, mr);
    TILE_ZERO(&tiles, 0);
    TILE_ZERO(&tiles, 1);
    TILE_ZERO(&tiles, 2);
    TILE_ZERO(&tiles, 3);
    for (int k = 0; k < K; k += 64) {
        if (k % (4 * AHEAD_STEPS) == 0) ask_ahead(ahead);
        TILE_LOAD(&tiles, 6, packed + (size_t)k / 4 * PANEL, PANEL);
        TILE_LOAD(&tiles, 7, packed + (size_t)k / 4 * PANEL + 64, PANEL);
        TILE_LOAD(&tiles, 4, x->data + k, x->ld);
        TILE_INT8(&tiles, 0, 4, 6);
        TILE_INT8(&tiles, 1, 4, 7);
        TILE_LOAD(&tiles, 5, x->data + x->low + k, x->ld);
        TILE_INT8(&tiles, 2, 5, 6);
        TILE_INT8(&tiles, 3, 5, 7);
    }
    TILE_STORE(&tiles, 0, high[0], sizeof high[0]);
    TILE_STORE(&tiles, 1, high[0] + 16, sizeof high[0]);
    TILE_STORE(&tiles, 2, low[0], sizeof low[0]);
    TILE_STORE(&tiles, 3, low[0] + 16, sizeof low[0]);
    TILE_RELEASE(&tiles);
    for (int r = 0; r < mr; r++) {
        const float s = x->scale[(size_t)r * x->ldscale];
        for (int j = 0; j < n; j++)
            out[(size_t)r * ldo + (size_t)j] = base[(size_t)r * ldbase + (size_t)j] +
                                               (float)(high[r][j] * 256 + low[r][j]) * s * wscale[j];
    }
}

/* The sums of _bfloat.h, to the bit, with the instructions for products of pairs of bfloat16: two neighbours are added
   one after the other, the second first. They take numbers below 2**-126 for zeros, far below the last bit of a block. */

#define DOTS_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))

#define FURTHER 1024 /* elements further on that are asked for: processors do not ask beyond the end of a page */

static int has_dots(void);

#include "_xxh3.h"

typedef struct {
    __m512 total, absolute, square;
    __m512i most;
} DotSide;

#define DOT(SUM, A, B) _mm512_dpbf16_ps(SUM, (__m512bh)(A), (__m512bh)(B))
#define ADD_DOTS(SIDE, BITS)                                                                                          \
    {                                                                                                                 \
        __m512i sizes = _mm512_and_si512(BITS, magnitude);                                                            \
        (SIDE).total = DOT((SIDE).total, BITS, ones);                                                                 \
        (SIDE).absolute = DOT((SIDE).absolute, sizes, ones);                                                          \
        (SIDE).square = DOT((SIDE).square, BITS, BITS);                                                               \
        (SIDE).most = _mm512_max_epi16((SIDE).most, sizes);                                                           \
    }

DOTS_TARGET static inline float largest_of(__m512i sizes, float before) {
    __m256i some = _mm256_max_epu16(_mm512_castsi512_si256(sizes), _mm512_extracti64x4_epi64(sizes, 1));
    __m128i few = _mm_max_epu16(_mm256_castsi256_si128(some), _mm256_extracti128_si256(some, 1));
    const __m128i all = _mm_set1_epi16(-1); /* there is an instruction for the least of 8 */
    uint16_t most = (uint16_t)~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(few, all)), 0);
    float size = as_float((uint32_t)most << 16);
    return size <= before ? before : size;
}

DOTS_TARGET static inline DotSide load_side(const float (*sums)[WOVEN]) {
    return (DotSide){_mm512_loadu_ps(sums[0]), _mm512_loadu_ps(sums[1]), _mm512_loadu_ps(sums[2]), _mm512_setzero_si512()};
}

DOTS_TARGET static inline void store_side(const DotSide *side, float (*sums)[WOVEN]) {
    _mm512_storeu_ps(sums[0], side->total);
    _mm512_storeu_ps(sums[1], side->absolute);
    _mm512_storeu_ps(sums[2], side->square);
}

/* Sums of both sides, and of their difference. */
typedef struct {
    DotSide left, right;
    __m512 along, squared, gaps;
    __m512i peak;
    int64_t differing;
} DotSums;

/* Adds elements, of blocks of digests where there is room for what these add. */
DOTS_TARGET INLINE void add_both(const uint16_t *x, const uint16_t *y, size_t count, DotSums *to, DigestSums *digests) {
    const __m512i ones = _mm512_set1_epi16(0x3f80), magnitude = _mm512_set1_epi16(INT16_MAX);
    const __m512i odd = _mm512_set1_epi32((int32_t)0xffff0000), magnitude_of_gap = _mm512_set1_epi32(INT32_MAX);
    DotSums sums = *to;
    for (size_t i = 0; i < count;) {
        DigestSide digest_x = {_mm512_setzero_si512(), _mm512_setzero_si512()}, digest_y = digest_x;
        size_t stop = digests ? i + DIGEST_BLOCK : count;
        for (const uint8_t *key = secret; i < stop; i += 32, key += 8) {
            __m512i a = _mm512_loadu_si512(x + i), b = _mm512_loadu_si512(y + i);
            _mm_prefetch(x + i + FURTHER, _MM_HINT_T0);
            _mm_prefetch(y + i + FURTHER, _MM_HINT_T0);
            if (digests) {
                ADD_STRIPE(digest_x, a, key)
                ADD_STRIPE(digest_y, b, key)
            }
            ADD_DOTS(sums.left, a)
            ADD_DOTS(sums.right, b)
            /* Other bits, and not zeros of both signs. */
            sums.differing += __builtin_popcount(_mm512_mask_test_epi16_mask(_mm512_cmpneq_epi16_mask(a, b),
                                                                             _mm512_or_si512(a, b), magnitude));
#define ONE(A, B)                                                                                                     \
    {                                                                                                                 \
        __m512 one = (__m512)(A), gap = _mm512_sub_ps((__m512)(B), one);                                              \
        __m512i size = _mm512_and_si512((__m512i)gap, magnitude_of_gap);                                              \
        sums.along = _mm512_add_ps(sums.along, _mm512_mul_ps(one, gap));                                              \
        sums.squared = _mm512_add_ps(sums.squared, _mm512_mul_ps(gap, gap));                                          \
        sums.gaps = _mm512_add_ps(sums.gaps, (__m512)size);                                                           \
        sums.peak = _mm512_max_epi32(sums.peak, size);                                                                \
    }
            ONE(_mm512_and_si512(a, odd), _mm512_and_si512(b, odd))
            ONE(_mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16))
#undef ONE
        }
        if (digests) {
            store_digest(&digest_x, digests->lanes[0]);
            store_digest(&digest_y, digests->lanes[1]);
            digests++;
        }
    }
    *to = sums;
}

/* Magnitudes, and what differs. NaN, the largest of bit patterns, comes of sides that are not finite, and then nothing is
   taken of the block. */
DOTS_TARGET INLINE void add_sizes(const DotSums *sums, Woven *woven) {
    float most = as_float((uint32_t)_mm512_reduce_max_epi32(sums->peak));
    woven->most = most > woven->most ? most : woven->most;
    woven->most_x = largest_of(sums->left.most, woven->most_x);
    woven->most_y = largest_of(sums->right.most, woven->most_y);
    woven->differing += sums->differing;
}

DOTS_TARGET static void add_woven_dots(const uint16_t *x, const uint16_t *y, size_t count, Woven *woven) {
    DotSums sums = {.left = load_side(woven->sums + TOTAL_X), .right = load_side(woven->sums + TOTAL_Y)};
    sums.along = _mm512_loadu_ps(woven->sums[ALONG]);
    sums.squared = _mm512_loadu_ps(woven->sums[SQUARED]);
    sums.gaps = _mm512_loadu_ps(woven->sums[GAP]);
    add_both(x, y, count, &sums, NULL);
    store_side(&sums.left, woven->sums + TOTAL_X);
    store_side(&sums.right, woven->sums + TOTAL_Y);
    _mm512_storeu_ps(woven->sums[ALONG], sums.along);
    _mm512_storeu_ps(woven->sums[SQUARED], sums.squared);
    _mm512_storeu_ps(woven->sums[GAP], sums.gaps);
    add_sizes(&sums, woven);
}

DOTS_TARGET INLINE void add_to_lanes_dots(Sum *lanes, __m512 sum) {
    __m512d lower = _mm512_cvtps_pd(_mm512_castps512_ps256(sum)), upper = _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum, 1));
    _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), _mm512_add_pd(lower, upper)));
}

/* A whole block, whose sums stay in registers: they are added to the lanes of its row where `fits` says so of its
   magnitudes, which are all that is left in `woven`. */
DOTS_TARGET INLINE void add_block_dots(const uint16_t *x, const uint16_t *y, Woven *woven, DigestSums *digests,
                                       int (*fits)(const Woven *), Lanes *lanes) {
    DotSums sums;
    memset(&sums, 0, sizeof sums);
    add_both(x, y, BLOCK, &sums, digests);
    add_sizes(&sums, woven);
    if (!fits(woven)) return;
    add_to_lanes_dots(&lanes->total_x, sums.left.total);
    add_to_lanes_dots(&lanes->absolute_x, sums.left.absolute);
    add_to_lanes_dots(&lanes->square_x, sums.left.square);
    add_to_lanes_dots(&lanes->total_y, sums.right.total);
    add_to_lanes_dots(&lanes->absolute_y, sums.right.absolute);
    add_to_lanes_dots(&lanes->square_y, sums.right.square);
    add_to_lanes_dots(&lanes->along, sums.along);
    add_to_lanes_dots(&lanes->squared, sums.squared);
    add_to_lanes_dots(&lanes->gap, sums.gaps);
}

DOTS_TARGET static void add_whole_block_dots(const uint16_t *x, const uint16_t *y, Woven *woven, DigestSums *digests,
                                             int (*fits)(const Woven *), Lanes *lanes) {
    if (digests) /* so that nothing is asked in the loops */
        add_block_dots(x, y, woven, digests, fits, lanes);
    else
        add_block_dots(x, y, woven, NULL, fits, lanes);
}

DOTS_TARGET static void add_woven_side_dots(const uint16_t *x, size_t count, Woven *woven) {
    const __m512i ones = _mm512_set1_epi16(0x3f80), magnitude = _mm512_set1_epi16(INT16_MAX);
    DotSide side = load_side(woven->sums + TOTAL_X);
    for (size_t i = 0; i < count; i += 32) {
        __m512i bits = _mm512_loadu_si512(x + i);
        ADD_DOTS(side, bits)
    }
    store_side(&side, woven->sums + TOTAL_X);
    woven->most_x = largest_of(side.most, woven->most_x);
}

/* Four whole blocks of a side that is the same as the other, each into sums of its own: one sum after the other would
   wait for the last addition. */
DOTS_TARGET static void add_four_sides_dots(const uint16_t *x, Woven *woven) {
    const __m512i ones = _mm512_set1_epi16(0x3f80), magnitude = _mm512_set1_epi16(INT16_MAX);
    DotSide sides[4];
    for (int at = 0; at < 4; at++) memset(sides + at, 0, sizeof *sides);
    for (size_t i = 0; i < BLOCK; i += 32) {
#pragma GCC unroll 4
        for (int at = 0; at < 4; at++) {
            __m512i bits = _mm512_loadu_si512(x + (size_t)at * BLOCK + i);
            ADD_DOTS(sides[at], bits)
        }
    }
    for (int at = 0; at < 4; at++) {
        store_side(sides + at, woven[at].sums + TOTAL_X);
        woven[at].most_x = largest_of(sides[at].most, 0);
    }
}

/* Energies of channels, 32 for each of so many VECTORS, and their other sums (_groups.h). Both sides of a channel are put
   side by side, so that one instruction adds the squares of both, that of the first side first. Each function has the
   instructions for ENERGY. Of two vectors of each row what is asked of the row alone is done once. */
#define CHANNELS(NAME, TARGET, ENERGY, VECTORS)                                                                       \
    TARGET static void NAME(const uint16_t *x, const uint16_t *y, size_t length, size_t rows, const float *factors,    \
                            const float *halves, double *energy, double *sums) {                                      \
        const __m512i first_bits = _mm512_set1_epi32((int32_t)0xffff0000);                                            \
        __m512 energies[2 * VECTORS], squares[2 * VECTORS], sizes[2 * VECTORS], products[2 * VECTORS];                \
        __m512 totals[2 * VECTORS];                                                                                   \
        _Pragma("GCC unroll 4") for (int at = 0; at < 2 * VECTORS; at++)                                              \
            energies[at] = squares[at] = sizes[at] = products[at] = totals[at] = _mm512_setzero_ps();                 \
        _Pragma("GCC unroll 1") /* else sums leave the registers */                                                   \
        for (size_t row = 0; row < rows; row++, x += length, y += length) {                                           \
            __m512 factor = _mm512_set1_ps(factors[row]), half = _mm512_set1_ps(halves[row]);                         \
            _Pragma("GCC unroll 2") for (int vector = 0; vector < VECTORS; vector++) {                                \
                __m512i left = _mm512_loadu_si512(x + 32 * vector), right = _mm512_loadu_si512(y + 32 * vector);      \
                __m512i sides[2] = {_mm512_unpacklo_epi16(right, left), _mm512_unpackhi_epi16(right, left)};          \
                _Pragma("GCC unroll 2") for (int half_of = 0; half_of < 2; half_of++) {                               \
                    int at = 2 * vector + half_of;                                                                    \
                    __m512 a = (__m512)_mm512_and_si512(sides[half_of], first_bits);                                  \
                    __m512 b = (__m512)_mm512_slli_epi32(sides[half_of], 16);                                         \
                    __m512 middle = _mm512_mul_ps(_mm512_add_ps(a, b), half);                                         \
                    __m512 added = _mm512_mul_ps(_mm512_sub_ps(b, a), factor);                                        \
                    energies[at] = ENERGY(energies[at], sides[half_of], a, b);                                        \
                    squares[at] = _mm512_fmadd_ps(added, added, squares[at]);                                         \
                    sizes[at] = _mm512_fmadd_ps(middle, middle, sizes[at]);                                           \
                    products[at] = _mm512_fmadd_ps(middle, added, products[at]);                                      \
                    totals[at] = _mm512_add_ps(totals[at], added);                                                    \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
        _Pragma("GCC unroll 2") for (int vector = 0; vector < VECTORS; vector++, energy += 32, sums += 4 * 32) {      \
            add_in_order(energies + 2 * vector, energy, LANES);                                                       \
            add_in_order(squares + 2 * vector, sums, 4 * LANES);                                                      \
            add_in_order(sizes + 2 * vector, sums + LANES, 4 * LANES);                                                \
            add_in_order(products + 2 * vector, sums + 2 * LANES, 4 * LANES);                                         \
            add_in_order(totals + 2 * vector, sums + 3 * LANES, 4 * LANES);                                           \
        }                                                                                                             \
    }
#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))

/* A sum of 32 channels, of which each four come from the one and the next four from the other, added `apart` from one
   another by eights. */
AVX512_TARGET INLINE void add_in_order(const __m512 *found, double *to, size_t apart) {
    const __m512i lower = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    __m512 ordered[2] = {_mm512_permutex2var_ps(found[0], lower, found[1]),
                         _mm512_permutex2var_ps(found[0], upper, found[1])};
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; eight++, to += apart) {
        __m256 some = eight % 2 ? _mm512_extractf32x8_ps(ordered[eight / 2], 1) : _mm512_castps512_ps256(ordered[eight / 2]);
        _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(some)));
    }
}

#define ENERGY_BY_DOT(SUM, BOTH, A, B) DOT(SUM, BOTH, BOTH)
#define ENERGY_BY_PRODUCTS(SUM, BOTH, A, B) _mm512_fmadd_ps(B, B, _mm512_fmadd_ps(A, A, SUM))
CHANNELS(add_sixty_four_dots, DOTS_TARGET, ENERGY_BY_DOT, 2)
CHANNELS(add_thirty_two_dots, DOTS_TARGET, ENERGY_BY_DOT, 1)
CHANNELS(add_thirty_two, AVX512_TARGET, ENERGY_BY_PRODUCTS, 1)
#undef CHANNELS

/* Whether this processor adds two neighbours as it was said. */
DOTS_TARGET static int adds_as_said(void) {
    uint16_t bits[32];
    float found[16];
    for (int i = 0; i < 32; i++) bits[i] = i & 1 ? 0x3f80 : 0x3380; /* 1, and 2**-24 before it, each times itself */
    __m512i both = _mm512_loadu_si512(bits), ones = _mm512_set1_epi16(0x3f80);
    /* From -1: with the second first 2**-24 is left, else 0. */
    _mm512_storeu_ps(found, DOT(_mm512_set1_ps(-1.0f), both, ones));
    for (int l = 0; l < 16; l++)
        if (found[l] != 0x1p-24f) return 0;
    /* From 1: each addition is rounded, a half to even. */
    for (int i = 0; i < 32; i++) bits[i] = 0x3380;
    _mm512_storeu_ps(found, DOT(_mm512_set1_ps(1.0f), _mm512_loadu_si512(bits), ones));
    for (int l = 0; l < 16; l++)
        if (found[l] != 1.0f) return 0;
    return 1;
}

#undef DOT
#undef ADD_DOTS

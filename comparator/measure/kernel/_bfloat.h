/* Included once for each instruction set: blocks of bfloat16 on both sides, as they lie. Two neighbours lie in 32 bits:
   the first is shifted to its place, of the second the other's bits are taken away. So a block is summed in float32 in
   WOVEN lanes, element i in lane i % 32 / 2, of two neighbours the second first. */

/* 8 elements in float32. */
INLINE void NAMED(load_bfloats)(const uint16_t *from, v8f *to) {
#ifdef REGISTERS
    *to = (v8f)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    uint32_t bits[LANES];
    for (int l = 0; l < LANES; l++) bits[l] = (uint32_t)from[l] << 16;
    memcpy(to, bits, sizeof bits);
#endif
}

/* The largest magnitude; NaN is larger than all. */
static float NAMED(largest_bfloat)(const uint16_t *from, size_t count) {
    uint16_t most = 0;
    size_t i = 0;
#ifdef REGISTERS
    size_t whole = count / 32 * 32;
    __m256i first = _mm256_setzero_si256(), second = first, magnitude = _mm256_set1_epi16(INT16_MAX);
    for (; i < whole; i += 32) {
        const __m256i *at = (const __m256i *)(from + i);
        first = _mm256_max_epi16(first, _mm256_and_si256(_mm256_loadu_si256(at), magnitude));
        second = _mm256_max_epi16(second, _mm256_and_si256(_mm256_loadu_si256(at + 1), magnitude));
    }
    uint16_t found[16];
    _mm256_storeu_si256((__m256i *)found, _mm256_max_epi16(first, second));
    for (int l = 0; l < 16; l++) most = found[l] > most ? found[l] : most;
#endif
    for (; i < count; i++) {
        uint16_t size = from[i] & INT16_MAX;
        most = size > most ? size : most;
    }
    return as_float((uint32_t)most << 16);
}

/* 16 neighbours that lie in `bits`: those with even numbers, and those with odd ones. */
#define EVEN(BITS) (v8f)((BITS) << 16)
#define ODD(BITS) (v8f)((BITS) & (int32_t)0xffff0000)

/* Adds `count` elements, a multiple of 32, in the lanes from `half` on: 0, or WOVEN / 2. */
INLINE void NAMED(add_woven_half)(const uint16_t *x, const uint16_t *y, size_t count, size_t half, Woven *woven) {
    v8f s[SUMS];
    for (int sum = 0; sum < SUMS; sum++) memcpy(s + sum, woven->sums[sum] + half, sizeof *s);
    v8i peak = {0}, differing = {0};
    for (size_t i = 2 * half; i < count; i += 2 * WOVEN) {
        v8i left, right;
        memcpy(&left, x + i, sizeof left);
        memcpy(&right, y + i, sizeof right);
#define ONE(A, B)                                                                                                     \
    {                                                                                                                 \
        v8f a = A, b = B, gap = b - a;                                                                                \
        s[TOTAL_X] += a;                                                                                              \
        s[TOTAL_Y] += b;                                                                                              \
        s[ABSOLUTE_X] += (v8f)((v8i)a & INT32_MAX);                                                                   \
        s[ABSOLUTE_Y] += (v8f)((v8i)b & INT32_MAX);                                                                   \
        s[SQUARE_X] = ADD_EXACT(a, a, s[SQUARE_X]);                                                                   \
        s[SQUARE_Y] = ADD_EXACT(b, b, s[SQUARE_Y]);                                                                   \
        s[ALONG] += a * gap;                                                                                          \
        s[SQUARED] += gap * gap;                                                                                      \
        v8i size = (v8i)gap & INT32_MAX;                                                                              \
        s[GAP] += (v8f)size;                                                                                          \
        differing -= (v8i)((v8f)size != 0);                                                                           \
        peak = LARGER_OF(size, peak);                                                                                 \
    }
        ONE(ODD(left), ODD(right))
        ONE(EVEN(left), EVEN(right))
#undef ONE
    }
    for (int sum = 0; sum < SUMS; sum++) memcpy(woven->sums[sum] + half, s + sum, sizeof *s);
    v8f size = (v8f)peak;
    for (size_t l = 0; l < LANES; l++) {
        woven->differing += differing[l];
        woven->most = size[l] > woven->most ? size[l] : woven->most;
    }
}

/* Adds `count` elements, a multiple of 32. */
static void NAMED(add_woven)(const uint16_t *x, const uint16_t *y, size_t count, Woven *woven) {
#ifdef DOTS
    if (has_dots()) {
        add_woven_dots(x, y, count, woven);
        return;
    }
#endif
    float most_x = NAMED(largest_bfloat)(x, count), most_y = NAMED(largest_bfloat)(y, count);
    woven->most_x = most_x <= woven->most_x ? woven->most_x : most_x;
    woven->most_y = most_y <= woven->most_y ? woven->most_y : most_y;
    NAMED(add_woven_half)(x, y, count, 0, woven);
    NAMED(add_woven_half)(x, y, count, WOVEN / 2, woven);
}

/* The same of a side that is the same as the other, byte by byte: `sums` of it alone. */
static void NAMED(add_woven_side)(const uint16_t *x, size_t count, Woven *woven) {
#ifdef DOTS
    if (has_dots()) {
        add_woven_side_dots(x, count, woven);
        return;
    }
#endif
    float most = NAMED(largest_bfloat)(x, count);
    woven->most_x = most <= woven->most_x ? woven->most_x : most;
    for (size_t half = 0; half < WOVEN; half += WOVEN / 2) {
        v8f total, absolute, square;
        memcpy(&total, woven->sums[TOTAL_X] + half, sizeof total);
        memcpy(&absolute, woven->sums[ABSOLUTE_X] + half, sizeof absolute);
        memcpy(&square, woven->sums[SQUARE_X] + half, sizeof square);
        for (size_t i = 2 * half; i < count; i += 2 * WOVEN) {
            v8i bits;
            memcpy(&bits, x + i, sizeof bits);
            v8f odd = ODD(bits), even = EVEN(bits);
            total += odd;
            total += even;
            absolute += (v8f)((v8i)odd & INT32_MAX);
            absolute += (v8f)((v8i)even & INT32_MAX);
            square = ADD_EXACT(odd, odd, square);
            square = ADD_EXACT(even, even, square);
        }
        memcpy(woven->sums[TOTAL_X] + half, &total, sizeof total);
        memcpy(woven->sums[ABSOLUTE_X] + half, &absolute, sizeof absolute);
        memcpy(woven->sums[SQUARE_X] + half, &square, sizeof square);
    }
}

/* The same of four whole blocks at once, each into sums of its own: one sum after the other would wait for the last
   addition. Meanwhile what comes next on both sides is on its way from memory. */
static void NAMED(add_four_woven_sides)(const uint16_t *x, const uint16_t *y, Woven *woven) {
#ifdef DOTS
    if (has_dots()) {
        add_four_sides_dots(x, woven);
        return;
    }
#endif
    const uintptr_t next_x = (uintptr_t)(x + 4 * BLOCK), next_y = (uintptr_t)(y + 4 * BLOCK);
    for (int at = 0; at < 4; at++) woven[at].most_x = NAMED(largest_bfloat)(x + at * BLOCK, BLOCK);
    for (size_t half = 0; half < WOVEN; half += WOVEN / 2) {
        v8f total[4] = {{0}}, absolute[4] = {{0}}, square[4] = {{0}};
        for (size_t i = 2 * half; i < BLOCK; i += 2 * WOVEN) {
#define ONE(AT)                                                                                                       \
    {                                                                                                                 \
        v8i bits;                                                                                                     \
        memcpy(&bits, x + (AT) * BLOCK + i, sizeof bits);                                                             \
        v8f odd = ODD(bits), even = EVEN(bits);                                                                       \
        total[AT] += odd;                                                                                             \
        total[AT] += even;                                                                                            \
        absolute[AT] += (v8f)((v8i)odd & INT32_MAX);                                                                  \
        absolute[AT] += (v8f)((v8i)even & INT32_MAX);                                                                 \
        square[AT] = ADD_EXACT(odd, odd, square[AT]);                                                                 \
        square[AT] = ADD_EXACT(even, even, square[AT]);                                                               \
    }
            ONE(0) ONE(1) ONE(2) ONE(3)
#undef ONE
            /* Of both sides as many bytes as were added of the four blocks. */
            for (size_t byte = 0; byte < 128; byte += 64) {
                __builtin_prefetch((const void *)(next_x + 8 * (i - half) + 128 * (half != 0) + byte));
                __builtin_prefetch((const void *)(next_y + 8 * (i - half) + 128 * (half != 0) + byte));
            }
        }
        for (int at = 0; at < 4; at++) {
            memcpy(woven[at].sums[TOTAL_X] + half, total + at, sizeof *total);
            memcpy(woven[at].sums[ABSOLUTE_X] + half, absolute + at, sizeof *absolute);
            memcpy(woven[at].sums[SQUARE_X] + half, square + at, sizeof *square);
        }
    }
}

INLINE void NAMED(add_woven_to)(const float *woven, Sum *sum) {
    v8f first, second;
    v4d lower, upper, others_lower, others_upper;
    memcpy(&first, woven, sizeof first);
    memcpy(&second, woven + WOVEN / 2, sizeof second);
    NAMED(widen)(&first, &lower, &upper);
    NAMED(widen)(&second, &others_lower, &others_upper);
    sum->first += lower + others_lower;
    sum->second += upper + others_upper;
}

/* Adds a block to the lanes of its row; `both`: the sums of the first side are those of the second too. */
INLINE void NAMED(add_block_to_lanes)(const Woven *woven, int both, Lanes *lanes) {
#define ADD(NUMBER, SUM) NAMED(add_woven_to)(woven->sums[NUMBER], &lanes->SUM);
    ADD(TOTAL_X, total_x) ADD(ABSOLUTE_X, absolute_x) ADD(SQUARE_X, square_x)
    if (both) {
        ADD(TOTAL_X, total_y) ADD(ABSOLUTE_X, absolute_y) ADD(SQUARE_X, square_y)
        return;
    }
    ADD(TOTAL_Y, total_y) ADD(ABSOLUTE_Y, absolute_y) ADD(SQUARE_Y, square_y)
    ADD(ALONG, along) ADD(SQUARED, squared) ADD(GAP, gap)
#undef ADD
}

static void NAMED(look_for_extremes)(const uint16_t *from, size_t count, double *low, double *high) {
    NAMED(Extremes) found = {.peak = {0}};
    found.low_x = INFINITY - (v8f){0};
    found.high_x = (v8f){0} - INFINITY;
    size_t i = 0, whole = count / LANES * LANES;
    for (; i < whole; i += LANES) {
        v8f a;
        NAMED(load_bfloats)(from + i, &a);
        found.low_x = LOWER_OF(a, found.low_x);
        found.high_x = HIGHER_OF(a, found.high_x);
    }
    for (size_t l = 0; l < LANES; l++) {
        *low = found.low_x[l] < *low ? found.low_x[l] : *low;
        *high = found.high_x[l] > *high ? found.high_x[l] : *high;
    }
    for (; i < count; i++) {
        float value = as_float((uint32_t)from[i] << 16);
        *low = value < *low ? value : *low;
        *high = value > *high ? value : *high;
    }
}

/* Whether values of at most this magnitude lie between extremes that were found. */
INLINE int NAMED(lies_between)(float most, double low, double high) { return most <= high && -most >= low; }

/* Adds a block to the lanes; returns its largest |y - x|, or -1 where nothing was added. `same`: both sides are known to
   be the same, byte by byte; `before`: what earlier rows have. `wild` is set where squares do not fit in float32. */
static float NAMED(add_bfloats)(const uint16_t *x, const uint16_t *y, size_t count, int same, Lanes *lanes,
                                const Result *before, int *wild) {
    Woven woven;
    memset(&woven, 0, sizeof woven);
    size_t whole = count / (2 * WOVEN) * (2 * WOVEN);
    uint16_t last_x[2 * WOVEN] = {0}, last_y[2 * WOVEN] = {0};
    memcpy(last_x, x + whole, (count - whole) * sizeof *x);
    memcpy(last_y, y + whole, (count - whole) * sizeof *y);
    if (same) {
        NAMED(add_woven_side)(x, whole, &woven);
        if (whole < count) NAMED(add_woven_side)(last_x, 2 * WOVEN, &woven);
        woven.most_y = woven.most_x;
    } else {
        NAMED(add_woven)(x, y, whole, &woven);
        if (whole < count) NAMED(add_woven)(last_x, last_y, 2 * WOVEN, &woven);
    }
    int fits = NAMED(is_moderate)(woven.most_x) && NAMED(is_moderate)(woven.most_y);
    *wild |= !fits;
    if (!fits || !NAMED(is_moderate)(woven.most)) return -1;
    lanes->differing += woven.differing;
    /* Looked for where they may change, which is seldom once some rows were seen. */
    if (!NAMED(lies_between)(woven.most_x, before->x.low, before->x.high))
        NAMED(look_for_extremes)(x, count, &lanes->low_x, &lanes->high_x);
    if (!NAMED(lies_between)(woven.most_y, before->y.low, before->y.high))
        NAMED(look_for_extremes)(y, count, &lanes->low_y, &lanes->high_y);
    NAMED(add_block_to_lanes)(&woven, same, lanes);
    return woven.most;
}

/* Four whole blocks that are the same on both sides, byte by byte; 0 where nothing was added. */
static int NAMED(add_four_same)(const uint16_t *x, const uint16_t *y, Lanes *lanes, const Result *before) {
    Woven woven[4];
    memset(woven, 0, sizeof woven);
    NAMED(add_four_woven_sides)(x, y, woven);
    for (int at = 0; at < 4; at++)
        if (!NAMED(is_moderate)(woven[at].most_x)) return 0;
    for (int at = 0; at < 4; at++) {
        float most = woven[at].most_x;
        NAMED(add_block_to_lanes)(woven + at, 1, lanes);
        if (NAMED(lies_between)(most, before->x.low, before->x.high) &&
            NAMED(lies_between)(most, before->y.low, before->y.high))
            continue;
        NAMED(look_for_extremes)(x + at * BLOCK, BLOCK, &lanes->low_x, &lanes->high_x);
        lanes->low_y = lanes->low_x < lanes->low_y ? lanes->low_x : lanes->low_y;
        lanes->high_y = lanes->high_x > lanes->high_y ? lanes->high_x : lanes->high_y;
    }
    return 1;
}

#include "_groups.h"

#undef EVEN
#undef ODD
#undef LOWER_OF
#undef HIGHER_OF
#undef LARGER_OF
#undef ADD_EXACT

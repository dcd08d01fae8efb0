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

/* 16 neighbours that lie in `bits`: those with even numbers, and those with odd ones. */
#define EVEN(BITS) (v8f)((BITS) << 16)
#define ODD(BITS) (v8f)((BITS) & (int32_t)0xffff0000)

/* Sums of one side in float32, in the lanes from some half on. */
typedef struct {
    v8f total, absolute, square;
    v8i most; /* sizes, of 16 bits each, where there are registers for them */
} NAMED(HalfSide);

/* Adds 16 elements, of two neighbours the second first. */
INLINE void NAMED(add_sixteen_to)(const uint16_t *from, NAMED(HalfSide) *side) {
    v8i bits;
    memcpy(&bits, from, sizeof bits);
    v8f odd = ODD(bits), even = EVEN(bits);
    side->total += odd;
    side->total += even;
    side->absolute += (v8f)((v8i)odd & INT32_MAX);
    side->absolute += (v8f)((v8i)even & INT32_MAX);
    side->square = ADD_EXACT(odd, odd, side->square);
    side->square = ADD_EXACT(even, even, side->square);
#ifdef REGISTERS
    const __m256i sizes = _mm256_set1_epi16(INT16_MAX);
    side->most = (v8i)_mm256_max_epi16((__m256i)side->most, _mm256_and_si256((__m256i)bits, sizes));
#endif
}

INLINE void NAMED(load_half)(const float (*sums)[WOVEN], size_t half, NAMED(HalfSide) *side) {
    memcpy(&side->total, sums[0] + half, sizeof side->total);
    memcpy(&side->absolute, sums[1] + half, sizeof side->absolute);
    memcpy(&side->square, sums[2] + half, sizeof side->square);
    memset(&side->most, 0, sizeof side->most);
}

INLINE void NAMED(store_half)(const NAMED(HalfSide) *side, size_t half, float (*sums)[WOVEN], float *most) {
    memcpy(sums[0] + half, &side->total, sizeof side->total);
    memcpy(sums[1] + half, &side->absolute, sizeof side->absolute);
    memcpy(sums[2] + half, &side->square, sizeof side->square);
#ifdef REGISTERS
    uint16_t found[16], largest = 0;
    memcpy(found, &side->most, sizeof found);
    for (int l = 0; l < 16; l++) largest = found[l] > largest ? found[l] : largest;
    float size = as_float((uint32_t)largest << 16);
    *most = size <= *most ? *most : size;
#else
    (void)most;
#endif
}

/* The largest magnitude, where sums do not find it; NaN is larger than all. */
INLINE void NAMED(look_for_largest)(const uint16_t *from, size_t count, float *most) {
#ifdef REGISTERS
    (void)from, (void)count, (void)most;
#else
    uint16_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t size = from[i] & INT16_MAX;
        largest = size > largest ? size : largest;
    }
    float size = as_float((uint32_t)largest << 16);
    *most = size <= *most ? *most : size;
#endif
}

/* Adds `count` elements, a multiple of 32, to the sums of single sides. */
static void NAMED(add_woven_sides)(const uint16_t *x, const uint16_t *y, size_t count, Woven *woven) {
    NAMED(look_for_largest)(x, count, &woven->most_x);
    NAMED(look_for_largest)(y, count, &woven->most_y);
    for (size_t half = 0; half < WOVEN; half += WOVEN / 2) {
        NAMED(HalfSide) left, right;
        NAMED(load_half)(woven->sums + TOTAL_X, half, &left);
        NAMED(load_half)(woven->sums + TOTAL_Y, half, &right);
        for (size_t i = 2 * half; i < count; i += 2 * WOVEN) {
            NAMED(add_sixteen_to)(x + i, &left);
            NAMED(add_sixteen_to)(y + i, &right);
        }
        NAMED(store_half)(&left, half, woven->sums + TOTAL_X, &woven->most_x);
        NAMED(store_half)(&right, half, woven->sums + TOTAL_Y, &woven->most_y);
    }
}

/* The same of a side that is the same as the other, byte by byte: sums of it alone, in both halves of the lanes at once. */
static void NAMED(add_woven_side)(const uint16_t *x, size_t count, Woven *woven) {
#ifdef DOTS
    if (has_dots()) {
        add_woven_side_dots(x, count, woven);
        return;
    }
#endif
    NAMED(look_for_largest)(x, count, &woven->most_x);
    NAMED(HalfSide) lower, upper;
    NAMED(load_half)(woven->sums + TOTAL_X, 0, &lower);
    NAMED(load_half)(woven->sums + TOTAL_X, WOVEN / 2, &upper);
    for (size_t i = 0; i < count; i += 2 * WOVEN) {
        NAMED(add_sixteen_to)(x + i, &lower);
        NAMED(add_sixteen_to)(x + i + WOVEN, &upper);
    }
    NAMED(store_half)(&lower, 0, woven->sums + TOTAL_X, &woven->most_x);
    NAMED(store_half)(&upper, WOVEN / 2, woven->sums + TOTAL_X, &woven->most_x);
}

/* Adds `count` elements, a multiple of 32, to the sums of both sides. Each half of the lanes, and single sides and their
   differences, are added by themselves: so many sums stay in registers. */
static void NAMED(add_woven)(const uint16_t *x, const uint16_t *y, size_t count, Woven *woven) {
#ifdef DOTS
    if (has_dots()) {
        add_woven_dots(x, y, count, woven);
        return;
    }
#endif
    NAMED(add_woven_sides)(x, y, count, woven);
    v8i peak = {0}, differing = {0};
    for (size_t half = 0; half < WOVEN; half += WOVEN / 2) {
        v8f along, squared, gaps;
        memcpy(&along, woven->sums[ALONG] + half, sizeof along);
        memcpy(&squared, woven->sums[SQUARED] + half, sizeof squared);
        memcpy(&gaps, woven->sums[GAP] + half, sizeof gaps);
        for (size_t i = 2 * half; i < count; i += 2 * WOVEN) {
            v8i left, right;
            memcpy(&left, x + i, sizeof left);
            memcpy(&right, y + i, sizeof right);
#define ONE(A, B)                                                                                                     \
    {                                                                                                                 \
        v8f a = A, gap = B - a;                                                                                       \
        along += a * gap;                                                                                             \
        squared += gap * gap;                                                                                         \
        v8i size = (v8i)gap & INT32_MAX;                                                                              \
        gaps += (v8f)size;                                                                                            \
        differing -= (v8i)((v8f)size != 0);                                                                           \
        peak = LARGER_OF(size, peak);                                                                                 \
    }
            ONE(ODD(left), ODD(right))
            ONE(EVEN(left), EVEN(right))
#undef ONE
        }
        memcpy(woven->sums[ALONG] + half, &along, sizeof along);
        memcpy(woven->sums[SQUARED] + half, &squared, sizeof squared);
        memcpy(woven->sums[GAP] + half, &gaps, sizeof gaps);
    }
    v8f size = (v8f)peak;
    for (size_t l = 0; l < LANES; l++) {
        woven->differing += differing[l];
        woven->most = size[l] > woven->most ? size[l] : woven->most;
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

static int NAMED(fits_singles)(const Woven *woven) {
    return NAMED(is_moderate)(woven->most_x) && NAMED(is_moderate)(woven->most_y) && NAMED(is_moderate)(woven->most);
}

/* The sums of a block, of its side where both are the same. */
INLINE void NAMED(add_any_block)(const uint16_t *x, const uint16_t *y, size_t count, int same, Woven *woven) {
    memset(woven, 0, sizeof *woven);
    size_t whole = count / (2 * WOVEN) * (2 * WOVEN);
    uint16_t last_x[2 * WOVEN] = {0}, last_y[2 * WOVEN] = {0};
    memcpy(last_x, x + whole, (count - whole) * sizeof *x);
    memcpy(last_y, y + whole, (count - whole) * sizeof *y);
    if (same) {
        NAMED(add_woven_side)(x, whole, woven);
        if (whole < count) NAMED(add_woven_side)(last_x, 2 * WOVEN, woven);
        woven->most_y = woven->most_x;
    } else {
        NAMED(add_woven)(x, y, whole, woven);
        if (whole < count) NAMED(add_woven)(last_x, last_y, 2 * WOVEN, woven);
    }
}

/* Adds a block to the lanes; returns its largest |y - x|, or -1 where nothing was added. `same`: both sides are known to
   be the same, byte by byte; `before`: what earlier rows have; `digests`, where they are given, take what each block
   adds to them. `wild` is set where squares do not fit in float32. */
static float NAMED(add_bfloats)(const uint16_t *x, const uint16_t *y, size_t count, int same, Lanes *lanes,
                                const Result *before, DigestSums *digests, int *wild) {
    Woven woven;
    int is_added = 0;
    (void)digests;
#ifdef DOTS
    if (count == BLOCK && !same && has_dots()) {
        woven.most_x = woven.most_y = woven.most = 0;
        woven.differing = 0;
        add_whole_block_dots(x, y, &woven, digests, NAMED(fits_singles), lanes);
        is_added = 1;
    }
#endif
    if (!is_added) NAMED(add_any_block)(x, y, count, same, &woven);
    if (!NAMED(fits_singles)(&woven)) {
        *wild |= !(NAMED(is_moderate)(woven.most_x) && NAMED(is_moderate)(woven.most_y));
        return -1;
    }
    if (!is_added) NAMED(add_block_to_lanes)(&woven, same, lanes);
    lanes->differing += woven.differing;
    /* Looked for where they may change, which is seldom once some rows were seen. */
    if (!NAMED(lies_between)(woven.most_x, before->x.low, before->x.high))
        NAMED(look_for_extremes)(x, count, &lanes->low_x, &lanes->high_x);
    if (!NAMED(lies_between)(woven.most_y, before->y.low, before->y.high))
        NAMED(look_for_extremes)(y, count, &lanes->low_y, &lanes->high_y);
    return woven.most;
}

/* Four whole blocks that are the same on both sides, byte by byte; 0 where nothing was added. */
static int NAMED(add_four_same)(const uint16_t *x, Lanes *lanes, const Result *before) {
    Woven woven[4];
    memset(woven, 0, sizeof woven);
#ifdef DOTS
    if (has_dots())
        add_four_sides_dots(x, woven);
    else
#endif
        for (int at = 0; at < 4; at++) NAMED(add_woven_side)(x + at * BLOCK, BLOCK, woven + at);
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

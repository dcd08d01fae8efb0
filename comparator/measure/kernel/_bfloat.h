/* Included once for each instruction set: blocks of bfloat16 on both sides, as they lie, with the sums of _narrow.h, to
   the bit. What a block asks of the registers is less than there: extremes are looked for only where one may change. */

/* LANES elements in float32. */
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

typedef struct {
    NAMED(Partial) sums;
    v8i peak, differing;
} NAMED(Gaps);

/* Adds `count` elements, a multiple of LANES; energies where there is room for them. */
INLINE void NAMED(add_gaps)(const uint16_t *x, const uint16_t *y, size_t count, float *energy, NAMED(Gaps) *found) {
    NAMED(Gaps) g = *found;
    for (size_t i = 0; i < count; i += LANES) {
        v8f a, b;
        NAMED(load_bfloats)(x + i, &a);
        NAMED(load_bfloats)(y + i, &b);
        if (energy) {
            v8f sum;
            memcpy(&sum, energy + i, sizeof sum);
            sum = ADD_EXACT(b, b, ADD_EXACT(a, a, sum));
            memcpy(energy + i, &sum, sizeof sum);
        }
        v8f gap = b - a;
        g.sums.total_x += a;
        g.sums.total_y += b;
        g.sums.absolute_x += (v8f)((v8i)a & INT32_MAX);
        g.sums.absolute_y += (v8f)((v8i)b & INT32_MAX);
        g.sums.square_x = ADD_EXACT(a, a, g.sums.square_x);
        g.sums.square_y = ADD_EXACT(b, b, g.sums.square_y);
        g.sums.along += a * gap;
        g.sums.squared += gap * gap;
        v8i size = (v8i)gap & INT32_MAX;
        g.sums.gap += (v8f)size;
        g.differing -= (v8i)((v8f)size != 0);
        g.peak = LARGER_OF(size, g.peak);
    }
    *found = g;
}

static void NAMED(add_gaps_alone)(const uint16_t *x, const uint16_t *y, size_t count, NAMED(Gaps) *found) {
    NAMED(add_gaps)(x, y, count, NULL, found);
}

static void NAMED(add_gaps_and_energy)(const uint16_t *x, const uint16_t *y, size_t count, float *energy,
                                       NAMED(Gaps) *found) {
    NAMED(add_gaps)(x, y, count, energy, found);
}

/* The sums of one side, of `count` elements, a multiple of LANES. */
static void NAMED(add_side_alone)(const uint16_t *x, size_t count, NAMED(Partial) *sums) {
    v8f total = sums->total_x, absolute = sums->absolute_x, square = sums->square_x;
    for (size_t i = 0; i < count; i += LANES) {
        v8f a;
        NAMED(load_bfloats)(x + i, &a);
        total += a;
        absolute += (v8f)((v8i)a & INT32_MAX);
        square = ADD_EXACT(a, a, square);
    }
    sums->total_x = total, sums->absolute_x = absolute, sums->square_x = square;
}

/* The same of four blocks at once, each into sums of its own: one sum after the other would wait for the last addition.
   Meanwhile what comes next on both sides is on its way from memory. */
static void NAMED(add_sides_alone)(const uint16_t *x, const uint16_t *y, NAMED(Partial) *sums) {
    const uintptr_t next_x = (uintptr_t)x + 4 * BLOCK * sizeof *x, next_y = (uintptr_t)y + 4 * BLOCK * sizeof *y;
    v8f total[4] = {{0}}, absolute[4] = {{0}}, square[4] = {{0}};
    for (size_t i = 0; i < BLOCK; i += LANES) {
#define ONE(AT)                                                                                                       \
    {                                                                                                                 \
        v8f a;                                                                                                        \
        NAMED(load_bfloats)(x + (AT) * BLOCK + i, &a);                                                                \
        total[AT] += a;                                                                                               \
        absolute[AT] += (v8f)((v8i)a & INT32_MAX);                                                                    \
        square[AT] = ADD_EXACT(a, a, square[AT]);                                                                     \
    }
        ONE(0) ONE(1) ONE(2) ONE(3)
#undef ONE
        /* Of both sides as many bytes as were added of the four blocks. */
        __builtin_prefetch((const void *)(next_x + 4 * i * sizeof *x));
        __builtin_prefetch((const void *)(next_y + 4 * i * sizeof *y));
    }
    for (int at = 0; at < 4; at++) {
        memset(sums + at, 0, sizeof *sums);
        sums[at].total_x = sums[at].total_y = total[at];
        sums[at].absolute_x = sums[at].absolute_y = absolute[at];
        sums[at].square_x = sums[at].square_y = square[at];
    }
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

/* As add_narrow; `same`: both sides are known to be the same, byte by byte. `before`: what earlier rows have. */
static float NAMED(add_bfloats)(const uint16_t *x, const uint16_t *y, size_t count, int same, Lanes *lanes,
                                float *energy, const Result *before) {
    float most_x = NAMED(largest_bfloat)(x, count), most_y = same ? most_x : NAMED(largest_bfloat)(y, count);
    if (!NAMED(is_moderate)(most_x) || !NAMED(is_moderate)(most_y)) return -1;
    size_t whole = count / LANES * LANES;
    uint16_t last_x[LANES] = {0}, last_y[LANES] = {0};
    memcpy(last_x, x + whole, (count - whole) * sizeof *x);
    memcpy(last_y, y + whole, (count - whole) * sizeof *y);
    NAMED(Gaps) found;
    memset(&found, 0, sizeof found);
    float most = 0;
    if (same && !energy) {
        NAMED(add_side_alone)(x, whole, &found.sums);
        if (whole < count) NAMED(add_side_alone)(last_x, LANES, &found.sums);
        found.sums.total_y = found.sums.total_x;
        found.sums.absolute_y = found.sums.absolute_x;
        found.sums.square_y = found.sums.square_x;
    } else {
        if (energy) {
            NAMED(add_gaps_and_energy)(x, y, whole, energy, &found);
            for (size_t i = whole; i < count; i++) {
                float a = as_float((uint32_t)x[i] << 16), b = as_float((uint32_t)y[i] << 16);
                energy[i] += a * a + b * b;
            }
        } else {
            NAMED(add_gaps_alone)(x, y, whole, &found);
        }
        if (whole < count) NAMED(add_gaps_alone)(last_x, last_y, LANES, &found);
        v8f peak = (v8f)found.peak;
        for (size_t l = 0; l < LANES; l++) most = peak[l] > most ? peak[l] : most;
    }
    if (!NAMED(is_moderate)(most)) return energy ? ADDED_ENERGY : -1;
    for (size_t l = 0; l < LANES; l++) lanes->differing += found.differing[l];
    /* Looked for where they may change, which is seldom once some rows were seen. */
    if (!NAMED(lies_between)(most_x, before->x.low, before->x.high))
        NAMED(look_for_extremes)(x, count, &lanes->low_x, &lanes->high_x);
    if (!NAMED(lies_between)(most_y, before->y.low, before->y.high))
        NAMED(look_for_extremes)(y, count, &lanes->low_y, &lanes->high_y);
    NAMED(add_to_lanes)(&found.sums, lanes);
    return most;
}

/* Four whole blocks that are the same on both sides, byte by byte; 0 where nothing was added. */
static int NAMED(add_four_same)(const uint16_t *x, const uint16_t *y, Lanes *lanes, const Result *before) {
    NAMED(Partial) sums[4];
    for (int at = 0; at < 4; at++) {
        float most = NAMED(largest_bfloat)(x + at * BLOCK, BLOCK);
        if (!NAMED(is_moderate)(most)) return 0;
        if (NAMED(lies_between)(most, before->x.low, before->x.high) &&
            NAMED(lies_between)(most, before->y.low, before->y.high))
            continue;
        NAMED(look_for_extremes)(x + at * BLOCK, BLOCK, &lanes->low_x, &lanes->high_x);
        lanes->low_y = lanes->low_x < lanes->low_y ? lanes->low_x : lanes->low_y;
        lanes->high_y = lanes->high_x > lanes->high_y ? lanes->high_x : lanes->high_y;
    }
    NAMED(add_sides_alone)(x, y, sums);
    for (int at = 0; at < 4; at++) NAMED(add_to_lanes)(sums + at, lanes);
    return 1;
}

#undef LOWER_OF
#undef HIGHER_OF
#undef LARGER_OF
#undef ADD_EXACT

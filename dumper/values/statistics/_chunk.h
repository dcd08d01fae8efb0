/* Included twice for each instruction set: chunks of WORK. */

/* Add `count` elements, a multiple of LANES. */
static void TYPED(add)(const WORK *x, size_t count, Sums *sums) {
    NAMED(Doubles) total[VECTORS], absolute[VECTORS], square[VECTORS];
    memcpy(total, sums->total, sizeof total);
    memcpy(absolute, sums->absolute, sizeof absolute);
    memcpy(square, sums->square, sizeof square);
    for (size_t i = 0; i < count; i += LANES) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            NAMED(Doubles) some = LOAD(x + i + v * WIDTH);
            total[v] += some;
            absolute[v] += (NAMED(Doubles))((NAMED(Longs))some & INT64_MAX);
            square[v] += some * some;
        }
    }
    memcpy(sums->total, total, sizeof total);
    memcpy(sums->absolute, absolute, sizeof absolute);
    memcpy(sums->square, square, sizeof square);
}

/* The extremes of at most CHUNK elements; what is no number is none of them. */
static void TYPED(look)(const WORK *x, size_t count, Sums *sums) {
    enum { TOGETHER = sizeof(VECTOR) / sizeof(WORK) };
    VECTOR low[2], high[2];
    for (int v = 0; v < 2; v++) low[v] = INFINITY - (VECTOR){0}, high[v] = (VECTOR){0} - INFINITY;
    size_t whole = count / (2 * TOGETHER) * (2 * TOGETHER);
    for (size_t i = 0; i < whole; i += 2 * TOGETHER) {
        VECTOR some[2];
        memcpy(some, x + i, sizeof some);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) low[v] = LOWER(some[v], low[v]), high[v] = HIGHER(some[v], high[v]);
    }
    for (int at = 0; at < 2 * TOGETHER; at++) {
        WORK lowest = low[at / TOGETHER][at % TOGETHER], highest = high[at / TOGETHER][at % TOGETHER];
        sums->low = lowest < sums->low ? lowest : sums->low;
        sums->high = highest > sums->high ? highest : sums->high;
    }
    for (size_t i = whole; i < count; i++) {
        sums->low = x[i] < sums->low ? x[i] : sums->low;
        sums->high = x[i] > sums->high ? x[i] : sums->high;
    }
}

/* Add at most CHUNK elements of which some are NaN or infinite: these are counted, and taken for zeros in sums. */
static void TYPED(add_finite)(const WORK *x, size_t count, Sums *sums) {
    ALIGNED WORK kept[CHUNK] = {0};
    for (size_t i = 0; i < count; i++) {
        if (isfinite(x[i])) {
            kept[i] = x[i];
            sums->low = x[i] < sums->low ? x[i] : sums->low;
            sums->high = x[i] > sums->high ? x[i] : sums->high;
        } else if (isnan(x[i])) {
            sums->nan++;
        } else {
            sums->infinite++;
        }
    }
    TYPED(add)(kept, (count + LANES - 1) / LANES * LANES, sums);
}

/* Add at most CHUNK elements. Whether all are finite is seen from their sum; one that overflows costs time alone. */
static void TYPED(add_chunk)(WORK *x, size_t count, Sums *sums) {
    Sums before = *sums;
    size_t padded = (count + LANES - 1) / LANES * LANES;
    for (size_t i = count; i < padded; i++) x[i] = 0;
    TYPED(add)(x, padded, sums);
    TYPED(look)(x, count, sums);
    if (!all_finite(sums)) {
        *sums = before;
        TYPED(add_finite)(x, count, sums);
    }
}

#undef WORK
#undef LOAD
#undef VECTOR
#undef LOWER
#undef HIGHER
#undef TYPED

/* Included once for each instruction set: what is made of vectors of float64, of sums of rows and of channels. No product is
   fused with a sum, so that all agree with reference.py in every bit. */

#ifdef COMPRESS
/* Copies each number to `lower` where it is before the pivot and else to `upper`, in their order. Returns how many are. */
static size_t NAMED(part)(const double *from, size_t count, double pivot, double *lower, double *upper) {
    const __m512d by = _mm512_set1_pd(pivot);
    size_t before = 0, i = 0;
    for (; i + 8 <= count; i += 8) {
        __m512d some = _mm512_loadu_pd(from + i);
        __mmask8 are = _mm512_cmp_pd_mask(some, by, _CMP_LT_OQ);
        /* What is stored beyond those that are meant is stored over next; there is room for it. */
        _mm512_storeu_pd(lower + before, _mm512_maskz_compress_pd(are, some));
        _mm512_storeu_pd(upper + (i - before), _mm512_maskz_compress_pd((__mmask8)~are, some));
        before += (size_t)__builtin_popcount(are);
    }
    for (; i < count; i++) {
        lower[before] = upper[i - before] = from[i];
        before += from[i] < pivot;
    }
    return before;
}
#else
static size_t NAMED(part)(const double *from, size_t count, double pivot, double *lower, double *upper) {
    size_t before = 0, behind = 0;
    for (size_t i = 0; i < count; i++) {
        double one = from[i];
        lower[before] = upper[behind] = one;
        size_t is_before = one < pivot;
        before += is_before;
        behind += 1 - is_before;
    }
    return before;
}
#endif

/* The value that has `rank` others before it in order; `from`, `lower` and `upper` have room for SPARE more than all and are
   written to. Each time all are copied to the one or the other as they lie before a pivot or not, without a branch, which a
   processor could not foresee. */
static double NAMED(ranked)(double *from, double *lower, double *upper, size_t count, size_t rank) {
    while (count > FEW_LEFT) {
        double first = from[0], middle = from[count / 2], last = from[count - 1];
        double small = first < middle ? first : middle, large = first < middle ? middle : first;
        double pivot = last < small ? small : last < large ? last : large;
        double *kept = from;
        size_t before = NAMED(part)(from, count, pivot, lower, upper);
        if (rank < before) {
            from = lower, lower = kept, count = before;
        } else if (before) {
            from = upper, upper = kept, count -= before, rank -= before;
        } else {
            /* The pivot is the least. */
            size_t behind = 0;
            for (size_t i = 0; i < count; i++) {
                lower[behind] = from[i];
                behind += from[i] > pivot;
            }
            if (rank < count - behind) return pivot;
            from = lower, lower = kept, rank -= count - behind, count = behind;
        }
    }
    for (size_t i = 1; i < count; i++) {
        double one = from[i];
        size_t at = i;
        for (; at && from[at - 1] > one; at--) from[at] = from[at - 1];
        from[at] = one;
    }
    return from[rank];
}

/* Whether a number is none. */
static int NAMED(has_nan)(const double *values, size_t count) {
    int64_t found = 0;
    for (size_t i = 0; i < count; i++) found |= values[i] != values[i];
    return found != 0;
}

/* The largest of those before `limit`, of which `*less` takes how many they are. */
static double NAMED(largest_before)(const double *values, size_t count, double limit, size_t *less) {
    double most[LANES];
    int64_t counts[LANES] = {0};
    for (int l = 0; l < LANES; l++) most[l] = -INFINITY;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++) {
            double one = values[i + l] < limit ? values[i + l] : -INFINITY;
            counts[l] += values[i + l] < limit;
            most[l] = one > most[l] ? one : most[l];
        }
    for (; i < count; i++) {
        double one = values[i] < limit ? values[i] : -INFINITY;
        counts[0] += values[i] < limit;
        most[0] = one > most[0] ? one : most[0];
    }
    for (int l = 1; l < LANES; l++) {
        counts[0] += counts[l];
        most[0] = most[l] > most[0] ? most[l] : most[0];
    }
    *less = (size_t)counts[0];
    return most[0];
}

/* The one in the middle, or the mean of both; NaN where one takes part. `room` is for ROOM(count) numbers. */
static void NAMED(median_of)(const double *values, size_t count, int in_single, double *room, double *to) {
    size_t half = count / 2, apart = count + SPARE, less;
    *to = NAN;
    if (NAMED(has_nan)(values, count)) return;
    memcpy(room, values, count * sizeof(double));
    double middle = NAMED(ranked)(room, room + apart, room + 2 * apart, count, half);
    *to = middle;
    if (count % 2) return;
    double below = NAMED(largest_before)(values, count, middle, &less);
    if (less < half) below = middle;
    *to = in_single ? (double)(((float)below + (float)middle) / 2.0f) : (below + middle) / 2;
}

/* Where the largest is, the first of several; NaN is the largest. */
static void NAMED(find_largest)(const double *values, size_t count, size_t *at) {
    double most[LANES];
    size_t i = 0, found = 0;
    if (NAMED(has_nan)(values, count)) {
        while (values[found] == values[found]) found++;
        *at = found;
        return;
    }
    for (int l = 0; l < LANES; l++) most[l] = -INFINITY;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++) most[l] = values[i + l] > most[l] ? values[i + l] : most[l];
    for (; i < count; i++) most[0] = values[i] > most[0] ? values[i] : most[0];
    for (int l = 1; l < LANES; l++) most[0] = most[l] > most[0] ? most[l] : most[0];
    while (values[found] != most[0]) found++;
    *at = found;
}

/* Of each channel how its error stands out, and then how clearly a factor explains it, in `found`, which is for three times
   as many numbers as there are channels; and what is usual. */
static void NAMED(look_at_channels)(const double *restrict energy, const double *restrict size,
                                    const double *restrict product, size_t count, Usual *known, double *restrict found,
                                    double *room) {
    double tiny = known->tiny, share, least, *clear = found + count, *explained = found + 2 * count;
    for (size_t i = 0; i < count; i++) {
        double own = larger_of(size[i], tiny);
        found[i] = energy[i] / own;
        explained[i] = product[i] / own * product[i]; /* here, where nothing is taken from it */
    }
    NAMED(median_of)(found, count, 0, room, &share);
    NAMED(median_of)(energy, count, 0, room, &least);
    known->share = larger_of(share, known->share);
    known->least = larger_of(least, known->least);
    share = known->share, least = known->least;
    double bound = larger_of(least, tiny), rows = known->rows, z = known->z;
    for (size_t i = 0; i < count; i++) {
        double own = larger_of(size[i] * share, bound), sized = larger_of(size[i], tiny);
        double factor = product[i] / sized, error = sqrt(larger_of(energy[i] - explained[i], 0) / rows / sized);
        found[i] = sqrt(energy[i] / own);
        clear[i] = smaller_of(fabs(factor) / larger_of(error, 1e-9) / z, fabs(factor) * sqrt(size[i] / own));
    }
}

/* `numbers` holds one vector after the other, of which the sums are there. */
static void NAMED(finish_rows)(double *restrict numbers, size_t count, int parts, double tiny, double *restrict error,
                               double *restrict cosine) {
    double *baseline = numbers, *target = numbers + TARGET * count, *middle = numbers + MIDDLE * count;
    double *added = numbers + ADDED * count, *product = numbers + PRODUCT * count, *sizes = numbers + SIZES * count;
    for (size_t i = 0; i < count && !parts; i++) {
        double half = (baseline[i] + target[i]) / 2, quarter = added[i] / 4;
        middle[i] = larger_of(half - quarter, 0);
        product[i] /= 2;
    }
    for (size_t i = 0; i < count; i++) {
        double norm = sqrt(added[i]), both = sqrt(middle[i] * added[i]);
        sizes[i] = sqrt((baseline[i] + target[i]) / 2);
        double relative = norm / larger_of(sizes[i], tiny), along = fabs(product[i]) / larger_of(both, tiny);
        error[i] = norm > 0 ? relative : 0;
        cosine[i] = both > 0 ? along : 0;
    }
}

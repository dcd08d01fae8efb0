/* Included once for each instruction set: sums of channels over some rows of bfloat16 that were just looked at and are
   still in the cache. */

#ifdef REGISTERS
/* Which rows of a group are summed, and their factors: of the others the factor is 0. Those with a large error, as far as
   is known by now, are left for later, when it is known how much they weigh. */
static void NAMED(choose_rows)(size_t first, size_t rows, Channels *channels, const double *table, float *factors) {
    double errors[GROUP], ordered[GROUP] = {0};
    for (size_t row = 0; row < rows; row++) {
        const double *sums = table + COLUMNS * (first + row);
        double square = (sums[0] + sums[1]) / 2, error = square > 0 ? sums[2] / square : 0;
        errors[row] = error;
        size_t at = row;
        for (; at && ordered[at - 1] > error; at--) ordered[at] = ordered[at - 1];
        ordered[at] = error;
    }
    double median = ordered[rows / 2];
    if (channels->groups < MOST_GROUPS) {
        size_t at = channels->groups++;
        for (; at && channels->medians[at - 1] > median; at--) channels->medians[at] = channels->medians[at - 1];
        channels->medians[at] = median;
    }
    double most = USUAL * USUAL * channels->medians[channels->groups / 2];
    for (size_t row = 0; row < rows; row++) {
        const double *sums = table + COLUMNS * (first + row);
        double size = sqrt((sums[0] + sums[1]) / 2);
        int taken = errors[row] <= most;
        channels->taken[first + row] = (uint8_t)taken;
        factors[row] = taken && size > 0 ? (float)(1 / size) : 0;
    }
}

/* 8 sums in float32 added to as many in float64. */
INLINE void NAMED(add_to_doubles)(double *to, __m256 from) {
    __m256d lower = _mm256_cvtps_pd(_mm256_castps256_ps128(from)), upper = _mm256_cvtps_pd(_mm256_extractf128_ps(from, 1));
    _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), lower));
    _mm256_storeu_pd(to + 4, _mm256_add_pd(_mm256_loadu_pd(to + 4), upper));
}

/* Two sums of 16 channels, of those with even and with odd numbers, put in order and added `apart` from one another. */
INLINE void NAMED(add_even_and_odd)(double *to, size_t apart, __m256 even, __m256 odd) {
    __m256 lower = _mm256_unpacklo_ps(even, odd), upper = _mm256_unpackhi_ps(even, odd);
    NAMED(add_to_doubles)(to, _mm256_permute2f128_ps(lower, upper, 0x20));
    NAMED(add_to_doubles)(to + apart, _mm256_permute2f128_ps(lower, upper, 0x31));
}

/* Energies of up to FEW rows, side by side in memory as they come, added to `woven`: of 16 channels those with even
   numbers, then those with odd ones. */
INLINE void NAMED(add_energies)(const uint16_t *x, const uint16_t *y, size_t length, size_t rows, float *woven) {
    const __m256i odd_bits = _mm256_set1_epi32((int32_t)0xffff0000);
    for (size_t i = 0; i + 16 <= length; i += 16) {
        __m256 even = _mm256_loadu_ps(woven + i), odd = _mm256_loadu_ps(woven + i + 8);
        for (size_t row = 0; row < rows; row++) {
#define ONE(FROM)                                                                                                     \
    {                                                                                                                 \
        __m256i bits = _mm256_loadu_si256((const __m256i *)((FROM) + row * length + i));                              \
        __m256 first = (__m256)_mm256_slli_epi32(bits, 16), second = (__m256)_mm256_and_si256(bits, odd_bits);        \
        even = _mm256_fmadd_ps(first, first, even);                                                                   \
        odd = _mm256_fmadd_ps(second, second, odd);                                                                   \
    }
            ONE(x) ONE(y)
#undef ONE
        }
        _mm256_storeu_ps(woven + i, even);
        _mm256_storeu_ps(woven + i + 8, odd);
    }
}

static void NAMED(add_energies_of_group)(const uint16_t *x, const uint16_t *y, size_t length, size_t rows, Table *table) {
    size_t row = 0;
    for (; row + FEW <= rows; row += FEW) NAMED(add_energies)(x + row * length, y + row * length, length, FEW, table->single);
    for (; row < rows; row++) NAMED(add_energies)(x + row * length, y + row * length, length, 1, table->single);
    for (size_t i = 0; i + 16 <= length; i += 16)
        NAMED(add_even_and_odd)(table->energy + i, LANES, _mm256_loadu_ps(table->single + i),
                                _mm256_loadu_ps(table->single + i + 8));
    memset(table->single, 0, length * sizeof(float));
}

/* Energies of 16 channels, and their other sums. */
static void NAMED(add_sixteen)(const uint16_t *x, const uint16_t *y, size_t length, size_t rows, const float *factors,
                               double *energy, double *sums) {
    const __m256i odd_bits = _mm256_set1_epi32((int32_t)0xffff0000);
    __m256 zero = _mm256_setzero_ps(), energies[2] = {zero, zero}, squares[2] = {zero, zero}, sizes[2] = {zero, zero};
    __m256 products[2] = {zero, zero}, totals[2] = {zero, zero};
#pragma GCC unroll 1 /* else sums leave the registers */
    for (size_t row = 0; row < rows; row++, x += length, y += length) {
        __m256i left = _mm256_loadu_si256((const __m256i *)x), right = _mm256_loadu_si256((const __m256i *)y);
        __m256 factor = _mm256_broadcast_ss(factors + row), half = _mm256_mul_ps(factor, _mm256_set1_ps(0.5f));
#define ONE(AT, A, B)                                                                                                 \
    {                                                                                                                 \
        __m256 a = (__m256)(A), b = (__m256)(B);                                                                      \
        __m256 middle = _mm256_mul_ps(_mm256_add_ps(a, b), half), added = _mm256_mul_ps(_mm256_sub_ps(b, a), factor); \
        energies[AT] = _mm256_fmadd_ps(b, b, _mm256_fmadd_ps(a, a, energies[AT]));                                    \
        squares[AT] = _mm256_fmadd_ps(added, added, squares[AT]);                                                     \
        sizes[AT] = _mm256_fmadd_ps(middle, middle, sizes[AT]);                                                       \
        products[AT] = _mm256_fmadd_ps(middle, added, products[AT]);                                                  \
        totals[AT] = _mm256_add_ps(totals[AT], added);                                                                \
    }
        ONE(0, _mm256_slli_epi32(left, 16), _mm256_slli_epi32(right, 16))
        ONE(1, _mm256_and_si256(left, odd_bits), _mm256_and_si256(right, odd_bits))
#undef ONE
    }
    NAMED(add_even_and_odd)(energy, LANES, energies[0], energies[1]);
    NAMED(add_even_and_odd)(sums, 4 * LANES, squares[0], squares[1]);
    NAMED(add_even_and_odd)(sums + LANES, 4 * LANES, sizes[0], sizes[1]);
    NAMED(add_even_and_odd)(sums + 2 * LANES, 4 * LANES, products[0], products[1]);
    NAMED(add_even_and_odd)(sums + 3 * LANES, 4 * LANES, totals[0], totals[1]);
}

/* One channel. */
static void NAMED(add_one_channel)(const uint16_t *x, const uint16_t *y, size_t length, size_t rows,
                                   const float *factors, double *energy, double *sums) {
    float energies = 0, squares = 0, sizes = 0, products = 0, totals = 0;
    for (size_t row = 0; row < rows; row++, x += length, y += length) {
        float a = as_float((uint32_t)*x << 16), b = as_float((uint32_t)*y << 16);
        energies += a * a;
        energies += b * b;
        if (!sums) continue;
        float middle = (a + b) * (factors[row] * 0.5f), added = (b - a) * factors[row];
        squares += added * added;
        sizes += middle * middle;
        products += middle * added;
        totals += added;
    }
    *energy += energies;
    if (!sums) return;
    sums[0] += squares;
    sums[LANES] += sizes;
    sums[2 * LANES] += products;
    sums[3 * LANES] += totals;
}

/* Sums of the channels of rows from `first` on, at most GROUP, in none of which a square is too large for float32. */
static void NAMED(add_group)(const uint16_t *x, const uint16_t *y, size_t length, size_t first, size_t rows,
                             Table *table) {
    float factors[GROUP], halves[GROUP];
    double *sums = NULL, *energy = table->energy;
    if (table->channels) {
        NAMED(choose_rows)(first, rows, table->channels, table->rows, factors);
        for (size_t row = 0; row < rows; row++) halves[row] = factors[row] * 0.5f;
        sums = table->channels->sums;
    }
    x += first * length, y += first * length;
    size_t at = 0;
    (void)halves;
    if (sums) {
#ifdef DOTS
        for (; has_dots() && at + 64 <= length; at += 64)
            add_sixty_four_dots(x + at, y + at, length, rows, factors, halves, energy + at, sums + 4 * at);
        for (; at + 32 <= length; at += 32)
            (has_dots() ? add_thirty_two_dots : add_thirty_two)(x + at, y + at, length, rows, factors, halves, energy + at,
                                                                sums + 4 * at);
#endif
        for (; at + 16 <= length; at += 16)
            NAMED(add_sixteen)(x + at, y + at, length, rows, factors, energy + at, sums + 4 * at);
    } else {
        NAMED(add_energies_of_group)(x, y, length, rows, table);
        at = length / 16 * 16;
    }
    for (; at < length; at++)
        NAMED(add_one_channel)(x + at, y + at, length, rows, factors, energy + at,
                               sums ? sums + 4 * (at / LANES * LANES) + at % LANES : NULL);
}
#endif

/* Included once for each instruction set: blocks of values of at most 8 significant bits on both sides, in float32.

A product of two is exact there, and so are sums of squares of one size; a block is at most BLOCK elements, of which each
lane adds 128. Blocks with very large, very small or no numbers are left to the sums in float64. */

#include "_widen.h"

typedef struct {
    v8f total_x, absolute_x, square_x, total_y, absolute_y, square_y, along, squared, gap;
} NAMED(Partial);

typedef struct {
    v8f low_x, high_x, low_y, high_y;
    v8i peak, differing;
} NAMED(Extremes);

#ifdef REGISTERS
#define ADD_EXACT(A, B, SUM) (v8f) _mm256_fmadd_ps((__m256)(A), (__m256)(B), (__m256)(SUM)) /* the product is exact */
#define LOWER_OF(A, B) (v8f) _mm256_min_ps((__m256)(A), (__m256)(B))
#define HIGHER_OF(A, B) (v8f) _mm256_max_ps((__m256)(A), (__m256)(B))
#define LARGER_OF(A, B) (v8i) _mm256_max_epi32((__m256i)(A), (__m256i)(B))
#else
#define ADD_EXACT(A, B, SUM) ((SUM) + (A) * (B))
#define LOWER_OF(A, B) CHOOSE(v8f, v8i, (A) < (B), A, B)
#define HIGHER_OF(A, B) CHOOSE(v8f, v8i, (A) > (B), A, B)
#define LARGER_OF(A, B) CHOOSE(v8i, v8i, (A) > (B), A, B)
#endif

/* Adds `count` elements, a multiple of LANES. */
static void NAMED(add_partial)(const float *x, const float *y, size_t count, NAMED(Partial) *sums) {
    NAMED(Partial) s = *sums;
    for (size_t i = 0; i < count; i += LANES) {
        v8f a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        v8f gap = b - a;
        s.total_x += a;
        s.total_y += b;
        s.absolute_x += (v8f)((v8i)a & INT32_MAX);
        s.absolute_y += (v8f)((v8i)b & INT32_MAX);
        s.gap += (v8f)((v8i)gap & INT32_MAX);
        s.square_x = ADD_EXACT(a, a, s.square_x);
        s.square_y = ADD_EXACT(b, b, s.square_y);
        s.along += a * gap;
        s.squared += gap * gap;
    }
    *sums = s;
}

static void NAMED(add_single_energy)(const float *x, const float *y, size_t count, float *energy) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        v8f a, b, sum;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        memcpy(&sum, energy + i, sizeof sum);
        sum = ADD_EXACT(b, b, ADD_EXACT(a, a, sum));
        memcpy(energy + i, &sum, sizeof sum);
    }
    for (; i < count; i++) energy[i] += x[i] * x[i] + y[i] * y[i];
}

/* Extremes of `count` elements, a multiple of LANES; magnitudes of differences are compared by their bits. */
static void NAMED(look_partial)(const float *x, const float *y, size_t count, NAMED(Extremes) *found) {
    NAMED(Extremes) e = *found;
    for (size_t i = 0; i < count; i += LANES) {
        v8f a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        v8i gap = (v8i)(b - a) & INT32_MAX;
        e.differing -= (v8i)((v8f)gap != 0);
        e.peak = LARGER_OF(gap, e.peak);
        e.low_x = LOWER_OF(a, e.low_x);
        e.high_x = HIGHER_OF(a, e.high_x);
        e.low_y = LOWER_OF(b, e.low_y);
        e.high_y = HIGHER_OF(b, e.high_y);
    }
    *found = e;
}

INLINE int NAMED(is_moderate)(float size) { return size == 0 || (size >= 0x1p-40f && size <= 0x1p40f); }

static void NAMED(add_to_lanes)(const NAMED(Partial) *sums, Lanes *lanes) {
    v4d lower, upper;
#define ADD(SUM) NAMED(widen)(&sums->SUM, &lower, &upper), lanes->SUM.first += lower, lanes->SUM.second += upper;
    ADD(total_x) ADD(absolute_x) ADD(square_x) ADD(total_y) ADD(absolute_y) ADD(square_y)
    ADD(along) ADD(squared) ADD(gap)
#undef ADD
}

/* Adds a block to the lanes; returns its largest |y - x|, or -1 where nothing was added. */
static float NAMED(add_narrow)(const float *x, const float *y, size_t count, Lanes *lanes, float *energy) {
    size_t whole = count / LANES * LANES;
    float last_x[LANES] = {0}, last_y[LANES] = {0};
    memcpy(last_x, x + whole, (count - whole) * sizeof(float));
    memcpy(last_y, y + whole, (count - whole) * sizeof(float));
    NAMED(Extremes) found = {.peak = {0}};
    found.low_x = found.low_y = INFINITY - (v8f){0};
    found.high_x = found.high_y = (v8f){0} - INFINITY;
    NAMED(look_partial)(x, y, whole, &found);
    double low_x = INFINITY, high_x = -INFINITY, low_y = INFINITY, high_y = -INFINITY;
    int64_t differing = 0;
    v8f peak = (v8f)found.peak;
    float most = 0;
    int bad = 0;
    for (size_t l = 0; l < LANES; l++) {
        differing += found.differing[l];
        bad |= peak[l] != peak[l];
        most = peak[l] > most ? peak[l] : most;
        low_x = found.low_x[l] < low_x ? found.low_x[l] : low_x;
        high_x = found.high_x[l] > high_x ? found.high_x[l] : high_x;
        low_y = found.low_y[l] < low_y ? found.low_y[l] : low_y;
        high_y = found.high_y[l] > high_y ? found.high_y[l] : high_y;
    }
    for (size_t i = 0; i < count - whole; i++) {
        float gap = fabsf(last_y[i] - last_x[i]);
        differing += gap != 0;
        bad |= gap != gap;
        most = gap > most ? gap : most;
        low_x = last_x[i] < low_x ? last_x[i] : low_x;
        high_x = last_x[i] > high_x ? last_x[i] : high_x;
        low_y = last_y[i] < low_y ? last_y[i] : low_y;
        high_y = last_y[i] > high_y ? last_y[i] : high_y;
    }
    float size_x = (float)(high_x > -low_x ? high_x : -low_x), size_y = (float)(high_y > -low_y ? high_y : -low_y);
    if (bad || !NAMED(is_moderate)(size_x) || !NAMED(is_moderate)(size_y) || !NAMED(is_moderate)(most)) return -1;
    lanes->differing += differing;
    lanes->low_x = low_x < lanes->low_x ? low_x : lanes->low_x;
    lanes->high_x = high_x > lanes->high_x ? high_x : lanes->high_x;
    lanes->low_y = low_y < lanes->low_y ? low_y : lanes->low_y;
    lanes->high_y = high_y > lanes->high_y ? high_y : lanes->high_y;
    NAMED(Partial) sums;
    memset(&sums, 0, sizeof sums);
    NAMED(add_partial)(x, y, whole, &sums);
    if (whole < count) NAMED(add_partial)(last_x, last_y, LANES, &sums);
    NAMED(add_to_lanes)(&sums, lanes);
    if (energy) NAMED(add_single_energy)(x, y, count, energy);
    return most;
}

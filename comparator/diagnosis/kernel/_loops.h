/* Included once for each instruction set: the loops over rows and channels, named NAMED(...). */

#include "_widen.h"

/* `count` channels of a row as float32 in `to`, a multiple of LANES long and filled up with zeros. */
static void NAMED(convert)(const Side *side, size_t row, size_t channel, size_t count, float *restrict to) {
    const char *start = side->data + (ptrdiff_t)row * side->stride;
    /* Of each row some channels are read, then of the next: processors do not expect it. */
    for (size_t byte = 0; byte < count * (size_t)item_size[side->kind]; byte += 64)
        __builtin_prefetch(start + (channel + AHEAD) * (size_t)item_size[side->kind] + byte);
    switch (side->kind) {
    case BF16: {
        const uint16_t *from = (const uint16_t *)start + channel;
        for (size_t i = 0; i < count; i++) to[i] = as_float((uint32_t)from[i] << 16);
        break;
    }
    case F16: {
        const uint16_t *from = (const uint16_t *)start + channel;
        for (size_t i = 0; i < count; i++) to[i] = half_value(from[i]);
        break;
    }
    case F32: memcpy(to, (const float *)start + channel, count * sizeof(float)); break;
    case TABLE: {
        const uint8_t *from = (const uint8_t *)start + channel;
        for (size_t i = 0; i < count; i++) to[i] = side->table[from[i]];
        break;
    }
    default: break;
    }
    for (size_t i = count; i % LANES; i++) to[i] = 0;
}

/* How many elements differ; -1 where one is not finite. */
static int64_t NAMED(differing)(const float *x, const float *y, size_t count) {
    v8i found = {0}, bad = {0};
    for (size_t i = 0; i < count; i += LANES) {
        v8f a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        found -= (v8i)(a != b);
        bad |= (((v8i)a & INT32_MAX) >= INFINITE) | (((v8i)b & INT32_MAX) >= INFINITE);
    }
    int64_t sum = 0;
    for (int l = 0; l < LANES; l++) {
        if (bad[l]) return -1;
        sum += found[l];
    }
    return sum;
}

/* A block of a row of both sides as the analysis takes it: what is not finite on either side is 0, channels weighted.
   `counts`, where given, is of the row: elements that differ, that are not finite, and of these that do not agree. */
static void NAMED(block)(const Task *task, size_t row, size_t channel, size_t count, float *restrict x,
                         float *restrict y, int64_t *counts) {
    NAMED(convert)(&task->first, row, channel, count, x);
    NAMED(convert)(&task->second, row, channel, count, y);
    int64_t differing = task->finite && !counts ? 0 : NAMED(differing)(x, y, count);
    if (differing >= 0) {
        if (counts) counts[0] += differing;
    } else {
        for (size_t i = 0; i < count; i++) {
            int left = isfinite(x[i]) != 0, right = isfinite(y[i]) != 0;
            int same = x[i] == y[i] || (isnan(x[i]) && isnan(y[i]));
            if (counts) counts[0] += !same, counts[1] += !left, counts[2] += !right, counts[3] += !((left && right) || same);
            if (!(left && right)) x[i] = y[i] = 0;
        }
    }
    if (!task->weights) return;
    const float *weights = task->weights + channel;
    for (size_t i = 0; i < count; i++) x[i] *= weights[i], y[i] *= weights[i];
}

INLINE double NAMED(tree)(const Sum *sum) {
    v4d half = sum->first + sum->second;
    return (half[0] + half[2]) + (half[1] + half[3]);
}

INLINE double NAMED(sum)(const v8f *lanes) {
    v4d half, upper;
    NAMED(widen)(lanes, &half, &upper);
    half += upper;
    return (half[0] + half[2]) + (half[1] + half[3]);
}

INLINE int NAMED(is_moderate)(double square) { return square >= 0x1p-80 && square <= 0x1p80; }

/* The sums of one row over one block in float32, added to `sums`; 0 where numbers are too large or too small for it. */
INLINE int NAMED(add_row)(const float *x, const float *y, size_t count, int parts, double *sums) {
    v8f first = {0}, second = {0}, squares = {0}, product = {0}, total = {0};
    for (size_t i = 0; i < count; i += LANES) {
        v8f a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        v8f added = parts ? b : b - a;
        first += a * a;
        second += parts ? (v8f){0} : b * b;
        squares += added * added;
        product += (parts ? a : a + b) * added;
        total += added;
    }
    double left = NAMED(sum)(&first), right = NAMED(sum)(&second);
    if (!NAMED(is_moderate)(left) || !(parts || NAMED(is_moderate)(right))) return 0;
    double found = NAMED(sum)(&squares);
    if (found != 0 && !NAMED(is_moderate)(found)) return 0;
    sums[0] += left;
    sums[1] += right;
    sums[2] += found;
    sums[3] += NAMED(sum)(&product);
    sums[4] += NAMED(sum)(&total);
    return 1;
}

/* The same in float64. */
static void NAMED(add_row_wide)(const float *x, const float *y, size_t count, int parts, double *sums) {
    Sum first = {0}, second = {0}, squares = {0}, product = {0}, total = {0};
#define HALF(AT, WHICH)                                                                                               \
    {                                                                                                                 \
        v4f a, b;                                                                                                     \
        memcpy(&a, x + (AT), sizeof a);                                                                               \
        memcpy(&b, y + (AT), sizeof b);                                                                               \
        v4d left = __builtin_convertvector(a, v4d);                                                                   \
        v4d added = __builtin_convertvector(parts ? b : b - a, v4d);                                                  \
        first.WHICH += left * left;                                                                                   \
        if (!parts) {                                                                                                 \
            v4d right = __builtin_convertvector(b, v4d);                                                              \
            second.WHICH += right * right;                                                                            \
            left += right;                                                                                            \
        }                                                                                                             \
        squares.WHICH += added * added;                                                                               \
        product.WHICH += left * added;                                                                                \
        total.WHICH += added;                                                                                         \
    }
    for (size_t i = 0; i < count; i += LANES) {
        HALF(i, first)
        HALF(i + LANES / 2, second)
    }
#undef HALF
    sums[0] += NAMED(tree)(&first);
    sums[1] += NAMED(tree)(&second);
    sums[2] += NAMED(tree)(&squares);
    sums[3] += NAMED(tree)(&product);
    sums[4] += NAMED(tree)(&total);
}

/* Energies of both sides in each channel, of some rows that lie one after the other in `x` and `y`. `energy` has room
   for a multiple of the lanes, as the sums of channels have below. */
static void NAMED(add_energy)(const float *x, const float *y, size_t rows, size_t count, double *energy) {
    for (size_t i = 0; i < count; i += LANES / 2) {
        v4d sum;
        memcpy(&sum, energy + i, sizeof sum);
        for (size_t row = 0; row < rows; row++) {
            v4f a, b;
            memcpy(&a, x + row * BLOCK + i, sizeof a);
            memcpy(&b, y + row * BLOCK + i, sizeof b);
            v4d left = __builtin_convertvector(a, v4d), right = __builtin_convertvector(b, v4d);
            sum += left * left;
            sum += right * right;
        }
        memcpy(energy + i, &sum, sizeof sum);
    }
}

static void NAMED(rows)(const Task *task, double *sums, int64_t *counts, double *energy) {
    float x[TOGETHER * BLOCK] ALIGNED, y[TOGETHER * BLOCK] ALIGNED;
    for (size_t at = 0; at < task->rows; at += TOGETHER) {
        size_t some = task->rows - at < TOGETHER ? task->rows - at : TOGETHER;
        for (size_t channel = 0; channel < task->channels; channel += BLOCK) {
            size_t count = task->channels - channel < BLOCK ? task->channels - channel : BLOCK;
            for (size_t row = 0; row < some; row++) {
                float *a = x + row * BLOCK, *b = y + row * BLOCK;
                size_t number = at + row;
                NAMED(block)(task, number, channel, count, a, b, counts ? counts + 4 * number : NULL);
                if (!(task->parts ? NAMED(add_row)(a, b, count, 1, sums + SUMS * number)
                                  : NAMED(add_row)(a, b, count, 0, sums + SUMS * number)))
                    NAMED(add_row_wide)(a, b, count, task->parts, sums + SUMS * number);
            }
            if (energy) NAMED(add_energy)(x, y, some, count, energy + channel);
        }
    }
}

/* The midpoint of rows and what was added to it, each row times its factor, one after the other. */
static void NAMED(arrays)(const Task *task, const int64_t *chosen, const float *factors, float *middle, float *added) {
    float x[BLOCK] ALIGNED, y[BLOCK] ALIGNED;
    for (size_t row = 0; row < task->rows; row++)
        for (size_t channel = 0; channel < task->channels; channel += BLOCK, middle += BLOCK, added += BLOCK) {
            size_t count = task->channels - channel < BLOCK ? task->channels - channel : BLOCK;
            NAMED(block)(task, (size_t)chosen[row], channel, count, x, y, NULL);
            for (size_t i = 0; i < count; i++) {
                middle[i] = (task->parts ? x[i] : (x[i] + y[i]) * 0.5f) * factors[row];
                added[i] = (task->parts ? y[i] : y[i] - x[i]) * factors[row];
            }
            if (count < BLOCK) middle -= BLOCK - count, added -= BLOCK - count;
        }
}

INLINE void NAMED(add_to)(double *to, const v8f *from) {
    v4d first, second, lower, upper;
    memcpy(&first, to, sizeof first);
    memcpy(&second, to + LANES / 2, sizeof second);
    NAMED(widen)(from, &lower, &upper);
    first += lower;
    second += upper;
    memcpy(to, &first, sizeof first);
    memcpy(to + LANES / 2, &second, sizeof second);
}

/* Sums of each channel over rows: of the squares of what was added and of the midpoint, of their product, and of what
   was added; each row times its factor, which makes it one of about length 1. `x` and `y` hold rows one after the other. `sums` holds LANES of each for LANES channels, then
   those of the next. */
INLINE void NAMED(add_channels)(const float *x, const float *y, const float *factors, size_t rows, size_t count,
                                int parts, double *sums) {
    for (size_t i = 0; i < count; i += LANES) {
        v8f squares = {0}, sizes = {0}, products = {0}, totals = {0};
        for (size_t row = 0; row < rows; row++) {
            v8f a, b;
            memcpy(&a, x + row * BLOCK + i, sizeof a);
            memcpy(&b, y + row * BLOCK + i, sizeof b);
            v8f middle = parts ? a : (a + b) * 0.5f, added = parts ? b : b - a;
            middle *= factors[row];
            added *= factors[row];
            squares += added * added;
            sizes += middle * middle;
            products += middle * added;
            totals += added;
        }
        double *to = sums + 4 * i;
        NAMED(add_to)(to, &squares);
        NAMED(add_to)(to + LANES, &sizes);
        NAMED(add_to)(to + 2 * LANES, &products);
        NAMED(add_to)(to + 3 * LANES, &totals);
    }
}

#ifdef REGISTERS
#define ROWS (2 * TOGETHER) /* of bfloat16 that are looked at together: as many bytes as others take */

/* Some channels of rows of bfloat16 side by side, `BLOCK` of each; they are far from one another where they lie. */
INLINE void NAMED(gather)(const Side *side, const int64_t *rows, const int64_t *ahead, size_t channel, size_t channel_ahead,
                          size_t count, uint16_t *to) {
    for (size_t row = 0; row < ROWS; row++, to += BLOCK) {
        const uint16_t *from = (const uint16_t *)(side->data + (ptrdiff_t)rows[row] * side->stride) + channel;
        const uint16_t *later = (const uint16_t *)(side->data + (ptrdiff_t)ahead[row] * side->stride) + channel_ahead;
        for (size_t i = 0; i < BLOCK; i += 32) __builtin_prefetch(later + i);
        for (size_t i = 0; i < count; i += 2 * LANES) {
            __m256i some = _mm256_loadu_si256((const __m256i *)(from + i));
            __asm__("" : "+x"(some)); /* else the loop becomes a string instruction, which takes longer to begin */
            _mm256_storeu_si256((__m256i *)(to + i), some);
        }
    }
}

/* Two sums of 16 channels, of those with even and with odd numbers, added to those of 2 × LANES channels. */
INLINE void NAMED(add_woven)(double *to, __m256 even, __m256 odd) {
    __m256 lower = _mm256_unpacklo_ps(even, odd), upper = _mm256_unpackhi_ps(even, odd);
    v8f first = (v8f)_mm256_permute2f128_ps(lower, upper, 0x20), second = (v8f)_mm256_permute2f128_ps(lower, upper, 0x31);
    NAMED(add_to)(to, &first);
    NAMED(add_to)(to + 4 * LANES, &second);
}

typedef struct {
    __m256 squares, sizes, products, totals;
} NAMED(Four);

INLINE void NAMED(add_four)(NAMED(Four) *to, __m256 a, __m256 b, __m256 half, __m256 factor) {
    __m256 middle = _mm256_mul_ps(_mm256_add_ps(a, b), half), added = _mm256_mul_ps(_mm256_sub_ps(b, a), factor);
    to->squares = _mm256_fmadd_ps(added, added, to->squares);
    to->sizes = _mm256_fmadd_ps(middle, middle, to->sizes);
    to->products = _mm256_fmadd_ps(middle, added, to->products);
    to->totals = _mm256_add_ps(to->totals, added);
}

/* As add_channels, of ROWS rows of bfloat16 in which all is finite; `count` is a multiple of 2 × LANES. Two
   neighbours lie in 32 bits: the even one is shifted to its place, of the odd one the other's bits are taken away. */
static void NAMED(add_bfloat_channels)(const uint16_t *x, const uint16_t *y, const float *factors, size_t count,
                                       double *sums) {
    const __m256i odd = _mm256_set1_epi32((int32_t)0xffff0000);
    for (size_t i = 0; i < count; i += 2 * LANES) {
        NAMED(Four) evens, odds;
        memset(&evens, 0, sizeof evens);
        memset(&odds, 0, sizeof odds);
#pragma GCC unroll 1 /* else sums leave the registers */
        for (size_t row = 0; row < ROWS; row++) {
            __m256i a = _mm256_loadu_si256((const __m256i *)(x + row * BLOCK + i));
            __m256i b = _mm256_loadu_si256((const __m256i *)(y + row * BLOCK + i));
            __m256 factor = _mm256_broadcast_ss(factors + row), half = _mm256_mul_ps(factor, _mm256_set1_ps(0.5f));
            NAMED(add_four)(&evens, (__m256)_mm256_slli_epi32(a, 16), (__m256)_mm256_slli_epi32(b, 16), half, factor);
            NAMED(add_four)(&odds, (__m256)_mm256_and_si256(a, odd), (__m256)_mm256_and_si256(b, odd), half, factor);
        }
        double *to = sums + 4 * i;
        NAMED(add_woven)(to, evens.squares, odds.squares);
        NAMED(add_woven)(to + LANES, evens.sizes, odds.sizes);
        NAMED(add_woven)(to + 2 * LANES, evens.products, odds.products);
        NAMED(add_woven)(to + 3 * LANES, evens.totals, odds.totals);
    }
}

/* Whether rows are of bfloat16 and taken as they lie. */
INLINE int NAMED(is_plain_bfloat)(const Task *task) {
    return task->first.kind == BF16 && task->second.kind == BF16 && task->finite && !task->parts && !task->weights &&
           task->channels % (2 * LANES) == 0;
}
#endif

#ifdef REGISTERS
/* `last`: no rows come after these. Asked for ahead of time are the channels further on, at the end those of the next
   rows that come first. */
static void NAMED(bfloat_channels)(const Task *task, const int64_t *chosen, const float *factors, int last, double *sums) {
    uint16_t x[ROWS * BLOCK] ALIGNED, y[ROWS * BLOCK] ALIGNED;
    size_t channels = task->channels;
    for (size_t channel = 0; channel < channels; channel += BLOCK) {
        size_t count = channels - channel < BLOCK ? channels - channel : BLOCK, further = channel + AHEAD;
        const int64_t *ahead = chosen;
        if (further >= channels) {
            further = further - channels < channels ? further - channels : 0;
            ahead += last ? 0 : ROWS;
        }
        NAMED(gather)(&task->first, chosen, ahead, channel, further, count, x);
        NAMED(gather)(&task->second, chosen, ahead, channel, further, count, y);
        NAMED(add_bfloat_channels)(x, y, factors, count, sums + 4 * channel);
    }
}
#endif

static void NAMED(channels)(const Task *task, const int64_t *chosen, const float *factors, double *sums) {
    float x[TOGETHER * BLOCK] ALIGNED, y[TOGETHER * BLOCK] ALIGNED;
    size_t first = 0;
#ifdef REGISTERS
    if (NAMED(is_plain_bfloat)(task))
        for (; first + ROWS <= task->rows; first += ROWS)
            NAMED(bfloat_channels)(task, chosen + first, factors + first, first + 2 * ROWS > task->rows, sums);
#endif
    for (size_t at = first; at < task->rows; at += TOGETHER) {
        size_t some = task->rows - at < TOGETHER ? task->rows - at : TOGETHER;
        for (size_t channel = 0; channel < task->channels; channel += BLOCK) {
            size_t count = task->channels - channel < BLOCK ? task->channels - channel : BLOCK;
            for (size_t row = 0; row < some; row++)
                NAMED(block)(task, (size_t)chosen[at + row], channel, count, x + row * BLOCK, y + row * BLOCK, NULL);
            /* Of its own for what is usual, so that nothing is asked in the loops. */
            if (some == TOGETHER && !task->parts)
                NAMED(add_channels)(x, y, factors + at, TOGETHER, count, 0, sums + 4 * channel);
            else
                NAMED(add_channels)(x, y, factors + at, some, count, task->parts, sums + 4 * channel);
        }
    }
}

#undef ROWS

/* Included once for each working type: WORK, VECTOR and BITS (half of LANES of it), WIDE and WIDE_BITS (LANES of it or
   half of them, as registers are wide), LOWER and HIGHER of two (the second where one is NaN), LARGER_BITS, masks,
   TYPED(function). */

/* Adds `count` elements, a multiple of LANES, to the sums of half of the lanes: elements 4 to 7 of each 8 where `half`
   is 4. Nine sums of one half are as many as stay in registers. */
static void TYPED(add_half)(const WORK *x, const WORK *y, size_t count, int half, Lanes *lanes) {
#define PART(SUM) (half ? &lanes->SUM.second : &lanes->SUM.first)
    v4d total_x = *PART(total_x), absolute_x = *PART(absolute_x), square_x = *PART(square_x);
    v4d total_y = *PART(total_y), absolute_y = *PART(absolute_y), square_y = *PART(square_y);
    v4d along = *PART(along), squared = *PART(squared), gaps = *PART(gap);
    for (size_t i = half; i < count; i += LANES) {
        VECTOR a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        VECTOR gap = (VECTOR)((BITS)(b - a) & MAGNITUDE);
        v4d wide_a = __builtin_convertvector(a, v4d), wide_b = __builtin_convertvector(b, v4d);
        v4d wide_gap = wide_b - wide_a;
        total_x += wide_a;
        total_y += wide_b;
        absolute_x += (v4d)((v4l)wide_a & INT64_MAX);
        absolute_y += (v4d)((v4l)wide_b & INT64_MAX);
        square_x += wide_a * wide_a;
        square_y += wide_b * wide_b;
        along += wide_a * wide_gap;
        squared += wide_gap * wide_gap;
        gaps += __builtin_convertvector(gap, v4d);
    }
    *PART(total_x) = total_x, *PART(absolute_x) = absolute_x, *PART(square_x) = square_x;
    *PART(total_y) = total_y, *PART(absolute_y) = absolute_y, *PART(square_y) = square_y;
    *PART(along) = along, *PART(squared) = squared, *PART(gap) = gaps;
#undef PART
}

/* Extremes and counts of `count` elements, a multiple of LANES, in vectors as wide as registers are; returns the largest
   |y - x|, bit patterns being compared: NaN is larger than all. Of NaN and a number the extremes keep the number. */
static WORK TYPED(look)(const WORK *x, const WORK *y, size_t count, Lanes *lanes) {
    WIDE low_x, high_x, low_y, high_y;
    WIDE_BITS differing = {0}, largest = {0}, peak = {0};
    memcpy(&low_x, x, sizeof low_x);
    memcpy(&low_y, y, sizeof low_y);
    high_x = low_x;
    high_y = low_y;
    for (size_t i = 0; i < count; i += sizeof(WIDE) / sizeof(WORK)) {
        WIDE a, b;
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        WIDE_BITS gap = (WIDE_BITS)(b - a) & MAGNITUDE;
        differing -= (WIDE_BITS)((WIDE)gap != 0);
        peak = LARGER_BITS(gap, peak);
        largest = LARGER_BITS((WIDE_BITS)a & MAGNITUDE, largest);
        largest = LARGER_BITS((WIDE_BITS)b & MAGNITUDE, largest);
        low_x = LOWER(a, low_x);
        high_x = HIGHER(a, high_x);
        low_y = LOWER(b, low_y);
        high_y = HIGHER(b, high_y);
    }
    WIDE_BITS most = {0};
    for (size_t l = 0; l < sizeof(WIDE) / sizeof(WORK); l++) {
        lanes->differing += differing[l];
        lanes->bad |= largest[l] >= INFINITE;
        most[0] = peak[l] > most[0] ? peak[l] : most[0];
        lanes->low_x = low_x[l] < lanes->low_x ? low_x[l] : lanes->low_x;
        lanes->high_x = high_x[l] > lanes->high_x ? high_x[l] : lanes->high_x;
        lanes->low_y = low_y[l] < lanes->low_y ? low_y[l] : lanes->low_y;
        lanes->high_y = high_y[l] > lanes->high_y ? high_y[l] : lanes->high_y;
    }
    return ((WIDE)most)[0];
}

static WORK TYPED(add)(const WORK *x, const WORK *y, size_t count, Lanes *lanes) {
    TYPED(add_half)(x, y, count, 0, lanes);
    TYPED(add_half)(x, y, count, LANES / 2, lanes);
    return TYPED(look)(x, y, count, lanes);
}

INLINE int TYPED(is_larger)(WORK gap, WORK most) { return gap > most || gap != gap; }

static void TYPED(convert)(const Source *source, size_t at, size_t count, WORK *to) {
    switch (source->kind) {
    case BF16: CONVERT(uint16_t, as_float((uint32_t)from[i] << 16))
    case F16: CONVERT(uint16_t, half_value(from[i]))
    case F32: CONVERT(float, (WORK)from[i])
    case F64: CONVERT(double, (WORK)from[i])
    case I8: CONVERT(int8_t, (WORK)from[i])
    case U8: CONVERT(uint8_t, (WORK)from[i])
    case I16: CONVERT(int16_t, (WORK)from[i])
    case U16: CONVERT(uint16_t, (WORK)from[i])
    case I32: CONVERT(int32_t, (WORK)from[i])
    case U32: CONVERT(uint32_t, (WORK)from[i])
    case I64: CONVERT(int64_t, (WORK)from[i])
    case U64: CONVERT(uint64_t, (WORK)from[i])
    case BOOL: CONVERT(uint8_t, (WORK)(from[i] != 0))
    case TABLE: CONVERT(uint8_t, (WORK)source->table[from[i]])
    default: break;
    }
}

/* `count` elements in the working type: where they lie, or in `buffer`. */
static const WORK *TYPED(block)(const Source *source, size_t at, size_t count, WORK *buffer) {
    if (source->kind == WORK_KIND) return (const WORK *)source->data + at;
    TYPED(convert)(source, at, count, buffer);
    return buffer;
}

static int TYPED(is_same_nonfinite)(WORK a, WORK b) { return !isfinite(a) && (a == b || (isnan(a) && isnan(b))); }

/* Adds a block to the lanes; returns its largest |y - x|, NaN if there is one. */
static WORK TYPED(add_block)(const WORK *x, const WORK *y, size_t count, Lanes *lanes) {
    size_t whole = count / LANES * LANES;
    WORK most = whole ? TYPED(add)(x, y, whole, lanes) : 0;
    if (whole == count) return most;
    WORK last_x[LANES] = {0}, last_y[LANES] = {0};
    memcpy(last_x, x + whole, (count - whole) * sizeof(WORK));
    memcpy(last_y, y + whole, (count - whole) * sizeof(WORK));
    double low_x = lanes->low_x, high_x = lanes->high_x, low_y = lanes->low_y, high_y = lanes->high_y;
    WORK last = TYPED(add)(last_x, last_y, LANES, lanes);
    for (size_t i = 0; i < count - whole; i++) {
        low_x = last_x[i] < low_x ? last_x[i] : low_x;
        high_x = last_x[i] > high_x ? last_x[i] : high_x;
        low_y = last_y[i] < low_y ? last_y[i] : low_y;
        high_y = last_y[i] > high_y ? last_y[i] : high_y;
    }
    lanes->low_x = low_x, lanes->high_x = high_x, lanes->low_y = low_y, lanes->high_y = high_y;
    return most == most && TYPED(is_larger)(last, most) ? last : most;
}

/* Energies of both sides in each channel. */
static void TYPED(add_energy)(const WORK *x, const WORK *y, size_t count, double *energy) {
    for (size_t i = 0; i < count; i++) energy[i] += (double)x[i] * (double)x[i] + (double)y[i] * (double)y[i];
}

/* The lanes of one row. `accept` takes equal NaN and infinities for zeros; the largest gap is looked for then too.
   `same`: both sides are the same, byte by byte. Energies of bfloat16 on both sides are left to groups of rows. */
static void TYPED(add_row)(const Source *x, const Source *y, size_t at, size_t count, int accept, int same, Lanes *lanes,
                           Table *table, Result *result) {
    (void)same;
    WORK buffer_x[BLOCK] ALIGNED, buffer_y[BLOCK] ALIGNED;
    for (size_t done = 0; done < count; done += BLOCK) {
        size_t some = count - done < BLOCK ? count - done : BLOCK;
        WORK most = -1;
        int has_energy = table->energy && !accept;
#ifdef NARROW
        if (!accept && x->kind == BF16 && y->kind == BF16) {
            const uint16_t *left = (const uint16_t *)x->data + at + done, *right = (const uint16_t *)y->data + at + done;
            if (same && result->largest >= 0 && count - done >= 4 * BLOCK &&
                NAMED(add_four_same)(left, lanes, result)) {
                done += 3 * BLOCK;
                continue;
            }
            DigestSums *digests = table->beside ? table->beside + done / DIGEST_BLOCK : NULL;
            most = NAMED(add_bfloats)(left, right, some, same, lanes, result, digests, &table->wild);
            if (most >= 0 && most <= result->largest) continue;
            has_energy = 0;
        }
#endif
        const WORK *a = TYPED(block)(x, at + done, some, buffer_x), *b = TYPED(block)(y, at + done, some, buffer_y);
        if (accept) {
            for (size_t i = 0; i < some; i++) {
                int same = TYPED(is_same_nonfinite)(a[i], b[i]);
                WORK left = same ? 0 : a[i], right = same ? 0 : b[i];
                buffer_x[i] = left, buffer_y[i] = right;
            }
            a = buffer_x, b = buffer_y;
        }
#ifdef NARROW
        if (most < 0 && !(x->kind == BF16 && y->kind == BF16 && !accept) && is_narrow[x->kind] && is_narrow[y->kind])
            most = NAMED(add_narrow)(a, b, some, lanes, has_energy ? table->single + done : NULL);
#endif
        if (most < 0) {
            if (has_energy) TYPED(add_energy)(a, b, some, table->energy + done);
            most = TYPED(add_block)(a, b, some, lanes);
        }
        if (isnan(result->largest)) continue;
        if (!(isnan(most) || most > result->largest)) continue;
        size_t where = 0;
        for (; where < some; where++) {
            WORK gap = (WORK)fabs((double)(b[where] - a[where]));
            if (gap == most || (isnan(most) && isnan(gap))) break;
        }
        result->largest = most;
        result->largest_at = result->seen + (int64_t)(at + done + where);
    }
}

static void TYPED(count_nonfinite)(const Source *x, const Source *y, size_t at, size_t count, Result *result) {
    WORK buffer_x[BLOCK], buffer_y[BLOCK];
    for (size_t done = 0; done < count; done += BLOCK) {
        size_t some = count - done < BLOCK ? count - done : BLOCK;
        const WORK *a = TYPED(block)(x, at + done, some, buffer_x), *b = TYPED(block)(y, at + done, some, buffer_y);
        for (size_t i = 0; i < some; i++) {
            result->x.nan += isnan(a[i]) != 0;
            result->y.nan += isnan(b[i]) != 0;
            result->x.infinite += isinf(a[i]) != 0;
            result->y.infinite += isinf(b[i]) != 0;
            result->nonfinite_equal += TYPED(is_same_nonfinite)(a[i], b[i]);
        }
    }
}

/* Whether a row is known to be the same on both sides, byte by byte. Of a long one that is not asked: it would be read
   from memory once more. */
static int TYPED(is_same)(const Source *x, const Source *y, size_t at, size_t count) {
    size_t size = (size_t)item_size[x->kind];
    return x->kind == y->kind && x->kind != TABLE && count * size <= LOOKED_AT &&
           !memcmp((const char *)x->data + at * size, (const char *)y->data + at * size, count * size);
}

/* The energies of some rows, in float64. */
static void TYPED(add_energy_of_rows)(const Source *x, const Source *y, size_t first, size_t rows, size_t length,
                                      double *energy) {
    WORK buffer_x[BLOCK] ALIGNED, buffer_y[BLOCK] ALIGNED;
    if (!energy) return;
    for (size_t row = first; row < first + rows; row++)
        for (size_t done = 0; done < length; done += BLOCK) {
            size_t some = length - done < BLOCK ? length - done : BLOCK, at = row * length + done;
            TYPED(add_energy)(TYPED(block)(x, at, some, buffer_x), TYPED(block)(y, at, some, buffer_y), some, energy + done);
        }
}

/* Energies, and what else is asked of channels, of the rows before `end` that wait for it. */
static void TYPED(add_channels)(const Source *x, const Source *y, size_t end, size_t length, int bfloats, Table *table) {
    if (!table->waiting) return;
    if (!bfloats) {
        add_waiting(table, length);
        return;
    }
    size_t rows = table->waiting, first = end - rows;
    int wild = table->wild;
    table->waiting = 0;
    table->wild = 0;
#if defined(NARROW) && defined(REGISTERS)
    if (!wild) {
        NAMED(add_group)(x->data, y->data, length, first, rows, table);
        return;
    }
#endif
    (void)wild;
    TYPED(add_energy_of_rows)(x, y, first, rows, length, table->energy);
    if (table->channels) memset(table->channels->taken + first, 0, rows);
}

/* Energies of channels are not looked for while rows are the same on both sides, byte by byte: nothing is asked of them
   then. Where all of them are, the first energy is NaN. */
static void TYPED(measure)(const Source *x, const Source *y, size_t size, size_t length, int accept, Table *table,
                           Result *result) {
    int bfloats = sizeof(WORK) == sizeof(float) && x->kind == BF16 && y->kind == BF16;
    size_t together = bfloats ? GROUP : TOGETHER;
    Table without = {.energy = NULL};
    for (size_t at = 0, row = 0; at < size; at += length, row++) {
        size_t count = size - at < length ? size - at : length;
        double largest = result->largest;
        int64_t largest_at = result->largest_at;
        Lanes lanes;
        clear(&lanes);
        int same = TYPED(is_same)(x, y, at, count), alike = same && table->alike == row;
        if (!same && table->alike && table->alike == row) {
            TYPED(add_energy_of_rows)(x, y, 0, row, length, table->energy);
            if (table->channels) memset(table->channels->taken, 0, row);
        }
        table->alike += (size_t)alike;
#if defined(NARROW) && defined(DOTS)
        take_digests(x->data, y->data, at, count, same, table);
#endif
        TYPED(add_row)(x, y, at, count, 0, same, &lanes, alike ? &without : table, result);
        Line line = {{tree(&lanes.total_x), tree(&lanes.absolute_x), tree(&lanes.square_x), tree(&lanes.total_y),
                      tree(&lanes.absolute_y), tree(&lanes.square_y)}};
        add_extremes(&result->x, lanes.low_x, lanes.high_x);
        add_extremes(&result->y, lanes.low_y, lanes.high_y);
        if (lanes.bad) {
            TYPED(count_nonfinite)(x, y, at, count, result);
            if (accept) {
                result->largest = largest, result->largest_at = largest_at;
                clear(&lanes);
                TYPED(add_row)(x, y, at, count, 1, same, &lanes, &without, result);
            }
        }
        double along = line.sums[ALONG] = tree(&lanes.along), squared = line.sums[SQUARED] = tree(&lanes.squared);
        line.sums[GAP] = tree(&lanes.gap);
        line.square_x = tree(&lanes.square_x), line.square_y = tree(&lanes.square_y);
        result->differing += lanes.differing;
        if (table->lines)
            table->lines[row] = line;
        else
            add_line(result, &line);
        if (table->rows) {
            double total = line.sums[TOTAL_Y] - line.sums[TOTAL_X];
            double found[COLUMNS] = {line.square_x, line.square_y, squared, 2 * along + squared, total,
                                     (double)lanes.differing};
            memcpy(table->rows + COLUMNS * row, found, sizeof found);
        }
        if (table->energy && !alike && ++table->waiting == together)
            TYPED(add_channels)(x, y, row + 1, length, bfloats, table);
    }
    size_t rows = (size + length - 1) / length;
    TYPED(add_channels)(x, y, rows, length, bfloats, table);
    if (table->energy && size && table->alike == rows) table->energy[0] = NAN;
    result->seen += (int64_t)size;
}

#undef WORK
#undef WIDE
#undef WIDE_BITS
#undef LOWER
#undef HIGHER
#undef LARGER_BITS
#undef WORK_KIND
#undef VECTOR
#undef BITS
#undef MAGNITUDE
#undef INFINITE
#undef TYPED
#undef NARROW

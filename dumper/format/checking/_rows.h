/* What the index of a file says of its records, held against what they say themselves: without reading any metadata but
 * the numbers at its end, as the dumper writes them. What comes before these, the prefix, is kept once for all records
 * that share it, and it is read where the index is. A record whose numbers are elsewhere is not compared. */

#define COLUMNS 7

enum { OFFSET, DESCRIPTOR, STEP, OCCURRENCE, ORDER, PAYLOAD_OFFSET, PAYLOAD_BYTES };
static const struct {
    const char *name;
    int bytes;
} columns[COLUMNS] = {{"offset", 8}, {"descriptor", 4}, {"step", 8}, {"occurrence", 4},
                      {"order", 8},  {"payload_offset", 8}, {"payload_bytes", 8}};

#define NO_STEP -1
#define STEP_KEY "\xa4step"
#define OCCURRENCE_KEY "\xaaoccurrence"
#define ORDER_KEY "\xa5order\xcf"
#define LENGTH(TEXT) (sizeof(TEXT) - 1)
#define ORDER_BYTES (LENGTH(ORDER_KEY) + 8)
#define MOST_ALIKE 16 /* prefixes of one description: records that were compressed, and those that were not */

typedef struct {
    uint32_t descriptor, bytes;
    int64_t before; /* the number of another one of the same description, plus 1 */
    uint8_t *text;
} Prefix;

typedef struct {
    const uint8_t *columns[COLUMNS]; /* NULL: there is no index to compare with */
    size_t count, seen;              /* records: of the index, and those that were compared */
    int agrees;
    Prefix *prefixes;
    size_t prefix_count, prefix_room;
    size_t *last_of; /* of each description: the number of the prefix that came last, plus 1 */
    size_t last_room;
} Rows;

static uint64_t number_at(const Rows *rows, int column, size_t row) {
    const uint8_t *at = rows->columns[column] + row * (size_t)columns[column].bytes;
    uint64_t wide;
    uint32_t narrow;
    if (columns[column].bytes == 4) {
        memcpy(&narrow, at, 4);
        return narrow;
    }
    memcpy(&wide, at, 8);
    return wide;
}

/* The columns of the index at the end of a file, if it has one in the form in which it is written. */
static void find_columns(const Bytes *file, Rows *rows) {
    size_t at, start, length;
    Head head;
    Payload payload;
    memset(rows, 0, sizeof *rows);
    if (!index_place(file, &at) || head_at(file, at, &head) <= 0 || !is_kind(file, &head, "index")) return;
    if (head.payloads != 1 || !payload_at(file, &head.position, &payload)) return;
    Bytes map = {file->data + payload.start, payload.length};
    if (!has(&map, 0, 1) || map.data[0] != (0x80 | (COLUMNS + 3))) return;
    at = 1;
    for (int column = 0; column < COLUMNS; column++) {
        size_t name = strlen(columns[column].name);
        if (!has(&map, at, 1 + name + 5) || map.data[at] != (0xa0 | name)) return;
        if (memcmp(map.data + at + 1, columns[column].name, name) != 0) return;
        at += 1 + name;
        int bytes = 1 << ((map.data[at] - 0xc4) & 3);
        if (map.data[at] < 0xc4 || map.data[at] > 0xc6) return;
        start = at + 1 + (size_t)bytes;
        length = (size_t)big_endian(map.data + at + 1, bytes);
        if (!has(&map, start, length) || length % (size_t)columns[column].bytes) return;
        size_t count = length / (size_t)columns[column].bytes;
        if (column && count != rows->count) return;
        rows->count = count;
        rows->columns[column] = map.data + start;
        at = start + length;
    }
    rows->agrees = 1;
}

/* The length of an integer, or nil, of msgpack; 0 for anything else, and what an int64 cannot hold. */
static size_t packed_number(const uint8_t *at, size_t bytes, int64_t *number) {
    if (!bytes) return 0;
    uint8_t code = at[0];
    if (code < 0x80 || code >= 0xe0) {
        *number = (int8_t)code;
        return 1;
    }
    if (code == 0xc0) {
        *number = NO_STEP;
        return 1;
    }
    if (code < 0xcc || code > 0xd3) return 0;
    int length = 1 << (code & 3);
    if (bytes < 1 + (size_t)length) return 0;
    uint64_t found = big_endian(at + 1, length);
    if (code >= 0xd0) {
        int unused = 64 - 8 * length;
        *number = (int64_t)(found << unused) >> unused;
    } else {
        if (found > INT64_MAX) return 0;
        *number = (int64_t)found;
    }
    return 1 + (size_t)length;
}

typedef struct {
    int64_t step, occurrence, order;
} Numbers;

/* Whether the numbers of a record, and nothing else, are here. */
static int are_numbers(const uint8_t *at, size_t bytes, Numbers *found) {
    size_t length;
    if (bytes < LENGTH(STEP_KEY) || memcmp(at, STEP_KEY, LENGTH(STEP_KEY)) != 0) return 0;
    at += LENGTH(STEP_KEY), bytes -= LENGTH(STEP_KEY);
    if (!(length = packed_number(at, bytes, &found->step))) return 0;
    at += length, bytes -= length;
    if (bytes < LENGTH(OCCURRENCE_KEY) || memcmp(at, OCCURRENCE_KEY, LENGTH(OCCURRENCE_KEY)) != 0) return 0;
    at += LENGTH(OCCURRENCE_KEY), bytes -= LENGTH(OCCURRENCE_KEY);
    if (!bytes || at[0] == 0xc0 || !(length = packed_number(at, bytes, &found->occurrence))) return 0;
    at += length, bytes -= length;
    if (bytes != ORDER_BYTES || memcmp(at, ORDER_KEY, LENGTH(ORDER_KEY)) != 0) return 0;
    found->order = (int64_t)big_endian(at + LENGTH(ORDER_KEY), 8);
    return found->occurrence >= 0 && found->order >= 0;
}

/* The bytes of metadata before the numbers at its end; 0 where there are none. */
static size_t prefix_of(const uint8_t *meta, size_t bytes, Numbers *found) {
    static const size_t longest = LENGTH(STEP_KEY) + LENGTH(OCCURRENCE_KEY) + ORDER_BYTES + 18;
    if (bytes < ORDER_BYTES || memcmp(meta + bytes - ORDER_BYTES, ORDER_KEY, LENGTH(ORDER_KEY)) != 0) return 0;
    for (size_t tail = longest - 16; tail <= longest && tail < bytes; tail++)
        if (are_numbers(meta + bytes - tail, tail, found)) return bytes - tail;
    return 0;
}

/* Whether these are the numbers of a row. */
static int are_of_row(const Rows *rows, size_t row, const uint8_t *at, size_t bytes) {
    Numbers found;
    return are_numbers(at, bytes, &found) && (uint64_t)found.step == number_at(rows, STEP, row) &&
           (uint64_t)found.occurrence == number_at(rows, OCCURRENCE, row) &&
           (uint64_t)found.order == number_at(rows, ORDER, row);
}

static int begins_with(const Prefix *prefix, const uint8_t *meta, size_t bytes) {
    return prefix->bytes <= bytes && memcmp(prefix->text, meta, prefix->bytes) == 0;
}

/* A prefix that is new; 0 where the numbers are nowhere, negative where there is no memory. */
static int keep_prefix(Rows *rows, size_t row, uint32_t descriptor, const uint8_t *meta, size_t bytes) {
    Numbers found;
    size_t length = prefix_of(meta, bytes, &found);
    if (!length || !are_of_row(rows, row, meta + length, bytes - length)) return 0;
    if (descriptor >= rows->count) return 0; /* there are no more descriptions than records */
    if (rows->prefix_count == rows->prefix_room) {
        size_t room = 2 * rows->prefix_room + 64;
        Prefix *more = realloc(rows->prefixes, room * sizeof *more);
        if (more == NULL) return -1;
        rows->prefixes = more;
        rows->prefix_room = room;
    }
    if (descriptor >= rows->last_room) {
        size_t room = 2 * (size_t)descriptor + 64;
        size_t *more = realloc(rows->last_of, room * sizeof *more);
        if (more == NULL) return -1;
        memset(more + rows->last_room, 0, (room - rows->last_room) * sizeof *more);
        rows->last_of = more;
        rows->last_room = room;
    }
    uint8_t *text = malloc(length);
    if (text == NULL) return -1;
    memcpy(text, meta, length);
    rows->prefixes[rows->prefix_count++] =
        (Prefix){descriptor, (uint32_t)length, (int64_t)rows->last_of[descriptor], text};
    rows->last_of[descriptor] = rows->prefix_count;
    return 1;
}

/* Compare a record with its row. Negative: there is no memory. */
static int compare(Rows *rows, size_t offset, const uint8_t *meta, size_t bytes, size_t first, uint64_t length) {
    size_t row = rows->seen++;
    if (!rows->agrees) return 0;
    rows->agrees = 0;
    if (row >= rows->count || number_at(rows, OFFSET, row) != offset) return 0;
    if (number_at(rows, PAYLOAD_OFFSET, row) != first || number_at(rows, PAYLOAD_BYTES, row) != length) return 0;
    uint32_t descriptor = (uint32_t)number_at(rows, DESCRIPTOR, row);
    size_t number = descriptor < rows->last_room ? rows->last_of[descriptor] : 0;
    for (int tries = 0; tries < MOST_ALIKE; tries++) {
        if (!number) {
            int kept = keep_prefix(rows, row, descriptor, meta, bytes);
            rows->agrees = kept > 0;
            return kept;
        }
        const Prefix *prefix = &rows->prefixes[number - 1];
        if (begins_with(prefix, meta, bytes) && are_of_row(rows, row, meta + prefix->bytes, bytes - prefix->bytes)) {
            rows->agrees = 1;
            return 1;
        }
        number = (size_t)prefix->before;
    }
    return 0;
}

static void free_rows(Rows *rows) {
    for (size_t i = 0; i < rows->prefix_count; i++) free(rows->prefixes[i].text);
    free(rows->prefixes);
    free(rows->last_of);
}

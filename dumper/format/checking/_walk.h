/* The walk through a part of a file: checksums of all metadata and of small payloads; large ones are kept for others. */

#include <pthread.h>
#include <sys/mman.h>

#define LARGE (256u << 10)  /* bytes; beyond a payload is looked at by itself, by any thread */
#define PIECE (4u << 20)    /* bytes that are looked at before anything else is thought of */
#define AHEAD (16u << 20)   /* bytes that are asked for before they are read */
#define WAITING (64u << 20) /* bytes of large payloads that wait, from which on no more of them are looked for */
#define PART (32u << 20)    /* bytes of a file that one thread walks through, where the index says where another begins */
#define MOST_PARTS 256

typedef struct {
    Bytes bytes;
    int is_mapped; /* its pages are those of a file, which can be read again */
    size_t part, large; /* bytes: what else is PART and LARGE */
} Source;

typedef struct {
    size_t *items, count, room;
} Offsets;

typedef struct {
    size_t frame;
    Payload payload;
} Large;

enum { WAITS, WALKS, STOPPED };

typedef struct {
    const Source *source;
    int state;
    size_t stop;          /* where another part begins, or the file ends */
    size_t at, last;      /* where the next frame begins, and where the last one did */
    size_t let_go, asked; /* up to where its pages were given back, and asked for */
    size_t records;
    uint64_t done; /* bytes */
    Rows rows;
    Offsets steps, damaged;
    Large *large; /* that wait for somebody to look at them: from taken to count */
    size_t taken, count, room;
    uint64_t waiting; /* bytes of these */
} Part;

typedef struct {
    Payload *items;
    size_t room;
} Payloads;

static size_t page;

static int append(Offsets *offsets, size_t offset) {
    if (offsets->count == offsets->room) {
        size_t room = 2 * offsets->room + 64, *more = realloc(offsets->items, room * sizeof *more);
        if (more == NULL) return -1;
        offsets->items = more;
        offsets->room = room;
    }
    offsets->items[offsets->count++] = offset;
    return 0;
}

/* Give back the pages of what was looked at: they would stay in the memory that this process is said to take. */
static void let_go(const Source *source, size_t from, size_t to) {
    from = from / page * page;
    to = to / page * page;
    if (source->is_mapped && from < to) madvise((void *)(source->bytes.data + from), to - from, MADV_DONTNEED);
}

/* Have the disk read ahead, further than it does by itself. */
static void ask_for(const Source *source, size_t from, size_t to) {
    from = from / page * page;
    if (to > source->bytes.size) to = source->bytes.size;
    if (source->is_mapped && from < to) madvise((void *)(source->bytes.data + from), to - from, MADV_WILLNEED);
}

/* Whether a payload of any length matches its checksum; negative where it is not to be finished, which is asked for now
 * and then. */
static int is_intact(const Source *source, const Payload *payload, int (*stops)(void *), void *asked_of) {
    const uint8_t *data = source->bytes.data + payload->start;
    size_t size = payload->length, end = payload->start + size, asked = payload->start;
    if (size <= LARGE) return xxh3(data, size) == payload->checksum;
    uint64_t sums[8];
    memcpy(sums, first_sums, sizeof sums);
    for (size_t done = 0, whole = (size - 1) / BLOCK * BLOCK; done < whole;) {
        size_t now = whole - done < PIECE ? whole - done : PIECE, from = payload->start + done;
        if (stops(asked_of)) return -1;
        if (asked < end && asked < from + AHEAD) {
            size_t to = end - from < AHEAD + PIECE ? end : from + AHEAD + PIECE;
            ask_for(source, asked, to);
            asked = to;
        }
        add_blocks(sums, data + done, now / BLOCK);
        let_go(source, from, from + now);
        done += now;
    }
    return ended(sums, data, size) == payload->checksum;
}

static int keep_large(Part *part, size_t frame, const Payload *payload) {
    if (part->taken == part->count) part->taken = part->count = 0;
    if (part->count == part->room) {
        size_t room = 2 * part->room + 64;
        Large *more = realloc(part->large, room * sizeof *more);
        if (more == NULL) return -1;
        part->large = more;
        part->room = room;
    }
    part->large[part->count++] = (Large){frame, *payload};
    part->waiting += payload->length;
    return 0;
}

/* The frame that is next: 1 where there is one. Negative: there is no memory. */
static int walk_over(Part *part, Payloads *payloads, pthread_mutex_t *lock, uint64_t *looked_at) {
    const Bytes *bytes = &part->source->bytes;
    Head head;
    int found = head_at(bytes, part->at, &head);
    if (found <= 0) return found;
    if (head.payloads > payloads->room) {
        Payload *more = realloc(payloads->items, head.payloads * sizeof *more);
        if (more == NULL) return -1;
        payloads->items = more;
        payloads->room = head.payloads;
    }
    size_t position = head.position;
    uint64_t length = 0, large = 0;
    for (uint32_t i = 0; i < head.payloads; i++) {
        if (!payload_at(bytes, &position, &payloads->items[i])) return 0;
        length += payloads->items[i].length;
    }
    int damaged = 0, no_memory = 0;
    if (is_kind(bytes, &head, "record")) {
        size_t first = head.payloads ? payloads->items[0].start : 0;
        part->records++;
        no_memory |= compare(&part->rows, part->at, bytes->data + head.meta, head.meta_bytes, first, length) < 0;
    } else if (is_kind(bytes, &head, "step")) {
        no_memory |= append(&part->steps, part->at) < 0;
    }
    for (uint32_t i = 0; i < head.payloads; i++) {
        const Payload *payload = &payloads->items[i];
        if (payload->length <= part->source->large) {
            damaged |= xxh3(bytes->data + payload->start, payload->length) != payload->checksum;
            continue;
        }
        large += payload->length;
        pthread_mutex_lock(lock);
        no_memory |= keep_large(part, part->at, payload) < 0;
        pthread_mutex_unlock(lock);
    }
    if (damaged) {
        pthread_mutex_lock(lock);
        no_memory |= append(&part->damaged, part->at) < 0;
        pthread_mutex_unlock(lock);
    }
    *looked_at += position - part->at - large;
    part->last = part->at;
    part->at = position;
    return no_memory ? -1 : 1;
}

/* Frame after frame, for a while; returns the bytes that were looked at. */
static uint64_t walk(Part *part, pthread_mutex_t *lock, int *no_memory) {
    Payloads payloads = {NULL, 0};
    uint64_t looked_at = 0;
    int found = 1;
    while (found > 0 && looked_at < PIECE && part->waiting < WAITING && part->at < part->stop) {
        /* Few pages are touched where payloads are large, and these are asked for when they are looked at. */
        if (looked_at && part->at + AHEAD / 2 > part->asked) {
            size_t from = part->asked > part->at ? part->asked : part->at;
            part->asked = part->at + AHEAD;
            ask_for(part->source, from, part->asked < part->stop ? part->asked : part->stop);
        }
        found = walk_over(part, &payloads, lock, &looked_at);
    }
    free(payloads.items);
    let_go(part->source, part->let_go, part->at);
    part->let_go = part->at;
    pthread_mutex_lock(lock);
    part->state = found > 0 && part->at < part->stop ? WAITS : STOPPED;
    *no_memory |= found < 0;
    pthread_mutex_unlock(lock);
    return looked_at;
}

/* How many parts a file is walked through in, from offsets of records in its index; and where they begin. The offsets
 * may be anything: a walk that does not end where the next part begins goes on without it. */
static int cut(const Source *source, const Rows *rows, size_t *begins, size_t *first_rows) {
    int parts = 1;
    size_t size = source->bytes.size, part = source->part, bytes = part > size / MOST_PARTS ? part : size / MOST_PARTS;
    begins[0] = first_rows[0] = 0;
    while (rows->agrees && parts < MOST_PARTS && size - begins[parts - 1] >= 2 * bytes) {
        size_t low = first_rows[parts - 1], high = rows->count, wanted = begins[parts - 1] + bytes;
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (number_at(rows, OFFSET, middle) < wanted) low = middle + 1;
            else high = middle;
        }
        if (low == rows->count) break;
        size_t begin = (size_t)number_at(rows, OFFSET, low);
        if (begin < wanted || begin >= size) break;
        begins[parts] = begin;
        first_rows[parts++] = low;
    }
    return parts;
}

static void free_part(Part *part) {
    free_rows(&part->rows);
    free(part->steps.items);
    free(part->damaged.items);
    free(part->large);
}

/* One frame of a file, as dumper/format/frames.py reads it: what is not as it says there is no frame here either. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_xxh3.h"

#define ALIGNMENT 64
#define FIXED_FIELDS 3
#define FIELDS_PER_PAYLOAD 3
#define FOOTER_BYTES 26

typedef struct {
    const uint8_t *data;
    size_t size;
} Bytes;

typedef struct {
    size_t start, length;
    uint64_t checksum;
} Payload;

typedef struct {
    size_t kind, meta, position; /* where they begin, and where the first payload's padding does */
    uint32_t kind_bytes, meta_bytes;
    uint32_t payloads;
} Head;

static uint64_t big_endian(const uint8_t *at, int bytes) {
    uint64_t number = 0;
    for (int i = 0; i < bytes; i++) number = number << 8 | at[i];
    return number;
}

static int has(const Bytes *file, size_t position, size_t bytes) {
    return position <= file->size && bytes <= file->size - position;
}

/* Start and length of the content of a bin field with a length of 32 bits. */
static int bin32(const Bytes *file, size_t position, size_t *start, size_t *length) {
    if (!has(file, position, 5) || file->data[position] != 0xc6) return 0;
    *start = position + 5;
    *length = (size_t)big_endian(file->data + position + 1, 4);
    return has(file, *start, *length);
}

static int uint64_field(const Bytes *file, size_t position, uint64_t *number) {
    if (!has(file, position, 9) || file->data[position] != 0xcf) return 0;
    *number = big_endian(file->data + position + 1, 8);
    return 1;
}

/* The frame at a place, up to the first padding; its metadata matches its checksum. Negative: there is no memory. */
static int head_at(const Bytes *file, size_t at, Head *head) {
    if (!has(file, at, 1)) return 0;
    const uint8_t *data = file->data;
    size_t position = at + 1, fields = data[at] & 0x0f, start, length;
    if (data[at] == 0xdc) {
        if (!has(file, at, 3)) return 0;
        fields = (size_t)big_endian(data + at + 1, 2);
        position = at + 3;
        if (fields < 16) return 0;
    } else if ((data[at] & 0xf0) != 0x90) {
        return 0;
    }
    if (fields < FIXED_FIELDS || (fields - FIXED_FIELDS) % FIELDS_PER_PAYLOAD || !has(file, position, 1)) return 0;
    size_t kind_bytes = data[position] ^ 0xa0;
    if (kind_bytes < 1 || kind_bytes > 31 || !has(file, position + 1, kind_bytes)) return 0;
    size_t kind = position + 1;
    for (size_t i = 0; i < kind_bytes; i++)
        if (data[kind + i] >= 0x80) return 0;
    uint64_t digest;
    if (!bin32(file, kind + kind_bytes, &start, &length) || !uint64_field(file, start + length, &digest)) return 0;
    /* Of both, which do not lie side by side. */
    uint8_t few[2048], *both = kind_bytes + length <= sizeof few ? few : malloc(kind_bytes + length);
    if (both == NULL) return -1;
    memcpy(both, data + kind, kind_bytes);
    memcpy(both + kind_bytes, data + start, length);
    int intact = xxh3(both, kind_bytes + length) == digest;
    if (both != few) free(both);
    *head = (Head){kind, start, start + length + 9, (uint32_t)kind_bytes, (uint32_t)length,
                   (uint32_t)((fields - FIXED_FIELDS) / FIELDS_PER_PAYLOAD)};
    return intact;
}

/* A payload behind its padding; position moves past its checksum. */
static int payload_at(const Bytes *file, size_t *position, Payload *payload) {
    static const uint8_t zeros[ALIGNMENT];
    size_t padding = ((size_t)0 - (*position + 2 + 5)) & (ALIGNMENT - 1);
    if (!has(file, *position, 2 + padding)) return 0;
    const uint8_t *at = file->data + *position;
    if (at[0] != 0xc4 || at[1] != padding || memcmp(at + 2, zeros, padding) != 0) return 0;
    if (!bin32(file, *position + 2 + padding, &payload->start, &payload->length)) return 0;
    size_t end = payload->start + payload->length;
    if (!uint64_field(file, end, &payload->checksum)) return 0;
    *position = end + 9;
    return 1;
}

static int is_kind(const Bytes *file, const Head *head, const char *kind) {
    size_t bytes = strlen(kind);
    return head->kind_bytes == bytes && memcmp(file->data + head->kind, kind, bytes) == 0;
}

/* The place that a valid footer at the end of the file names. */
static int index_place(const Bytes *file, size_t *place) {
    if (file->size < FOOTER_BYTES) return 0;
    const uint8_t *footer = file->data + file->size - FOOTER_BYTES;
    uint8_t checked[15];
    memcpy(checked, footer + 1, 7);
    memcpy(checked + 7, footer + 9, 8);
    if (memcmp(footer, "\x93\xa6" "footer\xcf", 9) != 0 || footer[17] != 0xcf) return 0;
    if (big_endian(footer + 18, 8) != xxh3(checked, sizeof checked)) return 0;
    *place = (size_t)big_endian(footer + 9, 8);
    return 1;
}

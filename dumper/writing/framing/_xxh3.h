/* XXH3 with 64 bits, and with 128 for few bytes, seed 0 and the default secret, from its specification
 * (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): the package xxhash offers no C interface, and what
 * it does for a small payload costs less than a call of it. */

#include "_xxh3_parts.h"

#define STRIPE 64 /* bytes that change all sums once */
#define BLOCK 1024

static inline uint32_t half_word(const uint8_t *at) {
    uint32_t read;
    memcpy(&read, at, sizeof read);
    return read;
}

static inline uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static inline uint64_t avalanche_of_xxh64(uint64_t value) {
    value = (value ^ value >> 33) * PRIME64_2;
    value = (value ^ value >> 29) * PRIME64_3;
    return value ^ value >> 32;
}

static uint64_t of_at_most_16(const uint8_t *data, size_t size) {
    if (size > 8) {
        uint64_t low = word(secret + 24) ^ word(secret + 32) ^ word(data);
        uint64_t high = word(secret + 40) ^ word(secret + 48) ^ word(data + size - 8);
        return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
    }
    if (size > 3) {
        uint64_t combined = half_word(data + size - 4) | (uint64_t)half_word(data) << 32;
        uint64_t value = word(secret + 8) ^ word(secret + 16) ^ combined;
        value = (value ^ rotated(value, 49) ^ rotated(value, 24)) * PRIME_MX2;
        value = (value ^ ((value >> 35) + size)) * PRIME_MX2;
        return value ^ value >> 28;
    }
    if (size == 0) return avalanche_of_xxh64(word(secret + 56) ^ word(secret + 64));
    uint32_t combined = data[size - 1] | (uint32_t)size << 8 | (uint32_t)data[0] << 16 | (uint32_t)data[size >> 1] << 24;
    return avalanche_of_xxh64((uint64_t)(half_word(secret) ^ half_word(secret + 4)) ^ combined);
}

static inline uint64_t mixed(const uint8_t *data, const uint8_t *key) {
    return folded(word(data) ^ word(key), word(data + 8) ^ word(key + 8));
}

static uint64_t of_at_most_240(const uint8_t *data, size_t size) {
    uint64_t sum = size * PRIME64_1;
    if (size <= 128) {
        for (int i = (int)((size - 1) >> 5); i >= 0; i--)
            sum += mixed(data + i * 16, secret + i * 32) + mixed(data + size - i * 16 - 16, secret + i * 32 + 16);
        return avalanche(sum);
    }
    for (int i = 0; i < 8; i++) sum += mixed(data + i * 16, secret + i * 16);
    sum = avalanche(sum);
    for (int i = 8; i < (int)(size >> 4); i++) sum += mixed(data + i * 16, secret + (i - 8) * 16 + 3);
    return avalanche(sum + mixed(data + size - 16, secret + 119));
}

#if defined(__SSE2__)
#include <emmintrin.h>

/* Two sums at a time. */
static inline void accumulate(uint64_t *sums, const uint8_t *data, const uint8_t *key) {
    for (int i = 0; i < 4; i++) {
        __m128i lanes = _mm_loadu_si128((const __m128i *)data + i), sum = _mm_loadu_si128((const __m128i *)sums + i);
        __m128i value = _mm_xor_si128(lanes, _mm_loadu_si128((const __m128i *)key + i));
        sum = _mm_add_epi64(sum, _mm_mul_epu32(value, _mm_srli_epi64(value, 32)));
        sum = _mm_add_epi64(sum, _mm_shuffle_epi32(lanes, _MM_SHUFFLE(1, 0, 3, 2)));
        _mm_storeu_si128((__m128i *)sums + i, sum);
    }
}
#else
static inline void accumulate(uint64_t *sums, const uint8_t *data, const uint8_t *key) {
    for (int i = 0; i < 8; i++) {
        uint64_t lane = word(data + i * 8), value = lane ^ word(key + i * 8);
        sums[i ^ 1] += lane;
        sums[i] += (value & 0xffffffffu) * (value >> 32);
    }
}
#endif

/* Adds whole blocks, behind each of which more data comes. */
static void add_blocks(uint64_t *sums, const uint8_t *data, size_t blocks) {
    for (; blocks; blocks--, data += BLOCK) {
        for (int n = 0; n < BLOCK / STRIPE; n++) accumulate(sums, data + n * STRIPE, secret + n * 8);
        for (int i = 0; i < 8; i++)
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ word(secret + sizeof secret - STRIPE + i * 8)) * PRIME32_1;
    }
}

/* The digest of so many bytes, of which those before the last ones, a block at most, were added. */
static uint64_t ended(uint64_t *sums, const uint8_t *data, size_t size) {
    size_t before = (size - 1) / BLOCK * BLOCK, left = size - before;
    for (int n = 0; n < (int)((left - 1) / STRIPE); n++)
        accumulate(sums, data + before + n * STRIPE, secret + n * 8);
    accumulate(sums, data + size - STRIPE, secret + sizeof secret - 71);
    return merged(sums, size);
}

static uint64_t of_more(const uint8_t *data, size_t size) {
    uint64_t sums[8];
    memcpy(sums, first_sums, sizeof sums);
    add_blocks(sums, data, (size - 1) / BLOCK);
    return ended(sums, data, size);
}

static uint64_t xxh3(const uint8_t *data, size_t size) {
    return size <= 16 ? of_at_most_16(data, size) : size <= 240 ? of_at_most_240(data, size) : of_more(data, size);
}

#define LEAST_128 17
#define MOST_128 128

/* Of 17 to 128 bytes; the higher half first. */
static inline void xxh3_128(const uint8_t *data, size_t size, uint64_t *halves) {
    uint64_t low = size * PRIME64_1, high = 0;
    for (int i = (int)((size - 1) >> 5); i >= 0; i--) {
        const uint8_t *first = data + i * 16, *last = data + size - i * 16 - 16, *key = secret + i * 32;
        low = (low + mixed(first, key)) ^ (word(last) + word(last + 8));
        high = (high + mixed(last, key + 16)) ^ (word(first) + word(first + 8));
    }
    halves[0] = 0 - avalanche(low * PRIME64_1 + high * PRIME64_4 + size * PRIME64_2);
    halves[1] = avalanche(low + high);
}

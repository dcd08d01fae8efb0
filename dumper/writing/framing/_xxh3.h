/* XXH3 with 64 bits, and with 128 for few bytes, seed 0 and the default secret, from its specification
 * (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): the package xxhash offers no C interface, and what
 * it does for a small payload costs less than a call of it. For machines that store the lowest byte first. */

#include <stdint.h>
#include <string.h>

#define STRIPE 64 /* bytes that change all sums once */
#define BLOCK 1024

static const uint8_t secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9,
    0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78,
    0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6,
    0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f,
    0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff,
    0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static const uint64_t PRIME32_1 = 0x9e3779b1u, PRIME32_2 = 0x85ebca77u, PRIME32_3 = 0xc2b2ae3du;
static const uint64_t PRIME64_1 = 0x9e3779b185ebca87u, PRIME64_2 = 0xc2b2ae3d27d4eb4fu, PRIME64_3 = 0x165667b19e3779f9u;
static const uint64_t PRIME64_4 = 0x85ebca77c2b2ae63u, PRIME64_5 = 0x27d4eb2f165667c5u;
static const uint64_t PRIME_MX1 = 0x165667919e3779f9u, PRIME_MX2 = 0x9fb21c651e98df25u;

static inline uint64_t word(const uint8_t *at) {
    uint64_t read;
    memcpy(&read, at, sizeof read);
    return read;
}

static inline uint32_t half_word(const uint8_t *at) {
    uint32_t read;
    memcpy(&read, at, sizeof read);
    return read;
}

static inline uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

/* The halves of the product of 128 bits, one xor the other. */
static inline uint64_t folded(uint64_t one, uint64_t other) {
    unsigned __int128 product = (unsigned __int128)one * other;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t value) {
    value = (value ^ value >> 37) * PRIME_MX1;
    return value ^ value >> 32;
}

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

static uint64_t of_more(const uint8_t *data, size_t size) {
    uint64_t sums[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    const uint8_t *last = data + size - STRIPE;
    size_t left = size;
    for (; left > BLOCK; data += BLOCK, left -= BLOCK) {
        for (int n = 0; n < BLOCK / STRIPE; n++) accumulate(sums, data + n * STRIPE, secret + n * 8);
        for (int i = 0; i < 8; i++)
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ word(secret + sizeof secret - STRIPE + i * 8)) * PRIME32_1;
    }
    for (int n = 0; n < (int)((left - 1) / STRIPE); n++) accumulate(sums, data + n * STRIPE, secret + n * 8);
    accumulate(sums, last, secret + sizeof secret - 71);
    uint64_t merged = size * PRIME64_1;
    for (int i = 0; i < 4; i++)
        merged += folded(sums[i * 2] ^ word(secret + 11 + i * 16), sums[i * 2 + 1] ^ word(secret + 19 + i * 16));
    return avalanche(merged);
}

static uint64_t xxh3(const uint8_t *data, size_t size) {
    return size <= 16 ? of_at_most_16(data, size) : size <= 240 ? of_at_most_240(data, size) : of_more(data, size);
}

#define LEAST_128 17
#define MOST_128 128

/* Of 17 to 128 bytes; the higher half first. */
static void xxh3_128(const uint8_t *data, size_t size, uint64_t *halves) {
    uint64_t low = size * PRIME64_1, high = 0;
    for (int i = (int)((size - 1) >> 5); i >= 0; i--) {
        const uint8_t *first = data + i * 16, *last = data + size - i * 16 - 16, *key = secret + i * 32;
        low = (low + mixed(first, key)) ^ (word(last) + word(last + 8));
        high = (high + mixed(last, key + 16)) ^ (word(first) + word(first + 8));
    }
    halves[0] = 0 - avalanche(low * PRIME64_1 + high * PRIME64_4 + size * PRIME64_2);
    halves[1] = avalanche(low + high);
}

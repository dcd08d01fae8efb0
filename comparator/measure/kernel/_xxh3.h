/* XXH3-64, seed 0, of long data in blocks of 1024 bytes, on both sides of a pair: beside the sums of _dots.h, so that
   what comes from memory is looked at once. https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md */

#include "_xxh3_parts.h"

#define DIGEST_BLOCK 512 /* elements of bfloat16 */
#define STRIPES 16       /* of a block, 64 bytes each */

typedef struct {
    uint64_t lanes[8];
} Digest;

#define ADD_STRIPE(LANES_OF, DATA, KEY)                                                                               \
    {                                                                                                                 \
        __m512i keyed = _mm512_xor_si512(DATA, _mm512_loadu_si512(KEY));                                              \
        __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));                                      \
        LANES_OF = _mm512_add_epi64(product, _mm512_add_epi64(LANES_OF, _mm512_shuffle_epi32(DATA, 0x4e)));           \
    }
#define END_BLOCK(LANES_OF)                                                                                           \
    {                                                                                                                 \
        __m512i mixed = _mm512_xor_si512(LANES_OF, _mm512_srli_epi64(LANES_OF, 47));                                  \
        mixed = _mm512_xor_si512(mixed, _mm512_loadu_si512(secret + sizeof secret - 64));                             \
        LANES_OF = _mm512_mullo_epi64(mixed, _mm512_set1_epi64(PRIME32_1));                                           \
    }

/* Adds whole blocks. */
DOTS_TARGET static void add_blocks(const uint16_t *from, size_t count, Digest *digest) {
    __m512i lanes = _mm512_loadu_si512(digest->lanes);
    for (size_t i = 0; i < count;) {
        for (int stripe = 0; stripe < STRIPES; stripe++, i += 32) {
            __m512i data = _mm512_loadu_si512(from + i);
            ADD_STRIPE(lanes, data, secret + 8 * stripe)
        }
        END_BLOCK(lanes)
    }
    _mm512_storeu_si512(digest->lanes, lanes);
}

/* The digest of `length` bytes, a multiple of a block, of which the last block was not added. */
DOTS_TARGET static uint64_t finished(const Digest *digest, const uint8_t *last, uint64_t length) {
    __m512i lanes = _mm512_loadu_si512(digest->lanes);
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        __m512i data = _mm512_loadu_si512(last + 64 * stripe);
        const uint8_t *key = stripe < STRIPES - 1 ? secret + 8 * stripe : secret + sizeof secret - 64 - 7;
        ADD_STRIPE(lanes, data, key)
    }
    uint64_t sums[8];
    _mm512_storeu_si512(sums, lanes);
    return merged(sums, length);
}

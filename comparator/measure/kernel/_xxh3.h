/* XXH3-64, seed 0, of long data in blocks of 1024 bytes, on both sides of a pair: beside the sums of _dots.h, so that
   what comes from memory is looked at once. What a block adds to the eight sums does not depend on what they are before
   it, so blocks are looked at in any order, by several threads, and joined in theirs.
   https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md */

#include "_xxh3_parts.h"

#define STRIPES 16 /* of a block, 64 bytes each */

typedef struct {
    uint64_t lanes[8];
} Digest;

/* Of a block of one side. Data is added to the lane beside its own, which is done at the end. */
typedef struct {
    __m512i products, data;
} DigestSide;

#define ADD_STRIPE(SIDE, DATA, KEY)                                                                                   \
    {                                                                                                                 \
        __m512i keyed = _mm512_xor_si512(DATA, _mm512_loadu_si512(KEY));                                              \
        __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));                                      \
        (SIDE).products = _mm512_add_epi64((SIDE).products, product);                                                 \
        (SIDE).data = _mm512_add_epi64((SIDE).data, DATA);                                                            \
    }

DOTS_TARGET INLINE __m512i digest_lanes(const DigestSide *side) {
    return _mm512_add_epi64(side->products, _mm512_shuffle_epi32(side->data, 0x4e));
}

DOTS_TARGET INLINE void store_digest(const DigestSide *side, uint64_t *to) {
    _mm512_storeu_si512(to, digest_lanes(side));
}

/* What the blocks of one side add. */
DOTS_TARGET static void sum_blocks(const uint16_t *from, size_t blocks, DigestSums *to, int at) {
    for (size_t block = 0; block < blocks; block++) {
        DigestSide side = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int stripe = 0; stripe < STRIPES; stripe++, from += 32) {
            __m512i data = _mm512_loadu_si512(from);
            ADD_STRIPE(side, data, secret + 8 * stripe)
        }
        store_digest(&side, to[block].lanes[at]);
    }
}

/* Adds what blocks add, one after the other, to the digests of both sides. */
DOTS_TARGET static void join_blocks(Digest *digests, const DigestSums *found, size_t blocks) {
    const __m512i key = _mm512_loadu_si512(secret + sizeof secret - 64), prime = _mm512_set1_epi64(PRIME32_1);
    __m512i lanes[2] = {_mm512_loadu_si512(digests[0].lanes), _mm512_loadu_si512(digests[1].lanes)};
    for (size_t block = 0; block < blocks; block++)
#pragma GCC unroll 2
        for (int side = 0; side < 2; side++) {
            __m512i sum = _mm512_add_epi64(lanes[side], _mm512_loadu_si512(found[block].lanes[side]));
            sum = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)), key);
            lanes[side] = _mm512_mullo_epi64(sum, prime);
        }
    _mm512_storeu_si512(digests[0].lanes, lanes[0]);
    _mm512_storeu_si512(digests[1].lanes, lanes[1]);
}

/* The digest of `length` bytes, a multiple of a block, of which the last block was not added. */
DOTS_TARGET static uint64_t finished(const Digest *digest, const uint8_t *last, uint64_t length) {
    DigestSide side = {_mm512_loadu_si512(digest->lanes), _mm512_setzero_si512()};
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        __m512i data = _mm512_loadu_si512(last + 64 * stripe);
        const uint8_t *key = stripe < STRIPES - 1 ? secret + 8 * stripe : secret + sizeof secret - 64 - 7;
        ADD_STRIPE(side, data, key)
    }
    uint64_t sums[8];
    _mm512_storeu_si512(sums, digest_lanes(&side));
    return merged(sums, length);
}

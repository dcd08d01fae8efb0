/* XXH3-64, seed 0, of long data in blocks of 1024 bytes, on both sides of a pair: beside the sums of _dots.h, so that
   what comes from memory is looked at once. https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md */

#define DIGEST_BLOCK 512 /* elements of bfloat16 */
#define STRIPES 16       /* of a block, 64 bytes each */

typedef struct {
    uint64_t lanes[8];
} Digest;

static const uint64_t first_lanes[8] = {0xC2B2AE3Du, 0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                        0x85EBCA77C2B2AE63u, 0x85EBCA77u, 0x27D4EB2F165667C5u, 0x9E3779B1u};
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
        LANES_OF = _mm512_mullo_epi64(mixed, _mm512_set1_epi64(0x9E3779B1));                                          \
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

static uint64_t word(const uint8_t *from) {
    uint64_t found;
    memcpy(&found, from, sizeof found);
    return found;
}

/* The digest of `length` bytes, a multiple of a block, of which the last block was not added. */
DOTS_TARGET static uint64_t finished(const Digest *digest, const uint8_t *last, uint64_t length) {
    __m512i lanes = _mm512_loadu_si512(digest->lanes);
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        __m512i data = _mm512_loadu_si512(last + 64 * stripe);
        const uint8_t *key = stripe < STRIPES - 1 ? secret + 8 * stripe : secret + sizeof secret - 64 - 7;
        ADD_STRIPE(lanes, data, key)
    }
    uint64_t found[8], sum = length * 0x9E3779B185EBCA87u;
    _mm512_storeu_si512(found, lanes);
    for (int i = 0; i < 4; i++) {
        const uint8_t *key = secret + 11 + 16 * i;
        unsigned __int128 product = (unsigned __int128)(found[2 * i] ^ word(key)) * (found[2 * i + 1] ^ word(key + 8));
        sum += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    sum = (sum ^ (sum >> 37)) * 0x165667919E3779F9u;
    return sum ^ (sum >> 32);
}

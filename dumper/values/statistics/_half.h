/* Half precisions by their bits. */

#ifndef TENSORTAP_HALF_H
#define TENSORTAP_HALF_H

#include <stdint.h>
#include <string.h>

static inline __attribute__((always_inline)) float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The magnitude is shifted into place and scaled, which is exact for subnormal numbers too, and has the bits of the
   significand where they belong also where it is no number. Compilers make vectors of signed comparisons. */
static inline __attribute__((always_inline)) float half_value(uint16_t half) {
    int32_t magnitude = half & 0x7fff, sign = half & 0x8000;
    float scaled = as_float((uint32_t)magnitude << 13) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &scaled, sizeof bits);
    bits |= (uint32_t)-(int32_t)(magnitude > 0x7bff) & 0x7f800000u;
    return as_float(bits | (uint32_t)sign << 16);
}

#endif

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

/* The magnitude is shifted into place and scaled, which is exact for subnormal numbers too. */
static inline __attribute__((always_inline)) float half_value(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu, bits;
    float scaled = as_float(magnitude << 13) * 0x1p112f;
    memcpy(&bits, &scaled, sizeof bits);
    bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : bits;
    return as_float(bits | (uint32_t)(half & 0x8000u) << 16);
}

#endif

/* Numbers of float32 in decimal digits, by exact integer arithmetic, where that fits into 128 bits; for the others printf
   and strtof do the same, which takes ten times as long.

   A number is mantissa / 2^shift. Every rounding is that of printf: to the nearest, ties to even. */

#include <stdint.h>
#include <string.h>

#ifdef __SIZEOF_INT128__
#define EXACT 1

typedef unsigned __int128 Wide;

#define MOST_PLACES 30 /* 10^30 and a mantissa of 24 bits are less than 2^124 */
#define MOST_SHIFT 90 /* 9 digits and so many bits are less than 2^120 */
#define MOST_DIGITS 9 /* they tell every number from all others */
#define TOP (1u << 23) /* the mantissa of a power of two */

static Wide powers[MOST_PLACES + 1];

static void fill_powers(void) {
    powers[0] = 1;
    for (int i = 1; i <= MOST_PLACES; i++) powers[i] = 10 * powers[i - 1];
}

typedef struct {
    uint32_t mantissa;
    int shift;
    int exponent; /* of ten: the number has this one, or the next */
} Binary;

/* 0 for a number that is not done here. */
static int binary_of(float magnitude, Binary *found) {
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    int power = (int)(bits >> 23 & 0xFF) - 127;
    found->shift = 23 - power;
    if (power == -127 || found->shift < 1 || found->shift > MOST_SHIFT) return 0;
    found->mantissa = (bits & (TOP - 1)) | TOP;
    /* log10(2) from below, rounded down; exact for exponents of this size */
    found->exponent = (int)((int64_t)power * 315652 >> 20);
    return MOST_DIGITS - 1 - found->exponent <= MOST_PLACES;
}

/* The number times 10^places, rounded; places may be negative. */
static uint64_t scaled(const Binary *number, int places) {
    Wide found, rest, half;
    if (places >= 0) {
        Wide whole = number->mantissa * powers[places];
        found = whole >> number->shift;
        rest = whole & (((Wide)1 << number->shift) - 1);
        half = (Wide)1 << (number->shift - 1);
    } else {
        Wide unit = powers[-places] << number->shift;
        found = number->mantissa / unit;
        rest = number->mantissa % unit;
        half = unit / 2;
    }
    return (uint64_t)(found + (rest > half || (rest == half && (found & 1))));
}

/* The first digits of the number, rounded. Returns their exponent of ten. */
static int leading(const Binary *number, int digits, uint64_t *found) {
    int exponent = number->exponent;
    *found = scaled(number, digits - 1 - exponent);
    if (*found >= (uint64_t)powers[digits]) *found = scaled(number, digits - 1 - ++exponent);
    if (*found >= (uint64_t)powers[digits]) *found /= 10, exponent++; /* rounded up to a power of ten */
    return exponent;
}

/* Whether digits / 10^places is nearer to the number than to any other of float32. */
static int reads_back(const Binary *number, uint64_t digits, int places) {
    Wide ours = (Wide)number->mantissa * powers[places > 0 ? places : 0];
    Wide theirs = (digits * powers[places < 0 ? -places : 0]) << number->shift;
    Wide unit = powers[places > 0 ? places : 0];
    int below = theirs < ours;
    Wide gap = 2 * (below ? ours - theirs : theirs - ours);
    if (below && number->mantissa == TOP) gap *= 2; /* the numbers below are twice as close */
    return gap < unit || (gap == unit && number->mantissa % 2 == 0);
}

/* The fewest digits that tell the number from all others. Returns their exponent of ten. */
static int fewest(const Binary *number, uint64_t *found) {
    int digits = MOST_DIGITS, exponent = leading(number, digits, found), places = digits - 1 - exponent;
    uint64_t fewer;
    for (; digits > 1; digits--, places--) {
        fewer = scaled(number, places - 1);
        if (!reads_back(number, fewer, places - 1)) break;
        *found = fewer;
    }
    if (digits > 2 && number->mantissa == TOP) {
        /* One digit less may tell it from the others when it is rounded up and not to the nearest. */
        fewer = scaled(number, places - 1);
        if (fewer % 10 != 9) fewer++;
        if (reads_back(number, fewer, places - 1)) *found = fewer, places--;
    }
    int length = 0;
    for (uint64_t left = *found; left; left /= 10) length++;
    return length - 1 - places;
}

/* The digits as text, without zeros at the end; returns how many they are. */
static int write_digits(uint64_t number, char *to) {
    char reversed[20];
    int count = 0;
    while (number && number % 10 == 0) number /= 10;
    for (; number; number /= 10) reversed[count++] = (char)('0' + number % 10);
    for (int i = 0; i < count; i++) to[i] = reversed[count - 1 - i];
    return count;
}

#else
static void fill_powers(void) {}
#endif

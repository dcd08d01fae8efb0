/* Included once for each instruction set: NAMED(name) is its name there, WIDTH the float64 in a vector, WIDEN(from) that
   many from float32 in memory; LOWER and HIGHER take their second argument where the first is no number. */

#define VECTORS (LANES / WIDTH)

typedef double NAMED(Doubles) __attribute__((vector_size(8 * WIDTH)));
typedef int64_t NAMED(Longs) __attribute__((vector_size(8 * WIDTH)));
typedef float NAMED(Singles) __attribute__((vector_size(8 * WIDTH)));
typedef int32_t NAMED(Integers) __attribute__((vector_size(8 * WIDTH)));

static inline NAMED(Doubles) NAMED(load)(const double *from) {
    NAMED(Doubles) loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

#define WORK float
#define LOAD(FROM) WIDEN(FROM)
#define VECTOR NAMED(Singles)
#define LOWER LOWER_SINGLE
#define HIGHER HIGHER_SINGLE
#define TYPED(NAME) NAMED(NAME##_single)
#include "_chunk.h"

#define WORK double
#define LOAD(FROM) NAMED(load)(FROM)
#define VECTOR NAMED(Doubles)
#define LOWER LOWER_DOUBLE
#define HIGHER HIGHER_DOUBLE
#define TYPED(NAME) NAMED(NAME##_double)
#include "_chunk.h"

/* Elements as float32, which holds each of them. */

#define EACH(TYPE, VALUE)                                                                                             \
    for (size_t i = 0; i < count; i++) {                                                                              \
        TYPE element;                                                                                                 \
        memcpy(&element, from + i * sizeof element, sizeof element);                                                  \
        to[i] = VALUE;                                                                                                \
    }                                                                                                                 \
    return;

static void NAMED(read_single)(const unsigned char *from, size_t count, Kind kind, float *to) {
    switch (kind) {
    case BF16: EACH(uint16_t, as_float((uint32_t)element << 16))
    case F16:
#ifdef READ_HALVES
        for (; count >= 8; count -= 8, from += 16, to += 8) READ_HALVES(from, to);
#endif
        EACH(uint16_t, half_value(element))
    case I8: EACH(int8_t, element)
    case U8: EACH(uint8_t, element)
    case BOOL: EACH(uint8_t, element != 0)
    case I16: EACH(int16_t, element)
    case U16: EACH(uint16_t, element)
    case F32: EACH(float, element)
    default: EACH(uint8_t, bytes_as[kind][element])
    }
}

/* Elements as float64; integers are added beside it, exactly. */

static void NAMED(read_double)(const unsigned char *from, size_t count, Kind kind, double *to) {
    switch (kind) {
    case I32: EACH(int32_t, element)
    case U32: EACH(uint32_t, element)
    case I64: EACH(int64_t, (double)element)
    case U64: EACH(uint64_t, (double)element)
    default: EACH(double, element)
    }
}

#define ADD_EACH(TYPE)                                                                                                \
    for (size_t i = 0; i < count; i++) {                                                                              \
        TYPE element;                                                                                                 \
        memcpy(&element, from + i * sizeof element, sizeof element);                                                  \
        upper += (int64_t)(element >> 32);                                                                            \
        lower += (uint64_t)element & 0xffffffffu;                                                                     \
    }

static void NAMED(add_integers)(const unsigned char *from, size_t count, Kind kind, Sums *sums) {
    int64_t upper = sums->upper;
    uint64_t lower = sums->lower;
    if (kind == I64) {
        ADD_EACH(int64_t)
    } else if (kind == U64) {
        ADD_EACH(uint64_t)
    } else {
        int64_t total = 0;
        for (size_t i = 0; i < count; i++) {
            uint32_t element;
            memcpy(&element, from + i * sizeof element, sizeof element);
            total += kind == I32 ? (int64_t)(int32_t)element : (int64_t)element;
        }
        upper += total >> 32;
        lower += (uint64_t)total & 0xffffffffu;
    }
    sums->upper = upper + (int64_t)(lower >> 32);
    sums->lower = lower & 0xffffffffu;
}

static void NAMED(add_all)(const unsigned char *data, size_t count, Kind kind, Sums *sums) {
    ALIGNED float single[CHUNK];
    ALIGNED double wide[CHUNK];
    for (size_t at = 0; at < count; at += CHUNK) {
        size_t some = count - at < CHUNK ? count - at : CHUNK;
        const unsigned char *from = data + at * item_bytes[kind];
        if (kind < F64) {
            NAMED(read_single)(from, some, kind, single);
            NAMED(add_chunk_single)(single, some, sums);
        } else {
            NAMED(read_double)(from, some, kind, wide);
            NAMED(add_chunk_double)(wide, some, sums);
            if (kind != F64) NAMED(add_integers)(from, some, kind, sums);
        }
    }
}

#undef NAMED
#undef WIDTH
#undef WIDEN
#undef READ_HALVES
#undef LOWER_SINGLE
#undef HIGHER_SINGLE
#undef LOWER_DOUBLE
#undef HIGHER_DOUBLE
#undef VECTORS
#undef EACH
#undef ADD_EACH

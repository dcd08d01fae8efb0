/* What the level stats keeps of an array in memory, in one pass, as reference.py defines it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "_half.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "elements are read as little-endian; without this module numpy does it"
#endif

#define LANES 16
#define CHUNK 512 /* elements that are looked at together; a multiple of LANES */
#define NUMBERS 7
#define LOCKED (256 << 10) /* bytes; less takes no longer than to let go of the interpreter lock and to get it back */
#define ALIGNED __attribute__((aligned(64)))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VERSIONS 1 /* one version of the loops for each instruction set, chosen when the module is imported */
#include <immintrin.h>
#endif

/* In the order of _KINDS in __init__.py. */
typedef enum {
    BF16, F16, F32, E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, E8M0FNU, I8, U8, BOOL, I16, U16, /* exact in float32 */
    F64, I32, U32, I64, U64,
    KIND_COUNT
} Kind;

static const size_t item_bytes[KIND_COUNT] = {
    [BF16] = 2, [F16] = 2, [F32] = 4, [E4M3FN] = 1, [E4M3FNUZ] = 1, [E5M2] = 1, [E5M2FNUZ] = 1, [E8M0FNU] = 1, [I8] = 1,
    [U8] = 1, [BOOL] = 1, [I16] = 2, [U16] = 2, [F64] = 8, [I32] = 4, [U32] = 4, [I64] = 8, [U64] = 8,
};

typedef struct {
    double total[LANES], absolute[LANES], square[LANES], low, high;
    int64_t upper;  /* of the total of wide integers: times 2 to the 32 */
    uint64_t lower; /* below 2 to the 32 */
    size_t nan, infinite;
} Sums;

/* Values of bytes, and of the types of 8 bits. */

static float bytes_as[E8M0FNU + 1][256];

static float small_float(int byte, int mantissa_bits, int bias) {
    int exponent = (byte & 0x7f) >> mantissa_bits, mantissa = byte & ((1 << mantissa_bits) - 1);
    int hidden = exponent ? 1 << mantissa_bits : 0;
    float magnitude = ldexpf((float)(mantissa + hidden), (exponent ? exponent : 1) - bias - mantissa_bits);
    return byte & 0x80 ? -magnitude : magnitude;
}

static void fill_tables(void) {
    for (int byte = 0; byte < 256; byte++) {
        int magnitude = byte & 0x7f;
        bytes_as[E4M3FN][byte] = magnitude == 0x7f ? NAN : small_float(byte, 3, 7);
        bytes_as[E4M3FNUZ][byte] = byte == 0x80 ? NAN : small_float(byte, 3, 8);
        bytes_as[E5M2][byte] = magnitude > 0x7c ? NAN : small_float(byte, 2, 15);
        bytes_as[E5M2FNUZ][byte] = byte == 0x80 ? NAN : small_float(byte, 2, 16);
        bytes_as[E8M0FNU][byte] = byte == 0xff ? NAN : ldexpf(1, byte - 127);
    }
    bytes_as[E5M2][0x7c] = INFINITY;
    bytes_as[E5M2][0xfc] = -INFINITY;
}

static int all_finite(const Sums *sums) {
    double all = 0;
    for (int lane = 0; lane < LANES; lane++) all += sums->absolute[lane];
    return isfinite(all);
}

/* The elements of A where MASK is set, else those of B. */
#define CHOOSE(VECTOR, BITS, MASK, A, B) ((VECTOR)(((BITS)(A) & (MASK)) | ((BITS)(B) & ~(MASK))))

#define NAMED(NAME) NAME##_plain
#define WIDTH 2
#define WIDEN(FROM) ((NAMED(Doubles)){(FROM)[0], (FROM)[1]})
#define LOWER_SINGLE(A, B) CHOOSE(NAMED(Singles), NAMED(Integers), (A) < (B), A, B)
#define HIGHER_SINGLE(A, B) CHOOSE(NAMED(Singles), NAMED(Integers), (A) > (B), A, B)
#define LOWER_DOUBLE(A, B) CHOOSE(NAMED(Doubles), NAMED(Longs), (A) < (B), A, B)
#define HIGHER_DOUBLE(A, B) CHOOSE(NAMED(Doubles), NAMED(Longs), (A) > (B), A, B)
#include "_pass.h"

#ifdef VERSIONS
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#define NAMED(NAME) NAME##_avx2
#define WIDTH 4
#define WIDEN(FROM) ((NAMED(Doubles))_mm256_cvtps_pd(_mm_loadu_ps(FROM)))
#define READ_HALVES(FROM, TO) _mm256_storeu_ps(TO, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(FROM)))) /* 8 */
#define LOWER_SINGLE(A, B) (NAMED(Singles)) _mm256_min_ps((__m256)(A), (__m256)(B))
#define HIGHER_SINGLE(A, B) (NAMED(Singles)) _mm256_max_ps((__m256)(A), (__m256)(B))
#define LOWER_DOUBLE(A, B) (NAMED(Doubles)) _mm256_min_pd((__m256d)(A), (__m256d)(B))
#define HIGHER_DOUBLE(A, B) (NAMED(Doubles)) _mm256_max_pd((__m256d)(A), (__m256d)(B))
#include "_pass.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c")
#define NAMED(NAME) NAME##_avx512
#define WIDTH 8
#define WIDEN(FROM) ((NAMED(Doubles))_mm512_cvtps_pd(_mm256_loadu_ps(FROM)))
#define READ_HALVES(FROM, TO) _mm256_storeu_ps(TO, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(FROM)))) /* 8 */
#define LOWER_SINGLE(A, B) (NAMED(Singles)) _mm512_min_ps((__m512)(A), (__m512)(B))
#define HIGHER_SINGLE(A, B) (NAMED(Singles)) _mm512_max_ps((__m512)(A), (__m512)(B))
#define LOWER_DOUBLE(A, B) (NAMED(Doubles)) _mm512_min_pd((__m512d)(A), (__m512d)(B))
#define HIGHER_DOUBLE(A, B) (NAMED(Doubles)) _mm512_max_pd((__m512d)(A), (__m512d)(B))
#include "_pass.h"
#pragma GCC pop_options
#endif

static void (*chosen)(const unsigned char *, size_t, Kind, Sums *) = add_all_plain;

/* Choose the widest version that this processor has, up to the one that is given. */
static int choose(int widest) {
    (void)widest; /* where there is one version */
    chosen = add_all_plain;
#ifdef VERSIONS
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c")) {
        chosen = add_all_avx512;
        return 2;
    }
    if (widest > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        chosen = add_all_avx2;
        return 1;
    }
#endif
    return 0;
}

/* Add rows that do not follow on one another: a chunk at a time is brought together. */
static void add_rows(const unsigned char *from, size_t width, size_t height, size_t pitch, Kind kind, Sums *sums) {
    ALIGNED unsigned char chunk[CHUNK * sizeof(double)];
    const size_t room = CHUNK * item_bytes[kind];
    size_t filled = 0;
    for (size_t row = 0; row < height; row++) {
        for (size_t at = 0; at < width;) {
            size_t some = width - at < room - filled ? width - at : room - filled;
            memcpy(chunk + filled, from + row * pitch + at, some);
            at += some;
            filled += some;
            if (filled < room) continue;
            chosen(chunk, CHUNK, kind, sums);
            filled = 0;
        }
    }
    chosen(chunk, filled / item_bytes[kind], kind, sums);
}

/* NUMBERS of `height` rows of `width` bytes that begin `pitch` bytes from each other, of elements that are perhaps not
   aligned. Other modules call it by its address. */
static void statistics_into(double *to, const void *from, size_t width, size_t height, size_t pitch, int kind) {
    Sums sums = {.low = INFINITY, .high = -INFINITY};
    size_t count = width / item_bytes[kind] * height;
    if (height == 1 || pitch == width)
        chosen(from, count, (Kind)kind, &sums);
    else
        add_rows(from, width, height, pitch, (Kind)kind, &sums);
    double total = 0, absolute = 0, square = 0;
    for (int lane = 0; lane < LANES; lane++) {
        total += sums.total[lane];
        absolute += sums.absolute[lane];
        square += sums.square[lane];
    }
    if (kind >= I32) total = (double)sums.upper * 0x1p32 + (double)sums.lower;
    size_t finite = count - sums.nan - sums.infinite;
    double elements = finite ? (double)finite : 1;
    double numbers[NUMBERS] = {finite ? sums.low : 0, finite ? sums.high : 0, total / elements, absolute / elements,
                               sqrt(square), (double)sums.nan, (double)sums.infinite};
    memcpy(to, numbers, sizeof numbers);
}

static PyObject *statistics(PyObject *module, PyObject *arguments) {
    (void)module;
    unsigned long long address;
    Py_ssize_t width, height, pitch;
    int kind;
    double numbers[NUMBERS];
    if (!PyArg_ParseTuple(arguments, "Knnni", &address, &width, &height, &pitch, &kind)) return NULL;
    if (width < 0 || height < 0 || pitch < 0 || kind < 0 || kind >= KIND_COUNT) {
        PyErr_SetString(PyExc_ValueError, "less than no elements, or a kind that does not exist");
        return NULL;
    }
    const void *from = (const void *)(uintptr_t)address;
    if (height == 0 || width <= LOCKED / height) {
        statistics_into(numbers, from, (size_t)width, (size_t)height, (size_t)pitch, kind);
    } else {
        Py_BEGIN_ALLOW_THREADS
        statistics_into(numbers, from, (size_t)width, (size_t)height, (size_t)pitch, kind);
        Py_END_ALLOW_THREADS
    }
    return PyBytes_FromStringAndSize((const char *)numbers, sizeof numbers);
}

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    return PyLong_FromLong(choose((int)most));
}

static PyMethodDef methods[] = {
    {"statistics", statistics, METH_VARARGS, "statistics(address, width, height, pitch, kind): seven float64, little-endian, of rows of elements in memory"},
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512. Returns what is used."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_compiled", .m_doc = SOURCES, .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__compiled(void) {
    choose(2);
    fill_tables();
    PyObject *module = PyModule_Create(&definition);
    PyObject *address = PyLong_FromUnsignedLongLong((uintptr_t)statistics_into);
    if (module == NULL || address == NULL || PyModule_AddObjectRef(module, "INTO", address) < 0) Py_CLEAR(module);
    Py_XDECREF(address);
    return module;
}

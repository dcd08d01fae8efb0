/* CRC-32 of zip archives (polynomial 0x04c11db7, reflected), 64 bytes at a time by carry-less multiplication.

Method: "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009). The message is folded to
16 bytes that leave the same remainder, which a table then gives. Constants are powers of x modulo the polynomial. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define FOLDS 1
#include <immintrin.h>
#endif

#define POLYNOMIAL 0xedb88320u /* bit 31 is the coefficient of x^0 */
#define ALONE 16384            /* bytes from which others may run meanwhile */

static uint32_t table[256];

static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; bit++) rest = rest >> 1 ^ (rest & 1 ? POLYNOMIAL : 0);
        table[byte] = rest;
    }
}

static uint32_t by_table(uint32_t rest, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++) rest = rest >> 8 ^ table[(rest ^ data[i]) & 0xff];
    return rest;
}

#ifdef FOLDS
/* x to a power modulo the polynomial; times x, since a product of reflected numbers is one place short. */
static uint64_t power(int exponent) {
    uint32_t rest = 0x80000000u;
    while (exponent--) rest = rest >> 1 ^ (rest & 1 ? POLYNOMIAL : 0);
    return (uint64_t)rest << 1;
}

static uint64_t by_four[2], by_one[2]; /* what takes 16 bytes over the next 64, and over the next 16 */

static void fill_powers(void) {
    by_four[0] = power(4 * 128 + 32);
    by_four[1] = power(4 * 128 - 32);
    by_one[0] = power(128 + 32);
    by_one[1] = power(128 - 32);
}

#define FOLDING __attribute__((target("pclmul,sse4.1")))

FOLDING static inline __m128i load(const uint8_t *data) { return _mm_loadu_si128((const __m128i *)data); }

FOLDING static inline __m128i fold(__m128i block, __m128i powers, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(block, powers, 0x00), high = _mm_clmulepi64_si128(block, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* Of at least 64 bytes. */
FOLDING static uint32_t by_folding(uint32_t rest, const uint8_t *data, size_t size) {
    __m128i powers = load((const uint8_t *)by_four);
    __m128i a = _mm_xor_si128(load(data), _mm_cvtsi32_si128((int)rest));
    __m128i b = load(data + 16), c = load(data + 32), d = load(data + 48);
    data += 64, size -= 64;
    for (; size >= 64; data += 64, size -= 64) {
        a = fold(a, powers, load(data));
        b = fold(b, powers, load(data + 16));
        c = fold(c, powers, load(data + 32));
        d = fold(d, powers, load(data + 48));
    }
    powers = load((const uint8_t *)by_one);
    a = fold(fold(fold(a, powers, b), powers, c), powers, d);
    for (; size >= 16; data += 16, size -= 16) a = fold(a, powers, load(data));
    uint8_t last[16];
    _mm_storeu_si128((__m128i *)last, a);
    return by_table(by_table(0, last, sizeof last), data, size);
}
#endif

static int fast; /* the processor has the instructions */

static uint32_t update(uint32_t rest, const uint8_t *data, size_t size) {
#ifdef FOLDS
    if (fast && size >= 64) return by_folding(rest, data, size);
#endif
    return by_table(rest, data, size);
}

static PyObject *crc32(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    unsigned int value;
    if (!PyArg_ParseTuple(arguments, "y*I", &data, &value)) return NULL;
    uint32_t rest = ~(uint32_t)value;
    if (data.len < ALONE) {
        rest = update(rest, data.buf, (size_t)data.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        rest = update(rest, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(~rest & 0xffffffffu);
}

static PyObject *is_fast(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
    return PyBool_FromLong(fast);
}

static PyMethodDef methods[] = {
    {"crc32", crc32, METH_VARARGS, "crc32(data, value): as zlib's; slower than it where not is_fast()"},
    {"is_fast", is_fast, METH_NOARGS, "is_fast(): whether this processor has the instructions"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    fill_table();
#ifdef FOLDS
    fill_powers();
    fast = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#endif
    return PyModuleDef_Init(&definition);
}

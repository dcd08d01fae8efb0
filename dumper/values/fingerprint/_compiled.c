/* The two sums of a fingerprint, as reference.py defines them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are read as little-endian; without this module numpy does it"
#endif

#define STRIPES 8
#define LANES 16
#define BLOCK (STRIPES * LANES * 8)
#define STRAND 0x9E3779B97F4A7C15u
#define LOCKED (128 << 10) /* bytes; less takes no longer than to let go of the interpreter lock and to get it back */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define VERSIONS 1 /* one version for each instruction set, chosen when the module is imported */
#endif

typedef struct {
    uint64_t first, second;
} Sums;

/* The outputs of SplitMix64 with seed 0, in turn for the first sum and for the second. */
static const uint64_t stripe_keys[STRIPES][2] = {
    {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u}, {0x06c45d188009454fu, 0xf88bb8a8724c81ecu},
    {0x1b39896a51a8749bu, 0x53cb9f0c747ea2eau}, {0x2c829abe1f4532e1u, 0xc584133ac916ab3cu},
    {0x3ee5789041c98ac3u, 0xf3b8488c368cb0a6u}, {0x657eecdd3cb13d09u, 0xc2d326e0055bdef6u},
    {0x8621a03fe0bbdb7bu, 0x8e1f7555983aa92fu}, {0xb54e0f1600cc4d19u, 0x84bb3f97971d80abu},
};

#define NAMED(NAME) NAME##_plain
#define TARGET
#define LANES_TYPE uint64_t
#define GROUP 1
#define PRODUCT(WORD) (((WORD) & 0xFFFFFFFFu) * ((WORD) >> 32))
#include "_block.h"
#undef NAMED
#undef TARGET
#undef LANES_TYPE
#undef GROUP
#undef PRODUCT

#ifdef VERSIONS
typedef uint64_t Lanes4 __attribute__((vector_size(32)));
#define NAMED(NAME) NAME##_avx2
#define TARGET __attribute__((target("avx2")))
#define LANES_TYPE Lanes4
#define GROUP 4
#define PRODUCT(WORD) ((Lanes4)_mm256_mul_epu32((__m256i)(WORD), (__m256i)((WORD) >> 32)))
#include "_block.h"
#undef NAMED
#undef TARGET
#undef LANES_TYPE
#undef GROUP
#undef PRODUCT

typedef uint64_t Lanes8 __attribute__((vector_size(64)));
#define NAMED(NAME) NAME##_avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl")))
#define LANES_TYPE Lanes8
#define GROUP 8
#define PRODUCT(WORD) ((Lanes8)_mm512_mul_epu32((__m512i)(WORD), (__m512i)((WORD) >> 32)))
#include "_block.h"
#endif

static Sums (*chosen)(const unsigned char *, size_t) = sums_of_plain;

/* Choose the widest version that this processor has, up to the one that is given. */
static int choose(int widest) {
    chosen = sums_of_plain;
#ifdef VERSIONS
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        chosen = sums_of_avx512;
        return 2;
    }
    if (widest > 0 && __builtin_cpu_supports("avx2")) {
        chosen = sums_of_avx2;
        return 1;
    }
#endif
    return 0;
}

static PyObject *block_sums(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer data;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0) return NULL;
    Sums sums;
    if (data.len < LOCKED) {
        sums = chosen(data.buf, (size_t)data.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        sums = chosen(data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((const char *)&sums, sizeof sums);
}

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    return PyLong_FromLong(choose((int)most));
}

static PyMethodDef methods[] = {
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512. Returns what is used."},
    {"block_sums", block_sums, METH_O, "block_sums(data): 16 bytes, both sums as little-endian numbers of 64 bits"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    choose(2);
    return PyModuleDef_Init(&definition);
}

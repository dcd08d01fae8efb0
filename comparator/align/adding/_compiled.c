/* The sum of several arrays of half precision, as reference.py defines it: added in float32 one after the other, rounded
   once. What is added lies in the first cache. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_half.h"

#define BLOCK 2048 /* elements that are added at a time */
#define LOCKED (64 << 10) /* elements; fewer take no longer than to let go of the interpreter lock and to get it back */

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__)
#define VERSIONED 1
#endif

typedef enum { BF16, F16, KINDS } Kind;

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* To the nearest, ties to even. */
INLINE uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value), upper = bits >> 16;
    uint32_t rounded = (bits + 0x7fffu + (upper & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (upper & 0x8000u) | 0x7fc0u : rounded);
}

/* Compilers make vectors of signed comparisons. */
INLINE uint16_t to_half(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u;
    int32_t magnitude = (int32_t)(bits & 0x7fffffffu), payload = magnitude >> 13 & 0x3ff;
    int32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    /* The last bit of the sum is that of subnormal numbers. */
    int32_t small = (int32_t)bits_of(as_float((uint32_t)magnitude) + 0.5f) - 0x3f000000;
    int32_t found = magnitude < 0x38800000 ? small : normal;
    found = magnitude >= 0x477ff000 ? 0x7c00 : found;
    found = magnitude > 0x7f800000 ? 0x7c00 | payload | (payload == 0) : found;
    return (uint16_t)(sign | (uint32_t)found);
}

INLINE void add_all(const uint16_t *const *members, size_t count, size_t size, Kind kind, int from_zero, uint16_t *to) {
    float sums[BLOCK];
    for (size_t at = 0; at < size; at += BLOCK) {
        size_t here = size - at < BLOCK ? size - at : BLOCK;
        for (size_t m = 0; m < count; m++) {
            const uint16_t *from = members[m] + at;
            if (m == 0 && from_zero) memset(sums, 0, sizeof sums);
            if (m == 0 && !from_zero) {
                for (size_t i = 0; i < here; i++)
                    sums[i] = kind == BF16 ? as_float((uint32_t)from[i] << 16) : half_value(from[i]);
                continue;
            }
            if (kind == BF16)
                for (size_t i = 0; i < here; i++) sums[i] += as_float((uint32_t)from[i] << 16);
            else
                for (size_t i = 0; i < here; i++) sums[i] += half_value(from[i]);
        }
        if (kind == BF16)
            for (size_t i = 0; i < here; i++) to[at + i] = to_bf16(sums[i]);
        else
            for (size_t i = 0; i < here; i++) to[at + i] = to_half(sums[i]);
    }
}

typedef void Pass(const uint16_t *const *members, size_t count, size_t size, Kind kind, int from_zero, uint16_t *to);

static void pass_plain(const uint16_t *const *members, size_t count, size_t size, Kind kind, int from_zero, uint16_t *to) {
    add_all(members, count, size, kind, from_zero, to);
}
#ifdef VERSIONED
__attribute__((target("avx2"))) static void pass_avx2(const uint16_t *const *members, size_t count, size_t size, Kind kind,
                                                      int from_zero, uint16_t *to) {
    add_all(members, count, size, kind, from_zero, to);
}
#endif

static Pass *chosen = pass_plain;

static PyObject *add(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *given;
    Py_buffer out;
    int kind, from_zero;
    if (!PyArg_ParseTuple(arguments, "O!ipw*", &PyTuple_Type, &given, &kind, &from_zero, &out)) return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(given), held = 0, size = out.len / 2;
    Py_buffer *buffers = PyMem_Malloc((size_t)count * sizeof *buffers + 1);
    const uint16_t **members = PyMem_Malloc((size_t)count * sizeof *members + 1);
    int good = buffers != NULL && members != NULL;
    if (!good) PyErr_NoMemory();
    if (good && (count < 1 || kind < 0 || kind >= KINDS || out.len % 2 || (uintptr_t)out.buf % 2)) {
        PyErr_SetString(PyExc_ValueError, "nothing that is added here");
        good = 0;
    }
    while (good && held < count) {
        good = PyObject_GetBuffer(PyTuple_GET_ITEM(given, held), &buffers[held], PyBUF_SIMPLE) == 0;
        if (!good) break;
        members[held] = buffers[held].buf;
        if (buffers[held].len != out.len || (uintptr_t)buffers[held].buf % 2) {
            PyErr_SetString(PyExc_ValueError, "a summand of another size or alignment");
            good = 0;
        }
        held++;
    }
    if (good && size < LOCKED) {
        chosen(members, (size_t)count, (size_t)size, (Kind)kind, from_zero, out.buf);
    } else if (good) {
        Py_BEGIN_ALLOW_THREADS
        chosen(members, (size_t)count, (size_t)size, (Kind)kind, from_zero, out.buf);
        Py_END_ALLOW_THREADS
    }
    while (held) PyBuffer_Release(&buffers[--held]);
    PyMem_Free(buffers);
    PyMem_Free(members);
    PyBuffer_Release(&out);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, "add(members, kind, from_zero, out): the sum of members, in the order given"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
#ifdef VERSIONED
    if (__builtin_cpu_supports("avx2")) chosen = pass_avx2;
#endif
    return PyModuleDef_Init(&definition);
}

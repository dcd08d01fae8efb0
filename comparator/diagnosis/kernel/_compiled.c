/* Sums over the rows and the channels of a tap's two matrices, as reference.py defines them.

Elements are taken in float32, as stored or converted. A few of them are added in float32 (BLOCK of a row, TOGETHER of a
channel), then all in float64. Products may be fused with sums. So results agree with the reference but for the last bits
of float32. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "_half.h"

#define LANES 8
#define BLOCK 256  /* channels that are looked at together; a multiple of LANES */
#define TOGETHER 8 /* rows that are looked at together, so that sums of channels are loaded and stored seldom */
#define AHEAD 512  /* channels further on that are asked for */
#define SUMS 5     /* of a row */
#define INFINITE 0x7f800000
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VERSIONS 1 /* one version of the loops for each instruction set, chosen when they are called */
#endif

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
typedef double v4d __attribute__((vector_size(32)));

typedef struct {
    v4d first, second; /* lanes 0 to 3, and 4 to 7 */
} Sum;

typedef enum { BF16, F16, F32, TABLE, KINDS } Kind;
static const Py_ssize_t item_size[KINDS] = {2, 2, 4, 1};

typedef struct {
    const char *data;
    ptrdiff_t stride; /* bytes from row to row; may be negative */
    Kind kind;
    const float *table; /* of kind TABLE: the value of each byte */
} Side;

typedef struct {
    Side first, second;
    const float *weights; /* per channel; NULL for none */
    size_t rows, channels;
    int parts;  /* the sides are a midpoint and what was added to it, not a baseline and a target */
    int finite; /* all is known to be finite */
} Task;

enum { BASELINE, TARGET, MIDDLE, ADDED, PRODUCT, TOTAL, SIZES, NUMBERS }; /* of rows, `row_numbers` of reference.py */

#define FEW_LEFT 32 /* of so many the one that is looked for is found by insertion */
#define SPARE 8     /* numbers that are stored beyond those that are meant */
#define ROOM(COUNT) (3 * ((COUNT) + SPARE))

/* Like numpy's: NaN where either is. */
INLINE double larger_of(double a, double b) { return (a > b) | (a != a) ? a : b; }
INLINE double smaller_of(double a, double b) { return (a < b) | (a != a) ? a : b; }

/* What is asked of channels (`standing_out` of reference.py), and what is usual. */
typedef struct {
    double rows, share, least, z, tiny;
} Usual;

typedef struct {
    double ratio, factor, error, scaled;
} Standing;

/* What is found of one channel, of which a factor explains so much. */
INLINE Standing stands(double energy, double size, double product, double explained, const Usual *usual) {
    double own = larger_of(larger_of(usual->least, size * usual->share), usual->tiny);
    double factor = product / larger_of(size, usual->tiny);
    double error = sqrt(larger_of(energy - explained, 0) / usual->rows / larger_of(size, usual->tiny));
    Standing found = {sqrt(energy / own), factor, error, fabs(factor) * sqrt(size / own)};
    return found;
}

/* Sums of channels have room for a multiple of the lanes. */
INLINE size_t padded(size_t channels) { return (channels + LANES - 1) / LANES * LANES; }

#define NAMED(NAME) NAME##_plain
#include "_loops.h"
#include "_vectors.h"
#undef NAMED

static int widest = 2; /* version that may be used */

#ifdef VERSIONS
#include <immintrin.h>
#define REGISTERS 1 /* of 32 bytes */

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAMED(NAME) NAME##_avx2
#include "_loops.h"
#include "_vectors.h"
#undef NAMED
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define COMPRESS 1
#define NAMED(NAME) NAME##_avx512
#include "_loops.h"
#include "_vectors.h"
#undef NAMED
#pragma GCC pop_options

static int version(void) {
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return widest > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#define CALL(NAME, ...)                                                                                               \
    switch (version()) {                                                                                              \
    case 2: NAME##_avx512(__VA_ARGS__); break;                                                                        \
    case 1: NAME##_avx2(__VA_ARGS__); break;                                                                          \
    default: NAME##_plain(__VA_ARGS__);                                                                               \
    }
#else
static int version(void) { return 0; }
#define CALL(NAME, ...) NAME##_plain(__VA_ARGS__);
#endif

/* A buffer as one side. The rows must lie within it, which a matrix that numpy made does. */
static int fill(Side *side, Py_buffer *buffer, int kind, const Py_buffer *table, Task *task) {
    if (kind < 0 || kind >= KINDS || buffer->ndim != 2 || buffer->itemsize != item_size[kind] ||
        (buffer->shape[1] > 1 && buffer->strides[1] != item_size[kind])) {
        PyErr_SetString(PyExc_ValueError, "expected a matrix of the kind that was said, its channels side by side");
        return 0;
    }
    if (kind == TABLE && (table->buf == NULL || table->len != 256 * (Py_ssize_t)sizeof(float))) {
        PyErr_SetString(PyExc_ValueError, "a kind with a table needs one of 256 float32 values");
        return 0;
    }
    if ((uintptr_t)buffer->buf % (uintptr_t)item_size[kind] || buffer->strides[0] % item_size[kind]) {
        PyErr_SetString(PyExc_ValueError, "a matrix that is not aligned");
        return 0;
    }
    *side = (Side){buffer->buf, buffer->strides[0], (Kind)kind, table->buf};
    task->rows = (size_t)buffer->shape[0];
    task->channels = (size_t)buffer->shape[1];
    return 1;
}

typedef struct {
    Py_buffer first, second, table_first, table_second, weights;
} Buffers;

static void release(Buffers *buffers) {
    Py_buffer *all[] = {&buffers->first, &buffers->second, &buffers->table_first, &buffers->table_second,
                        &buffers->weights};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->obj) PyBuffer_Release(all[i]);
}

/* The task of `(first, kind, table, second, kind, table, weights, parts, finite)`. */
static int prepare(PyObject *arguments, Buffers *buffers, Task *task) {
    PyObject *first, *second;
    int kind_first, kind_second;
    memset(buffers, 0, sizeof *buffers);
    if (!PyArg_ParseTuple(arguments, "Oiz*Oiz*z*pp", &first, &kind_first, &buffers->table_first, &second, &kind_second,
                          &buffers->table_second, &buffers->weights, &task->parts, &task->finite))
        return 0;
    if (PyObject_GetBuffer(first, &buffers->first, PyBUF_STRIDED_RO) ||
        PyObject_GetBuffer(second, &buffers->second, PyBUF_STRIDED_RO))
        return 0;
    if (!fill(&task->first, &buffers->first, kind_first, &buffers->table_first, task)) return 0;
    size_t rows = task->rows, channels = task->channels;
    if (!fill(&task->second, &buffers->second, kind_second, &buffers->table_second, task)) return 0;
    task->weights = buffers->weights.buf;
    if (rows != task->rows || channels != task->channels ||
        (task->weights && buffers->weights.len != (Py_ssize_t)(channels * sizeof(float)))) {
        PyErr_SetString(PyExc_ValueError, "matrices of two shapes, or weights of another number of channels");
        return 0;
    }
    return 1;
}

static int is_long(const Py_buffer *buffer, size_t count, size_t size) {
    if (buffer->len == (Py_ssize_t)(count * size)) return 1;
    PyErr_SetString(PyExc_ValueError, "a buffer of another length than rows and channels ask for");
    return 0;
}

static PyObject *rows(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *what, *result = NULL;
    Py_buffer sums, counts, energy;
    if (!PyArg_ParseTuple(arguments, "O!w*z*z*", &PyTuple_Type, &what, &sums, &counts, &energy)) return NULL;
    Buffers buffers;
    Task task;
    if (!prepare(what, &buffers, &task)) goto done;
    if (!is_long(&sums, SUMS * task.rows, sizeof(double)) ||
        (counts.buf && !is_long(&counts, 4 * task.rows, sizeof(int64_t))) ||
        (energy.buf && !is_long(&energy, padded(task.channels), sizeof(double))))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    CALL(rows, &task, sums.buf, counts.buf, energy.buf)
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&buffers);
    PyBuffer_Release(&sums);
    if (counts.obj) PyBuffer_Release(&counts);
    if (energy.obj) PyBuffer_Release(&energy);
    return result;
}

/* Whether there is a factor for each row that is chosen, and the matrices have it. */
static int are_rows(const Py_buffer *chosen, const Py_buffer *factors, const Task *task) {
    size_t count = (size_t)chosen->len / sizeof(int64_t);
    if (!is_long(chosen, count, sizeof(int64_t)) || !is_long(factors, count, sizeof(float))) return 0;
    const int64_t *numbers = chosen->buf;
    for (size_t i = 0; i < count; i++) {
        if (numbers[i] >= 0 && (size_t)numbers[i] < task->rows) continue;
        PyErr_SetString(PyExc_IndexError, "a row that the matrices do not have");
        return 0;
    }
    return 1;
}

static PyObject *channels(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *what, *result = NULL;
    Py_buffer chosen, factors, sums;
    if (!PyArg_ParseTuple(arguments, "O!y*y*w*", &PyTuple_Type, &what, &chosen, &factors, &sums)) return NULL;
    Buffers buffers;
    Task task;
    if (!prepare(what, &buffers, &task) || !are_rows(&chosen, &factors, &task) ||
        !is_long(&sums, 4 * padded(task.channels), sizeof(double)))
        goto done;
    task.rows = (size_t)chosen.len / sizeof(int64_t);
    Py_BEGIN_ALLOW_THREADS
    CALL(channels, &task, chosen.buf, factors.buf, sums.buf)
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&buffers);
    PyBuffer_Release(&chosen);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&sums);
    return result;
}

static PyObject *arrays(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *what, *result = NULL;
    Py_buffer chosen, factors, middle, added;
    if (!PyArg_ParseTuple(arguments, "O!y*y*w*w*", &PyTuple_Type, &what, &chosen, &factors, &middle, &added)) return NULL;
    Buffers buffers;
    Task task;
    if (!prepare(what, &buffers, &task) || !are_rows(&chosen, &factors, &task)) goto done;
    task.rows = (size_t)chosen.len / sizeof(int64_t);
    if (!is_long(&middle, task.rows * task.channels, sizeof(float)) ||
        !is_long(&added, task.rows * task.channels, sizeof(float)))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    CALL(arrays, &task, chosen.buf, factors.buf, middle.buf, added.buf)
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&buffers);
    PyBuffer_Release(&chosen);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&middle);
    PyBuffer_Release(&added);
    return result;
}

#include "_median.h"

#include "_channels.h"

#include "_numbers.h"

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    widest = (int)most;
    return PyLong_FromLong(version());
}

static PyMethodDef methods[] = {
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512. Returns what is used."},
    {"rows", rows, METH_VARARGS, "rows((first, kind, table, second, kind, table, weights, parts, finite), sums, counts, energy)"},
    {"channels", channels, METH_VARARGS, "channels((first, ...), rows, factors, sums)"},
    {"arrays", arrays, METH_VARARGS, "arrays((first, ...), rows, factors, middle, added): of rows, each times its factor"},
    {"row_numbers", row_numbers, METH_VARARGS, "row_numbers(sums, parts, tiny, numbers, error, cosine): see reference.py"},
    {"add_parts", add_parts, METH_VARARGS, "add_parts((lanes, ...), sums): of channels over several parts of the rows, in order"},
    {"standing_out", standing_out, METH_VARARGS, "standing_out(energy, size, product, rows, share, least, z, tiny): see reference.py"},
    {"median", median, METH_O, "median(values): of a vector of float32 or float64; NaN where one takes part, and of none"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

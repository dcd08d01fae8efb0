/* One pass over two arrays: everything that measuring their difference takes.

The order of every sum is that of reference.py, to the bit: a row is summed in 8 lanes (element i goes to lane i mod 8),
lanes l and l + 4 are added, then l and l + 2, then both; rows are added one after the other. Where both sides are of few
bits (_narrow.h) a block of a lane is summed in float32. Products are rounded before they are added, so this file must
be compiled without contraction (-ffp-contract=off). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "_half.h"

#define LANES 8
#define BLOCK 1024 /* elements that are converted at a time; a multiple of LANES */
#define COLUMNS 6  /* of the table of rows */
#define TOGETHER 16 /* rows whose energies are added in float32 */
#define LOOKED_AT (64 << 10) /* bytes of a row of which it is asked whether they are the same on both sides */
#define NEVER SIZE_MAX
#define ADDED_ENERGY -2 /* of a block nothing else was added */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VERSIONS 1 /* one version of the loops for each instruction set, chosen when they are called */
#endif
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline)) /* vectors are passed in other ways by other versions */

/* Four lanes of float64 fill a register of AVX2; wider vectors are taken apart, element by element, where there is no
   AVX-512. */
typedef double v4d __attribute__((vector_size(32)));
typedef int64_t v4l __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

/* A where TEST holds, else B, lane by lane. */
#define CHOOSE(TYPE, BITS_TYPE, TEST, A, B)                                                                           \
    (TYPE)(((BITS_TYPE)(TEST) & (BITS_TYPE)(A)) | (~(BITS_TYPE)(TEST) & (BITS_TYPE)(B)))

typedef enum { BF16, F16, F32, F64, I8, U8, I16, U16, I32, U32, I64, U64, BOOL, TABLE, KINDS } Kind;
static const int item_size[KINDS] = {2, 2, 4, 8, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1};
/* At most 8 significant bits: a product of two is exact in float32. */
static const int is_narrow[KINDS] = {[BF16] = 1, [I8] = 1, [U8] = 1, [BOOL] = 1, [TABLE] = 1};

typedef struct {
    v4d first, second; /* lanes 0 to 3, and 4 to 7 */
} Sum;

typedef struct {
    Sum total_x, absolute_x, square_x, total_y, absolute_y, square_y, along, squared, gap;
    int64_t differing;
    double low_x, high_x, low_y, high_y;
    int bad; /* something is not finite */
} Lanes;

typedef struct {
    double total, absolute, square, low, high;
    int64_t nan, infinite;
} Side;

typedef struct {
    Side x, y;
    double along, squared, gap, square_x, square_y, largest;
    int64_t differing, nonfinite_equal, largest_at;
    int64_t seen; /* elements that were added by earlier calls */
} Result;

INLINE double tree(const Sum *sum) {
    v4d half = sum->first + sum->second;
    return (half[0] + half[2]) + (half[1] + half[3]);
}

#define CONVERT(TYPE, VALUE)                                                                                          \
    {                                                                                                                 \
        const TYPE *from = (const TYPE *)source->data + at;                                                                 \
        for (size_t i = 0; i < count; i++) to[i] = VALUE;                                                             \
        break;                                                                                                        \
    }

typedef struct {
    const void *data;
    Kind kind;
    const float *table; /* of kind TABLE: the value of each byte */
} Source;

INLINE void clear(Lanes *lanes) {
    memset(lanes, 0, sizeof *lanes);
    lanes->low_x = lanes->low_y = INFINITY;
    lanes->high_x = lanes->high_y = -INFINITY;
}

INLINE void add_side(Side *side, const Sum *total, const Sum *absolute, const Sum *square, double low, double high) {
    side->total += tree(total);
    side->absolute += tree(absolute);
    side->square += tree(square);
    side->low = low < side->low ? low : side->low;
    side->high = high > side->high ? high : side->high;
}

/* Where what is found of single rows and of channels goes; both may be missing. */
typedef struct {
    double *rows; /* COLUMNS of each */
    double *energy; /* of each channel the sum of x*x + y*y */
    float *single; /* the same of the last rows, of blocks that are summed in float32 */
    size_t waiting; /* so many rows */
    size_t alike; /* so many first rows are the same on both sides, byte by byte; their energies were not added. NEVER:
                     energies of all rows are added */
} Table;

/* Adds to the energies what waits in float32. */
static void add_waiting(Table *table, size_t length) {
    for (size_t i = 0; i < length; i++) table->energy[i] += table->single[i];
    memset(table->single, 0, length * sizeof(float));
    table->waiting = 0;
}

typedef void Measure(const Source *x, const Source *y, size_t size, size_t length, int accept, Table *table,
                     Result *result);

#define NAMED(NAME) NAME##_plain
#include "_types.h"
#undef NAMED

#ifdef VERSIONS
#include <immintrin.h>
#define REGISTERS 1 /* of 32 bytes, with instructions for extremes */

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAMED(NAME) NAME##_avx2
#include "_types.h"
#undef NAMED
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define NAMED(NAME) NAME##_avx512
#include "_types.h"
#undef NAMED
#pragma GCC pop_options
#endif

static int widest = 2; /* version that may be used */

static int version(void) {
#ifdef VERSIONS
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return widest > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

static Measure *choose(int wide) {
#ifdef VERSIONS
    switch (version()) {
    case 2: return wide ? measure_double_avx512 : measure_single_avx512;
    case 1: return wide ? measure_double_avx2 : measure_single_avx2;
    }
#endif
    return wide ? measure_double_plain : measure_single_plain;
}

static int fill(Source *source, const Py_buffer *data, int kind, const Py_buffer *table, Py_ssize_t size) {
    if (kind < 0 || kind >= KINDS || data->len != size * item_size[kind] ||
        (uintptr_t)data->buf % (uintptr_t)item_size[kind]) {
        PyErr_SetString(PyExc_ValueError, "a buffer of another kind, size or alignment than was said");
        return 0;
    }
    if (kind == TABLE && (table->buf == NULL || table->len != 256 * (Py_ssize_t)sizeof(float))) {
        PyErr_SetString(PyExc_ValueError, "a kind with a table needs one of 256 float32 values");
        return 0;
    }
    source->data = data->buf;
    source->kind = (Kind)kind;
    source->table = table->buf;
    return 1;
}

static void begin(Result *result) {
    memset(result, 0, sizeof *result);
    result->x.low = result->y.low = INFINITY;
    result->x.high = result->y.high = -INFINITY;
    result->largest = -1;
}

static int fits(const Py_buffer *rows, const Py_buffer *energy, const Py_buffer *state, Py_ssize_t size,
                Py_ssize_t length) {
    if (length < 1 || (rows->len && rows->len != (Py_ssize_t)(COLUMNS * sizeof(double)) * ((size + length - 1) / length)))
        PyErr_SetString(PyExc_ValueError, "rows of another length than was said");
    else if (energy->len && energy->len != (Py_ssize_t)sizeof(double) * length)
        PyErr_SetString(PyExc_ValueError, "energies of another length than was said");
    else if (state->len != (Py_ssize_t)sizeof(Result))
        PyErr_SetString(PyExc_ValueError, "a state of another length than was said");
    else
        return 1;
    return 0;
}

static PyObject *measure(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer x, y, table_x, table_y, rows, energy, state;
    int kind_x, kind_y, wide, accept, leaves_out;
    Py_ssize_t size, length;
    if (!PyArg_ParseTuple(arguments, "y*iz*y*iz*nnppw*w*pw*", &x, &kind_x, &table_x, &y, &kind_y, &table_y, &size,
                          &length, &wide, &accept, &rows, &energy, &leaves_out, &state))
        return NULL;
    Source left, right;
    PyObject *found = NULL;
    if (!fill(&left, &x, kind_x, &table_x, size) || !fill(&right, &y, kind_y, &table_y, size) ||
        !fits(&rows, &energy, &state, size, length))
        goto done;
    Table table = {rows.len ? rows.buf : NULL, energy.len ? energy.buf : NULL, NULL, 0, leaves_out ? 0 : NEVER};
    if (table.energy && !(table.single = PyMem_RawCalloc((size_t)length, sizeof(float)))) {
        PyErr_NoMemory();
        goto done;
    }
    Result result;
    memcpy(&result, state.buf, sizeof result);
    Py_BEGIN_ALLOW_THREADS
    choose(wide)(&left, &right, (size_t)size, (size_t)length, accept, &table, &result);
    Py_END_ALLOW_THREADS
    memcpy(state.buf, &result, sizeof result);
    PyMem_RawFree(table.single);
    found = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    if (table_x.obj) PyBuffer_Release(&table_x);
    if (table_y.obj) PyBuffer_Release(&table_y);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&energy);
    PyBuffer_Release(&state);
    return found;
}

static PyObject *new_state(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
    Result result;
    begin(&result);
    return PyByteArray_FromStringAndSize((const char *)&result, sizeof result);
}

static PyObject *sums(PyObject *module, PyObject *argument) {
    (void)module;
    Result result;
    if (!PyByteArray_Check(argument) || PyByteArray_GET_SIZE(argument) != (Py_ssize_t)sizeof result) {
        PyErr_SetString(PyExc_ValueError, "a state of another length than was said");
        return NULL;
    }
    memcpy(&result, PyByteArray_AS_STRING(argument), sizeof result);
    Side *a = &result.x, *b = &result.y;
    if (a->nan) a->low = a->high = NAN;
    if (b->nan) b->low = b->high = NAN;
    return Py_BuildValue("(dddddLL)(dddddLL)dddddLLdL", a->total, a->absolute, a->square, a->low, a->high,
                         (long long)a->nan, (long long)a->infinite, b->total, b->absolute, b->square, b->low, b->high,
                         (long long)b->nan, (long long)b->infinite, result.along, result.squared, result.gap,
                         result.square_x, result.square_y, (long long)result.differing,
                         (long long)result.nonfinite_equal, result.largest, (long long)result.largest_at);
}

/* Of a pair: what `sums` gives, as float64 and as int64. */
#define NUMBERS 16
#define COUNTS 7

static void store(const Result *result, double *numbers, int64_t *counts) {
    const Side *sides[2] = {&result->x, &result->y};
    for (int i = 0; i < 2; i++) {
        const Side *side = sides[i];
        double found[5] = {side->total, side->absolute, side->square, side->nan ? NAN : side->low,
                           side->nan ? NAN : side->high};
        memcpy(numbers + 5 * i, found, sizeof found);
        counts[2 * i] = side->nan, counts[2 * i + 1] = side->infinite;
    }
    double both[6] = {result->along, result->squared, result->gap, result->square_x, result->square_y, result->largest};
    memcpy(numbers + 10, both, sizeof both);
    counts[4] = result->differing, counts[5] = result->nonfinite_equal, counts[6] = result->largest_at;
}

/* One side of many pairs. */
typedef struct {
    Py_buffer data, starts, table;
    int kind;
} Places;

static void release(Places *places) {
    PyBuffer_Release(&places->data);
    PyBuffer_Release(&places->starts);
    if (places->table.obj) PyBuffer_Release(&places->table);
}

/* Whether all pairs lie in the data, aligned. */
static int lie_inside(const Places *places, const int64_t *sizes, Py_ssize_t pairs) {
    int kind = places->kind;
    if (kind < 0 || kind >= KINDS || places->starts.len != pairs * (Py_ssize_t)sizeof(int64_t)) return 0;
    if (kind == TABLE && (places->table.buf == NULL || places->table.len != 256 * (Py_ssize_t)sizeof(float))) return 0;
    const int64_t *starts = places->starts.buf;
    int64_t item = item_size[kind], length = places->data.len;
    for (Py_ssize_t i = 0; i < pairs; i++) {
        if (starts[i] < 0 || starts[i] > length || sizes[i] < 0 || sizes[i] > (length - starts[i]) / item) return 0;
        if (((uintptr_t)places->data.buf + (uintptr_t)starts[i]) % (uintptr_t)item) return 0;
    }
    return 1;
}

static Source source_of(const Places *places, Py_ssize_t pair) {
    const char *data = places->data.buf;
    Source source = {data + ((const int64_t *)places->starts.buf)[pair], (Kind)places->kind, places->table.buf};
    return source;
}

static PyObject *measure_many(PyObject *module, PyObject *arguments) {
    (void)module;
    Places x, y;
    Py_buffer sizes, rows, energy, numbers, counts;
    int wide, accept;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "y*y*iz*y*y*iz*y*nppw*w*w*w*", &x.data, &x.starts, &x.kind, &x.table, &y.data,
                          &y.starts, &y.kind, &y.table, &sizes, &length, &wide, &accept, &rows, &energy, &numbers,
                          &counts))
        return NULL;
    PyObject *found = NULL;
    float *single = NULL;
    Py_ssize_t pairs = sizes.len / (Py_ssize_t)sizeof(int64_t), all_rows = 0;
    const int64_t *size = sizes.buf;
    if (length < 1 || !lie_inside(&x, size, pairs) || !lie_inside(&y, size, pairs)) {
        PyErr_SetString(PyExc_ValueError, "pairs of another kind, place or alignment than was said");
        goto done;
    }
    for (Py_ssize_t i = 0; i < pairs; i++) all_rows += (Py_ssize_t)((size[i] + length - 1) / length);
    if ((rows.len && rows.len != (Py_ssize_t)(COLUMNS * sizeof(double)) * all_rows) ||
        (energy.len && energy.len != (Py_ssize_t)sizeof(double) * length * pairs) ||
        numbers.len != (Py_ssize_t)(NUMBERS * sizeof(double)) * pairs ||
        counts.len != (Py_ssize_t)(COUNTS * sizeof(int64_t)) * pairs) {
        PyErr_SetString(PyExc_ValueError, "room for another number of results than was said");
        goto done;
    }
    if (energy.len && !(single = PyMem_RawCalloc((size_t)length, sizeof(float)))) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    Measure *run = choose(wide);
    double *next = rows.len ? rows.buf : NULL;
    for (Py_ssize_t i = 0; i < pairs; i++) {
        Source left = source_of(&x, i), right = source_of(&y, i);
        Table table = {next, energy.len ? (double *)energy.buf + i * length : NULL, single, 0};
        Result result;
        begin(&result);
        run(&left, &right, (size_t)size[i], (size_t)length, accept, &table, &result);
        store(&result, (double *)numbers.buf + NUMBERS * i, (int64_t *)counts.buf + COUNTS * i);
        if (next) next += COLUMNS * ((size[i] + length - 1) / length);
    }
    Py_END_ALLOW_THREADS
    found = Py_NewRef(Py_None);
done:
    PyMem_RawFree(single);
    release(&x);
    release(&y);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&energy);
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&counts);
    return found;
}

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    widest = (int)most;
    return PyLong_FromLong(version());
}

static PyMethodDef methods[] = {
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512. Returns what is used."},
    {"measure", measure, METH_VARARGS,
     "measure(x, kind, table, y, kind, table, size, row_length, wide, accept, rows, energy, leaves_out, state): add to the state"},
    {"measure_many", measure_many, METH_VARARGS,
     "measure_many(x, starts, kind, table, y, starts, kind, table, sizes, row_length, wide, accept, rows, energies, "
     "numbers, counts): each pair by itself"},
    {"state", new_state, METH_NOARGS, "state(): of a pass that has seen nothing"},
    {"sums", sums, METH_O, "sums(state): what was added"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

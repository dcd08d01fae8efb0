/* One pass over two arrays: everything that measuring their difference takes.

The order of every sum is that of reference.py, to the bit: a row is summed in 8 lanes (element i goes to lane i mod 8),
lanes l and l + 4 are added, then l and l + 2, then both; rows are added one after the other. Where both sides are of few
bits (_narrow.h, _bfloat.h) a block is summed in float32. Products are rounded before they are added, so this file must
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
#define WOVEN 16    /* lanes of a block of bfloat16 */
#define GROUP 32    /* rows of bfloat16 whose channels are summed in float32 */
#define FEW 4       /* of them that are read at once */
#define MOST_GROUPS 256
#define USUAL 1.5   /* times the usual error of a row, up to which it is taken for one that weighs as much as others */
#define LOOKED_AT (64 << 10) /* bytes of a row of which it is asked whether they are the same on both sides */
#define NEVER SIZE_MAX

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

/* Sums of a block of bfloat16, or of a row. */
enum { TOTAL_X, ABSOLUTE_X, SQUARE_X, TOTAL_Y, ABSOLUTE_Y, SQUARE_Y, ALONG, SQUARED, GAP, SUMS };

typedef struct {
    float sums[SUMS][WOVEN] ALIGNED;
    float most_x, most_y, most; /* magnitudes of both sides, and of the difference */
    int64_t differing;
} Woven;

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

INLINE void add_extremes(Side *side, double low, double high) {
    side->low = low < side->low ? low : side->low;
    side->high = high > side->high ? high : side->high;
}

/* All sums of a row; the last two with equal NaN and infinities as zeros where that was asked for. */
typedef struct {
    double sums[SUMS], square_x, square_y;
} Line;

static void add_line(Result *result, const Line *line) {
    result->x.total += line->sums[TOTAL_X];
    result->x.absolute += line->sums[ABSOLUTE_X];
    result->x.square += line->sums[SQUARE_X];
    result->y.total += line->sums[TOTAL_Y];
    result->y.absolute += line->sums[ABSOLUTE_Y];
    result->y.square += line->sums[SQUARE_Y];
    result->along += line->sums[ALONG];
    result->squared += line->sums[SQUARED];
    result->gap += line->sums[GAP];
    result->square_x += line->square_x;
    result->square_y += line->square_y;
}

/* Sums of the channels over rows of bfloat16, each divided by its size, as diagnosis/kernel defines them. */
typedef struct {
    double *sums; /* LANES of each of four for LANES channels, then those of the next */
    uint8_t *taken; /* of each row whether it was added */
    double medians[MOST_GROUPS]; /* in order, of the squared errors of the rows of a group */
    size_t groups;
} Channels;

#define DIGEST_BLOCK 512 /* elements of bfloat16 */

/* What a block of each side adds to its digest (_xxh3.h). */
typedef struct {
    uint64_t lanes[2][8];
} DigestSums;

/* Where what is found of single rows and of channels goes; all may be missing. */
typedef struct {
    double *rows; /* COLUMNS of each */
    double *energy; /* of each channel the sum of x*x + y*y */
    float *single; /* the same of the last rows, of what is summed in float32 */
    size_t waiting; /* so many rows; of bfloat16 on both sides rows of a group of which nothing was added yet */
    size_t alike; /* so many first rows are the same on both sides, byte by byte; their energies were not added. NEVER:
                     energies of all rows are added */
    int wild;     /* a row that waits is not fit for float32 */
    Line *lines;  /* of each row, instead of adding it to what all rows have */
    Channels *channels;
    DigestSums *digests; /* of all blocks, in their order */
    DigestSums *beside;  /* the same of a row, where they are found beside its sums */
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

#if __GNUC__ >= 10
#define DOTS 1
#include "_dots.h"

/* What a row adds to the digests, where that is not found beside its sums. */
static void take_digests(const uint16_t *x, const uint16_t *y, size_t at, size_t count, int same, Table *table) {
    table->beside = NULL;
    if (!table->digests) return;
    DigestSums *digests = table->digests + at / DIGEST_BLOCK;
    if (!same) {
        table->beside = digests;
        return;
    }
    sum_blocks(x + at, count / DIGEST_BLOCK, digests, 0);
    for (size_t block = 0; block < count / DIGEST_BLOCK; block++)
        memcpy(digests[block].lanes[1], digests[block].lanes[0], sizeof digests->lanes[0]);
}
#endif
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define NAMED(NAME) NAME##_avx512
#include "_types.h"
#undef NAMED
#pragma GCC pop_options
#endif

static int widest = 3; /* version that may be used */

#ifdef DOTS
static int has_dots(void) {
    static int known = -1;
    if (known < 0) known = __builtin_cpu_supports("avx512bf16") && adds_as_said();
    return known && widest > 2;
}
#endif

static int version(void) {
#ifdef VERSIONS
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#ifdef DOTS
        return has_dots() ? 3 : 2;
#else
        return 2;
#endif
    return widest > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

static Measure *choose(int wide) {
#ifdef VERSIONS
    switch (version()) {
    case 3:
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
    else if (energy->len && (energy->len != (Py_ssize_t)sizeof(double) * length || size % length))
        PyErr_SetString(PyExc_ValueError, "energies of another length than was said");
    else if (state->len != (Py_ssize_t)sizeof(Result))
        PyErr_SetString(PyExc_ValueError, "a state of another length than was said");
    else
        return 1;
    return 0;
}

/* Whether there is room for what is kept of each row, and for the sums of channels of bfloat16. */
static int fits_rows(const Table *table, const Py_buffer *lines, const Py_buffer *channels, const Py_buffer *taken,
                     Py_ssize_t rows, Py_ssize_t length, int bfloats) {
    size_t padded = (size_t)(length + LANES - 1) / LANES * LANES;
    if (lines->len && lines->len != rows * (Py_ssize_t)sizeof(Line))
        PyErr_SetString(PyExc_ValueError, "lines of another length than was said");
    else if (channels->len && (channels->len != (Py_ssize_t)(4 * padded * sizeof(double)) || taken->len != rows ||
                               !table->rows || !table->energy || !bfloats))
        PyErr_SetString(PyExc_ValueError, "sums of channels of another length or kind than was said");
    else
        return 1;
    return 0;
}

#include "_digests.h"

static PyObject *measure(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer x, y, table_x, table_y, rows, energy, state, lines, sums, taken, digests;
    int kind_x, kind_y, wide, accept, leaves_out;
    Py_ssize_t size, length;
    if (!PyArg_ParseTuple(arguments, "y*iz*y*iz*nnppw*w*pw*w*w*w*w*", &x, &kind_x, &table_x, &y, &kind_y, &table_y, &size,
                          &length, &wide, &accept, &rows, &energy, &leaves_out, &state, &lines, &sums, &taken, &digests))
        return NULL;
    Source left, right;
    PyObject *found = NULL;
    if (!fill(&left, &x, kind_x, &table_x, size) || !fill(&right, &y, kind_y, &table_y, size) ||
        !fits(&rows, &energy, &state, size, length))
        goto done;
    Channels channels = {.sums = sums.buf, .taken = taken.buf};
    Table table = {.rows = rows.len ? rows.buf : NULL,
                   .energy = energy.len ? energy.buf : NULL,
                   .alike = leaves_out ? 0 : NEVER,
                   .lines = lines.len ? lines.buf : NULL,
                   .channels = sums.len ? &channels : NULL,
                   .digests = digests.len ? digests.buf : NULL};
    int bfloats = left.kind == BF16 && right.kind == BF16 && !wide;
    if (!fits_rows(&table, &lines, &sums, &taken, (size + length - 1) / length, length, bfloats)) goto done;
    if (digests.len && !(bfloats && takes_digests(&digests, size, length))) {
        PyErr_SetString(PyExc_ValueError, "digests of another length or kind than was said");
        goto done;
    }
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
    Py_buffer *others[] = {&rows, &energy, &state, &lines, &sums, &taken, &digests};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) PyBuffer_Release(others[i]);
    return found;
}

#include "_states.h"

#include "_many.h"

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    widest = (int)most;
    return PyLong_FromLong(version());
}

static PyMethodDef methods[] = {
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512, 3 its bfloat16. Returns what is used."},
    {"measure", measure, METH_VARARGS,
     "measure(x, kind, table, y, kind, table, size, row_length, wide, accept, rows, energy, leaves_out, state, lines, "
     "channels, taken, digests): add to the state"},
    {"digests", new_digests, METH_NOARGS, "digests(): XXH3-64 of both sides before their first blocks; None where there are none"},
    {"digest_blocks", digest_blocks, METH_VARARGS, "digest_blocks(digests, found, blocks): add what `measure` has found of the next blocks"},
    {"digest", digest, METH_VARARGS, "digest(digests, of_second, data): of all data, of which the last block was not added"},
    {"join", join, METH_VARARGS, "join(state, of_next_rows, lines): add a pass over the next rows to those before"},
    {"measure_many", measure_many, METH_VARARGS,
     "measure_many(x, starts, kind, table, y, starts, kind, table, sizes, row_length, wide, accept, rows, energies, "
     "numbers, counts): each pair by itself"},
    {"state", new_state, METH_NOARGS, "state(): of a pass that has seen nothing"},
    {"sums", sums, METH_O, "sums(state): what was added"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

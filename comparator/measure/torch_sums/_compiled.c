/* The sums of a difference in the order in which torch adds, as reference.py defines it, in one pass over both arrays.

Nothing is copied but blocks that fit into the first cache. Squares and products of float32 values are exact in float64,
so that it does not matter whether they are fused with additions. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_half.h"

#define STREAMS 4
#define LEVELS 4
#define SINGLES 8 /* lanes: elements of a register of AVX2 */
#define DOUBLES 4
#define SINGLE_GROUP (STREAMS * SINGLES)
#define DOUBLE_GROUP (STREAMS * DOUBLES)
#define BLOCK 1024 /* elements that are converted at a time; a multiple of both groups */
#define LOCKED (64 << 10) /* elements; fewer take no longer than to let go of the interpreter lock and to get it back */

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__)
#define VERSIONS 1 /* one version for each instruction set, chosen when the module is imported */
#endif

typedef enum { BF16, F16, F32, KINDS } Kind;
static const int item_size[KINDS] = {2, 2, 4};

typedef struct {
    const void *data;
    Kind kind;
} Source;

typedef struct {
    size_t run, done; /* groups that make a run of the first level; groups that were added */
    float sums[LEVELS][SINGLE_GROUP];
} Singles;

typedef struct {
    size_t run, done;
    double sums[LEVELS][DOUBLE_GROUP];
} Doubles;

typedef struct {
    float gap;
    double norm, cross;
    uint32_t largest; /* bits of the largest |y - x|: those of NaN are larger than all others */
} Sums;

/* Groups of a run: a power of two, so that LEVELS of them hold all. */
static size_t run_of(size_t groups) {
    int bits = 0;
    for (size_t most = groups ? groups - 1 : 0; most; most >>= 1) bits++;
    int power = bits / LEVELS;
    return (size_t)1 << (power > 4 ? power : 4);
}

/* Once a run is complete its sum goes to the next level, and so on. */
#define CASCADE(STATE, GROUP)                                                                                         \
    for (size_t level = 1, length = STATE->run; level < LEVELS; level++, length *= STATE->run) {                       \
        if (STATE->done % length) break;                                                                              \
        for (int k = 0; k < GROUP; k++) STATE->sums[level][k] += STATE->sums[level - 1][k];                           \
        memset(STATE->sums[level - 1], 0, sizeof STATE->sums[0]);                                                     \
    }

#define PART(STATE, LEFT) ((LEFT) < STATE->run - STATE->done % STATE->run ? (LEFT) : STATE->run - STATE->done % STATE->run)

INLINE void convert(const Source *source, size_t at, size_t count, float *to) {
    if (source->kind == F32) {
        memcpy(to, (const float *)source->data + at, count * sizeof *to);
        return;
    }
    const uint16_t *from = (const uint16_t *)source->data + at;
    if (source->kind == BF16)
        for (size_t i = 0; i < count; i++) to[i] = as_float((uint32_t)from[i] << 16);
    else
        for (size_t i = 0; i < count; i++) to[i] = half_value(from[i]);
}

INLINE uint32_t find_gaps(const float *x, const float *y, size_t count, float *gaps) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        float gap = y[i] - x[i];
        memcpy(&bits, &gap, sizeof bits);
        bits &= INT32_MAX;
        memcpy(&gaps[i], &bits, sizeof bits);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

INLINE void add_gaps(const float *gaps, size_t groups, Singles *state) {
    while (groups) {
        size_t part = PART(state, groups);
        float sums[SINGLE_GROUP];
        memcpy(sums, state->sums[0], sizeof sums);
        for (size_t i = 0; i < part; i++)
            for (int k = 0; k < SINGLE_GROUP; k++) sums[k] += gaps[i * SINGLE_GROUP + k];
        memcpy(state->sums[0], sums, sizeof sums);
        state->done += part;
        gaps += part * SINGLE_GROUP;
        groups -= part;
        CASCADE(state, SINGLE_GROUP)
    }
}

INLINE void add_products(const float *x, const float *y, size_t groups, Doubles *norm, Doubles *cross) {
    while (groups) {
        size_t part = PART(norm, groups);
        double norms[DOUBLE_GROUP], crosses[DOUBLE_GROUP];
        memcpy(norms, norm->sums[0], sizeof norms);
        memcpy(crosses, cross->sums[0], sizeof crosses);
        for (size_t i = 0; i < part; i++)
            for (int k = 0; k < DOUBLE_GROUP; k++) {
                double a = x[i * DOUBLE_GROUP + k], b = y[i * DOUBLE_GROUP + k];
                norms[k] += a * a + b * b;
                crosses[k] += a * b;
            }
        memcpy(norm->sums[0], norms, sizeof norms);
        memcpy(cross->sums[0], crosses, sizeof crosses);
        norm->done += part;
        cross->done += part;
        x += part * DOUBLE_GROUP;
        y += part * DOUBLE_GROUP;
        groups -= part;
        CASCADE(norm, DOUBLE_GROUP)
        CASCADE(cross, DOUBLE_GROUP)
    }
}

/* Of all levels, then what remains of whole registers, then all streams, then single elements, then all lanes. Fewer
   elements than a register are added as if it had one lane. */
#define FINISH(NAME, TYPE, LANES, GROUP)                                                                              \
    static TYPE NAME(TYPE sums[LEVELS][GROUP], const TYPE *rest, size_t count, int is_short) {                         \
        TYPE streams[GROUP], total = 0;                                                                               \
        if (is_short) {                                                                                               \
            TYPE single[STREAMS] = {0};                                                                               \
            size_t whole = count / STREAMS * STREAMS;                                                                 \
            for (size_t i = 0; i < whole; i++) single[i % STREAMS] += rest[i];                                        \
            for (size_t i = whole; i < count; i++) single[0] += rest[i];                                              \
            return ((single[0] + single[1]) + single[2]) + single[3];                                                 \
        }                                                                                                             \
        for (int k = 0; k < GROUP; k++) streams[k] = ((sums[0][k] + sums[1][k]) + sums[2][k]) + sums[3][k];           \
        size_t whole = count / LANES * LANES;                                                                         \
        for (size_t i = 0; i < whole; i++) streams[i % LANES] += rest[i];                                             \
        for (int s = 1; s < STREAMS; s++)                                                                             \
            for (int k = 0; k < LANES; k++) streams[k] += streams[s * LANES + k];                                     \
        for (size_t i = whole; i < count; i++) total += rest[i];                                                      \
        for (int k = 0; k < LANES; k++) total += streams[k];                                                          \
        return total;                                                                                                 \
    }
FINISH(finish_singles, float, SINGLES, SINGLE_GROUP)
FINISH(finish_doubles, double, DOUBLES, DOUBLE_GROUP)

INLINE void add_all(const Source *x, const Source *y, size_t start, size_t stop, Sums *found) {
    size_t size = stop - start;
    Singles gap = {.run = run_of(size / SINGLES / STREAMS)};
    Doubles norm = {.run = run_of(size / DOUBLES / STREAMS)}, cross = {.run = norm.run};
    float a[BLOCK], b[BLOCK], gaps[BLOCK] = {0};
    uint32_t largest = 0;
    size_t count = 0;
    for (size_t done = 0; done < size; done += count) {
        count = size - done < BLOCK ? size - done : BLOCK;
        convert(x, start + done, count, a);
        convert(y, start + done, count, b);
        uint32_t most = find_gaps(a, b, count, gaps);
        largest = most > largest ? most : largest;
        add_gaps(gaps, count / SINGLE_GROUP, &gap);
        add_products(a, b, count / DOUBLE_GROUP, &norm, &cross);
    }
    /* The last block holds what makes no whole group. */
    size_t first = count / SINGLE_GROUP * SINGLE_GROUP, rest;
    double norms[DOUBLE_GROUP], crosses[DOUBLE_GROUP];
    found->gap = finish_singles(gap.sums, gaps + first, count - first, size < SINGLES);
    first = count / DOUBLE_GROUP * DOUBLE_GROUP, rest = count - first;
    for (size_t i = 0; i < rest; i++) {
        double left = a[first + i], right = b[first + i];
        norms[i] = left * left + right * right;
        crosses[i] = left * right;
    }
    found->norm = finish_doubles(norm.sums, norms, rest, size < DOUBLES);
    found->cross = finish_doubles(cross.sums, crosses, rest, size < DOUBLES);
    found->largest = largest;
}

typedef void Pass(const Source *x, const Source *y, size_t start, size_t stop, Sums *found);

static void pass_plain(const Source *x, const Source *y, size_t start, size_t stop, Sums *found) {
    add_all(x, y, start, stop, found);
}
#ifdef VERSIONS
__attribute__((target("avx2"))) static void pass_avx2(const Source *x, const Source *y, size_t start, size_t stop,
                                                      Sums *found) {
    add_all(x, y, start, stop, found);
}
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) static void
pass_avx512(const Source *x, const Source *y, size_t start, size_t stop, Sums *found) {
    add_all(x, y, start, stop, found);
}
#endif

static Pass *chosen = pass_plain;

/* Choose the widest version that this processor has, up to the one that is given. */
static int choose(long widest) {
    chosen = pass_plain;
#ifdef VERSIONS
    if (widest > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        chosen = pass_avx512;
        return 2;
    }
    if (widest > 0 && __builtin_cpu_supports("avx2")) {
        chosen = pass_avx2;
        return 1;
    }
#endif
    return 0;
}

static int fill(Source *source, const Py_buffer *data, int kind, Py_ssize_t stop) {
    if (kind < 0 || kind >= KINDS || data->len / item_size[kind] < stop || (uintptr_t)data->buf % item_size[kind]) {
        PyErr_SetString(PyExc_ValueError, "a buffer of another kind, size or alignment than was said");
        return 0;
    }
    source->data = data->buf;
    source->kind = (Kind)kind;
    return 1;
}

static PyObject *measure(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer x, y;
    int kind_x, kind_y;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(arguments, "y*iy*inn", &x, &kind_x, &y, &kind_y, &start, &stop)) return NULL;
    Source left, right;
    Sums sums;
    PyObject *found = NULL;
    if (start < 0 || start > stop) {
        PyErr_SetString(PyExc_ValueError, "a range that ends before it starts");
    } else if (fill(&left, &x, kind_x, stop) && fill(&right, &y, kind_y, stop)) {
        if (stop - start < LOCKED) {
            chosen(&left, &right, (size_t)start, (size_t)stop, &sums);
        } else {
            Py_BEGIN_ALLOW_THREADS
            chosen(&left, &right, (size_t)start, (size_t)stop, &sums);
            Py_END_ALLOW_THREADS
        }
        found = Py_BuildValue("dddd", (double)sums.gap, sums.norm, sums.cross, (double)as_float(sums.largest));
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    return found;
}

/* Of many pairs in one call: a call for each takes longer than the sums of a small one. */
static PyObject *measure_many(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer x, y, starts[2], sizes, sums;
    int kinds[2];
    if (!PyArg_ParseTuple(arguments, "y*y*iy*y*iy*w*", &x, &starts[0], &kinds[0], &y, &starts[1], &kinds[1], &sizes,
                          &sums))
        return NULL;
    PyObject *found = NULL;
    const Py_buffer *data[2] = {&x, &y};
    const int64_t *size = sizes.buf;
    Py_ssize_t pairs = sizes.len / (Py_ssize_t)sizeof *size;
    int good = sums.len == pairs * 4 * (Py_ssize_t)sizeof(double);
    for (int side = 0; good && side < 2; side++) {
        const int64_t *start = starts[side].buf;
        good = kinds[side] >= 0 && kinds[side] < KINDS && starts[side].len == sizes.len;
        for (Py_ssize_t i = 0; good && i < pairs; i++) {
            int64_t item = item_size[kinds[side]], length = data[side]->len;
            good = start[i] >= 0 && start[i] <= length && size[i] >= 0 && size[i] <= (length - start[i]) / item &&
                   ((uintptr_t)data[side]->buf + (uintptr_t)start[i]) % (uintptr_t)item == 0;
        }
    }
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "pairs of another kind, place or alignment than was said");
    } else {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < pairs; i++) {
            Source left = {(const char *)x.buf + ((const int64_t *)starts[0].buf)[i], (Kind)kinds[0]};
            Source right = {(const char *)y.buf + ((const int64_t *)starts[1].buf)[i], (Kind)kinds[1]};
            Sums one;
            chosen(&left, &right, 0, (size_t)size[i], &one);
            double told[4] = {one.gap, one.norm, one.cross, as_float(one.largest)};
            memcpy((double *)sums.buf + 4 * i, told, sizeof told);
        }
        Py_END_ALLOW_THREADS
        found = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    PyBuffer_Release(&starts[0]);
    PyBuffer_Release(&starts[1]);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&sums);
    return found;
}

static PyObject *limit(PyObject *module, PyObject *object) {
    (void)module;
    long most = PyLong_AsLong(object);
    if (most == -1 && PyErr_Occurred()) return NULL;
    return PyLong_FromLong(choose(most));
}

static PyMethodDef methods[] = {
    {"limit", limit, METH_O, "limit(most): use 0 no wider instructions, 1 those of AVX2 at most, 2 of AVX-512. Returns what is used."},
    {"measure", measure, METH_VARARGS, "measure(x, kind, y, kind, start, stop): sums of |y-x|, xx+yy, xy; the largest |y-x|"},
    {"measure_many", measure_many, METH_VARARGS,
     "measure_many(x, starts, kind, y, starts, kind, sizes, sums): of each pair what measure gives, into sums"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    choose(2);
    return PyModuleDef_Init(&definition);
}

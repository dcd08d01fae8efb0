/* Many small pairs in one call. */

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
    int whole = 1;
    for (Py_ssize_t i = 0; i < pairs; i++) {
        all_rows += (Py_ssize_t)((size[i] + length - 1) / length);
        whole &= size[i] % length == 0;
    }
    if ((rows.len && rows.len != (Py_ssize_t)(COLUMNS * sizeof(double)) * all_rows) ||
        (energy.len && (energy.len != (Py_ssize_t)sizeof(double) * length * pairs || !whole)) ||
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
        Table table = {.rows = next, .energy = energy.len ? (double *)energy.buf + i * length : NULL, .single = single};
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

/* What is made of the sums of rows, for Python; `row_numbers` of reference.py. */

enum { BASELINE, TARGET, MIDDLE, ADDED, PRODUCT, TOTAL, SIZES, NUMBERS };

/* `numbers` holds one vector after the other, of which the sums are there. */
static void finish_rows(double *restrict numbers, size_t count, int parts, double tiny, double *restrict error,
                        double *restrict cosine) {
    double *baseline = numbers, *target = numbers + TARGET * count, *middle = numbers + MIDDLE * count;
    double *added = numbers + ADDED * count, *product = numbers + PRODUCT * count, *sizes = numbers + SIZES * count;
    for (size_t i = 0; i < count && !parts; i++) {
        double half = (baseline[i] + target[i]) / 2, quarter = added[i] / 4;
        middle[i] = larger_of(half - quarter, 0);
        product[i] /= 2;
    }
    for (size_t i = 0; i < count; i++) {
        double norm = sqrt(added[i]), both = sqrt(middle[i] * added[i]);
        sizes[i] = sqrt((baseline[i] + target[i]) / 2);
        double relative = norm / larger_of(sizes[i], tiny), along = fabs(product[i]) / larger_of(both, tiny);
        error[i] = norm > 0 ? relative : 0;
        cosine[i] = both > 0 ? along : 0;
    }
}

static PyObject *row_numbers(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *matrix;
    Py_buffer sums, numbers, error, cosine;
    int parts;
    double tiny;
    if (!PyArg_ParseTuple(arguments, "Opdw*w*w*", &matrix, &parts, &tiny, &numbers, &error, &cosine)) return NULL;
    PyObject *found = NULL;
    if (PyObject_GetBuffer(matrix, &sums, PyBUF_STRIDED_RO) < 0) goto done;
    size_t count = sums.ndim == 2 ? (size_t)sums.shape[0] : 0;
    if (sums.ndim != 2 || sums.shape[1] != SUMS || sums.itemsize != sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "expected sums of rows");
    } else if (is_long(&numbers, NUMBERS * count, sizeof(double)) && is_long(&error, count, sizeof(double)) &&
               is_long(&cosine, count, sizeof(double))) {
        /* Of parts the first sum is that of the midpoint, and there is none of the sides. */
        static const int places[2][SUMS] = {{BASELINE, TARGET, ADDED, PRODUCT, TOTAL},
                                            {MIDDLE, TARGET, ADDED, PRODUCT, TOTAL}};
        double *to = numbers.buf;
        for (size_t i = 0; i < count; i++)
            for (int sum = 0; sum < SUMS; sum++)
                memcpy(to + (size_t)places[parts][sum] * count + i,
                       (const char *)sums.buf + (ptrdiff_t)i * sums.strides[0] + sum * sums.strides[1], sizeof(double));
        if (parts) memcpy(to, to + TARGET * count, count * sizeof(double));
        finish_rows(to, count, parts, tiny, error.buf, cosine.buf);
        found = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&sums);
done:
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&error);
    PyBuffer_Release(&cosine);
    return found;
}

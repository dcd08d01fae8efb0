/* What is made of the sums of rows, for Python; `row_numbers` of reference.py. */

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
        CALL(finish_rows, to, count, parts, tiny, error.buf, cosine.buf)
        found = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&sums);
done:
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&error);
    PyBuffer_Release(&cosine);
    return found;
}

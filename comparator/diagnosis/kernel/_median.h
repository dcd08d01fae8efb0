/* The median of a vector, for Python. */

#define FEW_LEFT 32 /* of so many the one that is looked for is found by insertion */

/* The value that has `rank` others before it in order; `from`, `lower` and `upper` have room for all and are written to.
   Each time all are copied to the one or the other as they lie before a pivot or not, without a branch, which a processor
   could not foresee. */
static double ranked(double *from, double *lower, double *upper, size_t count, size_t rank) {
    while (count > FEW_LEFT) {
        double first = from[0], middle = from[count / 2], last = from[count - 1];
        double small = first < middle ? first : middle, large = first < middle ? middle : first;
        double pivot = last < small ? small : last < large ? last : large;
        double *kept = from;
        size_t before = 0, behind = 0;
        for (size_t i = 0; i < count; i++) {
            double one = from[i];
            lower[before] = upper[behind] = one;
            size_t is_before = one < pivot;
            before += is_before;
            behind += 1 - is_before;
        }
        if (rank < before) {
            from = lower, lower = kept, count = before;
        } else if (before) {
            from = upper, upper = kept, count = behind, rank -= before;
        } else {
            /* The pivot is the least. */
            for (size_t i = behind = 0; i < count; i++) {
                lower[behind] = from[i];
                behind += from[i] > pivot;
            }
            if (rank < count - behind) return pivot;
            from = lower, lower = kept, rank -= count - behind, count = behind;
        }
    }
    for (size_t i = 1; i < count; i++) {
        double one = from[i];
        size_t at = i;
        for (; at && from[at - 1] > one; at--) from[at] = from[at - 1];
        from[at] = one;
    }
    return from[rank];
}

/* The one in the middle, or the mean of both; NaN where one takes part. Behind the values lie a copy of them and room for
   twice as many. */
static double median_of(double *values, size_t count, int in_single) {
    size_t half = count / 2;
    double below = -INFINITY;
    for (size_t i = 0; i < count; i++)
        if (isnan(values[i])) return NAN;
    double middle = ranked(values + count, values + 2 * count, values + 3 * count, count, half);
    if (count % 2) return middle;
    size_t less = 0;
    for (size_t i = 0; i < count; i++) {
        double one = values[i] < middle ? values[i] : -INFINITY;
        less += values[i] < middle;
        below = one > below ? one : below;
    }
    if (less < half) below = middle;
    return in_single ? (double)(((float)below + (float)middle) / 2.0f) : (below + middle) / 2;
}

static PyObject *median(PyObject *module, PyObject *argument) {
    (void)module;
    Py_buffer buffer;
    if (PyObject_GetBuffer(argument, &buffer, PyBUF_ND | PyBUF_FORMAT) < 0) return NULL;
    PyObject *found = NULL;
    int in_single = buffer.format && !strcmp(buffer.format, "f");
    size_t count = (size_t)(buffer.len / buffer.itemsize);
    double *room = NULL;
    if (buffer.ndim != 1 || !(in_single || (buffer.format && !strcmp(buffer.format, "d"))))
        PyErr_SetString(PyExc_ValueError, "expected a vector of float32 or float64");
    else if (!count)
        found = PyFloat_FromDouble(NAN);
    else if (!(room = PyMem_RawMalloc(4 * count * sizeof(double))))
        PyErr_NoMemory();
    else {
        for (size_t i = 0; i < count; i++)
            room[i] = in_single ? (double)((const float *)buffer.buf)[i] : ((const double *)buffer.buf)[i];
        memcpy(room + count, room, count * sizeof(double));
        found = PyFloat_FromDouble(median_of(room, count, in_single));
    }
    PyMem_RawFree(room);
    PyBuffer_Release(&buffer);
    return found;
}

/* The median of a vector, for Python. */

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
    else if (!(room = PyMem_RawMalloc((count + ROOM(count)) * sizeof(double))))
        PyErr_NoMemory();
    else {
        for (size_t i = 0; i < count; i++)
            room[i] = in_single ? (double)((const float *)buffer.buf)[i] : ((const double *)buffer.buf)[i];
        double middle;
        CALL(median_of, room, count, in_single, room + count, &middle)
        found = PyFloat_FromDouble(middle);
    }
    PyMem_RawFree(room);
    PyBuffer_Release(&buffer);
    return found;
}

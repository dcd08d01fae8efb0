/* What is made of the sums of channels, for Python: sums over several parts of the rows, and the channels that stand out. */

/* The sums of parts, one after the other, each LANES of four for LANES channels; put in order. */
static void add_lanes(double *const *parts, size_t count, size_t channels, double *to) {
    for (size_t channel = 0; channel < channels; channel += LANES)
        for (size_t sum = 0; sum < 4; sum++) {
            double lanes[LANES] = {0};
            for (size_t part = 0; part < count; part++)
                for (size_t l = 0; l < LANES; l++) lanes[l] += parts[part][4 * channel + LANES * sum + l];
            size_t some = channels - channel < LANES ? channels - channel : LANES;
            memcpy(to + sum * channels + channel, lanes, some * sizeof(double));
        }
}

static PyObject *add_parts(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *parts, *found = NULL;
    Py_buffer sums;
    if (!PyArg_ParseTuple(arguments, "O!w*", &PyTuple_Type, &parts, &sums)) return NULL;
    size_t channels = (size_t)sums.len / (4 * sizeof(double)), count = 0, all = (size_t)PyTuple_GET_SIZE(parts);
    Py_buffer *buffers = PyMem_Calloc(all + 1, sizeof *buffers);
    double **lanes = PyMem_Calloc(all + 1, sizeof *lanes);
    if (!buffers || !lanes) PyErr_NoMemory();
    for (; !PyErr_Occurred() && count < all; count++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(parts, count), buffers + count, PyBUF_SIMPLE) < 0) break;
        lanes[count] = buffers[count].buf;
        if (!is_long(buffers + count, 4 * padded(channels), sizeof(double))) {
            count++;
            break;
        }
    }
    if (!PyErr_Occurred()) {
        add_lanes(lanes, count, channels, sums.buf);
        found = Py_NewRef(Py_None);
    }
    for (size_t i = 0; i < count; i++) PyBuffer_Release(buffers + i);
    PyMem_Free(buffers);
    PyMem_Free(lanes);
    PyBuffer_Release(&sums);
    return found;
}

static PyObject *standing_out(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer energy, size, product;
    Usual usual;
    double *room = NULL;
    if (!PyArg_ParseTuple(arguments, "y*y*y*ddddd", &energy, &size, &product, &usual.rows, &usual.share, &usual.least,
                          &usual.z, &usual.tiny))
        return NULL;
    PyObject *found = NULL;
    size_t count = (size_t)energy.len / sizeof(double);
    if (!count || !is_long(&size, count, sizeof(double)) || !is_long(&product, count, sizeof(double))) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no channels");
    } else if (!(room = PyMem_RawMalloc((3 * count + ROOM(count)) * sizeof(double)))) {
        PyErr_NoMemory();
    } else {
        size_t worst, clearest;
        CALL(look_at_channels, energy.buf, size.buf, product.buf, count, &usual, room, room + 3 * count)
        CALL(find_largest, room, count, &worst)
        CALL(find_largest, room + count, count, &clearest)
        Standing one = stands(((double *)energy.buf)[clearest], ((double *)size.buf)[clearest],
                              ((double *)product.buf)[clearest], room[2 * count + clearest], &usual);
        found = Py_BuildValue("dnddnd", room[worst], (Py_ssize_t)worst, one.scaled, one.factor, (Py_ssize_t)clearest,
                              one.error);
    }
    PyMem_RawFree(room);
    PyBuffer_Release(&energy);
    PyBuffer_Release(&size);
    PyBuffer_Release(&product);
    return found;
}

/* What is made of the sums of channels, for Python: sums over several parts of the rows, and the channels that stand out. */

/* Like numpy's: NaN where either is. */
INLINE double larger_of(double a, double b) { return (a > b) | (a != a) ? a : b; }
INLINE double smaller_of(double a, double b) { return (a < b) | (a != a) ? a : b; }

/* Where the largest is, the first of several; NaN is the largest. */
static size_t largest_at(const double *values, size_t count) {
    size_t found = 0;
    for (size_t i = 1; i < count; i++)
        if (values[i] > values[found] || (isnan(values[i]) && !isnan(values[found]))) found = i;
    return found;
}

/* What is asked of channels (`standing_out` of reference.py), and what is usual. */
typedef struct {
    double rows, share, least, z, tiny;
} Usual;

typedef struct {
    double ratio, factor, error, scaled;
} Standing;

/* What is found of one channel. */
INLINE Standing stands(double energy, double size, double product, const Usual *usual) {
    double own = larger_of(larger_of(usual->least, size * usual->share), usual->tiny);
    double factor = product / larger_of(size, usual->tiny), explained = factor * product;
    double error = sqrt(larger_of(energy - explained, 0) / usual->rows / larger_of(size, usual->tiny));
    Standing found = {sqrt(energy / own), factor, error, fabs(factor) * sqrt(size / own)};
    return found;
}

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

/* Of each channel how its error stands out, and then how clearly a factor explains it, in `room`, which is for four times
   as many numbers as there are channels. Returns what is usual. */
static Usual look_at_channels(const double *energy, const double *size, const double *product, size_t count, Usual usual,
                              double *room) {
    for (size_t i = 0; i < count; i++) room[i] = energy[i] / larger_of(size[i], usual.tiny);
    memcpy(room + count, room, count * sizeof(double));
    usual.share = larger_of(median_of(room, count, 0), usual.share);
    memcpy(room, energy, count * sizeof(double));
    memcpy(room + count, energy, count * sizeof(double));
    usual.least = larger_of(median_of(room, count, 0), usual.least);
    for (size_t i = 0; i < count; i++) {
        Standing one = stands(energy[i], size[i], product[i], &usual);
        room[i] = one.ratio;
        room[count + i] = smaller_of(fabs(one.factor) / larger_of(one.error, 1e-9) / usual.z, one.scaled);
    }
    return usual;
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
    } else if (!(room = PyMem_RawMalloc(4 * count * sizeof(double)))) {
        PyErr_NoMemory();
    } else {
        usual = look_at_channels(energy.buf, size.buf, product.buf, count, usual, room);
        size_t worst = largest_at(room, count), clearest = largest_at(room + count, count);
        Standing one = stands(((double *)energy.buf)[clearest], ((double *)size.buf)[clearest],
                              ((double *)product.buf)[clearest], &usual);
        found = Py_BuildValue("dnddnd", room[worst], (Py_ssize_t)worst, one.scaled, one.factor, (Py_ssize_t)clearest,
                              one.error);
    }
    PyMem_RawFree(room);
    PyBuffer_Release(&energy);
    PyBuffer_Release(&size);
    PyBuffer_Release(&product);
    return found;
}

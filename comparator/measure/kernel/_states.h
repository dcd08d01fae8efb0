/* What a pass has found so far, for Python: begun, joined, and given out. */

/* Adds a pass over the next rows, of which there are lines, to those before. */
static PyObject *join(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer whole, part, lines;
    if (!PyArg_ParseTuple(arguments, "w*y*y*", &whole, &part, &lines)) return NULL;
    PyObject *found = NULL;
    if (whole.len != (Py_ssize_t)sizeof(Result) || part.len != whole.len || lines.len % (Py_ssize_t)sizeof(Line)) {
        PyErr_SetString(PyExc_ValueError, "states of another length than was said");
        goto done;
    }
    Result all, next;
    memcpy(&all, whole.buf, sizeof all);
    memcpy(&next, part.buf, sizeof next);
    for (const char *at = lines.buf, *end = at + lines.len; at < end; at += sizeof(Line)) {
        Line line;
        memcpy(&line, at, sizeof line);
        add_line(&all, &line);
    }
    Side *sides[2] = {&all.x, &all.y}, *added[2] = {&next.x, &next.y};
    for (int i = 0; i < 2; i++) {
        add_extremes(sides[i], added[i]->low, added[i]->high);
        sides[i]->nan += added[i]->nan;
        sides[i]->infinite += added[i]->infinite;
    }
    all.differing += next.differing;
    all.nonfinite_equal += next.nonfinite_equal;
    if (!isnan(all.largest) && (isnan(next.largest) || next.largest > all.largest)) {
        all.largest = next.largest;
        all.largest_at = all.seen + next.largest_at;
    }
    all.seen += next.seen;
    memcpy(whole.buf, &all, sizeof all);
    found = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&whole);
    PyBuffer_Release(&part);
    PyBuffer_Release(&lines);
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

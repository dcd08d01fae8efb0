/* Checksums that are taken beside the sums of a pair (_xxh3.h), for Python. */

/* Whether there is room for what all blocks of so many elements, rows of so many, add to digests. */
static int takes_digests(const Py_buffer *digests, Py_ssize_t size, Py_ssize_t length) {
#ifdef DOTS
    return has_dots() && length % BLOCK == 0 && size % length == 0 &&
           digests->len == size / DIGEST_BLOCK * (Py_ssize_t)sizeof(DigestSums);
#else
    (void)digests, (void)size, (void)length;
    return 0;
#endif
}

static PyObject *new_digests(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
#ifdef DOTS
    if (has_dots()) {
        PyObject *found = PyByteArray_FromStringAndSize(NULL, 2 * sizeof(Digest));
        for (int side = 0; found && side < 2; side++)
            memcpy(PyByteArray_AS_STRING(found) + (size_t)side * sizeof(Digest), first_sums, sizeof first_sums);
        return found;
    }
#endif
    Py_RETURN_NONE;
}

static PyObject *digest_blocks(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer digests, blocks;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(arguments, "w*y*n", &digests, &blocks, &count)) return NULL;
    int fits = 0;
#ifdef DOTS
    fits = has_dots() && digests.len == 2 * (Py_ssize_t)sizeof(Digest) && count >= 0 &&
           count <= blocks.len / (Py_ssize_t)sizeof(DigestSums);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        join_blocks(digests.buf, blocks.buf, (size_t)count);
        Py_END_ALLOW_THREADS
    }
#endif
    if (!fits) PyErr_SetString(PyExc_ValueError, "digests or blocks of another length than was said");
    PyBuffer_Release(&digests);
    PyBuffer_Release(&blocks);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static PyObject *digest(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer digests, data;
    int side;
    if (!PyArg_ParseTuple(arguments, "y*py*", &digests, &side, &data)) return NULL;
    PyObject *found = NULL;
#ifdef DOTS
    if (has_dots() && digests.len == 2 * (Py_ssize_t)sizeof(Digest) && data.len && data.len % (2 * DIGEST_BLOCK) == 0)
        found = PyLong_FromUnsignedLongLong(finished((const Digest *)digests.buf + side,
                                                     (const uint8_t *)data.buf + data.len - 2 * DIGEST_BLOCK,
                                                     (uint64_t)data.len));
#endif
    if (!found && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no digests of whole blocks");
    PyBuffer_Release(&digests);
    PyBuffer_Release(&data);
    return found;
}

/* Buffers written in pieces, without the interpreter lock until all of them are. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECE ((size_t)1 << 20)
#define VECTORS 512 /* of a call; Linux allows 1024 */

/* 0, or the number of an error. */
static int write_all(int descriptor, const Py_buffer *buffers, Py_ssize_t count) {
    Py_ssize_t first = 0; /* buffer that is not written whole, and how much of it is */
    size_t done = 0;
    for (;;) {
        struct iovec vectors[VECTORS];
        int used = 0;
        size_t total = 0, skipped = done;
        for (Py_ssize_t i = first; i < count && used < VECTORS && total < PIECE; i++) {
            size_t length = (size_t)buffers[i].len - skipped;
            if (length > PIECE - total) length = PIECE - total;
            if (length) vectors[used++] = (struct iovec){(char *)buffers[i].buf + skipped, length};
            total += length;
            skipped = 0;
        }
        if (!total) return 0;
        ssize_t written = writev(descriptor, vectors, used);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno;
        if (!written) return EIO;
        for (size_t rest = (size_t)written; rest;) {
            size_t here = (size_t)buffers[first].len - done;
            if (rest < here) {
                done += rest;
                break;
            }
            rest -= here;
            first++;
            done = 0;
        }
    }
}

static PyObject *write_whole(PyObject *module, PyObject *arguments) {
    (void)module;
    int descriptor, error = 0;
    PyObject *given;
    if (!PyArg_ParseTuple(arguments, "iO", &descriptor, &given)) return NULL;
    PyObject *sequence = PySequence_Fast(given, "expected a sequence of buffers");
    if (!sequence) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence), held = 0;
    Py_buffer *buffers = PyMem_New(Py_buffer, count);
    if (!buffers) {
        Py_DECREF(sequence);
        return PyErr_NoMemory();
    }
    while (held < count && !PyObject_GetBuffer(PySequence_Fast_GET_ITEM(sequence, held), &buffers[held], PyBUF_SIMPLE))
        held++;
    if (held == count) {
        Py_BEGIN_ALLOW_THREADS
        error = write_all(descriptor, buffers, count);
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; i < held; i++) PyBuffer_Release(&buffers[i]);
    PyMem_Free(buffers);
    Py_DECREF(sequence);
    if (held < count) return NULL;
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"write_whole", write_whole, METH_VARARGS, "write_whole(descriptor, buffers)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

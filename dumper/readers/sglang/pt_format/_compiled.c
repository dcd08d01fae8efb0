/* What .pt files hold: the heads of many at once, and the restricted unpickler, as reference.py defines both. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_archive.h"
#include "_machine.h"
#include "_plain.h"

static PyObject *refuse(void) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "something that is not read here");
    return NULL;
}

/* What the pickle holds, and the tensors in it. */
static PyObject *unpickle(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer code;
    Machine m = {0};
    if (!PyArg_ParseTuple(arguments, "y*O!O!O!", &code, &PyDict_Type, &m.names, &PyDict_Type, &m.storages, &PyType_Type,
                          &m.tensor))
        return NULL;
    m.code = code.buf;
    m.size = (size_t)code.len;
    m.stack = PyMem_Malloc((m.size + 1) * sizeof *m.stack);
    m.memo = PyMem_Malloc((m.size + 1) * sizeof *m.memo);
    m.tensors = PyList_New(0);
    PyObject *found = NULL;
    if (m.stack == NULL || m.memo == NULL || m.tensors == NULL)
        PyErr_NoMemory();
    else
        found = run(&m);
    if (found != NULL && !is_plain(found, (PyTypeObject *)m.tensor)) Py_CLEAR(found);
    drop(&m, 0);
    while (m.kept) Py_XDECREF(m.memo[--m.kept]);
    PyMem_Free(m.stack);
    PyMem_Free(m.memo);
    PyBuffer_Release(&code);
    PyObject *both = found == NULL ? NULL : PyTuple_Pack(2, found, m.tensors);
    Py_XDECREF(found);
    Py_XDECREF(m.tensors);
    return both == NULL ? refuse() : both;
}

/* (size, time of change, inode); None where there is no file. */
static PyObject *stamp_told(const Head *head) {
    if (head->size < 0) Py_RETURN_NONE;
    return Py_BuildValue("LLL", (long long)head->size, (long long)head->changed, (long long)head->inode);
}

/* (pickle, storages, stamp); None where the file is not one that is read here. */
static PyObject *told(const Head *head) {
    if (head->code == NULL) Py_RETURN_NONE;
    PyObject *storages = PyDict_New();
    for (size_t i = 0; storages != NULL && i < head->count; i++) {
        const Storage *one = &head->storages[i];
        PyObject *key = PyUnicode_DecodeUTF8(head->names + one->key, (Py_ssize_t)one->key_size, NULL);
        PyObject *place = Py_BuildValue("nn", (Py_ssize_t)one->start, (Py_ssize_t)one->stop);
        if (key == NULL || place == NULL || PyDict_SetItem(storages, key, place) < 0) Py_CLEAR(storages);
        Py_XDECREF(key);
        Py_XDECREF(place);
    }
    if (storages == NULL && PyErr_ExceptionMatches(PyExc_UnicodeError)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (storages == NULL) return NULL;
    return Py_BuildValue("y#NN", head->code, (Py_ssize_t)head->code_size, storages, stamp_told(head));
}

/* What is told of each file, which is read without the interpreter lock. */
static PyObject *of_each(PyObject *paths, void read(const char *, Head *), PyObject *tell(const Head *)) {
    if (!PyList_CheckExact(paths)) return PyErr_Format(PyExc_TypeError, "a list of paths, as bytes, is wanted");
    /* A copy: the list may be changed while the lock is not held. */
    PyObject *kept = PyList_AsTuple(paths);
    if (kept == NULL) return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(kept);
    PyObject *found = PyList_New(count);
    const char **names = PyMem_Malloc((size_t)count * sizeof *names + 1);
    Head *heads = PyMem_Malloc((size_t)count * sizeof *heads + 1);
    int good = found != NULL && names != NULL && heads != NULL;
    if (!good) PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++) {
        char *name;
        good = PyBytes_AsStringAndSize(PyTuple_GET_ITEM(kept, i), &name, NULL) == 0;
        if (good) names[i] = name;
    }
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) read(names[i], &heads[i]);
        Py_END_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            PyObject *one = good ? tell(&heads[i]) : NULL;
            good = one != NULL;
            if (good) PyList_SET_ITEM(found, i, one);
            free_head(&heads[i]);
        }
    }
    Py_DECREF(kept);
    PyMem_Free(names);
    PyMem_Free(heads);
    if (!good) Py_CLEAR(found);
    return found;
}

static PyObject *heads(PyObject *module, PyObject *paths) {
    (void)module;
    return of_each(paths, read_head, told);
}

static PyObject *stamps(PyObject *module, PyObject *paths) {
    (void)module;
    return of_each(paths, read_stamp, stamp_told);
}

static PyObject *part(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *path;
    char *name;
    Py_ssize_t start, stop;
    long long size, changed, inode;
    if (!PyArg_ParseTuple(arguments, "Snn(LLL)", &path, &start, &stop, &size, &changed, &inode)) return NULL;
    if (start < 0 || stop < start) return PyErr_Format(PyExc_ValueError, "a part that ends before it starts");
    if (PyBytes_AsStringAndSize(path, &name, NULL) < 0) return NULL;
    PyObject *found = PyBytes_FromStringAndSize(NULL, stop - start);
    if (found == NULL) return NULL;
    char *to = PyBytes_AS_STRING(found);
    Head stamp = {.size = size, .changed = changed, .inode = inode};
    int good;
    Py_INCREF(path);
    Py_BEGIN_ALLOW_THREADS
    good = read_bytes(name, &stamp, (size_t)start, (size_t)(stop - start), to);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (good) return found;
    Py_DECREF(found);
    Py_RETURN_NONE;
}

/* Parts of many files, all of one size, in one piece of memory, and of each whether it could be read. */
static PyObject *parts(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *paths, *starts, *known, *both = NULL;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "O!O!nO!", &PyTuple_Type, &paths, &PyTuple_Type, &starts, &size, &PyTuple_Type,
                          &known))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(paths);
    if (size < 1 || PyTuple_GET_SIZE(starts) != count || PyTuple_GET_SIZE(known) != count ||
        size > PY_SSIZE_T_MAX / (count + 1))
        return PyErr_Format(PyExc_ValueError, "parts without a size, or another number of starts or stamps than of paths");
    PyObject *data = PyBytes_FromStringAndSize(NULL, size * count), *good = PyList_New(count);
    struct Wanted {
        const char *name;
        Py_ssize_t start;
        Head stamp;
        int good;
    } *wanted = PyMem_Calloc((size_t)count + 1, sizeof *wanted);
    int right = data != NULL && good != NULL;
    if (wanted == NULL) PyErr_NoMemory(), right = 0;
    for (Py_ssize_t i = 0; right && i < count; i++) {
        struct Wanted *one = &wanted[i];
        char *name;
        long long length, changed, inode;
        one->start = PyLong_AsSsize_t(PyTuple_GET_ITEM(starts, i));
        right = !(one->start == -1 && PyErr_Occurred()) && PyTuple_Check(PyTuple_GET_ITEM(known, i)) &&
                PyBytes_AsStringAndSize(PyTuple_GET_ITEM(paths, i), &name, NULL) == 0 &&
                PyArg_ParseTuple(PyTuple_GET_ITEM(known, i), "LLL", &length, &changed, &inode);
        if (right && one->start < 0) right = 0;
        if (right) one->name = name, one->stamp = (Head){.size = length, .changed = changed, .inode = inode};
        if (!right && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no start, or no stamp");
    }
    if (right) {
        char *to = PyBytes_AS_STRING(data);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            struct Wanted *one = &wanted[i];
            one->good = read_bytes(one->name, &one->stamp, (size_t)one->start, (size_t)size, to + i * size);
            if (!one->good) memset(to + i * size, 0, (size_t)size);
        }
        Py_END_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) PyList_SET_ITEM(good, i, PyBool_FromLong(wanted[i].good));
        both = PyTuple_Pack(2, data, good);
    }
    Py_XDECREF(data);
    Py_XDECREF(good);
    PyMem_Free(wanted);
    return both;
}

static PyObject *named(PyObject *module, PyObject *arguments) {
    (void)module;
    int kind;
    PyObject *dtype;
    Py_ssize_t item;
    if (!PyArg_ParseTuple(arguments, "iOn", &kind, &dtype, &item)) return NULL;
    if (kind < 0 || kind >= STORAGE || item < 1 || !(dtype == Py_None || PyUnicode_CheckExact(dtype)))
        return PyErr_Format(PyExc_ValueError, "no name of a pickle");
    return (PyObject *)new_named((Kind)kind, dtype == Py_None ? NULL : dtype, item, 0, 0);
}

static PyMethodDef methods[] = {
    {"heads", heads, METH_O, "heads(paths): of each file its pickle, where its storages lie, and its stamp, or None"},
    {"stamps", stamps, METH_O, "stamps(paths): of each file its size, time of change and inode, or None"},
    {"part", part, METH_VARARGS, "part(path, start, stop, stamp): bytes of a file, or None where it has changed"},
    {"parts", parts, METH_VARARGS, "parts(paths, starts, size, stamps): the same of many files, and which were read"},
    {"named", named, METH_VARARGS, "named(kind, dtype, item_size): what a name of a pickle stands for"},
    {"unpickle", unpickle, METH_VARARGS, "unpickle(code, names, storages, tensor): the content and its tensors"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    fill_checksum_table();
    if (PyType_Ready(&NamedType) < 0) return NULL;
    return PyModuleDef_Init(&definition);
}

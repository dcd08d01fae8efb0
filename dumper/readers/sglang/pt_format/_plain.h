/* Whether what a pickle holds has a meaning by itself. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Containers that were looked into: a table of addresses, and those that wait. */
typedef struct {
    PyObject **seen, **waiting;
    size_t places, filled, count, room;
} Walk;

static int grow(Walk *walk) {
    size_t places = walk->places ? 4 * walk->places : 64;
    PyObject **seen = PyMem_Calloc(places, sizeof *seen);
    if (seen == NULL) return 0;
    for (size_t i = 0; i < walk->places; i++) {
        if (walk->seen[i] == NULL) continue;
        size_t at = ((uintptr_t)walk->seen[i] >> 4) % places;
        while (seen[at] != NULL) at = (at + 1) % places;
        seen[at] = walk->seen[i];
    }
    PyMem_Free(walk->seen);
    walk->seen = seen, walk->places = places;
    return 1;
}

/* Lets a container wait that was not yet seen. */
static int wait_for(Walk *walk, PyObject *value) {
    if (2 * walk->filled >= walk->places && !grow(walk)) return 0;
    size_t at = ((uintptr_t)value >> 4) % walk->places;
    for (; walk->seen[at] != NULL; at = (at + 1) % walk->places)
        if (walk->seen[at] == value) return 1;
    walk->seen[at] = value, walk->filled++;
    if (walk->count == walk->room) {
        size_t room = 2 * walk->room + 16;
        PyObject **more = PyMem_Realloc(walk->waiting, room * sizeof *more);
        if (more == NULL) return 0;
        walk->waiting = more, walk->room = room;
    }
    walk->waiting[walk->count++] = value;
    return 1;
}

static int is_plain_value(Walk *walk, PyObject *value, PyTypeObject *tensor) {
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyDict_Type || type == &PyODict_Type || type == &PyList_Type || type == &PyTuple_Type)
        return wait_for(walk, value);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type || type == &PyBool_Type ||
           type == &PyBytes_Type || value == Py_None || type == tensor;
}

/* Whether nothing is in it that has no meaning by itself: plain containers and values, and tensors. */
static int is_plain(PyObject *content, PyTypeObject *tensor) {
    Walk walk = {0};
    int plain = is_plain_value(&walk, content, tensor);
    while (plain && walk.count) {
        PyObject *value = walk.waiting[--walk.count], *key, *item;
        Py_ssize_t at = 0;
        if (PyDict_Check(value)) {
            while (plain && PyDict_Next(value, &at, &key, &item))
                plain = is_plain_value(&walk, key, tensor) && is_plain_value(&walk, item, tensor);
        } else {
            PyObject **items = PySequence_Fast_ITEMS(value);
            for (; plain && at < PySequence_Fast_GET_SIZE(value); at++) plain = is_plain_value(&walk, items[at], tensor);
        }
    }
    PyMem_Free(walk.seen);
    PyMem_Free(walk.waiting);
    return plain;
}

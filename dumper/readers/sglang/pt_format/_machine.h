/* The restricted unpickler, as reference.py defines it. Nothing is imported, no attribute is looked up, and nothing is
   called but the type of tensors and that of ordered dictionaries.

   The bytes come from files of others: every read is bounded by the code, every pop by the stack. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MOST_DIMENSIONS 32

typedef struct {
    const uint8_t *code;
    size_t size, at;
    PyObject **stack; /* NULL is a mark */
    size_t depth;
    PyObject **memo;
    size_t kept; /* places of the memo */
    PyObject *names, *storages; /* what the pickle may refer to; where the bytes of each storage lie */
    PyObject *tensor, *tensors; /* the type of tensors; those that were made */
} Machine;
/* Every instruction takes at least a byte and pushes one object at most, so that the stack is never deeper than the code
   is long; neither are there more places in the memo. */

static const uint8_t *take(Machine *m, size_t count) {
    if (m->size - m->at < count) return NULL;
    m->at += count;
    return m->code + m->at - count;
}

/* Takes the reference; 0 without an object. */
static int push(Machine *m, PyObject *object) {
    if (object == NULL) return 0;
    m->stack[m->depth++] = object;
    return 1;
}

static int push_copy(Machine *m, PyObject *object) {
    Py_INCREF(object);
    return push(m, object);
}

/* The object on top; NULL where there is none, or a mark. */
static PyObject *top(Machine *m) { return m->depth ? m->stack[m->depth - 1] : NULL; }

/* A tuple of what lies above `first`, which must be no mark. */
static int push_tuple(Machine *m, size_t first) {
    size_t count = m->depth - first;
    for (size_t i = first; i < m->depth; i++)
        if (m->stack[i] == NULL) return 0;
    PyObject *found = PyTuple_New((Py_ssize_t)count);
    if (found == NULL) return 0;
    for (size_t i = 0; i < count; i++) PyTuple_SET_ITEM(found, (Py_ssize_t)i, m->stack[first + i]);
    m->depth = first;
    return push(m, found);
}

/* The place of the last mark; the size of the code where there is none. */
static size_t last_mark(Machine *m) {
    for (size_t i = m->depth; i > 0; i--)
        if (m->stack[i - 1] == NULL) return i - 1;
    return m->size;
}

static void drop(Machine *m, size_t depth) {
    while (m->depth > depth) Py_XDECREF(m->stack[--m->depth]);
}

/* Appends what lies from `first` on to the list before `before`. */
static int append(Machine *m, size_t before, size_t first) {
    PyObject *list = before ? m->stack[before - 1] : NULL;
    if (list == NULL || !PyList_CheckExact(list)) return 0;
    for (size_t i = first; i < m->depth; i++)
        if (m->stack[i] == NULL || PyList_Append(list, m->stack[i]) < 0) return 0;
    drop(m, before);
    return 1;
}

static int is_key(PyObject *key) {
    return PyUnicode_CheckExact(key) || PyLong_CheckExact(key) || PyFloat_CheckExact(key) || PyBool_Check(key) ||
           PyBytes_CheckExact(key) || PyTuple_CheckExact(key) || key == Py_None;
}

static int set_items(Machine *m, size_t before, size_t first) {
    PyObject *target = before ? m->stack[before - 1] : NULL;
    if (target == NULL || !(PyDict_CheckExact(target) || Py_IS_TYPE(target, &PyODict_Type))) return 0;
    if ((m->depth - first) % 2) return 0;
    for (size_t i = first; i < m->depth; i += 2) {
        PyObject *key = m->stack[i], *value = m->stack[i + 1];
        if (key == NULL || value == NULL || !is_key(key) || PyObject_SetItem(target, key, value) < 0) return 0;
    }
    drop(m, before);
    return 1;
}

static int remember(Machine *m, size_t place) {
    PyObject *object = top(m);
    if (object == NULL || place >= m->size) return 0;
    while (m->kept <= place) m->memo[m->kept++] = NULL;
    Py_INCREF(object);
    Py_XSETREF(m->memo[place], object);
    return 1;
}

static int recall(Machine *m, size_t place) {
    return place < m->kept && m->memo[place] != NULL && push_copy(m, m->memo[place]);
}

static PyObject *long_integer(const uint8_t *bytes, size_t count) {
    if (count == 0) return PyLong_FromLong(0);
    PyObject *from_bytes = PyObject_GetAttrString((PyObject *)&PyLong_Type, "from_bytes");
    PyObject *arguments = Py_BuildValue("(y#s)", (const char *)bytes, (Py_ssize_t)count, "little");
    PyObject *named = Py_BuildValue("{sO}", "signed", Py_True);
    PyObject *found = NULL;
    if (from_bytes && arguments && named) found = PyObject_Call(from_bytes, arguments, named);
    Py_XDECREF(from_bytes);
    Py_XDECREF(arguments);
    Py_XDECREF(named);
    return found;
}

static PyObject *floating(const uint8_t *bytes) {
    uint64_t bits = 0;
    double value;
    for (int i = 0; i < 8; i++) bits = bits << 8 | bytes[i];
    memcpy(&value, &bits, sizeof value);
    return PyFloat_FromDouble(value);
}

/* A module and a name, a line each. */
static int push_name(Machine *m) {
    const uint8_t *start = m->code + m->at, *line = memchr(start, '\n', m->size - m->at);
    if (line == NULL) return 0;
    size_t rest = m->size - (size_t)(line + 1 - m->code);
    const uint8_t *end = memchr(line + 1, '\n', rest);
    if (end == NULL) return 0;
    PyObject *key = PyBytes_FromStringAndSize((const char *)start, end - start);
    PyObject *known = key == NULL ? NULL : PyDict_GetItemWithError(m->names, key);
    Py_XDECREF(key);
    m->at = (size_t)(end + 1 - m->code);
    return known != NULL && push_copy(m, known);
}

/* What a name of a pickle, or a storage that it refers to, stands for. Nobody else can make one. */
typedef enum { TYPED_STORAGE, BYTES_STORAGE, DTYPE, TYPED_TENSOR, BYTES_TENSOR, PARAMETER, ORDERED_DICT, STORAGE } Kind;

typedef struct {
    PyObject_HEAD
    Kind kind;
    PyObject *dtype; /* torch's name; NULL: bytes */
    Py_ssize_t item; /* bytes of an element */
    Py_ssize_t start, stop; /* of a storage */
} Named;

static void free_named(PyObject *object) {
    Py_XDECREF(((Named *)object)->dtype);
    PyObject_Free(object);
}

static PyTypeObject NamedType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.readers.sglang.pt_format._compiled.Named",
    .tp_basicsize = sizeof(Named),
    .tp_dealloc = free_named,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

static Named *new_named(Kind kind, PyObject *dtype, Py_ssize_t item, Py_ssize_t start, Py_ssize_t stop) {
    Named *found = PyObject_New(Named, &NamedType);
    if (found == NULL) return NULL;
    Py_XINCREF(dtype);
    found->kind = kind, found->dtype = dtype, found->item = item, found->start = start, found->stop = stop;
    return found;
}

static Named *as_named(PyObject *object, Kind kind) {
    return object != NULL && Py_IS_TYPE(object, &NamedType) && ((Named *)object)->kind == kind ? (Named *)object : NULL;
}

/* A number that is not negative; -1 for anything else. */
static Py_ssize_t count_of(PyObject *object) {
    if (!PyLong_CheckExact(object)) return -1;
    Py_ssize_t found = PyLong_AsSsize_t(object);
    if (found == -1) PyErr_Clear();
    return found < 0 ? -1 : found;
}

/* ("storage", type, key, device, elements) */
static PyObject *find_storage(Machine *m, PyObject *reference) {
    if (!PyTuple_CheckExact(reference) || PyTuple_GET_SIZE(reference) != 5) return NULL;
    PyObject **part = &PyTuple_GET_ITEM(reference, 0);
    Named *type = as_named(part[1], TYPED_STORAGE);
    if (type == NULL) type = as_named(part[1], BYTES_STORAGE);
    Py_ssize_t count = count_of(part[4]), start, stop;
    if (type == NULL || count < 0 || !PyUnicode_CheckExact(part[0]) || !PyUnicode_CheckExact(part[2])) return NULL;
    if (PyUnicode_CompareWithASCIIString(part[0], "storage") || !PyUnicode_CheckExact(part[3])) return NULL;
    PyObject *place = PyDict_GetItemWithError(m->storages, part[2]);
    if (place == NULL || !PyArg_ParseTuple(place, "nn", &start, &stop)) return NULL;
    if ((stop - start) / type->item != count || (stop - start) % type->item) return NULL;
    return (PyObject *)new_named(STORAGE, type->dtype, type->item, start, stop);
}

/* A view of a storage. NULL for one that reaches beyond it. */
static PyObject *new_tensor(Machine *m, PyObject **part, Named *dtype) {
    Named *storage = as_named(part[0], STORAGE);
    if (storage == NULL || (storage->dtype == NULL) == (dtype == NULL)) return NULL;
    if (!PyTuple_CheckExact(part[2]) || !PyTuple_CheckExact(part[3])) return NULL;
    Py_ssize_t item = dtype == NULL ? storage->item : dtype->item, bytes = storage->stop - storage->start;
    Py_ssize_t offset = count_of(part[1]), axes = PyTuple_GET_SIZE(part[2]), elements = 1;
    if (offset < 0 || axes != PyTuple_GET_SIZE(part[3]) || axes > MOST_DIMENSIONS || bytes % item) return NULL;
    Py_ssize_t last = offset, most = bytes / item;
    PyObject *strides = PyTuple_New(axes);
    for (Py_ssize_t i = 0; strides != NULL && i < axes; i++) {
        Py_ssize_t length = count_of(PyTuple_GET_ITEM(part[2], i)), stride = count_of(PyTuple_GET_ITEM(part[3], i));
        PyObject *one = NULL;
        if (length >= 0 && stride >= 0 && stride <= PY_SSIZE_T_MAX / item &&
            (length == 0 || elements <= PY_SSIZE_T_MAX / item / length))
            one = PyLong_FromSsize_t(stride * item);
        if (one == NULL) {
            Py_CLEAR(strides);
            break;
        }
        PyTuple_SET_ITEM(strides, i, one);
        elements *= length;
        if (length > 1 && stride > (PY_SSIZE_T_MAX - last) / (length - 1)) last = PY_SSIZE_T_MAX;
        if (length > 1 && last != PY_SSIZE_T_MAX) last += (length - 1) * stride;
    }
    if (strides == NULL || (elements && last >= most)) {
        Py_XDECREF(strides);
        return NULL;
    }
    Py_ssize_t start = elements ? storage->start + offset * item : 0, stop = elements ? storage->start + (last + 1) * item : 0;
    PyObject *name = dtype == NULL ? storage->dtype : dtype->dtype;
    PyObject *found = PyObject_CallFunction(m->tensor, "OONnn", name, part[2], strides, start, stop);
    if (found != NULL && PyList_Append(m->tensors, found) < 0) Py_CLEAR(found);
    return found;
}

static PyObject *call(Machine *m, PyObject *function, PyObject *arguments) {
    if (!Py_IS_TYPE(function, &NamedType)) return NULL;
    PyObject **part = &PyTuple_GET_ITEM(arguments, 0);
    Py_ssize_t count = PyTuple_GET_SIZE(arguments);
    switch (((Named *)function)->kind) {
    case TYPED_TENSOR: return count == 6 ? new_tensor(m, part, NULL) : NULL;
    case BYTES_TENSOR: {
        Named *dtype = count == 7 ? as_named(part[6], DTYPE) : NULL;
        return dtype == NULL ? NULL : new_tensor(m, part, dtype);
    }
    case PARAMETER:
        if (count != 3 || !Py_IS_TYPE(part[0], (PyTypeObject *)m->tensor)) return NULL;
        Py_INCREF(part[0]);
        return part[0];
    case ORDERED_DICT: return count == 0 ? PyObject_CallNoArgs((PyObject *)&PyODict_Type) : NULL;
    default: return NULL;
    }
}

static int push_storage(Machine *m) {
    PyObject *reference = top(m);
    PyObject *found = reference == NULL ? NULL : find_storage(m, reference);
    if (found == NULL) return 0;
    drop(m, m->depth - 1);
    return push(m, found);
}

static int call_function(Machine *m) {
    if (m->depth < 2) return 0;
    PyObject *function = m->stack[m->depth - 2], *arguments = m->stack[m->depth - 1];
    if (function == NULL || arguments == NULL || !PyTuple_CheckExact(arguments)) return 0;
    PyObject *found = call(m, function, arguments);
    drop(m, m->depth - 2);
    return push(m, found);
}

static int step(Machine *m, uint8_t instruction) {
    const uint8_t *bytes;
    size_t mark;
#define TAKE(COUNT) \
    if ((bytes = take(m, COUNT)) == NULL) return 0
    switch (instruction) {
    case '(': m->stack[m->depth++] = NULL; return 1;
    case ')': return push(m, PyTuple_New(0));
    case ']': return push(m, PyList_New(0));
    case '}': return push(m, PyDict_New());
    case 'N': return push_copy(m, Py_None);
    case 0x88: return push_copy(m, Py_True);
    case 0x89: return push_copy(m, Py_False);
    case 'K': TAKE(1); return push(m, PyLong_FromLong(bytes[0]));
    case 'M': TAKE(2); return push(m, PyLong_FromLong((long)number(bytes, 2)));
    case 'J': TAKE(4); return push(m, PyLong_FromLong((int32_t)number(bytes, 4)));
    case 0x8A: {
        TAKE(1);
        size_t count = bytes[0];
        TAKE(count);
        return push(m, long_integer(bytes, count));
    }
    case 'G': TAKE(8); return push(m, floating(bytes));
    case 'X': {
        TAKE(4);
        size_t count = number(bytes, 4);
        TAKE(count);
        return push(m, PyUnicode_DecodeUTF8((const char *)bytes, (Py_ssize_t)count, "surrogatepass"));
    }
    case 'c': return push_name(m);
    case 't': mark = last_mark(m);
        if (mark == m->size) return 0;
        if (!push_tuple(m, mark + 1)) return 0;
        m->stack[mark] = m->stack[mark + 1];
        m->depth--;
        return 1;
    case 0x85: return m->depth >= 1 && push_tuple(m, m->depth - 1);
    case 0x86: return m->depth >= 2 && push_tuple(m, m->depth - 2);
    case 0x87: return m->depth >= 3 && push_tuple(m, m->depth - 3);
    case 'a': return m->depth >= 2 && append(m, m->depth - 1, m->depth - 1);
    case 'e': mark = last_mark(m); return mark != m->size && append(m, mark, mark + 1);
    case 's': return m->depth >= 3 && set_items(m, m->depth - 2, m->depth - 2);
    case 'u': mark = last_mark(m); return mark != m->size && set_items(m, mark, mark + 1);
    case 'q': TAKE(1); return remember(m, bytes[0]);
    case 'r': TAKE(4); return remember(m, number(bytes, 4));
    case 'h': TAKE(1); return recall(m, bytes[0]);
    case 'j': TAKE(4); return recall(m, number(bytes, 4));
    case 'Q': return push_storage(m);
    case 'R': return call_function(m);
    default: return 0;
    }
#undef TAKE
}

static PyObject *run(Machine *m) {
    const uint8_t *start = take(m, 2);
    if (start == NULL || start[0] != 0x80 || start[1] != 2) return NULL;
    for (;;) {
        const uint8_t *instruction = take(m, 1);
        if (instruction == NULL) return NULL;
        if (*instruction == '.') break;
        if (!step(m, *instruction)) return NULL;
    }
    if (m->depth != 1 || m->at != m->size || m->stack[0] == NULL) return NULL;
    m->depth = 0;
    return m->stack[0];
}

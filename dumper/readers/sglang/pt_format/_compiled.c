/* The members of an archive, and the restricted unpickler, as reference.py defines them.

The bytes come from files of others: every read is bounded by the buffer, every pop by the stack. Nothing is imported,
no attribute is looked up, and only the two functions that the caller gives are called. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define END 22
#define MEMBER 46
#define LOCAL 30

static uint32_t number(const uint8_t *from, int bytes) {
    uint32_t found = 0;
    for (int i = bytes - 1; i >= 0; i--) found = found << 8 | from[i];
    return found;
}

static PyObject *refuse(void) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "something that is not read here");
    return NULL;
}

static int add_member(PyObject *found, const uint8_t *name, size_t name_size, size_t start, size_t stop, uint32_t crc) {
    PyObject *key = PyUnicode_DecodeUTF8((const char *)name, (Py_ssize_t)name_size, NULL);
    PyObject *place = Py_BuildValue("nnk", (Py_ssize_t)start, (Py_ssize_t)stop, (unsigned long)crc);
    int done = key != NULL && place != NULL && PyDict_Contains(found, key) == 0 && PyDict_SetItem(found, key, place) == 0;
    Py_XDECREF(key);
    Py_XDECREF(place);
    return done;
}

static int read_members(const uint8_t *data, size_t size, PyObject *found) {
    if (size < END) return 0;
    const uint8_t *end = data + size - END;
    uint32_t count = number(end + 10, 2), offset = number(end + 16, 4);
    if (memcmp(end, "PK\5\6", 4) || number(end + 20, 2) || count == 0xFFFF) return 0;
    if (number(end + 12, 4) == 0xFFFFFFFF || offset == 0xFFFFFFFF) return 0;
    size_t at = offset;
    for (uint32_t i = 0; i < count; i++) {
        if (at > size || size - at < MEMBER) return 0;
        const uint8_t *one = data + at;
        uint32_t packed = number(one + 20, 4), name = number(one + 28, 2), local = number(one + 42, 4);
        if (memcmp(one, "PK\1\2", 4) || number(one + 8, 2) & 1 || number(one + 10, 2)) return 0;
        if (packed != number(one + 24, 4) || packed == 0xFFFFFFFF || local == 0xFFFFFFFF) return 0;
        if (size - at - MEMBER < name || local > size || size - local < LOCAL) return 0;
        const uint8_t *head = data + local;
        size_t start = (size_t)local + LOCAL + number(head + 26, 2) + number(head + 28, 2);
        if (memcmp(head, "PK\3\4", 4) || start + packed > offset) return 0;
        if (!add_member(found, one + MEMBER, name, start, start + packed, number(one + 16, 4))) return 0;
        at += (size_t)MEMBER + name + number(one + 30, 2) + number(one + 32, 2);
    }
    return 1;
}

static PyObject *members(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer data;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0) return NULL;
    PyObject *found = PyDict_New();
    if (found != NULL && !read_members(data.buf, (size_t)data.len, found)) Py_CLEAR(found);
    PyBuffer_Release(&data);
    return found == NULL ? refuse() : found;
}

typedef struct {
    const uint8_t *code;
    size_t size, at;
    PyObject **stack; /* NULL is a mark */
    size_t depth;
    PyObject **memo;
    size_t kept; /* places of the memo */
    PyObject *names, *find, *call;
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

static int find_storage(Machine *m) {
    PyObject *reference = top(m);
    if (reference == NULL) return 0;
    PyObject *found = PyObject_CallOneArg(m->find, reference);
    drop(m, m->depth - 1);
    return push(m, found);
}

static int call_function(Machine *m) {
    if (m->depth < 2) return 0;
    PyObject *function = m->stack[m->depth - 2], *arguments = m->stack[m->depth - 1];
    if (function == NULL || arguments == NULL || !PyTuple_CheckExact(arguments)) return 0;
    PyObject *found = PyObject_CallFunctionObjArgs(m->call, function, arguments, NULL);
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
    case 'Q': return find_storage(m);
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

static PyObject *unpickle(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer code;
    Machine m = {0};
    if (!PyArg_ParseTuple(arguments, "y*O!OO", &code, &PyDict_Type, &m.names, &m.find, &m.call)) return NULL;
    m.code = code.buf;
    m.size = (size_t)code.len;
    m.stack = PyMem_Malloc((m.size + 1) * sizeof *m.stack);
    m.memo = PyMem_Malloc((m.size + 1) * sizeof *m.memo);
    PyObject *found = NULL;
    if (m.stack == NULL || m.memo == NULL)
        PyErr_NoMemory();
    else
        found = run(&m);
    drop(&m, 0);
    while (m.kept) Py_XDECREF(m.memo[--m.kept]);
    PyMem_Free(m.stack);
    PyMem_Free(m.memo);
    PyBuffer_Release(&code);
    return found == NULL ? refuse() : found;
}

/* Puts what is in a container that was not yet looked into on the list of what waits; 0 where it is no such value. */
static int look_into(PyObject *value, PyObject *seen, PyObject *waiting) {
    PyObject *address = PyLong_FromVoidPtr(value);
    int known = address == NULL ? -1 : PySet_Contains(seen, address);
    int done = known == 0 ? PySet_Add(seen, address) == 0 : known == 1;
    Py_XDECREF(address);
    if (!done || known) return done;
    PyObject *inside = PyDict_Check(value) ? PyDict_Items(value) : PySequence_List(value);
    if (inside == NULL) return 0;
    for (Py_ssize_t i = 0; done && i < PyList_GET_SIZE(inside); i++) {
        PyObject *item = PyList_GET_ITEM(inside, i);
        if (!PyDict_Check(value)) {
            done = PyList_Append(waiting, item) == 0;
        } else {
            done = PyList_Append(waiting, PyTuple_GET_ITEM(item, 0)) == 0 &&
                   PyList_Append(waiting, PyTuple_GET_ITEM(item, 1)) == 0;
        }
    }
    Py_DECREF(inside);
    return done;
}

static PyObject *is_plain(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *content, *tensor;
    if (!PyArg_ParseTuple(arguments, "OO!", &content, &PyType_Type, &tensor)) return NULL;
    PyObject *seen = PySet_New(NULL), *waiting = PyList_New(0);
    int plain = seen != NULL && waiting != NULL && PyList_Append(waiting, content) == 0;
    while (plain && PyList_GET_SIZE(waiting)) {
        Py_ssize_t last = PyList_GET_SIZE(waiting) - 1;
        PyObject *value = PyList_GET_ITEM(waiting, last);
        Py_INCREF(value);
        plain = PyList_SetSlice(waiting, last, last + 1, NULL) == 0;
        PyTypeObject *type = Py_TYPE(value);
        if (type == &PyDict_Type || type == &PyODict_Type || type == &PyList_Type || type == &PyTuple_Type)
            plain = plain && look_into(value, seen, waiting);
        else
            plain = plain && (type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type ||
                              type == &PyBool_Type || type == &PyBytes_Type || value == Py_None ||
                              type == (PyTypeObject *)tensor);
        Py_DECREF(value);
    }
    Py_XDECREF(seen);
    Py_XDECREF(waiting);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(plain);
}

static PyMethodDef methods[] = {
    {"members", members, METH_O, "members(data)"},
    {"unpickle", unpickle, METH_VARARGS, "unpickle(code, names, find, call)"},
    {"is_plain", is_plain, METH_VARARGS, "is_plain(content, tensor_type)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

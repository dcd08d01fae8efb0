/* What ``record`` of a tap is: called with a value, perhaps dims, and tags. In C from the call on, so that a tap makes
 * no frame of Python and no dict of its tags where the value comes as one came before; for all else ``__call__`` of the
 * class in Python is called, which is its definition and what compilers of models trace. */

/* Where the shortcut of a recorder is kept, for all of its taps. */

typedef struct {
    PyObject_HEAD
    PyObject *shortcut;     /* NULL: all calls go the other way */
    PyObject *compiling;    /* the dict with a flag that says whether torch compiles */
    PyTypeObject *tags;     /* the class whose ``in_use`` says whether threads have tags of their own */
} Way;

static PyTypeObject ShortcutType;

static PyObject *Way_take(Way *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 3 || !(arguments[0] == Py_None || Py_IS_TYPE(arguments[0], &ShortcutType)) ||
        !PyDict_Check(arguments[1]) || !PyType_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "take takes a Shortcut or None, a dict, and a class");
        return NULL;
    }
    Py_XSETREF(self->shortcut, arguments[0] == Py_None ? NULL : Py_NewRef(arguments[0]));
    Py_XSETREF(self->compiling, Py_NewRef(arguments[1]));
    Py_XSETREF(self->tags, (PyTypeObject *)Py_NewRef(arguments[2]));
    Py_RETURN_NONE;
}

static int Way_traverse(Way *self, visitproc visit, void *arg) {
    Py_VISIT(self->shortcut);
    Py_VISIT(self->compiling);
    Py_VISIT(self->tags);
    return 0;
}

static int Way_clear(Way *self) {
    Py_CLEAR(self->shortcut);
    Py_CLEAR(self->compiling);
    Py_CLEAR(self->tags);
    return 0;
}

static void Way_dealloc(Way *self) {
    PyObject_GC_UnTrack(self);
    Way_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef way_methods[] = {
    {"take", (PyCFunction)(void (*)(void))Way_take, METH_FASTCALL, "Have taps call this shortcut, or none."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject WayType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.recording.shortcut._compiled.Way",
    .tp_basicsize = sizeof(Way),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)Way_dealloc,
    .tp_traverse = (traverseproc)Way_traverse,
    .tp_clear = (inquiry)Way_clear,
    .tp_methods = way_methods,
};

/* Whether a dict says that something is not so, and has it. */

static int is_false(PyObject *found, PyObject *name) { return PyDict_GetItemWithError(found, name) == Py_False; }

static int is_open(const Way *way) {
    return way->shortcut != NULL && is_false(way->compiling, s__is_compiling_flag) &&
           is_false(way->tags->tp_dict, s_in_use);
}

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Way *way;
    PyObject *source;
    Py_ssize_t fired;
} TapCall;

/* As a call before; -1 where the value is lost, with an exception. */

static int call_as_before(TapCall *self, PyObject *value, PyObject *dims, PyObject *names, PyObject *const *tags) {
    Py_ssize_t count = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (!is_open(self->way) || count > MOST_TAGS) return 0;
    Shortcut *shortcut = (Shortcut *)Py_NewRef(self->way->shortcut);
    Recent wanted;
    uintptr_t mixed = begin_wanted(&wanted, self->source, dims);
    for (Py_ssize_t at = 0; at < count; at++) mixed = add_wanted(&wanted, mixed, PyTuple_GET_ITEM(names, at), tags[at]);
    int done = submit(shortcut, &wanted, place_of(shortcut, mixed), value, NULL, Py_None);
    Py_DECREF(shortcut);
    return done;
}

static PyObject *call_python(PyObject *self, PyObject *const *arguments, size_t given, PyObject *names) {
    PyObject *called = PyObject_GetAttr((PyObject *)Py_TYPE(self), s___call__);
    Py_ssize_t count = PyVectorcall_NARGS(given), all = count + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
    PyObject *few[2 + 1 + MOST_TAGS], **with_self = all + 1 <= (Py_ssize_t)(sizeof few / sizeof *few)
                                                        ? few
                                                        : PyMem_Malloc((size_t)(all + 1) * sizeof *with_self);
    if (called == NULL) return NULL;
    if (with_self == NULL) return PyErr_NoMemory();
    with_self[0] = self;
    memcpy(with_self + 1, arguments, (size_t)all * sizeof *arguments);
    PyObject *returned = PyObject_Vectorcall(called, with_self, (size_t)count + 1, names);
    Py_DECREF(called);
    if (with_self != few) PyMem_Free(with_self);
    return returned;
}

static PyObject *TapCall_vectorcall(PyObject *object, PyObject *const *arguments, size_t given, PyObject *names) {
    TapCall *self = (TapCall *)object;
    Py_ssize_t count = PyVectorcall_NARGS(given);
    int done = 0;
    if (count == 1 || count == 2)
        done = call_as_before(self, arguments[0], count == 2 ? arguments[1] : Py_None, names, arguments + count);
    if (done == 0) return call_python(object, arguments, given, names);
    self->fired++;
    if (done > 0) Py_RETURN_NONE;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject *said = PyObject_CallMethodOneArg(object, s_lost, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return said;
}

static PyObject *TapCall_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords)) {
    PyObject *way, *source;
    if (!PyArg_ParseTuple(arguments, "O!O", &WayType, &way, &source)) return NULL;
    TapCall *self = (TapCall *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->vectorcall = TapCall_vectorcall;
    self->way = (Way *)Py_NewRef(way);
    self->source = Py_NewRef(source);
    return (PyObject *)self;
}

static int TapCall_traverse(TapCall *self, visitproc visit, void *arg) {
    Py_VISIT(self->way);
    Py_VISIT(self->source);
    return 0;
}

static int TapCall_clear(TapCall *self) { /* way and source stay: it may still be called */
    (void)self;
    return 0;
}

static void TapCall_dealloc(TapCall *self) {
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->way);
    Py_XDECREF(self->source);
    Py_TYPE(self)->tp_free(self);
}

/* CPython takes the flag from a class that has a ``__call__`` of its own, since that may do something else. Here both
 * do the same, which is what the flag stands for ("Vectorcall", Python/C API). */

static PyObject *TapCall_init_subclass(PyObject *type, PyObject *Py_UNUSED(nothing)) {
    PyTypeObject *made = (PyTypeObject *)type;
    made->tp_vectorcall_offset = offsetof(TapCall, vectorcall);
    made->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
    PyType_Modified(made);
    Py_RETURN_NONE;
}

static PyMethodDef tap_call_methods[] = {
    {"__init_subclass__", TapCall_init_subclass, METH_NOARGS | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef tap_call_members[] = {
    {"fired", T_PYSSIZET, offsetof(TapCall, fired), 0, "How often it was called while something was recorded."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject TapCallType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.recording.shortcut._compiled.TapCall",
    .tp_basicsize = sizeof(TapCall),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = TapCall_new,
    .tp_dealloc = (destructor)TapCall_dealloc,
    .tp_traverse = (traverseproc)TapCall_traverse,
    .tp_clear = (inquiry)TapCall_clear,
    .tp_methods = tap_call_methods,
    .tp_members = tap_call_members,
};

/* What Recorder.submit, Session.submit, ShortWay.submit and Writer.put_small or Lane.copy do for a tensor that comes as
 * one came before, in one call. Between the kernels of a model each Python function is read from memory anew, which
 * takes several times as long as in a loop: that is why this is here.
 *
 * It decides nothing. It looks up what those have worked out (the plan, and what its ``last`` and ``last_on_device``
 * say), makes the same checks, and returns False, having done nothing, where anything is not as it was: then they do it.
 * Locks are only tried, so that it never waits for one. Where a slab of a device is full its lane begins another.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

#include "_slots.h"
#include "_state.h"
#include "_recent.h"
#include "_tensor.h"

/* What only entries of tensors on the host have; 0, perhaps with an exception, where they cannot be used. */

static int read_host(const Shortcut *self, Entry *entry, PyObject *small) {
    int follow_on = entry->rows == Py_None;
    entry->width = follow_on ? entry->bytes : as_number(PyObject_GetAttr(entry->rows, s_width));
    entry->height = follow_on ? 1 : as_number(PyObject_GetAttr(entry->rows, s_height));
    entry->pitch = follow_on ? 0 : as_number(PyObject_GetAttr(entry->rows, s_pitch));
    entry->kind = (int)as_number(PyObject_GetAttr(small, s_kind));
    entry->kept = entry->reduced_to == Py_None ? entry->width * entry->height : self->measured_bytes;
    return !PyErr_Occurred() && (entry->reduced_to == Py_None || (self->measure != NULL && entry->kind >= 0));
}

/* An entry from what a plan says of the last tensor; NULL, perhaps with an exception, where the plan says too little. */

static Entry *entry_of(const Shortcut *self, PyObject *plan, int on_device) {
    PyObject *last = on_device ? SLOT(plan, last_on_device, plan) : SLOT(plan, last, plan);
    PyObject *chosen = SLOT(plan, chosen, plan);
    if (chosen == NULL) return NULL;
    Entry *entry = PyObject_New(Entry, &EntryType);
    if (entry == NULL) return NULL;
    entry->dtype = entry->description = entry->reduced_to = entry->rows = entry->strides = entry->launch = NULL;
    entry->kernel.function = NULL;
    entry->type.bits = 0;
    entry->device = -1;
    entry->on_device = on_device;
    if (chosen == Py_None) return entry;
    int usable = last != NULL && PyTuple_Check(last) && PyTuple_GET_SIZE(last) == 5 &&
                 PyTuple_GET_ITEM(last, 2) == Py_False && PyTuple_Check(PyTuple_GET_ITEM(last, 1)) &&
                 PyTuple_GET_SIZE(PyTuple_GET_ITEM(last, 1)) <= MOST_DIMENSIONS;
    if (usable) {
        PyObject *shape = PyTuple_GET_ITEM(last, 1), *small = PyTuple_GET_ITEM(last, 4);
        entry->dtype = Py_NewRef(PyTuple_GET_ITEM(last, 0));
        entry->dimensions = (int)PyTuple_GET_SIZE(shape);
        for (int at = 0; at < entry->dimensions; at++)
            entry->sizes[at] = PyLong_AsLong(PyTuple_GET_ITEM(shape, at));
        entry->description = PyObject_GetAttr(small, s_description);
        entry->bytes = as_number(PyObject_GetAttr(small, s_nbytes));
        entry->held = as_number(PyObject_GetAttr(small, s_held));
        entry->item = as_number(PyObject_GetAttr(small, s_itemsize));
        entry->may_be_negated = as_truth(PyObject_GetAttr(small, s_may_be_negated));
        entry->may_be_conjugated = as_truth(PyObject_GetAttr(small, s_may_be_conjugated));
        entry->rows = PyObject_GetAttr(small, s_rows);
        entry->strides = Py_NewRef(PyTuple_GET_ITEM(last, 3));
        entry->reduced_to = PyObject_GetAttr(small, s_reduced_to);
        entry->kept = entry->bytes;
        usable = !PyErr_Occurred() && entry->description != Py_None;
        /* Only kernels of direct launches take tensors that are not contiguous. */
        if (on_device && self->launch == NULL) usable = usable && entry->rows == Py_None && entry->strides == Py_None;
        if (!on_device) usable = usable && read_host(self, entry, small);
    }
    if (!usable) Py_CLEAR(entry);
    return entry;
}

/* The entry of a key, anew where ``before`` does not fit. */

static Entry *find_entry(Shortcut *self, PyObject *key, int on_device, const Entry *before) {
    PyObject *plan = PyDict_GetItemWithError(self->plans, key);
    if (plan == NULL) return NULL;
    Entry *entry = entry_of(self, plan, on_device);
    if (entry == NULL) return NULL;
    if (before == NULL && PyDict_GET_SIZE(self->known) >= MOST_KNOWN) PyDict_Clear(self->known);
    if (PyDict_SetItem(self->known, key, (PyObject *)entry) < 0) Py_CLEAR(entry);
    return entry;
}

/* The memory that the status block is mapped to now; NULL where there is none, with an exception after an error. It is
 * asked for once: nobody closes or resizes a mapping, and another one may take its place. */

static unsigned char *mapped_status(Shortcut *self) {
    PyObject *mapped = SLOT(status, _map, self->status);
    if (mapped == NULL || mapped == Py_None) return NULL;
    if (self->mapped.obj != mapped) {
        PyBuffer_Release(&self->mapped);
        if (PyObject_GetBuffer(mapped, &self->mapped, PyBUF_WRITABLE) < 0) return NULL;
    }
    return self->counted_at + 8 <= self->mapped.len ? (unsigned char *)self->mapped.buf + self->counted_at : NULL;
}

/* StatusBlock.submitted. */

static int count(Shortcut *self) {
    PyObject *number = PyObject_CallNoArgs(self->next_number);
    if (number == NULL) return -1;
    uint64_t big_endian = __builtin_bswap64(PyLong_AsUnsignedLong(number));
    int known = SLOT(status, _submitted, self->status) != NULL;
    if (!known || PyErr_Occurred()) {
        Py_DECREF(number);
        return -1;
    }
    put_into_slot(self, status__submitted, self->status, number);
    unsigned char *to = mapped_status(self);
    if (to != NULL) memcpy(to, &big_endian, sizeof big_endian);
    return PyErr_Occurred() ? -1 : 0;
}

/* Room in the writer's budget. While nobody has the lock, and we keep the interpreter lock, nothing there changes. */

static int reserve(Shortcut *self, long long bytes) {
    if (CALLED(self->locked) != 0) return 0;
    long long before = NUMBER(writer, _reserved, self->writer), budget = NUMBER(writer, _budget, self->writer);
    if (before < 0 || before + bytes > budget) return 0;
    return SET(writer, _reserved, self->writer, before + bytes) == 0;
}

static int put_on_host(Shortcut *self, const Entry *entry, long long address, PyObject **slab, long long *offset) {
    *slab = SLOT(writer, _slab, self->writer);
    long long taken = NUMBER(slab, taken, *slab), begin = NUMBER(slab, address, *slab);
    *offset = NUMBER(slab, used, *slab);
    if (*offset < 0 || taken < 0 || begin <= 0 || *offset + entry->kept > self->host_slab_bytes) return 0;
    if (!reserve(self, entry->kept + self->overhead)) return 0;
    if (SET(slab, used, *slab, (*offset + entry->kept + 63) & -64) < 0 || SET(slab, taken, *slab, taken + 1) < 0) return 0;
    char *to = (char *)(uintptr_t)(begin + *offset);
    const char *from = (const char *)(uintptr_t)address;
    if (entry->reduced_to != Py_None) {
        self->measure((double *)to, from, (size_t)entry->width, (size_t)entry->height, (size_t)entry->pitch, entry->kind);
        return 1;
    }
    for (long long row = 0; row < entry->height; row++)
        memcpy(to + row * entry->width, from + row * entry->pitch, (size_t)entry->width);
    return 1;
}

#include "_device.h" /* counts on reserve */

/* Raises only where the value is lost. */

static int hand_over(Shortcut *self, const Entry *entry, PyObject *slab, long long offset, PyObject *step) {
    PyObject *done = NULL;
    PyObject *at = PyLong_FromLong(offset), *kept = PyLong_FromLong(entry->kept);
    PyObject *item = at == NULL || kept == NULL ? NULL : PyTuple_Pack(5, entry->description, slab, at, kept, step);
    Py_XDECREF(at);
    Py_XDECREF(kept);
    if (item != NULL) done = PyObject_CallOneArg(self->append, item);
    Py_XDECREF(item);
    if (done == NULL) return -1;
    Py_DECREF(done);
    if (SLOT(writer, _asleep, self->writer) == Py_True) {
        done = method(SLOT(writer, _wake, self->writer), s_set);
        if (done == NULL) return -1;
        Py_DECREF(done);
    }
    return 0;
}

static int is_tensor(Shortcut *self, PyObject *value) {
    for (int at = 0; at < MOST_TYPES && self->types[at] != NULL; at++)
        if ((PyObject *)Py_TYPE(value) == self->types[at]) return 1;
    return 0;
}

/* The entry of a value, which may be another one than was kept lately: a new reference; NULL where there is none that
 * fits, or without ``tags`` none that was kept. */

static Entry *entry_for(Shortcut *self, Incoming *incoming, const Recent *wanted, Recent *kept, PyObject *tags) {
    if (kept != NULL && is_recent(kept, wanted) && is_of(self, incoming, kept->entry))
        return (Entry *)Py_NewRef((PyObject *)kept->entry);
    if (tags == NULL) return NULL;
    PyObject *key = key_of(wanted->source, wanted->dims, tags);
    Entry *entry = key == NULL ? NULL : (Entry *)PyDict_GetItemWithError(self->known, key);
    if (entry != NULL && is_of(self, incoming, entry)) {
        Py_INCREF(entry);
    } else if (key != NULL) {
        PyErr_Clear();
        entry = find_entry(self, key, incoming->on_device, entry);
        if (entry != NULL && !is_of(self, incoming, entry)) Py_CLEAR(entry);
    }
    Py_XDECREF(key);
    if (entry != NULL && kept != NULL) keep(kept, wanted, entry);
    return entry;
}

/* 1: done; 0: not, and nothing has happened; -1: lost, with an exception. */

static int record(Shortcut *self, const Recent *wanted, Recent *kept, PyObject *value, PyObject *tags, PyObject *step) {
    Incoming incoming = {.value = value};
    long long offset = 0;
    PyObject *slab = NULL;
    if (kept != NULL) __builtin_prefetch(kept);
    expect_owners(self);
    if (!look_at(self, &incoming)) return 0;
    expect_their_values(self);
    Entry *entry = entry_for(self, &incoming, wanted, kept, tags);
    if (entry == NULL) return 0;
    int on_device = incoming.on_device, done = 0;
    if (entry->description == NULL) { /* the filter rejects it, which graphs that are captured want to know */
        done = !on_device || is_outside_of_graphs(self, &incoming);
        goto done;
    }
    if (on_device) {
        done = put_on_device(self, &incoming, entry, &slab, &offset);
    } else if ((done = put_on_host(self, entry, incoming.address, &slab, &offset)) == 1) {
        Py_INCREF(slab);
    }
    if (done == 1 && (count(self) < 0 || hand_over(self, entry, slab, offset, step) < 0)) done = -1;
    if (on_device || done) Py_XDECREF(slab);
done:
    Py_DECREF(entry);
    return done;
}

static int submit(Shortcut *self, const Recent *wanted, Recent *kept, PyObject *value, PyObject *tags, PyObject *step) {
    if (self->closed || !is_tensor(self, value)) return 0;
    if (SLOT(source, grad, wanted->source) != Py_False) return 0;
    if (step == Py_None) {
        if (SLOT(steps, announced, self->steps) != Py_True || SLOT(steps, inside, self->steps) != Py_True) return 0;
        if ((step = SLOT(steps, number, self->steps)) == NULL) return 0;
    }
    Py_INCREF(step);
    int done = record(self, wanted, kept, value, tags, step);
    Py_DECREF(step);
    if (done >= 0) PyErr_Clear();
    return done;
}

#include "_tap_call.h" /* counts on submit */

static PyObject *Shortcut_submit(Shortcut *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 5) {
        PyErr_SetString(PyExc_TypeError, "submit takes a source, a value, dims, tags and a step");
        return NULL;
    }
    PyObject *source = arguments[0], *value = arguments[1], *dims = arguments[2], *tags = arguments[3];
    Recent wanted;
    if (!PyDict_CheckExact(tags)) Py_RETURN_FALSE;
    int done = submit(self, &wanted, recent_of(self, source, dims, tags, &wanted), value, tags, arguments[4]);
    return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *Shortcut_close(Shortcut *self, PyObject *Py_UNUSED(nothing)) {
    self->closed = 1;
    Py_RETURN_NONE;
}

#define NAMED(CLASS, NAME) {CLASS##_class, #NAME},
static const SlotName slot_names[] = {SLOTS(NAMED)};

#define OBJECTS(X)                                                                                                    \
    X(steps) X(plans) X(status) X(next_number) X(writer) X(lanes) X(graph_task) X(is_tracing) X(current_stream)         \
    X(current_device) X(is_capturing) X(prepare)
#define OBJECT_NAME(NAME) #NAME,
#define OBJECT_GIVEN(NAME) , &given_##NAME
#define OBJECT_DECLARED(NAME) PyObject *given_##NAME;
#define OBJECT_SET(NAME) Py_XSETREF(self->NAME, Py_NewRef(given_##NAME));
#define OBJECT_VISIT(NAME) Py_VISIT(self->NAME);
#define OBJECT_CLEAR(NAME) Py_CLEAR(self->NAME);

static int Shortcut_init(Shortcut *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"types", "classes", OBJECTS(OBJECT_NAME) "exchange", "functions", "copy", "launch", "measure", "measured_bytes", "overhead", "alignment",
                            "host_slab_bytes", "device_slab_bytes", "counted_at", NULL};
    PyObject *types, *classes, *exchange, *functions;
    OBJECTS(OBJECT_DECLARED)
    unsigned long long copy, launch, measure;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!OOOOOOOOOOOOOOKKKnnnnnn", names, &PyTuple_Type, &types,
                                     &PyTuple_Type, &classes OBJECTS(OBJECT_GIVEN), &exchange, &functions, &copy, &launch, &measure, &self->measured_bytes, &self->overhead,
                                     &self->alignment, &self->host_slab_bytes, &self->device_slab_bytes,
                                     &self->counted_at))
        return -1;
    if (PyTuple_GET_SIZE(types) > MOST_TYPES || PyTuple_GET_SIZE(classes) != CLASS_COUNT || !PyDict_Check(given_plans) ||
        (given_lanes != Py_None && !PyDict_Check(given_lanes))) {
        PyErr_SetString(PyExc_TypeError, "too many types, not as many classes as there are, or something that is no dict");
        return -1;
    }
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(types); at++)
        Py_XSETREF(self->types[at], Py_NewRef(PyTuple_GET_ITEM(types, at)));
    for (Py_ssize_t at = 0; at < CLASS_COUNT; at++)
        Py_XSETREF(self->classes[at], Py_NewRef(PyTuple_GET_ITEM(classes, at)));
    OBJECTS(OBJECT_SET)
    const Exchange *found = exchange_of(exchange);
    self->describe = found == NULL ? NULL : found->describe;
    self->stream_of = found == NULL ? NULL : found->current_stream;
    if (read_functions(&self->functions, functions) < 0) return -1;
    PyObject *queue = PyObject_GetAttrString(self->writer, "_queue");
    if (queue == NULL) return -1;
    Py_XSETREF(self->append, PyObject_GetAttr(queue, s_append));
    Py_DECREF(queue);
    PyObject *lock = PyObject_GetAttrString(self->writer, "_lock");
    if (lock == NULL) return -1;
    Py_XSETREF(self->locked, PyObject_GetAttr(lock, s_locked));
    Py_DECREF(lock);
    if (self->append == NULL || self->locked == NULL) return -1;
    if (self->recent == NULL && (self->recent = PyMem_Calloc(MOST_RECENT, sizeof(Recent))) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->copy = (Copy)(uintptr_t)copy;
    self->launch = (LaunchKernel)(uintptr_t)launch;
    self->measure = (Measure)(uintptr_t)measure;
    Py_XSETREF(self->known, PyDict_New());
    return self->known == NULL ? -1 : find_slots(self->classes, slot_names, SLOT_COUNT, self->slots);
}

static int Shortcut_traverse(Shortcut *self, visitproc visit, void *arg) {
    for (int at = 0; at < MOST_TYPES; at++) Py_VISIT(self->types[at]);
    for (int at = 0; at < CLASS_COUNT; at++) Py_VISIT(self->classes[at]);
    Py_VISIT(self->known);
    Py_VISIT(self->lane);
    Py_VISIT(self->append);
    Py_VISIT(self->locked);
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    OBJECTS(OBJECT_VISIT)
    return 0;
}

static int Shortcut_clear(Shortcut *self) {
    self->closed = 1;
    for (int at = 0; at < MOST_TYPES; at++) Py_CLEAR(self->types[at]);
    for (int at = 0; at < CLASS_COUNT; at++) Py_CLEAR(self->classes[at]);
    Py_CLEAR(self->known);
    PyBuffer_Release(&self->mapped);
    for (int at = 0; self->recent != NULL && at < MOST_RECENT; at++) forget(&self->recent[at]);
    Py_CLEAR(self->lane);
    Py_CLEAR(self->append);
    Py_CLEAR(self->locked);
    Py_CLEAR(self->acquire);
    Py_CLEAR(self->release);
    OBJECTS(OBJECT_CLEAR)
    return 0;
}

static void Shortcut_dealloc(Shortcut *self) {
    PyObject_GC_UnTrack(self);
    Shortcut_clear(self);
    PyMem_Free(self->recent);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef methods[] = {
    {"submit", (PyCFunction)(void (*)(void))Shortcut_submit, METH_FASTCALL, "Record a value as one before; False where that cannot be."},
    {"close", (PyCFunction)Shortcut_close, METH_NOARGS, "Have submit return False from now on."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ShortcutType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.recording.shortcut._compiled.Shortcut",
    .tp_basicsize = sizeof(Shortcut),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Shortcut_init,
    .tp_dealloc = (destructor)Shortcut_dealloc,
    .tp_traverse = (traverseproc)Shortcut_traverse,
    .tp_clear = (inquiry)Shortcut_clear,
    .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_compiled", .m_doc = SOURCES, .m_size = -1};

PyMODINIT_FUNC PyInit__compiled(void) {
#define INTERN(NAME)                                                                                                  \
    if ((s_##NAME = PyUnicode_InternFromString(#NAME)) == NULL) return NULL;
    NAMES(INTERN)
    PyTypeObject *types[] = {&ShortcutType, &WayType, &TapCallType};
    PyObject *made = PyType_Ready(&EntryType) < 0 ? NULL : PyModule_Create(&module);
    for (size_t at = 0; made != NULL && at < sizeof types / sizeof *types; at++)
        if (PyModule_AddType(made, types[at]) < 0) Py_CLEAR(made);
    return made;
}

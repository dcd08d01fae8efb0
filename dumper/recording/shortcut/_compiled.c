/* What Recorder.submit, Session.submit, ShortWay.submit and Writer.put_small or Lane.copy do for a tensor that comes as
 * one came before, in one call. Between the kernels of a model each Python function is read from memory anew, which
 * takes several times as long as in a loop: that is why this is here.
 *
 * It decides nothing. It looks up what those have worked out (the plan, and what its ``last`` and ``last_on_device``
 * say), makes the same checks, and returns False, having done nothing, where anything is not as it was: then they do it.
 * Locks are only tried, so that it never waits for one.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

#include "_exchange.h"
#include "_launch.h"

typedef int (*Copy)(void *to, const void *from, size_t bytes, int kind, void *stream);

#define ON_DEVICE 3 /* cudaMemcpyDeviceToDevice */
#define MOST_TYPES 4
#define MOST_DIMENSIONS 8
#define MOST_KNOWN 50000
#define MOST_REFUSED 8 /* launches, one after another; the driver is not asked again */

/* Slots of our own classes are read where they lie. */

#define SLOTS(X)                                                                                                      \
    X(source, grad) X(steps, announced) X(steps, inside) X(steps, number) X(plan, chosen) X(plan, whole) X(plan, last)  \
    X(plan, last_on_device) X(status, _values) X(status, _map) X(writer, _lock) X(writer, _reserved)                    \
    X(writer, _budget) X(writer, _slab) X(writer, _queue) X(writer, _asleep) X(writer, _wake) X(slab, used)             \
    X(slab, taken) X(slab, address) X(lane, _lock) X(lane, _slab) X(lane, _filling) X(lane, _wanted_since)              \
    X(lane, _stays) X(device_slab, used) X(device_slab, taken) X(buffer, address)
#define CLASSES(X) X(source) X(steps) X(plan) X(status) X(writer) X(slab) X(lane) X(device_slab) X(buffer)
#define SLOT_NUMBER(CLASS, NAME) CLASS##_##NAME,
#define CLASS_NUMBER(CLASS) CLASS##_class,
enum { SLOTS(SLOT_NUMBER) SLOT_COUNT };
enum { CLASSES(CLASS_NUMBER) CLASS_COUNT };

typedef struct {
    PyObject_HEAD
    PyObject *types[MOST_TYPES]; /* of tensors; compared by identity */
    PyObject *classes[CLASS_COUNT];
    Py_ssize_t slots[SLOT_COUNT];
    PyObject *known; /* Entry by key of the plan */
    PyObject *steps, *plans, *status, *next_number, *writer;
    PyObject *lanes; /* dict of Lane by (device, stream), or None */
    PyObject *graph_task, *is_tracing, *current_stream, *current_device, *is_capturing;
    PyObject *prepare; /* DeviceStager.prepared */
    Describe describe; /* NULL: attributes are asked for, one by one */
    PyObject *lane;    /* the last one */
    long long lane_device, lane_stream;
    Copy copy;
    LaunchKernel launch; /* NULL: kernels are launched by the function that comes with them, values copied by copy */
    int refused;
    Py_ssize_t overhead, alignment, host_slab_bytes, device_slab_bytes;
    Py_ssize_t counted_at; /* where the status block has the count of values */
    int closed;
} Shortcut;

/* What a plan says of tensors like the last one. */

typedef struct {
    PyObject_HEAD
    PyObject *dtype, *description; /* description NULL: the filter rejects them */
    PyObject *reduced_to;          /* None, or what a kernel computes of them, which goes to the writer in their stead */
    PyObject *rows;                /* None, or the rows of them that are kept, where these do not follow on one another */
    PyObject *strides;             /* None for contiguous ones */
    ElementType type;              /* of dtype; no bits: not known yet */
    PyObject *launch;              /* of reduced_to, for a device and a stream; NULL or None where the driver does */
    Kernel kernel;                 /* the same, or what copies */
    long long bytes, item, sizes[MOST_DIMENSIONS]; /* bytes: from the first to the last in memory */
    long long device, stream, scratch, kept; /* device -1: not prepared yet; kept: bytes that go to the writer */
    int dimensions, on_device, may_be_negated, may_be_conjugated;
} Entry;

static void Entry_dealloc(Entry *entry) {
    Py_XDECREF(entry->dtype);
    Py_XDECREF(entry->description);
    Py_XDECREF(entry->reduced_to);
    Py_XDECREF(entry->rows);
    Py_XDECREF(entry->strides);
    Py_XDECREF(entry->launch);
    PyObject_Free(entry);
}

static PyTypeObject EntryType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.recording.shortcut._compiled.Entry",
    .tp_basicsize = sizeof(Entry),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)Entry_dealloc,
};

#define NAMES(X)                                                                                                      \
    X(submitted) X(is_cuda) X(dtype) X(shape) X(is_contiguous) X(storage_offset) X(data_ptr) X(untyped_storage)         \
    X(stride) X(nbytes) X(is_neg) X(is_conj) X(get_device) X(description) X(itemsize) X(may_be_negated) X(may_be_conjugated)      \
    X(rows) X(reduced_to) X(acquire) X(release) X(locked) X(append) X(set) X(is_cpu)
#define DECLARE(NAME) static PyObject *s_##NAME;
NAMES(DECLARE)

/* A slot of an object of one of the classes; borrowed, NULL without an exception where there is none. */

static PyObject *slot_of(const Shortcut *self, int class, int slot_number, PyObject *object) {
    if (object == NULL || (PyObject *)Py_TYPE(object) != self->classes[class]) return NULL;
    return *(PyObject **)((char *)object + self->slots[slot_number]);
}

static long long slot_number(const Shortcut *self, int class, int slot_number, PyObject *object) {
    PyObject *found = slot_of(self, class, slot_number, object);
    return found == NULL || !PyLong_Check(found) ? -2 : PyLong_AsLongLong(found);
}

static int set_slot(const Shortcut *self, int slot_number, PyObject *object, long long number) {
    PyObject *boxed = PyLong_FromLongLong(number);
    if (boxed == NULL) return -1;
    PyObject **place = (PyObject **)((char *)object + self->slots[slot_number]), *before = *place;
    *place = boxed;
    Py_XDECREF(before);
    return 0;
}

#define SLOT(CLASS, NAME, OBJECT) slot_of(self, CLASS##_class, CLASS##_##NAME, OBJECT)
#define NUMBER(CLASS, NAME, OBJECT) slot_number(self, CLASS##_class, CLASS##_##NAME, OBJECT)
#define SET(CLASS, NAME, OBJECT, VALUE) set_slot(self, CLASS##_##NAME, OBJECT, VALUE)

/* Numbers and truths of attributes, methods and functions; -2 with an exception where there is none. */

static long long as_number(PyObject *found) {
    if (found == NULL) return -2;
    long long number = PyLong_AsLongLong(found);
    Py_DECREF(found);
    return number == -1 && PyErr_Occurred() ? -2 : number;
}

static int as_truth(PyObject *found) {
    if (found == NULL) return -2;
    int truth = found == Py_True ? 1 : found == Py_False ? 0 : PyObject_IsTrue(found);
    Py_DECREF(found);
    return truth < 0 ? -2 : truth;
}

static PyObject *method(PyObject *object, PyObject *name) {
    PyObject *const arguments[1] = {object};
    return PyObject_VectorcallMethod(name, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

#define CALLED(FUNCTION) as_number(PyObject_CallNoArgs(FUNCTION))

/* Locks of the module threading: taken where they are free. */

static int try_lock(PyObject *lock) {
    if (lock == NULL) return 0;
    PyObject *const arguments[2] = {lock, Py_False};
    return as_truth(PyObject_VectorcallMethod(s_acquire, arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)) == 1;
}

static void unlock(PyObject *lock) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *done = method(lock, s_release);
    if (done == NULL) PyErr_WriteUnraisable(lock);
    Py_XDECREF(done);
    PyErr_Restore(type, value, trace);
}

/* The key of a plan, as Session.submit makes it. */

static PyObject *key_of(PyObject *source, PyObject *dims, PyObject *tags) {
    Py_ssize_t count = PyDict_GET_SIZE(tags), place = 0, at = 3;
    PyObject *tag, *tagged, *key = PyTuple_New(count == 1 ? 6 : 3 + 2 * count);
    if (key == NULL) return NULL;
    PyTuple_SET_ITEM(key, 0, Py_NewRef(source));
    PyTuple_SET_ITEM(key, 1, Py_NewRef(dims));
    PyTuple_SET_ITEM(key, 2, Py_NewRef(Py_None));
    while (PyDict_Next(tags, &place, &tag, &tagged)) {
        PyObject *type = Py_NewRef((PyObject *)Py_TYPE(tagged));
        if (count == 1) {
            PyTuple_SET_ITEM(key, 3, Py_NewRef(tag));
            PyTuple_SET_ITEM(key, 4, Py_NewRef(tagged));
            PyTuple_SET_ITEM(key, 5, type);
        } else {
            PyTuple_SET_ITEM(key, at + count, type);
            PyObject *item = PyTuple_Pack(2, tag, tagged);
            if (item == NULL) {
                Py_DECREF(key);
                return NULL;
            }
            PyTuple_SET_ITEM(key, at++, item);
        }
    }
    return key;
}

/* A tensor that comes, and what torch says of it in one call. */

typedef struct {
    PyObject *value;
    Described found; /* no device type: nothing */
    int on_device;
    long long address;
} Incoming;

/* Where it is; 0 for a tensor that is somewhere else. */

static int look_at(const Shortcut *self, Incoming *incoming) {
    incoming->found.device_type = 0;
    int described = self->describe != NULL && self->describe(incoming->value, &incoming->found) == 0;
    if (self->describe != NULL && !described) PyErr_Clear();
    incoming->on_device = incoming->found.device_type == CUDA_DEVICE;
    if (described && (incoming->on_device || incoming->found.device_type == HOST)) return 1;
    incoming->found.device_type = 0;
    incoming->on_device = as_truth(PyObject_GetAttr(incoming->value, s_is_cuda));
    return incoming->on_device == 1 ||
           (incoming->on_device == 0 && as_truth(PyObject_GetAttr(incoming->value, s_is_cpu)) == 1);
}

/* Whether a tensor is as an entry says. */

static int has_shape(PyObject *value, const Entry *entry) {
    PyObject *shape = PyObject_GetAttr(value, s_shape);
    int same = shape != NULL && PyTuple_Check(shape) && PyTuple_GET_SIZE(shape) == entry->dimensions;
    for (int at = 0; same && at < entry->dimensions; at++)
        same = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, at)) == entry->sizes[at];
    Py_XDECREF(shape);
    return same && !PyErr_Occurred();
}

static int has_strides(PyObject *value, const Entry *entry) {
    if (entry->strides == Py_None) return as_truth(method(value, s_is_contiguous)) == 1;
    PyObject *strides = method(value, s_stride);
    int same = strides != NULL && PyObject_RichCompareBool(strides, entry->strides, Py_EQ) == 1;
    Py_XDECREF(strides);
    return same;
}

static int has_form(const Incoming *incoming, Entry *entry) {
    const Described *found = &incoming->found;
    if (found->device_type && entry->type.bits && entry->strides == Py_None) {
        if (!same_type(found->type, entry->type) || found->dimensions != entry->dimensions) return 0;
        for (int at = 0; at < entry->dimensions; at++)
            if (found->sizes[at] != entry->sizes[at]) return 0;
        return follow_on(found);
    }
    PyObject *dtype = PyObject_GetAttr(incoming->value, s_dtype);
    Py_XDECREF(dtype);
    if (dtype != entry->dtype || !has_shape(incoming->value, entry) || !has_strides(incoming->value, entry)) return 0;
    if (found->device_type) entry->type = found->type;
    return 1;
}

/* Whether its memory holds it; its address is worked out. */

static int has_memory(Incoming *incoming, const Entry *entry) {
    PyObject *value = incoming->value, *storage = method(value, s_untyped_storage);
    long long held = storage == NULL ? -2 : as_number(method(storage, s_nbytes));
    Py_XDECREF(storage);
    long long offset = held < 0 ? -2 : as_number(method(value, s_storage_offset));
    if (offset < 0 || offset * entry->item + entry->bytes > held) return 0;
    if (incoming->found.device_type)
        incoming->address = (long long)((uintptr_t)incoming->found.data + incoming->found.byte_offset);
    else
        incoming->address = as_number(method(value, s_data_ptr));
    return incoming->address > 0 || (incoming->address == 0 && entry->bytes == 0);
}

static int fits(const Shortcut *self, Incoming *incoming, Entry *entry) {
    /* While torch traces, sizes are tensors; and what a backward pass computes is for the long way. */
    if (CALLED(self->is_tracing) != 0 || CALLED(self->graph_task) != -1) return 0;
    if (!has_form(incoming, entry) || !has_memory(incoming, entry)) return 0;
    if (entry->may_be_negated && as_truth(method(incoming->value, s_is_neg)) != 0) return 0;
    return !entry->may_be_conjugated || as_truth(method(incoming->value, s_is_conj)) == 0;
}

/* An entry from what a plan says of the last tensor; NULL, perhaps with an exception, where the plan says too little. */

static Entry *entry_of(const Shortcut *self, PyObject *plan, int on_device) {
    PyObject *last = on_device ? SLOT(plan, last_on_device, plan) : SLOT(plan, last, plan);
    PyObject *chosen = SLOT(plan, chosen, plan), *whole = SLOT(plan, whole, plan);
    if (chosen == NULL || whole == NULL) return NULL;
    Entry *entry = PyObject_New(Entry, &EntryType);
    if (entry == NULL) return NULL;
    entry->dtype = entry->description = entry->reduced_to = entry->rows = entry->strides = entry->launch = NULL;
    entry->kernel.function = NULL;
    entry->type.bits = 0;
    entry->device = -1;
    entry->on_device = on_device;
    if (chosen == Py_None) return entry;
    int usable = last != NULL && PyTuple_Check(last) && PyTuple_GET_SIZE(last) == 4 + on_device &&
                 PyTuple_GET_ITEM(last, 2) == Py_False && (on_device || whole == Py_True) &&
                 PyTuple_Check(PyTuple_GET_ITEM(last, 1)) &&
                 PyTuple_GET_SIZE(PyTuple_GET_ITEM(last, 1)) <= MOST_DIMENSIONS;
    if (usable) {
        PyObject *shape = PyTuple_GET_ITEM(last, 1), *small = PyTuple_GET_ITEM(last, 3 + on_device);
        entry->dtype = Py_NewRef(PyTuple_GET_ITEM(last, 0));
        entry->dimensions = (int)PyTuple_GET_SIZE(shape);
        for (int at = 0; at < entry->dimensions; at++)
            entry->sizes[at] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, at));
        entry->description = PyObject_GetAttr(small, s_description);
        entry->bytes = as_number(PyObject_GetAttr(small, s_nbytes));
        entry->item = as_number(PyObject_GetAttr(small, s_itemsize));
        entry->may_be_negated = as_truth(PyObject_GetAttr(small, s_may_be_negated));
        entry->may_be_conjugated = as_truth(PyObject_GetAttr(small, s_may_be_conjugated));
        entry->rows = PyObject_GetAttr(small, s_rows);
        entry->strides = Py_NewRef(on_device ? PyTuple_GET_ITEM(last, 3) : Py_None);
        entry->reduced_to = PyObject_GetAttr(small, s_reduced_to);
        entry->kept = entry->bytes;
        usable = !PyErr_Occurred() && entry->description != Py_None && (on_device || entry->rows == Py_None);
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

/* StatusBlock.submitted. */

static int count(Shortcut *self) {
    PyObject *number = PyObject_CallNoArgs(self->next_number);
    if (number == NULL) return -1;
    uint64_t counted = PyLong_AsUnsignedLongLong(number);
    PyObject *values = SLOT(status, _values, self->status), *mapped = SLOT(status, _map, self->status);
    int failed = values == NULL || mapped == NULL || PyDict_SetItem(values, s_submitted, number) < 0;
    Py_DECREF(number);
    Py_buffer view;
    if (!failed && mapped != Py_None && (failed = PyObject_GetBuffer(mapped, &view, PyBUF_WRITABLE)) == 0) {
        for (int at = 0; at < 8 && self->counted_at + at < view.len; at++) /* big-endian */
            ((unsigned char *)view.buf)[self->counted_at + at] = (unsigned char)(counted >> (56 - 8 * at));
        PyBuffer_Release(&view);
    }
    return failed ? -1 : 0;
}

/* Room in the writer's budget. While nobody has the lock, and we keep the interpreter lock, nothing there changes. */

static int reserve(Shortcut *self, long long bytes) {
    PyObject *lock = SLOT(writer, _lock, self->writer);
    if (lock == NULL || as_truth(method(lock, s_locked)) != 0) return 0;
    long long before = NUMBER(writer, _reserved, self->writer), budget = NUMBER(writer, _budget, self->writer);
    if (before < 0 || before + bytes > budget) return 0;
    return SET(writer, _reserved, self->writer, before + bytes) == 0;
}

static int put_on_host(Shortcut *self, const Entry *entry, long long from, PyObject **slab, long long *offset) {
    PyObject *lock = SLOT(writer, _lock, self->writer);
    *slab = SLOT(writer, _slab, self->writer);
    long long taken = NUMBER(slab, taken, *slab), address = NUMBER(slab, address, *slab);
    *offset = NUMBER(slab, used, *slab);
    if (*offset < 0 || taken < 0 || address <= 0 || *offset + entry->bytes > self->host_slab_bytes || lock == NULL) return 0;
    if (!reserve(self, entry->bytes + self->overhead)) return 0;
    if (SET(slab, used, *slab, (*offset + entry->bytes + 63) & -64) < 0 || SET(slab, taken, *slab, taken + 1) < 0) return 0;
    memcpy((void *)(uintptr_t)(address + *offset), (const void *)(uintptr_t)from, (size_t)entry->bytes);
    return 1;
}

/* The device that a value is on, and its number; NULL where there is none. */

static PyObject *device_of(const Incoming *incoming, long long *number) {
    PyObject *device = incoming->found.device_type ? PyLong_FromLong(incoming->found.device)
                                                   : method(incoming->value, s_get_device);
    if (device != NULL) *number = PyLong_AsLongLong(device);
    return device;
}

/* The lane of the stream that the value was computed on. */

static PyObject *lane_of(Shortcut *self, const Incoming *incoming, const Entry *entry, long long *number,
                         long long *stream, int *is_current) {
    if (self->lanes == Py_None) return NULL;
    PyObject *device = device_of(incoming, number), *handle = NULL, *key = NULL, *lane = NULL;
    if (device == NULL || (handle = PyObject_CallOneArg(self->current_stream, device)) == NULL) goto done;
    *stream = (long long)PyLong_AsUnsignedLongLong(handle);
    if (PyErr_Occurred()) goto done;
    *is_current = CALLED(self->current_device) == *number;
    /* The handle 0 means the default stream of the current device, on which kernels are launched as well. */
    if ((*stream == 0 || entry->reduced_to != Py_None) && !*is_current) goto done;
    if (self->lane == NULL || self->lane_device != *number || self->lane_stream != *stream) {
        if ((key = PyTuple_Pack(2, device, handle)) == NULL) goto done;
        if ((lane = PyDict_GetItemWithError(self->lanes, key)) == NULL) goto done;
        Py_XSETREF(self->lane, Py_NewRef(lane));
        self->lane_device = *number;
        self->lane_stream = *stream;
    }
    lane = Py_NewRef(self->lane);
done:
    Py_XDECREF(device);
    Py_XDECREF(handle);
    Py_XDECREF(key);
    return lane;
}

/* What is worked out once for the device and the stream of an entry: its kernel, or that there is none. */

static int prepare(Shortcut *self, Entry *entry, PyObject *value, long long device, long long stream) {
    if (entry->device == device && (entry->stream == stream || entry->reduced_to == Py_None)) return 1;
    PyObject *launch, *direct, *prepared =
        PyObject_CallFunction(self->prepare, "OOLLLO", entry->reduced_to, value, device, stream, entry->bytes, entry->rows);
    int done = prepared != NULL && prepared != Py_None &&
               PyArg_ParseTuple(prepared, "OLLO", &launch, &entry->scratch, &entry->kept, &direct);
    if (done) {
        Py_XSETREF(entry->launch, Py_NewRef(launch));
        entry->kernel.function = NULL;
        done = direct == Py_None || read_kernel(&entry->kernel, direct) == 0;
    }
    Py_XDECREF(prepared);
    entry->device = done ? device : -1;
    entry->stream = stream;
    return done;
}

/* How an entry is put into a slab. */

enum { NOT_AT_ALL, BY_DRIVER, BY_FUNCTION, BY_COPY };

static int way_of(const Shortcut *self, const Entry *entry, long long from, int is_current) {
    int aligned = from % 16 == 0; /* TENSOR_ALIGNMENT */
    if (self->launch != NULL && entry->kernel.function != NULL && aligned && is_current) return BY_DRIVER;
    if (entry->reduced_to != Py_None) return aligned && entry->launch != Py_None ? BY_FUNCTION : NOT_AT_ALL;
    return entry->rows == Py_None ? BY_COPY : NOT_AT_ALL;
}

/* Have the stream put the value, or what a kernel makes of it, where the slab has room; 0 when it will. */

static int put(Shortcut *self, Entry *entry, int way, long long to, long long from, long long stream) {
    int code = 0;
    if (way == BY_FUNCTION) {
        PyObject *done = PyObject_CallFunction(entry->launch, "LLLL", from, to, entry->scratch, stream);
        if (done == NULL) entry->device = -1; /* is to be asked for again */
        Py_XDECREF(done);
        return done == NULL ? -1 : 0;
    }
    if (way == BY_DRIVER) {
        code = launch_kernel(self->launch, &entry->kernel, from, to, stream);
        /* Perhaps this thread has not taken up the device yet, which the long way does. */
        self->refused = code == 0 ? 0 : self->refused + 1;
        if (self->refused >= MOST_REFUSED) self->launch = NULL;
    } else if (entry->bytes) {
        Py_BEGIN_ALLOW_THREADS /* it waits when the stream has been given more than it can hold */
        code = self->copy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, (size_t)entry->bytes, ON_DEVICE,
                          (void *)(uintptr_t)stream);
        Py_END_ALLOW_THREADS
    }
    return code;
}

/* With the lock of the lane. 1: done; 0: not; -1: not, and what was reserved is to be given back. */

static int fill_slab(Shortcut *self, PyObject *lane, Entry *entry, int way, long long from, long long stream,
                     PyObject *slab, long long *offset) {
    long long taken = NUMBER(device_slab, taken, slab), to = NUMBER(buffer, address, SLOT(lane, _filling, lane));
    *offset = NUMBER(device_slab, used, slab);
    long long end = *offset + entry->kept;
    /* The lane's own functions begin a slab, send it, and see to streams that may vanish. */
    if (*offset < 0 || taken < 0 || to <= 0 || end > self->device_slab_bytes) return 0;
    if (SLOT(lane, _stays, lane) != Py_True || SLOT(lane, _wanted_since, lane) != Py_None) return 0;
    if (!reserve(self, entry->kept + self->overhead)) return 0;
    if (put(self, entry, way, to + *offset, from, stream) != 0) return -1;
    if (SET(device_slab, used, slab, (end + self->alignment - 1) & -self->alignment) < 0) return -1;
    return SET(device_slab, taken, slab, taken + 1) < 0 ? -1 : 1;
}

static int put_on_device(Shortcut *self, const Incoming *incoming, Entry *entry, PyObject **slab, long long *offset) {
    long long device = 0, stream = 0, from = incoming->address;
    if (self->copy == NULL || CALLED(self->is_capturing) != 0) return 0;
    int done = 0, way = NOT_AT_ALL, is_current = 0;
    PyObject *lane = lane_of(self, incoming, entry, &device, &stream, &is_current), *lock = SLOT(lane, _lock, lane);
    if (lock != NULL && prepare(self, entry, incoming->value, device, stream)) way = way_of(self, entry, from, is_current);
    if (way != NOT_AT_ALL && try_lock(lock)) {
        *slab = SLOT(lane, _slab, lane);
        Py_XINCREF(*slab);
        done = fill_slab(self, lane, entry, way, from, stream, *slab, offset);
        unlock(lock);
        if (done != 1) Py_CLEAR(*slab);
    }
    if (done == -1) { /* the long way learns of the error */
        PyErr_Clear();
        Py_XDECREF(PyObject_CallMethod(self->writer, "give_back", "L", entry->kept + self->overhead));
        done = 0;
    }
    Py_XDECREF(lane);
    return done;
}

/* Raises only where the value is lost. */

static int hand_over(Shortcut *self, const Entry *entry, PyObject *slab, long long offset, PyObject *step) {
    PyObject *queue = SLOT(writer, _queue, self->writer), *done = NULL;
    PyObject *at = PyLong_FromLongLong(offset), *kept = PyLong_FromLongLong(entry->kept);
    PyObject *item = at == NULL || kept == NULL ? NULL : PyTuple_Pack(5, entry->description, slab, at, kept, step);
    Py_XDECREF(at);
    Py_XDECREF(kept);
    if (queue != NULL && item != NULL) {
        PyObject *const arguments[2] = {queue, item};
        done = PyObject_VectorcallMethod(s_append, arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
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

/* 1: done; 0: not, and nothing has happened; -1: lost, with an exception. */

static int record(Shortcut *self, PyObject *key, PyObject *value, PyObject *step) {
    Incoming incoming = {.value = value};
    long long offset = 0;
    PyObject *slab = NULL;
    if (!look_at(self, &incoming)) return 0;
    int on_device = incoming.on_device, done = 0;
    Entry *entry = (Entry *)PyDict_GetItemWithError(self->known, key);
    Py_XINCREF(entry);
    if (entry == NULL || entry->on_device != on_device ||
        (entry->description != NULL && !fits(self, &incoming, entry))) {
        Entry *before = entry;
        PyErr_Clear();
        entry = find_entry(self, key, on_device, before);
        Py_XDECREF(before);
        if (entry == NULL || (entry->description != NULL && !fits(self, &incoming, entry))) goto done;
    }
    if (entry->description == NULL) { /* the filter rejects it, which graphs that are captured want to know */
        done = !on_device || CALLED(self->is_capturing) == 0;
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
    Py_XDECREF(entry);
    return done;
}

static int submit(Shortcut *self, PyObject *source, PyObject *value, PyObject *dims, PyObject *tags, PyObject *step) {
    if (self->closed || !is_tensor(self, value) || !PyDict_CheckExact(tags)) return 0;
    if (SLOT(source, grad, source) != Py_False) return 0;
    if (step == Py_None) {
        if (SLOT(steps, announced, self->steps) != Py_True || SLOT(steps, inside, self->steps) != Py_True) return 0;
        if ((step = SLOT(steps, number, self->steps)) == NULL) return 0;
    }
    Py_INCREF(step);
    PyObject *key = key_of(source, dims, tags);
    int done = key == NULL ? 0 : record(self, key, value, step);
    Py_XDECREF(key);
    Py_DECREF(step);
    if (done >= 0) PyErr_Clear();
    return done;
}

static PyObject *Shortcut_submit(Shortcut *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 5) {
        PyErr_SetString(PyExc_TypeError, "submit takes a source, a value, dims, tags and a step");
        return NULL;
    }
    int done = submit(self, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]);
    return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *Shortcut_close(Shortcut *self, PyObject *Py_UNUSED(nothing)) {
    self->closed = 1;
    Py_RETURN_NONE;
}

static int find_slots(Shortcut *self) {
    static const struct {
        int class;
        const char *name;
    } described[] = {
#define DESCRIBED(CLASS, NAME) {CLASS##_class, #NAME},
        SLOTS(DESCRIBED)};
    for (int number = 0; number < SLOT_COUNT; number++) {
        PyObject *class = self->classes[described[number].class];
        PyObject *found = PyObject_GetAttrString(class, described[number].name);
        if (found == NULL) return -1;
        int is_slot = Py_TYPE(found) == &PyMemberDescr_Type;
        if (is_slot) self->slots[number] = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_DECREF(found);
        if (!is_slot) {
            PyErr_Format(PyExc_TypeError, "%R has no slot %s", class, described[number].name);
            return -1;
        }
    }
    return 0;
}

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
    static char *names[] = {"types", "classes", OBJECTS(OBJECT_NAME) "exchange", "copy", "launch", "overhead", "alignment",
                            "host_slab_bytes", "device_slab_bytes", "counted_at", NULL};
    PyObject *types, *classes, *exchange;
    OBJECTS(OBJECT_DECLARED)
    unsigned long long copy, launch;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!OOOOOOOOOOOOOKKnnnnn", names, &PyTuple_Type, &types,
                                     &PyTuple_Type, &classes OBJECTS(OBJECT_GIVEN), &exchange, &copy, &launch, &self->overhead,
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
    self->describe = describe_of(exchange);
    self->copy = (Copy)(uintptr_t)copy;
    self->launch = (LaunchKernel)(uintptr_t)launch;
    Py_XSETREF(self->known, PyDict_New());
    return self->known == NULL ? -1 : find_slots(self);
}

static int Shortcut_traverse(Shortcut *self, visitproc visit, void *arg) {
    for (int at = 0; at < MOST_TYPES; at++) Py_VISIT(self->types[at]);
    for (int at = 0; at < CLASS_COUNT; at++) Py_VISIT(self->classes[at]);
    Py_VISIT(self->known);
    Py_VISIT(self->lane);
    OBJECTS(OBJECT_VISIT)
    return 0;
}

static int Shortcut_clear(Shortcut *self) {
    self->closed = 1;
    for (int at = 0; at < MOST_TYPES; at++) Py_CLEAR(self->types[at]);
    for (int at = 0; at < CLASS_COUNT; at++) Py_CLEAR(self->classes[at]);
    Py_CLEAR(self->known);
    Py_CLEAR(self->lane);
    OBJECTS(OBJECT_CLEAR)
    return 0;
}

static void Shortcut_dealloc(Shortcut *self) {
    PyObject_GC_UnTrack(self);
    Shortcut_clear(self);
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
    if (PyType_Ready(&ShortcutType) < 0 || PyType_Ready(&EntryType) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Shortcut", (PyObject *)&ShortcutType) < 0) Py_CLEAR(made);
    return made;
}

/* What the shortcut knows: itself, its entries, and how slots, attributes and locks of objects of Python are reached. */

#include "_exchange.h"
#include "_functions.h"
#include "_launch.h"

typedef int (*Copy)(void *to, const void *from, size_t bytes, int kind, void *stream);

/* What dumper/values/statistics puts somewhere of rows of elements. */
typedef void (*Measure)(double *to, const void *from, size_t width, size_t height, size_t pitch, int kind);

#define ON_DEVICE 3 /* cudaMemcpyDeviceToDevice */
#define MOST_TYPES 4
#define MOST_DIMENSIONS 8
#define MOST_KNOWN 50000
#define MOST_REFUSED 8 /* launches, one after another; the driver is not asked again */

/* Slots of our own classes are read where they lie. */

#define SLOTS(X)                                                                                                      \
    X(source, grad) X(steps, announced) X(steps, inside) X(steps, number) X(plan, chosen) X(plan, last)  \
    X(plan, last_on_device) X(status, _submitted) X(status, _map) X(writer, _lock) X(writer, _reserved)                    \
    X(writer, _budget) X(writer, _slab) X(writer, _queue) X(writer, _asleep) X(writer, _wake) X(slab, used)             \
    X(slab, taken) X(slab, address) X(lane, _lock) X(lane, _slab) X(lane, _filling) X(lane, _stays)                     \
    X(device_slab, used) X(device_slab, taken) X(buffer, address)
#define CLASSES(X) X(source) X(steps) X(plan) X(status) X(writer) X(slab) X(lane) X(device_slab) X(buffer)
#define SLOT_NUMBER(CLASS, NAME) CLASS##_##NAME,
#define CLASS_NUMBER(CLASS) CLASS##_class,
enum { SLOTS(SLOT_NUMBER) SLOT_COUNT };
enum { CLASSES(CLASS_NUMBER) CLASS_COUNT };

struct Recent;

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
    CurrentStream stream_of; /* NULL: current_stream is called */
    Functions functions;
    PyObject *append, *locked;    /* of the writer's queue, and of its lock */
    PyObject *acquire, *release;  /* of the lock of the last lane */
    struct Recent *recent;        /* MOST_RECENT */
    PyObject *lane;    /* the last one */
    long long lane_device, lane_stream;
    Copy copy;
    LaunchKernel launch; /* NULL: no direct launches; kernels are launched by the function that comes with them, values
                            copied by copy */
    Measure measure; /* NULL: no statistics of tensors on the host */
    int refused;
    Py_ssize_t measured_bytes, overhead, alignment, host_slab_bytes, device_slab_bytes;
    Py_ssize_t counted_at; /* where the status block has the count of values */
    Py_buffer mapped;      /* of that block; no obj: not asked for yet */
    int closed;
} Shortcut;

/* What a plan says of tensors like the last one. */

typedef struct {
    PyObject_HEAD
    PyObject *dtype, *description; /* description NULL: the filter rejects them */
    PyObject *reduced_to;          /* None, or what is computed of them, which goes to the writer in their stead */
    PyObject *rows;                /* None, or the rows of them that are kept, where these do not follow on one another */
    PyObject *strides;             /* None for contiguous ones */
    ElementType type;              /* of dtype; no bits: not known yet */
    PyObject *launch;              /* of reduced_to, for a device and a stream; NULL or None where the driver does */
    Kernel kernel;                 /* the same, or what copies */
    long long bytes, held, item, sizes[MOST_DIMENSIONS]; /* bytes: from the first to the last in memory that are kept;
                                                            held: to the last of all */
    long long device, stream, scratch, kept; /* device -1: not prepared yet; kept: bytes that go to the writer */
    int dimensions, on_device, may_be_negated, may_be_conjugated;
    int kind;                       /* of elements, to measure */
    long long width, height, pitch; /* of rows on the host: bytes, and their number */
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
    X(is_cuda) X(dtype) X(shape) X(is_contiguous) X(storage_offset) X(data_ptr) X(untyped_storage)         \
    X(stride) X(nbytes) X(held) X(is_neg) X(is_conj) X(get_device) X(description) X(itemsize) X(may_be_negated) X(may_be_conjugated)      \
    X(rows) X(reduced_to) X(kind) X(width) X(height) X(pitch) X(acquire) X(release) X(locked) X(append) X(set) X(is_cpu) \
    X(in_use) X(_is_compiling_flag) X(__call__) X(lost)
#define DECLARE(NAME) static PyObject *s_##NAME;
NAMES(DECLARE)

/* Numbers of Python as ``long``, which here has 64 bits: its functions are shorter than those for ``long long``, and the
 * interpreter has just run them. */

_Static_assert(sizeof(long) == 8, "addresses are read as long");

/* A slot of an object of one of the classes; borrowed, NULL without an exception where there is none. */

static PyObject *slot_of(const Shortcut *self, int class, int slot_number, PyObject *object) {
    if (object == NULL || (PyObject *)Py_TYPE(object) != self->classes[class]) return NULL;
    return *(PyObject **)((char *)object + self->slots[slot_number]);
}

static long long slot_number(const Shortcut *self, int class, int slot_number, PyObject *object) {
    PyObject *found = slot_of(self, class, slot_number, object);
    return found == NULL || !PyLong_Check(found) ? -2 : PyLong_AsLong(found);
}

/* Takes the reference. The object is one of the slot's class. */

static void put_into_slot(const Shortcut *self, int slot_number, PyObject *object, PyObject *value) {
    PyObject **place = (PyObject **)((char *)object + self->slots[slot_number]), *before = *place;
    *place = value;
    Py_XDECREF(before);
}

static int set_slot(const Shortcut *self, int slot_number, PyObject *object, long long number) {
    PyObject *boxed = PyLong_FromLong(number);
    if (boxed == NULL) return -1;
    put_into_slot(self, slot_number, object, boxed);
    return 0;
}

#define SLOT(CLASS, NAME, OBJECT) slot_of(self, CLASS##_class, CLASS##_##NAME, OBJECT)
#define NUMBER(CLASS, NAME, OBJECT) slot_number(self, CLASS##_class, CLASS##_##NAME, OBJECT)
#define SET(CLASS, NAME, OBJECT, VALUE) set_slot(self, CLASS##_##NAME, OBJECT, VALUE)

/* Numbers and truths of attributes, methods and functions; -2 with an exception where there is none. */

static long long as_number(PyObject *found) {
    if (found == NULL) return -2;
    long long number = PyLong_AsLong(found);
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

/* The lock of the last lane: taken where it is free. */

static int try_lock(Shortcut *self) {
    PyObject *const arguments[1] = {Py_False};
    return as_truth(PyObject_Vectorcall(self->acquire, arguments, 1, NULL)) == 1;
}

static void unlock(PyObject *release) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *done = PyObject_CallNoArgs(release);
    if (done == NULL) PyErr_WriteUnraisable(release);
    Py_XDECREF(done);
    PyErr_Restore(type, value, trace);
}

/* Begin to read what is needed soon. Between the kernels of a model it is in none of the fast caches. */

static void expect_object(const void *object) {
    if (object == NULL) return;
    __builtin_prefetch(object);
    __builtin_prefetch((const char *)object + 64);
}

static void expect_owners(const Shortcut *self) {
    expect_object(self->writer);
    expect_object(self->status);
    expect_object(self->lane);
    expect_object(self->known);
    expect_object(self->next_number);
    expect_object(self->acquire);
    expect_object(self->append);
}

static void expect_their_values(const Shortcut *self) {
    expect_object(SLOT(writer, _lock, self->writer));
    expect_object(SLOT(writer, _queue, self->writer));
    expect_object(SLOT(writer, _reserved, self->writer));
    expect_object(SLOT(status, _map, self->status));
    if (self->lane != NULL) {
        expect_object(SLOT(lane, _slab, self->lane));
        expect_object(SLOT(lane, _filling, self->lane));
        expect_object(SLOT(lane, _lock, self->lane));
    } else {
        expect_object(SLOT(writer, _slab, self->writer));
    }
}

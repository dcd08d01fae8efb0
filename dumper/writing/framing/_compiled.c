/* Small values off the queue, and frames of them, made without the interpreter lock: see __init__.py. The Python code of
 * record_encoder.py says what a frame holds, docs/format.md what it looks like. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <time.h>

#include "_slots.h"
#include "_xxh3.h"

#define ALIGNMENT 64      /* of payloads in the file */
#define PIECE 64          /* records that are looked at before the interpreter lock is let go: some 15 us, or 50 where
                             they are not in the cache */
#define COPIED 16384      /* bytes; a larger payload is a buffer of its own, which costs less than to copy it */
#define LARGEST 0xffffffff /* bytes; what the length of a payload can say */
#define ALONE 65536       /* bytes of frames from which on others may run while they are made: some 20 us */
#define WAKING 50000      /* ns; a thread that waits for the lock takes as long to wake, and gets it only if it is free */
#define PAGE 65536        /* bytes; blocks are as large as some of them */
#define BLOCKS 8          /* that are kept */
#define COLUMNS 7         /* of the index */
#define NO_STEP -1
#define FINGERPRINT 16    /* bytes, as are those of the sums that it is made of */

/* Slots of our own classes are read where they lie. */

#define SLOTS(X) X(description, encoded) X(shared, counts) X(shared, number) X(shared, prefix) X(shared, summed)
#define SLOT_NUMBER(CLASS, NAME) CLASS##_##NAME,
enum { SLOTS(SLOT_NUMBER) SLOT_COUNT };
enum { description_class, shared_class, CLASS_COUNT };

typedef struct {
    PyObject_HEAD
    PyObject *classes[CLASS_COUNT];
    Py_ssize_t slots[SLOT_COUNT];
    Py_ssize_t steps_counted;
    PyObject *blocks[BLOCKS]; /* bytearrays, in use as long as others have them as well: fresh memory is slow */
} Framer;

/* What has to be known of a record to make its frame. */

typedef struct {
    const uint8_t *prefix, *payload; /* prefix: the metadata that its description gives */
    Py_ssize_t prefix_bytes, meta_bytes, bytes;
    PyObject *owner; /* what the payload is a part of; borrowed */
    Py_ssize_t offset;
    const uint8_t *summed; /* what the fingerprint is taken of, before the payload; NULL where that is recorded */
    Py_ssize_t summed_bytes;
    int64_t number, step, occurrence; /* number: of the description */
    int has_step;
} Record;

typedef struct {
    Record records[PIECE];
    Py_buffer views[PIECE]; /* of the memory that payloads lie in */
    int count, view_count, apart;
    Py_ssize_t cuts[PIECE]; /* where the payloads that are not copied, as many as apart says, belong in the block */
    int64_t rows[PIECE * COLUMNS];
    Py_ssize_t block_bytes; /* of all frames but for those payloads */
    int64_t begin, end;     /* in the file */
} Piece;

static PyObject *s_view, *s_popleft;

static PyObject *slot_of(const Framer *self, int class, int slot, PyObject *object) {
    if (object == NULL || (PyObject *)Py_TYPE(object) != self->classes[class]) return NULL;
    return *(PyObject **)((char *)object + self->slots[slot]);
}

#define SLOT(CLASS, NAME, OBJECT) slot_of(self, CLASS##_class, CLASS##_##NAME, OBJECT)

/* Integers as msgpack has them: as short as can be. */

static int packed_bytes(int64_t number) {
    if (number >= 0)
        return number < 0x80 ? 1 : number <= UINT8_MAX ? 2 : number <= UINT16_MAX ? 3 : number <= UINT32_MAX ? 5 : 9;
    return number >= -32 ? 1 : number >= INT8_MIN ? 2 : number >= INT16_MIN ? 3 : number >= INT32_MIN ? 5 : 9;
}

static uint8_t *put_number(uint8_t *to, uint64_t number, int bytes) {
    for (int at = bytes - 1; at >= 0; at--) *to++ = (uint8_t)(number >> at * 8);
    return to;
}

static uint8_t *put_packed(uint8_t *to, int64_t number) {
    int bytes = packed_bytes(number);
    if (bytes > 1) *to++ = (uint8_t)((number >= 0 ? 0xcc : 0xd0) + (bytes == 2 ? 0 : bytes == 3 ? 1 : bytes == 5 ? 2 : 3));
    return put_number(to, (uint64_t)number, bytes > 1 ? bytes - 1 : 1);
}

static uint8_t *put(uint8_t *to, const void *from, size_t bytes) {
    if (bytes) memcpy(to, from, bytes); /* an empty payload may have no address */
    return to + bytes;
}

#define PUT(TO, TEXT) put(TO, TEXT, sizeof(TEXT) - 1)
#define HEAD "\x96\xa6record\xc6"
#define KIND "record"
#define STEP "\xa4step"
#define OCCURRENCE "\xaaoccurrence"
#define ORDER "\xa5order\xcf"
#define LENGTH(TEXT) ((Py_ssize_t)sizeof(TEXT) - 1)
#define CHECKSUM_BYTES 9
#define FIXED_BYTES (LENGTH(HEAD) + 4 + CHECKSUM_BYTES + 2 + 5) /* of a frame before its payload, without its metadata
                                                                   and padding */

/* Looking at records, with the interpreter lock. False: the record is left to the Python code, and nothing has changed;
 * there may be an exception. */

static int payload_of(PyObject *record, Piece *piece, Record *found) {
    Py_ssize_t fields = PyTuple_GET_SIZE(record), bytes = -1;
    PyObject *owner = PyTuple_GET_ITEM(record, 1);
    found->owner = owner;
    found->offset = 0;
    if (fields == 5) {
        found->offset = PyLong_AsSsize_t(PyTuple_GET_ITEM(record, 2));
        bytes = PyLong_AsSsize_t(PyTuple_GET_ITEM(record, 3));
        if (found->offset < 0 || bytes < 0) return 0;
    } else if (PyBytes_CheckExact(owner)) {
        found->payload = (const uint8_t *)PyBytes_AS_STRING(owner);
        found->bytes = PyBytes_GET_SIZE(owner);
        return 1;
    }
    Py_buffer *view = &piece->views[piece->view_count];
    /* Values of one slab follow on one another. */
    if (piece->view_count && piece->count && piece->records[piece->count - 1].owner == owner) {
        view--;
    } else {
        PyObject *memory = fields == 5 ? PyObject_GetAttr(owner, s_view) : Py_NewRef(owner);
        int failed = memory == NULL || PyObject_GetBuffer(memory, view, PyBUF_SIMPLE) < 0;
        Py_XDECREF(memory);
        if (failed) return 0;
        piece->view_count++;
    }
    if (bytes < 0) bytes = view->len;
    found->payload = (const uint8_t *)view->buf + found->offset;
    found->bytes = bytes;
    return view->itemsize == 1 && bytes <= LARGEST && found->offset <= view->len - bytes;
}

/* The number of records that there were of this one's name, tags, stream and step; counted with this one. */

static int64_t counted(PyObject *counts, PyObject *step, Py_ssize_t most) {
    PyObject *before = PyDict_GetItemWithError(counts, step), *oldest;
    int64_t occurrence = before == NULL ? 0 : PyLong_AsLongLong(before);
    if (PyErr_Occurred()) return -1;
    PyObject *next = PyLong_FromLongLong(occurrence + 1);
    int failed = next == NULL || PyDict_SetItem(counts, step, next) < 0;
    Py_XDECREF(next);
    Py_ssize_t first = 0;
    if (!failed && before == NULL && PyDict_GET_SIZE(counts) > most && PyDict_Next(counts, &first, &oldest, NULL)) {
        Py_INCREF(oldest);
        failed = PyDict_DelItem(counts, oldest) < 0;
        Py_DECREF(oldest);
    }
    return failed ? -1 : occurrence;
}

static int padding_at(int64_t position) { return (int)(-position & (ALIGNMENT - 1)); }

static int look_at(const Framer *self, PyObject *record, Piece *piece) {
    Record *found = &piece->records[piece->count];
    Py_ssize_t fields = PyTuple_CheckExact(record) ? PyTuple_GET_SIZE(record) : 0;
    if (fields != 3 && fields != 5) return 0;
    PyObject *shared = SLOT(description, encoded, PyTuple_GET_ITEM(record, 0));
    PyObject *counts = SLOT(shared, counts, shared), *number = SLOT(shared, number, shared);
    PyObject *prefix = SLOT(shared, prefix, shared), *step = PyTuple_GET_ITEM(record, fields - 1);
    if (counts == NULL || !PyDict_CheckExact(counts) || number == NULL || !PyLong_CheckExact(number)) return 0;
    if (prefix == NULL || !PyBytes_CheckExact(prefix) || PyBytes_GET_SIZE(prefix) > INT32_MAX / 2) return 0;
    found->has_step = step != Py_None;
    found->step = NO_STEP;
    if (found->has_step) {
        int overflow;
        if (!PyLong_CheckExact(step)) return 0;
        found->step = PyLong_AsLongLongAndOverflow(step, &overflow);
        if (overflow) return 0;
    }
    found->number = PyLong_AsLongLong(number);
    if (!payload_of(record, piece, found)) return 0;
    PyObject *summed = SLOT(shared, summed, shared);
    found->summed = NULL;
    if (fields == 5 && summed != Py_None) {
        if (summed == NULL || !PyBytes_CheckExact(summed) || found->bytes != FINGERPRINT) return 0;
        found->summed = (const uint8_t *)PyBytes_AS_STRING(summed);
        found->summed_bytes = PyBytes_GET_SIZE(summed);
        Py_ssize_t hashed = found->summed_bytes + found->bytes;
        if (hashed < LEAST_128 || hashed > MOST_128) return 0;
    }
    found->occurrence = counted(counts, step, self->steps_counted);
    if (found->occurrence < 0) return 0;
    found->prefix = (const uint8_t *)PyBytes_AS_STRING(prefix);
    found->prefix_bytes = PyBytes_GET_SIZE(prefix);
    found->meta_bytes = found->prefix_bytes + LENGTH(STEP) + (found->has_step ? packed_bytes(found->step) : 1) +
                        LENGTH(OCCURRENCE) + packed_bytes(found->occurrence) + LENGTH(ORDER) + 8;
    Py_ssize_t frame = FIXED_BYTES + found->meta_bytes;
    frame += padding_at(piece->end + frame) + found->bytes + CHECKSUM_BYTES;
    piece->end += frame;
    piece->block_bytes += found->bytes > COPIED ? frame - found->bytes : frame;
    piece->count++;
    return 1;
}

/* Making frames, without it. */

static uint8_t *put_checksum(uint8_t *to, const uint8_t *data, size_t bytes) {
    *to++ = 0xcf;
    return put_number(to, xxh3(data, bytes), 8);
}

static uint8_t *put_meta(uint8_t *to, const Record *record, int64_t order) {
    to = put(to, record->prefix, (size_t)record->prefix_bytes);
    to = PUT(to, STEP);
    if (record->has_step)
        to = put_packed(to, record->step);
    else
        *to++ = 0xc0;
    to = put_packed(PUT(to, OCCURRENCE), record->occurrence);
    return put_number(PUT(to, ORDER), (uint64_t)order, 8);
}

static uint8_t *put_payload(uint8_t *to, const Record *record) {
    if (record->summed == NULL) return put(to, record->payload, (size_t)record->bytes);
    uint8_t hashed[MOST_128], *end = put(hashed, record->summed, (size_t)record->summed_bytes);
    uint64_t halves[2];
    end = put(end, record->payload, (size_t)record->bytes);
    xxh3_128(hashed, (size_t)(end - hashed), halves);
    return put_number(put_number(to, halves[0], 8), halves[1], 8);
}

static void make_frames(Piece *piece, uint8_t *block, int64_t order) {
    uint8_t *to = block;
    int64_t position = piece->begin, *row = piece->rows;
    for (int at = 0; at < piece->count; at++, order++) {
        const Record *record = &piece->records[at];
        size_t bytes = (size_t)record->bytes;
        uint8_t *begin = to, *meta = to + LENGTH(HEAD) + 4;
        to = put_meta(meta, record, order);
        /* The checksum is that of the kind and the metadata. */
        PUT(meta - LENGTH(KIND), KIND);
        to = put_checksum(to, meta - LENGTH(KIND), (size_t)(record->meta_bytes + LENGTH(KIND)));
        put_number(PUT(begin, HEAD), (uint64_t)record->meta_bytes, 4);
        int padding = padding_at(position + FIXED_BYTES + record->meta_bytes);
        *to++ = 0xc4;
        *to++ = (uint8_t)padding;
        memset(to, 0, (size_t)padding);
        to += padding;
        *to++ = 0xc6;
        to = put_number(to, bytes, 4);
        const int64_t columns[COLUMNS] = {position,
                                          record->number,
                                          record->step,
                                          record->occurrence,
                                          order,
                                          position + (to - begin),
                                          record->bytes};
        memcpy(row, columns, sizeof columns);
        row += COLUMNS;
        position += to - begin + record->bytes + CHECKSUM_BYTES;
        if (record->bytes > COPIED) {
            piece->cuts[piece->apart++] = to - block;
            to = put_checksum(to, record->payload, bytes);
        } else {
            uint8_t *copy = to;
            to = put_payload(to, record);
            to = put_checksum(to, copy, bytes);
        }
    }
}

/* Handing over, with it again. */

static int append_part(PyObject *buffers, PyObject *memory, Py_ssize_t begin, Py_ssize_t end) {
    PyObject *first = PyLong_FromSsize_t(begin), *last = PyLong_FromSsize_t(end), *part = NULL;
    PyObject *range = first == NULL || last == NULL ? NULL : PySlice_New(first, last, NULL);
    if (range != NULL) part = PyObject_GetItem(memory, range);
    int failed = part == NULL || PyList_Append(buffers, part) < 0;
    Py_XDECREF(first);
    Py_XDECREF(last);
    Py_XDECREF(range);
    Py_XDECREF(part);
    return failed ? -1 : 0;
}

static int append_payload(PyObject *buffers, const Record *record) {
    if (PyBytes_CheckExact(record->owner)) return PyList_Append(buffers, record->owner);
    PyObject *memory = PyMemoryView_Check(record->owner) ? Py_NewRef(record->owner) : NULL;
    if (memory == NULL) memory = PyObject_GetAttr(record->owner, s_view);
    if (memory == NULL) return -1;
    int failed = append_part(buffers, memory, record->offset, record->offset + record->bytes);
    Py_DECREF(memory);
    return failed;
}

static int append_buffers(PyObject *buffers, const Piece *piece, PyObject *block) {
    PyObject *memory = PyMemoryView_FromObject(block);
    if (memory == NULL) return -1;
    Py_ssize_t begin = 0;
    int failed = 0;
    for (int at = 0, apart = 0; apart < piece->apart && !failed; at++) {
        if (piece->records[at].bytes <= COPIED) continue;
        failed = append_part(buffers, memory, begin, piece->cuts[apart]);
        if (!failed) failed = append_payload(buffers, &piece->records[at]);
        begin = piece->cuts[apart++];
    }
    if (!failed) failed = append_part(buffers, memory, begin, piece->block_bytes);
    Py_DECREF(memory);
    return failed;
}

/* A block that nobody uses, of at least so many bytes. */

static PyObject *free_block(Framer *self, Py_ssize_t bytes) {
    int free = -1;
    for (int at = 0; at < BLOCKS; at++) {
        PyObject *block = self->blocks[at];
        if (block != NULL && Py_REFCNT(block) > 1) continue;
        if (block != NULL && PyByteArray_GET_SIZE(block) >= bytes) return Py_NewRef(block);
        if (free < 0 || block != NULL) free = at;
    }
    PyObject *made = PyByteArray_FromStringAndSize(NULL, (bytes + PAGE - 1) / PAGE * PAGE);
    if (made != NULL && free >= 0) Py_XSETREF(self->blocks[free], Py_NewRef(made));
    return made;
}

static int hand_over(Framer *self, Piece *piece, int64_t order, PyObject *buffers, PyObject *rows, int more_follow) {
    PyObject *block = free_block(self, piece->block_bytes);
    if (block == NULL) return -1;
    uint8_t *to = (uint8_t *)PyByteArray_AS_STRING(block);
    if (piece->end - piece->begin < ALONE && !more_follow) {
        make_frames(piece, to, order);
    } else {
        const struct timespec waking = {0, WAKING};
        Py_BEGIN_ALLOW_THREADS
        make_frames(piece, to, order);
        if (more_follow) nanosleep(&waking, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_ssize_t before = PyByteArray_GET_SIZE(rows), more = piece->count * COLUMNS * (Py_ssize_t)sizeof(int64_t);
    int failed = append_buffers(buffers, piece, block) < 0 || PyByteArray_Resize(rows, before + more) < 0;
    if (!failed) memcpy(PyByteArray_AS_STRING(rows) + before, piece->rows, (size_t)more);
    Py_DECREF(block);
    return failed ? -1 : 0;
}

static PyObject *Framer_encode(Framer *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 5 || !PyList_CheckExact(arguments[0]) || !PyList_CheckExact(arguments[4])) {
        PyErr_SetString(PyExc_TypeError, "encode(list of records, first, position, order, list of buffers)");
        return NULL;
    }
    PyObject *records = arguments[0];
    Py_ssize_t at = PyLong_AsSsize_t(arguments[1]);
    int64_t position = PyLong_AsLongLong(arguments[2]), order = PyLong_AsLongLong(arguments[3]);
    if (PyErr_Occurred()) return NULL;
    PyObject *rows = PyByteArray_FromStringAndSize(NULL, 0);
    Piece *piece = PyMem_Malloc(sizeof *piece);
    int failed = rows == NULL || piece == NULL, left = 0;
    if (piece == NULL) PyErr_NoMemory();
    while (!failed && !left && at >= 0 && at < PyList_GET_SIZE(records)) {
        piece->count = piece->view_count = piece->apart = 0;
        piece->block_bytes = 0;
        piece->begin = piece->end = position;
        while (!left && piece->count < PIECE && at < PyList_GET_SIZE(records)) {
            left = !look_at(self, PyList_GET_ITEM(records, at), piece);
            at += !left;
        }
        PyErr_Clear(); /* whoever takes the record that is left meets it again */
        int more_follow = !left && at < PyList_GET_SIZE(records);
        if (piece->count) failed = hand_over(self, piece, order, arguments[4], rows, more_follow) < 0;
        position = piece->end;
        order += piece->count;
        while (piece->view_count) PyBuffer_Release(&piece->views[--piece->view_count]);
    }
    PyMem_Free(piece);
    PyObject *result = failed ? NULL : Py_BuildValue("nLO", at, (long long)position, rows);
    Py_XDECREF(rows);
    return result;
}

/* What take_values of __init__.py says. */

static int move_first(PyObject *queue, PyObject *values) {
    PyObject *const arguments[1] = {queue};
    PyObject *moved = PyObject_VectorcallMethod(s_popleft, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    int failed = moved == NULL || PyList_Append(values, moved) < 0;
    Py_XDECREF(moved);
    return failed ? -1 : 0;
}

static PyObject *take_values(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "take_values(queue, most)");
        return NULL;
    }
    PyObject *queue = arguments[0], *slab = NULL;
    Py_ssize_t most = PyLong_AsSsize_t(arguments[1]), bytes = 0, left = PyObject_Size(queue);
    if (PyErr_Occurred()) return NULL;
    PyObject *values = PyList_New(0);
    int failed = values == NULL, goes_on = 1;
    for (; !failed && goes_on && most > 0 && left > 0; most--, left--) {
        PyObject *first = PySequence_GetItem(queue, 0);
        goes_on = first != NULL && PyTuple_CheckExact(first) && PyTuple_GET_SIZE(first) == 5 &&
                  (slab == NULL || PyTuple_GET_ITEM(first, 1) == slab);
        if (goes_on) {
            slab = PyTuple_GET_ITEM(first, 1); /* lives as long as the values */
            bytes += PyLong_AsSsize_t(PyTuple_GET_ITEM(first, 3));
        }
        failed = PyErr_Occurred() || (goes_on && move_first(queue, values) < 0);
        Py_XDECREF(first);
    }
    PyObject *taken = failed ? NULL : Py_BuildValue("On", values, bytes);
    Py_XDECREF(values);
    return taken;
}

/* The object. */

#define NAMED(CLASS, NAME) {CLASS##_class, #NAME},
static const SlotName slot_names[] = {SLOTS(NAMED)};

static PyObject *Framer_new(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    (void)named;
    PyObject *description, *shared;
    Py_ssize_t steps_counted;
    if (!PyArg_ParseTuple(arguments, "OOn", &description, &shared, &steps_counted)) return NULL;
    Framer *self = (Framer *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->classes[description_class] = Py_NewRef(description);
    self->classes[shared_class] = Py_NewRef(shared);
    self->steps_counted = steps_counted;
    if (find_slots(self->classes, slot_names, SLOT_COUNT, self->slots) < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static void Framer_dealloc(Framer *self) {
    for (int class = 0; class < CLASS_COUNT; class++) Py_XDECREF(self->classes[class]);
    for (int at = 0; at < BLOCKS; at++) Py_XDECREF(self->blocks[at]);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef methods[] = {
    {"encode", (PyCFunction)(void (*)(void))Framer_encode, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FramerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.writing.framing._compiled.Framer",
    .tp_basicsize = sizeof(Framer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Framer_new,
    .tp_dealloc = (destructor)Framer_dealloc,
    .tp_methods = methods,
};

static PyMethodDef functions[] = {
    {"take_values", (PyCFunction)(void (*)(void))take_values, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_compiled", .m_doc = SOURCES, .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__compiled(void) {
    s_view = PyUnicode_InternFromString("view");
    s_popleft = PyUnicode_InternFromString("popleft");
    if (s_view == NULL || s_popleft == NULL || PyType_Ready(&FramerType) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Framer", (PyObject *)&FramerType) < 0) Py_CLEAR(made);
    return made;
}

/* What would be the index of a file that has none: rows of its records, as long as they begin as others have that were
 * looked at by whoever decodes metadata. Payloads are jumped over. */

typedef struct {
    uint64_t hash;
    size_t text, bytes; /* of the prefix, in the texts */
    int64_t number;     /* of the descriptor */
} Known;

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    Known *known; /* a table, open where bytes are 0 */
    size_t known_count, known_room;
    uint8_t *texts;
    size_t text_bytes, text_room;
    int64_t *rows; /* of COLUMNS numbers */
    size_t row_count, row_room;
    Offsets steps, others;
} Scan;

static Known *place_of(const Scan *self, const uint8_t *text, size_t bytes, uint64_t hash) {
    for (size_t at = (size_t)hash & (self->known_room - 1);; at = (at + 1) & (self->known_room - 1)) {
        Known *one = &self->known[at];
        if (!one->bytes) return one;
        if (one->hash == hash && one->bytes == bytes && memcmp(self->texts + one->text, text, bytes) == 0) return one;
    }
}

static int make_room(Scan *self, size_t bytes) {
    if (self->text_bytes + bytes > self->text_room) {
        size_t room = 2 * (self->text_bytes + bytes) + 4096;
        uint8_t *more = realloc(self->texts, room);
        if (more == NULL) return -1;
        self->texts = more;
        self->text_room = room;
    }
    if (2 * (self->known_count + 1) <= self->known_room) return 0;
    Known *before = self->known;
    size_t room = self->known_room;
    self->known = calloc(2 * room, sizeof *before);
    if (self->known == NULL) {
        self->known = before;
        return -1;
    }
    self->known_room = 2 * room;
    for (size_t i = 0; i < room; i++)
        if (before[i].bytes) *place_of(self, self->texts + before[i].text, before[i].bytes, before[i].hash) = before[i];
    free(before);
    return 0;
}

static PyObject *Scan_know(Scan *self, PyObject *arguments) {
    const char *text;
    Py_ssize_t bytes;
    long long number;
    if (!PyArg_ParseTuple(arguments, "y#L", &text, &bytes, &number)) return NULL;
    if (bytes && make_room(self, (size_t)bytes) < 0) return PyErr_NoMemory();
    uint64_t hash = xxh3((const uint8_t *)text, (size_t)bytes);
    Known *one = bytes ? place_of(self, (const uint8_t *)text, (size_t)bytes, hash) : NULL;
    if (one != NULL && !one->bytes) {
        memcpy(self->texts + self->text_bytes, text, (size_t)bytes);
        *one = (Known){hash, self->text_bytes, (size_t)bytes, number};
        self->text_bytes += (size_t)bytes;
        self->known_count++;
    }
    Py_RETURN_NONE;
}

static int add_row(Scan *self, const int64_t *row) {
    if (self->row_count == self->row_room) {
        size_t room = 2 * self->row_room + 1024;
        int64_t *more = realloc(self->rows, room * COLUMNS * sizeof *more);
        if (more == NULL) return -1;
        self->rows = more;
        self->row_room = room;
    }
    memcpy(self->rows + self->row_count++ * COLUMNS, row, COLUMNS * sizeof *row);
    return 0;
}

/* The frame at a place, if it is known what to say of it: 1, and at is behind it. Negative: there is no memory. */
static int scan_over(Scan *self, const Bytes *file, size_t *at) {
    Head head;
    int found = head_at(file, *at, &head);
    if (found <= 0) return found;
    size_t position = head.position;
    int64_t length = 0, first = 0;
    for (uint32_t i = 0; i < head.payloads; i++) {
        Payload payload;
        if (!payload_at(file, &position, &payload)) return 0;
        if (!i) first = (int64_t)payload.start;
        length += (int64_t)payload.length;
    }
    if (is_kind(file, &head, "record")) {
        const uint8_t *meta = file->data + head.meta;
        Numbers numbers;
        size_t bytes = prefix_of(meta, head.meta_bytes, &numbers);
        const Known *known = bytes ? place_of(self, meta, bytes, xxh3(meta, bytes)) : NULL;
        if (known == NULL || !known->bytes) return 0;
        const int64_t row[COLUMNS] = {(int64_t)*at, known->number, numbers.step, numbers.occurrence,
                                      numbers.order, first, length};
        if (add_row(self, row) < 0) return -1;
    } else if (is_kind(file, &head, "step")) {
        if (append(&self->steps, *at) < 0) return -1;
    } else if (!is_kind(file, &head, "index")) {
        if (append(&self->others, *at) < 0) return -1;
    }
    *at = position;
    return 1;
}

static PyObject *Scan_leap(Scan *self, PyObject *arguments) {
    Py_ssize_t begin, last, most;
    if (!PyArg_ParseTuple(arguments, "nnn", &begin, &last, &most)) return NULL;
    const Bytes file = {self->view.buf, (size_t)self->view.len};
    size_t at = (size_t)begin;
    int found = 1;
    Py_BEGIN_ALLOW_THREADS
    while (at < file.size && at - (size_t)begin < (size_t)most) {
        size_t now = at;
        found = scan_over(self, &file, &at);
        if (found <= 0) break;
        last = (Py_ssize_t)now;
    }
    Py_END_ALLOW_THREADS
    if (found < 0) return PyErr_NoMemory();
    return Py_BuildValue("nnO", (Py_ssize_t)at, last, found && at < file.size ? Py_True : Py_False);
}

static PyObject *bytes_of(const void *items, size_t bytes) { return PyBytes_FromStringAndSize(items, (Py_ssize_t)bytes); }

static PyObject *Scan_take(Scan *self, PyObject *unused) {
    (void)unused;
    PyObject *taken =
        Py_BuildValue("NNN", bytes_of(self->rows, self->row_count * COLUMNS * sizeof(int64_t)),
                      bytes_of(self->steps.items, self->steps.count * sizeof(size_t)),
                      bytes_of(self->others.items, self->others.count * sizeof(size_t)));
    if (taken != NULL) self->row_count = self->steps.count = self->others.count = 0;
    return taken;
}

static PyObject *Scan_new(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    (void)named;
    PyObject *data;
    if (!PyArg_ParseTuple(arguments, "O", &data)) return NULL;
    Scan *self = (Scan *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->known_room = 256;
    self->known = calloc(self->known_room, sizeof *self->known);
    if (self->known == NULL) PyErr_NoMemory();
    if (self->known == NULL || PyObject_GetBuffer(data, &self->view, PyBUF_SIMPLE) < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static void Scan_dealloc(Scan *self) {
    free(self->known);
    free(self->texts);
    free(self->rows);
    free(self->steps.items);
    free(self->others.items);
    PyBuffer_Release(&self->view);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef scan_methods[] = {
    {"know", (PyCFunction)Scan_know, METH_VARARGS, NULL},
    {"leap", (PyCFunction)Scan_leap, METH_VARARGS, NULL},
    {"take", (PyCFunction)Scan_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ScanType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.format.checking._compiled.Scan",
    .tp_basicsize = sizeof(Scan),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Scan_new,
    .tp_dealloc = (destructor)Scan_dealloc,
    .tp_methods = scan_methods,
};

/* Every checksum of several files, by as many threads as call work(), without the interpreter lock: see __init__.py. */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <time.h>
#include <unistd.h>

#include "_frames.h"
#include "_rows.h"
#include "_walk.h"

#include "_scan.h"

#define NAP 20000000 /* ns; between two looks at what the others have done */

typedef struct {
    Py_buffer view;
    Source source;
    Part *parts;
    int made, count; /* of these; those behind damage that is longer than a part do not count */
    int current;     /* the first that does not end where the next one begins; those before do */
    int from;        /* in those before is nothing to do */
} File;

typedef struct {
    PyObject_HEAD
    File *files;
    Py_ssize_t count;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Py_ssize_t from;      /* in the files before is nothing to do */
    int walking, looking; /* threads */
    int stop, no_memory;
    uint64_t done; /* bytes */
} Checks;

static void nap(Checks *self) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += NAP;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&self->changed, &self->lock, &until);
}

static int is_done(const Part *part) { return part->state == STOPPED && part->taken == part->count; }

/* The next thing to do is begun, with the lock: a walk through a part (1), or a large payload that waits (2). */
static int take(Checks *self, Part **part, Large *large) {
    for (; self->from < self->count; self->from++) {
        File *file = &self->files[self->from];
        while (file->from < file->count && is_done(&file->parts[file->from])) file->from++;
        if (file->from < file->count) break;
    }
    for (Py_ssize_t i = self->from; i < self->count; i++)
        for (int j = self->files[i].from; j < self->files[i].count; j++) {
            Part *one = *part = &self->files[i].parts[j];
            if (one->state == WAITS && one->waiting < WAITING / 2) {
                one->state = WALKS;
                self->walking++;
                return 1;
            }
            if (one->taken < one->count) {
                *large = one->large[one->taken++];
                one->waiting -= large->payload.length;
                self->looking++;
                return 2;
            }
        }
    return 0;
}

typedef struct {
    Checks *checks;
    PyThreadState **waits; /* of the thread that waits for the others, to which signals come; else NULL */
} Worker;

static int stops(void *asked) {
    Worker *worker = asked;
    if (worker->waits != NULL) {
        PyEval_RestoreThread(*worker->waits);
        if (PyErr_CheckSignals() < 0) __atomic_store_n(&worker->checks->stop, 1, __ATOMIC_RELAXED);
        *worker->waits = PyEval_SaveThread();
    }
    return __atomic_load_n(&worker->checks->stop, __ATOMIC_RELAXED);
}

/* Work until so many bytes were done; 0: nothing is left. The thread that waits for the others does not end before
 * them, and comes back between two naps. */
static int work_for(Checks *self, uint64_t most, PyThreadState **waits) {
    Worker worker = {self, waits};
    int left = 1;
    pthread_mutex_lock(&self->lock);
    uint64_t begin = self->done;
    while (left && !self->no_memory && !self->stop && self->done - begin < most) {
        Part *part;
        Large large;
        int what = take(self, &part, &large);
        if (!what) {
            left = self->walking || (waits != NULL && self->looking);
            if (left) nap(self);
            if (waits != NULL) break;
            continue;
        }
        pthread_mutex_unlock(&self->lock);
        int no_memory = 0, intact = 1;
        uint64_t done = what == 1 ? walk(part, &self->lock, &no_memory) : large.payload.length;
        if (what == 2) intact = is_intact(part->source, &large.payload, stops, &worker);
        pthread_mutex_lock(&self->lock);
        if (!intact) no_memory |= append(&part->damaged, large.frame) < 0;
        self->no_memory |= no_memory;
        self->done += done;
        part->done += done;
        if (what == 1) self->walking--;
        else self->looking--;
        pthread_cond_broadcast(&self->changed);
    }
    left = left && !self->no_memory && !self->stop;
    pthread_mutex_unlock(&self->lock);
    return left;
}

static PyObject *Checks_work(Checks *self, PyObject *arguments) {
    unsigned long long most;
    int waits, left;
    if (!PyArg_ParseTuple(arguments, "Kp", &most, &waits)) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    left = work_for(self, most, waits ? &state : NULL);
    PyEval_RestoreThread(state);
    if (PyErr_Occurred()) return NULL;
    if (self->no_memory) return PyErr_NoMemory();
    return PyBool_FromLong(left);
}

static File *file_of(Checks *self, Py_ssize_t number) {
    if (number >= 0 && number < self->count) return &self->files[number];
    PyErr_SetString(PyExc_IndexError, "there is no file of that number");
    return NULL;
}

/* Once nothing is left to do. */
static File *joined(Checks *self, PyObject *number) {
    File *file = file_of(self, PyLong_AsSsize_t(number));
    while (file != NULL && file->current < file->count - 1 &&
           file->parts[file->current].at == file->parts[file->current].stop)
        file->current++;
    return file;
}

static PyObject *Checks_place(Checks *self, PyObject *number) {
    File *file = joined(self, number);
    if (file == NULL) return NULL;
    const Part *part = &file->parts[file->current];
    /* The first frame of a part may be none: the one before is in the part before. */
    size_t last = part->last;
    for (int j = file->current; j > 0 && file->parts[j].at == file->parts[j - 1].stop; j--) last = file->parts[j - 1].last;
    return Py_BuildValue("nn", (Py_ssize_t)part->at, (Py_ssize_t)last);
}

static PyObject *Checks_go_on(Checks *self, PyObject *arguments) {
    Py_ssize_t number, at, last;
    if (!PyArg_ParseTuple(arguments, "nnn", &number, &at, &last)) return NULL;
    File *file = file_of(self, number);
    if (file == NULL) return NULL;
    pthread_mutex_lock(&self->lock);
    Part *part = &file->parts[file->current];
    if ((size_t)at > part->stop) { /* the parts behind begin where there is nothing to begin with */
        for (int j = file->current + 1; j < file->count; j++) self->done -= file->parts[j].done;
        file->count = file->current + 1;
        part->stop = file->source.bytes.size;
    }
    part->at = part->let_go = (size_t)at;
    part->last = (size_t)last;
    part->rows.agrees = 0; /* something is between */
    part->state = part->at < part->stop ? WAITS : STOPPED;
    self->from = file->from = 0;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static int add_offsets(PyObject *list, const Offsets *offsets) {
    for (size_t i = 0; i < offsets->count; i++) {
        PyObject *offset = PyLong_FromSize_t(offsets->items[i]);
        int failed = offset == NULL || PyList_Append(list, offset) < 0;
        Py_XDECREF(offset);
        if (failed) return -1;
    }
    return 0;
}

static int add_prefixes(PyObject *list, const Rows *rows) {
    for (size_t i = 0; i < rows->prefix_count; i++) {
        const Prefix *prefix = &rows->prefixes[i];
        PyObject *one = Py_BuildValue("Iy#", prefix->descriptor, (const char *)prefix->text, (Py_ssize_t)prefix->bytes);
        int failed = one == NULL || PyList_Append(list, one) < 0;
        Py_XDECREF(one);
        if (failed) return -1;
    }
    return 0;
}

static PyObject *Checks_outcome(Checks *self, PyObject *number) {
    File *file = joined(self, number);
    if (file == NULL) return NULL;
    PyObject *steps = PyList_New(0), *damaged = PyList_New(0), *prefixes = PyList_New(0);
    int failed = steps == NULL || damaged == NULL || prefixes == NULL;
    size_t records = 0, agree = 1;
    for (int j = 0; j <= file->current && !failed; j++) {
        const Part *part = &file->parts[j];
        records += part->records;
        agree = agree && part->rows.agrees && part->rows.seen == records;
        failed = add_offsets(steps, &part->steps) < 0 || add_offsets(damaged, &part->damaged) < 0 ||
                 (agree && add_prefixes(prefixes, &part->rows) < 0);
    }
    if (!failed && !(agree && records == file->parts[0].rows.count)) Py_SETREF(prefixes, Py_NewRef(Py_None));
    if (!failed) return Py_BuildValue("nNNN", (Py_ssize_t)records, steps, damaged, prefixes);
    Py_XDECREF(steps);
    Py_XDECREF(damaged);
    Py_XDECREF(prefixes);
    return NULL;
}

static PyObject *Checks_stop(Checks *self, PyObject *unused) {
    (void)unused;
    __atomic_store_n(&self->stop, 1, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

static PyObject *Checks_done(Checks *self, void *unused) {
    (void)unused;
    pthread_mutex_lock(&self->lock);
    uint64_t done = self->done;
    pthread_mutex_unlock(&self->lock);
    return PyLong_FromUnsignedLongLong(done);
}

static int open_file(File *file, PyObject *given) {
    PyObject *data;
    size_t begins[MOST_PARTS], first_rows[MOST_PARTS];
    Rows rows;
    if (!PyArg_ParseTuple(given, "Op", &data, &file->source.is_mapped)) return -1;
    if (PyObject_GetBuffer(data, &file->view, PyBUF_SIMPLE) < 0) return -1;
    file->source.bytes = (Bytes){file->view.buf, (size_t)file->view.len};
    find_columns(&file->source.bytes, &rows);
    int count = cut(&file->source, &rows, begins, first_rows);
    file->parts = PyMem_Calloc((size_t)count, sizeof *file->parts);
    if (file->parts == NULL) {
        PyBuffer_Release(&file->view);
        PyErr_NoMemory();
        return -1;
    }
    file->made = file->count = count;
    for (int j = 0; j < count; j++) {
        Part *part = &file->parts[j];
        part->source = &file->source;
        part->rows = rows;
        part->rows.seen = first_rows[j];
        part->at = part->let_go = begins[j];
        part->stop = j + 1 < count ? begins[j + 1] : file->source.bytes.size;
        part->state = part->at < part->stop ? WAITS : STOPPED;
    }
    return 0;
}

static PyObject *Checks_new(PyTypeObject *type, PyObject *arguments, PyObject *named) {
    (void)named;
    PyObject *given;
    unsigned long long part = PART, large = LARGE; /* tests have smaller ones */
    if (!PyArg_ParseTuple(arguments, "O!|KK", &PyList_Type, &given, &part, &large)) return NULL;
    Checks *self = (Checks *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    self->files = PyMem_Calloc((size_t)PyList_GET_SIZE(given) + 1, sizeof *self->files);
    int failed = self->files == NULL;
    if (failed) PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(given) && !failed; i++, self->count += !failed) {
        self->files[i].source.part = part;
        self->files[i].source.large = large;
        failed = open_file(&self->files[i], PyList_GET_ITEM(given, i)) < 0;
    }
    if (failed) Py_CLEAR(self);
    return (PyObject *)self;
}

static void Checks_dealloc(Checks *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        File *file = &self->files[i];
        for (int j = 0; j < file->made; j++) free_part(&file->parts[j]);
        PyMem_Free(file->parts);
        PyBuffer_Release(&file->view);
    }
    PyMem_Free(self->files);
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef methods[] = {
    {"work", (PyCFunction)Checks_work, METH_VARARGS, NULL},
    {"place", (PyCFunction)Checks_place, METH_O, NULL},
    {"go_on", (PyCFunction)Checks_go_on, METH_VARARGS, NULL},
    {"outcome", (PyCFunction)Checks_outcome, METH_O, NULL},
    {"stop", (PyCFunction)Checks_stop, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {{"done", (getter)Checks_done, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject ChecksType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dumper.format.checking._compiled.Checks",
    .tp_basicsize = sizeof(Checks),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Checks_new,
    .tp_dealloc = (destructor)Checks_dealloc,
    .tp_methods = methods,
    .tp_getset = properties,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_compiled", .m_doc = SOURCES, .m_size = -1};

PyMODINIT_FUNC PyInit__compiled(void) {
    page = (size_t)sysconf(_SC_PAGESIZE);
    if (PyType_Ready(&ChecksType) < 0 || PyType_Ready(&ScanType) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Checks", (PyObject *)&ChecksType) < 0) Py_CLEAR(made);
    if (made != NULL && PyModule_AddObjectRef(made, "Scan", (PyObject *)&ScanType) < 0) Py_CLEAR(made);
    return made;
}

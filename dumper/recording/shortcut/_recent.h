/* Entries that were found lately, by the addresses of what the key of their plan is made of. To make that key, and to
 * hash and compare what is in it, reads a dozen objects that are in none of the fast caches between the kernels of a
 * model. */

#define MOST_RECENT 1024 /* a power of two; those of more taps and layers than that take turns */
#define MOST_TAGS 3

typedef struct Recent {
    PyObject *source, *dims; /* source NULL: nothing is here */
    PyObject *tags[2 * MOST_TAGS];
    int count; /* of tags */
    Entry *entry;
} Recent;

/* Whether it is the same object that always stands for a value like that, or for as long as it is kept here. */

static int is_plain(PyObject *tagged) {
    return tagged == Py_None || PyBool_Check(tagged) || PyLong_CheckExact(tagged) || PyUnicode_CheckExact(tagged);
}

/* ``wanted`` gets all but the entry, tag by tag, at most MOST_TAGS of them; where such an entry is kept follows from what
 * is handed on. */

static uintptr_t begin_wanted(Recent *wanted, PyObject *source, PyObject *dims) {
    memset(wanted, 0, sizeof *wanted);
    wanted->source = source;
    wanted->dims = dims;
    return (uintptr_t)source >> 4;
}

static uintptr_t add_wanted(Recent *wanted, uintptr_t mixed, PyObject *tag, PyObject *tagged) {
    wanted->tags[2 * wanted->count] = tag;
    wanted->tags[2 * wanted->count + 1] = tagged;
    wanted->count++;
    return mixed * 31 + ((uintptr_t)tagged >> 4);
}

static Recent *place_of(const Shortcut *self, uintptr_t mixed) {
    return &self->recent[(mixed ^ (mixed >> 10)) & (MOST_RECENT - 1)];
}

/* NULL where there are too many tags. */

static Recent *recent_of(const Shortcut *self, PyObject *source, PyObject *dims, PyObject *tags, Recent *wanted) {
    Py_ssize_t place = 0;
    PyObject *tag, *tagged;
    uintptr_t mixed = begin_wanted(wanted, source, dims);
    if (PyDict_GET_SIZE(tags) > MOST_TAGS) return NULL;
    while (PyDict_Next(tags, &place, &tag, &tagged)) mixed = add_wanted(wanted, mixed, tag, tagged);
    return place_of(self, mixed);
}

static int is_recent(const Recent *kept, const Recent *wanted) {
    return kept->source == wanted->source && kept->dims == wanted->dims && kept->count == wanted->count &&
           memcmp(kept->tags, wanted->tags, sizeof kept->tags) == 0;
}

static void forget(Recent *kept) {
    Recent before = *kept;
    memset(kept, 0, sizeof *kept);
    Py_XDECREF(before.source);
    Py_XDECREF(before.dims);
    for (int at = 0; at < 2 * before.count; at++) Py_DECREF(before.tags[at]);
    Py_XDECREF(before.entry);
}

static void keep(Recent *kept, const Recent *wanted, Entry *entry) {
    for (int at = 0; at < wanted->count; at++)
        if (!is_plain(wanted->tags[2 * at + 1])) return;
    Recent made = *wanted;
    Py_INCREF(made.source);
    Py_INCREF(made.dims);
    for (int at = 0; at < 2 * made.count; at++) Py_INCREF(made.tags[at]);
    made.entry = (Entry *)Py_NewRef((PyObject *)entry);
    forget(kept);
    *kept = made;
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

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

/* Where the entry of these is kept, perhaps; ``wanted`` has all but the entry. NULL where they are not for this. */

static Recent *recent_of(const Shortcut *self, PyObject *source, PyObject *dims, PyObject *tags, Recent *wanted) {
    Py_ssize_t place = 0;
    PyObject *tag, *tagged;
    uintptr_t mixed = (uintptr_t)source >> 4;
    if (PyDict_GET_SIZE(tags) > MOST_TAGS) return NULL;
    memset(wanted, 0, sizeof *wanted);
    wanted->source = source;
    wanted->dims = dims;
    while (PyDict_Next(tags, &place, &tag, &tagged)) {
        wanted->tags[2 * wanted->count] = tag;
        wanted->tags[2 * wanted->count + 1] = tagged;
        wanted->count++;
        mixed = mixed * 31 + ((uintptr_t)tagged >> 4);
    }
    return &self->recent[(mixed ^ (mixed >> 10)) & (MOST_RECENT - 1)];
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

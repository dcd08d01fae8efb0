/* Slots of our own classes, read where they lie. */

typedef struct {
    int class; /* its place among the classes */
    const char *name;
} SlotName;

/* Where the slots lie in objects of their classes, in bytes; -1 with an exception where a class has no such slot. */

static int find_slots(PyObject *const *classes, const SlotName *names, int count, Py_ssize_t *slots) {
    for (int number = 0; number < count; number++) {
        PyObject *class = classes[names[number].class];
        PyObject *found = PyObject_GetAttrString(class, names[number].name);
        if (found == NULL) return -1;
        int is_slot = Py_TYPE(found) == &PyMemberDescr_Type;
        if (is_slot) slots[number] = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_DECREF(found);
        if (!is_slot) {
            PyErr_Format(PyExc_TypeError, "%R has no slot %s", class, names[number].name);
            return -1;
        }
    }
    return 0;
}

/* Whether a tensor is as an entry says. */

/* A tensor that comes, and what torch says of it in one call. */

typedef struct {
    PyObject *value;
    Described found; /* no device type: nothing */
    int on_device;
    long long address;
} Incoming;

/* Where it is; 0 for a tensor that is somewhere else. Without direct launches tensors of devices are asked about one by
 * one, as everything of them is then. */

static int look_at(const Shortcut *self, Incoming *incoming) {
    incoming->found.device_type = 0;
    if (self->launch == NULL && self->lanes != Py_None &&
        (incoming->on_device = as_truth(PyObject_GetAttr(incoming->value, s_is_cuda))) != 0)
        return incoming->on_device == 1;
    int described = self->describe != NULL && self->describe(incoming->value, &incoming->found) == 0;
    if (self->describe != NULL && !described) PyErr_Clear();
    incoming->on_device = described && incoming->found.device_type == CUDA_DEVICE;
    if (described && (incoming->on_device ? self->launch != NULL : incoming->found.device_type == HOST)) return 1;
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
        same = PyLong_AsLong(PyTuple_GET_ITEM(shape, at)) == entry->sizes[at];
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

static int has_form(const Shortcut *self, const Incoming *incoming, Entry *entry) {
    const Described *found = &incoming->found;
    if (found->device_type && entry->type.bits && entry->strides == Py_None) {
        if (!same_type(found->type, entry->type) || found->dimensions != entry->dimensions) return 0;
        for (int at = 0; at < entry->dimensions; at++)
            if (found->sizes[at] != entry->sizes[at]) return 0;
        return follow_on(found);
    }
    if (CALLED(self->is_tracing) != 0) return 0; /* what it says through Python is made of tensors then */
    PyObject *dtype = PyObject_GetAttr(incoming->value, s_dtype);
    Py_XDECREF(dtype);
    if (dtype != entry->dtype || !has_shape(incoming->value, entry) || !has_strides(incoming->value, entry)) return 0;
    if (found->device_type) entry->type = found->type;
    return 1;
}

/* Whether its storage is as large as it says. */

static int is_held(const Shortcut *self, const Incoming *incoming, const Entry *entry) {
    PyObject *value = incoming->value;
    int64_t held = -2, offset = -2;
    /* Of a tensor without a storage they would print an error; exchange told of none. */
    if (incoming->found.device_type && self->functions.storage_size != NULL) {
        const void *tensor = (const char *)value + self->functions.tensor_at;
        if (self->functions.storage_size(tensor, &held) || self->functions.storage_offset(tensor, &offset)) return 0;
    } else {
        PyObject *storage = method(value, s_untyped_storage);
        held = storage == NULL ? -2 : as_number(method(storage, s_nbytes));
        Py_XDECREF(storage);
        offset = held < 0 ? -2 : as_number(method(value, s_storage_offset));
    }
    return offset >= 0 && offset * entry->item + entry->held <= held;
}

/* Whether its memory holds it; its address is worked out. */

static int has_memory(const Shortcut *self, Incoming *incoming, const Entry *entry) {
    if (!is_held(self, incoming, entry)) return 0;
    if (incoming->found.device_type)
        incoming->address = (long long)((uintptr_t)incoming->found.data + incoming->found.byte_offset);
    else
        incoming->address = as_number(method(incoming->value, s_data_ptr));
    return incoming->address > 0 || (incoming->address == 0 && entry->bytes == 0);
}

static int fits(const Shortcut *self, Incoming *incoming, Entry *entry) {
    /* What a backward pass computes is for the long way. */
    if ((self->functions.graph_task != NULL ? self->functions.graph_task() : CALLED(self->graph_task)) != -1) return 0;
    if (!has_form(self, incoming, entry) || !has_memory(self, incoming, entry)) return 0;
    if (entry->may_be_negated && as_truth(method(incoming->value, s_is_neg)) != 0) return 0;
    return !entry->may_be_conjugated || as_truth(method(incoming->value, s_is_conj)) == 0;
}

/* Whether what an entry says is true of a tensor; of one that the filter rejects nothing is said. */

static int is_of(const Shortcut *self, Incoming *incoming, Entry *entry) {
    return entry->on_device == incoming->on_device && (entry->description == NULL || fits(self, incoming, entry));
}

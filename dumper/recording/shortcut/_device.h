/* Values of a CUDA device: into the slab of their stream, as they are or as what a kernel makes of them. */

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
    /* The handle 0 means the default stream of the current device, on which kernels are launched as well. */
    int has_to_be = *stream == 0 || entry->reduced_to != Py_None;
    *is_current = (has_to_be || self->launch != NULL) && CALLED(self->current_device) == *number;
    if (has_to_be && !*is_current) goto done;
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
    if (entry->reduced_to == Py_None && self->launch == NULL) return 1; /* copied by copy */
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

/* Values of a CUDA device: into the slab of their stream, as they are or as what a kernel makes of them. */

/* The device that a value is on, and the handle of its current stream; -1 with an exception where there is none. */

static int find_stream(const Shortcut *self, const Incoming *incoming, long long *device, long long *stream) {
    void *handle = NULL;
    *device = incoming->found.device_type ? incoming->found.device : as_number(method(incoming->value, s_get_device));
    if (*device < 0) return -1;
    if (self->stream_of != NULL && self->stream_of(CUDA_DEVICE, (int32_t)*device, &handle) == 0) {
        *stream = (long long)(uintptr_t)handle;
        return 0;
    }
    PyErr_Clear();
    PyObject *number = PyLong_FromLong(*device);
    PyObject *found = number == NULL ? NULL : PyObject_CallOneArg(self->current_stream, number);
    Py_XDECREF(number);
    if (found == NULL) return -1;
    *stream = (long long)PyLong_AsUnsignedLong(found);
    Py_DECREF(found);
    return PyErr_Occurred() ? -1 : 0;
}

static long long current_device(const Shortcut *self) {
    int number;
    if (self->functions.current_device != NULL && self->functions.current_device(&number) == 0) return number;
    return CALLED(self->current_device);
}

/* What a stream is given becomes part of a graph; -2 with an exception where that is not known. */

static int is_captured(const Shortcut *self, long long stream) {
    int status;
    if (self->functions.is_capturing != NULL &&
        self->functions.is_capturing((void *)(uintptr_t)stream, &status) == 0)
        return status != 0;
    return (int)CALLED(self->is_capturing); /* clears the error as well */
}

/* Whether the stream that a value is used on is known not to be captured. */

static int is_outside_of_graphs(const Shortcut *self, const Incoming *incoming) {
    long long device, stream;
    int captured = find_stream(self, incoming, &device, &stream) < 0 ? -2 : is_captured(self, stream);
    PyErr_Clear();
    return captured == 0;
}

/* The lane of a stream becomes the last one; 0 where there is none. */

static int find_lane(Shortcut *self, long long device, long long stream) {
    if (self->lane != NULL && self->lane_device == device && self->lane_stream == stream) return 1;
    PyObject *key = Py_BuildValue("LK", device, (unsigned long long)stream);
    PyObject *lane = key == NULL ? NULL : PyDict_GetItemWithError(self->lanes, key);
    PyObject *lock = SLOT(lane, _lock, lane);
    Py_XDECREF(key);
    if (lock == NULL) return 0;
    Py_XSETREF(self->acquire, PyObject_GetAttr(lock, s_acquire));
    Py_XSETREF(self->release, PyObject_GetAttr(lock, s_release));
    if (self->acquire == NULL || self->release == NULL) return 0;
    Py_XSETREF(self->lane, Py_NewRef(lane));
    self->lane_device = device;
    self->lane_stream = stream;
    return 1;
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

/* What came of it; after FAILED what was reserved is to be given back. */

enum { FAILED = -1, NOT, DONE, NO_ROOM };

/* With the lock of the lane. */

static int fill_slab(Shortcut *self, PyObject *lane, Entry *entry, int way, long long from, long long stream,
                     PyObject *slab, long long *offset) {
    if (SLOT(lane, _stays, lane) != Py_True) return NOT; /* the lane's own functions see to streams that may vanish */
    if (slab == Py_None) return NO_ROOM;
    long long taken = NUMBER(device_slab, taken, slab), to = NUMBER(buffer, address, SLOT(lane, _filling, lane));
    *offset = NUMBER(device_slab, used, slab);
    long long end = *offset + entry->kept;
    if (*offset < 0 || taken < 0 || to <= 0) return NOT;
    if (end > self->device_slab_bytes) return NO_ROOM;
    if (!reserve(self, entry->kept + self->overhead)) return NOT;
    if (put(self, entry, way, to + *offset, from, stream) != 0) return FAILED;
    if (SET(device_slab, used, slab, (end + self->alignment - 1) & -self->alignment) < 0) return FAILED;
    return SET(device_slab, taken, slab, taken + 1) < 0 ? FAILED : DONE;
}

static int try_on_device(Shortcut *self, const Incoming *incoming, Entry *entry, PyObject **slab, long long *offset) {
    long long device, stream, from = incoming->address;
    if (self->copy == NULL || self->lanes == Py_None || find_stream(self, incoming, &device, &stream) < 0) return NOT;
    if (is_captured(self, stream) != 0 || !find_lane(self, device, stream)) return NOT;
    /* The handle 0 means the default stream of the current device, on which kernels are launched as well. */
    int has_to_be = stream == 0 || entry->reduced_to != Py_None;
    int is_current = (has_to_be || self->launch != NULL) && current_device(self) == device;
    if ((has_to_be && !is_current) || !prepare(self, entry, incoming->value, device, stream)) return NOT;
    int done = NOT, way = way_of(self, entry, from, is_current);
    if (way == NOT_AT_ALL || !try_lock(self)) return NOT;
    PyObject *lane = Py_NewRef(self->lane), *release = Py_NewRef(self->release);
    *slab = SLOT(lane, _slab, lane);
    Py_XINCREF(*slab);
    done = fill_slab(self, lane, entry, way, from, stream, *slab, offset);
    unlock(release);
    if (done != DONE) Py_CLEAR(*slab);
    Py_DECREF(lane);
    Py_DECREF(release);
    return done;
}

static int put_on_device(Shortcut *self, const Incoming *incoming, Entry *entry, PyObject **slab, long long *offset) {
    int done = try_on_device(self, incoming, entry, slab, offset);
    if (done == NO_ROOM) {
        /* Its lane sends the slab and begins another, which lets go of the interpreter lock: all is looked at anew. */
        PyObject *made = PyObject_CallMethod(self->lane, "make_room", "L", entry->kept);
        done = made == NULL || self->closed ? NOT : try_on_device(self, incoming, entry, slab, offset);
        Py_XDECREF(made);
    }
    if (done == FAILED) { /* the long way learns of the error, as it does where there was no room to be made */
        PyErr_Clear();
        Py_XDECREF(PyObject_CallMethod(self->writer, "give_back", "L", entry->kept + self->overhead));
    }
    return done == DONE;
}

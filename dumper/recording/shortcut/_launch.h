/* Kernels that are launched by their handles, straight through the driver: dumper.values.direct_launch.DirectLaunch. */

#define MOST_WORDS 16

typedef int (*LaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments,
                            void **extra); /* cuLaunchKernel */

typedef struct {
    void *function; /* NULL: there is none */
    unsigned programs, threads, shared;
    int count, value_at, out_at; /* of the words, and which of them are the addresses of the value and of the result */
    uint64_t words[MOST_WORDS];
} Kernel;

/* From a DirectLaunch; -1 with an exception for anything else. */

static int read_kernel(Kernel *kernel, PyObject *direct) {
    unsigned long long function;
    PyObject *words;
    kernel->function = NULL;
    if (!PyArg_ParseTuple(direct, "KIIIO!ii", &function, &kernel->programs, &kernel->threads, &kernel->shared,
                          &PyTuple_Type, &words, &kernel->value_at, &kernel->out_at))
        return -1;
    kernel->count = (int)PyTuple_GET_SIZE(words);
    if (kernel->count > MOST_WORDS || kernel->value_at < 0 || kernel->value_at >= kernel->count || kernel->out_at < 0 ||
        kernel->out_at >= kernel->count) {
        PyErr_SetString(PyExc_ValueError, "too many arguments of a kernel, or an address that is none of them");
        return -1;
    }
    for (int at = 0; at < kernel->count; at++) {
        kernel->words[at] = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(words, at));
        if (PyErr_Occurred()) return -1;
    }
    kernel->function = (void *)(uintptr_t)function;
    return 0;
}

/* Have a stream run it; what the driver returns. Lets go of the interpreter lock: the driver waits when the stream has
 * been given more than it can hold. The words are copied, since other threads may use the same kernel meanwhile. */

static int launch_kernel(LaunchKernel launch, const Kernel *known, long long value, long long out, long long stream) {
    Kernel kernel = *known;
    void *arguments[MOST_WORDS];
    int code;
    kernel.words[kernel.value_at] = (uint64_t)value;
    kernel.words[kernel.out_at] = (uint64_t)out;
    for (int at = 0; at < kernel.count; at++) arguments[at] = &kernel.words[at];
    Py_BEGIN_ALLOW_THREADS
    code = launch(kernel.function, kernel.programs, 1, 1, kernel.threads, 1, 1, kernel.shared, (void *)(uintptr_t)stream,
                  arguments, NULL);
    Py_END_ALLOW_THREADS
    return code;
}

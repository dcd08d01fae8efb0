/* Functions of torch and of the CUDA runtime that are called by their addresses, each in place of a method or function
 * of Python that says the same. Between the kernels of a model, a call through Python takes half a microsecond to one.
 * Where one is NULL, Python is asked (dumper.recording.torch_functions has them, and how they are found). */

typedef int (*GraphTask)(void);                                    /* torch::autograd::get_current_graph_task_id */
typedef int (*StorageNumber)(const void *tensor, int64_t *number); /* aoti_torch_get_storage_size and _offset */
typedef int (*CurrentDevice)(int *number);                         /* cudaGetDevice */
typedef int (*IsCapturing)(void *stream, int *status);             /* cudaStreamIsCapturing */

typedef struct {
    GraphTask graph_task;
    StorageNumber storage_size, storage_offset; /* in bytes, in elements; both or none */
    Py_ssize_t tensor_at;                       /* where an object of Python has what they take */
    CurrentDevice current_device;
    IsCapturing is_capturing;
} Functions;

/* From a tuple of numbers, in that order; -1 with an exception for anything else. */

static int read_functions(Functions *functions, PyObject *given) {
    unsigned long long graph_task, size, offset, device, capturing;
    if (!PyArg_ParseTuple(given, "KKKnKK", &graph_task, &size, &offset, &functions->tensor_at, &device, &capturing)) return -1;
    functions->graph_task = (GraphTask)(uintptr_t)graph_task;
    functions->storage_size = (StorageNumber)(uintptr_t)size;
    functions->storage_offset = (StorageNumber)(uintptr_t)offset;
    functions->current_device = (CurrentDevice)(uintptr_t)device;
    functions->is_capturing = (IsCapturing)(uintptr_t)capturing;
    if (functions->storage_size == NULL || functions->storage_offset == NULL || functions->tensor_at <= 0)
        functions->storage_size = NULL;
    return 0;
}

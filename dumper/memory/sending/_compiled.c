/* dumper.memory.cuda_runtime.CudaRuntime.send in one call, with the functions of the CUDA runtime by their addresses.
 * Each of its five calls through Python would let go of the interpreter lock and take it again, for which the model and
 * the writer wait for each other. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define TO_HOST 2 /* cudaMemcpyDeviceToHost */
#define WORD 8

typedef int (*IsCapturing)(void *stream, int *status);
typedef int (*Record)(void *event, void *stream);
typedef int (*Wait)(void *stream, void *event, unsigned flags);
typedef int (*Copy)(void *to, const void *from, size_t bytes, int kind, void *stream);

typedef struct {
    unsigned long long is_capturing, record, wait, copy; /* the functions */
    unsigned long long own, event, stream, host, device, nbytes, word, one;
    int has_stream;
} Task;

enum { DONE, CAPTURED, CAPTURING, RECORD, WAIT, COPY };

static void *pointer(unsigned long long number) { return (void *)(uintptr_t)number; }

/* What came of it, and the code that the runtime gave. */

static int send_to_host(const Task *task, int *code) {
    IsCapturing is_capturing = (IsCapturing)pointer(task->is_capturing);
    Copy copy = (Copy)pointer(task->copy);
    int status = 0;
    if (task->has_stream) {
        if ((*code = is_capturing(pointer(task->stream), &status)) != 0) return CAPTURING;
        if (status != 0) return CAPTURED;
        if ((*code = ((Record)pointer(task->record))(pointer(task->event), pointer(task->stream))) != 0) return RECORD;
        /* An event of a capture that has just begun would draw our stream into it. */
        if ((*code = is_capturing(pointer(task->stream), &status)) != 0) return CAPTURING;
        if (status != 0) return CAPTURED;
    }
    if ((*code = ((Wait)pointer(task->wait))(pointer(task->own), pointer(task->event), 0)) != 0) return WAIT;
    *code = copy(pointer(task->host), pointer(task->device), (size_t)task->nbytes, TO_HOST, pointer(task->own));
    if (*code == 0) *code = copy(pointer(task->word), pointer(task->one), WORD, TO_HOST, pointer(task->own));
    return *code == 0 ? DONE : COPY;
}

static PyObject *send(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Task task;
    PyObject *stream;
    int found, code = 0;
    if (!PyArg_ParseTuple(arguments, "(KKKK)KKOKKKKK", &task.is_capturing, &task.record, &task.wait, &task.copy, &task.own,
                          &task.event, &stream, &task.host, &task.device, &task.nbytes, &task.word, &task.one))
        return NULL;
    task.has_stream = stream != Py_None;
    task.stream = task.has_stream ? PyLong_AsUnsignedLongLong(stream) : 0;
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = send_to_host(&task, &code);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("ii", found, code);
}

static PyMethodDef methods[] = {
    {"send", send, METH_VARARGS, "Returns what came of it (0 done, 1 captured, then which call failed) and the code."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_compiled", .m_doc = SOURCES, .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModule_Create(&module); }

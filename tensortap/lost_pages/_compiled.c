/* Pages of mapped files that are gone when they are touched: zeros are put in their place, and they are counted. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct sigaction before;
static int watching;
static volatile sig_atomic_t lost;
static uintptr_t page_size;

/* mmap is a single system call in every C library of Linux, and safe here although POSIX does not say so. */
static void replace_page(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    void *page = (void *)((uintptr_t)info->si_addr & ~(page_size - 1));
    if (info->si_code == BUS_ADRERR &&
        mmap(page, page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page) {
        lost++;
        return;
    }
    sigaction(SIGBUS, &before, NULL); /* not ours: the instruction runs again, and does what it did without us */
}

static PyObject *watch(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    if (watching) Py_RETURN_FALSE;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = replace_page;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, &action, &before) != 0) return PyErr_SetFromErrno(PyExc_OSError);
    watching = 1;
    Py_RETURN_TRUE;
}

static PyObject *leave(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    if (watching) sigaction(SIGBUS, &before, NULL);
    watching = 0;
    Py_RETURN_NONE;
}

static PyObject *count(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong((long)lost);
}

static PyMethodDef methods[] = {
    {"watch", watch, METH_NOARGS, "Take the signal; False where it was taken already."},
    {"leave", leave, METH_NOARGS, "Give the signal back to whoever had it."},
    {"count", count, METH_NOARGS, "Pages that were gone so far."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

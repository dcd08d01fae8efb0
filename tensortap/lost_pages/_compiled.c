/* Pages of mapped files that are gone when they are touched: zeros are put in their place, and they are counted. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_THREADS 64

static struct sigaction before;
static int watching;   /* blocks in which the signal is ours */
static int everywhere; /* of these, in which it is ours in all threads */
static pthread_t threads[MOST_THREADS];
static volatile int blocks[MOST_THREADS]; /* of the thread with the same number; 0: the place is free */
static volatile sig_atomic_t lost;
static uintptr_t page_size;

/* A fork has the handle of the thread that made it. */
static int place_of_this_thread(void) {
    for (int i = 0; i < MOST_THREADS; i++)
        if (blocks[i] && pthread_equal(threads[i], pthread_self())) return i;
    return -1;
}

/* What the signal did before. A handler that was put in place after ours may lead back to it. */
static void pass_on(int number, siginfo_t *info, void *context) {
    static volatile sig_atomic_t passing;
    struct sigaction end;
    memset(&end, 0, sizeof end);
    end.sa_handler = SIG_DFL;
    if (passing || (!(before.sa_flags & SA_SIGINFO) && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN))) {
        sigaction(SIGBUS, &end, NULL); /* the instruction runs again, and the process ends */
        return;
    }
    passing = 1;
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
    else before.sa_handler(number);
    passing = 0;
}

/* The signal comes to the thread that touched the page. mmap is a single system call in every C library of Linux, and
   safe here although POSIX does not say so. */
static void replace_page(int number, siginfo_t *info, void *context) {
    void *page = (void *)((uintptr_t)info->si_addr & ~(page_size - 1));
    if (info->si_code == BUS_ADRERR && (everywhere || place_of_this_thread() >= 0) &&
        mmap(page, page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page)
        lost++;
    else
        pass_on(number, info, context);
}

static int is_ours(void) {
    struct sigaction now;
    return sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == replace_page;
}

static int take(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = replace_page;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    return sigaction(SIGBUS, &action, &before);
}

static PyObject *watch(PyObject *module, PyObject *all) {
    (void)module;
    int whole = PyObject_IsTrue(all);
    if (whole < 0) return NULL;
    int at = whole ? 0 : place_of_this_thread();
    for (int i = 0; at < 0 && i < MOST_THREADS; i++)
        if (!blocks[i]) at = i;
    if (at < 0) Py_RETURN_FALSE;
    if (!watching && !is_ours() && take() != 0) return PyErr_SetFromErrno(PyExc_OSError);
    watching++;
    if (whole) {
        everywhere++;
    } else {
        threads[at] = pthread_self();
        blocks[at]++;
    }
    Py_RETURN_TRUE;
}

static PyObject *leave(PyObject *module, PyObject *all) {
    (void)module;
    int whole = PyObject_IsTrue(all);
    if (whole < 0) return NULL;
    int at = place_of_this_thread();
    if (whole) everywhere--;
    else if (at >= 0) blocks[at]--;
    /* Whoever took it from us meanwhile keeps it. */
    if (--watching == 0 && is_ours()) sigaction(SIGBUS, &before, NULL);
    Py_RETURN_NONE;
}

static PyObject *count(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong((long)lost);
}

static PyMethodDef methods[] = {
    {"watch", watch, METH_O, "Take the signal, for all threads or for this one; False where it cannot be taken."},
    {"leave", leave, METH_O, "End what watch began, and give the signal back to whoever had it."},
    {"count", count, METH_NOARGS, "Pages that were gone so far."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&definition); }

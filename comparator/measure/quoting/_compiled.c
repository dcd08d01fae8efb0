/* The text that numpy makes of a float32 array, to the letter (numpy/_core/arrayprint.py, with its default options and
   without leaving anything out). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_decimal.h"

#define PRECISION 8
#define LINE 75
#define MOST 1000 /* elements; of more numpy leaves some out */
#define MOST_DIMENSIONS 16

typedef struct {
    char digits[12]; /* the fewest that tell the number from all others of float32, without trailing zeros */
    int count, exponent, negative;
} Shortest;

/* The digits of a text like 1.25e+03, and its exponent. */
static void take_digits(const char *text, Shortest *found) {
    found->count = 0;
    for (const char *at = text; *at != 'e'; at++)
        if (*at != '.' && *at != ',') found->digits[found->count++] = *at;
    found->exponent = atoi(strchr(text, 'e') + 1);
}

static Shortest shortest(float value) {
    Shortest found = {.negative = signbit(value) != 0};
    float magnitude = fabsf(value);
    if (magnitude == 0) {
        found.digits[0] = '0', found.count = 1;
        return found;
    }
#ifdef EXACT
    Binary number;
    uint64_t fewest_digits;
    if (binary_of(magnitude, &number)) {
        found.exponent = fewest(&number, &fewest_digits);
        found.count = write_digits(fewest_digits, found.digits);
        return found;
    }
#endif
    char text[32], shorter[32];
    int digits = 9, binary;
    snprintf(text, sizeof text, "%.8e", (double)magnitude); /* tells every number from all others */
    while (digits > 1) {
        snprintf(shorter, sizeof shorter, "%.*e", digits - 2, (double)magnitude);
        if (strtof(shorter, NULL) != magnitude) break;
        memcpy(text, shorter, sizeof text);
        digits--;
    }
    if (digits > 2 && frexpf(magnitude, &binary) == 0.5f) {
        /* Numbers above a power of two are twice as far apart as those below it, so that one digit less may tell it from
           them when it is rounded up and not to the nearest. */
        snprintf(shorter, sizeof shorter, "%.*e", digits - 2, (double)magnitude);
        char *last = strchr(shorter, 'e') - 1;
        if (*last != '9') ++*last;
        if (strtof(shorter, NULL) == magnitude) memcpy(text, shorter, sizeof text);
    }
    take_digits(text, &found);
    while (found.count > 1 && found.digits[found.count - 1] == '0') found.count--;
    return found;
}

/* The digits of a number with so many of them behind the point of its exponential form. */
static void exponential(float value, int behind, Shortest *found) {
#ifdef EXACT
    Binary number;
    uint64_t digits;
    if (behind < MOST_DIGITS && binary_of(fabsf(value), &number)) {
        found->exponent = leading(&number, behind + 1, &digits);
        int count = write_digits(digits, found->digits);
        while (count < behind + 1) found->digits[count++] = '0';
        found->count = count;
        return;
    }
#endif
    char text[64];
    snprintf(text, sizeof text, "%.*e", behind, fabs((double)value));
    take_digits(text, found);
}

/* Digits before and after the point of a number that is written without an exponent. */
static void positional(float value, const Shortest *known, char *whole, char *fraction) {
    int wanted = known->count - 1 - known->exponent;
    wanted = wanted < 0 ? 0 : wanted > PRECISION ? PRECISION : wanted;
#ifdef EXACT
    Binary number;
    if (fabsf(value) < 1e8f && binary_of(fabsf(value), &number)) {
        uint64_t digits = scaled(&number, wanted);
        char reversed[24];
        int count = 0, size = 0;
        for (; digits || count <= wanted; digits /= 10) reversed[count++] = (char)('0' + digits % 10);
        if (value < 0) whole[size++] = '-';
        for (int i = count - 1; i >= wanted; i--) whole[size++] = reversed[i];
        whole[size] = 0;
        int first = 0; /* zeros at the end are left out */
        while (first < wanted && reversed[first] == '0') first++;
        size = 0;
        for (int i = wanted - 1; i >= first; i--) fraction[size++] = reversed[i];
        fraction[size] = 0;
        return;
    }
#endif
    char text[64];
    snprintf(text, sizeof text, "%.*f", wanted, (double)value);
    char *point = strpbrk(text, ".,");
    strcpy(fraction, point == NULL ? "" : point + 1);
    if (point != NULL) *point = 0;
    for (size_t end = strlen(fraction); end > 0 && fraction[end - 1] == '0'; end--) fraction[end - 1] = 0;
    strcpy(whole, text);
}

typedef struct {
    char *text;
    size_t size, room;
    int failed;
} Out;

static void put(Out *out, const char *text, size_t size) {
    if (out->size + size > out->room) {
        size_t room = 2 * (out->size + size) + 256;
        char *more = PyMem_Realloc(out->text, room);
        if (more == NULL) {
            out->failed = 1;
            return;
        }
        out->text = more;
        out->room = room;
    }
    memcpy(out->text + out->size, text, size);
    out->size += size;
}

static void repeat(Out *out, char one, Py_ssize_t count) {
    for (; count > 0; count--) put(out, &one, 1);
}

typedef struct {
    int scientific, left, right; /* characters before and after the point */
} Layout;

static Layout layout_of(const float *values, size_t count, double from, Shortest *numbers) {
    Layout layout = {0, 0, 0};
    float largest = 0, smallest = INFINITY;
    int negative_infinity = 0, unusual = 0;
    for (size_t i = 0; i < count; i++) {
        float magnitude = fabsf(values[i]);
        if (!isfinite(values[i])) {
            unusual = 1;
            negative_infinity |= isinf(values[i]) && values[i] < 0;
        } else if (magnitude != 0) {
            largest = magnitude > largest ? magnitude : largest;
            smallest = magnitude < smallest ? magnitude : smallest;
        }
    }
    if (largest != 0)
        layout.scientific = largest >= (float)from || smallest < 0.0001f || largest / smallest > 1000.0f;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) continue;
        int left, right;
        numbers[i] = shortest(values[i]);
        if (layout.scientific) {
            left = 1 + numbers[i].negative;
            right = numbers[i].count - 1;
        } else {
            char whole[64], fraction[64];
            positional(values[i], &numbers[i], whole, fraction);
            left = (int)strlen(whole);
            right = (int)strlen(fraction);
        }
        layout.left = left > layout.left ? left : layout.left;
        layout.right = right > layout.right ? right : layout.right;
    }
    if (unusual) {
        int after = (layout.scientific ? 2 + 2 + layout.right : layout.right) + 1;
        int nan = 3 - after, inf = 3 + negative_infinity - after;
        layout.left = nan > layout.left ? nan : layout.left;
        layout.left = inf > layout.left ? inf : layout.left;
    }
    return layout;
}

/* One element; returns its width. */
static int word(float value, const Shortest *known, const Layout *layout, char *to) {
    if (!isfinite(value)) {
        const char *name = isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
        int width = layout->left + 1 + (layout->scientific ? 2 + 2 + layout->right : layout->right);
        return snprintf(to, 128, "%*s", width, name);
    }
    if (layout->scientific) {
        Shortest own = *known;
        char *at = to;
        for (int i = 1 + own.negative; i < layout->left; i++) *at++ = ' ';
        /* Further digits are those of the exact value. */
        if (own.count <= layout->right) exponential(value, layout->right, &own);
        if (own.negative) *at++ = '-';
        *at++ = own.digits[0];
        *at++ = '.';
        for (int i = 1; i < own.count; i++) *at++ = own.digits[i];
        return (int)(at - to) + sprintf(at, "e%+03d", own.exponent);
    }
    char whole[64], fraction[64];
    positional(value, known, whole, fraction);
    int before = (int)strlen(whole), behind = (int)strlen(fraction), size = 0;
    for (int i = before; i < layout->left; i++) to[size++] = ' ';
    memcpy(to + size, whole, (size_t)before);
    size += before;
    to[size++] = '.';
    memcpy(to + size, fraction, (size_t)behind);
    size += behind;
    for (int i = behind; i < layout->right; i++) to[size++] = ' ';
    return size;
}

static void row(Out *out, const float *values, const Shortest *numbers, Py_ssize_t count, Py_ssize_t indent, Py_ssize_t width,
                const Layout *layout) {
    Py_ssize_t used = indent; /* characters of the line */
    for (Py_ssize_t i = 0; i < count; i++) {
        char text[128];
        int size = word(values[i], &numbers[i], layout, text);
        if (used + size > width && used > indent) {
            while (out->size && out->text[out->size - 1] == ' ') out->size--;
            put(out, "\n", 1);
            repeat(out, ' ', indent);
            used = indent;
        }
        put(out, text, (size_t)size);
        used += size;
        if (i + 1 < count) {
            put(out, " ", 1);
            used++;
        }
    }
}

/* Returns how many elements it wrote. */
static Py_ssize_t array(Out *out, const float *values, const Shortest *numbers, const Py_ssize_t *shape, int axis,
                        int axes, const Layout *layout) {
    Py_ssize_t done = 0;
    put(out, "[", 1);
    if (axis == axes - 1) {
        row(out, values, numbers, shape[axis], 1 + axis, LINE - axis - 1, layout);
        done = shape[axis];
    } else {
        for (Py_ssize_t i = 0; i < shape[axis]; i++) {
            if (i) {
                repeat(out, '\n', axes - axis - 1);
                repeat(out, ' ', 1 + axis);
            }
            done += array(out, values + done, numbers + done, shape, axis + 1, axes, layout);
        }
    }
    put(out, "]", 1);
    return done;
}

/* Lengths of dimensions; -1 where there are others than are written here, else their product. */
static Py_ssize_t take_lengths(PyObject *lengths, Py_ssize_t *shape, Py_ssize_t most) {
    Py_ssize_t count = 1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(lengths); i++) {
        shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(lengths, i));
        if (shape[i] < 1 || shape[i] > most / count) return -1;
        count *= shape[i];
    }
    return count;
}

/* The first `taken` elements along every dimension, from the last dimensions on. */
static float *gather(const char *data, int halves, const Py_ssize_t *shape, const Py_ssize_t *taken, int axes, float *to) {
    if (axes == 0) {
        uint32_t bits;
        if (halves) {
            uint16_t upper;
            memcpy(&upper, data, sizeof upper);
            bits = (uint32_t)upper << 16;
        } else {
            memcpy(&bits, data, sizeof bits);
        }
        memcpy(to, &bits, sizeof bits);
        return to + 1;
    }
    size_t stride = halves ? 2 : 4;
    for (int i = 1; i < axes; i++) stride *= (size_t)shape[i];
    for (Py_ssize_t i = 0; i < *taken; i++)
        to = gather(data + (size_t)i * stride, halves, shape + 1, taken + 1, axes - 1, to);
    return to;
}

static PyObject *text(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer data;
    PyObject *lengths, *wanted, *found = NULL;
    double from;
    int halves;
    if (!PyArg_ParseTuple(arguments, "y*pO!O!d", &data, &halves, &PyTuple_Type, &lengths, &PyTuple_Type, &wanted, &from))
        return NULL;
    Py_ssize_t shape[MOST_DIMENSIONS], taken[MOST_DIMENSIONS], axes = PyTuple_GET_SIZE(lengths);
    Out out = {0};
    if (axes < 1 || axes > MOST_DIMENSIONS || PyTuple_GET_SIZE(wanted) != axes) goto refused;
    Py_ssize_t all = take_lengths(lengths, shape, PY_SSIZE_T_MAX / 4), count = take_lengths(wanted, taken, MOST);
    if (all < 0 || count < 0 || data.len != all * (halves ? 2 : 4)) goto refused;
    for (Py_ssize_t i = 0; i < axes; i++)
        if (taken[i] > shape[i]) goto refused;
    float values[MOST];
    Shortest numbers[MOST];
    gather(data.buf, halves, shape, taken, (int)axes, values);
    Layout layout = layout_of(values, (size_t)count, from, numbers);
    array(&out, values, numbers, taken, 0, (int)axes, &layout);
    found = out.failed ? PyErr_NoMemory() : PyUnicode_FromStringAndSize(out.text, (Py_ssize_t)out.size);
    goto done;
refused:
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "another shape than is written here");
done:
    PyMem_Free(out.text);
    PyBuffer_Release(&data);
    return found;
}

static PyMethodDef methods[] = {
    {"text", text, METH_VARARGS,
     "text(data, halves, shape, taken, from): what numpy writes of the first elements along every dimension of float32, "
     "or bfloat16; numbers from `from` on have an exponent"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", SOURCES, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    fill_powers();
    return PyModuleDef_Init(&definition);
}

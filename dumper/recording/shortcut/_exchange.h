/* What torch says of a tensor in one call, as other libraries ask it: the C exchange API of DLPack ("DLPack Python
 * Specification", dmlc/dlpack), whose structures these are. */

#define EXCHANGE_NAME "dlpack_exchange_api"
#define EXCHANGE_VERSION 1 /* the major one */
#define HOST 1             /* kDLCPU */
#define CUDA_DEVICE 2      /* kDLCUDA */

typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} ElementType;

typedef struct {
    void *data;
    int32_t device_type, device;
    int32_t dimensions;
    ElementType type;
    int64_t *sizes, *strides;
    uint64_t byte_offset;
} Described;

typedef int (*Describe)(void *value, Described *out);
typedef int (*CurrentStream)(int device_type, int32_t device, void **stream);

typedef struct {
    uint32_t major, minor;
    void *earlier;
    void *allocate, *take_over, *hand_out;
    Describe describe;            /* may be NULL */
    CurrentStream current_stream; /* may be NULL */
} Exchange;

/* What a capsule holds; NULL where it is another version, or no capsule. */

static const Exchange *exchange_of(PyObject *capsule) {
    if (!PyCapsule_IsValid(capsule, EXCHANGE_NAME)) return NULL;
    const Exchange *exchange = PyCapsule_GetPointer(capsule, EXCHANGE_NAME);
    return exchange->major == EXCHANGE_VERSION ? exchange : NULL;
}

static int same_type(ElementType one, ElementType other) {
    return one.code == other.code && one.bits == other.bits && one.lanes == other.lanes;
}

/* Whether elements follow on one another in the order of the dimensions, as torch's is_contiguous says. */

static int follow_on(const Described *found) {
    int64_t expected = 1;
    for (int at = 0; at < found->dimensions; at++)
        if (found->sizes[at] == 0) return 1;
    for (int at = found->dimensions - 1; at >= 0; at--) {
        if (found->sizes[at] != 1 && found->strides[at] != expected) return 0;
        expected *= found->sizes[at];
    }
    return 1;
}

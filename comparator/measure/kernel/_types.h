/* Included once for each instruction set: the loops for both working types, named NAMED(measure_TYPE). */

#define WORK float
#define WORK_KIND F32
#define VECTOR v4f
#define BITS v4i
#define MAGNITUDE INT32_MAX
#define INFINITE 0x7f800000
#define TYPED(NAME) NAMED(NAME##_single)
#include "_rows.h"

#define WORK double
#define WORK_KIND F64
#define VECTOR v4d
#define BITS v4l
#define MAGNITUDE INT64_MAX
#define INFINITE INT64_C(0x7ff0000000000000)
#define TYPED(NAME) NAMED(NAME##_double)
#include "_rows.h"

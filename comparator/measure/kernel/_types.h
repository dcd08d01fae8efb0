/* Included once for each instruction set: the loops for both working types, named NAMED(measure_TYPE). */

#include "_narrow.h"

#include "_bfloat.h"

#define NARROW 1
#define WORK float
#define WORK_KIND F32
#define VECTOR v4f
#define BITS v4i
#ifdef REGISTERS
#define WIDE v8f
#define WIDE_BITS v8i
#define LOWER(A, B) (v8f) _mm256_min_ps((__m256)(A), (__m256)(B))
#define HIGHER(A, B) (v8f) _mm256_max_ps((__m256)(A), (__m256)(B))
#define LARGER_BITS(A, B) (v8i) _mm256_max_epi32((__m256i)(A), (__m256i)(B))
#else
#define WIDE v4f
#define WIDE_BITS v4i
#define LOWER(A, B) CHOOSE(v4f, v4i, (A) < (B), A, B)
#define HIGHER(A, B) CHOOSE(v4f, v4i, (A) > (B), A, B)
#define LARGER_BITS(A, B) CHOOSE(v4i, v4i, (A) > (B), A, B)
#endif
#define MAGNITUDE INT32_MAX
#define INFINITE 0x7f800000
#define TYPED(NAME) NAMED(NAME##_single)
#include "_rows.h"

#define WORK double
#define WORK_KIND F64
#define VECTOR v4d
#define BITS v4l
#define WIDE v4d
#define WIDE_BITS v4l
#ifdef REGISTERS
#define LOWER(A, B) (v4d) _mm256_min_pd((__m256d)(A), (__m256d)(B))
#define HIGHER(A, B) (v4d) _mm256_max_pd((__m256d)(A), (__m256d)(B))
#else
#define LOWER(A, B) CHOOSE(v4d, v4l, (A) < (B), A, B)
#define HIGHER(A, B) CHOOSE(v4d, v4l, (A) > (B), A, B)
#endif
#define LARGER_BITS(A, B) CHOOSE(v4l, v4l, (A) > (B), A, B)
#define MAGNITUDE INT64_MAX
#define INFINITE INT64_C(0x7ff0000000000000)
#define TYPED(NAME) NAMED(NAME##_double)
#include "_rows.h"

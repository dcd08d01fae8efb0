/* Included once for each instruction set: 8 numbers of float32 in float64. Compilers make much of conversions of vectors,
   where one instruction is enough. */

INLINE void NAMED(widen)(const v8f *all, v4d *lower, v4d *upper) {
#ifdef REGISTERS
    *lower = (v4d)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)*all));
    *upper = (v4d)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)*all, 1));
#else
    v4f halves[2];
    memcpy(halves, all, sizeof halves);
    *lower = __builtin_convertvector(halves[0], v4d);
    *upper = __builtin_convertvector(halves[1], v4d);
#endif
}

#include "fattn-vec.cuh"
#include "fattn-vec-ftq.cuh"

FATTN_VEC_PAIR_FTQ(, Q8_0, FTQ4);

#include "fattn-vec.cuh"
#include "fattn-vec-ftq.cuh"

FATTN_VEC_PAIR_FTQ(, FTQ3, FTQ3);

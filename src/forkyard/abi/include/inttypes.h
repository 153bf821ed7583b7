/* Minimal <inttypes.h> for parsing headers without a C library: the types only, no format macros. */
#ifndef FORKYARD_INTTYPES_H
#define FORKYARD_INTTYPES_H
#include <stdint.h>
#endif

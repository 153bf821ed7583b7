/* Minimal <stdbool.h> for parsing headers without a C library: what libclang needs to know, nothing else. */
#ifndef FORKYARD_STDBOOL_H
#define FORKYARD_STDBOOL_H
#ifndef __cplusplus
#define bool _Bool
#define true 1
#define false 0
#endif
#endif

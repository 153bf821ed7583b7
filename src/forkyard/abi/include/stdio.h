/* Minimal <stdio.h> for parsing headers without a C library: FILE is opaque to every API described here. */
#ifndef FORKYARD_STDIO_H
#define FORKYARD_STDIO_H
#include <stddef.h>
typedef struct FILE FILE;
#endif

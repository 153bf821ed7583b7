/* Minimal <stdarg.h> for parsing headers without a C library. */
#ifndef FORKYARD_STDARG_H
#define FORKYARD_STDARG_H
typedef __builtin_va_list va_list;
#endif

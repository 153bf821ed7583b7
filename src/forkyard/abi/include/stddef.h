/* Minimal <stddef.h> for parsing headers without a C library; the types are the target's own, as clang knows them. */
#ifndef FORKYARD_STDDEF_H
#define FORKYARD_STDDEF_H
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
#ifndef NULL
#define NULL ((void *)0)
#endif
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

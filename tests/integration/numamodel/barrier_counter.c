// Loaded before libgomp: counts the barriers that each thread passes in a parallel region and prints them at its end.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>

static atomic_long calls;

void GOMP_barrier(void) {
    static void (*real)(void);
    if (!real) {
        real = (void (*)(void)) dlsym(RTLD_NEXT, "GOMP_barrier");
    }
    atomic_fetch_add(&calls, 1);
    real();
}

void GOMP_parallel(void (*function)(void *), void * data, unsigned threads, unsigned flags) {
    static void (*real)(void (*)(void *), void *, unsigned, unsigned);
    if (!real) {
        real = (void (*)(void (*)(void *), void *, unsigned, unsigned)) dlsym(RTLD_NEXT, "GOMP_parallel");
    }
    const long before = atomic_load(&calls);
    real(function, data, threads, flags);
    if (threads) {
        fprintf(stderr, "\nbarriers: %ld\n", (atomic_load(&calls) - before) / threads);
    }
}

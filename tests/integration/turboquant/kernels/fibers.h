// The threads of a block of a GPU on a CPU: each has a stack, and the next one runs where one waits for others.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>

constexpr int MOST_THREADS = 96;
constexpr int LANES        = 32;

struct fiber {
    jmp_buf    resume;
    ucontext_t start;
    bool       started, done;
    int        waits;      // barriers reached
    int        exchanges;  // with the other lanes
    uint64_t   shown[2];   // what the other lanes see, of this exchange and of the next one
    char       stack[1 << 16];
};

static fiber                 fibers[MOST_THREADS];
static jmp_buf               scheduler;
static std::function<void()> kernel_of_block;
static int                   n_threads, thread_id;

static void give_way() {
    if (_setjmp(fibers[thread_id].resume) == 0) {
        _longjmp(scheduler, 1);
    }
}

static void whole_thread() {
    kernel_of_block();
    fibers[thread_id].done = true;
    _longjmp(scheduler, 1);
}

static void run_block(int threads, const std::function<void()> & f) {
    kernel_of_block = f;
    n_threads       = threads;
    for (fiber & one : fibers) {
        one.started = one.done = false;
        one.waits = one.exchanges = 0;
    }
    static bool any;
    for (any = true; any;) {
        any = false;
        for (thread_id = 0; thread_id < n_threads; ++thread_id) {
            fiber & one = fibers[thread_id];
            if (one.done || _setjmp(scheduler) != 0) {
                any = any || !fibers[thread_id].done;
            } else if (one.started) {
                _longjmp(one.resume, 1);
            } else {
                one.started = true;
                getcontext(&one.start);
                one.start.uc_stack.ss_sp   = one.stack;
                one.start.uc_stack.ss_size = sizeof(one.stack);
                makecontext(&one.start, whole_thread, 0);
                setcontext(&one.start);
            }
        }
    }
}

static void wait_for_all() {
    const int n = ++fibers[thread_id].waits;
    for (bool all = false; !all;) {
        give_way();
        all = true;
        for (int i = 0; i < n_threads; ++i) {
            all = all && (fibers[i].waits >= n || fibers[i].done);
        }
    }
}

// Calls take(i) for the value of each lane i of 32, once all have shown theirs.
template <typename T, typename F> static void exchange(T value, F take) {
    fiber &   own  = fibers[thread_id];
    const int turn = own.exchanges++ & 1;
    memcpy(&own.shown[turn], &value, sizeof(T));
    give_way();
    for (int i = 0; i < LANES; ++i) {
        T other;
        memcpy(&other, &fibers[thread_id / LANES * LANES + i].shown[turn], sizeof(T));
        take(i, other);
    }
}

template <typename T> static T of_lane(T value, int lane) {
    T result{};
    exchange(value, [&](int i, T other) { result = i == lane ? other : result; });
    return result;
}

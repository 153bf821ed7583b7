// Stands in for an engine's server in the tests of forkyard.guest: answers, makes copies on nodes, writes the report.
// LIE makes it do one thing wrong that the proof has to find:
//   1  node 1's copy lies on the first node, and the report says otherwise
//   2  another text with --numa
//   3  hangs instead of ending
//   4  crashes
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <sched.h>

#ifndef LIE
#define LIE 0
#endif

enum { N = 16, PAGE = 4096 };

static volatile sig_atomic_t ended;
static void on_term(int number) { (void) number; ended = 1; }

static int nodes[N], n_nodes;
static size_t sizes[2] = { (size_t) 80 << 20, (size_t) 2 << 20 };
static char * copies[2][N];

static size_t read_file(const char * format, int id, char * text, size_t size) {
    char path[128];
    snprintf(path, sizeof(path), format, id);
    FILE * file = fopen(path, "r");
    const size_t n = file ? fread(text, 1, size - 1, file) : 0;
    text[n] = 0;
    if (file) fclose(file);
    return n;
}

static void find_nodes(void) {
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof(allowed), &allowed);
    for (int id = 0; id < N; ++id) {
        char text[4096];
        if (!read_file("/sys/devices/system/node/node%d/cpulist", id, text, sizeof(text))) continue;
        int use = 0;
        for (char * at = text; *at >= '0' && *at <= '9'; ) {
            long first = strtol(at, &at, 10), last = first;
            if (*at == '-') last = strtol(at + 1, &at, 10);
            for (long c = first; c <= last; ++c) use |= CPU_ISSET(c, &allowed);
            if (*at == ',') at++;
        }
        if (use) nodes[n_nodes++] = id;
    }
}

static void * map(size_t size, int id) {
    void * at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned long mask = 1ul << id;
    if (id >= 0 && syscall(SYS_mbind, at, size, 2, &mask, 65ul, 0) != 0) return NULL;
    return at;
}

static size_t here(const char * at, size_t size, int id) {
    size_t n = 0;
    for (size_t i = 0; i < size; i += PAGE) {
        void * page = (void *) (at + i);
        int status = -1;
        if (syscall(SYS_move_pages, 0, 1ul, &page, NULL, &status, 0) == 0) n += status == id;
    }
    return n;
}

static int make_copies(int best_effort) {
    for (int k = 0; k < n_nodes; ++k) {
        char text[8192];
        read_file("/sys/devices/system/node/node%d/meminfo", nodes[k], text, sizeof(text));
        const char * at = strstr(text, " MemFree:");
        const size_t have = at ? strtoull(at + 9, NULL, 10) << 10 : 0;
        const size_t need = sizes[0] + sizes[1] + ((size_t) 32 << 20);
        if (have < need) {
            fprintf(stderr, "fake: node %d lacks %zu bytes for a copy\n", nodes[k], need - have);
            if (best_effort) { return 0; }
            exit(1);
        }
        for (int b = 0; b < 2; ++b) {
            copies[b][k] = map(sizes[b], LIE == 1 ? nodes[0] : nodes[k]);
            if (!copies[b][k]) {
                fprintf(stderr, "fake: node %d lacks %zu bytes for a copy: %s\n", nodes[k], sizes[b], strerror(errno));
                exit(1);
            }
            memset(copies[b][k], 1, sizes[b]);
        }
    }
    return 1;
}

static void report(int mirrored) {
    const char * path = getenv("GGML_NUMA_MIRROR_REPORT");
    FILE * file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "{\"mode\":\"mirror\",\"nodes\":[");
    for (int k = 0; k < n_nodes; ++k) {
        fprintf(file, "%s{\"id\":%d,\"cpus\":1,\"local\":%zu,\"remote\":0}", k ? "," : "", nodes[k], sizes[0]);
    }
    fprintf(file, "],\"ranges\":[");
    for (int b = 0; b < 2; ++b) {
        fprintf(file, "%s{\"kind\":\"%s\",\"bytes\":%zu,\"mirrored\":%s,\"node\":[", b ? "," : "", b ? "kv" : "weights",
                sizes[b], mirrored ? "true" : "false");
        for (int k = 0; k < n_nodes && mirrored; ++k) {
            const size_t pages = sizes[b]/PAGE;
            fprintf(file, "%s{\"id\":%d,\"alias\":false,\"pages\":%zu,\"here\":%zu}", k ? "," : "", nodes[k], pages,
                    LIE == 1 ? pages : here(copies[b][k], sizes[b], nodes[k]));
        }
        fprintf(file, "],\"differs\":0}");
    }
    fprintf(file, "]}\n");
    fclose(file);
}

static void serve(int port, const char * content) {
    const int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 || listen(fd, 4) != 0) {
        perror("fake: listen");
        exit(2);
    }
    while (!ended) {
        const int peer = accept(fd, NULL, NULL);
        if (peer < 0) continue;
        char request[8192];
        if (read(peer, request, sizeof(request)) > 0) {
            dprintf(peer, "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
                    "{\"content\":\"%s\",\"tokens\":[1],\"completion_probabilities\":[{\"p\":0.5}]}", content);
        }
        shutdown(peer, SHUT_WR);
        while (read(peer, request, sizeof(request)) > 0) {}
        close(peer);
    }
}

int main(int argc, char ** argv) {
    int mirror = 0, best_effort = 0, port = 0;
    for (int i = 1; i + 1 < argc; ++i) {
        if (!strcmp(argv[i], "--numa"))        mirror = !strcmp(argv[i + 1], "mirror");
        if (!strcmp(argv[i], "--numa-mirror")) best_effort = strstr(argv[i + 1], "best-effort") != NULL;
        if (!strcmp(argv[i], "--port"))        port = atoi(argv[i + 1]);
    }
    struct sigaction action = { .sa_handler = on_term };
    sigaction(SIGTERM, &action, NULL);
    int mirrored = 0;
    if (mirror) {
        find_nodes();
        if (n_nodes < 2) {
            fprintf(stderr, "fake: there is nothing to mirror\n");
            mirror = 0;
        } else {
            mirrored = make_copies(best_effort);
        }
    }
    if (LIE == 4 && mirror) abort();
    serve(port, LIE == 2 && mirror ? "Lyon" : "Paris");
    while (LIE == 3 && mirror) pause();
    if (mirror) report(mirrored);
    return 0;
}

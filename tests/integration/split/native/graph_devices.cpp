// Several devices for ik_llama.cpp's `-sm graph` in host memory, for tests: the names of ggml-cuda.h, computed by the CPU.
//
// Compiled with llama.cpp and llama-model-loader.cpp (the two files that look at GGML_USE_CUDA) into a library that is
// preloaded into the CPU payload.  As on a GPU, a tensor that is split is nowhere as a whole: its address is a dummy,
// reading it aborts, and only the parts have memory, each in the buffer of its device.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cuda.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

using ranges_t = std::vector<std::vector<std::pair<int, int>>>;

static int n_devices() {
    const char * said = getenv("GRAPH_DEVICES");
    return said ? atoi(said) : 2;
}

// a device's memory: host memory that says it is not

struct device {
    int                      index;
    std::string              name;
    ggml_backend_buffer_type buft;
};

static const char * buft_name(ggml_backend_buffer_type_t buft) { return ((device *) buft->context)->name.c_str(); }

static const char * buffer_name(ggml_backend_buffer_t buffer) { return buft_name(buffer->buft); }

static ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), std::max<size_t>(size, 1));
    if (!buffer) {
        return nullptr;
    }
    buffer->buft             = buft;
    buffer->iface.get_name   = buffer_name;
    buffer->iface.cpy_tensor = nullptr;
    return buffer;
}

static size_t buft_alignment(ggml_backend_buffer_type_t) { return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type()); }

static bool buft_is_host(ggml_backend_buffer_type_t) { return false; }

static std::vector<device> & devices() {
    static std::vector<device> all = [] {
        std::vector<device> made(GGML_CUDA_MAX_DEVICES);
        for (int i = 0; i < GGML_CUDA_MAX_DEVICES; ++i) {
            made[i] = { i, "CUDA" + std::to_string(i), {} };
        }
        return made;
    }();
    static bool linked = false;
    if (!linked) {
        linked = true;
        for (auto & one : all) {
            one.buft.iface   = { buft_name, buft_alloc, buft_alignment, nullptr, nullptr, buft_is_host };
            one.buft.context = &one;
        }
    }
    return all;
}

// the buffer of split tensors: the parts' memory is made when the whole is placed

static const char * split_buft_name(ggml_backend_buffer_type_t) { return "CUDA_Split"; }

static const char * split_buffer_name(ggml_backend_buffer_t) { return "CUDA_Split"; }

static void split_free(ggml_backend_buffer_t) {}

static void * split_base(ggml_backend_buffer_t) { return (void *) 0x1000; }

static void split_init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    auto * extra = (ggml_split_tensor_t *) tensor->extra;
    if (!extra) {
        return;
    }
    GGML_ASSERT(extra->n_device <= n_devices());
    for (int i = 0; i < extra->n_device; ++i) {
        ggml_tensor * part = extra->splits[i];
        if (part) {
            // never freed, as on the GPU: nothing of upstream's frees them
            part->buffer = buft_alloc(&devices()[i].buft, ggml_nbytes(part));
            part->data   = ggml_backend_buffer_get_base(part->buffer);
            memset(part->data, 0, ggml_nbytes(part));
            ggml_backend_buffer_set_usage(part->buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        }
    }
}

static void split_set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    auto * extra = (ggml_split_tensor_t *) tensor->extra;
    if (!extra) {
        return;
    }
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && ggml_is_contiguous(tensor));
    const ranges_t * ranges = nullptr;
    memcpy(&ranges, tensor->op_params, sizeof(ranges));
    const int dim = extra->split_dim;
    GGML_ASSERT(dim <= 1);
    int first = 0;
    for (int i = 0; i < extra->n_device; ++i) {
        ggml_tensor * part = extra->splits[i];
        if (!part) {
            continue;
        }
        if (dim < 0) {
            memcpy(part->data, data, size);
            continue;
        }
        // what the part has of the dimension that is split
        std::vector<std::pair<int, int>> own = { { first, (int) part->ne[dim] } };
        if (ranges) {
            own = (*ranges)[i];
        }
        first += part->ne[dim];
        char * to = (char *) part->data;
        const int64_t outer = dim == 0 ? ggml_nrows(tensor) : tensor->ne[2] * tensor->ne[3];
        const size_t  step  = dim == 0 ? tensor->nb[1] : tensor->nb[2];
        for (int64_t o = 0; o < outer; ++o) {
            for (auto [from, count] : own) {
                const size_t at = dim == 0 ? ggml_row_size(tensor->type, from) : from * tensor->nb[1];
                const size_t n  = dim == 0 ? ggml_row_size(tensor->type, count) : count * tensor->nb[1];
                memcpy(to, (const char *) data + o * step + at, n);
                to += n;
            }
        }
        GGML_ASSERT(to == (char *) part->data + ggml_nbytes(part));
    }
}

static void split_get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void *, size_t, size_t) {
    GGML_ABORT("%s is split: it cannot be read as a whole", tensor->name);
}

static void split_clear(ggml_backend_buffer_t, uint8_t) {}

static ggml_backend_buffer_t split_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i made = { split_buffer_name, split_free, split_base, split_init_tensor, nullptr,
                                   split_set_tensor, split_get_tensor, nullptr, split_clear, nullptr };
    return ggml_backend_buffer_init(buft, made, nullptr, size);
}

static size_t split_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    auto * extra = (ggml_split_tensor_t *) tensor->extra;
    size_t all   = 0;
    for (int i = 0; extra && i < extra->n_device; ++i) {
        all += extra->splits[i] ? ggml_nbytes(extra->splits[i]) : 0;
    }
    return all;
}

GGML_CALL ggml_backend_buffer_type_t ggml_backend_cuda_split_buffer_type(const float *) {
    static ggml_backend_buffer_type buft = {
        { split_buft_name, split_alloc, buft_alignment, nullptr, split_alloc_size, buft_is_host }, nullptr
    };
    return &buft;
}

// a device that computes

struct backend {
    int            index;
    ggml_backend_t cpu;
};

static const char * backend_name(ggml_backend_t self) { return devices()[((backend *) self->context)->index].name.c_str(); }

static void backend_free(ggml_backend_t self) {
    ggml_backend_free(((backend *) self->context)->cpu);
    delete (backend *) self->context;
    delete self;
}

static ggml_backend_buffer_type_t backend_buft(ggml_backend_t self) {
    return &devices()[((backend *) self->context)->index].buft;
}

static void to_floats(const ggml_tensor * t, std::vector<float> & out) {
    out.resize(ggml_nelements(t));
    if (t->type == GGML_TYPE_F32) {
        memcpy(out.data(), t->data, ggml_nbytes(t));
    } else {
        ggml_internal_get_type_traits(t->type).to_float(t->data, out.data(), out.size());
    }
}

// the sum of what the devices have, on each of them and on those that asked for it (a bit of op_params[4])
static void reduce(ggml_tensor * node) {
    GGML_ASSERT(node->op_params[0] == GGML_OP_ADD && node->op_params[2] >= 2 && ggml_is_contiguous(node));
    if (node->op_params[3] == 1) {
        return;
    }
    std::vector<float> sum(ggml_nelements(node)), one;
    for (int i = 0; i < node->op_params[1]; ++i) {
        if (node->src[i] && !(node->op_params[4] & (1u << i))) {
            to_floats(node->src[i], one);
            for (size_t k = 0; k < sum.size(); ++k) {
                sum[k] += one[k];
            }
        }
    }
    for (int i = 0; i < node->op_params[1]; ++i) {
        ggml_tensor * to = node->src[i];
        if (to && to->type == GGML_TYPE_F32) {
            memcpy(to->data, sum.data(), ggml_nbytes(to));
        } else if (to) {
            ggml_internal_get_type_traits(to->type).from_float(sum.data(), to->data, sum.size());
        }
    }
}

static ggml_status backend_compute(ggml_backend_t self, ggml_cgraph * graph) {
    auto *      own   = (backend *) self->context;
    ggml_status state = GGML_STATUS_SUCCESS;
    for (int i = 0; i < graph->n_nodes && state == GGML_STATUS_SUCCESS;) {
        ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_REDUCE || node->op == GGML_OP_FAKE_CPY) {
            if (node->op == GGML_OP_REDUCE) {
                reduce(node);
            }
            ++i;
            continue;
        }
        int end = i + 1;
        while (end < graph->n_nodes && graph->nodes[end]->op != GGML_OP_REDUCE && graph->nodes[end]->op != GGML_OP_FAKE_CPY) {
            ++end;
        }
        ggml_cgraph piece = ggml_graph_view(graph, i, end);
        state             = ggml_backend_graph_compute(own->cpu, &piece);
        i                 = end;
    }
    return state;
}

// GRAPH_LACKS names an operation that the devices do not have
static bool backend_supports_op(ggml_backend_t, const ggml_tensor * op) {
    const char * lacks = getenv("GRAPH_LACKS");
    return !lacks || strcmp(lacks, ggml_op_name(op->op)) != 0;
}

static bool backend_supports_buft(ggml_backend_t self, ggml_backend_buffer_type_t buft) {
    return buft == backend_buft(self) || buft == ggml_backend_cuda_split_buffer_type(nullptr);
}

GGML_CALL ggml_backend_t ggml_backend_cuda_init(int index, const void *) {
    static ggml_guid guid = { 0x67, 0x72, 0x61, 0x70, 0x68, 0x2d, 0x64, 0x65, 0x76, 0x69, 0x63, 0x65, 0x73, 0x00, 0x00, 0x01 };
    ggml_backend_i   made = {};
    made.get_name                = backend_name;
    made.free                    = backend_free;
    made.get_default_buffer_type = backend_buft;
    made.graph_compute           = backend_compute;
    made.supports_op             = backend_supports_op;
    made.supports_buft           = backend_supports_buft;
    auto * own                   = new backend{ index, ggml_backend_cpu_init() };
    ggml_backend_cpu_set_n_threads(own->cpu, 2);
    return new ggml_backend{ &guid, made, own };
}

GGML_CALL bool ggml_backend_is_cuda(ggml_backend_t self) { return self->iface.graph_compute == backend_compute; }

GGML_CALL ggml_backend_buffer_type_t ggml_backend_cuda_buffer_type(int index) {
    return index < n_devices() ? &devices()[index].buft : nullptr;
}

GGML_CALL ggml_backend_buffer_type_t ggml_backend_cuda_host_buffer_type(void) { return ggml_backend_cpu_buffer_type(); }

GGML_CALL int ggml_backend_cuda_get_device_count(void) { return n_devices(); }

GGML_CALL void ggml_backend_cuda_get_device_description(int index, char * description, size_t size) {
    snprintf(description, size, "part %d of the host", index);
}

GGML_CALL void ggml_backend_cuda_get_device_memory(int, size_t * free, size_t * total) {
    *free = *total = size_t(8) << 30;
}

GGML_CALL bool ggml_backend_cuda_register_host_buffer(void *, size_t) { return false; }

GGML_CALL void ggml_backend_cuda_unregister_host_buffer(void *) {}

void ggml_backend_cuda_log_set_callback(ggml_log_callback, void *) {}

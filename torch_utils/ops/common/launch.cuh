// What every launcher needs on the CUDA side. Included by one .cu per library.
#pragma once

#include "scalar.cuh"

#define RC_EXPORT extern "C" __attribute__((visibility("default")))

namespace raycond {

const int64_t kMaxBlocks = 0x7fffffff;      // of a one-dimensional grid

static thread_local cudaStream_t current_stream;

// Makes `device` current and `stream` the launch stream; puts the device back at the end.
struct LaunchScope {
    int error, before, device;

    LaunchScope(int device_, void* stream) : error(0), before(device_), device(device_) {
        current_stream = static_cast<cudaStream_t>(stream);
        error = cudaGetDevice(&before);
        if (!error && before != device) error = cudaSetDevice(device);
    }
    ~LaunchScope() {
        if (before != device) cudaSetDevice(before);
    }
};

}  // namespace raycond

RC_EXPORT const char* raycond_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

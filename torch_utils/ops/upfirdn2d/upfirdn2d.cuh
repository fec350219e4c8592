// What all upfirdn2d variants share: arguments, taps, and which inputs an output needs.
#pragma once

#include "fir.cuh"

namespace raycond {

// Filled by upfirdn2d/cuda.py: keep the two in step. Tensors are [N, C, H, W] with any strides (in elements).
struct UpfirdnArgs {
    const void*  x;
    const float* f;             // [fh, fw] or, separable, [fw]; contiguous
    void*        y;
    int64_t      x_stride[4];
    int64_t      y_stride[4];
    double       gain;
    int32_t      n, c, ih, iw, oh, ow;
    int32_t      up_x, up_y, down_x, down_y, pad_x, pad_y;      // pads before the first sample; those behind it follow from oh, ow
    int32_t      fh, fw;
    int32_t      flip;          // 0: convolution.
    int32_t      separable;
    int32_t      dtype;
    int32_t      device;
};

template <class S> RC_HD S tap_2d(const UpfirdnArgs& a, int ky, int kx) {
    if (!a.flip) { ky = a.fh - 1 - ky; kx = a.fw - 1 - kx; }
    return (S)a.f[ky * a.fw + kx] * (S)a.gain;
}

template <class S> RC_HD S tap_1d(const UpfirdnArgs& a, int k) { return (S)a.f[a.flip ? k : a.fw - 1 - k]; }

template <class T> RC_HD const T* pixel(const UpfirdnArgs& a, int n, int c) {
    return static_cast<const T*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
}

template <class T> RC_HD T* pixel_out(const UpfirdnArgs& a, int n, int c) {
    return static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1];
}

const int kThreads = 128;

}  // namespace raycond

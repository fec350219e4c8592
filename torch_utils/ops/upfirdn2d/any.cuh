// upfirdn2d for every filter, factor, layout and type: one thread per output, which visits the taps that meet a sample.
#pragma once

#include "upfirdn2d.cuh"

namespace raycond {

template <class T> struct AnyFilter {
    typedef typename Compute<T>::type S;
    static const int SHARED = 1;                        // scalars of type S

    static int64_t blocks(const UpfirdnArgs& a) { return ((int64_t)a.n * a.c * a.oh * a.ow + kThreads - 1) / kThreads; }
    RC_HD static void load(const UpfirdnArgs&, S*, int64_t, int) {}
    RC_HD static void middle(const UpfirdnArgs&, S*, int64_t, int) {}

    RC_HD static void store(const UpfirdnArgs& a, const S*, int64_t block, int thread) {
        int64_t rest = block * kThreads + thread;
        if (rest >= (int64_t)a.n * a.c * a.oh * a.ow) return;
        int c = 0;
        const bool channels_first = a.y_stride[1] >= a.y_stride[3];     // neighbouring threads write neighbouring elements
        if (!channels_first) { c = (int)(rest % a.c); rest /= a.c; }
        const int ox = (int)(rest % a.ow); rest /= a.ow;
        const int oy = (int)(rest % a.oh); rest /= a.oh;
        if (channels_first) { c = (int)(rest % a.c); rest /= a.c; }
        const int n = (int)rest;

        const Reach rx = reach_of(ox, a.up_x, a.down_x, a.pad_x), ry = reach_of(oy, a.up_y, a.down_y, a.pad_y);
        const T* x = pixel<T>(a, n, c);
        S sum = 0;
        for (int ky = ry.phase, iy = ry.first; ky < a.fh; ky += a.up_y, iy++) {
            if (iy < 0 || iy >= a.ih) continue;
            for (int kx = rx.phase, ix = rx.first; kx < a.fw; kx += a.up_x, ix++) {
                if (ix < 0 || ix >= a.iw) continue;
                sum += tap_2d<S>(a, ky, kx) * widen(x[iy * a.x_stride[2] + ix * a.x_stride[3]]);
            }
        }
        pixel_out<T>(a, n, c)[oy * a.y_stride[2] + ox * a.y_stride[3]] = narrow<T>(sum);
    }
};

}  // namespace raycond

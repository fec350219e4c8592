// upfirdn2d where channels are contiguous (channels_last): a thread holds 16 bytes of channels and computes RY outputs below one
// another; every input row it reads serves all of them. A block covers neighbouring columns, whose inputs overlap in the L1 cache.
#pragma once

#include "upfirdn2d.cuh"

namespace raycond {

template <class T, int UP, int DOWN, int K> struct StripFilter {
    typedef typename Compute<T>::type S;
    static const int V = Wide<T>::count, RY = DOWN == 2 ? 4 : 8;
    static const int NR = inputs_for(RY, K, UP, DOWN), NX = K / UP;     // NX: taps of a row that meet a sample
    static const int SHARED = 1;

    // Threads of a block side by side in the channels: up to 8, a full line of 128 bytes.
    RC_HD static int lanes(const UpfirdnArgs& a) { return a.c / V >= 8 ? 8 : a.c / V >= 4 ? 4 : a.c / V >= 2 ? 2 : 1; }

    static int64_t blocks(const UpfirdnArgs& a) {
        const int wide = lanes(a), columns = kThreads / wide;
        return (int64_t)a.n * ((a.oh + RY - 1) / RY) * ((a.ow + columns - 1) / columns) * ((a.c / V + wide - 1) / wide);
    }
    RC_HD static void load(const UpfirdnArgs&, S*, int64_t, int) {}
    RC_HD static void middle(const UpfirdnArgs&, S*, int64_t, int) {}

    RC_HD static void store(const UpfirdnArgs& a, const S*, int64_t block, int thread) {
        const int wide = lanes(a), columns = kThreads / wide;
        const int groups = (a.c / V + wide - 1) / wide, across = (a.ow + columns - 1) / columns, along = (a.oh + RY - 1) / RY;
        const int pack = (int)(block % groups) * wide + thread % wide; block /= groups;
        const int ox = (int)(block % across) * columns + thread / wide; block /= across;
        const int oy = (int)(block % along) * RY; block /= along;
        if (pack * V >= a.c || ox >= a.ow) return;
        const Reach y = reach_of(oy, UP, DOWN, a.pad_y);
        if (y.phase == 0) strip<0>(a, (int)block, pack * V, oy, ox, y.first);
        else              strip<UP - 1>(a, (int)block, pack * V, oy, ox, y.first);
    }

private:
    template <int QY> RC_HD static void strip(const UpfirdnArgs& a, int n, int c, int oy, int ox, int iy) {
        typedef Vec<T, V> Pack;
        const Reach x = reach_of(ox, UP, DOWN, a.pad_x);
        S tap[K][NX], sum[RY][V] = {};
        RC_UNROLL
        for (int k = 0; k < K * NX; k++) tap[k / NX][k % NX] = tap_2d<S>(a, k / NX, x.phase + k % NX * UP);
        const T* from = pixel<T>(a, n, c);
        RC_UNROLL
        for (int i = 0; i < NR; i++) {
            Pack in[NX];
            RC_UNROLL
            for (int t = 0; t < NX; t++) {
                const bool inside = iy + i >= 0 && iy + i < a.ih && x.first + t >= 0 && x.first + t < a.iw;
                if (inside) in[t] = *reinterpret_cast<const Pack*>(from + (iy + i) * a.x_stride[2] + (x.first + t) * a.x_stride[3]);
                else {
                    RC_UNROLL
                    for (int e = 0; e < V; e++) in[t].v[e] = narrow<T>(S(0));
                }
            }
            RC_UNROLL
            for (int r = 0; r < RY; r++) {
                const int ky = tap_between(r, i, UP, DOWN, QY);
                if (ky >= 0 && ky < K) add(in, tap[ky], sum[r]);
            }
        }
        T* to = pixel_out<T>(a, n, c) + ox * a.y_stride[3];
        RC_UNROLL
        for (int r = 0; r < RY; r++) {
            if (oy + r >= a.oh) continue;
            Pack out;
            RC_UNROLL
            for (int e = 0; e < V; e++) out.v[e] = narrow<T>(sum[r][e]);
            *reinterpret_cast<Pack*>(to + (oy + r) * a.y_stride[2]) = out;
        }
    }

    RC_HD static void add(const Vec<T, V>* in, const S* tap, S* sum) {
        RC_UNROLL
        for (int t = 0; t < NX; t++)
            RC_UNROLL
            for (int e = 0; e < V; e++) sum[e] += tap[t] * widen(in[t].v[e]);
    }
};

}  // namespace raycond

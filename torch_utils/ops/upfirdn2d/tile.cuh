// upfirdn2d where rows are contiguous: a block fetches the inputs of one tile of outputs into shared memory, each once, and its
// threads compute a patch of outputs each, from windows of inputs that stay in registers.
//
// Two kinds: K x K filters of any form (small K), and separable filters of K taps, which run along x into shared memory and
// then along y, so that the image passes through device memory once.
#pragma once

#include "upfirdn2d.cuh"

namespace raycond {

// Where a block works.
struct TilePlace { int n, c, oy, ox; Reach x, y; };

template <int TW, int TH> RC_HD TilePlace place_of(const UpfirdnArgs& a, int64_t block, int up, int down) {
    const int across = (a.ow + TW - 1) / TW, along = (a.oh + TH - 1) / TH;
    TilePlace p;
    p.ox = (int)(block % across) * TW; block /= across;
    p.oy = (int)(block % along) * TH; block /= along;
    p.c = (int)(block % a.c);
    p.n = (int)(block / a.c);
    p.x = reach_of(p.ox, up, down, a.pad_x);
    p.y = reach_of(p.oy, up, down, a.pad_y);
    return p;
}

template <int TW, int TH> inline int64_t tile_blocks(const UpfirdnArgs& a) {
    return (int64_t)a.n * a.c * ((a.oh + TH - 1) / TH) * ((a.ow + TW - 1) / TW);
}

// IH x IW inputs from the place's first on, zero outside of the image, into rows of PITCH scalars.
template <class T, class S, int IH, int IW, int PITCH> RC_HD void fetch(const UpfirdnArgs& a, const TilePlace& p, S* tile, int thread) {
    const int BATCH = 8;                                // loads in flight per thread
    const T* x = pixel<T>(a, p.n, p.c);
    for (int base = thread; base < IH * IW; base += kThreads * BATCH) {
        S value[BATCH];
        RC_UNROLL
        for (int j = 0; j < BATCH; j++) {
            const int at = base + j * kThreads, iy = p.y.first + at / IW, ix = p.x.first + at % IW;
            const bool inside = at < IH * IW && iy >= 0 && iy < a.ih && ix >= 0 && ix < a.iw;
            value[j] = inside ? widen(x[iy * a.x_stride[2] + ix]) : S(0);
        }
        RC_UNROLL
        for (int j = 0; j < BATCH; j++) {
            const int at = base + j * kThreads;
            if (at < IH * IW) tile[at / IW * PITCH + at % IW] = value[j];
        }
    }
}

// COUNT scalars from an address that is a multiple of UNIT scalars, UNIT at a time.
template <class S, int COUNT, int UNIT> RC_HD void window(const S* from, S* to) {
    RC_UNROLL
    for (int i = 0; i < COUNT; i += UNIT) {
        const Vec<S, UNIT> part = *reinterpret_cast<const Vec<S, UNIT>*>(from + i);
        RC_UNROLL
        for (int e = 0; e < UNIT; e++) to[i + e] = part.v[e];
    }
}

// COUNT outputs of one row, as one access where the address allows it.
template <class T, class S, int COUNT> RC_HD void write_row(const UpfirdnArgs& a, const TilePlace& p, int oy, int ox, const S* value) {
    T* to = pixel_out<T>(a, p.n, p.c) + oy * a.y_stride[2] + ox;
    if (ox + COUNT <= a.ow && ((uintptr_t)to & (sizeof(T) * COUNT - 1)) == 0) {
        Vec<T, COUNT> packed;
        RC_UNROLL
        for (int e = 0; e < COUNT; e++) packed.v[e] = narrow<T>(value[e]);
        *reinterpret_cast<Vec<T, COUNT>*>(to) = packed;
        return;
    }
    RC_UNROLL
    for (int e = 0; e < COUNT; e++)
        if (ox + e < a.ow) to[e] = narrow<T>(value[e]);
}

// ---------------------------------------------------------------------------------------------------------------------
// K x K taps.

template <class T, int UP, int DOWN, int K> struct TileFilter {
    typedef typename Compute<T>::type S;
    static const int CX = 4, RY = DOWN == 2 ? 2 : 8;                    // a thread's patch of outputs
    static const int TW = DOWN == 2 ? 32 : 64, TH = kThreads / (TW / CX) * RY;
    static const int IW = inputs_for(TW, K, UP, DOWN), IH = inputs_for(TH, K, UP, DOWN);
    static const int UNIT = UP == 2 ? 2 : 4;                            // alignment of a patch's first input
    static const int NW = round_up(inputs_for(CX, K, UP, DOWN), UNIT), NR = inputs_for(RY, K, UP, DOWN);
    static const int PITCH = round_up((TW - CX) * DOWN / UP + NW > IW ? (TW - CX) * DOWN / UP + NW : IW, 4);
    static const int SHARED = IH * PITCH;

    static int64_t blocks(const UpfirdnArgs& a) { return tile_blocks<TW, TH>(a); }
    RC_HD static void middle(const UpfirdnArgs&, S*, int64_t, int) {}

    RC_HD static void load(const UpfirdnArgs& a, S* tile, int64_t block, int thread) {
        fetch<T, S, IH, IW, PITCH>(a, place_of<TW, TH>(a, block, UP, DOWN), tile, thread);
    }

    RC_HD static void store(const UpfirdnArgs& a, const S* tile, int64_t block, int thread) {
        const TilePlace p = place_of<TW, TH>(a, block, UP, DOWN);
        // Phases as template arguments keep every register index a constant.
        if (UP == 1)                                patch<0, 0>(a, p, tile, thread);
        else if (p.x.phase == 0 && p.y.phase == 0)  patch<0, 0>(a, p, tile, thread);
        else if (p.x.phase == 0)                    patch<0, UP - 1>(a, p, tile, thread);
        else if (p.y.phase == 0)                    patch<UP - 1, 0>(a, p, tile, thread);
        else                                        patch<UP - 1, UP - 1>(a, p, tile, thread);
    }

private:
    template <int QX, int QY> RC_HD static void patch(const UpfirdnArgs& a, const TilePlace& p, const S* tile, int thread) {
        const int col = thread % (TW / CX) * CX, row = thread / (TW / CX) * RY;
        if (p.oy + row >= a.oh || p.ox + col >= a.ow) return;
        S tap[K][K], sum[RY][CX] = {};
        RC_UNROLL
        for (int k = 0; k < K * K; k++) tap[k / K][k % K] = tap_2d<S>(a, k / K, k % K);
        const S* from = tile + row * DOWN / UP * PITCH + col * DOWN / UP;
        RC_UNROLL
        for (int i = 0; i < NR; i++) {
            S in[NW];
            window<S, NW, UNIT>(from + i * PITCH, in);
            RC_UNROLL
            for (int r = 0; r < RY; r++) {
                const int ky = tap_between(r, i, UP, DOWN, QY);
                if (ky >= 0 && ky < K) add_row<QX>(in, tap[ky], sum[r]);
            }
        }
        RC_UNROLL
        for (int r = 0; r < RY; r++)
            if (p.oy + row + r < a.oh) write_row<T, S, CX>(a, p, p.oy + row + r, p.ox + col, sum[r]);
    }

    template <int QX> RC_HD static void add_row(const S* in, const S* tap, S* sum) {
        RC_UNROLL
        for (int c = 0; c < CX; c++)
            RC_UNROLL
            for (int i = 0; i < NW; i++) {
                const int kx = tap_between(c, i, UP, DOWN, QX);
                if (kx >= 0 && kx < K) sum[c] += tap[kx] * in[i];
            }
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// K taps along x, then the same along y.

template <class T, int UP, int DOWN, int K> struct SeparableTileFilter {
    typedef typename Compute<T>::type S;
    static const int CX = 4, RY = 8;                                    // outputs of a thread along x, then along y
    static const int TW = DOWN == 2 ? 32 : 64, TH = UP == 2 ? 64 : 32;
    static const int IW = inputs_for(TW, K, UP, DOWN), IH = inputs_for(TH, K, UP, DOWN);
    static const int UNIT = UP == 2 ? 2 : 4;
    static const int NW = round_up(inputs_for(CX, K, UP, DOWN), UNIT), NR = inputs_for(RY, K, UP, DOWN);
    static const int PITCH = round_up((TW - CX) * DOWN / UP + NW > IW ? (TW - CX) * DOWN / UP + NW : IW, 4);
    static const int SHARED = IH * PITCH + IH * TW;                     // inputs; filtered along x

    static int64_t blocks(const UpfirdnArgs& a) { return tile_blocks<TW, TH>(a); }

    RC_HD static void load(const UpfirdnArgs& a, S* tile, int64_t block, int thread) {
        fetch<T, S, IH, IW, PITCH>(a, place_of<TW, TH>(a, block, UP, DOWN), tile, thread);
    }

    RC_HD static void middle(const UpfirdnArgs& a, S* tile, int64_t block, int thread) {
        if (place_of<TW, TH>(a, block, UP, DOWN).x.phase == 0) along_x<0>(a, tile, thread);
        else                                                   along_x<UP - 1>(a, tile, thread);
    }

    RC_HD static void store(const UpfirdnArgs& a, const S* tile, int64_t block, int thread) {
        const TilePlace p = place_of<TW, TH>(a, block, UP, DOWN);
        if (p.y.phase == 0) along_y<0>(a, p, tile + IH * PITCH, thread);
        else                along_y<UP - 1>(a, p, tile + IH * PITCH, thread);
    }

private:
    template <int Q> RC_HD static void along_x(const UpfirdnArgs& a, S* tile, int thread) {
        S tap[K];
        RC_UNROLL
        for (int k = 0; k < K; k++) tap[k] = tap_1d<S>(a, k);
        for (int strip = thread; strip < IH * (TW / CX); strip += kThreads) {
            const int row = strip / (TW / CX), col = strip % (TW / CX) * CX;
            S in[NW];
            window<S, NW, UNIT>(tile + row * PITCH + col * DOWN / UP, in);
            Vec<S, CX> sum = {};
            RC_UNROLL
            for (int c = 0; c < CX; c++)
                RC_UNROLL
                for (int i = 0; i < NW; i++) {
                    const int k = tap_between(c, i, UP, DOWN, Q);
                    if (k >= 0 && k < K) sum.v[c] += tap[k] * in[i];
                }
            *reinterpret_cast<Vec<S, CX>*>(tile + IH * PITCH + row * TW + col) = sum;
        }
    }

    template <int Q> RC_HD static void along_y(const UpfirdnArgs& a, const TilePlace& p, const S* rows, int thread) {
        const int col = thread % TW;
        if (p.ox + col >= a.ow) return;
        S tap[K];
        RC_UNROLL
        for (int k = 0; k < K; k++) tap[k] = tap_1d<S>(a, k) * (S)a.gain;
        for (int row = thread / TW * RY; row < TH && p.oy + row < a.oh; row += kThreads / TW * RY) {
            S sum[RY] = {};
            RC_UNROLL
            for (int i = 0; i < NR; i++) {
                const S in = rows[(row * DOWN / UP + i) * TW + col];
                RC_UNROLL
                for (int r = 0; r < RY; r++) {
                    const int k = tap_between(r, i, UP, DOWN, Q);
                    if (k >= 0 && k < K) sum[r] += tap[k] * in;
                }
            }
            RC_UNROLL
            for (int r = 0; r < RY; r++)
                if (p.oy + row + r < a.oh) write_row<T, S, 1>(a, p, p.oy + row + r, p.ox + col, sum + r);
        }
    }
};

}  // namespace raycond

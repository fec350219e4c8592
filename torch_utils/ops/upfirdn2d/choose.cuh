// Which variant computes a call. `Run::template go<Filter>(args)` runs load, middle and store of a Filter on every thread of every block, with a
// barrier between the three.
#pragma once

#include "any.cuh"
#include "strip.cuh"
#include "tile.cuh"

namespace raycond {

const int kNotTaken = -1;       // a separable filter without a variant: the caller runs it as two passes

template <class Run, class T, int UP, int DOWN> int run_factors(const UpfirdnArgs& a) {
    const bool rows = a.x_stride[3] == 1 && a.y_stride[3] == 1;
    const int V = Wide<T>::count;
    bool channels = a.x_stride[1] == 1 && a.y_stride[1] == 1 && a.c % V == 0 && (((uintptr_t)a.x | (uintptr_t)a.y) & 15) == 0;
    for (int i = 0; i < 4; i++) channels = channels && (i == 1 || (a.x_stride[i] % V == 0 && a.y_stride[i] % V == 0));
    if (a.separable) {
        if (rows && a.fw == 12) return Run::template go<SeparableTileFilter<T, UP, DOWN, 12>>(a);
        if (rows && a.fw == 24) return Run::template go<SeparableTileFilter<T, UP, DOWN, 24>>(a);
        return kNotTaken;
    }
    if (a.fw == 4 && a.fh == 4 && rows) return Run::template go<TileFilter<T, UP, DOWN, 4>>(a);
    if (a.fw == 4 && a.fh == 4 && channels) return Run::template go<StripFilter<T, UP, DOWN, 4>>(a);
    return Run::template go<AnyFilter<T>>(a);
}

template <class Run, class T> int run_type(const UpfirdnArgs& a) {
    const bool square = a.up_x == a.up_y && a.down_x == a.down_y;
    if (square && a.up_x == 1 && a.down_x == 1) return run_factors<Run, T, 1, 1>(a);
    if (square && a.up_x == 2 && a.down_x == 1) return run_factors<Run, T, 2, 1>(a);
    if (square && a.up_x == 1 && a.down_x == 2) return run_factors<Run, T, 1, 2>(a);
    return a.separable ? kNotTaken : Run::template go<AnyFilter<T>>(a);
}

template <class Run, class T> int run_call(const UpfirdnArgs& a) {
    if constexpr (sizeof(T) < sizeof(double)) return run_type<Run, T>(a);       // tiles in double would not fit, and nobody waits for it
    else return a.separable ? kNotTaken : Run::template go<AnyFilter<T>>(a);
}

}  // namespace raycond

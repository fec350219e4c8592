// Which inputs an output of a resampling filter needs.
//
// Along one axis, output o is the sum over taps k of  tap[k] * stuffed[o * down + k - pad],  where stuffed[i * up] = x[i] and all
// other samples are zero. For outputs from `o` on, `first` is the first input that can matter and `phase` the tap that meets it:
// relative output r and tap k use input first + i exactly where  r * down + k == phase + i * up.
#pragma once

#include "scalar.cuh"

namespace raycond {

struct Reach { int first, phase; };

RC_HD Reach reach_of(int o, int up, int down, int pad) {
    const int start = o * down - pad;                   // position in the stuffed signal
    Reach r;
    r.first = -floor_div(-start, up);                   // rounded up
    r.phase = r.first * up - start;
    return r;
}

// The tap by which relative output r uses input first + i, if it lies in 0 .. taps - 1. A constant in unrolled loops.
RC_HD constexpr int tap_between(int r, int i, int up, int down, int phase) { return phase + i * up - r * down; }

// Inputs that `outputs` neighbours need at most.
constexpr int inputs_for(int outputs, int taps, int up, int down) { return ((outputs - 1) * down + taps - 1) / up + 1; }

constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

}  // namespace raycond

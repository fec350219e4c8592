// filtered_lrelu in one pass over device memory: a block computes one tile of results of one channel, and what it needs at the
// higher rate lives in shared memory alone.
//
//   function:    result = down(act(up(x + b)))
//   derivative:  result = down(act'(up(x + b)) * up_v(v))
//
// The adjoint of the derivative is the derivative with other filters: its `up_v` is the way down reversed and its `down` the way up
// reversed. Nothing is kept between forward and backward: act' comes from x again, which costs arithmetic and saves traffic.
#pragma once

#include "fir.cuh"

namespace raycond {

// Filled by filtered_lrelu/cuda.py: keep the two in step. One linear map between a lower and the higher sampling rate, the same
// filter along both axes. Tap k is f[k], or f[taps - 1 - k] where `reversed`; no f: a single tap 1.
struct Way {
    const float* f;
    double       gain;
    int32_t      taps, reversed, factor;
    int32_t      pad_x, pad_y;          // up: zeros before the first sample. down: samples that the first result reaches before the first.
    int32_t      height, width;         // at the lower rate
};

struct FilteredLreluArgs {
    Way          up, up_v, down;
    const void*  x;                     // contiguous [n, c, up.height, up.width]
    const void*  v;                     // contiguous [n, c, up_v.height, up_v.width]. NULL: the function, not its derivative
    const void*  bias;                  // [c] or NULL
    void*        y;                     // contiguous [n, c, down.height, down.width]
    double       slope, clamp;          // clamp < 0: none
    int64_t      planes;                // n * c
    int32_t      channels;
    int32_t      height, width;         // at the higher rate; samples beyond count as zero
    int32_t      dtype, device;
};

const int kThreads = 256;
const int kSharedBytes = 48 * 1024;

// How a call is cut into tiles and shared memory, the same for all blocks. Rows and columns count from the tile's first.
struct Tiling {
    int32_t     tile, middle;                   // results and samples at the higher rate along both axes
    int32_t     source, source_v;               // inputs along both axes
    int32_t     across, along;                  // tiles of a plane
    int32_t     rows, high, shared;             // where the parts begin, and their sum [scalars]
    FastDivisor by_tile, by_middle, by_source, by_source_v, by_up, by_up_v;

    int64_t blocks(const FilteredLreluArgs& a) const { return a.planes * along * across; }

    // Parts of shared memory: taps of the three filters; inputs (later, with the next, results along x); inputs resampled along x; the higher rate.
    void set(const FilteredLreluArgs& a, int size) {
        const int taps = a.up.taps + a.down.taps + (a.v ? a.up_v.taps : 0);
        tile = size;
        middle = (size - 1) * a.down.factor + a.down.taps;
        source = inputs_for(middle, a.up.taps, a.up.factor, 1);
        source_v = a.v ? inputs_for(middle, a.up_v.taps, a.up_v.factor, 1) : 1;
        across = (a.down.width + size - 1) / size;
        along = (a.down.height + size - 1) / size;
        const int inputs = source > source_v ? source : source_v;
        rows = taps + inputs * inputs;
        const int low = inputs * inputs + inputs * middle, below = middle * tile;
        high = taps + (low > below ? low : below);
        shared = high + middle * middle;
        by_tile.set(tile);
        by_middle.set(middle);
        by_source.set(source);
        by_source_v.set(source_v);
        by_up.set(a.up.factor);
        by_up_v.set(a.v ? a.up_v.factor : 1);
    }

    // The largest tile that fits; false where none does.
    template <class S> bool fit(const FilteredLreluArgs& a) {
        for (int size = 32; size > 0; size /= 2) {
            set(a, size);
            if (shared * sizeof(S) <= kSharedBytes) return true;
        }
        return false;
    }
};

// The work of one block in steps; a barrier follows each.
template <class T, bool DERIVATIVE> struct FilteredTile {
    typedef typename Compute<T>::type S;
    static const int STEPS = DERIVATIVE ? 8 : 5;

    RC_HD static void step(int number, const FilteredLreluArgs& a, const Tiling& t, S* shared, int64_t block, int thread) {
        const Place p = place_of(a, t, block);
        const S *taps_up = shared, *taps_down = taps_up + a.up.taps, *taps_v = taps_down + a.down.taps;
        S *inputs = shared + a.up.taps + a.down.taps + (DERIVATIVE ? a.up_v.taps : 0), *rows = shared + t.rows, *high = shared + t.high;
        if (!DERIVATIVE && number > 2) number += 3;             // the function has no second source
        switch (number) {
            case 0:
                load_taps(a.up, shared, thread);
                load_taps(a.down, shared + a.up.taps, thread);
                if (DERIVATIVE) load_taps(a.up_v, shared + a.up.taps + a.down.taps, thread);
                load(a.up, static_cast<const T*>(a.x), p, t.source, t.by_source, a.bias ? widen(static_cast<const T*>(a.bias)[p.channel]) : S(0), inputs, thread);
                break;
            case 1: up_x(a.up, taps_up, p, t, t.source, t.by_up, inputs, rows, thread); break;
            case 2: up_y(a, a.up, taps_up, p, t, t.by_up, rows, high, thread, Bend{}); break;
            case 3: load(a.up_v, static_cast<const T*>(a.v), p, t.source_v, t.by_source_v, S(0), inputs, thread); break;
            case 4: up_x(a.up_v, taps_v, p, t, t.source_v, t.by_up_v, inputs, rows, thread); break;
            case 5: up_y(a, a.up_v, taps_v, p, t, t.by_up_v, rows, high, thread, Multiply{}); break;
            case 6: down_x(a.down, taps_down, t, high, inputs, thread); break;
            case 7: down_y(a, taps_down, p, t, inputs, thread); break;
        }
    }

private:
    // First result of the tile, its first sample at the higher rate, its plane.
    struct Place { int oy, ox, my, mx, channel; int64_t plane; };

    RC_HD static Place place_of(const FilteredLreluArgs& a, const Tiling& t, int64_t block) {
        Place p;
        p.ox = (int)(block % t.across) * t.tile; block /= t.across;
        p.oy = (int)(block % t.along) * t.tile;
        p.plane = block / t.along;
        p.channel = (int)(p.plane % a.channels);
        p.mx = p.ox * a.down.factor - a.down.pad_x;
        p.my = p.oy * a.down.factor - a.down.pad_y;
        return p;
    }

    RC_HD static void load_taps(const Way& way, S* to, int thread) {
        for (int k = thread; k < way.taps; k += kThreads) to[k] = way.f ? (S)way.f[way.reversed ? way.taps - 1 - k : k] : S(1);
    }

    RC_HD static void load(const Way& way, const T* from, const Place& p, int size, const FastDivisor& by_size, S bias, S* to, int thread) {
        const int first_y = reach_of(p.my, way.factor, 1, way.pad_y).first, first_x = reach_of(p.mx, way.factor, 1, way.pad_x).first;
        from += p.plane * way.height * way.width;
        for (int at = thread; at < size * size; at += kThreads) {
            const int row = (int)by_size.quotient(at), iy = first_y + row, ix = first_x + at - row * size;
            const bool inside = iy >= 0 && iy < way.height && ix >= 0 && ix < way.width;
            to[at] = inside ? widen(from[(int64_t)iy * way.width + ix]) + bias : S(0);
        }
    }

    // The sum of one sample at the higher rate, `position` from the tile's first, over inputs that lie `stride` apart.
    RC_HD static S interpolate(const Way& way, const S* taps, int phase, int position, const FastDivisor& by_factor, const S* from, int stride) {
        const int first = (int)by_factor.quotient(position - phase + way.factor - 1);
        S sum = 0;
        from += first * stride;
        for (int k = first * way.factor - position + phase; k < way.taps; k += way.factor, from += stride) sum += taps[k] * *from;
        return sum;
    }

    RC_HD static void up_x(const Way& way, const S* taps, const Place& p, const Tiling& t, int size, const FastDivisor& by_factor,
                           const S* from, S* to, int thread) {
        const int phase = reach_of(p.mx, way.factor, 1, way.pad_x).phase;
        for (int at = thread; at < size * t.middle; at += kThreads) {
            const int row = (int)t.by_middle.quotient(at), col = at - row * t.middle;
            to[at] = interpolate(way, taps, phase, col, by_factor, from + row * size, 1);
        }
    }

    // What becomes of a sample at the higher rate: `held` is what the place holds already.
    struct Bend {
        RC_HD static S of(const FilteredLreluArgs& a, S sample, S) {
            const S bent = sample > 0 ? sample : sample * (S)a.slope, clamp = (S)a.clamp;
            if (!DERIVATIVE) return clamp < 0 ? bent : bent > clamp ? clamp : bent < -clamp ? -clamp : bent;
            const bool free = clamp < 0 || (bent < clamp && bent > -clamp);
            return free ? (sample > 0 ? S(1) : (S)a.slope) : S(0);
        }
    };
    struct Multiply {
        RC_HD static S of(const FilteredLreluArgs&, S sample, S held) { return held * sample; }
    };

    template <class Meet> RC_HD static void up_y(const FilteredLreluArgs& a, const Way& way, const S* taps, const Place& p, const Tiling& t,
                                                 const FastDivisor& by_factor, const S* from, S* to, int thread, Meet) {
        const int phase = reach_of(p.my, way.factor, 1, way.pad_y).phase;
        const S gain = (S)way.gain;
        for (int at = thread; at < t.middle * t.middle; at += kThreads) {
            const int row = (int)t.by_middle.quotient(at), col = at - row * t.middle, my = p.my + row, mx = p.mx + col;
            if (my < 0 || my >= a.height || mx < 0 || mx >= a.width) to[at] = 0;
            else to[at] = Meet::of(a, interpolate(way, taps, phase, row, by_factor, from + col, t.middle) * gain, to[at]);
        }
    }

    RC_HD static void down_x(const Way& way, const S* taps, const Tiling& t, const S* from, S* to, int thread) {
        for (int at = thread; at < t.middle * t.tile; at += kThreads) {
            const int row = (int)t.by_tile.quotient(at), col = at - row * t.tile;
            const S* sample = from + row * t.middle + col * way.factor;
            S sum = 0;
            for (int k = 0; k < way.taps; k++) sum += taps[k] * sample[k];
            to[at] = sum;
        }
    }

    RC_HD static void down_y(const FilteredLreluArgs& a, const S* taps, const Place& p, const Tiling& t, const S* from, int thread) {
        const Way& way = a.down;
        T* to = static_cast<T*>(a.y) + p.plane * way.height * way.width;
        for (int at = thread; at < t.tile * t.tile; at += kThreads) {
            const int row = (int)t.by_tile.quotient(at), col = at - row * t.tile, oy = p.oy + row, ox = p.ox + col;
            if (oy >= way.height || ox >= way.width) continue;
            const S* sample = from + row * way.factor * t.tile + col;
            S sum = 0;
            for (int k = 0; k < way.taps; k++) sum += taps[k] * sample[k * t.tile];
            to[(int64_t)oy * way.width + ox] = narrow<T>(sum * (S)way.gain);
        }
    }
};

// `Run::template go<Tile>(args, tiling)` runs the steps of a Tile on every thread of every block. kDoesNotFit: no tile does.
const int kDoesNotFit = -1;

template <class Run, class T> int run_filtered(const FilteredLreluArgs& a) {
    Tiling tiling;
    if (!tiling.fit<typename Compute<T>::type>(a)) return kDoesNotFit;
    if (a.v) return Run::template go<FilteredTile<T, true>>(a, tiling);
    return Run::template go<FilteredTile<T, false>>(a, tiling);
}

inline bool is_empty(const FilteredLreluArgs& a) { return a.planes * a.down.height * a.down.width == 0; }

}  // namespace raycond

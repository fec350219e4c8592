// upfirdn2d on CPUs: float32, channels innermost, any factors, crops and taps.
//
// Of the result one row after another is made, in stretches whose input stays in the first cache. The rows of the input that a stretch needs are still
// in the second cache from the row before. A filter that is an outer product first mixes rows, then pixels; any other mixes pixels of all rows.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t STRETCH = 1 << 13;         // elements of an input row that are worked on together
constexpr int64_t PIECE = 1 << 16;           // elements of the result in a piece of work, roughly
constexpr float   ROUNDING = 4e-7f;          // how far from an outer product, relative to the largest tap, a filter may be for one

struct Job {
    const float* x;                          // [N, H, W, C]
    const float* f;                          // [fh, fw], or [fh] for an outer product with itself
    float*       y;                          // [N, OH, OW, C]
    int64_t      N, C, H, W, OH, OW;
    int32_t      fh, fw, separable, flip;
    int32_t      up_x, up_y, down_x, down_y, pad_x, pad_y;
    float        gain;
};

// Which samples along an axis, and which taps, meet in each sample of the result: `count` from `start` on, with taps `tap`, `tap` + up, ...
struct Meeting {
    int32_t start, count, tap;
};

std::vector<Meeting> meetings(int64_t size, int64_t out, int64_t taps, int64_t up, int64_t down, int64_t before)
{
    std::vector<Meeting> all(out);
    for (int64_t o = 0; o < out; o++) {
        const int64_t first = o * down - before;                                    // where tap 0 lies at the higher rate
        const int64_t start = first > 0 ? (first + up - 1) / up : 0;                // up * start >= first
        const int64_t end = std::min(size, (first + taps + up - 1) / up);           // up * (end - 1) < first + taps
        const bool    none = first + taps <= 0 || start >= end;
        all[o] = {static_cast<int32_t>(none ? 0 : start), static_cast<int32_t>(none ? 0 : end - start), static_cast<int32_t>(none ? 0 : start * up - first)};
    }
    return all;
}

// The taps as a correlation's: either `column` and `row`, or all of them.
struct Filter {
    std::vector<float> column, row, all;     // [fh], [fw], [fh, fw]
    bool               outer;
};

Filter filter_of(const Job& job)
{
    const int32_t fh = job.fh, fw = job.fw;
    Filter filter = {std::vector<float>(fh), std::vector<float>(fw), std::vector<float>(static_cast<size_t>(fh) * fw), true};
    const auto tap = [&](int32_t i, int32_t j) {
        i = job.flip ? i : fh - 1 - i, j = job.flip ? j : fw - 1 - j;
        return job.separable ? job.f[i] * job.f[j] : job.f[i * fw + j];
    };
    int32_t top = 0, left = 0;
    for (int32_t i = 0; i < fh; i++)
        for (int32_t j = 0; j < fw; j++) {
            filter.all[i * fw + j] = tap(i, j) * job.gain;
            if (std::abs(tap(i, j)) > std::abs(tap(top, left)))
                top = i, left = j;
        }
    const float largest = tap(top, left);
    for (int32_t i = 0; i < fh; i++)
        filter.column[i] = tap(i, left) * job.gain;
    for (int32_t j = 0; j < fw; j++)
        filter.row[j] = largest == 0 ? 0 : tap(top, j) / largest;
    if (!job.separable)
        for (int32_t i = 0; i < fh; i++)
            for (int32_t j = 0; j < fw; j++)
                filter.outer &= std::abs(tap(i, j) - tap(i, left) * filter.row[j]) <= ROUNDING * std::abs(largest);
    return filter;
}

struct Task {
    const Job*           job;
    Filter               filter;
    std::vector<Meeting> vertical, horizontal;
    int64_t              rows;               // of the result, in a piece of work
};

// out = sum of weights[k] * (from + k * step), `count` elements
template <int TERMS>
void mix(const float* from, int64_t step, const float* weights, float* out, int64_t count)
{
    each_vector(count, [=](int64_t i, int32_t lanes) INLINED {
        Vec sum = load(from + i, lanes) * weights[0];
        for (int k = 1; k < TERMS; k++)
            sum += load(from + k * step + i, lanes) * weights[k];
        store(out + i, sum, lanes);
    });
}

void mix(const float* from, int64_t step, const float* weights, int32_t terms, float* out, int64_t count)
{
    switch (terms) {
        case 0: std::fill(out, out + count, 0.f); return;
        case 1: return mix<1>(from, step, weights, out, count);
        case 2: return mix<2>(from, step, weights, out, count);
        case 3: return mix<3>(from, step, weights, out, count);
        case 4: return mix<4>(from, step, weights, out, count);
    }
    each_vector(count, [=](int64_t i, int32_t lanes) INLINED {
        Vec sum = {};
        for (int32_t k = 0; k < terms; k++)
            sum += load(from + k * step + i, lanes) * weights[k];
        store(out + i, sum, lanes);
    });
}

// Every `up`-th of the taps from `tap` on.
void pick(const float* taps, int32_t tap, int32_t up, int32_t count, float* weights)
{
    for (int32_t k = 0; k < count; k++)
        weights[k] = taps[tap + k * up];
}

// Pixels first to last of a row of the result by an outer product.
void outer_stretch(const Task& task, const float* image, const float* column, const Meeting& v, int64_t first, int64_t last, float* line, float* weights,
                   float* out)
{
    const Job& job = *task.job;
    int64_t from = job.W, until = 0;
    for (int64_t o = first; o < last; o++)
        if (task.horizontal[o].count) {
            from = std::min<int64_t>(from, task.horizontal[o].start);
            until = std::max<int64_t>(until, task.horizontal[o].start + task.horizontal[o].count);
        }
    if (from < until)
        mix(image + (v.start * job.W + from) * job.C, job.W * job.C, column, v.count, line, (until - from) * job.C);
    for (int64_t o = first; o < last; o++) {
        const Meeting& h = task.horizontal[o];
        pick(task.filter.row.data(), h.tap, job.up_x, h.count, weights);
        mix(line + (h.start - from) * job.C, job.C, weights, h.count, out + o * job.C, job.C);
    }
}

// A row of the result by any filter.
void any_row(const Task& task, const float* image, const Meeting& v, float* weights, float* out)
{
    const Job& job = *task.job;
    for (int64_t o = 0; o < job.OW; o++) {
        const Meeting& h = task.horizontal[o];
        for (int32_t k = 0; k < v.count; k++)
            pick(&task.filter.all[(v.tap + k * job.up_y) * job.fw], h.tap, job.up_x, h.count, weights + k * h.count);
        const float* corner = image + (v.start * job.W + h.start) * job.C;
        each_vector(job.C, [&](int64_t c, int32_t lanes) INLINED {
            Vec sum = {};
            for (int32_t k = 0; k < v.count; k++)
                for (int32_t j = 0; j < h.count; j++)
                    sum += load(corner + (k * job.W + j) * job.C + c, lanes) * weights[k * h.count + j];
            store(out + o * job.C + c, sum, lanes);
        });
    }
}

void pieces(int64_t begin, int64_t end, void* context)
{
    const Task& task = *static_cast<const Task*>(context);
    const Job&  job = *task.job;
    const int64_t per_sample = (job.OH + task.rows - 1) / task.rows;
    const int64_t reach = job.fw / job.up_x + 1;                                    // pixels that one pixel of the result looks at, at most
    const int64_t pixels = std::max(reach + 8, STRETCH / job.C);
    const int64_t stretch = std::max<int64_t>(1, (pixels - reach) * job.up_x / job.down_x);
    Aligned line((stretch * job.down_x / job.up_x + reach + 2) * job.C);
    std::vector<float> weights(job.fh * job.fw), column(job.fh);
    for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / per_sample, top = item % per_sample * task.rows, bottom = std::min(job.OH, top + task.rows);
        const float*  image = job.x + n * job.H * job.W * job.C;
        for (int64_t o = top; o < bottom; o++) {
            const Meeting& v = task.vertical[o];
            float* out = job.y + (n * job.OH + o) * job.OW * job.C;
            if (!task.filter.outer) {
                any_row(task, image, v, weights.data(), out);
                continue;
            }
            pick(task.filter.column.data(), v.tap, job.up_y, v.count, column.data());
            for (int64_t first = 0; first < job.OW; first += stretch)
                outer_stretch(task, image, column.data(), v, first, std::min(job.OW, first + stretch), line.data(), weights.data(), out);
        }
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void raycond_upfirdn2d(const Job* job, const Threads* threads)
{
    Task task = {job, filter_of(*job), meetings(job->H, job->OH, job->fh, job->up_y, job->down_y, job->pad_y),
                 meetings(job->W, job->OW, job->fw, job->up_x, job->down_x, job->pad_x), std::max<int64_t>(1, PIECE / (job->OW * job->C))};
    threads->share(job->N * ((job->OH + task.rows - 1) / task.rows), pieces, &task);
}

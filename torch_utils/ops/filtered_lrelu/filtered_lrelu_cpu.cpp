// filtered_lrelu and its derivative on CPUs: down(act(up(x))) for separable filters, float32, channels innermost.
//
// A thread takes 16 channels of some rows of the result and streams down the image. What exists at the higher rate is one row; the rows that the
// vertical filters look back at wait in rings. So the work stays in the second-level cache, and a call starts its threads once.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

// A resampling along one axis: result o is the sum over j < width of weight[o * width + j] * input[start[o] + j]. `start` never falls.
struct Rows {
    const int32_t* start;
    const float*   weight;
    int32_t        out, width, size;
};

struct Source {
    const float* x;              // [N, H, W, C]
    const float* bias;           // [C], added to x, or null
    Rows         h, w;           // to the higher rate
};

struct Job {
    Source  sources[2];
    int32_t num_sources;         // 1: the operator; 2: its derivative, sources are where and along what
    Rows    down_h, down_w;
    float*  y;                   // [N, H', W', C]
    int32_t N, C;
    float   slope, clamp;        // clamp < 0: none
    int32_t chunks;              // into which the result's rows are divided
};

// One row of vectors -> one row of vectors.
void resample_row(const Rows& rows, const Vec* in, Vec* out)
{
    for (int32_t o = 0; o < rows.out; o++) {
        const Vec*   from = in + rows.start[o];
        const float* weight = rows.weight + static_cast<int64_t>(o) * rows.width;
        Vec sum = weight[0] * from[0];
        for (int32_t j = 1; j < rows.width; j++)
            sum += weight[j] * from[j];
        out[o] = sum;
    }
}

// Rows of a column of vectors, which wait in a ring.
struct Ring {
    std::vector<float> memory;
    int32_t slots = 0, length = 0, next = 0;     // next: the first row that has not been made

    void shape(int32_t slots_, int32_t length_)
    {
        slots = slots_, length = length_;
        memory.resize(static_cast<size_t>(slots) * length * LANES);
    }
    Vec* row(int32_t i) { return reinterpret_cast<Vec*>(memory.data() + static_cast<size_t>(i % slots) * length * LANES); }
};

// out = sum of weight[j] * ring row start + j
template <int WIDTH>
void combine_fixed(Ring& ring, int32_t start, const float* weight, Vec* out)
{
    const Vec* from[WIDTH];
    for (int j = 0; j < WIDTH; j++)
        from[j] = ring.row(start + j);
    for (int32_t i = 0; i < ring.length; i++) {
        Vec sum = weight[0] * from[0][i];
        for (int j = 1; j < WIDTH; j++)
            sum += weight[j] * from[j][i];
        out[i] = sum;
    }
}

void combine(Ring& ring, const Rows& rows, int32_t o, Vec* out)
{
    const float* weight = rows.weight + static_cast<int64_t>(o) * rows.width;
    const int32_t start = rows.start[o];
    switch (rows.width) {
        case 1:  return combine_fixed<1>(ring, start, weight, out);
        case 2:  return combine_fixed<2>(ring, start, weight, out);
        case 3:  return combine_fixed<3>(ring, start, weight, out);
        case 6:  return combine_fixed<6>(ring, start, weight, out);
        case 12: return combine_fixed<12>(ring, start, weight, out);
        case 24: return combine_fixed<24>(ring, start, weight, out);
    }
    const Vec* first = ring.row(start);
    for (int32_t i = 0; i < ring.length; i++)
        out[i] = weight[0] * first[i];
    for (int32_t j = 1; j < rows.width; j++) {
        const Vec* from = ring.row(start + j);
        for (int32_t i = 0; i < ring.length; i++)
            out[i] += weight[j] * from[i];
    }
}

struct Scratch {
    std::vector<float> line, wide[2];
    Ring up[2], down;
};

// The way up of one source: makes row m at the higher rate.
void wide_row(const Job& job, int s, Scratch& scratch, int32_t n, int32_t c, int32_t channels, int32_t m)
{
    const Source& source = job.sources[s];
    Ring& ring = scratch.up[s];
    const int32_t until = source.h.start[m] + source.h.width;
    ring.next = std::max(ring.next, source.h.start[m]);
    for (; ring.next < until; ring.next++) {
        const float* from = source.x + (static_cast<int64_t>(n) * source.h.size + ring.next) * source.w.size * job.C + c;
        Vec* line = reinterpret_cast<Vec*>(scratch.line.data());
        const Vec bias = source.bias ? load(source.bias + c, channels) : Vec{};
        for (int32_t i = 0; i < source.w.size; i++)
            line[i] = load(from + static_cast<int64_t>(i) * job.C, channels) + bias;
        resample_row(source.w, line, ring.row(ring.next));
    }
    combine(ring, source.h, m, reinterpret_cast<Vec*>(scratch.wide[s].data()));
}

void act(const Job& job, float* p, int64_t count)
{
    const float slope = job.slope, clamp = job.clamp;
    if (clamp < 0)
        for (int64_t i = 0; i < count; i++)
            p[i] = p[i] < 0 ? p[i] * slope : p[i];
    else
        for (int64_t i = 0; i < count; i++) {
            float v = p[i] < 0 ? p[i] * slope : p[i];
            v = v > clamp ? clamp : v;
            p[i] = v < -clamp ? -clamp : v;
        }
}

// q times the derivative of the activation at p
void act_derivative(const Job& job, const float* p, float* q, int64_t count)
{
    const float slope = job.slope, clamp = job.clamp;
    for (int64_t i = 0; i < count; i++) {
        const float v = p[i] > 0 ? p[i] : p[i] * slope;
        float r = p[i] > 0 ? q[i] : q[i] * slope;
        if (clamp >= 0)
            r = (v <= -clamp || v >= clamp) ? 0 : r;
        q[i] = r;
    }
}

void strip(const Job& job, Scratch& scratch, int32_t n, int32_t c, int32_t first, int32_t last)
{
    const int32_t channels = std::min(LANES, job.C - c);
    const int32_t width = job.down_w.size;
    int32_t longest = 0;
    for (int s = 0; s < job.num_sources; s++) {
        scratch.up[s].shape(job.sources[s].h.width, width);
        scratch.up[s].next = 0;
        scratch.wide[s].resize(static_cast<size_t>(width) * LANES);
        longest = std::max(longest, job.sources[s].w.size);
    }
    scratch.line.resize(static_cast<size_t>(longest) * LANES);
    scratch.down.shape(job.down_h.width, job.down_w.out);
    scratch.down.next = 0;
    std::vector<float> result(static_cast<size_t>(job.down_w.out) * LANES);

    for (int32_t o = first; o < last; o++) {
        const int32_t until = job.down_h.start[o] + job.down_h.width;
        scratch.down.next = std::max(scratch.down.next, job.down_h.start[o]);
        for (; scratch.down.next < until; scratch.down.next++) {
            for (int s = 0; s < job.num_sources; s++)
                wide_row(job, s, scratch, n, c, channels, scratch.down.next);
            float* row = scratch.wide[job.num_sources - 1].data();
            if (job.num_sources == 1)
                act(job, row, static_cast<int64_t>(width) * LANES);
            else
                act_derivative(job, scratch.wide[0].data(), row, static_cast<int64_t>(width) * LANES);
            resample_row(job.down_w, reinterpret_cast<const Vec*>(row), scratch.down.row(scratch.down.next));
        }
        combine(scratch.down, job.down_h, o, reinterpret_cast<Vec*>(result.data()));
        float* to = job.y + (static_cast<int64_t>(n) * job.down_h.out + o) * job.down_w.out * job.C + c;
        const Vec* finished = reinterpret_cast<const Vec*>(result.data());
        for (int32_t i = 0; i < job.down_w.out; i++)
            store(to + static_cast<int64_t>(i) * job.C, finished[i], channels);
    }
}

void strips(int64_t begin, int64_t end, void* context)
{
    const Job& job = *static_cast<const Job*>(context);
    const int32_t groups = (job.C + LANES - 1) / LANES;
    Scratch scratch;
    for (int64_t item = begin; item < end; item++) {
        const int32_t chunk = item % job.chunks, group = item / job.chunks % groups, n = item / job.chunks / groups;
        const int64_t rows = job.down_h.out;
        strip(job, scratch, n, group * LANES, rows * chunk / job.chunks, rows * (chunk + 1) / job.chunks);
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void raycond_filtered_lrelu(const Job* job, const Threads* threads)
{
    const int64_t items = static_cast<int64_t>(job->N) * ((job->C + LANES - 1) / LANES) * job->chunks;
    threads->share(items, strips, const_cast<Job*>(job));
}

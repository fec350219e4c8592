// filtered_lrelu and its derivative on CPUs: down(act(up(x))) for separable filters, float32, channels innermost.
//
// A thread takes 16 channels of some rows of the result and streams down the image: on the way up first along columns, on the way down last. What
// exists at the higher rate is one row, in the first cache; the rows that the vertical filters look back at wait in rings at the lower rates. Several
// samples of a row are computed together, so that a weight is read once for all of them. A call starts its threads once.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int32_t PARTS = LINE / LANES;      // vectors of a sample's 16 channels
constexpr int32_t TOGETHER = 8;              // vectors that are summed up together

// A resampling along one axis: result o is the sum over j < width of weight[o * width + j] * input[start[o] + j]. `start` never falls. Away from the
// borders, result o + period has the weights of o and starts `step` later.
struct Rows {
    const int32_t* start;
    const float*   weight;
    int32_t        out, width, size, period, step;
    int32_t        inner, inner_end;         // where this holds; `find_inner` fills them in

    const float* weights(int32_t o) const { return weight + static_cast<int64_t>(o) * width; }

    bool repeats(int32_t o) const
    {
        return o >= 0 && o + period < out && start[o + period] == start[o] + step && std::equal(weights(o), weights(o + 1), weights(o + period));
    }
    void find_inner()
    {
        inner = inner_end = out / 2;
        while (repeats(inner - 1))
            inner--;
        while (repeats(inner_end))
            inner_end++;
        inner_end = std::min(out, inner_end + period);
    }
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

// One row of samples -> another. put(i, value) takes vector i of the result.
template <int WIDTH, class Put>
void resample_fixed(const Rows& rows, const Vec* in, Put put)
{
    constexpr int32_t COUNT = TOGETHER / PARTS;
    const int32_t width = WIDTH ? WIDTH : rows.width;
    const auto one = [&](int32_t o) INLINED {
        const Vec* from = in + rows.start[o] * PARTS;
        for (int32_t p = 0; p < PARTS; p++) {
            Vec sum = rows.weights(o)[0] * from[p];
            for (int32_t j = 1; j < width; j++)
                sum += rows.weights(o)[j] * from[j * PARTS + p];
            put(o * PARTS + p, sum);
        }
    };
    int32_t o = 0;
    for (; o < rows.inner; o++)
        one(o);
    for (; o + COUNT * rows.period <= rows.inner_end; o += COUNT * rows.period)
        for (int32_t phase = o; phase < o + rows.period; phase++) {
            const float* weight = rows.weights(phase);
            const Vec*   from = in + rows.start[phase] * PARTS;
            const Vec*   each[COUNT];
            for (int32_t k = 0; k < COUNT; k++)
                each[k] = from + k * rows.step * PARTS;
            Vec sum[COUNT][PARTS];
            for (int32_t k = 0; k < COUNT; k++)
                for (int32_t p = 0; p < PARTS; p++)
                    sum[k][p] = weight[0] * each[k][p];
            for (int32_t j = 1; j < width; j++)
                for (int32_t k = 0; k < COUNT; k++)
                    for (int32_t p = 0; p < PARTS; p++)
                        sum[k][p] += weight[j] * each[k][j * PARTS + p];
            for (int32_t k = 0; k < COUNT; k++)
                for (int32_t p = 0; p < PARTS; p++)
                    put((phase + k * rows.period) * PARTS + p, sum[k][p]);
        }
    for (; o < rows.out; o++)
        one(o);
}

template <class Put>
void resample_row(const Rows& rows, const Vec* in, Put put)
{
    switch (rows.width) {
        case 1:  return resample_fixed<1>(rows, in, put);
        case 6:  return resample_fixed<6>(rows, in, put);
        case 12: return resample_fixed<12>(rows, in, put);
    }
    resample_fixed<0>(rows, in, put);
}

// Rows of samples, which wait in a ring.
struct Ring {
    Aligned memory;
    std::vector<const Vec*> together;            // the rows that are combined
    int32_t slots = 0, length = 0, next = 0;     // next: the first row that has not been made

    void shape(int32_t slots_, int32_t samples)
    {
        slots = slots_, length = samples * PARTS, next = 0;
        memory.resize(static_cast<size_t>(slots) * samples * LINE);
        together.resize(slots);
    }
    Vec* row(int32_t i) { return reinterpret_cast<Vec*>(memory.data()) + static_cast<size_t>(i % slots) * length; }
};

// The sum of weight[j] * ring row j; put(i, value) takes vector i of it.
template <int WIDTH, class Put>
void combine_fixed(const Ring& ring, const float* weight, Put put)
{
    const int32_t width = WIDTH ? WIDTH : ring.slots;
    const Vec* const* from = ring.together.data();
    int32_t i = 0;
    for (; i + TOGETHER <= ring.length; i += TOGETHER) {
        Vec sum[TOGETHER];
        for (int32_t k = 0; k < TOGETHER; k++)
            sum[k] = weight[0] * from[0][i + k];
        for (int32_t j = 1; j < width; j++)
            for (int32_t k = 0; k < TOGETHER; k++)
                sum[k] += weight[j] * from[j][i + k];
        for (int32_t k = 0; k < TOGETHER; k++)
            put(i + k, sum[k]);
    }
    for (; i < ring.length; i++) {
        Vec sum = weight[0] * from[0][i];
        for (int32_t j = 1; j < width; j++)
            sum += weight[j] * from[j][i];
        put(i, sum);
    }
}

// Row o of a resampling down the image, whose inputs are in the ring.
template <class Put>
void combine(Ring& ring, const Rows& rows, int32_t o, Put put)
{
    for (int32_t j = 0; j < rows.width; j++)
        ring.together[j] = ring.row(rows.start[o] + j);
    switch (rows.width) {
        case 1:  return combine_fixed<1>(ring, rows.weights(o), put);
        case 6:  return combine_fixed<6>(ring, rows.weights(o), put);
        case 12: return combine_fixed<12>(ring, rows.weights(o), put);
    }
    combine_fixed<0>(ring, rows.weights(o), put);
}

inline Vec act(const Job& job, Vec v)
{
    v = v < 0 ? v * job.slope : v;
    if (job.clamp < 0)
        return v;
    v = v > job.clamp ? Vec{} + job.clamp : v;
    return v < -job.clamp ? Vec{} - job.clamp : v;
}

// q times the derivative of the activation at p
inline Vec act_derivative(const Job& job, Vec p, Vec q)
{
    const Vec v = p > 0 ? p : p * job.slope;
    q = p > 0 ? q : q * job.slope;
    if (job.clamp < 0)
        return q;
    q = v <= -job.clamp ? Vec{} : q;
    return v >= job.clamp ? Vec{} : q;
}

struct Scratch {
    Aligned line, wide[2];       // a row at the lower rate, and at the higher one
    Ring    up[2], down;
};

// The 16 channels from c on, or as many as there are, of a row [W, C] of pixels, and a bias.
void take_row(const float* from, const float* bias, int32_t W, int32_t C, int32_t channels, Vec* to)
{
    for (int32_t p = 0; p < PARTS; p++) {
        const int32_t count = std::max(0, std::min(LANES, channels - p * LANES));
        if (count == 0)
            for (int32_t i = 0; i < W; i++)
                to[i * PARTS + p] = Vec{};
        else {
            const Vec more = bias ? load(bias + p * LANES, count) : Vec{};
            for (int32_t i = 0; i < W; i++)
                to[i * PARTS + p] = load(from + static_cast<int64_t>(i) * C + p * LANES, count) + more;
        }
    }
}

// The way up of one source: makes row m at the higher rate. put(i, value) takes vector i of it.
template <class Put>
void wide_row(const Job& job, int s, Scratch& scratch, int32_t n, int32_t c, int32_t channels, int32_t m, Put put)
{
    const Source& source = job.sources[s];
    Ring& ring = scratch.up[s];
    const int32_t until = source.h.start[m] + source.h.width;
    ring.next = std::max(ring.next, source.h.start[m]);
    for (; ring.next < until; ring.next++)
        take_row(source.x + (static_cast<int64_t>(n) * source.h.size + ring.next) * source.w.size * job.C + c, source.bias ? source.bias + c : nullptr,
                 source.w.size, job.C, channels, ring.row(ring.next));
    Vec* line = reinterpret_cast<Vec*>(scratch.line.data());
    combine(ring, source.h, m, [=](int32_t i, Vec value) INLINED { line[i] = value; });
    resample_row(source.w, line, put);
}

void strip(const Job& job, Scratch& scratch, int32_t n, int32_t c, int32_t first, int32_t last)
{
    const int32_t channels = std::min(LINE, job.C - c);
    int32_t longest = 0;
    for (int s = 0; s < job.num_sources; s++) {
        scratch.up[s].shape(job.sources[s].h.width, job.sources[s].w.size);
        scratch.wide[s].resize(static_cast<size_t>(job.down_w.size) * LINE);
        longest = std::max(longest, job.sources[s].w.size);
    }
    scratch.line.resize(static_cast<size_t>(longest) * LINE);
    scratch.down.shape(job.down_h.width, job.down_w.out);
    Vec* const at = reinterpret_cast<Vec*>(scratch.wide[0].data());
    Vec* const along = reinterpret_cast<Vec*>(scratch.wide[1].data());

    for (int32_t o = first; o < last; o++) {
        const int32_t until = job.down_h.start[o] + job.down_h.width;
        Ring& down = scratch.down;
        down.next = std::max(down.next, job.down_h.start[o]);
        for (; down.next < until; down.next++) {
            if (job.num_sources == 1)
                wide_row(job, 0, scratch, n, c, channels, down.next, [&job, at](int32_t i, Vec value) INLINED { at[i] = act(job, value); });
            else {
                wide_row(job, 0, scratch, n, c, channels, down.next, [=](int32_t i, Vec value) INLINED { at[i] = value; });
                wide_row(job, 1, scratch, n, c, channels, down.next,
                         [&job, at, along](int32_t i, Vec value) INLINED { along[i] = act_derivative(job, at[i], value); });
            }
            Vec* row = down.row(down.next);
            resample_row(job.down_w, job.num_sources == 1 ? at : along, [=](int32_t i, Vec value) INLINED { row[i] = value; });
        }
        float* to = job.y + (static_cast<int64_t>(n) * job.down_h.out + o) * job.down_w.out * job.C + c;
        const int64_t C = job.C;
        if (channels == LINE)
            combine(down, job.down_h, o, [=](int32_t i, Vec value) INLINED { store(to + i / PARTS * C + i % PARTS * LANES, value, LANES); });
        else
            combine(down, job.down_h, o, [=](int32_t i, Vec value) INLINED {
                const int32_t p = i % PARTS, count = std::max(0, std::min(LANES, channels - p * LANES));
                if (count)
                    store(to + i / PARTS * C + p * LANES, value, count);
            });
    }
}

void strips(int64_t begin, int64_t end, void* context)
{
    const Job& job = *static_cast<const Job*>(context);
    const int32_t groups = (job.C + LINE - 1) / LINE;
    Scratch scratch;
    for (int64_t item = begin; item < end; item++) {
        const int32_t chunk = item % job.chunks, group = item / job.chunks % groups, n = item / job.chunks / groups;
        const int64_t rows = job.down_h.out;
        strip(job, scratch, n, group * LINE, rows * chunk / job.chunks, rows * (chunk + 1) / job.chunks);
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void raycond_filtered_lrelu(const Job* job, const Threads* threads)
{
    Job mine = *job;
    for (Source& source : mine.sources)
        source.h.find_inner(), source.w.find_inner();
    mine.down_h.find_inner(), mine.down_w.find_inner();
    const int64_t items = static_cast<int64_t>(job->N) * ((job->C + LINE - 1) / LINE) * job->chunks;
    threads->share(items, strips, &mine);
}

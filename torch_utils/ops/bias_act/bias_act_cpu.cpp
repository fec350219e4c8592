// bias_act and its derivatives on CPUs: clamp(gain * act(x * scale + noise + b)) for piecewise linear activations, float32, channels innermost.
// Each function passes over memory once.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"
#include "pieces.h"
#include "vectors.h"

namespace {

struct Job {
    const float* v;              // [N, P, C]: x, a direction of it, or the incoming gradient; null: 0
    const float* x;              // [N, P, C]: what the scale is a factor of, or null
    const float* y;              // [N, P, C]: where the derivative is taken; null: everywhere positive and free
    const float* scale;          // [N, C], or null: 1
    const float* v_scale;        // [N, C]: a direction of the scale, or null
    const float* noise;          // [N or 1, P]: the noise, or a direction of it; null: 0
    const float* bias;           // [C]: likewise
    float*       out;            // [N, P, C], or null
    float*       d_scale;        // [N, C], or null
    float*       d_noise;        // [N, P], or null
    float*       d_bias;         // [C], or null
    int64_t      N, P, C;
    int64_t      noise_step;     // from one sample's noise to the next
    float        slope, gain, limit;             // slope of the negative side; limit: NaN for none, which no comparison holds for
};

Pieces pieces_of(const Job& job) { return {job.N, job.P, job.C}; }

inline Vec spread(float value) { return Vec{} + value; }

// act(v), clamped. What is no number stays so; minus infinity times a slope of 0 is 0.
inline Vec act(const Job& job, Vec v)
{
    const Vec below = job.slope == 0 ? Vec{} : v * job.slope;
    Vec r = v < 0 ? below : v;
    r = r > job.limit ? spread(job.limit) : r;
    return r < -job.limit ? spread(-job.limit) : r;
}

// r times the derivative, gain and all, that led to y
inline Vec act_derivative(const Job& job, Vec y, Vec r)
{
    r = (y > 0 ? r : r * job.slope) * job.gain;
    const Vec magnitude = y < 0 ? -y : y;
    return magnitude >= job.limit ? Vec{} : r;
}

// out = act(gain * (v * scale + noise) + gain * bias), rounded as the plain path rounds it, whose results training should not leave by chance;
// or, along directions, act'(y) * (v * scale + x * v_scale + noise + bias).
template <bool DERIVATIVE>
void forward_pieces(int64_t begin, int64_t end, void* context)
{
    const Job& job = *static_cast<const Job*>(context);
    const Pieces pieces = pieces_of(job);
    Row scale(job.C), v_scale(job.C), bias(job.C);
    bias.fill(job.bias, job.C, 0);
    for (int64_t c = 0; c < job.C && !DERIVATIVE; c++)
        bias[c] *= job.gain;
    for (int64_t item = begin; item < end; item++) {
        const Piece piece = pieces[item];
        scale.fill(job.scale ? job.scale + piece.n * job.C : nullptr, job.C, 1);
        v_scale.fill(job.v_scale ? job.v_scale + piece.n * job.C : nullptr, job.C, 0);
        for (int64_t p = piece.first; p < piece.last; p++) {
            const float   noise = job.noise ? job.noise[piece.n * job.noise_step + p] : 0;
            const int64_t at = (piece.n * job.P + p) * job.C;
            each_vector(job.C, [&](int64_t c, int32_t count) INLINED {
                Vec r = spread(noise);
                if (!DERIVATIVE || job.v)
                    r += load(job.v + at + c, count) * scale.at(c);
                if (DERIVATIVE && job.v_scale)
                    r += load(job.x + at + c, count) * v_scale.at(c);
                if (!DERIVATIVE)
                    r = act(job, r * job.gain + bias.at(c));
                else {
                    r += bias.at(c);
                    r = job.y ? act_derivative(job, load(job.y + at + c, count), r) : r * job.gain;
                }
                store(job.out + at + c, r, count);
            });
        }
    }
}

struct Sums {
    const Job*          job;
    std::vector<double> scale, bias;     // [pieces, C]
};

// With g = act'(y) * v: out = g * scale, d_scale = sum of g * x, d_noise and d_bias = sums of g; each where wanted.
template <bool OUT, bool D_SCALE, bool D_NOISE, bool D_BIAS>
void backward_pieces(int64_t begin, int64_t end, void* context)
{
    Sums& sums = *static_cast<Sums*>(context);
    const Job& job = *sums.job;
    const Pieces pieces = pieces_of(job);
    Row scale(job.C), for_scale(job.C), for_bias(job.C);
    for (int64_t item = begin; item < end; item++) {
        const Piece piece = pieces[item];
        scale.fill(job.scale ? job.scale + piece.n * job.C : nullptr, job.C, 1);
        for (int64_t p = piece.first; p < piece.last; p++) {
            const int64_t at = (piece.n * job.P + p) * job.C;
            Vec all = {};
            each_vector(job.C, [&](int64_t c, int32_t count) INLINED {
                Vec g = load(job.v + at + c, count);
                g = job.y ? act_derivative(job, load(job.y + at + c, count), g) : g * job.gain;
                if (OUT)
                    store(job.out + at + c, g * scale.at(c), count);
                if (D_SCALE)
                    for_scale.add(c, g * load(job.x + at + c, count));
                if (D_BIAS)
                    for_bias.add(c, g);
                if (D_NOISE)
                    all += g;
            });
            if (D_NOISE)
                job.d_noise[piece.n * job.P + p] = sum_of(all);
            if (D_SCALE && flushes(piece, p))
                for_scale.flush(&sums.scale[item * job.C], job.C);
            if (D_BIAS && flushes(piece, p))
                for_bias.flush(&sums.bias[item * job.C], job.C);
        }
    }
}

template <size_t... WANTED>
Work backward_work(size_t wanted, std::index_sequence<WANTED...>)
{
    static const Work all[] = {backward_pieces<(WANTED & 1) != 0, (WANTED & 2) != 0, (WANTED & 4) != 0, (WANTED & 8) != 0>...};
    return all[wanted];
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC void raycond_bias_act(const Job* job, const Threads* threads)
{
    threads->share(pieces_of(*job).count, forward_pieces<false>, const_cast<Job*>(job));
}

PUBLIC void raycond_bias_act_along(const Job* job, const Threads* threads)
{
    threads->share(pieces_of(*job).count, forward_pieces<true>, const_cast<Job*>(job));
}

PUBLIC void raycond_bias_act_back(const Job* job, const Threads* threads)
{
    const int64_t pieces = pieces_of(*job).count;
    Sums sums = {job, {}, {}};
    sums.scale.resize(job->d_scale ? pieces * job->C : 0);
    sums.bias.resize(job->d_bias ? pieces * job->C : 0);
    const size_t wanted = (job->out ? 1 : 0) | (job->d_scale ? 2 : 0) | (job->d_noise ? 4 : 0) | (job->d_bias ? 8 : 0);
    threads->share(pieces, backward_work(wanted, std::make_index_sequence<16>()), &sums);
    if (job->d_scale)
        combine(sums.scale, job->N, job->C, job->d_scale);
    if (job->d_bias)
        combine(sums.bias, 1, job->C, job->d_bias);
}

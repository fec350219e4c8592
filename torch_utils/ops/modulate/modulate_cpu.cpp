// cat([x, appended]) * styles and its gradients on CPUs: float32, channels innermost, one pass over memory each.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"
#include "pieces.h"
#include "vectors.h"

namespace {

struct Job {
    const float* x;              // [N, P, C], or null where no gradient of the styles is wanted
    const float* appended;       // [N, E, P] by the strides, or null: 0
    const float* styles;         // [N, C + E]
    const float* dy;             // [N, P, C + E], of the gradients alone
    float*       out;            // y [N, P, C + E]; or the gradient of x [N, P, C], or null
    float*       d_styles;       // [N, C + E], or null
    float*       d_appended;     // [N, E, P], or null
    int64_t      N, P, C, E;
    int64_t      stride_n, stride_e, stride_p;       // of `appended`
};

Pieces pieces_of(const Job& job) { return {job.N, job.P, job.C + job.E}; }

void forward_pieces(int64_t begin, int64_t end, void* context)
{
    const Job& job = *static_cast<const Job*>(context);
    const Pieces pieces = pieces_of(job);
    const int64_t all = job.C + job.E;
    Row styles(all);
    for (int64_t item = begin; item < end; item++) {
        const Piece piece = pieces[item];
        styles.fill(job.styles + piece.n * all, all, 1);
        for (int64_t p = piece.first; p < piece.last; p++) {
            const float* from = job.x + (piece.n * job.P + p) * job.C;
            float*       to = job.out + (piece.n * job.P + p) * all;
            each_vector(job.C, [&](int64_t c, int32_t count) INLINED {
                store(to + c, load(from + c, count) * styles.at(c), count);
            });
            const float* appended = !job.appended ? nullptr : job.appended + piece.n * job.stride_n + p * job.stride_p;
            for (int64_t e = 0; e < job.E; e++)
                to[job.C + e] = appended ? appended[e * job.stride_e] * styles[job.C + e] : 0;
        }
    }
}

struct Sums {
    const Job*          job;
    std::vector<double> styles;          // [pieces, C + E]
};

template <bool DX, bool D_STYLES>
void backward_pieces(int64_t begin, int64_t end, void* context)
{
    Sums& sums = *static_cast<Sums*>(context);
    const Job& job = *sums.job;
    const Pieces pieces = pieces_of(job);
    const int64_t all = job.C + job.E;
    Row styles(all), for_styles(all);
    for (int64_t item = begin; item < end; item++) {
        const Piece piece = pieces[item];
        styles.fill(job.styles + piece.n * all, all, 1);
        for (int64_t p = piece.first; p < piece.last; p++) {
            const int64_t pixel = piece.n * job.P + p;
            const float*  dy = job.dy + pixel * all;
            each_vector(job.C, [&](int64_t c, int32_t count) INLINED {
                const Vec g = load(dy + c, count);
                if (DX)
                    store(job.out + pixel * job.C + c, g * styles.at(c), count);
                if (D_STYLES)
                    for_styles.add(c, g * load(job.x + pixel * job.C + c, count));
            });
            const float* appended = !job.appended ? nullptr : job.appended + piece.n * job.stride_n + p * job.stride_p;
            for (int64_t e = 0; e < job.E; e++) {
                if (D_STYLES && appended)
                    for_styles[job.C + e] += dy[job.C + e] * appended[e * job.stride_e];
                if (job.d_appended)
                    job.d_appended[(piece.n * job.E + e) * job.P + p] = dy[job.C + e] * styles[job.C + e];
            }
            if (D_STYLES && flushes(piece, p))
                for_styles.flush(&sums.styles[item * all], all);
        }
    }
}

struct Energies {
    const float* kernels;        // [O, K]
    const float* squares;        // [N, K]
    float*       out;            // [N, O]: sum of kernels^2 * squares
    int64_t      N, O, K;
};

void energies(int64_t begin, int64_t end, void* context)
{
    const Energies& job = *static_cast<const Energies*>(context);
    for (int64_t o = begin; o < end; o++)
        for (int64_t n = 0; n < job.N; n++) {
            Vec sum = {};
            each_vector(job.K, [&](int64_t k, int32_t count) INLINED {
                const Vec w = load(job.kernels + o * job.K + k, count);
                sum += w * w * load(job.squares + n * job.K + k, count);
            });
            job.out[n * job.O + o] = sum_of(sum);
        }
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC void raycond_modulate(const Job* job, const Threads* threads)
{
    threads->share(pieces_of(*job).count, forward_pieces, const_cast<Job*>(job));
}

PUBLIC void raycond_modulate_back(const Job* job, const Threads* threads)
{
    const int64_t pieces = pieces_of(*job).count, all = job->C + job->E;
    Sums sums = {job, std::vector<double>(job->d_styles ? pieces * all : 0)};
    const Work work = job->out ? (job->d_styles ? backward_pieces<true, true> : backward_pieces<true, false>)
                               : (job->d_styles ? backward_pieces<false, true> : backward_pieces<false, false>);
    threads->share(pieces, work, &sums);
    if (job->d_styles)
        combine(sums.styles, job->N, all, job->d_styles);
}

PUBLIC void raycond_energies(const Energies* job, const Threads* threads)
{
    threads->share(job->O, energies, const_cast<Energies*>(job));
}

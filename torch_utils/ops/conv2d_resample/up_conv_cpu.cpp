// What surrounds the four small convolutions of a transposed one of stride 2, on CPUs: float32, channels innermost.
//
// Before: the taps of each. After: their results are the pixels of even and odd rows and columns of an image. It is never laid out; a separable
// filter reads it row by row, first mixing rows of each parity of columns, then pixels of both, in stretches that stay in the first cache.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t STRETCH = 1 << 12;         // elements of a row of one parity that are worked on together
constexpr int64_t PIECE = 1 << 16;           // elements of the result in a piece of work, roughly
constexpr int     MOST_TAPS = 16;

struct Filtering {
    const float* phase[4];                   // [N, H[a], W[b], C] at 2a + b: rows of parity a, columns of parity b
    const float* column;                     // [fh], taps of a correlation
    const float* row;                        // [fw]
    float*       y;                          // [N, OH, OW, C]
    int64_t      N, C, H[2], W[2], OH, OW;
    int32_t      fh, fw, pad_y, pad_x;       // taps that lie before the image
};

// A weighted sum of stretches of memory.
struct Terms {
    const float* from[MOST_TAPS];
    float        weight[MOST_TAPS];
    int32_t      count = 0;

    void add(const float* what, float factor) { from[count] = what, weight[count++] = factor; }
};

template <int COUNT>
void sum_up(const Terms& terms, int64_t offset, float* out, int64_t elements)
{
    for (int64_t i = 0; i < elements; i += LANES) {
        const int32_t lanes = std::min<int64_t>(LANES, elements - i);
        Vec sum = load(terms.from[0] + offset + i, lanes) * terms.weight[0];
        for (int k = 1; k < COUNT; k++)
            sum += load(terms.from[k] + offset + i, lanes) * terms.weight[k];
        store(out + i, sum, lanes);
    }
}

void sum_up(const Terms& terms, int64_t offset, float* out, int64_t elements)
{
    switch (terms.count) {
        case 0: std::fill(out, out + elements, 0.f); return;
        case 1: return sum_up<1>(terms, offset, out, elements);
        case 2: return sum_up<2>(terms, offset, out, elements);
        case 3: return sum_up<3>(terms, offset, out, elements);
        case 4: return sum_up<4>(terms, offset, out, elements);
    }
    for (int64_t i = 0; i < elements; i += LANES) {
        const int32_t lanes = std::min<int64_t>(LANES, elements - i);
        Vec sum = {};
        for (int k = 0; k < terms.count; k++)
            sum += load(terms.from[k] + offset + i, lanes) * terms.weight[k];
        store(out + i, sum, lanes);
    }
}

void stretch_of_row(const Filtering& job, const Terms (&rows)[2], int64_t first, int64_t last, float* const (&line)[2], float* out)
{
    const int64_t left = std::max<int64_t>(0, first - job.pad_x), right = std::min(job.W[0] + job.W[1], last - 1 - job.pad_x + job.fw);
    int64_t begin[2];
    for (int b = 0; b < 2; b++) {
        begin[b] = (left + 1 - b) / 2;                                              // the first pixel of this parity from `left` on
        const int64_t end = std::max(begin[b], (right + 1 - b) / 2);
        sum_up(rows[b], begin[b] * job.C, line[b], (end - begin[b]) * job.C);
    }
    for (int64_t o = first; o < last; o++) {
        Terms pixels;
        for (int32_t k = 0; k < job.fw; k++) {
            const int64_t q = o - job.pad_x + k, b = q & 1;
            if (q >= 0 && q < job.W[0] + job.W[1])
                pixels.add(line[b] + (q / 2 - begin[b]) * job.C, job.row[k]);
        }
        sum_up(pixels, 0, out + o * job.C, job.C);
    }
}

int64_t rows_per_piece(const Filtering& job) { return std::max<int64_t>(1, PIECE / (job.OW * job.C)); }
int64_t pieces_per_sample(const Filtering& job) { return (job.OH + rows_per_piece(job) - 1) / rows_per_piece(job); }

void filter_pieces(int64_t begin, int64_t end, void* context)
{
    const Filtering& job = *static_cast<const Filtering*>(context);
    const int64_t each = pieces_per_sample(job), rows = rows_per_piece(job);
    const int64_t stretch = 2 * std::max<int64_t>(job.fw, STRETCH / job.C);
    std::vector<float> memory((stretch + job.fw + 4) * job.C);
    float* const line[2] = {memory.data(), memory.data() + memory.size() / 2};
    for (int64_t item = begin; item < end; item++) {
        const int64_t n = item / each, top = item % each * rows, bottom = std::min(job.OH, top + rows);
        for (int64_t o = top; o < bottom; o++) {
            Terms rows_met[2];
            for (int32_t k = 0; k < job.fh; k++) {
                const int64_t r = o - job.pad_y + k, a = r & 1;
                if (r >= 0 && r < job.H[0] + job.H[1])
                    for (int b = 0; b < 2; b++)
                        rows_met[b].add(job.phase[2 * a + b] + (n * job.H[a] + r / 2) * job.W[b] * job.C, job.column[k]);
            }
            float* out = job.y + (n * job.OH + o) * job.OW * job.C;
            for (int64_t first = 0; first < job.OW; first += stretch)
                stretch_of_row(job, rows_met, first, std::min(job.OW, first + stretch), line, out);
        }
    }
}

struct Splitting {
    const float* w;                          // [O, I, 3, 3]
    float*       taps[4];                    // [O, 2 - a, 2 - b, I] at 2a + b, each of w's rows a, a + 2 and columns b, b + 2 in reverse order
    int64_t      O, I;
};

constexpr int TAPS_OF[4][4] = {{8, 6, 2, 0}, {7, 1}, {5, 3}, {4}};
constexpr int COUNTS[4] = {4, 2, 2, 1};

void split_kernels(int64_t begin, int64_t end, void* context)
{
    const Splitting& job = *static_cast<const Splitting*>(context);
    for (int64_t o = begin; o < end; o++) {
        const float* w = job.w + o * job.I * 9;
        for (int phase = 0; phase < 4; phase++)
            for (int t = 0; t < COUNTS[phase]; t++) {
                float* to = job.taps[phase] + (o * COUNTS[phase] + t) * job.I;
                for (int64_t i = 0; i < job.I; i++)
                    to[i] = w[i * 9 + TAPS_OF[phase][t]];
            }
    }
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC void raycond_filter_phases(const Filtering* job, const Threads* threads)
{
    threads->share(job->N * pieces_per_sample(*job), filter_pieces, const_cast<Filtering*>(job));
}

PUBLIC void raycond_split_taps(const Splitting* job, const Threads* threads)
{
    threads->share(job->O, split_kernels, const_cast<Splitting*>(job));
}

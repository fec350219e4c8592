// Convolutions and their weight gradients on the matrix units of CPUs that have them (Intel AMX), float32 in and out, channels innermost.
//
// The units multiply numbers of 8 bits' precision (bfloat16) and add in single precision. So each number x is split into high + low, two of
// them, and x * w becomes high * high + low * high + high * low; what is left out is 2^-17 of the product or less. (Infinity becomes NaN.)

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

typedef uint16_t Half;                       // a bfloat16
constexpr int64_t ROWS = 16;                 // of a tile
constexpr int64_t DEPTH = 32;                // Halfs in a row of a tile of factors
constexpr int64_t TILE = ROWS * DEPTH;
constexpr int     MOST_TAPS = 9, MOST_PARTS = 4;
constexpr int64_t GROUPS = 8;                // of samples whose weight gradients are summed apart, for any number of threads

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Memory that starts with a cache line; as it comes, or zeros.
template <class T>
class Buffer {
    std::unique_ptr<T[]> memory;

public:
    explicit Buffer(size_t size, bool zeros) : memory(zeros ? new T[size + 64 / sizeof(T)]() : new T[size + 64 / sizeof(T)]) {}
    T* data() { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64); }
};

struct TileConfig {
    uint8_t  palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t  rows[16] = {};
};

// The unit's eight tiles, all of 16 rows of 64 bytes, while this lives.
struct Tiles {
    Tiles()
    {
        TileConfig config;
        for (int i = 0; i < 8; i++)
            config.row_bytes[i] = 64, config.rows[i] = ROWS;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

struct Split {
    __m256i high, low;
};

inline Split split(__m512 v)
{
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(v);
    const __m512  rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    return {high, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, rounded))};
}

// ---------------------------------------------------------------------------------------------------------------------
// y[part's pixel p] = sum over its taps t of w[t] x[p stride + t]. In depth, a pixel's high, low, high meet the kernels' high, high, low.

struct Part {                                // of the result: every y_step-th pixel from (top, left) on
    int64_t top, left, height, width;
    int32_t first_tap, num_taps;
};

struct Job {
    const float* x;                          // [N, H, W, I]
    const float* w;                          // kernels, by the strides
    float*       y;                          // [N, YH, YW, O]
    int64_t      N, H, W, I, YH, YW, O;
    int64_t      w_o, w_i;                   // strides of w
    int64_t      w_tap[MOST_TAPS];           // where each tap's kernel begins
    int32_t      tap_y[MOST_TAPS], tap_x[MOST_TAPS];     // which pixel of x the first pixel of y meets
    int32_t      num_taps, stride, y_step, num_parts;
    Part         parts[MOST_PARTS];
};

struct Plan {
    const Job*   job;
    const Half*  kernels;                    // [taps, depths, outputs / 16, TILE]
    int64_t      depths, blocks;             // tiles along 3 I, along O
    int64_t      top, left, height, width;   // of the part of x, with its surroundings, that is met
};

// The nearest bfloat16 of a finite number.
inline Half nearest(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<Half>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widened(Half value)
{
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

void pack_kernels(const Job& job, int64_t depths, int64_t blocks, Half* to)
{
    for (int64_t t = 0; t < job.num_taps; t++)
        for (int64_t i = 0; i < job.I; i++) {
            const float* from = job.w + job.w_tap[t] + i * job.w_i;
            Half* row[3];                    // of high, high, low: where the first output's goes
            for (int64_t which = 0; which < 3; which++) {
                const int64_t k = which * job.I + i;
                row[which] = to + (t * depths + k / DEPTH) * blocks * TILE + k % DEPTH / 2 * DEPTH + k % 2;
            }
            for (int64_t o = 0; o < job.O; o++) {
                const float   value = from[o * job.w_o];
                const Half    high = nearest(value);
                const int64_t at = o / 16 * TILE + o % 16 * 2;
                row[0][at] = row[1][at] = high;
                row[2][at] = nearest(value - widened(high));
            }
        }
}

// The image, its surroundings zero, as [height, width, depths * DEPTH].
void lay_out(const Plan& plan, int64_t n, Half* to)
{
    const Job& job = *plan.job;
    const int64_t depth = plan.depths * DEPTH;
    for (int64_t row = std::max<int64_t>(0, -plan.top); row < std::min(plan.height, job.H - plan.top); row++)
        for (int64_t col = std::max<int64_t>(0, -plan.left); col < std::min(plan.width, job.W - plan.left); col++) {
            const float* from = job.x + ((n * job.H + row + plan.top) * job.W + col + plan.left) * job.I;
            Half* pixel = to + (row * plan.width + col) * depth;
            for (int64_t i = 0; i < job.I; i += 16) {
                const __mmask16 mask = first(job.I - i);
                const Split parts = split(_mm512_maskz_loadu_ps(mask, from + i));
                _mm256_mask_storeu_epi16(pixel + i, mask, parts.high);
                _mm256_mask_storeu_epi16(pixel + job.I + i, mask, parts.low);
                _mm256_mask_storeu_epi16(pixel + 2 * job.I + i, mask, parts.high);
            }
        }
}

// Two tiles of pixels times `BLOCKS` tiles of outputs.
template <int BLOCKS>
void multiply(const Plan& plan, const Part& part, const Half* const at[2], int64_t step, int64_t block, float (*sums)[2][ROWS][16])
{
    const Job& job = *plan.job;
    const int64_t depth = plan.depths * DEPTH, pixel_bytes = step * depth * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t t = part.first_tap; t < part.first_tap + part.num_taps; t++) {
        const int64_t shift = ((job.tap_y[t] - plan.top) * plan.width + job.tap_x[t] - plan.left) * depth;
        const Half* kernels = plan.kernels + (t * plan.depths * plan.blocks + block) * TILE;
        for (int64_t k = 0; k < plan.depths; k++, kernels += plan.blocks * TILE) {
            _tile_loadd(4, at[0] + shift + k * DEPTH, pixel_bytes);
            _tile_loadd(6, kernels, DEPTH * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, at[1] + shift + k * DEPTH, pixel_bytes);
            _tile_dpbf16ps(1, 5, 6);
            if (BLOCKS == 2) {
                _tile_loadd(7, kernels + TILE, DEPTH * 2);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    if (BLOCKS == 2) {
        _tile_stored(2, sums[1][0], 64);
        _tile_stored(3, sums[1][1], 64);
    }
}

void convolve_images(int64_t begin, int64_t end, void* context)
{
    const Plan& plan = *static_cast<const Plan*>(context);
    const Job& job = *plan.job;
    const int64_t depth = plan.depths * DEPTH;
    Buffer<Half> image((plan.height * plan.width + 3 * ROWS * job.stride) * depth, true);
    alignas(64) float sums[2][2][ROWS][16];
    const Tiles tiles;
    for (int64_t n = begin; n < end; n++) {
        lay_out(plan, n, image.data());
        for (int64_t p = 0; p < job.num_parts; p++) {
            const Part& part = job.parts[p];
            // Pixels are counted along rows of the laid out image where neighbours are neighbours there; a tile may then span rows.
            const int64_t width = job.stride == 1 ? plan.width : round_up(part.width, ROWS);
            const int64_t last = (part.height - 1) * width + part.width;
            for (int64_t q = 0; q < last; q += 2 * ROWS) {
                const Half* at[2];
                for (int64_t i = 0; i < 2; i++) {
                    const int64_t pixel = std::min(q + i * ROWS, last - 1) / ROWS * ROWS;
                    at[i] = image.data() + (pixel / width * job.stride * plan.width + pixel % width * job.stride) * depth;
                }
                for (int64_t block = 0; block < plan.blocks; block += 2) {
                    if (block + 1 < plan.blocks)
                        multiply<2>(plan, part, at, job.stride, block, sums);
                    else
                        multiply<1>(plan, part, at, job.stride, block, sums);
                    const int64_t outputs = job.O - block * 16;
                    int64_t row = q / width, col = q % width;
                    for (int64_t r = 0; r < 2 * ROWS; r++) {
                        if (col < part.width && row < part.height) {
                            float* to = job.y + ((n * job.YH + part.top + row * job.y_step) * job.YW + part.left + col * job.y_step) * job.O + block * 16;
                            _mm512_mask_storeu_ps(to, first(outputs), _mm512_load_ps(sums[0][r / ROWS][r % ROWS]));
                            if (outputs > 16)
                                _mm512_mask_storeu_ps(to + 16, first(outputs - 16), _mm512_load_ps(sums[1][r / ROWS][r % ROWS]));
                        }
                        if (++col == width)
                            col = 0, row++;
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// dw[t] = sum over pixels p of dy[p] x[p stride + t]^T: pixels are the depth. For a stride, x is taken apart into the images of its pixels
// (a, b) modulo the stride, so that each tap shifts one of them by whole pixels.

struct TapsJob {
    const float* x;                          // [N, H, W, I]
    const float* dy;                         // [N, YH, YW, O]
    float*       dw;                         // [O, I, kernel_y, kernel_x]
    int64_t      N, H, W, I, YH, YW, O;
    int32_t      kernel_y, kernel_x, pad_y, pad_x, stride;
};

struct TapsPlan {
    const TapsJob* job;
    int64_t        width;                    // of the images that are met
    int64_t        length, beyond;           // pixels of dy in such an image, in whole tiles; further ones of x that the last tap reaches
    int64_t        outputs, inputs;          // rounded up to 16
    int64_t        groups;
    float*         sums;                     // [groups, taps, outputs, inputs]

    int64_t row() const { return length + DEPTH; }          // of dy; not a power of two, for the cache's sake
    int64_t pairs() const { return (length + beyond) / 2 * inputs * 2; }
};

// Of two pixels 16 channels, side by side.
inline __m512i side_by_side(__m256i left, __m256i right)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(left), _mm512_slli_epi32(_mm512_cvtepu16_epi32(right), 16));
}

struct Parity {
    int64_t row, col;
};

// An image of x as [first pixel even, odd][high, low][pairs of pixels][inputs][2]: a tap begins at either, and tiles are read from whole lines.
void lay_out_pairs(const TapsPlan& plan, int64_t n, Parity parity, Half* to)
{
    const TapsJob& job = *plan.job;
    const int64_t size = plan.pairs();
    for (int64_t i = 0; i < job.I; i += 16) {
        const __mmask16 mask = first(job.I - i);
        Split before = split(_mm512_setzero_ps());
        int64_t row = parity.row - job.pad_y, col = parity.col - job.pad_x, across = 0;
        for (int64_t q = 0; q < plan.length + plan.beyond; q++) {
            const bool inside = row >= 0 && row < job.H && col >= 0 && col < job.W;
            const Split here = split(inside ? _mm512_maskz_loadu_ps(mask, job.x + ((n * job.H + row) * job.W + col) * job.I + i) : _mm512_setzero_ps());
            if (q > 0) {
                Half* pair = to + ((q - 1) % 2 * 2) * size + (q - 1) / 2 * plan.inputs * 2 + i * 2;
                _mm512_storeu_si512(pair, side_by_side(before.high, here.high));
                _mm512_storeu_si512(pair + size, side_by_side(before.low, here.low));
            }
            before = here;
            col += job.stride;
            if (++across == plan.width)
                across = 0, col = parity.col - job.pad_x, row += job.stride;
        }
    }
}

// dy as [high, low][outputs][row], its pixels where they are in an image of plan.width; the buffer's other numbers stay 0.
void lay_out_rows(const TapsPlan& plan, int64_t n, Half* to)
{
    const TapsJob& job = *plan.job;
    const int64_t half = plan.outputs * plan.row();
    const __m512i rows = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(static_cast<int>(plan.row())));
    for (int64_t o = 0; o < job.O; o += 16) {
        const __mmask16 mask = first(job.O - o);
        for (int64_t y = 0; y < job.YH; y++)
            for (int64_t x = 0; x < job.YW; x += 2) {
                const float* from = job.dy + ((n * job.YH + y) * job.YW + x) * job.O + o;
                const Split even = split(_mm512_maskz_loadu_ps(mask, from));
                const Split odd = split(x + 1 < job.YW ? _mm512_maskz_loadu_ps(mask, from + job.O) : _mm512_setzero_ps());
                Half* at = to + o * plan.row() + y * plan.width + x;        // beside a last odd pixel is one beyond the edge, or of the next row, written later
                _mm512_mask_i32scatter_epi32(at, mask, rows, side_by_side(even.high, odd.high), 2);
                _mm512_mask_i32scatter_epi32(at + half, mask, rows, side_by_side(even.low, odd.low), 2);
            }
    }
}

// Adds what all pixels of an image give to a block of M x K tiles of a tap's sums, which the first image begins.
template <int M, int K>
void multiply_taps(const TapsPlan& plan, const Half* rows, const Half* pairs, bool first, float* sums)
{
    const int64_t rows_low = plan.outputs * plan.row(), row_bytes = plan.row() * 2, pair_bytes = plan.inputs * 4;
    const int64_t below = ROWS * plan.inputs, sums_bytes = plan.inputs * 4;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (!first) {
        _tile_loadd(0, sums, sums_bytes);
        if (M == 2)
            _tile_loadd(1, sums + below, sums_bytes);
        if (K == 2)
            _tile_loadd(2, sums + 16, sums_bytes);
        if (M == 2 && K == 2)
            _tile_loadd(3, sums + below + 16, sums_bytes);
    }
    for (int64_t q = 0; q < plan.length; q += DEPTH)
        for (int64_t which = 0; which < 3; which++) {           // high * high, high * low, low * high
            const Half* left = rows + q + (which == 2 ? rows_low : 0);
            const Half* right = pairs + q * plan.inputs + (which == 1 ? plan.pairs() : 0);
            if (which != 1) {
                _tile_loadd(4, left, row_bytes);
                if (M == 2)
                    _tile_loadd(5, left + ROWS * plan.row(), row_bytes);
            }
            _tile_loadd(6, right, pair_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (M == 2)
                _tile_dpbf16ps(1, 5, 6);
            if (K == 2) {
                _tile_loadd(7, right + DEPTH, pair_bytes);
                _tile_dpbf16ps(2, 4, 7);
                if (M == 2)
                    _tile_dpbf16ps(3, 5, 7);
            }
        }
    _tile_stored(0, sums, sums_bytes);
    if (M == 2)
        _tile_stored(1, sums + below, sums_bytes);
    if (K == 2)
        _tile_stored(2, sums + 16, sums_bytes);
    if (M == 2 && K == 2)
        _tile_stored(3, sums + below + 16, sums_bytes);
}

// All taps that meet one image of x; `first`: of a group.
void add_image(const TapsPlan& plan, const Half* rows, const Half* pairs, Parity parity, bool first, float* sums)
{
    const TapsJob& job = *plan.job;
    for (int64_t y = parity.row; y < job.kernel_y; y += job.stride)
        for (int64_t x = parity.col; x < job.kernel_x; x += job.stride) {
            const int64_t shift = y / job.stride * plan.width + x / job.stride;
            const Half* shifted = pairs + shift % 2 * 2 * plan.pairs() + shift / 2 * plan.inputs * 2;
            float* tap = sums + (y * job.kernel_x + x) * plan.outputs * plan.inputs;
            for (int64_t o = 0; o < plan.outputs; o += 32)
                for (int64_t i = 0; i < plan.inputs; i += 32) {
                    const bool two_m = o + 16 < plan.outputs, two_k = i + 16 < plan.inputs;
                    const auto run = two_m ? (two_k ? multiply_taps<2, 2> : multiply_taps<2, 1>) : (two_k ? multiply_taps<1, 2> : multiply_taps<1, 1>);
                    run(plan, rows + o * plan.row(), shifted + i * 2, first, tap + o * plan.inputs + i);
                }
        }
}

void sum_groups(int64_t begin, int64_t end, void* context)
{
    TapsPlan& plan = *static_cast<TapsPlan*>(context);
    const TapsJob& job = *plan.job;
    Buffer<Half> rows(2 * plan.outputs * plan.row(), true), pairs(4 * plan.pairs(), true);
    const int64_t each = job.kernel_y * job.kernel_x * plan.outputs * plan.inputs;
    const Tiles tiles;
    for (int64_t group = begin; group < end; group++)
        for (int64_t n = group; n < job.N; n += plan.groups) {
            lay_out_rows(plan, n, rows.data());
            for (int64_t a = 0; a < job.stride; a++)
                for (int64_t b = 0; b < job.stride; b++) {
                    lay_out_pairs(plan, n, {a, b}, pairs.data());
                    add_image(plan, rows.data(), pairs.data(), {a, b}, n == group, plan.sums + group * each);
                }
        }
}

bool unit_is_there()
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24))
        return false;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;            // ARCH_REQ_XCOMP_PERM of asm/prctl.h, which older systems lack
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

}  // namespace

PUBLIC int32_t raycond_has_tiles() { return unit_is_there(); }

PUBLIC void raycond_tile_conv(const Job* job, const Threads* threads)
{
    Plan plan = {job, nullptr, round_up(3 * job->I, DEPTH) / DEPTH, round_up(job->O, 16) / 16, 0, 0, 0, 0};
    plan.top = *std::min_element(job->tap_y, job->tap_y + job->num_taps);
    plan.left = *std::min_element(job->tap_x, job->tap_x + job->num_taps);
    for (int64_t p = 0; p < job->num_parts; p++) {
        const Part& part = job->parts[p];
        plan.height = std::max(plan.height, (part.height - 1) * job->stride + 1);
        plan.width = std::max(plan.width, (part.width - 1) * job->stride + 1);
    }
    plan.height += *std::max_element(job->tap_y, job->tap_y + job->num_taps) - plan.top;
    plan.width += *std::max_element(job->tap_x, job->tap_x + job->num_taps) - plan.left;
    Buffer<Half> kernels(job->num_taps * plan.depths * plan.blocks * TILE, true);
    pack_kernels(*job, plan.depths, plan.blocks, kernels.data());
    plan.kernels = kernels.data();
    threads->share(job->N, convolve_images, &plan);
}

PUBLIC void raycond_tile_taps(const TapsJob* job, const Threads* threads)
{
    TapsPlan plan = {job, 0, 0, 0, round_up(job->O, 16), round_up(job->I, 16), std::min(GROUPS, job->N), nullptr};
    const int64_t reach_y = (job->kernel_y - 1) / job->stride, reach_x = (job->kernel_x - 1) / job->stride;
    plan.width = job->YW + reach_x + (reach_x == 0 && job->YW % 2 == 1);     // room beside an odd last pixel
    plan.length = round_up(job->YH * plan.width, DEPTH);
    plan.beyond = round_up(reach_y * plan.width + reach_x + 1, 2);
    const int64_t taps = job->kernel_y * job->kernel_x, each = plan.outputs * plan.inputs;
    Buffer<float> sums(plan.groups * taps * each, false);
    plan.sums = sums.data();
    threads->share(plan.groups, sum_groups, &plan);
    float* total = plan.sums;
    for (int64_t group = 1; group < plan.groups; group++)
        for (int64_t k = 0; k < taps * each; k++)
            total[k] += total[group * taps * each + k];
    for (int64_t o = 0; o < job->O; o++)
        for (int64_t t = 0; t < taps; t++)
            for (int64_t i = 0; i < job->I; i++)
                job->dw[(o * job->I + i) * taps + t] = total[t * each + o * plan.inputs + i];
}

#else

PUBLIC int32_t raycond_has_tiles() { return 0; }
PUBLIC void raycond_tile_conv(const void*, const Threads*) {}
PUBLIC void raycond_tile_taps(const void*, const Threads*) {}

#endif

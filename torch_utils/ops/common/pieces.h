// Images [N, P pixels, C] cut into pieces of work by their shape alone, and sums over pixels that are combined in the order of the pieces: what comes
// out does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

constexpr int64_t PIECE_ELEMENTS = 1 << 16;
constexpr int64_t PIECE_PIXELS = 128;        // at least
constexpr int64_t FLUSH_PIXELS = 64;         // so many are summed in single precision

struct Piece {
    int64_t n, first, last;                  // pixels first to last of sample n
};

struct Pieces {
    int64_t pixels, each, per_sample, count;

    Pieces(int64_t N, int64_t P, int64_t C)
        : pixels(P), each(std::max(PIECE_PIXELS, PIECE_ELEMENTS / C)), per_sample((P + each - 1) / each), count(N * per_sample) {}

    Piece operator[](int64_t item) const
    {
        const int64_t first = item % per_sample * each;
        return {item / per_sample, first, std::min(pixels, first + each)};
    }
};

// A row of channels with room for a whole vector at its end.
class Row {
    Aligned memory;
    float*  row;

public:
    explicit Row(int64_t channels) : memory(channels + LANES), row(memory.data()) {}
    Row(const Row&) = delete;
    float& operator[](int64_t c) { return row[c]; }
    Vec at(int64_t c) const { return load(row + c, LANES); }
    void add(int64_t c, Vec value) { store(row + c, at(c) + value, LANES); }
    void fill(const float* from, int64_t count, float fallback)         // a missing row is `fallback` everywhere
    {
        for (int64_t c = 0; c < count; c++)
            row[c] = from ? from[c] : fallback;
    }
    void flush(double* to, int64_t count)
    {
        for (int64_t c = 0; c < count; c++)
            to[c] += row[c], row[c] = 0;
    }
};

// Is it time to flush after pixel p?
inline bool flushes(const Piece& piece, int64_t p) { return (p + 1 - piece.first) % FLUSH_PIXELS == 0 || p + 1 == piece.last; }

// [pieces, C] -> [rows, C]: consecutive pieces go together.
inline void combine(const std::vector<double>& sums, int64_t rows, int64_t channels, float* to)
{
    const int64_t each = sums.size() / channels / rows;
    std::vector<double> total(channels);
    for (int64_t row = 0; row < rows; row++) {
        std::fill(total.begin(), total.end(), 0);
        for (int64_t i = 0; i < each; i++)
            for (int64_t c = 0; c < channels; c++)
                total[c] += sums[(row * each + i) * channels + c];
        for (int64_t c = 0; c < channels; c++)
            to[row * channels + c] = static_cast<float>(total[c]);
    }
}

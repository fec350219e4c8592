// Sixteen channels at a time, whatever vector unit the CPU has.
#pragma once

#include <cstdint>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

// Memory for `size` numbers that starts where a vector fits a cache line.
class Aligned {
    std::vector<float> memory;

public:
    explicit Aligned(size_t size) : memory(size + LANES) {}
    float* data()
    {
        const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data()), line = LANES * sizeof(float);
        return reinterpret_cast<float*>((at + line - 1) / line * line);
    }
};

// The first `count` of the sixteen; the others are 0.
inline Vec load(const float* from, int32_t count)
{
    if (count == LANES)
        return *reinterpret_cast<const Vec*>(from);
#ifdef __AVX512F__
    return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
    Vec value = {};
    for (int32_t i = 0; i < count; i++)
        value[i] = from[i];
    return value;
#endif
}

inline void store(float* to, Vec value, int32_t count)
{
    if (count == LANES)
        *reinterpret_cast<Vec*>(to) = value;
    else
#ifdef __AVX512F__
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#else
        for (int32_t i = 0; i < count; i++)
            to[i] = value[i];
#endif
}

// Calls body(c, count) for each vector of `length` numbers; a vector that is not full comes last, and code of its own makes it cost the others nothing.
#define INLINED __attribute__((always_inline))

template <class Body>
inline void each_vector(int64_t length, Body body)
{
    int64_t c = 0;
    for (; c + LANES <= length; c += LANES)
        body(c, LANES);
    if (c < length)
        body(c, static_cast<int32_t>(length - c));
}

inline float sum_of(Vec value)
{
    for (int32_t half = LANES / 2; half > 0; half /= 2)
        for (int32_t i = 0; i < half; i++)
            value[i] += value[i + half];
    return value[0];
}

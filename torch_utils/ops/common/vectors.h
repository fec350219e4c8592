// As many channels at a time as the CPU's vector unit holds: compilers put vectors that are wider than that through memory.
#pragma once

#include <cstdint>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int LINE = 16;                     // numbers in a cache line
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

// Memory for `size` numbers that starts with a cache line.
class Aligned {
    std::vector<float> memory;

public:
    explicit Aligned(size_t size = 0) : memory(size + LINE) {}
    void resize(size_t size) { memory.resize(size + LINE); }
    float* data()
    {
        const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data()), line = LINE * sizeof(float);
        return reinterpret_cast<float*>((at + line - 1) / line * line);
    }
};

#if defined(__AVX__) && !defined(__AVX512F__)
inline __m256i first_lanes(int32_t count)
{
    alignas(32) static const int32_t mask[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + LANES - count));
}
#endif

// The first `count` of a vector; the others are 0.
inline Vec load(const float* from, int32_t count)
{
    if (count == LANES)
        return *reinterpret_cast<const Vec*>(from);
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__AVX__)
    return (Vec)_mm256_maskload_ps(from, first_lanes(count));
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
#if defined(__AVX512F__)
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#elif defined(__AVX__)
        _mm256_maskstore_ps(to, first_lanes(count), (__m256)value);
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

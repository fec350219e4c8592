// Sixteen channels at a time, whatever vector unit the CPU has.
#pragma once

#include <cstdint>

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

// The first `count` of the sixteen; the others are 0.
inline Vec load(const float* from, int32_t count)
{
    if (count == LANES)
        return *reinterpret_cast<const Vec*>(from);
    Vec value = {};
    for (int32_t i = 0; i < count; i++)
        value[i] = from[i];
    return value;
}

inline void store(float* to, Vec value, int32_t count)
{
    if (count == LANES)
        *reinterpret_cast<Vec*>(to) = value;
    else
        for (int32_t i = 0; i < count; i++)
            to[i] = value[i];
}

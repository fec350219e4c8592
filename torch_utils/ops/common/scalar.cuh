// Scalar types, vectors in memory and index arithmetic that all kernels share.
//
// Nothing here needs a GPU: with a host compiler alone the same templates compile for float and double, and the tests run
// the kernels' arithmetic that way (host_twin.cpp beside each .cu).
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define RC_HD __host__ __device__ __forceinline__
#else
#define RC_HD inline
#endif

#if defined(__CUDACC__)
#define RC_UNROLL _Pragma("unroll")
#else
#define RC_UNROLL
#endif

namespace raycond {

// As the Python side numbers them.
enum DType { kHalf = 0, kBFloat16 = 1, kFloat = 2, kDouble = 3 };

// What sums and activations of a stored type are computed in.
template <class T> struct Compute { typedef float type; };
template <> struct Compute<double> { typedef double type; };

RC_HD float widen(float v) { return v; }
RC_HD double widen(double v) { return v; }
template <class T> RC_HD T narrow(typename Compute<T>::type v) { return (T)v; }

#if defined(__CUDACC__)
RC_HD float widen(__half v) { return __half2float(v); }
RC_HD float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
template <> RC_HD __half narrow<__half>(float v) { return __float2half_rn(v); }
template <> RC_HD __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
#endif

// V neighbours in memory, moved as one access.
template <class T, int V> struct alignas(sizeof(T) * V) Vec { T v[V]; };

// Elements in the widest access a GPU makes.
template <class T> struct Wide { static const int count = 16 / sizeof(T); };

// Quotient and remainder that round towards minus infinity, for positive divisors.
RC_HD int floor_div(int a, int b) { int q = a / b; return q * b > a ? q - 1 : q; }
RC_HD int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }

// n / d for n below 2^31 by a multiplication (Granlund and Montgomery 1994, figure 4.1 with 32-bit words).
struct FastDivisor {
    uint32_t divisor, multiplier, shift;

    void set(uint32_t d) {
        divisor = d;
        shift = 0;
        while ((1ull << shift) < d) shift++;
        multiplier = (uint32_t)(((1ull << 32) * ((1ull << shift) - d)) / d + 1);
    }
    RC_HD uint32_t quotient(uint32_t n) const {
#if defined(__CUDA_ARCH__)
        uint32_t high = __umulhi(n, multiplier);
#else
        uint32_t high = (uint32_t)(((uint64_t)n * multiplier) >> 32);
#endif
        return (high + n) >> shift;
    }
};

}  // namespace raycond

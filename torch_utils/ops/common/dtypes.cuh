// From the number of a stored type, as the Python side gives it, to the type.
#pragma once

#include "scalar.cuh"

namespace raycond {

template <class T> struct Stored { typedef T type; };

// visit(Stored<T>()) for the type that `dtype` numbers; `unknown` where there is none, or none without nvcc.
template <class Visit> int with_type(int dtype, int unknown, Visit visit) {
    switch (dtype) {
#if defined(__CUDACC__)
        case kHalf:     return visit(Stored<__half>());
        case kBFloat16: return visit(Stored<__nv_bfloat16>());
#endif
        case kFloat:    return visit(Stored<float>());
        case kDouble:   return visit(Stored<double>());
    }
    return unknown;
}

}  // namespace raycond

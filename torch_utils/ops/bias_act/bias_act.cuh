// Arithmetic of bias_act and its derivatives, for GPU and host.
//
// y = clamp(gain * act(x + b)). With u = act(x + b) = y / gain where nothing is clamped, and v = x + b:
//   order 0:  out = y(in, b)
//   order 1:  out = in * dy/dv,                    from ref = y, or from ref = x and b
//   order 2:  out = in * in2 * d(dy/dv)/d(ref),    likewise
#pragma once

#include "scalar.cuh"

namespace raycond {

enum Activation { kLinear = 0, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// Filled by bias_act/cuda.py: keep the two in step.
struct BiasActArgs {
    const void* in;         // order 0: x. Else the incoming gradient.
    const void* in2;        // order 2: the second factor.
    const void* ref;        // orders 1, 2.
    const void* bias;       // May be null.
    void*       out;
    int64_t     count;      // Elements. All tensors but the bias have the same dense memory layout.
    int64_t     step;       // Elements in memory from one bias index to the next.
    int64_t     channels;   // Number of bias values.
    double      alpha;
    double      gain;
    double      clamp;      // Negative: none.
    int32_t     dtype;
    int32_t     act;
    int32_t     order;
    int32_t     device;
};

// The constants in the type that is computed in.
template <class S> struct ActConstants {
    S slope, gain, inverse_gain, clamp;
    int act;
};

template <class S> inline ActConstants<S> act_constants(const BiasActArgs& a) {
    ActConstants<S> k;
    k.slope = (S)(a.act == kLinear ? 1.0 : a.act == kRelu ? 0.0 : a.alpha);
    k.gain = (S)a.gain;
    k.inverse_gain = (S)(1.0 / a.gain);
    k.clamp = a.clamp < 0 ? (S)INFINITY : (S)a.clamp;
    k.act = a.act;
    return k;
}

RC_HD float  exponential(float v)  { return expf(v); }
RC_HD double exponential(double v) { return exp(v); }
RC_HD float  exp_less_one(float v)  { return expm1f(v); }
RC_HD double exp_less_one(double v) { return expm1(v); }
RC_HD float  log_one_plus(float v)  { return log1pf(v); }
RC_HD double log_one_plus(double v) { return log1p(v); }
RC_HD float  hyperbolic_tangent(float v)  { return tanhf(v); }
RC_HD double hyperbolic_tangent(double v) { return tanh(v); }

template <class S> RC_HD S logistic(S v) { return S(1) / (S(1) + exponential(-v)); }

// NaN stays NaN: it compares false both times.
template <class S> RC_HD S limited(S v, S bound) { v = v > bound ? bound : v; return v < -bound ? -bound : v; }

// Klambauer et al. 2017: the scale and alpha that make zero mean and unit variance a fixed point.
template <class S> RC_HD S selu_scale() { return S(1.0507009873554804934193349852946); }
template <class S> RC_HD S selu_alpha() { return S(1.6732632423543772848170429916717); }

// act(v).
template <class S> RC_HD S activate(S v, const ActConstants<S>& k) {
    switch (k.act) {
        case kTanh:     return hyperbolic_tangent(v);
        case kSigmoid:  return logistic(v);
        case kElu:      return v > S(0) ? v : exp_less_one(v);
        case kSelu:     return selu_scale<S>() * (v > S(0) ? v : selu_alpha<S>() * exp_less_one(v));
        case kSoftplus: return v > S(0) ? v + log_one_plus(exponential(-v)) : log_one_plus(exponential(v));
        case kSwish:    return v * logistic(v);
        default:        return v > S(0) ? v : v * k.slope;
    }
}

// d act / dv as a function of u = act(v); for swish, of v.
template <class S> RC_HD S slope_at(S u, const ActConstants<S>& k) {
    switch (k.act) {
        case kTanh:     return S(1) - u * u;
        case kSigmoid:  return u * (S(1) - u);
        case kElu:      return u > S(0) ? S(1) : u + S(1);
        case kSelu:     return u > S(0) ? selu_scale<S>() : u + selu_scale<S>() * selu_alpha<S>();
        case kSoftplus: return -exp_less_one(-u);
        case kSwish:    { S s = logistic(u); return s * (S(1) + u * (S(1) - s)); }
        default:        return u > S(0) ? S(1) : k.slope;
    }
}

// Derivative of slope_at in its own argument.
template <class S> RC_HD S bend_at(S u, const ActConstants<S>& k) {
    switch (k.act) {
        case kTanh:     return S(-2) * u;
        case kSigmoid:  return S(1) - S(2) * u;
        case kElu:      return u > S(0) ? S(0) : S(1);
        case kSelu:     return u > S(0) ? S(0) : S(1);
        case kSoftplus: return exponential(-u);
        case kSwish:    { S s = logistic(u); return s * (S(1) - s) * (S(2) + u * (S(1) - S(2) * s)); }
        default:        return S(0);
    }
}

// One element. PIECEWISE: linear, relu, lrelu, without the switches.
template <class S, int ORDER, bool PIECEWISE> RC_HD S bias_act_value(S in, S in2, S ref, S bias, const ActConstants<S>& k) {
    if (ORDER == 0) {
        S v = in + bias;
        S y = (PIECEWISE ? (v > S(0) ? v : v * k.slope) : activate(v, k)) * k.gain;
        return limited(y, k.clamp);
    }
    bool from_input = !PIECEWISE && k.act == kSwish;
    S point = from_input ? ref + bias : ref * k.inverse_gain;
    S y = from_input ? point * logistic(point) * k.gain : ref;
    bool clamped = y >= k.clamp || y <= -k.clamp;
    if (ORDER == 1) {
        S slope = PIECEWISE ? (point > S(0) ? S(1) : k.slope) : slope_at(point, k);
        return clamped ? S(0) : in * slope * k.gain;
    }
    S per_ref = from_input ? k.gain : S(1);         // the gain of y and that of y -> u cancel
    return clamped ? S(0) : in * in2 * bend_at(point, k) * per_ref;
}

// ---------------------------------------------------------------------------------------------------------------------
// A thread's share of the work.

// How the bias index follows from the position in memory.
//   kNone: no bias. kUniform: one value per vector. kRunning: consecutive values. kAny: one element at a time, any size.
enum BiasMode { kNone = 0, kUniform, kRunning, kAny };

struct BiasIndex {
    FastDivisor step, channels;     // in vectors (kUniform) or of channels per vector (kRunning)
};

template <class T, int ORDER, bool PIECEWISE, int MODE, int THREADS, int UNROLL> struct BiasActShare {
    typedef typename Compute<T>::type S;
    static const int V = MODE == kAny ? 1 : Wide<T>::count;
    static const int64_t PER_BLOCK = (int64_t)THREADS * UNROLL * V;

    RC_HD static void run(const BiasActArgs& a, const ActConstants<S>& k, const BiasIndex& index, int64_t block, int thread) {
        typedef Vec<T, V> Pack;
        const int64_t packs = a.count / V;
        const int64_t first = block * THREADS * UNROLL + thread;
        Pack in[UNROLL], in2[UNROLL], ref[UNROLL];
        RC_UNROLL
        for (int j = 0; j < UNROLL; j++) {              // all loads first: that many bytes are in flight
            const int64_t i = first + (int64_t)j * THREADS;
            if (i >= packs) continue;
            in[j] = static_cast<const Pack*>(a.in)[i];
            if (ORDER == 2) in2[j] = static_cast<const Pack*>(a.in2)[i];
            if (ORDER >= 1) ref[j] = static_cast<const Pack*>(a.ref)[i];
        }
        RC_UNROLL
        for (int j = 0; j < UNROLL; j++) {
            const int64_t i = first + (int64_t)j * THREADS;
            if (i >= packs) continue;
            Pack bias = bias_of(a, index, i), out;
            RC_UNROLL
            for (int e = 0; e < V; e++)
                out.v[e] = narrow<T>(bias_act_value<S, ORDER, PIECEWISE>(
                    widen(in[j].v[e]), ORDER == 2 ? widen(in2[j].v[e]) : S(0), ORDER >= 1 ? widen(ref[j].v[e]) : S(0),
                    MODE == kNone ? S(0) : widen(bias.v[e]), k));
            static_cast<Pack*>(a.out)[i] = out;
        }
        tail(a, k, block, thread);
    }

private:
    RC_HD static Vec<T, V> bias_of(const BiasActArgs& a, const BiasIndex& index, int64_t i) {
        typedef Vec<T, V> Pack;
        Pack bias;
        const T* values = static_cast<const T*>(a.bias);
        if (MODE == kUniform) {
            const uint32_t row = index.step.quotient((uint32_t)i);
            const T value = values[row - index.channels.quotient(row) * index.channels.divisor];
            RC_UNROLL
            for (int e = 0; e < V; e++) bias.v[e] = value;
        } else if (MODE == kRunning) {
            const uint32_t n = (uint32_t)i;
            bias = reinterpret_cast<const Pack*>(values)[n - index.channels.quotient(n) * index.channels.divisor];
        } else if (MODE == kAny) {
            bias.v[0] = values ? values[(i / a.step) % a.channels] : narrow<T>(S(0));
        }
        return bias;
    }

    // What does not fill a vector, fewer elements than a block has threads.
    RC_HD static void tail(const BiasActArgs& a, const ActConstants<S>& k, int64_t block, int thread) {
        const int64_t i = a.count / V * V + thread;
        if (V == 1 || block != 0 || i >= a.count) return;
        const T* values = static_cast<const T*>(a.bias);
        const S bias = MODE == kNone ? S(0) : widen(values[(i / a.step) % a.channels]);
        static_cast<T*>(a.out)[i] = narrow<T>(bias_act_value<S, ORDER, PIECEWISE>(
            widen(static_cast<const T*>(a.in)[i]), ORDER == 2 ? widen(static_cast<const T*>(a.in2)[i]) : S(0),
            ORDER >= 1 ? widen(static_cast<const T*>(a.ref)[i]) : S(0), bias, k));
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Choice of the variant. `Run::template go<Share>(args, index, blocks)` runs a share on every thread of every block.

const int kThreads = 256;
const int kUnroll = 4;      // vectors per thread; the other activations compute enough between their loads

inline bool aligned(const void* p) { return ((uintptr_t)p & 15) == 0; }

inline BiasMode choose_mode(const BiasActArgs& a, int vector, BiasIndex* index) {
    if (!(aligned(a.in) && aligned(a.in2) && aligned(a.ref) && aligned(a.out))) return kAny;
    if (!a.bias) return kNone;
    if (a.count >= (1ll << 31) || a.step >= (1ll << 31) || a.channels >= (1ll << 31)) return kAny;
    if (a.step % vector == 0) {
        index->step.set((uint32_t)(a.step / vector));
        index->channels.set((uint32_t)a.channels);
        return kUniform;
    }
    if (a.step == 1 && a.channels % vector == 0 && aligned(a.bias)) {
        index->channels.set((uint32_t)(a.channels / vector));
        return kRunning;
    }
    return kAny;
}

template <class Run, class T, int ORDER, bool PIECEWISE, int MODE> int run_share(const BiasActArgs& a, const BiasIndex& index) {
    typedef BiasActShare<T, ORDER, PIECEWISE, MODE, kThreads, PIECEWISE ? kUnroll : 1> Share;
    return Run::template go<Share>(a, index, (a.count + Share::PER_BLOCK - 1) / Share::PER_BLOCK);
}

template <class Run, class T, int ORDER, bool PIECEWISE> int run_order(const BiasActArgs& a) {
    const bool any_bias = ORDER == 0 || !PIECEWISE;     // derivatives of the piecewise linear ones never see it
    BiasIndex index = {};
    switch (choose_mode(a, Wide<T>::count, &index)) {
        case kNone:     return run_share<Run, T, ORDER, PIECEWISE, kNone>(a, index);
        case kUniform:  return run_share<Run, T, ORDER, PIECEWISE, any_bias ? kUniform : kAny>(a, index);
        case kRunning:  return run_share<Run, T, ORDER, PIECEWISE, any_bias ? kRunning : kAny>(a, index);
        default:        return run_share<Run, T, ORDER, PIECEWISE, kAny>(a, index);
    }
}

template <class Run, class T> int run_type(const BiasActArgs& a) {
    const bool piecewise = a.act <= kLrelu;
    if (a.order == 0) return piecewise ? run_order<Run, T, 0, true>(a) : run_order<Run, T, 0, false>(a);
    if (a.order == 1) return piecewise ? run_order<Run, T, 1, true>(a) : run_order<Run, T, 1, false>(a);
    return run_order<Run, T, 2, false>(a);
}

}  // namespace raycond

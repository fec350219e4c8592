// The upfirdn2d variants run on the CPU, one thread after another, the barriers being the loops' ends: checks the kernels' arithmetic where
// there is no GPU. Built by the tests alone, with any C++17 compiler.

#include <limits>
#include <vector>

#include "choose.cuh"
#include "dtypes.cuh"

namespace raycond {

struct OnHost {
    template <class Filter> static int go(const UpfirdnArgs& a) {
        typedef typename Filter::S S;
        for (int64_t block = 0; block < Filter::blocks(a); block++) {
            std::vector<Vec<S, 16 / sizeof(S)>> memory(Filter::SHARED * sizeof(S) / 16 + 1);
            S* shared = &memory[0].v[0];
            for (int i = 0; i < Filter::SHARED; i++) shared[i] = std::numeric_limits<S>::quiet_NaN();     // shared memory starts with anything
            for (int thread = 0; thread < kThreads; thread++) Filter::load(a, shared, block, thread);
            for (int thread = 0; thread < kThreads; thread++) Filter::middle(a, shared, block, thread);
            for (int thread = 0; thread < kThreads; thread++) Filter::store(a, shared, block, thread);
        }
        return 0;
    }
};

}  // namespace raycond

extern "C" int raycond_upfirdn2d(const raycond::UpfirdnArgs* args, void*) {
    using namespace raycond;
    if ((int64_t)args->n * args->c * args->oh * args->ow == 0) return 0;
    return with_type(args->dtype, 1, [&](auto stored) { return run_call<OnHost, typename decltype(stored)::type>(*args); });
}

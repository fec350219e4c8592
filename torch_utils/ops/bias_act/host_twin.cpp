// The shares of bias_act.cuh run on the CPU, one thread after another: checks the kernels' arithmetic where there is no GPU.
// Built by the tests alone, with any C++17 compiler.

#include "bias_act.cuh"
#include "dtypes.cuh"

namespace raycond {

struct OnHost {
    template <class Share> static int go(const BiasActArgs& a, const BiasIndex& index, int64_t blocks) {
        const ActConstants<typename Share::S> k = act_constants<typename Share::S>(a);
        for (int64_t block = 0; block < blocks; block++)
            for (int thread = 0; thread < kThreads; thread++) Share::run(a, k, index, block, thread);
        return 0;
    }
};

}  // namespace raycond

extern "C" int raycond_bias_act(const raycond::BiasActArgs* args, void*) {
    using namespace raycond;
    if (args->count == 0) return 0;
    return with_type(args->dtype, 1, [&](auto stored) { return run_type<OnHost, typename decltype(stored)::type>(*args); });
}

// Launches the bias_act variants of bias_act.cuh on a GPU.

#include "bias_act.cuh"
#include "dtypes.cuh"
#include "launch.cuh"

namespace raycond {

template <class Share> __global__ void __launch_bounds__(kThreads) bias_act_kernel(
        const BiasActArgs a, const ActConstants<typename Share::S> k, const BiasIndex index) {
    Share::run(a, k, index, blockIdx.x, threadIdx.x);
}

struct OnDevice {
    template <class Share> static int go(const BiasActArgs& a, const BiasIndex& index, int64_t blocks) {
        if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
        bias_act_kernel<Share><<<(unsigned)blocks, kThreads, 0, current_stream>>>(a, act_constants<typename Share::S>(a), index);
        return cudaGetLastError();
    }
};

}  // namespace raycond

// Returns a cudaError_t. `stream` is a cudaStream_t of args->device.
RC_EXPORT int raycond_bias_act(const raycond::BiasActArgs* args, void* stream) {
    using namespace raycond;
    if (args->count == 0) return cudaSuccess;
    LaunchScope scope(args->device, stream);
    if (scope.error) return scope.error;
    return with_type(args->dtype, cudaErrorInvalidValue, [&](auto stored) { return run_type<OnDevice, typename decltype(stored)::type>(*args); });
}

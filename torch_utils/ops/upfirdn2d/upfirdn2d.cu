// Launches the upfirdn2d variants on a GPU.

#include "choose.cuh"
#include "dtypes.cuh"
#include "launch.cuh"

namespace raycond {

template <class Filter> __global__ void __launch_bounds__(kThreads) upfirdn2d_kernel(const UpfirdnArgs a, int64_t blocks) {
    __shared__ alignas(16) typename Filter::S shared[Filter::SHARED];
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        Filter::load(a, shared, block, threadIdx.x);
        if (Filter::SHARED > 1) __syncthreads();
        Filter::middle(a, shared, block, threadIdx.x);
        if (Filter::SHARED > 1) __syncthreads();
        Filter::store(a, shared, block, threadIdx.x);
        if (Filter::SHARED > 1) __syncthreads();        // before the next tile overwrites this one
    }
}

struct OnDevice {
    template <class Filter> static int go(const UpfirdnArgs& a) {
        const int64_t blocks = Filter::blocks(a);
        const unsigned grid = (unsigned)(blocks < kMaxBlocks ? blocks : kMaxBlocks);
        upfirdn2d_kernel<Filter><<<grid, kThreads, 0, current_stream>>>(a, blocks);
        return cudaGetLastError();
    }
};

}  // namespace raycond

// Returns a cudaError_t, or -1 where a separable filter has no variant. `stream` is a cudaStream_t of args->device.
RC_EXPORT int raycond_upfirdn2d(const raycond::UpfirdnArgs* args, void* stream) {
    using namespace raycond;
    if ((int64_t)args->n * args->c * args->oh * args->ow == 0) return cudaSuccess;
    LaunchScope scope(args->device, stream);
    if (scope.error) return scope.error;
    return with_type(args->dtype, cudaErrorInvalidValue, [&](auto stored) { return run_call<OnDevice, typename decltype(stored)::type>(*args); });
}

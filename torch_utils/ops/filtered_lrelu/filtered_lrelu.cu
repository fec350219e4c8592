// Launches the tiles of filtered_lrelu.cuh on a GPU.

#include "dtypes.cuh"
#include "filtered_lrelu.cuh"
#include "launch.cuh"

namespace raycond {

template <class Tile> __global__ void __launch_bounds__(kThreads) filtered_lrelu_kernel(const FilteredLreluArgs a, const Tiling tiling, int64_t blocks) {
    extern __shared__ double shared[];                  // double: aligned for every scalar
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        RC_UNROLL
        for (int number = 0; number < Tile::STEPS; number++) {
            Tile::step(number, a, tiling, reinterpret_cast<typename Tile::S*>(shared), block, threadIdx.x);
            __syncthreads();
        }
    }
}

struct OnDevice {
    template <class Tile> static int go(const FilteredLreluArgs& a, const Tiling& tiling) {
        const int64_t blocks = tiling.blocks(a);
        const unsigned grid = (unsigned)(blocks < kMaxBlocks ? blocks : kMaxBlocks);
        filtered_lrelu_kernel<Tile><<<grid, kThreads, tiling.shared * sizeof(typename Tile::S), current_stream>>>(a, tiling, blocks);
        return cudaGetLastError();
    }
};

}  // namespace raycond

// Returns a cudaError_t, or -1 where the filters are too long for shared memory. `stream` is a cudaStream_t of args->device.
RC_EXPORT int raycond_filtered_lrelu(const raycond::FilteredLreluArgs* args, void* stream) {
    using namespace raycond;
    if (is_empty(*args)) return cudaSuccess;
    LaunchScope scope(args->device, stream);
    if (scope.error) return scope.error;
    return with_type(args->dtype, cudaErrorInvalidValue, [&](auto stored) { return run_filtered<OnDevice, typename decltype(stored)::type>(*args); });
}

// The tiles of filtered_lrelu.cuh run on the CPU, one thread after another, the barriers being the loops' ends: checks the kernels'
// arithmetic where there is no GPU. Built by the tests alone, with any C++17 compiler.

#include <limits>
#include <vector>

#include "dtypes.cuh"
#include "filtered_lrelu.cuh"

namespace raycond {

struct OnHost {
    template <class Tile> static int go(const FilteredLreluArgs& a, const Tiling& tiling) {
        typedef typename Tile::S S;
        std::vector<S> shared(tiling.shared);
        for (int64_t block = 0; block < tiling.blocks(a); block++) {
            shared.assign(shared.size(), std::numeric_limits<S>::quiet_NaN());      // shared memory starts with anything
            for (int number = 0; number < Tile::STEPS; number++)
                for (int thread = 0; thread < kThreads; thread++) Tile::step(number, a, tiling, shared.data(), block, thread);
        }
        return 0;
    }
};

}  // namespace raycond

extern "C" int raycond_filtered_lrelu(const raycond::FilteredLreluArgs* args, void*) {
    using namespace raycond;
    if (is_empty(*args)) return 0;
    return with_type(args->dtype, 1, [&](auto stored) { return run_filtered<OnHost, typename decltype(stored)::type>(*args); });
}

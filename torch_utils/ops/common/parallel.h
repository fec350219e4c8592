// Shares work among threads: those of torch where it lends them (torch_parallel_for, from 2.10 on), else some of our own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

typedef void (*Work)(int64_t begin, int64_t end, void* context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Work work, void* context);

struct Threads {
    ParallelFor torch;           // null: none
    int32_t     count;

    void share(int64_t items, Work work, void* context) const
    {
        if (torch) {
            torch(0, items, 1, work, context);
            return;
        }
        const int64_t workers = std::min<int64_t>(count, items);
        std::vector<std::thread> others;
        for (int64_t i = 1; i < workers; i++)
            others.emplace_back(work, items * i / workers, items * (i + 1) / workers, context);
        work(0, workers ? items / workers : 0, context);
        for (std::thread& other : others)
            other.join();
    }
};

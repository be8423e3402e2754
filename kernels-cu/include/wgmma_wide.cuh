// wgmma with B [N, 16] in shared memory for N of 192 and 256, beside those of hopper.cuh: d [64, N] (+)= A · Bᵀ, both with K
// along their rows in shared memory, by their descriptors.
#pragma once
#include "hopper.cuh"

#define WGMMA_NAMES_64                                                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "   \
  "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_96                                                                                                    \
  WGMMA_NAMES_64                                                                                                          \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
  "%87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_128                                                                                                  \
  WGMMA_NAMES_96                                                                                                         \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "     \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// Eight and 32 accumulators from `i` on as operands.
#define WGMMA_OPERANDS_8(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_OPERANDS_32(i) \
  WGMMA_OPERANDS_8(i), WGMMA_OPERANDS_8(i + 8), WGMMA_OPERANDS_8(i + 16), WGMMA_OPERANDS_8(i + 24)

__device__ __forceinline__ void wgmma(float (&d)[96], uint64 a, uint64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\nwgmma.mma_async.sync.aligned.m64n192k16" WGMMA_TYPES
               "{" WGMMA_NAMES_96 "}, %96, %97, p, 1, 1, 0, 0;\n}"
               : WGMMA_OPERANDS_32(0), WGMMA_OPERANDS_32(32), WGMMA_OPERANDS_32(64)
               : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void wgmma(float (&d)[128], uint64 a, uint64 b, int accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16" WGMMA_TYPES
               "{" WGMMA_NAMES_128 "}, %128, %129, p, 1, 1, 0, 0;\n}"
               : WGMMA_OPERANDS_32(0), WGMMA_OPERANDS_32(32), WGMMA_OPERANDS_32(64), WGMMA_OPERANDS_32(96)
               : "l"(a), "l"(b), "r"(accumulate));
}

// wgmma with B [N, 32 bytes] in shared memory, K along its rows, for N of 16, 32, 64, 96, 128, 192 and 256: d [64, N] += A · Bᵀ with
// A from shared memory, by its descriptor, or from registers. Both are elem_t, or float8_e4m3 with TILE_FLOAT8. The accumulator has
// N / 2 registers a thread; see hopper.cuh.
#pragma once
#include "hopper.cuh"

// Columns of 32 bytes with the types, and what follows the operands: scales of 1, and that nothing is transposed, which 8-bit floats
// cannot be.
#if defined(TILE_FLOAT8)
#define WGMMA_COLUMNS "k32.f32.e4m3.e4m3 "
#define WGMMA_AS_IT_IS(transposed) ", 1, 1, 1;"
#else
#define WGMMA_COLUMNS "k16" WGMMA_TYPES
#define WGMMA_AS_IT_IS(transposed) ", 1, 1, 1, " transposed ";"
#endif

// Names of the first registers of an asm statement, and eight accumulators as its operands.
#define WGMMA_D16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_D32 WGMMA_D16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_D48 WGMMA_D32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_D64 WGMMA_D48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D80 WGMMA_D64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_D96 WGMMA_D80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D112 WGMMA_D96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_D128 WGMMA_D112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D192 WGMMA_D128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D256 WGMMA_D192 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// I0 to I4 name the operands that follow the accumulator.
#define WGMMA_SIZE(N, I0, I1, I2, I3, I4, ...)                                                                             \
  __device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64 a, uint64 b) {                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N WGMMA_COLUMNS "{" WGMMA_D##N "}, " I0 ", " I1                      \
                 WGMMA_AS_IT_IS("0, 0")                                                                                    \
                 : __VA_ARGS__                                                                                             \
                 : "l"(a), "l"(b));                                                                                        \
  }                                                                                                                        \
  __device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32(&a)[4], uint64 b) {                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N WGMMA_COLUMNS "{" WGMMA_D##N "}, {" I0 ", " I1 ", " I2 ", " I3     \
                 "}, " I4 WGMMA_AS_IT_IS("0")                                                                              \
                 : __VA_ARGS__                                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                    \
  }

WGMMA_SIZE(16, "%8", "%9", "%10", "%11", "%12", WGMMA_8(0))
WGMMA_SIZE(32, "%16", "%17", "%18", "%19", "%20", WGMMA_8(0), WGMMA_8(8))
WGMMA_SIZE(64, "%32", "%33", "%34", "%35", "%36", WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24))
WGMMA_SIZE(96, "%48", "%49", "%50", "%51", "%52", WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24), WGMMA_8(32),
           WGMMA_8(40))
WGMMA_SIZE(128, "%64", "%65", "%66", "%67", "%68", WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24), WGMMA_8(32),
           WGMMA_8(40), WGMMA_8(48), WGMMA_8(56))
WGMMA_SIZE(192, "%96", "%97", "%98", "%99", "%100", WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24), WGMMA_8(32), WGMMA_8(40),
           WGMMA_8(48), WGMMA_8(56), WGMMA_8(64), WGMMA_8(72), WGMMA_8(80), WGMMA_8(88))
WGMMA_SIZE(256, "%128", "%129", "%130", "%131", "%132", WGMMA_8(0), WGMMA_8(8), WGMMA_8(16), WGMMA_8(24), WGMMA_8(32),
           WGMMA_8(40), WGMMA_8(48), WGMMA_8(56), WGMMA_8(64), WGMMA_8(72), WGMMA_8(80), WGMMA_8(88), WGMMA_8(96), WGMMA_8(104),
           WGMMA_8(112), WGMMA_8(120))

import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KernelLibrary } from "../../src/backend/cuda/kernel-library.ts";
import { narrow, widen } from "../../src/base/dtype.ts";
import { Context } from "../../src/cuda/context.ts";
import { CublasLt } from "../../src/cuda/cublaslt.ts";
import { CudaOutOfMemoryError } from "../../src/cuda/errors.ts";
import { Graph } from "../../src/cuda/graph.ts";
import { LinearMatmul } from "../../src/cuda/linear-matmul.ts";
import { DeviceMemory, PinnedMemory } from "../../src/cuda/memory.ts";
import { Event, Stream } from "../../src/cuda/stream.ts";
import { describeGpu } from "./gpu.ts";

setDefaultTimeout(300_000);

describeGpu("the driver", (cuda) => {
  let folder: string;
  let context: Context;
  let stream: Stream;
  let library: KernelLibrary;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "octavo-gpu-"));
    writeFileSync(
      join(folder, "affine.cu"),
      `extern "C" __global__ void affine(float* x, int n, float scale, unsigned offset, long long shift) {
         extern __shared__ float copy[];
         asm volatile("griddepcontrol.wait;" ::: "memory");
         int i = blockIdx.x * blockDim.x + threadIdx.x;
         if (i >= n) return;
         copy[threadIdx.x] = x[i];
         x[i] = copy[threadIdx.x] * scale + (float)offset + (float)shift;
       }`,
    );
    context = Context.retain(cuda.driver.api, cuda.device);
    stream = Stream.create(context);
    library = KernelLibrary.create(context, cuda.nvrtc, {
      sourceFolder: folder,
      cacheFolder: join(folder, "cache"),
      nvrtcFiles: cuda.nvrtcFiles,
      // griddepcontrol needs compute capability 9.0.
      ...(cuda.device.computeCapability[0] < 9 && { arch: "sm_90" }),
    });
  });

  afterAll(() => {
    context.dispose();
    rmSync(folder, { recursive: true });
  });

  function upload(values: Float32Array): DeviceMemory {
    const memory = DeviceMemory.allocate(context, values.byteLength);
    stream.upload(memory.value, values, values.byteLength);
    return memory;
  }

  function download(memory: DeviceMemory): Float32Array {
    const values = new Float32Array(memory.byteLength / 4);
    stream.download(values, memory.value, memory.byteLength);
    stream.synchronize();
    return values;
  }

  test.skipIf(cuda.device.computeCapability[0] < 9)(
    "kernels get their arguments: launched, dependent, above 48 KiB, in a graph",
    () => {
      const n = 1000;
      const memory = upload(new Float32Array(n).fill(1));
      const plain = library.kernel({ file: "affine.cu" }, "affine");
      const dependent = library.kernel({ file: "affine.cu" }, "affine", { dependentLaunch: true });
      const x = { address: memory.value };
      plain.launch(stream.value, 8, 1, 1, 128, 512, { x, n, scale: 2, offset: 3, shift: -4 });
      expect(new Set(download(memory))).toEqual(new Set([1 * 2 + 3 - 4]));
      const exec = Graph.capture(stream, () => {
        dependent.launch(stream.value, 8, 1, 1, 128, 100 * 1024, { x, n, scale: 10, offset: 0, shift: 0 });
        dependent.launch(stream.value, 8, 1, 1, 128, 512, { x, n, scale: 1, offset: 7, shift: 0 });
      }).instantiate();
      exec.upload(stream);
      exec.launch(stream);
      exec.launch(stream);
      expect(new Set(download(memory))).toEqual(new Set([177]));
    },
  );

  test("pinned memory, events and elapsed time", () => {
    const pinned = PinnedMemory.allocate(context, 1 << 20);
    const bytes = new Uint8Array(pinned.bytes).fill(7);
    const memory = DeviceMemory.allocate(context, 1 << 20);
    const [start, end] = [true, true].map((timing) => Event.create(context, { timing }));
    start!.record(stream);
    stream.upload(memory.value, pinned.value, bytes.length);
    stream.fill(memory.value, 9, 1);
    stream.download(pinned.value, memory.value, bytes.length);
    end!.record(stream);
    end!.synchronize();
    expect(end!.isDone).toBe(true);
    expect([bytes[0], bytes[1], bytes.at(-1)]).toEqual([9, 7, 7]);
    expect(end!.elapsedSince(start!)).toBeGreaterThan(0);
    pinned.dispose();
  });

  test("asking for more memory than there is fails, and the context goes on", () => {
    const { free, total } = context.memory();
    expect(free).toBeLessThanOrEqual(total);
    expect(() => DeviceMemory.allocate(context, 4 * total)).toThrow(CudaOutOfMemoryError);
    DeviceMemory.allocate(context, 1024).dispose();
  });

  test.each([
    ["float32", false],
    ["bfloat16", true],
  ] as const)("out = x · weightᵀ in bfloat16, out %s, bias %p", (outputType, bias) => {
    const [tokens, inFeatures, outFeatures] = [5, 64, 48];
    const ramp = (count: number, step: number) =>
      Float32Array.from({ length: count }, (_, i) => ((i * step) % 9) - 4);
    const bf16 = (values: Float32Array) => {
      const bytes = narrow(values, "bfloat16");
      const memory = DeviceMemory.allocate(context, bytes.length);
      stream.upload(memory.value, bytes, bytes.length);
      return memory.value;
    };
    const x = ramp(tokens * inFeatures, 5);
    const weight = ramp(outFeatures * inFeatures, 7);
    const offsets = ramp(outFeatures, 2);
    const outBytes = tokens * outFeatures * (outputType === "float32" ? 4 : 2);
    const out = DeviceMemory.allocate(context, outBytes);
    const workspace = DeviceMemory.allocate(context, 1 << 22);
    const cublas = CublasLt.create(cuda.cublasLt, context);
    const shape = { tokens, inFeatures, outFeatures, inputType: "bfloat16", outputType, bias } as const;
    using matmul = new LinearMatmul(cublas, shape);
    const [algorithm] = matmul.algorithms(4, workspace.byteLength);
    matmul.run(stream.value, algorithm!, workspace.value, {
      ...{ out: out.value, x: bf16(x), weight: bf16(weight), bias: bias ? bf16(offsets) : undefined },
    });
    const raw = new Uint8Array(outBytes);
    stream.download(raw, out.value, outBytes);
    stream.synchronize();
    const result = new Float32Array(tokens * outFeatures);
    widen(raw, outputType, result);
    for (let t = 0; t < tokens; t++) {
      for (let n = 0; n < outFeatures; n++) {
        let once = bias ? offsets[n]! : 0;
        for (let k = 0; k < inFeatures; k++) once += x[t * inFeatures + k]! * weight[n * inFeatures + k]!;
        const tolerance = outputType === "float32" ? 0 : 2 ** -7 * Math.abs(once);
        expect(Math.abs(result[t * outFeatures + n]! - once)).toBeLessThanOrEqual(tolerance);
      }
    }
  });
});

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { CudaBackendOptions } from "../../../../src/backend/cuda/cuda-backend-options.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import { Device } from "../../../../src/cuda/device.ts";
import type { CompileRequest, KernelCompiler } from "../../../../src/cuda/nvrtc.ts";
import type { Cuda } from "../../../../src/cuda/open-cuda.ts";
import { FakeCublasLt } from "../../cuda/fake-cublaslt.ts";
import { FakeCuda, type FakeGpu } from "../../cuda/fake-cuda.ts";
import { SIGNATURES } from "./kernel-signatures.ts";

/** "Compiles" anything. Its version keeps what it makes apart in the cache. */
class FakeNvrtc implements KernelCompiler {
  readonly version = "fake";
  readonly requests: CompileRequest[] = [];

  compile(request: CompileRequest) {
    this.requests.push(request);
    return { cubin: new TextEncoder().encode(request.name), log: "" };
  }
}

/** A machine with one GPU, all of it fake but for the disk: kernels and choices are kept in a folder of its own. */
export class FakeMachine implements Disposable {
  readonly cuda: FakeCuda;
  readonly cublas = new FakeCublasLt();
  readonly nvrtc = new FakeNvrtc();
  readonly #backends: CudaBackend[] = [];
  readonly #folder: string;
  readonly #cacheFolder = process.env["OCTAVO_CACHE_DIR"];

  constructor(gpu: Partial<FakeGpu> = {}) {
    this.cuda = new FakeCuda([{ name: "Fake GPU", computeCapability: [9, 0], memory: 2 ** 28, ...gpu }]);
    for (const [entry, { parameters }] of SIGNATURES) this.cuda.kernels.set(entry, parameters.length);
    this.#folder = mkdtempSync(join(tmpdir(), "octavo-fake-"));
    process.env["OCTAVO_CACHE_DIR"] = this.#folder;
  }

  open(): Cuda {
    return {
      driver: {
        api: this.cuda.api,
        version: [13, 0],
        library: { name: "cuda", path: "libcuda.so.1", source: "fake", version: "1", major: 1 },
      },
      device: Device.open(this.cuda.api, 0),
      // Without files there are no Workers, which would look for a real library.
      ...(this.#compiler as Pick<Cuda, "nvrtc" | "nvrtcFiles">),
      cublasLt: this.cublas.api,
    };
  }

  backend(dtype: FloatDType = "bfloat16", options: CudaBackendOptions = {}): CudaBackend {
    const backend = new CudaBackend(this.open(), dtype, options);
    this.#backends.push(backend);
    return backend;
  }

  /** The folder that kernels and choices are kept in. */
  get cacheFolder(): string {
    return join(this.#folder, "kernels");
  }

  /** Handles that are alive, and misuses; there are none when all backends have been disposed of properly. */
  get leftovers(): string[] {
    return [...this.cuda.live.values(), ...this.cublas.live.keys().map(String), ...this.cuda.violations];
  }

  /** Disposes of its backends too. @throws Error where that leaves anything over. */
  [Symbol.dispose](): void {
    for (const backend of this.#backends) backend.dispose();
    if (this.#cacheFolder === undefined) delete process.env["OCTAVO_CACHE_DIR"];
    else process.env["OCTAVO_CACHE_DIR"] = this.#cacheFolder;
    rmSync(this.#folder, { recursive: true });
    if (this.leftovers.length > 0) throw new Error(`left over: ${this.leftovers.join(", ")}`);
  }

  get #compiler(): unknown {
    return { nvrtc: this.nvrtc, nvrtcFiles: undefined };
  }
}

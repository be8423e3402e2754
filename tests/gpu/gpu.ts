import { DeviceError } from "../../src/base/errors.ts";
import { gpuCount, openCuda } from "../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../requirements.ts";

/** The driver, NVRTC, cuBLASLt and a GPU that Octavo can use, or why there is none. */
const GPU = available(openCuda);

type Found = Exclude<typeof GPU, string>;

/** A group of tests that needs a GPU; see `describeWith` for machines without one. */
export function describeGpu(title: string, body: (cuda: Found) => void): void {
  describeWith("OCTAVO_REQUIRE_GPU", GPU, title, body);
}

/** A group of tests that needs several GPUs, of which `body` is given the first. */
export function describeGpus(count: number, title: string, body: (cuda: Found) => void): void {
  const found = available(() => {
    if (typeof GPU === "string") throw new DeviceError(GPU);
    if (gpuCount() < count) throw new DeviceError(`${count} GPUs are needed, there are ${gpuCount()}`);
    return GPU;
  });
  describeWith("OCTAVO_REQUIRE_GPUS", found, title, body);
}

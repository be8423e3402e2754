import { openCuda } from "../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../requirements.ts";

/** The driver, NVRTC, cuBLASLt and a GPU that Octavo can use, or why there is none. */
const GPU = available(openCuda);

/** A group of tests that needs a GPU; see `describeWith` for machines without one. */
export function describeGpu(title: string, body: (cuda: Exclude<typeof GPU, string>) => void): void {
  describeWith("OCTAVO_REQUIRE_GPU", GPU, title, body);
}

import { describe } from "bun:test";
import { gpuCount } from "../../src/cuda/open-cuda.ts";

/** Whether this machine has a GPU that Octavo can use. */
export const HAS_GPU = gpuCount() > 0;

/** A group of tests that needs a GPU; elsewhere it is reported as skipped. */
export const describeGpu = describe.skipIf(!HAS_GPU);

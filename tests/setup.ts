import { setDefaultTimeout } from "bun:test";

// Whole models run on the CPU in plain TypeScript; on a busy machine five seconds are too few.
setDefaultTimeout(120_000);

import { setDefaultTimeout } from "bun:test";
import { SimdBackend } from "../../src/backend/simd/simd-backend.ts";
import { runContract } from "./backend.contract.ts";

setDefaultTimeout(300_000);

runContract("simd", () => new SimdBackend({ threads: 2 }), false);

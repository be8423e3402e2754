import { setDefaultTimeout } from "bun:test";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { runContract } from "./backend.contract.ts";

setDefaultTimeout(300_000);

runContract("cpu", () => new CpuBackend(), false);

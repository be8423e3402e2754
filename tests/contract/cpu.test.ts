import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { runContract } from "./backend.contract.ts";

runContract("cpu", () => new CpuBackend());

import { expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../src/backend/backend.ts";
import { CudaBackend } from "../../src/backend/cuda/cuda-backend.ts";
import { denseWeight } from "../../src/backend/weight.ts";
import type { FloatDType } from "../../src/base/dtype.ts";
import { describeGpu } from "../gpu/gpu.ts";
import { runContract } from "./backend.contract.ts";
import { decodeRowCases } from "./decode-rows.ts";
import { Fixture } from "./fixture.ts";
import { float8ActivationCases } from "./float8-activations.ts";

setDefaultTimeout(300_000);

for (const dtype of ["bfloat16", "float16"] satisfies FloatDType[]) {
  describeGpu(dtype, (cuda) => {
    runContract("cuda", () => new CudaBackend(cuda, dtype), true);
    decodeRowCases(cuda, dtype);
    float8ActivationCases(cuda, dtype);
  });
}

/** Tokens of products whose first rows must be the same bits. */
const TOKEN_COUNTS = [1, 7, 64, 256, 300];
/** Outputs and inputs: split among CTAs, not split, many tiles, and what only cuBLASLt takes. */
const INVARIANT_SHAPES = [
  [256, 1024],
  [9216, 320],
  [19264, 128],
  [200, 72],
] as const;

describeGpu("batch invariance", (cuda) => {
  test.each(INVARIANT_SHAPES)("rows of products by [%d, %d] do not depend on other rows", (n, k) => {
    const backend = new CudaBackend(cuda, "bfloat16", { batchInvariant: true });
    const fixture = new Fixture(backend);
    const most = Math.max(...TOKEN_COUNTS);
    const x = fixture.normals([most, k], 3);
    const weight = denseWeight(fixture.normals([n, k], 1 / Math.sqrt(k)).tensor);
    const norm = { weight: fixture.normals([k], 0.3, 1).tensor, eps: 1e-6 };
    const residual = fixture.normals([most, n]);
    const kinds: Readonly<Record<string, (tokens: number) => LinearFusion>> = {
      plain: () => ({}),
      norm: () => ({ norm }),
      sum: (tokens) => ({ addTo: residual.tensor.rows(0, tokens) }),
      gated: () => ({ norm, activation: { kind: "silu", gated: true } }),
    };
    for (const [kind, fusionOf] of Object.entries(kinds)) {
      const rows = TOKEN_COUNTS.map((tokens) => {
        const out = fixture.output("bfloat16", [tokens, kind === "gated" ? n / 2 : n]);
        backend.linear(out, x.tensor.rows(0, tokens), weight, fusionOf(tokens));
        return Buffer.from(backend.download(out));
      });
      for (const [i, bytes] of rows.entries())
        expect({
          kind,
          tokens: TOKEN_COUNTS[i],
          same: bytes.equals(rows.at(-1)!.subarray(0, bytes.length)),
        }).toEqual({ kind, tokens: TOKEN_COUNTS[i], same: true });
    }
    fixture.dispose();
    backend.dispose();
  });
});

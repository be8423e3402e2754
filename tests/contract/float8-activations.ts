import { describe, test } from "bun:test";
import { CudaBackend } from "../../src/backend/cuda/cuda-backend.ts";
import type { FloatDType } from "../../src/base/dtype.ts";
import { FLOAT8_VALUES } from "../../src/base/float8.ts";
import type { Cuda } from "../../src/cuda/open-cuda.ts";
import { expectClose, roundoff } from "./compare.ts";
import { Fixture, type Uploaded } from "./fixture.ts";
import { fp8Weight } from "./quantised-weights.ts";
import * as reference from "./reference.ts";

const EPS = 1e-6;
/** Fewer than are quantised, and each kind of tile: part of one, one, several. */
const TOKENS = [8, 9, 16, 33, 64, 100, 128, 129, 200, 256, 257, 600];
/** Outputs and inputs: one row tile, odd and even numbers of them, more than are computed at once. */
const SHAPES = [
  [64, 128],
  [192, 640],
  [256, 1024],
  [2304, 256],
  [8448, 128],
] as const;
/** Of the last shape, whose rows are enough for the large tiles. */
const MANY_TOKENS = [300, 512];
/** Sums in tensor cores lose bits that float32 has. */
const SUM_ERROR = 2 ** -8;

/** Products of activations made 8-bit floats by such weights: of activations that are such floats, so that nothing is rounded. */
export function float8ActivationCases(cuda: Cuda, dtype: FloatDType): void {
  describe("activations in eight bits", () => {
    for (const [n, k] of SHAPES) {
      for (const surrounded of [false, true]) {
        test(`[${n}, ${k}], ${surrounded ? "norm, bias and sum; gated" : "alone"}`, () => {
          const backend = new CudaBackend(cuda, dtype, { quantiseActivations: true });
          const fixture = new Fixture(backend);
          try {
            const { values, ...loaded } = fp8Weight(fixture, [n, k], { blockRows: 1, blockColumns: k });
            const weight = fixture.prepared(loaded.weight);
            const precision = { dtype, reduction: 2 * k + 2, intermediates: 6 + SUM_ERROR / roundoff(dtype) };
            for (const m of n > 8000 ? MANY_TOKENS : TOKENS) {
              if (!surrounded) {
                const x = exactTokens(fixture, m, k);
                const out = fixture.output(dtype, [m, n]);
                backend.linear(out, x.tensor, weight);
                const expected = reference.linear(x.values, values, undefined, n, k);
                expectClose(`${m} tokens`, fixture.readFloats(out), expected, precision);
                // The LM head's.
                if (m !== 64 && m !== 256) continue;
                const logits = fixture.output("float32", [m, n]);
                backend.linear(logits, x.tensor, weight);
                expectClose(`${m} tokens, float32`, fixture.readFloats(logits), expected, {
                  ...{ dtype: "float32", reduction: 2 * k, intermediates: SUM_ERROR / roundoff("float32") },
                });
                continue;
              }
              const gamma = fixture.input(
                Float32Array.from({ length: k }, (_, i) => 2 ** (i % 3)),
                [k],
              );
              const x = exactTokens(fixture, m, k, gamma.values);
              const norm = { weight: gamma.tensor, eps: EPS };
              const input = reference.rmsNorm(x.values, gamma.values, EPS).values;
              const bias = fixture.normals([n]);
              const residual = fixture.state(fixture.random.normals(m * n, 2), [m, n]);
              const product = reference.linear(input, values, bias.values, n, k);
              backend.linear(residual.tensor, x.tensor, weight, {
                norm,
                bias: bias.tensor,
                addTo: residual.tensor,
              });
              const sum = reference.plus(product, residual.values);
              expectClose(`${m} tokens, sum`, fixture.readFloats(residual.tensor), sum, precision);
              if (n % 128 !== 0) continue;
              const gated = fixture.output(dtype, [m, n / 2]);
              backend.linear(gated, x.tensor, weight, { norm, activation: { kind: "silu", gated: true } });
              const plain = reference.linear(input, values, undefined, n, k);
              const both = reference.gatedOf(plain, n / 2, "silu");
              expectClose(`${m} tokens, gated`, fixture.readFloats(gated), both, precision);
            }
            fixture.checkUntouched();
          } finally {
            fixture.dispose();
            backend.dispose();
          }
        });
      }
    }
  });
}

/** Tokens that times a power of two for each, and over `scales`, are values of float8_e4m3, the largest of them too. */
function exactTokens(fixture: Fixture, tokens: number, width: number, scales?: ArrayLike<number>): Uploaded {
  const values = new Float32Array(tokens * width);
  for (let token = 0; token < tokens; token++) {
    const factor = 2 ** (fixture.random.int(6) - 9);
    const largest = fixture.random.int(width);
    for (let i = 0; i < width; i++) {
      const code = i === largest ? 0x7e : fixture.random.int(256) & 0xf7;
      values[token * width + i] = (FLOAT8_VALUES[code]! * factor) / (scales?.[i] ?? 1);
    }
  }
  return fixture.input(values, [tokens, width]);
}

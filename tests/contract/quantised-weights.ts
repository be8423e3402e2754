import type {
  Fp8Weight,
  GroupedWeight,
  Mxfp4Weight,
  SuperblockWeight,
  Weight,
} from "../../src/backend/weight.ts";
import type { Fixture } from "./fixture.ts";

/** A quantised weight in its canonical form on a backend, and the matrix [N, K] that it stands for. */
export interface QuantisedWeight {
  readonly weight: Weight;
  readonly values: Float64Array;
}

type Shape = readonly [n: number, k: number];

/** The numbers that e4m3 codes stand for, by their definition. */
const E4M3 = Float64Array.from({ length: 256 }, (_, code) => {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  const magnitude = exponent === 0 ? (mantissa / 8) * 2 ** -6 : (1 + mantissa / 8) * 2 ** (exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
});

/** Random codes of every finite value, with scales between which lie powers of two. */
export function fp8Weight(
  fixture: Fixture,
  [n, k]: Shape,
  { blockRows, blockColumns }: Pick<Fp8Weight, "blockRows" | "blockColumns">,
): QuantisedWeight {
  const [rows, columns] = [Math.ceil(n / blockRows), Math.ceil(k / blockColumns)];
  const codes = randomBytes(fixture, n * k).map((code) => ((code & 0x7f) === 0x7f ? code ^ 1 : code));
  const scales = randomScales(fixture, rows * columns, 1 / (200 * Math.sqrt(k)));
  const values = matrix(n, k, (row, column) => {
    const block = Math.floor(row / blockRows) * columns + Math.floor(column / blockColumns);
    return E4M3[codes[row * k + column]!]! * scales[block]!;
  });
  const weight: Fp8Weight = {
    ...{ format: "fp8", shape: [n, k], blockRows, blockColumns },
    data: fixture.bytes("float8_e4m3", codes, [n, k]),
    scales: fixture.input(scales, [rows, columns], "float32").tensor,
  };
  return { weight, values };
}

export interface GroupedForm {
  readonly bits: 4 | 8;
  readonly groupSize: number;
  readonly scaleDtype?: "float16" | "bfloat16";
  readonly zeros?: boolean;
  readonly permuted?: boolean;
}

/** Random codes, with zero points that differ for each group and row. */
export function groupedWeight(
  fixture: Fixture,
  [n, k]: Shape,
  { bits, groupSize, scaleDtype = "float16", zeros = false, permuted = false }: GroupedForm,
): QuantisedWeight {
  const groups = k / groupSize;
  const data = randomBytes(fixture, (n * k * bits) / 8);
  const scale = fixture.input(
    randomScales(fixture, n * groups, 2 / (2 ** bits * Math.sqrt(k))),
    [n, groups],
    scaleDtype,
  );
  const zeroBytes = zeros
    ? randomBytes(fixture, n * groups).map((byte) => byte & (2 ** bits - 1))
    : undefined;
  const order = permuted ? fixture.random.permutation(k) : undefined;
  const values = new Float64Array(n * k);
  for (let row = 0; row < n; row++) {
    for (let j = 0; j < k; j++) {
      const index = row * k + j;
      const code = bits === 8 ? data[index]! : (data[index >> 1]! >> (4 * (j % 2))) & 15;
      const group = row * groups + Math.floor(j / groupSize);
      const zero = zeroBytes?.[group] ?? 2 ** (bits - 1);
      values[row * k + (order?.[j] ?? j)] = (code - zero) * scale.values[group]!;
    }
  }
  const weight: GroupedWeight = {
    ...{ format: "grouped", shape: [n, k], bits, groupSize },
    data: fixture.bytes("uint8", data, [n, (k * bits) / 8]),
    scales: scale.tensor,
    zeros: zeroBytes && fixture.bytes("uint8", zeroBytes, [n, groups]),
    permutation: order && fixture.ints(order),
  };
  return { weight, values };
}

/** Random codes of e2m1, and scales that are powers of two around 1 / sqrt(K). */
export function mxfp4Weight(fixture: Fixture, [n, k]: Shape): QuantisedWeight {
  const codes = randomBytes(fixture, (n * k) / 2);
  const middle = 125 - Math.round(Math.log2(k) / 2);
  const scales = randomBytes(fixture, (n * k) / 32).map((byte) => middle + (byte % 3));
  const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const values = matrix(n, k, (row, column) => {
    const index = row * k + column;
    const code = (codes[index >> 1]! >> (4 * (index % 2))) & 15;
    const scale = 2 ** (scales[Math.floor(index / 32)]! - 127);
    return (code & 8 ? -1 : 1) * magnitudes[code & 7]! * scale;
  });
  const weight: Mxfp4Weight = {
    ...{ format: "mxfp4", shape: [n, k] },
    data: fixture.bytes("uint8", codes, [n, k / 2]),
    scales: fixture.bytes("uint8", scales, [n, k / 32]),
  };
  return { weight, values };
}

export type SuperblockForm = Pick<SuperblockWeight, "bits" | "groupSize" | "minima">;

/**
 * Random codes, of 8 bits up to 63, and steps of all sizes: 6 bits in groups of 32 as Q4_K's, signed bytes in groups of 16 as Q6_K's,
 * beside others' minima, too. Units have either sign.
 */
export function superblockWeight(fixture: Fixture, [n, k]: Shape, form: SuperblockForm): QuantisedWeight {
  const { bits, groupSize, minima } = form;
  const factors = minima ? 2 : 1;
  const data = randomBytes(fixture, (n * k * bits) / 8).map((byte) => byte & (bits === 8 ? 63 : 255));
  const steps = randomBytes(fixture, ((n * k) / groupSize) * factors).map(
    (byte) => byte & (groupSize === 32 ? 63 : 255),
  );
  const signs = randomBytes(fixture, ((n * k) / 256) * factors);
  const size = 1 / (32 * Math.sqrt(k));
  const least = [size / (bits === 8 ? 16 : 4), size];
  const sizes = randomScales(fixture, signs.length, 1).map(
    (unit, i) => unit * least[i % factors]! * (signs[i]! & 1 ? -1 : 1),
  );
  const units = fixture.input(sizes, [n, k / 256, factors], "float16");
  const signed = new Int8Array(steps.buffer);
  const values = matrix(n, k, (row, column) => {
    const index = row * k + column;
    const code = bits === 8 ? data[index]! : (data[index >> 1]! >> (4 * (index % 2))) & 15;
    const factor = (i: number) =>
      signed[Math.floor(index / groupSize) * factors + i]! *
      units.values[Math.floor(index / 256) * factors + i]!;
    return factor(0) * code - (minima ? factor(1) : 32 * factor(0));
  });
  const weight: SuperblockWeight = {
    ...{ format: "superblocks", shape: [n, k], ...form },
    data: fixture.bytes("uint8", data, [n, (k * bits) / 8]),
    steps: fixture.bytes("uint8", steps, [n, k / groupSize, factors]),
    units: units.tensor,
  };
  return { weight, values };
}

function randomBytes({ random }: Fixture, count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  for (let i = 0; i < count; i++) bytes[i] = random.int(256);
  return bytes;
}

/** Between 1 and 16 times `least`: a scale of another group is a gross mistake. */
function randomScales({ random }: Fixture, count: number, least: number): Float32Array {
  return Float32Array.from({ length: count }, () => least * 2 ** random.int(5) * (1 + random.int(64) / 64));
}

function matrix(n: number, k: number, element: (row: number, column: number) => number): Float64Array {
  const values = new Float64Array(n * k);
  for (let row = 0; row < n; row++)
    for (let column = 0; column < k; column++) values[row * k + column] = element(row, column);
  return values;
}

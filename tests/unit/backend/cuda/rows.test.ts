import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { backend, requested, launch } = recorder;
const { bf16, i32 } = new FakeTensors();
const f = Math.fround;

describe("rows", () => {
  test.each([1, 3, 256, 5000])(
    "%d are gathered, a block each, 16 bytes a copy where that divides a row",
    (rows) => {
      const [out, table, ids] = [bf16(rows, 1024), bf16(500, 1024), i32(rows)];
      const wide = launch(() => backend.embedding(out, table, ids));
      expect(wide.grid).toEqual([rows, 1, 1]);
      expect(namedArguments(wide)).toEqual({
        out: out.address,
        table: table.address,
        ids: ids.address,
        units: 128,
        ...{ first: 0, rows: 500 },
      });
      const part = launch(() => backend.embedding(out, table, ids, 1500));
      expect(namedArguments(part)).toMatchObject({ first: 1500, rows: 500 });
      const odd = [bf16(rows, 33), bf16(500, 33)] as const;
      expect(namedArguments(launch(() => backend.gatherRows(...odd, ids)))).toMatchObject({ units: 33 });
    },
  );

  test.each([
    [64, 32],
    [1024, 128],
    [4096, 512],
    [8192, 512],
    [1001, 512],
    [7, 32],
  ])("of %d elements are normalised by %d threads", (width, threads) => {
    const [out, x] = [bf16(3, width), bf16(3, width)];
    const [weight, bias] = [bf16(width), bf16(width)];
    const plain = launch(() => backend.rmsNorm(out, x, weight, 1e-6));
    const shape = { grid: [3, 1, 1], block: [threads, 1, 1], sharedBytes: 0 };
    expect(plain).toMatchObject({ entry: "rms_norm", ...shape });
    const common = { out: out.address, x: x.address, weight: weight.address, width };
    expect(namedArguments(plain)).toEqual({ ...common, eps: f(1e-6) });
    const layer = launch(() => backend.layerNorm(out, x, weight, bias, 1e-5));
    expect(namedArguments(layer)).toEqual({ ...common, bias: bias.address, eps: f(1e-5) });
    const unbiased = launch(() => backend.layerNorm(out, x, weight, undefined, 1e-5));
    expect(namedArguments(unbiased)).toMatchObject({ bias: 0 });
  });

  test("that start off a vector boundary are taken an element at a time", () => {
    const whole = bf16(4, 1025);
    const shifted = new Tensor(whole.buffer, "bfloat16", [4, 1024], 2);
    launch(() => backend.rmsNorm(bf16(4, 1024), shifted, bf16(1024), 1e-6));
    expect(requested.mock.lastCall![0].defines).toMatchObject({ ACCESS: 1 });
  });
});

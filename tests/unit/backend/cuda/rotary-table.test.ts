import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { backend, launch } = recorder;
const { f32 } = new FakeTensors();
const f = Math.fround;

test("the rotary table is made a block a position, its factor in two parts of float32", () => {
  const [out, frequencies] = [f32(40960, 128), f32(64)];
  const made = launch(() => backend.rotaryTable(out, frequencies, 1.1386));
  expect([made.grid, made.block]).toEqual([
    [40960, 1, 1],
    [64, 1, 1],
  ]);
  const { amplitude, amplitude_rest, ...rest } = namedArguments(made);
  expect(rest).toEqual({ out: out.address, frequencies: frequencies.address, half: 64 });
  expect(amplitude).toBe(f(1.1386));
  expect(amplitude! + amplitude_rest!).toBeCloseTo(1.1386, 14);
  expect(launch(() => backend.rotaryTable(f32(3, 600), f32(300), 1)).block).toEqual([256, 1, 1]);
});

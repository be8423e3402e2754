import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { backend, launch } = recorder;
const { bf16 } = new FakeTensors();

test.each([1, 17, 4096])("activations of %d tokens cover every element", (tokens) => {
  const out = bf16(tokens, 3072);
  const plain = launch(() => backend.activation(out, out, "gelu_tanh"));
  expect(plain.grid[0]! * plain.block[0]! * 8).toBeGreaterThanOrEqual(tokens * 3072);
  expect(namedArguments(plain)).toEqual({
    ...{ out: out.address, x: out.address, count: tokens * 3072, activation: 2 },
  });
});

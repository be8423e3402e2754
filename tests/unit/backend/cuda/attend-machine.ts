import { afterAll } from "bun:test";
import type { BatchTensors } from "../../../../src/backend/backend.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";
import { FakeOperands } from "./fake-operands.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

/** Arguments of what has none. */
export const UNSCALED = { key_scale: 1, value_scale: 1 };
export const PLAIN_SCORES = { cap_log2: 0, sinks: 0 };

/** What stored keys and values before a prompt's attention. */
export const storeOf = (all: readonly FakeLaunch[]) => all.find(({ entry }) => entry === "rope_store");

/** A machine for tests of attention, of a file, with operands of four key/value heads. */
export function attendMachine() {
  const recorder = new LaunchRecorder();
  afterAll(() => recorder[Symbol.dispose]());
  const { machine, backend, requested, launch, launches } = recorder;
  const fakes = new FakeOperands();
  const { bf16, f32, layerCache } = fakes;
  return {
    ...{ machine, backend, requested, launch, launches, fakes },
    spec: (group: number, headDim: number, { window = 0, rotaryDim = headDim } = {}) => ({
      ...{ numHeads: 4 * group, numKvHeads: 4, headDim, scale: headDim ** -0.5, window },
      cosSin: f32(2048, rotaryDim),
    }),
    operands: (rows: BatchTensors, group: number, headDim: number) => ({
      out: bf16(rows.numTokens, 4 * group * headDim),
      qkv: bf16(rows.numTokens, (4 * group + 8) * headDim),
      cache: layerCache(4, headDim),
    }),
    /** The macros that `file` was compiled with where they are these among others. */
    macrosOf(file: string, wanted: Readonly<Record<string, number>>): Readonly<Record<string, number>> {
      const call = requested.mock.calls.find(
        ([{ file: name, defines }]) =>
          name === file && Object.entries(wanted).every(([macro, value]) => defines?.[macro] === value),
      );
      return { ...call![0].constants, ...call![0].defines } as Record<string, number>;
    },
  };
}

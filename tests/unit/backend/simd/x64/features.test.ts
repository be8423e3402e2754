import { expect, setDefaultTimeout, test } from "bun:test";
import { type Features, isaOf, readFeatures } from "../../../../../src/backend/simd/x64/features.ts";
import { AVX2, AVX512 } from "../../../../../src/backend/simd/x64/forms.ts";
import { MachineCode } from "../../../../../src/backend/simd/x64/machine-code.ts";
import { ConfigError } from "../../../../../src/base/errors.ts";

setDefaultTimeout(300_000);

const bits = (...numbers: number[]) => numbers.reduce((word, bit) => word | (1 << bit), 0);

/** FMA, OSXSAVE, AVX and F16C; AVX2 and AVX-512; masks and all of zmm kept. */
const ALL: Features = {
  leaves: 7,
  leaf1: bits(12, 27, 28, 29),
  leaf7: bits(5, 16, 30, 31),
  kept: 0xe7,
};

test("vectors are used where the processor has all that is needed, and the system keeps them", () => {
  expect(isaOf(ALL)).toBe(AVX512);
  expect(isaOf({ ...ALL, leaf7: bits(5) })).toBe(AVX2);
  for (const bit of [16, 30, 31]) expect(isaOf({ ...ALL, leaf7: ALL.leaf7 & ~bits(bit) })).toBe(AVX2);
  // Systems that keep ymm alone, or the lower half of the zmm.
  expect(isaOf({ ...ALL, kept: 0x7 })).toBe(AVX2);
  expect(isaOf({ ...ALL, kept: 0x67 })).toBe(AVX2);
  expect(isaOf({ ...ALL, kept: 0x3 })).toBeUndefined();
  expect(isaOf({ ...ALL, leaf7: bits(16) })).toBeUndefined();
  expect(isaOf({ ...ALL, leaves: 6 })).toBeUndefined();
  for (const bit of [12, 27, 28, 29])
    expect(isaOf({ ...ALL, leaf1: ALL.leaf1 & ~bits(bit) })).toBeUndefined();
});

test.skipIf(process.platform !== "linux" || process.arch !== "x64")(
  "features are those that the system tells of",
  async () => {
    const flags = new Set(
      /^flags\s*:(.*)$/m
        .exec(await Bun.file("/proc/cpuinfo").text())![1]!
        .trim()
        .split(" "),
    );
    const expected = ["avx2", "fma", "f16c"].some((flag) => !flags.has(flag))
      ? undefined
      : ["avx512f", "avx512bw", "avx512vl"].every((flag) => flags.has(flag))
        ? AVX512
        : AVX2;
    const features = readFeatures();
    expect(features && isaOf(features)).toBe(expected);
  },
);

test("what a machine does not have is left to WebAssembly, or refused where it is asked for", () => {
  const none = () => undefined;
  const narrow = () => AVX2;
  expect(MachineCode.open("auto", none)).toBeUndefined();
  expect(MachineCode.open("wasm", narrow)).toBeUndefined();
  expect(() => MachineCode.open("avx2", none)).toThrow(ConfigError);
  expect(() => MachineCode.open("avx512", narrow)).toThrow("at most avx2");
});

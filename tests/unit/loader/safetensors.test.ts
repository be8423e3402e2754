import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { ModelDataError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { SafetensorsFile } from "../../../src/loader/safetensors.ts";
import { cpuClock, openBelow, temporaryFolder, thrown } from "../../support.ts";
import { f32, rawSafetensors, readTensor, safetensors } from "./support.ts";

setDefaultTimeout(300_000);

const entry = (dtype: string, shape: unknown, begin: unknown, end: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: [begin, end] });
const one = (text: string, data = 0) => rawSafetensors(`{"a":${text}}`, data);
const two = (a: string, b: string, data: number) => rawSafetensors(`{"a":${a},"b":${b}}`, data);

const BYTE = entry("U8", [1], 0, 1);

/** Each rule of the format, a file that breaks it, and what the message must say. */
const BROKEN: readonly [rule: string, bytes: Uint8Array, message: string][] = [
  ["empty file", new Uint8Array(0), "too few"],
  ["seven bytes", new Uint8Array(7), "too few"],
  ["header length 2^63", rawSafetensors("{}", 0, 2n ** 63n), "at most 67108864"],
  ["header length over the limit", rawSafetensors("{}", 0, 67_108_865n), "at most 67108864"],
  ["header length past the file", rawSafetensors("{}", 0, 3n), "runs past the file"],
  ["empty header", rawSafetensors(""), "not JSON"],
  ["not UTF-8", rawSafetensors(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), "not UTF-8"],
  ["overlong UTF-8", rawSafetensors(Uint8Array.of(0x7b, 0xc1, 0xbb, 0x7d)), "not UTF-8"],
  ["byte order mark", rawSafetensors("\ufeff{}"), "not JSON"],
  ["leading space", rawSafetensors(" {}"), "from its first character on"],
  ["an array", rawSafetensors("[]"), "not a JSON object"],
  ["null", rawSafetensors("null"), "not a JSON object"],
  ["truncated JSON", rawSafetensors('{"a":'), "not JSON"],
  ["trailing comma", rawSafetensors('{"a":1,}'), "not JSON"],
  ["text after the object", rawSafetensors("{}{}"), "not JSON"],
  ["NUL after the object", rawSafetensors("{}\0"), "not JSON"],
  ["comment", rawSafetensors("{/**/}"), "not JSON"],
  ["single quotes", rawSafetensors("{'a':1}"), "not JSON"],
  ["control character in a name", rawSafetensors('{"a\n":1}'), "not JSON"],
  ["bad escape", rawSafetensors('{"\\x":1}'), "not JSON"],
  ["leading zero", one('{"dtype":"U8","shape":[01],"data_offsets":[0,1]}', 1), "not JSON"],
  ["deep nesting", rawSafetensors(`{"a":${"[".repeat(100_000)}`), "nested deeper"],
  ["deep nesting, closed", one(`${"[".repeat(100_000)}${"]".repeat(100_000)}`), "nested deeper"],
  ["a list too deep", one('{"dtype":"U8","shape":[[]],"data_offsets":[0,0]}'), "nested deeper"],
  ["duplicate tensor", rawSafetensors(`{"a":${BYTE},"a":${BYTE}}`, 1), "a name twice"],
  ["duplicate tensor, one escaped", rawSafetensors(`{"a":${BYTE},"\\u0061":${BYTE}}`, 1), "a name twice"],
  [
    "duplicate tensor of other bytes",
    rawSafetensors(`{"a":${BYTE},"a":${entry("U8", [1], 1, 2)}}`, 2),
    "a name twice",
  ],
  ["duplicate __metadata__", rawSafetensors('{"__metadata__":{},"__metadata__":{}}'), "a name twice"],
  ["duplicate metadata key", rawSafetensors('{"__metadata__":{"k":"1","k":"2"}}'), "a name twice"],
  [
    "duplicate entry key",
    one('{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    "a name twice",
  ],
  ["metadata number", rawSafetensors('{"__metadata__":{"k":1}}'), "map strings to strings"],
  ["metadata list", rawSafetensors('{"__metadata__":[]}'), "map strings to strings"],
  ["entry not an object", one("[]"), "not described by an object"],
  ["no dtype", one('{"shape":[],"data_offsets":[0,0]}'), "exactly dtype, shape and data_offsets"],
  ["no shape", one('{"dtype":"U8","data_offsets":[0,0]}'), "exactly dtype, shape and data_offsets"],
  ["no offsets", one('{"dtype":"U8","shape":[]}'), "exactly dtype, shape and data_offsets"],
  ["an extra key", one('{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}'), "exactly dtype"],
  ["unknown dtype", one(entry("F7", [0], 0, 0)), 'unknown dtype "F7"'],
  ["dtype of the prototype", one(entry("constructor", [0], 0, 0)), "unknown dtype"],
  ["dtype a number", one('{"dtype":16,"shape":[0],"data_offsets":[0,0]}'), "dtype that is not a string"],
  ["negative extent", one(entry("U8", [-1], 0, 0)), "exact non-negative integers"],
  ["fractional extent", one(entry("U8", [1.5], 0, 0)), "exact non-negative integers"],
  [
    "extent 2^53 + 1",
    one('{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,0]}'),
    "exact non-negative",
  ],
  ["extent a string", one(entry("U8", ["1"], 0, 1), 1), "exact non-negative integers"],
  ["shape a number", one(entry("U8", 1, 0, 1), 1), "exact non-negative integers"],
  ["rank 9", one(entry("U8", new Array(9).fill(1), 0, 1), 1), "rank 9"],
  ["one offset", one('{"dtype":"U8","shape":[0],"data_offsets":[0]}'), "two exact"],
  ["three offsets", one('{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}'), "two exact"],
  ["negative offset", one(entry("U8", [0], -1, -1)), "two exact"],
  ["offsets above 2^53", one('{"dtype":"U8","shape":[0],"data_offsets":[1e16,1e16]}'), "two exact"],
  ["reversed offsets", one(entry("U8", [1], 1, 0), 1), "run backwards"],
  ["elements overflow 2^64", one(entry("U8", [4194305, 4194305, 211106198978564], 0, 1), 1), "more elements"],
  ["bytes overflow", one(entry("F64", [2 ** 52], 0, 8), 8), "more bytes"],
  ["half a byte", one(entry("F4", [3], 0, 2), 2), "byte boundary"],
  ["size mismatch", one(entry("F32", [2], 0, 4), 4), "needs 8 bytes for F32 [2], but spans 4"],
  ["hole before the first", one(entry("U8", [1], 1, 2), 2), "hole"],
  ["hole between", two(entry("U8", [1], 0, 1), entry("U8", [1], 2, 3), 3), 'tensor "b" leaves a hole'],
  ["overlap", two(entry("U8", [2], 0, 2), entry("U8", [2], 1, 3), 3), 'tensor "b" overlaps'],
  ["alias", two(entry("U8", [2], 0, 2), entry("U8", [2], 0, 2), 2), "overlaps"],
  ["empty tensor inside another", two(entry("U8", [2], 0, 2), entry("U8", [0], 1, 1), 2), "overlaps"],
  ["data past the file", one(entry("U8", [4], 0, 4), 3), "but the file has"],
  ["bytes after the last tensor", one(entry("U8", [4], 0, 4), 5), "but the file has"],
  ["bytes without tensors", rawSafetensors("{}", 1), "but the file has"],
  [
    "name of 513 bytes",
    rawSafetensors(`{"${"é".repeat(257)}":${entry("U8", [0], 0, 0)}}`),
    "longer than 512",
  ],
];

describe("a file that breaks a rule is refused", () => {
  test.each(BROKEN)("%s", (_rule, bytes, message) => {
    using folder = temporaryFolder();
    const path = folder.file("model.safetensors");
    writeFileSync(path, bytes);
    const error = thrown(() => SafetensorsFile.open(path)) as ModelDataError;
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
    expect(error.message).toStartWith(`${path}: `);
    expect(error.message).not.toContain("\n");
  });

  test("65,537 tensors", () => {
    using folder = temporaryFolder();
    const path = folder.file("many.safetensors");
    const entries = Array.from({ length: 65_537 }, (_, i) => `"t${i}":${entry("U8", [0], 0, 0)}`);
    writeFileSync(path, rawSafetensors(`{${entries.join(",")}}`));
    const spent = cpuClock();
    expect(() => SafetensorsFile.open(path)).toThrow("at most 65536");
    expect(spent()).toBeLessThan(2);
    writeFileSync(path, rawSafetensors(`{${entries.slice(1).join(",")}}`));
    using file = SafetensorsFile.open(path);
    expect(file.tensors.size).toBe(65_536);
  });

  test("a folder, a missing file", () => {
    using folder = temporaryFolder();
    mkdirSync(folder.file("d"));
    expect(() => SafetensorsFile.open(folder.file("d"))).toThrow("not a regular file");
    expect(openBelow(folder.path)).toBe(0);
    expect(thrown(() => SafetensorsFile.open(folder.file("none")))).toBeInstanceOf(ModelNotFoundError);
  });
});

describe("a well-formed file", () => {
  test("edge cases of the format are accepted", () => {
    using folder = temporaryFolder();
    const path = folder.file("ok.safetensors");
    const accepted: [string, number][] = [
      ["{}", 0],
      ["{} \n\t\r", 0],
      ['{"__metadata__":{"a":"b"}}', 0],
      [`{"scalar":${entry("F32", [], 0, 4)}}`, 4],
      [`{"b":${entry("U8", [1], 0, 1)},"e":${entry("F32", [3, 0], 1, 1)},"f":${entry("I64", [0], 1, 1)}}`, 1],
      [`{"last":${entry("U8", [1], 2, 3)},"first":${entry("I16", [1], 0, 2)}}`, 3],
      [`{"four":${entry("F4", [4], 0, 2)},"f8":${entry("F8_E4M3", [2], 2, 4)}}`, 4],
      [`{"__proto__":${entry("BOOL", [1], 0, 1)}}`, 1],
      [`{"a:\\":\\\\":${entry("BOOL", [1], 0, 1)},"__metadata__":{"{[:":"\\"}}:"}}`, 1],
    ];
    for (const [header, bytes] of accepted) {
      writeFileSync(path, rawSafetensors(header, bytes));
      using file = SafetensorsFile.open(path);
      expect(file.tensors.size).toBeLessThanOrEqual(3);
    }
  });

  test("entries say where a tensor's bytes are", () => {
    using folder = temporaryFolder();
    const path = folder.file("ok.safetensors");
    writeFileSync(path, safetensors({ a: f32([2], [1, 2]), b: f32([3], [3, 4, 5]) }));
    using file = SafetensorsFile.open(path);
    expect([...file.tensors.keys()]).toEqual(["a", "b"]);
    expect(file.tensors.get("b")!.shape).toEqual([3]);
    const values = new Float32Array(3);
    readTensor(file, "b", values);
    expect([...values]).toEqual([3, 4, 5]);
  });

  test("a file that shrinks while it is read is an error; close() is safe to call twice", () => {
    using folder = temporaryFolder();
    const path = folder.file("ok.safetensors");
    const bytes = safetensors({ a: f32([100]) });
    writeFileSync(path, bytes);
    const file = SafetensorsFile.open(path);
    truncateSync(path, bytes.length - 8);
    const error = thrown(() => readTensor(file, "a", new Uint8Array(400)));
    expect(error).toBeInstanceOf(ModelDataError);
    expect((error as Error).message).toContain("became shorter");
    file.close();
    file.close();
    expect(() => readTensor(file, "a", new Uint8Array(400))).toThrow("after close()");
  });
});

test("no mutation of a header causes another error, or a tensor outside the file", () => {
  using folder = temporaryFolder();
  const path = folder.file("fuzz.safetensors");
  const valid = safetensors({
    a: f32([2, 3]),
    b: f32([4]),
    c: { dtype: "BF16", shape: [0, 8], data: new Uint8Array() },
  });
  const text = Buffer.from(valid).toString("latin1");
  const token = fc.constantFrom(
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "0",
    "-1",
    "1e9",
    "\\",
    "null",
    "9007199254740993",
  );
  const edit = fc.record({
    at: fc.nat(text.length),
    remove: fc.nat(6),
    insert: fc.oneof(token, fc.string()),
  });
  let accepted = 0;
  const check = (bytes: Uint8Array) => {
    writeFileSync(path, bytes);
    let file: SafetensorsFile;
    try {
      file = SafetensorsFile.open(path);
    } catch (error) {
      expect(error).toBeInstanceOf(ModelDataError);
      return;
    }
    accepted++;
    for (const [name, { begin, end }] of file.tensors) {
      expect(begin >= 8 && begin <= end && end <= bytes.length).toBe(true);
      readTensor(file, name, new Uint8Array(end - begin));
    }
    file.close();
  };
  fc.assert(
    fc.property(fc.array(edit, { maxLength: 4 }), fc.boolean(), (edits, keepLength) => {
      let mutated = text;
      for (const { at, remove, insert } of edits) {
        mutated = mutated.slice(0, at) + insert + mutated.slice(at + remove);
      }
      const bytes = Buffer.from(mutated, "latin1");
      // Most edits change the header's length: half of the runs correct the field, so that the JSON is reached.
      if (!keepLength && bytes.length >= 8)
        bytes.writeBigUInt64LE(BigInt(Math.max(0, mutated.lastIndexOf("}") + 1 - 8)));
      check(bytes);
    }),
    { numRuns: 1500, seed: 1 },
  );
  expect(accepted).toBeGreaterThan(0);
});

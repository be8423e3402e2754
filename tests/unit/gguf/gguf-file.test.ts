import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { GgufFile } from "../../../src/gguf/gguf-file.ts";
import { entry, f32, floats, gguf, opening, string, tensorInfo, u32, u64 } from "../../gguf-writer.ts";
import { cpuClock, openBelow, temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const join = (...parts: Uint8Array[]) => Buffer.concat(parts);
const oneEntry = (...value: Uint8Array[]) => join(opening(0, 1), string("k"), ...value);
/** A file of one tensor, whose header may say anything, and as many bytes of data. */
function oneTensor(info: Buffer, data: number): Buffer {
  const header = join(opening(1, 0), info);
  return join(header, Buffer.alloc(((32 - (header.length % 32)) % 32) + data));
}
const info = (type: number, shape: readonly number[], offset = 0) => tensorInfo("t", { type, shape }, offset);
const F32 = { type: 0, shape: [1] } as const;
const twoTensors = (first: number, second: number, data: number, name = "b") => {
  const header = join(opening(2, 0), tensorInfo("a", F32, first), tensorInfo(name, F32, second));
  return join(header, Buffer.alloc(((32 - (header.length % 32)) % 32) + data));
};

/** Each rule of the format, a file that breaks it, and what the message must say. */
const BROKEN: readonly [rule: string, bytes: Uint8Array, message: string][] = [
  ["empty file", new Uint8Array(0), "does not begin with GGUF"],
  ["three bytes", Buffer.from("GGU"), "does not begin with GGUF"],
  ["another magic", join(Buffer.from("GGML"), u32(3)), "does not begin with GGUF"],
  ["nothing but the magic", Buffer.from("GGUF"), "the file ends within the version"],
  ["no counts", join(Buffer.from("GGUF"), u32(3)), "ends within the number of tensors"],
  ["one count", join(Buffer.from("GGUF"), u32(3), u64(0)), "ends within the number of metadata entries"],
  ["2^64 − 1 tensors", opening(2n ** 64n - 1n, 0), "the number of tensors is"],
  ["65,537 tensors", opening(65_537, 0), "65537 tensors, at most 65536"],
  ["65,536 tensors that are not there", opening(65_536, 0), "ends within the length of the name of tensor 0"],
  ["2^63 entries", opening(0, 2n ** 63n), "the number of metadata entries is"],
  ["4,097 entries", opening(0, 4097), "4097 metadata entries, at most 4096"],
  [
    "a key of 2^63 bytes",
    join(opening(0, 1), u64(2n ** 63n)),
    "the length of the key of metadata entry 0 is",
  ],
  ["a key of 513 bytes", join(opening(0, 1), u64(513), Buffer.alloc(513)), "has 513 bytes, at most 512"],
  [
    "a key past the end",
    join(opening(0, 1), u64(9), Buffer.alloc(8)),
    "ends within the key of metadata entry 0",
  ],
  [
    "a key that is not UTF-8",
    join(opening(0, 1), string(Uint8Array.of(0xff)), u32(0), Buffer.alloc(1)),
    "not UTF-8",
  ],
  ["a key twice", join(opening(0, 2), entry("a\n", 1), entry("a\n", 2)), 'the key "a\\n" twice'],
  ["an unknown type", oneEntry(u32(13)), 'metadata "k" has the unknown type 13'],
  ["a type of 2^32 − 1", oneEntry(u32(2 ** 32 - 1)), "unknown type 4294967295"],
  ["a value past the end", oneEntry(u32(4), Buffer.alloc(3)), 'ends within metadata "k"'],
  ["neither true nor false", oneEntry(u32(7), Buffer.of(2)), "neither true nor false but 2"],
  ["a string past the end", oneEntry(u32(8), u64(100), Buffer.alloc(99)), 'ends within metadata "k"'],
  ["a string of 2^40 bytes", oneEntry(u32(8), u64(2 ** 40)), "at most 4194304 are allowed"],
  ["a string that is not UTF-8", oneEntry(u32(8), string(Uint8Array.of(0x61, 0xc0))), "is not UTF-8"],
  ["a list of 2^63 items", oneEntry(u32(9), u32(4), u64(2n ** 63n)), "the number of items"],
  ["a list of 2^24 + 1", oneEntry(u32(9), u32(0), u64(2 ** 24 + 1)), "at most 16777216 are allowed"],
  [
    "a list longer than the file",
    oneEntry(u32(9), u32(4), u64(3), Buffer.alloc(11)),
    "more than fit into the file",
  ],
  [
    "strings more than fit",
    oneEntry(u32(9), u32(8), u64(2), Buffer.alloc(15)),
    "more than fit into the file",
  ],
  ["a string of a list past the end", oneEntry(u32(9), u32(8), u64(1), u64(1)), 'ends within metadata "k"'],
  ["a list of lists", oneEntry(u32(9), u32(9), u64(0)), "list of lists"],
  ["a list of unknown items", oneEntry(u32(9), u32(99), u64(0)), "unknown item type 99"],
  ["alignment 0", gguf({ metadata: { "general.alignment": 0 } }), "general.alignment must be a power of two"],
  [
    "alignment 48",
    gguf({ metadata: { "general.alignment": 48 } }),
    "general.alignment must be a power of two",
  ],
  ["alignment 2^31", gguf({ metadata: { "general.alignment": 2 ** 31 } }), "from 8 to 65536, not 2147483648"],
  ["alignment a string", gguf({ metadata: { "general.alignment": "32" } }), 'must be a number, not "32"'],
  ["a name past the end", join(opening(1, 0), u64(5), Buffer.alloc(4)), "ends within the name of tensor 0"],
  ["a name of 513 bytes", join(opening(1, 0), u64(513), Buffer.alloc(600)), "has 513 bytes, at most 512"],
  ["rank 0", oneTensor(info(0, []), 4), 'tensor "t" has rank 0'],
  ["rank 5", oneTensor(info(0, [1, 1, 1, 1, 1]), 4), "has rank 5, allowed are 1 to 4"],
  ["rank 2^32 − 1", join(opening(1, 0), string("t"), u32(2 ** 32 - 1)), "has rank 4294967295"],
  ["a dimension of 0", oneTensor(info(0, [4, 0]), 4), "has a dimension of 0"],
  [
    "a dimension of 2^63",
    join(opening(1, 0), string("t"), u32(1), u64(2n ** 63n), u32(0), u64(0)),
    'a dimension of tensor "t" is',
  ],
  ["elements past 2^53", oneTensor(info(0, [2 ** 30, 2 ** 30]), 4), "more elements than can be addressed"],
  ["an unknown tensor type", oneTensor(info(99, [1]), 4), 'tensor "t" has the unknown type 99'],
  ["a removed tensor type", oneTensor(info(4, [32]), 32), "has the unknown type 4"],
  [
    "half a block",
    oneTensor(info(2, [3, 48]), 81),
    "rows of 48 elements, which are no whole blocks of 32 (Q4_0)",
  ],
  ["blocks across rows", oneTensor(info(12, [2, 128]), 144), "no whole blocks of 256 (Q4_K)"],
  [
    "an offset that is not aligned",
    oneTensor(info(0, [1], 16), 64),
    "the offset 16, no multiple of the alignment 32",
  ],
  ["an offset of 2^63", oneTensor(tensorInfo("t", F32, 2n ** 63n), 4), 'the offset of tensor "t" is'],
  ["a hole before the first", oneTensor(info(0, [1], 32), 64), "leaves a hole before it"],
  ["data past the file", oneTensor(info(0, [9]), 35), "ends at byte"],
  ["no data", oneTensor(info(0, [9]), 0), "but the file has"],
  ["bytes after the last tensor", oneTensor(info(0, [1]), 4 + 32), "32 bytes follow the last tensor"],
  ["bytes without tensors", join(gguf({}), Buffer.alloc(32)), "bytes follow the last tensor"],
  ["a hole between", twoTensors(0, 64, 68), 'tensor "b" leaves a hole before it'],
  ["an overlap", twoTensors(0, 0, 36), "overlaps the tensor before it"],
  ["a tensor twice", twoTensors(0, 32, 36, "a"), 'tensor "a" is there twice'],
];

function write(bytes: Uint8Array, name = "model.gguf") {
  const folder = temporaryFolder();
  const path = folder.file(name);
  writeFileSync(path, bytes);
  return { path, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

describe("a file that breaks a rule is refused", () => {
  test.each(BROKEN)("%s", (_rule, bytes, message) => {
    using file = write(bytes);
    const error = thrown(() => GgufFile.open(file.path)) as ModelDataError;
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
    expect(error.message).toStartWith(`${file.path}: `);
    expect(error.message).not.toContain("\n");
  });

  test.each([
    ["version 1", gguf({ version: 1 }), "version 1 of GGUF is not supported"],
    ["version 4", gguf({ version: 4 }), "version 4 of GGUF is not supported"],
    ["big-endian", gguf({ version: 0x3000000 }), "big-endian GGUF files are not supported"],
    ["a type of the future", oneTensor(info(99, [1]), 4), "has the unknown type 99; supported are F32, F16,"],
  ])("%s, by name", (_what, bytes, message) => {
    using file = write(bytes);
    const error = thrown(() => GgufFile.open(file.path)) as UnsupportedModelError;
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect(error.message).toContain(message);
  });

  test("items that are not UTF-8, or of another type, when they are asked for", () => {
    using file = write(oneEntry(u32(9), u32(8), u64(2), string("ok"), string(Uint8Array.of(0x80))));
    const list = GgufFile.header(file.path).metadata.list("k")!;
    expect(() => list.strings()).toThrow('item 1 of metadata "k" is not UTF-8');
    expect(() => list.numbers()).toThrow("a list of strings, not of numbers");
    using numbers = write(gguf({ metadata: { k: f32([1]) } }));
    expect(() => GgufFile.header(numbers.path).metadata.list("k")!.strings()).toThrow("a list of f32");
  });

  test("a folder, a missing file, a header of 128 MiB; nothing stays open", () => {
    using folder = temporaryFolder();
    mkdirSync(folder.file("d"));
    expect(() => GgufFile.open(folder.file("d"))).toThrow("not a regular file");
    expect(thrown(() => GgufFile.open(folder.file("none")))).toBeInstanceOf(ModelNotFoundError);
    const large = folder.file("large");
    writeFileSync(large, join(opening(0, 1), string("k"), u32(9), u32(10), u64(2 ** 24)));
    truncateSync(large, 2 ** 29);
    expect(() => GgufFile.open(large)).toThrow("lies beyond the first 134217728 bytes");
    expect(openBelow(folder.path)).toBe(0);
  });

  test("65,536 tensors are read in little time", () => {
    const infos = Array.from({ length: 65_536 }, (_, i) => tensorInfo(`t${i}`, F32, 32 * i));
    const header = join(opening(infos.length, 0), ...infos);
    const padding = (32 - (header.length % 32)) % 32;
    using file = write(join(header, Buffer.alloc(padding + 32 * infos.length)));
    const spent = cpuClock();
    expect(GgufFile.header(file.path).tensors.size).toBe(65_536);
    expect(spent()).toBeLessThan(2);
  });
});

const SAMPLE = gguf({
  metadata: {
    "general.architecture": "llama",
    ...{ int: { type: "i32", value: -7 }, wide: { type: "u64", value: 2 ** 40 } },
    ...{ double: { type: "f64", value: 0.1 }, yes: true, no: false, text: "naïve ▁" },
    ...{ tokens: ["a", "", "▁é"], types: { type: "i32", value: [1, -2, 3] }, none: f32([]) },
  },
  tensors: {
    a: floats([2, 3], [1, 2, 3, 4, 5, 6]),
    b: { type: 8, shape: [2, 32], data: new Uint8Array(68).fill(1) },
    c: floats([1], [9]),
  },
});

describe("a well-formed file", () => {
  test.each([2, 3])("version %d: metadata and tensors are what was written", (version) => {
    const bytes = Buffer.from(SAMPLE);
    bytes.writeUInt32LE(version, 4);
    using written = write(bytes);
    using file = GgufFile.open(written.path);
    const { metadata, tensors } = file.header;
    expect(metadata.number("int")).toBe(-7);
    expect(metadata.number("wide")).toBe(2 ** 40);
    expect(metadata.number("double")).toBe(0.1);
    expect([metadata.boolean("yes"), metadata.boolean("no")]).toEqual([true, false]);
    expect(metadata.string("text")).toBe("naïve ▁");
    expect(metadata.list("tokens")!.strings()).toEqual(["a", "", "▁é"]);
    expect(metadata.list("tokens")!.positionsOf(new Set(["▁é", "b", "a"]))).toEqual([0, 2]);
    expect(metadata.list("types")!.numbers()).toEqual([1, -2, 3]);
    expect(metadata.list("none")!.numbers()).toEqual([]);
    expect(metadata.number("absent")).toBeUndefined();
    expect(() => metadata.number("text")).toThrow('text must be a number, not "naïve ▁"');
    expect(() => metadata.list("int")).toThrow("int must be a list, not -7");
    expect(() => metadata.string("tokens")).toThrow("not a list of 3 items of type string");
    expect([...tensors.keys()]).toEqual(["a", "b", "c"]);
    expect(tensors.get("a")).toMatchObject({ type: "F32", shape: [2, 3] });
    expect(tensors.get("b")).toMatchObject({ type: "Q8_0", shape: [2, 32] });
    const c = tensors.get("c")!;
    expect(bytes.readFloatLE(c.begin)).toBe(9);
    expect(c.end - c.begin).toBe(4);
  });

  test("tensors in another order than their data; no padding at the end; a larger alignment", () => {
    const header = join(opening(2, 0), tensorInfo("late", F32, 32), tensorInfo("early", F32, 0));
    using file = write(join(header, Buffer.alloc(((32 - (header.length % 32)) % 32) + 36)));
    expect([...GgufFile.header(file.path).tensors.keys()]).toEqual(["early", "late"]);
    const input = {
      metadata: { "general.alignment": 256 },
      tensors: { a: floats([1], [1]), b: floats([1], [2]) },
    };
    using wide = write(gguf({ ...input, alignment: 256 }));
    const { a, b } = Object.fromEntries(GgufFile.header(wide.path).tensors);
    expect(b!.begin - a!.begin).toBe(256);
  });
});

/** Opens a file and asks for all that it holds. */
function readAll(path: string, size: number): void {
  using opened = GgufFile.open(path);
  const { metadata, tensors } = opened.header;
  for (const { begin, end } of tensors.values()) {
    if (!(begin >= 0 && begin < end && end <= size)) throw new Error(`[${begin}, ${end})`);
  }
  for (const key of ["tokens", "types", "none"]) {
    const value = metadata.get(key);
    if (typeof value !== "object") continue;
    if (value.itemType === "string") value.strings();
    else value.numbers();
  }
}

/** Tells if bytes are accepted; they must not cause any other error. */
function acceptor(folder: { file(name: string): string }): (bytes: Uint8Array) => boolean {
  const path = folder.file("model.gguf");
  return (bytes) => {
    writeFileSync(path, bytes);
    try {
      readAll(path, bytes.length);
      return true;
    } catch (error) {
      if (error instanceof ModelDataError) return false;
      throw error;
    }
  };
}

describe("hostile bytes cause typed errors only", () => {
  test("truncation at every byte", () => {
    using folder = temporaryFolder();
    const accepts = acceptor(folder);
    expect(accepts(SAMPLE)).toBe(true);
    // The padding of the last tensor may be missing.
    for (let length = 0; length < SAMPLE.length - 28; length++) {
      if (accepts(SAMPLE.subarray(0, length))) throw new Error(`${length} bytes were accepted`);
    }
  });

  test("flipped bytes, in bounded memory and time", () => {
    using folder = temporaryFolder();
    const accepts = acceptor(folder);
    const spent = cpuClock();
    const before = process.memoryUsage.rss();
    const flips = fc.array(fc.tuple(fc.nat(SAMPLE.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(flips, (changes) => {
        const bytes = Buffer.from(SAMPLE);
        for (const [at, value] of changes) bytes[at] = value;
        accepts(bytes);
      }),
      { numRuns: 20_000 },
    );
    expect(spent()).toBeLessThan(60);
    expect(process.memoryUsage.rss() - before).toBeLessThan(512 * 2 ** 20);
  });

  test("counts of every size in every place", () => {
    using folder = temporaryFolder();
    const accepts = acceptor(folder);
    for (let at = 8; at + 8 <= SAMPLE.length - 128; at++) {
      for (const value of [255n, 2n ** 24n, 2n ** 53n, 2n ** 64n - 1n]) {
        const bytes = Buffer.from(SAMPLE);
        bytes.writeBigUInt64LE(value, at);
        accepts(bytes);
      }
    }
  });
});

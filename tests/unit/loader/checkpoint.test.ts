import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { readFully } from "../../../src/base/read-fully.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import { f32, safetensors } from "./support.ts";

setDefaultTimeout(300_000);

const INDEX = "model.safetensors.index.json";

function writeIndex(folder: { file(name: string): string }, weightMap: unknown): void {
  writeFileSync(
    folder.file(INDEX),
    JSON.stringify({ metadata: { total_size: 1.5e9 }, weight_map: weightMap }),
  );
}

/** Files that this process has open. */
const numOpen = () => readdirSync("/proc/self/fd").length;

describe("Checkpoint.open", () => {
  test("a single file", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("model.safetensors"), safetensors({ a: f32([2]) }));
    using checkpoint = Checkpoint.open(folder.path);
    expect([...checkpoint.tensors.keys()]).toEqual(["a"]);
  });

  test("shards: each tensor is found in its file", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("x.safetensors"), safetensors({ a: f32([2]), b: f32([1]) }));
    writeFileSync(folder.file("y.safetensors"), safetensors({ c: f32([1], [7]) }));
    writeIndex(folder, { a: "x.safetensors", c: "y.safetensors", b: "x.safetensors" });
    using checkpoint = Checkpoint.open(folder.path);
    const c = checkpoint.tensors.get("c")!;
    const value = new Float32Array(1);
    readFully(c.file.path, c.file.fd, new Uint8Array(value.buffer), c.begin);
    expect(value[0]).toBe(7);
    expect(checkpoint.tensors.size).toBe(3);
  });

  test("the files are open until it is closed, twice if need be", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("x.safetensors"), safetensors({ a: f32([2]) }));
    writeFileSync(folder.file("y.safetensors"), safetensors({ c: f32([1]) }));
    writeIndex(folder, { a: "x.safetensors", c: "y.safetensors" });
    const before = numOpen();
    {
      using checkpoint = Checkpoint.open(folder.path);
      expect(numOpen()).toBe(before + 2);
      checkpoint[Symbol.dispose]();
      expect(numOpen()).toBe(before);
      expect(() => checkpoint.tensors.get("a")!.file.fd).toThrow("read after close()");
    }
    {
      using _ = Checkpoint.open(folder.path);
    }
    expect(numOpen()).toBe(before);
  });

  test("an index that is no text file of bearable size", () => {
    using folder = temporaryFolder();
    mkdirSync(folder.file(INDEX));
    expect(() => Checkpoint.open(folder.path)).toThrow("not a regular file");
    using large = temporaryFolder();
    writeFileSync(large.file(INDEX), "{}");
    truncateSync(large.file(INDEX), 64 * 2 ** 20 + 1);
    expect(() => Checkpoint.open(large.path)).toThrow("larger than 67108864 bytes");
    writeFileSync(large.file(INDEX), Uint8Array.of(0x22, 0xff, 0x22));
    expect(() => Checkpoint.open(large.path)).toThrow("cannot be read as UTF-8");
  });

  test("index and shards must say the same", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("x.safetensors"), safetensors({ a: f32([2]) }));
    writeFileSync(folder.file("y.safetensors"), safetensors({ a: f32([2]), c: f32([1]) }));
    const cases: [unknown, string][] = [
      [{ a: "x.safetensors", b: "x.safetensors" }, 'tensor "b" is not in x.safetensors'],
      [{ c: "y.safetensors" }, 'does not place tensor "a"'],
      [{ a: "x.safetensors", c: "y.safetensors" }, 'tensor "a" is also in x.safetensors'],
      [{ a: "none.safetensors" }, "none.safetensors does not exist"],
      [{}, "weight_map must map"],
      [[], "weight_map must map"],
      ["x.safetensors", "weight_map must map"],
      [["x.safetensors"], "weight_map must map"],
      [{ a: 1 }, 'shard name of "a"'],
    ];
    const before = numOpen();
    for (const [weightMap, message] of cases) {
      writeIndex(folder, weightMap);
      expect(() => Checkpoint.open(folder.path)).toThrow(message);
    }
    expect(numOpen()).toBe(before);
    // Of two places for one tensor the last one counts, and must be right like any other.
    writeFileSync(folder.file(INDEX), '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}');
    expect(() => Checkpoint.open(folder.path)).toThrow('does not place tensor "c"');
    for (const text of [
      "not json",
      "null",
      "[]",
      '"weight_map"',
      "{}",
      `{"weight_map":${"[".repeat(1e5)}${"]".repeat(1e5)}}`,
    ]) {
      writeFileSync(folder.file(INDEX), text);
      expect(thrown(() => Checkpoint.open(folder.path))).toBeInstanceOf(ModelDataError);
    }
  });

  test("shard names must stay inside the folder", () => {
    using folder = temporaryFolder();
    mkdirSync(folder.file("model"));
    const outside = folder.file("x.safetensors");
    writeFileSync(outside, safetensors({ a: f32([2]) }));
    symlinkSync(outside, folder.file("model/link.safetensors"));
    const model = { file: (name: string) => folder.file(`model/${name}`) };
    for (const name of [
      "../x.safetensors",
      outside,
      "sub/../../x.safetensors",
      "..\\x.safetensors",
      "x.bin",
    ]) {
      writeIndex(model, { a: name });
      const error = thrown(() => Checkpoint.open(folder.file("model")));
      expect(error).toBeInstanceOf(ModelDataError);
      expect((error as Error).message).toContain("does not stay inside");
    }
    writeIndex(model, { a: "link.safetensors" });
    expect(() => Checkpoint.open(folder.file("model"))).toThrow("a link to a file outside");
  });

  test("a FIFO and a device are refused without waiting", () => {
    using folder = temporaryFolder();
    expect(Bun.spawnSync(["mkfifo", folder.file("pipe.safetensors")]).exitCode).toBe(0);
    writeIndex(folder, { a: "pipe.safetensors" });
    expect(() => Checkpoint.open(folder.path)).toThrow("not a regular file");
    symlinkSync("/dev/zero", folder.file("zero.safetensors"));
    writeIndex(folder, { a: "zero.safetensors" });
    expect(() => Checkpoint.open(folder.path)).toThrow("outside the model folder");
    symlinkSync(folder.file("pipe.safetensors"), folder.file("model.safetensors"));
    expect(() => Checkpoint.open(folder.path)).toThrow("not a regular file");
  });

  test("a Hugging Face cache: links into the repository's own blobs, no others", () => {
    using folder = temporaryFolder();
    const snapshot = folder.file("models--o--n/snapshots/abc");
    for (const path of [snapshot, folder.file("models--o--n/blobs"), folder.file("models--o--m/blobs")])
      mkdirSync(path, { recursive: true });
    const bytes = safetensors({ a: f32([2]) });
    writeFileSync(folder.file("models--o--n/blobs/1234"), bytes);
    writeFileSync(folder.file("models--o--m/blobs/1234"), bytes);
    symlinkSync("../../blobs/1234", `${snapshot}/model.safetensors`);
    using checkpoint = Checkpoint.open(snapshot);
    expect(checkpoint.tensors.size).toBe(1);
    using linked = Checkpoint.open(snapshot.replace("abc", "../snapshots/abc"));
    expect(linked.tensors.size).toBe(1);

    const other = folder.file("models--o--n/snapshots/def");
    mkdirSync(other);
    symlinkSync("../../../models--o--m/blobs/1234", `${other}/model.safetensors`);
    expect(() => Checkpoint.open(other)).toThrow("outside the model folder");
  });

  test("pickled weights, no weights, no folder", () => {
    using folder = temporaryFolder();
    expect(thrown(() => Checkpoint.open(folder.path))).toBeInstanceOf(ModelNotFoundError);
    writeFileSync(folder.file("training_args.bin"), "");
    expect(thrown(() => Checkpoint.open(folder.path))).toBeInstanceOf(ModelNotFoundError);
    writeFileSync(folder.file("pytorch_model.bin"), "");
    const error = thrown(() => Checkpoint.open(folder.path));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toContain("pickle weights unsupported");
    expect(thrown(() => Checkpoint.open(folder.file("none")))).toBeInstanceOf(ModelNotFoundError);
  });
});

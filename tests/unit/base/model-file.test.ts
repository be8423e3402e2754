import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { ModelDataError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { findModelFile, readModelJson, readModelText } from "../../../src/base/model-file.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

/** A folder with a model folder in it. */
function modelFolder() {
  const outer = temporaryFolder();
  mkdirSync(outer.file("model"));
  return { outer, model: outer.file("model"), [Symbol.dispose]: () => outer[Symbol.dispose]() };
}

describe("a file of a model folder", () => {
  test("is read, or is not there", () => {
    using folder = modelFolder();
    const { model } = folder;
    writeFileSync(`${model}/a.json`, '{"é": 1}');
    expect(readModelText(model, "a.json", 100)).toBe('{"é": 1}');
    expect(readModelJson(model, "a.json", 100)).toEqual({ é: 1 });
    for (const read of [findModelFile, readModelText, readModelJson]) {
      expect(read(model, "b.json", 100)).toBeUndefined();
    }
  });

  test("may be a link within the folder, and the folder a link itself", () => {
    using folder = modelFolder();
    const { outer, model } = folder;
    mkdirSync(`${model}/sub`);
    writeFileSync(`${model}/sub/real`, "x");
    symlinkSync("sub/real", `${model}/link`);
    symlinkSync(model, outer.file("alias"));
    expect(readModelText(outer.file("alias"), "link", 100)).toBe("x");
  });

  test("is a link into the blobs of its own repository in a cache, and of no other", () => {
    using folder = temporaryFolder();
    const snapshot = folder.file("models--o--n/snapshots/abc");
    for (const path of [snapshot, folder.file("models--o--n/blobs"), folder.file("models--o--m/blobs")]) {
      mkdirSync(path, { recursive: true });
    }
    writeFileSync(folder.file("models--o--n/blobs/1"), "own");
    writeFileSync(folder.file("models--o--m/blobs/1"), "other's");
    symlinkSync("../../blobs/1", `${snapshot}/own`);
    symlinkSync("../../../models--o--m/blobs/1", `${snapshot}/other`);
    expect(readModelText(snapshot, "own", 100)).toBe("own");
    expect(() => findModelFile(snapshot, "other")).toThrow("outside the model folder");
  });

  test("is nothing else", () => {
    using folder = modelFolder();
    const { outer, model } = folder;
    writeFileSync(outer.file("secret"), "x");
    symlinkSync("../secret", `${model}/out`);
    symlinkSync("/dev/zero", `${model}/zero`);
    symlinkSync("nothing", `${model}/dangling`);
    mkdirSync(`${model}/folder`);
    expect(Bun.spawnSync(["mkfifo", `${model}/pipe`]).exitCode).toBe(0);
    symlinkSync("pipe", `${model}/linked-pipe`);
    for (const [name, reason] of [
      ["out", "outside the model folder"],
      ["../secret", "outside the model folder"],
      ["zero", "outside the model folder"],
      ["folder", "not a regular file"],
      ["pipe", "not a regular file"],
      ["linked-pipe", "not a regular file"],
    ]) {
      const error = thrown(() => findModelFile(model, name!));
      expect(error).toBeInstanceOf(ModelDataError);
      expect((error as Error).message).toContain(reason!);
    }
    expect(thrown(() => findModelFile(model, "dangling"))).toBeInstanceOf(ModelNotFoundError);
  });

  test("is of a size that can be read, UTF-8, and JSON where it must be", () => {
    using folder = modelFolder();
    const { model } = folder;
    writeFileSync(`${model}/sparse`, "");
    truncateSync(`${model}/sparse`, 2 ** 40);
    writeFileSync(`${model}/latin1`, Buffer.from([0xe9]));
    writeFileSync(`${model}/list`, "[]");
    writeFileSync(`${model}/broken`, "{");
    for (const [name, reason] of [
      ["sparse", "larger than 100 bytes"],
      ["latin1", "UTF-8"],
      ["list", "not a JSON object"],
      ["broken", "as JSON"],
    ]) {
      const error = thrown(() => readModelJson(model, name!, 100));
      expect(error).toBeInstanceOf(ModelDataError);
      expect((error as Error).message).toContain(reason!);
    }
  });
});

test("every file of a model is read so", async () => {
  const { readModelConfig } = await import("../../../src/models/config.ts");
  const { readGenerationConfig } = await import("../../../src/models/generation-config.ts");
  const { Tokenizer } = await import("../../../src/tokenizer/tokenizer.ts");
  const { Checkpoint } = await import("../../../src/loader/checkpoint.ts");
  using folder = temporaryFolder();
  const config = { vocabSize: 10, eosTokenIds: [] } as never;
  const readers: readonly (readonly [string, (model: string) => unknown])[] = [
    ["config.json", readModelConfig],
    ["generation_config.json", (model) => readGenerationConfig(model, config)],
    ["tokenizer.json", Tokenizer.load],
    ["tokenizer_config.json", Tokenizer.load],
    ["chat_template.jinja", Tokenizer.load],
    ["chat_template.json", Tokenizer.load],
    ["model.safetensors", Checkpoint.open],
    ["model.safetensors.index.json", Checkpoint.open],
  ];
  const tokenizer = JSON.stringify({
    model: { type: "BPE", vocab: {}, merges: [] },
    decoder: { type: "Fuse" },
  });
  for (const [i, [name, read]] of readers.entries()) {
    const path = folder.file(`${i}/${name}`);
    mkdirSync(dirname(path));
    if (name !== "tokenizer.json") writeFileSync(folder.file(`${i}/tokenizer.json`), tokenizer);
    symlinkSync("/dev/zero", path);
    const attempt = async () => await read(dirname(path));
    expect(attempt, name).toThrow("outside the model folder");
  }
});

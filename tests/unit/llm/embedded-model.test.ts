import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ModelNotFoundError } from "../../../src/base/errors.ts";
import { embeddedModel, unpacked } from "../../../src/llm/embedded-model.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

/** A folder of two files, and one to unpack it in. */
function prepared() {
  const folder = temporaryFolder();
  const source = folder.file("source");
  mkdirSync(source);
  writeFileSync(join(source, "config.json"), "{}");
  writeFileSync(join(source, "model.safetensors"), new Uint8Array([1, 2, 3]));
  return {
    source,
    cache: folder.file("cache/models"),
    other: folder.file("other"),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

describe("the embedded model", () => {
  test("of a source tree is read where it lies", () => {
    expect(embeddedModel()).toEndWith("models/tiny-stories");
    expect(statSync(join(embeddedModel(), "model.safetensors")).isFile()).toBe(true);
  });

  test("is unpacked once, for its user alone", () => {
    using at = prepared();
    const copy = unpacked(at.source, [at.cache]);
    expect(readdirSync(copy).sort()).toEqual(["config.json", "model.safetensors"]);
    expect(readFileSync(join(copy, "model.safetensors"))).toEqual(Buffer.from([1, 2, 3]));
    expect(statSync(at.cache).mode & 0o77).toBe(0);
    const { ino } = statSync(join(copy, "config.json"));
    expect(unpacked(at.source, [at.cache])).toBe(copy);
    expect(statSync(join(copy, "config.json")).ino).toBe(ino);
    expect(readdirSync(at.cache)).toHaveLength(1);
  });

  test("of another version is another", () => {
    using at = prepared();
    const copy = unpacked(at.source, [at.cache]);
    writeFileSync(join(at.source, "config.json"), "[]");
    expect(unpacked(at.source, [at.cache])).not.toBe(copy);
  });

  test("goes elsewhere where a folder cannot be made, or is open to others", () => {
    using at = prepared();
    writeFileSync(at.other, "a file");
    expect(unpacked(at.source, [join(at.other, "models"), at.cache])).toStartWith(at.cache);
    chmodSync(at.cache, 0o777);
    const error = thrown(() => unpacked(at.source, [join(at.other, "models"), at.cache]));
    expect(error).toBeInstanceOf(ModelNotFoundError);
    expect(error).toMatchObject({
      message: expect.stringMatching(/ENOTDIR.*written by others.*OCTAVO_CACHE_DIR/),
    });
  });
});

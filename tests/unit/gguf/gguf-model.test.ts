import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { ModelDataError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { GgufModel, isLaterPart } from "../../../src/gguf/gguf-model.ts";
import { floats, gguf, type TensorInput, type Value } from "../../gguf-writer.ts";
import { openBelow, temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const nameOf = (number: number, count: number) =>
  `m-${String(number).padStart(5, "0")}-of-${String(count).padStart(5, "0")}.gguf`;
const u16 = (value: number): Value => ({ type: "u16", value });

/** Writes a model of a tensor a part. @param change what a part has instead */
function split(
  folder: ReturnType<typeof temporaryFolder>,
  count: number,
  change: (part: number) => {
    readonly metadata?: Record<string, Value>;
    readonly tensors?: Record<string, TensorInput>;
  } = () => ({}),
): string {
  for (let part = 0; part < count; part++) {
    const { metadata, tensors } = change(part);
    const entries = {
      ...(part === 0 && { "general.architecture": "llama" }),
      ...{ "split.no": u16(part), "split.count": u16(count) },
      "split.tensors.count": { type: "i32", value: count } as Value,
      ...metadata,
    };
    const input = { metadata: entries, tensors: tensors ?? { [`t${part}`]: floats([1], [part]) } };
    writeFileSync(folder.file(nameOf(part + 1, count)), gguf(input));
  }
  return folder.file(nameOf(1, count));
}

describe("a model that is split among files", () => {
  test("is opened by its first: its metadata, the tensors of all, and every file until it is closed", () => {
    using folder = temporaryFolder();
    const path = split(folder, 3);
    {
      using model = GgufModel.open(path);
      expect(model.metadata.string("general.architecture")).toBe("llama");
      const places = [...model.tensors].map(([name, { file }]) => [name, file.path.split("/").at(-1)]);
      expect(places).toEqual([1, 2, 3].map((part) => [`t${part - 1}`, nameOf(part, 3)]));
      expect(openBelow(folder.path)).toBe(3);
    }
    expect(openBelow(folder.path)).toBe(0);
  });

  test("one file is a model, whatever it is called", () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("x"), gguf({ tensors: { a: floats([1], [1]) } }));
    using model = GgufModel.open(folder.file("x"));
    expect([...model.tensors.keys()]).toEqual(["a"]);
    expect([nameOf(1, 2), nameOf(2, 2), "model.gguf", "m-2-of-3.gguf"].map(isLaterPart)).toEqual([
      ...[false, true, false, false],
    ]);
  });

  test.each<[what: string, change: Parameters<typeof split>[2], message: string]>([
    [
      "a part of another number",
      (part) => (part === 1 ? { metadata: { "split.no": u16(2) } } : {}),
      "split.no must be 1",
    ],
    [
      "a part of another model",
      (part) => (part === 2 ? { metadata: { "split.count": u16(4) } } : {}),
      "split.count must be 3",
    ],
    [
      "a part that says nothing",
      (part) => (part === 1 ? { metadata: { "split.no": "1" } } : {}),
      "must be a number",
    ],
    ["a tensor twice", () => ({ tensors: { a: floats([1], [1]) } }), `tensor "a" is also in ${nameOf(1, 3)}`],
    [
      "a tensor less",
      (part) => (part === 1 ? { tensors: {} } : {}),
      "split.tensors.count is 3, but there are 2 tensors",
    ],
    [
      "no number of files",
      () => ({ metadata: { "split.count": u16(0) } }),
      "split.count must be a number of files",
    ],
    [
      "2,000 files",
      () => ({ metadata: { "split.count": u16(2000) } }),
      "a number of files from 1 to 1024, not 2000",
    ],
  ])("%s is refused, and nothing stays open", (_what, change, message) => {
    using folder = temporaryFolder();
    const path = split(folder, 3, change);
    const error = thrown(() => GgufModel.open(path)) as ModelDataError;
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
    expect(openBelow(folder.path)).toBe(0);
  });

  test("a later part, a name that is none of a part, a part that is missing or elsewhere", () => {
    using folder = temporaryFolder();
    split(folder, 2);
    const later = thrown(() => GgufModel.open(folder.file(nameOf(2, 2)))) as ModelDataError;
    expect(later.message).toContain(
      `part 1 of a model that is split among 2 files: the first must be named, such as ${nameOf(1, 2)}`,
    );
    const first = gguf({ metadata: { "split.no": u16(0), "split.count": u16(2) } });
    writeFileSync(folder.file("other.gguf"), first);
    const misnamed = thrown(() => GgufModel.open(folder.file("other.gguf"))) as ModelDataError;
    expect(misnamed.message).toContain("must be called other-00001-of-00002.gguf");
    unlinkSync(folder.file(nameOf(2, 2)));
    expect(thrown(() => GgufModel.open(folder.file(nameOf(1, 2))))).toBeInstanceOf(ModelNotFoundError);
    symlinkSync("/etc/passwd", folder.file(nameOf(2, 2)));
    const linked = thrown(() => GgufModel.open(folder.file(nameOf(1, 2)))) as ModelDataError;
    expect(linked.message).toContain("a link to a file outside");
  });
});

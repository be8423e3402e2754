import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { ConfigError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { cachedModel, cachedModels, removeCachedModels } from "../../../src/loader/cached-models.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const COMMIT = "c0ffee".padEnd(40, "0");

let folder: ReturnType<typeof temporaryFolder>;
let root: string;
beforeEach(() => {
  folder = temporaryFolder();
  root = folder.file("hub");
});
afterEach(() => folder[Symbol.dispose]());

function write(path: string, bytes: number): string {
  const file = join(root, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, new Uint8Array(bytes));
  return file;
}

/** A model as a download leaves it: whole, or with weights of which a part is missing. */
function put(id: string, weights: "whole" | "partial"): string {
  const model = `models--${id.replace("/", "--")}`;
  write(`${model}/blobs/a`, 10);
  write(`${model}/blobs/b${weights === "whole" ? "" : ".incomplete"}`, 100);
  const snapshot = join(root, model, "snapshots", COMMIT);
  mkdirSync(snapshot, { recursive: true });
  symlinkSync("../../blobs/a", join(snapshot, "config.json"));
  if (weights === "whole") symlinkSync("../../blobs/b", join(snapshot, "model.safetensors"));
  mkdirSync(join(root, model, "refs"));
  writeFileSync(join(root, model, "refs/main"), COMMIT);
  return join(root, model);
}

describe("a list", () => {
  test("has each model, by name, with what there is of it", () => {
    put("org/partial", "partial");
    const whole = put("org/whole", "whole");
    put("another/whole", "whole");
    const { length, 0: first, 1: partial, 2: last } = cachedModels(root);
    expect([length, first!.id]).toEqual([3, "another/whole"]);
    expect(partial).toMatchObject({ id: "org/partial", bytes: 150, partialBytes: 100, snapshots: [] });
    const snapshots = [join(whole, "snapshots", COMMIT)];
    expect(last).toMatchObject({ id: "org/whole", bytes: 150, partialBytes: 0, snapshots });
    expect(last!.modified).toEqual(statSync(join(whole, "snapshots")).mtime);
  });

  test("leaves out what is no model, and bears whatever lies there", () => {
    for (const name of ["datasets--a--b", "models--x", "models--..--y", "models--a--..", "other"])
      mkdirSync(join(root, name), { recursive: true });
    write("models--org--file", 3);
    symlinkSync("/nowhere", join(root, "models--org--dangling"));
    symlinkSync("models--org--loop", join(root, "models--org--loop"));
    mkdirSync(join(root, "models--org--empty"));
    expect(cachedModels(root)).toMatchObject([{ id: "org/empty", bytes: 0, snapshots: [] }]);
    expect(cachedModels(join(root, "absent"))).toEqual([]);
  });
});

describe("a removal", () => {
  test("takes all of a model, and nothing else", () => {
    put("org/whole", "whole");
    put("org/partial", "partial");
    const kept = put("org/kept", "whole");
    const removed = removeCachedModels(root, ["org/whole", "org/partial", "org/whole"]);
    expect(removed.map(({ id, bytes }) => [id, bytes])).toEqual([
      ["org/whole", 150],
      ["org/partial", 150],
    ]);
    expect(readdirSync(root)).toEqual(["models--org--kept"]);
    expect(readdirSync(join(kept, "blobs"))).toHaveLength(2);
  });

  test("does not follow links", () => {
    const outside = folder.file("outside");
    mkdirSync(outside);
    writeFileSync(join(outside, "precious"), "");
    symlinkSync(outside, join(put("org/links", "whole"), "snapshots", "outside"));
    symlinkSync(outside, join(root, "models--org--linked"));
    removeCachedModels(root, ["org/links"]);
    const error = thrown(() => removeCachedModels(root, ["org/linked"]));
    expect(error).toBeInstanceOf(ModelNotFoundError);
    expect(error).toMatchObject({ message: expect.stringContaining(`is a link to ${outside}`) });
    expect(readdirSync(outside)).toEqual(["precious"]);
  });

  test.each([
    ...[
      "",
      ".",
      "..",
      "../hub",
      "/",
      "/etc",
      "org",
      "org/..",
      "../org/whole",
      "org/../whole",
      "org/whole/snapshots",
    ],
    ...["org--whole", "models--org--whole", "org/whole\0", "org/who*le", "~/model", "-rf/x"],
  ])("refuses %j, which is no id", (name) => {
    put("org/whole", "whole");
    const error = thrown(() => removeCachedModels(root, ["org/whole", name]));
    expect(error).toBeInstanceOf(ModelNotFoundError);
    expect(error).toMatchObject({ message: expect.stringContaining("no Hugging Face id") });
    expect(cachedModel(root, "org/whole")!.snapshots).toHaveLength(1);
  });

  test("of one that is not there removes none", () => {
    put("org/whole", "whole");
    expect(thrown(() => removeCachedModels(root, ["org/whole", "org/absent"]))).toBeInstanceOf(
      ModelNotFoundError,
    );
    expect(cachedModel(root, "org/whole")!.snapshots).toHaveLength(1);
  });

  test.skipIf(!existsSync("/proc/self/fd"))("waits for a process that has it open, unless forced", () => {
    const model = put("org/loading", "partial");
    const file = openSync(join(model, "blobs/b.incomplete"), "r");
    try {
      const error = thrown(() => removeCachedModels(root, ["org/loading"]));
      expect(error).toBeInstanceOf(ConfigError);
      expect(error).toMatchObject({ message: expect.stringContaining(`in use by process ${process.pid}`) });
      expect(existsSync(model)).toBe(true);
      removeCachedModels(root, ["org/loading"], { force: true });
      expect(existsSync(model)).toBe(false);
    } finally {
      closeSync(file);
    }
  });
});

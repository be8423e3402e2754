import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import {
  ConfigError,
  DownloadError,
  ModelDataError,
  ModelNotFoundError,
  OctavoError,
  UnsupportedModelError,
} from "../../../src/base/errors.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import type { ResolveModelOptions } from "../../../src/loader/hub.ts";
import { resolveModel } from "../../../src/loader/resolve-model.ts";
import { eventually, temporaryFolder } from "../../support.ts";
import { HubServer } from "./hub-server.ts";
import { f32, safetensors } from "./support.ts";

setDefaultTimeout(300_000);

const MODEL = "org/Tiny-1.0";
const WEIGHTS = safetensors({ a: f32([50_000]) });
const SINGLE = {
  "config.json": Buffer.from('{"architectures":["X"]}'),
  "tokenizer.json": Buffer.from("{}"),
  "README.md": Buffer.from("read me"),
  "model.safetensors": WEIGHTS,
  "pytorch_model.bin": Buffer.alloc(2000),
  "consolidated.safetensors": Buffer.alloc(2000),
};
const VARIABLES = ["HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"];
VARIABLES.push("HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE");

let folder: ReturnType<typeof temporaryFolder>;
let saved: (string | undefined)[];

beforeEach(() => {
  folder = temporaryFolder();
  saved = VARIABLES.map((name) => process.env[name]);
  for (const name of VARIABLES) delete process.env[name];
  process.env["HOME"] = folder.path;
  process.env["HF_HOME"] = folder.file("hf");
});

afterEach(() => {
  for (const [i, name] of VARIABLES.entries()) {
    if (saved[i] === undefined) delete process.env[name];
    else process.env[name] = saved[i];
  }
  folder[Symbol.dispose]();
});

function serve(files: Record<string, Uint8Array> = SINGLE): HubServer {
  const server = new HubServer(MODEL, files);
  process.env["HF_ENDPOINT"] = `${server.endpoint}/`;
  server.arrived = (bytes) => eventually(() => incompleteBytes() >= bytes);
  return server;
}

/** Bytes of the file that is being downloaded. */
function incompleteBytes(): number {
  const blobs = join(repository(), "blobs");
  const name = readdirSync(blobs).find((name) => name.endsWith(".incomplete"));
  return name === undefined ? 0 : statSync(join(blobs, name)).size;
}

const repository = () => folder.file("hf/hub/models--org--Tiny-1.0");

async function failure(model: string, options?: ResolveModelOptions): Promise<OctavoError> {
  const error: unknown = await resolveModel(model, options).then(
    (path) => path,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(OctavoError);
  expect((error as OctavoError).message).not.toContain("\n");
  return error as OctavoError;
}

describe("a name that needs no hub", () => {
  test("an existing folder is itself; a missing path is not looked for on the hub", async () => {
    using server = serve();
    mkdirSync(folder.file("model"));
    expect(await resolveModel(folder.file("model"))).toBe(folder.file("model"));
    for (const path of ["./none", "../none", "/etc/passwd/x", "~/none", "a".repeat(5000), "a\0b"])
      expect(await failure(path)).toBeInstanceOf(ModelNotFoundError);
    writeFileSync(folder.file("file"), "");
    expect((await failure(folder.file("file"))).message).toContain("neither a model folder nor a GGUF file");
    expect(server.requests).toEqual([]);
  });

  test("a GGUF file is itself, whatever it is called, and so is the only one of a folder", async () => {
    using server = serve();
    const [alone, several] = [folder.file("alone"), folder.file("several")];
    for (const path of [alone, several]) mkdirSync(path);
    for (const name of ["a.gguf", "b.gguf"]) writeFileSync(join(several, name), "GGUF");
    writeFileSync(join(alone, "model.gguf"), "GGUF");
    writeFileSync(join(alone, "README.md"), "");
    writeFileSync(folder.file("sha256-1"), "GGUF");
    expect(await resolveModel(folder.file("sha256-1"))).toBe(folder.file("sha256-1"));
    expect(await resolveModel(join(alone, "model.gguf"))).toBe(join(alone, "model.gguf"));
    expect(await resolveModel(alone)).toBe(join(alone, "model.gguf"));
    const error = await failure(several);
    expect(error).toBeInstanceOf(ModelNotFoundError);
    expect(error.message).toContain("has several GGUF files (a.gguf, b.gguf); name one of them");
    mkdirSync(folder.file("split"));
    for (const part of [1, 2]) writeFileSync(folder.file(`split/m-0000${part}-of-00002.gguf`), "GGUF");
    expect(await resolveModel(folder.file("split"))).toBe(folder.file("split/m-00001-of-00002.gguf"));
    writeFileSync(join(several, "config.json"), "{}");
    expect(await resolveModel(several)).toBe(several);
    expect(() => Checkpoint.open(several)).toThrow("it has GGUF files: name one, such as");
    expect(await failure("org/name.gguf")).toBeInstanceOf(ModelNotFoundError);
    mkdirSync(folder.file("linked"));
    symlinkSync("/etc/passwd", join(folder.file("linked"), "x.gguf"));
    expect(await failure(folder.file("linked"))).toBeInstanceOf(ModelDataError);
    expect(server.requests).toEqual([]);
  });

  test("malformed ids and revisions", async () => {
    using server = serve();
    for (const id of [
      "",
      "name",
      "a/b/c",
      "a/..",
      "-a/b",
      "a/b--c",
      "a b/c",
      "a/b.",
      `a/${"b".repeat(97)}`,
      "a/b\n",
    ])
      expect(await failure(id)).toBeInstanceOf(ModelNotFoundError);
    for (const revision of ["../x", "", "a//b", "a b", "/x"])
      expect(await failure(MODEL, { revision })).toBeInstanceOf(ConfigError);
    expect(server.requests).toEqual([]);
  });
});

describe("download", () => {
  test("what is needed goes to the cache, laid out as Python's", async () => {
    using server = serve();
    process.env["HF_TOKEN"] = "secret";
    const progress: [number, number][] = [];
    const path = await resolveModel(MODEL, { onProgress: (...now) => progress.push(now) });
    expect(path).toBe(join(repository(), "snapshots", server.commit));
    expect(readdirSync(path).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(readlinkSync(join(path, "model.safetensors"))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
    expect(readFileSync(join(repository(), "refs/main"), "utf8")).toBe(server.commit);
    expect(readFileSync(join(path, "model.safetensors")).equals(WEIGHTS)).toBe(true);
    expect(progress.at(-1)).toEqual([WEIGHTS.length, WEIGHTS.length]);
    using checkpoint = Checkpoint.open(path);
    expect(checkpoint.tensors.size).toBe(1);
    expect(server.requests.every((request) => request.authorization === "Bearer secret")).toBe(true);
    expect(server.contentRequests.map((request) => request.authorization)).toEqual([null]);
  });

  test("a second run lists the files and downloads nothing", async () => {
    using server = serve();
    const first = await resolveModel(MODEL);
    server.requests.length = 0;
    server.contentRequests.length = 0;
    const progress: number[] = [];
    expect(await resolveModel(MODEL, { onProgress: (loaded) => progress.push(loaded) })).toBe(first);
    expect(server.requests.map((request) => request.path.split("/")[1])).toEqual(["api", "api"]);
    expect(server.contentRequests).toEqual([]);
    expect(progress).toEqual([]);
  });

  test("files of their own that say how weights are quantised", async () => {
    const names = ["hf_quant_config.json", "quantize_config.json", "quant_config.json"];
    using server = serve({
      ...SINGLE,
      ...Object.fromEntries(names.map((name) => [name, Buffer.from("{}")])),
    });
    expect(readdirSync(await resolveModel(MODEL))).toEqual(expect.arrayContaining(names));
    expect(server.requests.length).toBeGreaterThan(0);
  });

  test("shards named by the index, four at a time", async () => {
    const names = Array.from({ length: 9 }, (_, i) => `model-${i}.safetensors`);
    const shards = names.map((name, i) => [name, safetensors({ [`t${i}`]: f32([1000]) })] as const);
    const map = Object.fromEntries(names.map((name, i) => [`t${i}`, name]));
    const index = Buffer.from(JSON.stringify({ weight_map: map }));
    const files = { "config.json": SINGLE["config.json"], "model.safetensors.index.json": index };
    using server = serve({ ...files, ...Object.fromEntries(shards), "other.safetensors": WEIGHTS });
    server.atOnce = 4;
    using checkpoint = Checkpoint.open(await resolveModel(MODEL));
    expect(checkpoint.tensors.size).toBe(9);
    expect(server.contentRequests.length).toBe(9);
    expect(server.mostActive).toBe(4);
  });

  test("a connection that drops is continued where it stopped, in the same call", async () => {
    using server = serve();
    server.cuts.push(60_000, 70_000);
    const path = await resolveModel(MODEL);
    expect(readFileSync(join(path, "model.safetensors")).equals(WEIGHTS)).toBe(true);
    const starts = server.contentRequests.map(({ range }) => Number(range?.match(/bytes=(\d+)-/)?.[1]));
    expect(starts[0]).toBe(0);
    expect(starts[1]).toBeGreaterThan(0);
    expect(starts[2]).toBeGreaterThan(starts[1]!);
  });

  test("a download that was given up is continued by the next one", async () => {
    using server = serve();
    server.cuts.push(60_000);
    const refuse = (loaded: number) => {
      if (loaded > 0) server.refuseWith = 403;
    };
    expect(await failure(MODEL, { onProgress: refuse })).toBeInstanceOf(DownloadError);
    const blobs = readdirSync(join(repository(), "blobs"));
    expect(blobs.filter((name) => name.endsWith(".incomplete")).length).toBe(1);
    expect(existsSync(join(repository(), "refs/main"))).toBe(false);

    server.refuseWith = undefined;
    server.contentRequests.length = 0;
    const path = await resolveModel(MODEL);
    expect(server.contentRequests.map(({ range }) => range)).toEqual(["bytes=60000-"]);
    expect(readFileSync(join(path, "model.safetensors")).equals(WEIGHTS)).toBe(true);
  });

  test("a server that ignores Range sends the file anew", async () => {
    using server = serve();
    server.cuts.push(60_000);
    server.ignoreRange = true;
    const path = await resolveModel(MODEL);
    expect(server.contentRequests.map(({ range }) => range)).toEqual(["bytes=0-", "bytes=60000-"]);
    expect(readFileSync(join(path, "model.safetensors")).equals(WEIGHTS)).toBe(true);
  });

  test("other bytes than the hub promised are thrown away", async () => {
    using server = serve();
    server.corrupt = true;
    expect((await failure(MODEL)).message).toContain("checksum");
    expect(readdirSync(join(repository(), "blobs")).filter((name) => name.length > 40)).toEqual([]);
    server.corrupt = false;
    expect(await resolveModel(MODEL)).toContain(server.commit);
  });

  test("two downloads of one model at once", async () => {
    using _server = serve();
    const [first, second] = await Promise.all([resolveModel(MODEL), resolveModel(MODEL)]);
    expect(first).toBe(second);
    expect(readFileSync(join(first, "model.safetensors")).equals(WEIGHTS)).toBe(true);
  });

  test("downloadDir replaces the cache's folder", async () => {
    using _server = serve();
    const path = await resolveModel(MODEL, { downloadDir: folder.file("elsewhere") });
    expect(path).toStartWith(folder.file("elsewhere/models--org--Tiny-1.0/snapshots/"));
    expect(lstatSync(join(path, "config.json")).isSymbolicLink()).toBe(true);
  });
});

describe("what the hub refuses", () => {
  test("gated, missing, failing", async () => {
    using server = serve();
    const cases: [number, string][] = [
      [401, "set HF_TOKEN"],
      [403, "set HF_TOKEN"],
      [404, `has no model ${MODEL} at revision main`],
      [500, "HTTP 500"],
    ];
    for (const [status, message] of cases) {
      server.refuseWith = status;
      const error = (await failure(MODEL)) as DownloadError;
      expect(error).toBeInstanceOf(DownloadError);
      expect(error.status).toBe(status);
      expect(error.message).toContain(message);
      expect(error.message).toContain(MODEL);
    }
  });

  test("a model with pickled weights only is refused before anything is downloaded", async () => {
    const { "model.safetensors": _, "consolidated.safetensors": __, ...files } = SINGLE;
    using _server = serve(files);
    expect(await failure(MODEL)).toBeInstanceOf(UnsupportedModelError);
    expect(existsSync(repository())).toBe(false);
  });

  test("no hub at all", async () => {
    const server = serve();
    const { endpoint } = server;
    server[Symbol.dispose]();
    const error = (await failure(MODEL)) as DownloadError;
    expect(error).toBeInstanceOf(DownloadError);
    expect(error.status).toBeUndefined();
    expect(error.message).toContain(endpoint);
  });
});

describe("without a network", () => {
  test("offline: the cache when it is complete, else an error that says what to do", async () => {
    using server = serve();
    const path = await resolveModel(MODEL);
    server.requests.length = 0;
    process.env["HF_HUB_OFFLINE"] = "1";
    expect(await resolveModel(MODEL)).toBe(path);
    expect(await resolveModel(MODEL, { revision: server.commit })).toBe(path);
    const other = await failure("org/other");
    expect(other).toBeInstanceOf(DownloadError);
    expect(other.message).toContain("unset HF_HUB_OFFLINE");

    rmSync(join(path, "model.safetensors"));
    expect((await failure(MODEL)).message).toContain("is not complete");
    expect(server.requests).toEqual([]);
  });

  test("a complete cache serves when the hub gives no reply", async () => {
    const server = serve();
    const path = await resolveModel(MODEL);
    server[Symbol.dispose]();
    expect(await resolveModel(MODEL)).toBe(path);
  });
});

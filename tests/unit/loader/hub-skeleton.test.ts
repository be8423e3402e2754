import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { DownloadError, ModelDataError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { inspectModel } from "../../../src/llm/inspect-model.ts";
import { writeHubSkeleton } from "../../../src/loader/hub-skeleton.ts";
import { temporaryFolder } from "../../support.ts";
import { HubServer } from "./hub-server.ts";

setDefaultTimeout(300_000);

const MODEL = join(import.meta.dir, "../../../models/tiny-stories");
const FILES = Object.fromEntries(readdirSync(MODEL).map((name) => [name, readFileSync(join(MODEL, name))]));

let folder: ReturnType<typeof temporaryFolder>;
const before = { ...process.env };
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => {
  folder[Symbol.dispose]();
  for (const name of ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"]) {
    if (before[name] === undefined) delete process.env[name];
    else process.env[name] = before[name];
  }
});

function hubOf(files: Readonly<Record<string, Uint8Array>>): HubServer {
  const hub = new HubServer("org/model", files);
  Object.assign(process.env, { HF_ENDPOINT: hub.endpoint, HF_TOKEN: "", HF_HUB_OFFLINE: "" });
  return hub;
}

describe("a model of which only the beginning is fetched", () => {
  test("tells as much as the whole", async () => {
    using hub = hubOf(FILES);
    await writeHubSkeleton("org/model", folder.path);
    expect(await inspectModel(folder.path)).toEqual(await inspectModel(MODEL));
    const weights = folder.file("model.safetensors");
    expect(statSync(weights).size).toBe(FILES["model.safetensors"]!.length);
    const [stored, header] = [FILES["model.safetensors"]!, readFileSync(weights)];
    const length = 8 + Number(stored.readBigUInt64LE(0));
    expect(header.subarray(0, length)).toEqual(stored.subarray(0, length));
    expect(header.subarray(length).every((byte) => byte === 0)).toBe(true);
    expect(hub.contentRequests.find(({ path }) => path === "/model.safetensors")?.range).toBe(
      "bytes=0-1048575",
    );
    // README.md is no part of a model.
    expect(readdirSync(folder.path)).not.toContain("README.md");
  });

  test("with a header of more than a first request brings, in shards", async () => {
    const name = "model-00001-of-00001.safetensors";
    const text = JSON.stringify({ __metadata__: { note: "n".repeat(2 ** 20) } });
    const shard = Buffer.alloc(8 + text.length);
    shard.writeBigUInt64LE(BigInt(text.length));
    shard.write(text, 8);
    const index = Buffer.from(JSON.stringify({ weight_map: { a: name } }));
    using hub = hubOf({
      "config.json": Buffer.from("{}"),
      "model.safetensors.index.json": index,
      [name]: shard,
    });
    await writeHubSkeleton("org/model", folder.path);
    expect(readFileSync(folder.file(name))).toEqual(shard);
    expect(hub.contentRequests).toHaveLength(2);
  });

  test("that claims a header beyond bounds, is gated, absent or offline, is refused", async () => {
    const weights = Buffer.alloc(2000, 0xff);
    using hub = hubOf({ "config.json": Buffer.from("{}"), "model.safetensors": weights });
    const refusal = (): Promise<unknown> =>
      writeHubSkeleton("org/model", folder.path).catch((error: unknown) => error);
    expect(await refusal()).toBeInstanceOf(ModelDataError);
    hub.refuseWith = 403;
    expect(await refusal()).toMatchObject({ status: 403, message: expect.stringContaining("gated") });
    process.env["HF_HUB_OFFLINE"] = "1";
    expect(await refusal()).toBeInstanceOf(DownloadError);
    using other = hubOf({ "config.json": Buffer.from("{}") });
    expect(await refusal()).toBeInstanceOf(ModelNotFoundError);
    expect(other.contentRequests).toEqual([]);
  });
});

import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryFolder } from "../unit/loader/support.ts";

const ROOT = join(import.meta.dir, "../..");
export const MODEL = join(ROOT, "models", "tiny-stories");

export interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts `bun run generate.ts` with these arguments. */
export function start(args: readonly string[], stdin: "ignore" | Blob = "ignore") {
  return Bun.spawn([process.execPath, "run", join(ROOT, "generate.ts"), ...args], {
    ...{ stdin, stdout: "pipe", stderr: "pipe" },
    // Where there are GPUs, these tests see none.
    env: { ...process.env, CUDA_VISIBLE_DEVICES: "", NO_COLOR: "1" },
  });
}

/** Runs `bun run generate.ts` to its end. */
export async function generate(args: readonly string[], stdin?: string): Promise<Result> {
  const child = start(args, stdin === undefined ? "ignore" : new Blob([stdin]));
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

const FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/** A copy of the embedded model, to be spoilt. */
export function modelCopy(change: {
  readonly config?: (config: Record<string, unknown>) => unknown;
  /** Takes the weight file and returns what replaces it. */
  readonly weights?: (file: Buffer) => Uint8Array;
}) {
  const folder = temporaryFolder();
  for (const name of FILES) cpSync(join(MODEL, name), folder.file(name));
  if (change.config) {
    const config = change.config(JSON.parse(readFileSync(folder.file("config.json"), "utf8")));
    writeFileSync(folder.file("config.json"), typeof config === "string" ? config : JSON.stringify(config));
  }
  const weights = readFileSync(join(MODEL, "model.safetensors"));
  writeFileSync(folder.file("model.safetensors"), change.weights?.(weights) ?? weights);
  return folder;
}

/** Byte range of a tensor in a safetensors file. */
export function tensorRange(file: Buffer, name: string): readonly [start: number, end: number] {
  const dataStart = 8 + Number(file.readBigUInt64LE(0));
  const [start, end] = JSON.parse(file.toString("utf8", 8, dataStart))[name].data_offsets;
  return [dataStart + start, dataStart + end];
}

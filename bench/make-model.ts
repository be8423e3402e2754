/**
 * Writes a checkpoint of random bfloat16 weights in the shapes of a config, for timing how real files load.
 *
 *   bun run bench/make-model.ts CONFIG_DIR OUT_DIR
 *
 * CONFIG_DIR's other JSON files, such as a tokenizer, are copied.
 */
import { closeSync, cpSync, mkdirSync, openSync, readdirSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { ParameterSpec } from "../src/base/parameter-spec.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { readModelConfig } from "../src/models/config.ts";
import { defineModel } from "../src/models/registry.ts";

const BLOCK_ELEMENTS = 2 ** 22;
const ONE = 0x3f80;

if (import.meta.main) {
  const command = createCommand("make-model")
    .description("Writes a checkpoint of random weights in the shapes of a config.")
    .argument("<config>", "folder with the config")
    .argument("<out>", "folder to write to");
  command.action((configFolder: string, outFolder: string) => {
    const bytes = makeModel(configFolder, outFolder);
    console.log(`wrote ${(bytes / 2 ** 20).toFixed(0)} MiB to ${outFolder}`);
  });
  await runCommand(command, process.argv.slice(2));
}

/** @returns bytes of all tensors. */
export function makeModel(configFolder: string, outFolder: string): number {
  const { parameters } = defineModel(readModelConfig(configFolder));
  mkdirSync(outFolder, { recursive: true });
  for (const name of readdirSync(configFolder)) {
    if (name.endsWith(".json")) cpSync(join(configFolder, name), join(outFolder, name));
  }

  const tensors = parameters.flatMap(({ sources, dummy }) => sources.map((source) => ({ ...source, dummy })));
  const header: Record<string, object> = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const { name, shape } of tensors) {
    const start = end;
    end += 2 * elements(shape);
    header[name] = { dtype: "BF16", shape, data_offsets: [start, end] };
  }
  const json = JSON.stringify(header);
  const text = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));

  // Numbers are for the scales of quantised weights, of which a config's floats have none.
  const blocks: Record<Exclude<ParameterSpec["dummy"], number>, Uint16Array> = {
    normal: randomBlock(),
    ones: new Uint16Array(BLOCK_ELEMENTS).fill(ONE),
    zeros: new Uint16Array(BLOCK_ELEMENTS),
  };
  const file = openSync(join(outFolder, "model.safetensors"), "w");
  try {
    for (const part of [length, text]) writeAll(file, part);
    for (const { shape, dummy } of tensors) {
      for (let left = elements(shape); left > 0; left -= BLOCK_ELEMENTS) {
        const part = blocks[dummy as keyof typeof blocks].subarray(0, Math.min(left, BLOCK_ELEMENTS));
        writeAll(file, new Uint8Array(part.buffer, 0, part.byteLength));
      }
    }
  } finally {
    closeSync(file);
  }
  return end;
}

/** Values of either sign between 1/64 and 1/32: random sign and fraction, the exponent of 2⁻⁶. */
function randomBlock(): Uint16Array {
  const block = new Uint16Array(BLOCK_ELEMENTS);
  for (let at = 0; at < block.length; at += 2 ** 15) crypto.getRandomValues(block.subarray(at, at + 2 ** 15));
  return block.map((bits) => (bits & 0x807f) | ((127 - 6) << 7));
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

function writeAll(file: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
}

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { BLOCK_TYPES, blockOf, dequantize } from "../../../src/gguf/dequantize.ts";
import blocks from "./fixtures/blocks.json";

setDefaultTimeout(300_000);

describe("blocks stand for what the package gguf makes of them, to the bit", () => {
  test.each([...BLOCK_TYPES])("%s", (type) => {
    const source = Buffer.from(blocks[type].blocks, "base64");
    const expected = new Uint8Array(Buffer.from(blocks[type].values, "base64"));
    const { elements, bytes } = blockOf(type);
    const values = new Float32Array((source.length / bytes) * elements);
    dequantize(source, type, values);
    // Compared as bits, which tells −0 from 0.
    const [found, wanted] = [new Uint32Array(values.buffer), new Uint32Array(expected.buffer)];
    expect(found.length).toBe(wanted.length);
    expect(found.findIndex((bits, i) => bits !== wanted[i])).toBe(-1);
  });

  test("every type has a fixture", () => {
    expect(Object.keys(blocks).sort()).toEqual([...BLOCK_TYPES].sort());
  });
});

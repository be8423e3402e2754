import { UnsupportedModelError } from "../base/errors.ts";

/** How a vocabulary spells bytes, read from the `decoder` of tokenizer.json. */
export interface TokenBytes {
  /** The bytes that `token` stands for. `added` tokens of a byte-level vocabulary are spelled literally. */
  of(token: string, added: boolean): Uint8Array<ArrayBuffer>;
  /** How many spaces are dropped from the very start of a decoded text. */
  readonly leadingSpaces: number;
}

interface DecoderConfig {
  readonly type?: unknown;
  readonly [field: string]: unknown;
}

const encoder = new TextEncoder();
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

/**
 * Byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece ones ("▁" for a space, `<0xNN>` for a byte).
 * @throws UnsupportedModelError naming `file` for any other decoder
 */
export function tokenBytes(decoder: unknown, file: string): TokenBytes {
  const steps = flatten(decoder);
  const unsupported = (step: DecoderConfig): never => {
    throw new UnsupportedModelError(file, `decoder ${JSON.stringify(step)} is not supported`);
  };
  if (steps.length === 0)
    throw new UnsupportedModelError(file, "a tokenizer without a decoder is not supported");
  if (steps.some((step) => step.type === "ByteLevel")) {
    if (steps.length > 1) unsupported(steps[0]!);
    const byteOf = byteLevelAlphabet();
    return {
      of: (token, added) => (added ? encoder.encode(token) : fromAlphabet(token, byteOf)),
      leadingSpaces: 0,
    };
  }

  const replacements: [string, string][] = [];
  let byteFallback = false;
  let leadingSpaces = 0;
  for (const step of steps) {
    if (step.type === "Replace") {
      const pattern = (step.pattern as { String?: unknown } | undefined)?.String;
      if (typeof pattern !== "string" || typeof step.content !== "string") unsupported(step);
      replacements.push([pattern as string, step.content as string]);
    } else if (step.type === "Strip") {
      const { content, start, stop } = step;
      if (content !== " " || !Number.isSafeInteger(start) || (start as number) < 0 || stop !== 0)
        unsupported(step);
      leadingSpaces = start as number;
    } else if (step.type === "Metaspace") {
      replacements.push([typeof step.replacement === "string" ? step.replacement : "▁", " "]);
      const never = step.prepend_scheme === "never" || step.add_prefix_space === false;
      leadingSpaces = never ? 0 : 1;
    } else if (step.type === "ByteFallback") byteFallback = true;
    else if (step.type !== "Fuse") unsupported(step);
  }
  return {
    of(token) {
      const byte = byteFallback ? BYTE_TOKEN.exec(token)?.[1] : undefined;
      if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
      return encoder.encode(replacements.reduce((text, [from, to]) => text.replaceAll(from, to), token));
    },
    leadingSpaces,
  };
}

function flatten(decoder: unknown): DecoderConfig[] {
  if (typeof decoder !== "object" || decoder === null) return [];
  const { type, decoders } = decoder as { type?: unknown; decoders?: unknown };
  return type === "Sequence" && Array.isArray(decoders) ? decoders.flatMap(flatten) : [{ ...decoder }];
}

/** The inverse of GPT-2's byte alphabet: printable bytes stand for themselves, the others for U+0100 onwards. */
function byteLevelAlphabet(): Map<string, number> {
  const byteOf = new Map<string, number>();
  let stand = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
    byteOf.set(String.fromCharCode(printable ? byte : stand++), byte);
  }
  return byteOf;
}

/** A token with a character outside the alphabet is spelled literally. */
function fromAlphabet(token: string, byteOf: ReadonlyMap<string, number>): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = byteOf.get(token[i]!);
    if (byte === undefined) return encoder.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

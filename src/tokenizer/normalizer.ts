import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { toAlphabet } from "./byte-alphabet.ts";
import { compilePattern } from "./pattern/pattern.ts";

export type Normalizer = (text: string) => string;

/** A step of tokenizer.json: an object with a type. */
export type Step = Readonly<Record<string, unknown>>;

const LEADING = /^\p{White_Space}+/u;
const TRAILING = /\p{White_Space}+$/u;

/**
 * What happens to a text before it is split, as `tokenizers` does it.
 * @throws ModelDataError or UnsupportedModelError naming `file`
 */
export function compileNormalizer(config: unknown, file: string): Normalizer {
  const steps = flattenSteps(config, "normalizers", file).map((step) => compileStep(step, file));
  return (text) => steps.reduce((current, step) => step(current), text);
}

/** A step, or those of a `Sequence`, in order; none for null. */
export function flattenSteps(config: unknown, list: string, file: string, depth = 0): Step[] {
  if (config === undefined || config === null) return [];
  const step = config as Step;
  if (typeof config !== "object" || typeof step["type"] !== "string" || depth > 16) {
    throw new ModelDataError(file, `${JSON.stringify(config).slice(0, 100)} is not a step with a type`);
  }
  if (step["type"] !== "Sequence") return [step];
  const inner = step[list];
  if (!Array.isArray(inner)) throw new ModelDataError(file, `a Sequence has no ${list}`);
  return inner.flatMap((each) => flattenSteps(each, list, file, depth + 1));
}

function compileStep(step: Step, file: string): Normalizer {
  switch (step["type"]) {
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = step["type"];
      return (text) => text.normalize(form);
    }
    case "Lowercase":
      // Each character by itself: a final sigma is none.
      return (text) => Array.from(text, (character) => character.toLowerCase()).join("");
    case "Strip":
      return (text) => {
        const left = step["strip_left"] === true ? text.replace(LEADING, "") : text;
        return step["strip_right"] === true ? trimEnd(left) : left;
      };
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "");
    case "Prepend":
      return (text) => (text === "" ? text : string(step, "prepend", file) + text);
    case "Replace": {
      const find = compilePattern(step["pattern"], file);
      const content = string(step, "content", file);
      return (text) => replaceAll(text, find(text), content);
    }
    case "ByteLevel":
      return toAlphabet;
  }
  throw new UnsupportedModelError(file, `the normalizer ${step["type"]} is not supported`);
}

/** White space at the end is found from the end: an expression would try every run of it. */
function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && TRAILING.test(text[end - 1]!)) end--;
  return text.slice(0, end);
}

function replaceAll(text: string, found: readonly number[], content: string): string {
  if (found.length === 0) return text;
  const pieces: string[] = [];
  let at = 0;
  for (let i = 0; i < found.length; i += 2) {
    pieces.push(text.slice(at, found[i]), content);
    at = found[i + 1]!;
  }
  pieces.push(text.slice(at));
  return pieces.join("");
}

/** A field that must be a text. */
export function string(step: Step, name: string, file: string): string {
  const value = step[name];
  if (typeof value === "string") return value;
  throw new ModelDataError(file, `${step["type"]}.${name} is not a text`);
}

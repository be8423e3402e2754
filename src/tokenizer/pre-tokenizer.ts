import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { toAlphabet } from "./byte-alphabet.ts";
import { flattenSteps, type Step, string } from "./normalizer.ts";
import { compilePattern, type Finder, nativeFinder } from "./pattern/pattern.ts";

/** The words of a piece of text. @param isFirst whether the piece is where the whole text begins */
export type PreTokenizer = (text: string, isFirst: boolean) => string[];

const BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behavior = (typeof BEHAVIORS)[number];

const GPT2 = nativeFinder(
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gv,
);
const WORDS = nativeFinder(
  /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\p{White_Space}]+/gv,
);
const SPACE = nativeFinder(/\p{White_Space}/gv);
const PUNCTUATION = nativeFinder(/[\p{P}!-\/:-@\[-`\{-~]/gv);
const NUMBER = nativeFinder(/\p{N}/gv);

/**
 * How a text is split into the words that byte-pair encoding merges within, as `tokenizers` does it.
 * @throws ModelDataError or UnsupportedModelError naming `file`
 */
export function compilePreTokenizer(config: unknown, file: string): PreTokenizer {
  const steps = flattenSteps(config, "pretokenizers", file).map((step) => compileStep(step, file));
  return (text, isFirst) =>
    steps.reduce(
      (words: string[], step) =>
        words.flatMap((word, i) => step(word, isFirst && i === 0)).filter((word) => word !== ""),
      [text],
    );
}

function compileStep(step: Step, file: string): PreTokenizer {
  switch (step["type"]) {
    case "ByteLevel": {
      const spaced = (text: string) =>
        step["add_prefix_space"] === true && !text.startsWith(" ") ? ` ${text}` : text;
      if (step["use_regex"] === false) return (text) => [toAlphabet(spaced(text))];
      return (text) => {
        const whole = spaced(text);
        return split(whole, GPT2(whole), "Isolated", false).map(toAlphabet);
      };
    }
    case "Split": {
      const find = compilePattern(step["pattern"], file);
      const behavior = behaviorOf(step["behavior"], file);
      return (text) => split(text, find(text), behavior, step["invert"] === true);
    }
    case "Digits": {
      const behavior = step["individual_digits"] === true ? "Isolated" : "Contiguous";
      return (text) => split(text, NUMBER(text), behavior, false);
    }
    case "Punctuation": {
      const behavior = behaviorOf(step["behavior"] ?? "Isolated", file);
      return (text) => split(text, PUNCTUATION(text), behavior, false);
    }
    case "Whitespace":
      return (text) => split(text, WORDS(text), "Removed", true);
    case "WhitespaceSplit":
      return (text) => split(text, SPACE(text), "Removed", false);
    case "BertPreTokenizer":
      return (text) =>
        split(text, SPACE(text), "Removed", false).flatMap((word) =>
          split(word, PUNCTUATION(word), "Isolated", false),
        );
    case "CharDelimiterSplit": {
      const find = compilePattern({ String: string(step, "delimiter", file) }, file);
      return (text) => split(text, find(text), "Removed", false);
    }
    case "FixedLength": {
      const length = step["length"] ?? 5;
      if (!Number.isSafeInteger(length) || (length as number) < 1) {
        throw new ModelDataError(file, "FixedLength.length is not a positive integer");
      }
      return (text) => chunks(Array.from(text), length as number);
    }
    case "Metaspace":
      return metaspace(step, file);
  }
  throw new UnsupportedModelError(file, `the pre-tokenizer ${step["type"]} is not supported`);
}

/** Spaces become "▁", one is put in front, and each begins a word. */
function metaspace(step: Step, file: string): PreTokenizer {
  const mark = step["replacement"] === undefined ? "▁" : string(step, "replacement", file);
  const scheme = step["add_prefix_space"] === false ? "never" : (step["prepend_scheme"] ?? "always");
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
    throw new ModelDataError(file, `Metaspace.prepend_scheme is ${JSON.stringify(scheme)}`);
  }
  const find = compilePattern({ String: mark }, file);
  return (text, isFirst) => {
    const marked = text.replaceAll(" ", mark);
    const prepends = scheme === "always" || (scheme === "first" && isFirst);
    const whole = prepends && !marked.startsWith(mark) ? mark + marked : marked;
    return step["split"] === false ? [whole] : split(whole, find(whole), "MergedWithNext", false);
  };
}

function behaviorOf(value: unknown, file: string): Behavior {
  const behavior = BEHAVIORS.find((each) => each === value);
  if (behavior === undefined)
    throw new ModelDataError(file, `${JSON.stringify(value)} is not a way to split`);
  return behavior;
}

/**
 * The pieces of a text around and of the matches in it; empty ones are left out. What is between the matches counts as
 * a match if `invert`.
 */
function split(text: string, found: ReturnType<Finder>, behavior: Behavior, invert: boolean): string[] {
  /** Ends of the stretches of the text, and whether each is a match. */
  const ends: number[] = [];
  const matches: boolean[] = [];
  let at = 0;
  for (let i = 0; i < found.length; i += 2) {
    if (found[i]! > at) {
      ends.push(found[i]!);
      matches.push(invert);
    }
    ends.push(found[i + 1]!);
    matches.push(!invert);
    at = found[i + 1]!;
  }
  if (at < text.length) {
    ends.push(text.length);
    matches.push(invert);
  }
  return pieces(text, ends, matches, behavior);
}

function pieces(
  text: string,
  ends: readonly number[],
  matches: readonly boolean[],
  behavior: Behavior,
): string[] {
  const result: string[] = [];
  let start = 0;
  for (let i = 0; i < ends.length; i++) {
    const isMatch = matches[i]!;
    const next = matches[i + 1];
    const goesOn =
      next !== undefined &&
      ((behavior === "Contiguous" && next === isMatch) ||
        (behavior === "MergedWithPrevious" && next && !isMatch) ||
        (behavior === "MergedWithNext" && !next && isMatch));
    if (goesOn) continue;
    if (!(behavior === "Removed" && isMatch) && ends[i]! > start) result.push(text.slice(start, ends[i]));
    start = ends[i]!;
  }
  return result;
}

function chunks(characters: readonly string[], length: number): string[] {
  const result: string[] = [];
  for (let i = 0; i < characters.length; i += length) result.push(characters.slice(i, i + length).join(""));
  return result;
}

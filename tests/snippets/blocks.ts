import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Glob } from "bun";
import { RULES, type Rule } from "./rules.ts";

export const ROOT = join(import.meta.dir, "../..");

/** A block of code in a document. */
export interface Block {
  readonly document: string;
  /** Of its first line of code, from 1. */
  readonly line: number;
  readonly language: "ts" | "sh";
  readonly code: string;
  readonly rules: readonly Rule[];
}

/** The blocks of TypeScript and of shell commands in the README and in the documents, in their order. */
export function blocksOf(documents: readonly string[]): readonly Block[] {
  return documents.flatMap((document) => {
    const text = readFileSync(join(ROOT, document), "utf8");
    return [...text.matchAll(/^( *)```(ts|typescript|sh|bash|shell)\b.*\n([\s\S]*?)^ *```/gm)].map(
      (match) => {
        const [, indent, language, code] = match;
        const line = text.slice(0, match.index).split("\n").length + 1;
        const rules = RULES.filter((rule) => rule.document === document && code!.includes(rule.has));
        const plain = code!.replaceAll(RegExp(`^${indent}`, "gm"), "");
        return {
          document,
          line,
          language: language!.startsWith("t") ? "ts" : "sh",
          code: plain,
          rules,
        } as const;
      },
    );
  });
}

export const DOCUMENTS: readonly string[] = ["README.md", ...new Glob("docs/**/*.md").scanSync(ROOT)].sort();

/** The block as it runs here: with the embedded model, and the server at `host`. */
export function runnable({ code, rules: [rule] }: Block, host: string): string {
  const replaced = (rule?.replace ?? []).reduce((text, [from, to]) => text.replaceAll(from, to), code);
  return [rule?.before, replaced]
    .filter((part) => part !== undefined)
    .join("\n")
    .replaceAll(/\b(?:Qwen|meta-llama)\/[\w.-]+/g, "tiny-stories")
    .replaceAll(/\b(?:127\.0\.0\.1|localhost):8000\b/g, host);
}

import { harmless } from "./terminal-style.ts";

/** Facts in two columns, wrapped to about 100. What a model's files say in them does nothing to a terminal. */
export function titledLines(facts: readonly (readonly [title: string, text: string])[]): string {
  return facts.map(([title, text]) => titledLine(title, text)).join("\n");
}

function titledLine(title: string, text: string): string {
  const rows = harmless(text).match(/\S.{0,84}(?=\s|$)|\S+/g) ?? [];
  return `  ${title.padEnd(10)}${rows.join(`\n${" ".repeat(12)}`)}`;
}

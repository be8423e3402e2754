import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { SUPPORTED_MODELS } from "../../../src/models/supported-models.ts";
import { WRAPPERS } from "../../../src/models/text-config.ts";

setDefaultTimeout(300_000);

const DOCUMENT = join(import.meta.dir, "../../../docs/models.md");

/** The rows of a Markdown table below its head, with single spaces. */
function rowsOf(document: string, head: string): string[] {
  const lines = document.split("\n").map((line) => line.replaceAll(/ +/g, " "));
  const start = lines.findIndex((line) => line.startsWith(`| ${head} |`));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith("|"));
  return lines.slice(start + 2, end);
}

test("docs/models.md lists the architectures, and what each has", () => {
  const rows = Object.entries(SUPPORTED_MODELS).map(
    ([architecture, { models, features }]) => `| \`${architecture}\` | ${models} | ${features.join("; ")} |`,
  );
  expect(rowsOf(readFileSync(DOCUMENT, "utf8"), "Architecture")).toEqual(rows);
});

test("docs/models.md lists the multimodal models whose text part is loaded", () => {
  const document = readFileSync(DOCUMENT, "utf8");
  for (const wrapper of WRAPPERS) expect(document).toContain(`\`${wrapper}\``);
});

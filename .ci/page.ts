import { readFileSync } from "node:fs";
import { join } from "node:path";

const FOLDER = join(import.meta.dir, "../src/page");
const PACKAGES = ["marked", "preact", "uplot"];

/** The file in which the page lies in the repository and in the package, ready to be served. */
export const BUILT = join(import.meta.dir, "../src/server/built-page.json");

/**
 * The page's files by their names, minified. It is one document, one script and one style sheet, so that a policy can forbid
 * everything else.
 * @throws AggregateError of what does not compile.
 */
export async function buildPage(): Promise<Record<string, string>> {
  const { outputs } = await Bun.build({
    entrypoints: [join(FOLDER, "main.tsx"), join(FOLDER, "page.css")],
    target: "browser",
    minify: true,
    naming: "[name].[ext]",
    define: { "process.env.NODE_ENV": '"production"' },
  });
  const textOf = (extension: string) => outputs.find(({ path }) => path.endsWith(extension))!.text();
  const read = (...path: string[]) => readFileSync(join(FOLDER, ...path), "utf8");
  const licenses = PACKAGES.map(
    (name) => `${name}\n\n${read("../../node_modules", name, "LICENSE").trim()}\n`,
  );
  return {
    "index.html": read("index.html"),
    "icon.svg": read("icon.svg"),
    "page.css": await textOf(".css"),
    "page.js": await textOf(".js"),
    "licenses.txt": licenses.join("\n\n"),
  };
}

if (import.meta.main) await Bun.write(BUILT, `${JSON.stringify(await buildPage(), null, 1)}\n`);

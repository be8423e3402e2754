/**
 * Makes Octavo one file that needs neither Bun nor its source: the program, its Workers, kernels and the embedded model.
 *
 *   bun run .ci/binary.ts [file] [--target bun-linux-x64]
 */
import { mkdirSync, mkdtempSync, renameSync, rmSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { Glob } from "bun";

const ROOT = join(import.meta.dir, "..");
const PROGRAM = "src/cli/main.ts";

export const WORKERS: readonly string[] = [...new Glob("src/**/*-worker.ts").scanSync(ROOT)].sort();

/** The paths that the program reads by `programFile`: files, and folders with all that is in them. */
export const ASSETS: readonly string[] = ["kernels-cu", "kernels-wasm/kernels.wasm", "models/tiny-stories"];

/** A module that brings the assets in, each under its path in the repository. */
const ASSET_MODULE = "octavo-assets";

/** @param target one of Bun's, such as `bun-linux-arm64`; default: that of this machine. */
export async function buildBinary(outfile: string, target?: string): Promise<void> {
  mkdirSync(dirname(outfile), { recursive: true });
  // Maps of the source are inside of the program, and are also written beside it.
  const scratch = mkdtempSync(`${outfile}.`);
  try {
    await compile(join(scratch, "octavo"), target);
    renameSync(join(scratch, "octavo"), outfile);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

async function compile(outfile: string, target: string | undefined): Promise<void> {
  const assets = ASSETS.flatMap((path) => filesOf(path));
  const { success, logs } = await Bun.build({
    entrypoints: [...[PROGRAM, ...WORKERS].map((path) => join(ROOT, path)), ASSET_MODULE],
    root: ROOT,
    target: "bun",
    naming: { asset: "[dir]/[name].[ext]" },
    // Errors are known by the names of their classes.
    minify: { whitespace: true, syntax: true, identifiers: false },
    sourcemap: "inline",
    compile: {
      outfile,
      ...(target !== undefined && { target: target as Bun.Build.CompileTarget }),
      // A folder that the program happens to run in is no place to take settings or code from.
      autoloadDotenv: false,
      autoloadBunfig: false,
    },
    plugins: [
      {
        name: ASSET_MODULE,
        setup(build) {
          build.onResolve({ filter: RegExp(`^${ASSET_MODULE}$`) }, ({ path }) => ({
            path,
            namespace: ASSET_MODULE,
          }));
          build.onLoad({ filter: /.*/, namespace: ASSET_MODULE }, () => ({
            loader: "js",
            contents: assets
              .map((path) => `import ${JSON.stringify(path)} with { type: "file" };`)
              .join("\n"),
          }));
        },
      },
    ],
    throw: false,
  });
  if (!success) throw new AggregateError(logs, "the program cannot be compiled");
}

/** The files of a path below the root, which must be some. */
function filesOf(path: string): string[] {
  const names = statSync(join(ROOT, path)).isFile() ? [""] : [...new Glob("**").scanSync(join(ROOT, path))];
  if (names.length === 0) throw new Error(`${path} is empty`);
  return names.map((name) => join(ROOT, path, name));
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    options: { target: { type: "string" } },
    allowPositionals: true,
  });
  await buildBinary(resolve(positionals[0] ?? join(ROOT, "dist/octavo")), values.target);
}

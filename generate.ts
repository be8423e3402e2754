#!/usr/bin/env bun
/** Quick start: `bun run generate.ts "Once upon a time"`. See `--help`; `octavo generate` is the same command. */
import { generateCommand } from "./src/cli/generate.ts";
import { runCommand } from "./src/cli/program.ts";

await runCommand(generateCommand("generate.ts"), process.argv.slice(2));
